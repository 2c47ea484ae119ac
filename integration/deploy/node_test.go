package deploy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestMain(m *testing.M) {
	harness.Isolate() // nodes' shims are in our /run
	os.Exit(m.Run())
}

// node is a node's root directory, and its containerd, which serves CRI.
type node struct {
	*testing.T
	root, containerd string // the latter is the directory of the program
}

// service is containerd.service as systemd has it, with the drop-in that the installer may have put there: it is started again whenever it has ended.
const service = `
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
while :; do
	PATH=$(sed -n 's|^Environment=PATH=|'"$NODE"'|p' "$NODE/etc/systemd/system/containerd.service.d/50-rsys.conf" 2>/dev/null)
	PATH=${PATH:-$path} "$CONTAINERD/containerd" --config "$NODE/etc/containerd/config.toml" >>"$NODE/log" 2>&1 &
	export PATH=$path
	echo $! >"$NODE/pid"
	wait $!
done`

// nsenter is what the installer gets at the node's systemctl by.
const nsenter = `#!/bin/sh
echo "$*" >>"$NODE/asked"
[ "$*" != "-t 1 -m -- systemctl restart containerd.service" ] || kill "$(cat "$NODE/pid")"
`

// The configurations that a node may have had, of the versions that releases write.
var nodes = []struct{ containerd, config string }{
	{"2.4", `version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = 'rsys.io/pause:latest'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
`}, {"2.4", `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "rsys.io/pause:latest"
  restrict_oom_score_adj = true
`}, {"1.7", `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "rsys.io/pause:latest"
  restrict_oom_score_adj = true
`},
}

func startNode(t *testing.T, version, config string) *node {
	t.Helper()
	dir, err := harness.Release(version)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t, t.TempDir(), dir}
	before, after, _ := strings.Cut(config, "\n")
	n.write("etc/containerd/config.toml", 0o644, fmt.Sprintf("%s\nroot = %q\nstate = \"/run/node\"\n[grpc]\n  address = %q\n[ttrpc]\n  address = %q\n%s"+
		"[plugins.'io.containerd.internal.v1.opt']\n  path = %q\n[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n",
		before, n.root+"/lib", n.address(), n.address()+".ttrpc", after, n.root+"/opt"))
	n.write("bin/nsenter", 0o755, nsenter)
	n.write("etc/systemd/system/other", 0o644, "")
	service := exec.Command("sh", "-c", service)
	service.Env = append(os.Environ(), "NODE="+n.root, "CONTAINERD="+dir)
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = service.Process.Kill()
		_ = service.Wait()
		harness.KillDescendants()
		if t.Failed() {
			log, _ := os.ReadFile(n.root + "/log")
			t.Logf("containerd's log ends with\n%s", log[max(0, len(log)-3000):])
		}
		os.RemoveAll("/run/node")
	})
	n.eventually("CRI answers", n.answers)
	return n
}

func (n *node) address() string { return "/run/node.sock" }

func (n *node) write(name string, mode os.FileMode, text string) {
	n.Helper()
	name = filepath.Join(n.root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		n.Fatal(err)
	}
}

func (n *node) read(name string) string {
	data, _ := os.ReadFile(filepath.Join(n.root, name))
	return string(data)
}

func (n *node) eventually(what string, so func() bool) {
	n.Helper()
	for deadline := time.Now().Add(30 * time.Second); !so(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.Fatalf("not so: %s", what)
		}
	}
}

func (n *node) cri() runtimeapi.RuntimeServiceClient {
	n.Helper()
	conn, err := grpc.NewClient("unix://"+n.address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { conn.Close() })
	return runtimeapi.NewRuntimeServiceClient(conn)
}

func (n *node) answers() bool {
	st, err := n.cri().Status(n.Context(), new(runtimeapi.StatusRequest))
	return err == nil && len(st.Status.Conditions) > 0 && st.Status.Conditions[0].Status
}

