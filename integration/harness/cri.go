package harness

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI says how containerd serves Kubernetes.
type CRI struct {
	// Handlers are the runtimes that a pod can name; the first is the default.
	Handlers []Handler
}

// Handler is one runtime in containerd's configuration.
type Handler struct {
	Name, Type string
	// TOML are further lines of the runtime's table, tables below it after
	// those: Table stands for its name.
	TOML string
	// Options are lines of its table of options.
	Options string
}

// Lines of a Handler's table: pods without a pause container, and with streams of the shim's as well.
const (
	Pauseless = "sandboxer = 'shim'\ndisable_pause_image_pull = true"
	Streamed  = Pauseless + "\nio_type = 'streaming'"
)

// DrainTimeout is how long CRI waits for the end of an exec's output after that of its process.
const DrainTimeout = 2 * time.Second

// networkName is the one in the configuration of CNI, and of its bridge.
const networkName = "rsys-it"

// plugins is where Debian's containernetworking-plugins has them.
const plugins = "/usr/lib/cni"

func (d *Daemon) cni(elem ...string) string {
	return filepath.Join(append([]string{d.Dir, "cni"}, elem...)...)
}

// criDir is where CRI keeps files of pods and containers: below root those
// that outlive the machine, below state the others.
func (d *Daemon) criDir(of string) string {
	base := map[string]string{"root": d.Dir, "state": d.State}[of]
	return filepath.Join(base, of, "io.containerd.grpc.v1.cri")
}

// setUpCNI writes the configuration of the network: a bridge as most nodes
// have one, with masquerade, and ports of the host.
func (d *Daemon) setUpCNI() error {
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		return fmt.Errorf("%w (hack/setup cni installs containernetworking-plugins)", err)
	}
	for _, dir := range []string{"conf", "leases", "results"} {
		if err := os.MkdirAll(d.cni(dir), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(d.cni("conf", "10-bridge.conflist"), fmt.Appendf(nil, `{
  "cniVersion": "1.0.0", "name": %q,
  "plugins": [
    {
      "type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true,
      "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, networkName, networkName, d.cni("leases")), 0o644)
}

// criTOML is the configuration of a containerd that serves CRI. That of 1.7
// has other tables than that of 2.x.
func (d *Daemon) criTOML(level string) string {
	var out strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	old := d.Old()
	version, runtime := 3, "io.containerd.cri.v1.runtime"
	if old {
		version, runtime = 2, "io.containerd.grpc.v1.cri"
	}
	p("version = %d\nroot = %q\nstate = %q", version, filepath.Join(d.Dir, "root"), filepath.Join(d.State, "state"))
	p("disabled_plugins = ['io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing']")
	p("[grpc]\n  address = %q\n[ttrpc]\n  address = %q\n[debug]\n  level = %q", d.Address(), d.Address()+".ttrpc", level)
	p("[plugins.'io.containerd.internal.v1.opt']\n  path = %q", filepath.Join(d.Dir, "opt"))
	p("[plugins.'io.containerd.nri.v1.nri']\n  disable = true")
	p("[plugins.'%s']\n  enable_unprivileged_ports = true\n  enable_unprivileged_icmp = true", runtime)
	// How long an exec's output is waited for when its process has ended and another holds it. The default is for ever.
	p("  drain_exec_sync_io_timeout = '%v'", DrainTimeout)
	// A pause container's is lower than what we may set where this is missing.
	if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0); err == nil && has == 0 {
		p("  restrict_oom_score_adj = true")
	}
	if old {
		p("  sandbox_image = %q", PauseImageName)
		p("[plugins.'%s'.cni]\n  bin_dir = %q\n  conf_dir = %q", runtime, plugins, d.cni("conf"))
	} else {
		p("[plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = %q", PauseImageName)
		p("[plugins.'%s'.cni]\n  bin_dirs = [%q]\n  conf_dir = %q", runtime, plugins, d.cni("conf"))
	}
	p("[plugins.'%s'.containerd]\n  default_runtime_name = %q", runtime, d.CRI.Handlers[0].Name)
	for _, h := range d.CRI.Handlers {
		table := fmt.Sprintf("plugins.'%s'.containerd.runtimes.%s", runtime, h.Name)
		p("[%s]\n  runtime_type = %q\n%s", table, h.Type, h.TOML)
		p("[%s.options]\n%s", table, h.Options)
		if Systemd() && h.Type != "io.containerd.rsys.v1" { // ours knows it by the path
			p("SystemdCgroup = true")
		}
	}
	return out.String()
}

// setUpCRI loads the pause image, and waits until CRI has the network and both
// images.
func (d *Daemon) setUpCRI() error {
	var tar bytes.Buffer
	if err := WritePauseImage(&tar); err != nil {
		return err
	}
	if err := d.Load(tar.Bytes()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cri, err := d.DialCRI()
	if err != nil {
		return err
	}
	defer cri.Close()
	for {
		why, err := cri.missing(ctx)
		if err == nil && why == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("CRI is not ready: %s, %v", why, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// CRIClient talks to containerd as a kubelet does.
type CRIClient struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	conn *grpc.ClientConn
}

// DialCRI connects to the daemon's CRI.
func (d *Daemon) DialCRI() (*CRIClient, error) {
	conn, err := grpc.NewClient("unix://"+d.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, err
	}
	return &CRIClient{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn), conn}, nil
}

// Close ends the connection.
func (c *CRIClient) Close() { _ = c.conn.Close() }

// missing tells what keeps pods from being run.
func (c *CRIClient) missing(ctx context.Context) (string, error) {
	st, err := c.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return "", err
	}
	for _, cond := range st.Status.Conditions {
		if !cond.Status && (cond.Type == "RuntimeReady" || cond.Type == "NetworkReady") {
			return cond.Type + ": " + cond.Message, nil
		}
	}
	for _, name := range []string{ImageName, PauseImageName} {
		img, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err != nil || img.Image == nil {
			return "image " + name, err
		}
	}
	return "", nil
}

// network adds what CNI's plugins make on the node: interfaces, and rules of
// the firewall. The bridge and the plugins' own chains stay once they are made.
func (d *Daemon) network(s Snapshot) {
	links, err := net.Interfaces()
	if err != nil {
		s["interfaces: unreadable: "+err.Error()] = true
	}
	for _, l := range links {
		if l.Name != networkName {
			s[fmt.Sprintf("interface %d: %s", l.Index, l.Name)] = true
		}
	}
	// Without the network of our own these are everybody's, and others change them.
	if ownNetwork {
		for _, table := range []string{"nat", "filter"} {
			out, err := exec.Command("iptables-save", "-t", table).CombinedOutput()
			if err != nil {
				s["iptables: unreadable: "+err.Error()] = true
			}
			for line := range strings.Lines(string(out)) {
				if rule := strings.TrimSpace(line); strings.HasPrefix(rule, "-A") && !standing(rule) {
					s[table+" rule "+rule] = true
				}
			}
		}
	}
}

// standing says whether a rule is one of portmap's that lead to its chains, made
// with the first port and then left, as they do nothing by themselves.
func standing(rule string) bool {
	for _, chain := range []string{"-A PREROUTING", "-A OUTPUT", "-A POSTROUTING", "-A CNI-HOSTPORT-SETMARK", "-A CNI-HOSTPORT-MASQ"} {
		if strings.HasPrefix(rule, chain) && strings.Contains(rule, "HOSTPORT") || strings.HasPrefix(rule, "-A CNI-HOSTPORT-") && strings.Contains(rule, "0x2000") {
			return true
		}
	}
	return false
}