// load has containerd load the pause image.
func (n *node) load() {
	n.Helper()
	file := filepath.Join(n.T.TempDir(), "pause.tar")
	f, err := os.Create(file)
	if err == nil {
		err = harness.WritePauseImage(f)
	}
	if err != nil {
		n.Fatal(err)
	}
	run(n.T, filepath.Join(n.containerd, "ctr"), "--address", n.address(), "--namespace", "k8s.io", "images", "import", file)
	f.Close()
}

// pod runs one of the node's network: there are no CNI plugins here.
func (n *node) pod(name string) (id string, err error) {
	options := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
	pod, err := n.cri().RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: "rsys", Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name}, LogDirectory: n.root,
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: fmt.Sprintf("/rsys-it-%d", os.Getpid()), SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}},
	}})
	return pod.GetPodSandboxId(), err
}

// deploy runs what a DaemonSet runs, or a command line of its own.
func (n *node) deploy(command []string) string {
	n.Helper()
	cmd := exec.Command(command[0], append(command[1:], "--shim", os.Getenv("RSYS_BIN")+"/containerd-shim-rsys-v1")...)
	cmd.Env = append(os.Environ(), "NODE="+n.root, "PATH="+n.root+"/bin:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.Fatalf("%v: %v\n%s", command, err, out)
	}
	return string(out)
}

func TestANodeRunsPodsFromTheInstallersRestartToTheUninstallers(t *testing.T) {
	if os.Getenv("RSYS_BIN") == "" {
		bin, err := filepath.Abs(repository + "/bin")
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("RSYS_BIN", bin)
	}
	for _, test := range nodes {
		format, _, _ := strings.Cut(strings.TrimPrefix(test.config, "version = "), "\n")
		t.Run(test.containerd+" and version "+format, func(t *testing.T) {
			n := startNode(t, test.containerd, test.config)
			n.load()
			ours := func() map[string]string {
				files := tree(t, n.root)
				for name := range files {
					if !strings.HasPrefix(name, "etc") && !strings.HasPrefix(name, "opt/rsys") {
						delete(files, name)
					}
				}
				return files
			}
			before, first := ours(), n.read("pid")
			if _, err := n.pod("early"); err == nil || !strings.Contains(err.Error(), "rsys") {
				t.Errorf("a pod of a runtime that is not there: %v", err)
			}

			install := installerCommand(t, "installer.yaml", n.root)
			n.deploy(install)
			if got, want := n.read("asked"), "-t 1 -m -- systemctl daemon-reload\n-t 1 -m -- systemctl restart containerd.service\n"; got != want {
				t.Errorf("of the node was asked %q", got)
			}
			n.eventually("containerd was started again", func() bool { return n.read("pid") != first && n.answers() })
			second := n.read("pid")
			id, err := n.pod("one")
			if err != nil {
				t.Fatal(err)
			}
			st, err := n.cri().PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
			if err != nil || st.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY {
				t.Errorf("the pod is %v, %v", st, err)
			}
			want := filepath.Join(n.root, "opt/rsys/bin/containerd-shim-rsys-v1")
			found := false
			for _, p := range harness.DescendantsOf(os.Getppid()) {
				exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.Pid))
				found = found || exe == want
			}
			if !found {
				t.Errorf("no process runs %s", want)
			}

			// Once more, as when the DaemonSet's pod is: the shim is replaced, containerd left alone.
			if out := n.deploy(install); !strings.Contains(out, "as it was") || n.read("pid") != second {
				t.Errorf("the second time: %s", out)
			}

			if _, err := n.cri().StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
				t.Error(err)
			}
			if _, err := n.cri().RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
				t.Error(err)
			}
			n.deploy(installerCommand(t, "uninstaller.yaml", n.root))
			n.eventually("containerd was started again", func() bool { return n.read("pid") != second && n.answers() })
			if _, err := n.pod("late"); err == nil || !strings.Contains(err.Error(), "rsys") {
				t.Errorf("a pod of a runtime that is not there any more: %v", err)
			}
			sameTree(t, "uninstall", before, ours())
		})
	}
}
