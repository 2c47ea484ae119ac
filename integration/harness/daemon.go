package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
)

// Config says which containerd to run and with what.
type Config struct {
	// Containerd is the directory of containerd and of the runc shim that
	// was released with it.
	Containerd string
	// Path are the directories in which containerd looks for shims and runc.
	Path []string
	// Namespace is containerd's; cgroups are below it.
	Namespace string
	// Debug has containerd and the shims log everything.
	Debug bool
	// Spans is where containerd and the shims send their spans, a URL; "" for nowhere.
	Spans string
	// CRI has containerd serve Kubernetes.
	CRI *CRI
}

// Old says that containerd is 1.7, whose CRI has less: it knows neither pods without a pause container nor streams.
func (c *Config) Old() bool { return strings.Contains(c.Containerd, "containerd-1.") }

// FromEnv is the configuration that hack/setup and hack/build make, changed by
// RSYS_CONTAINERD (a version, or how one begins: 2.4, 1.7), RSYS_CACHE,
// RSYS_BIN and RSYS_DEBUG.
func FromEnv() (Config, error) {
	cache := Cache()
	version := os.Getenv("RSYS_CONTAINERD")
	if version == "" {
		version = "2.4"
	}
	containerd, err := Release(version)
	if err != nil {
		return Config{}, err
	}
	bin := os.Getenv("RSYS_BIN")
	if bin == "" {
		if bin, err = filepath.Abs("../bin"); err != nil {
			return Config{}, err
		}
	}
	path := []string{bin, containerd}
	if runc, err := newest(filepath.Join(cache, "runc-*", "bin")); err == nil {
		path = append(path, runc)
	}
	if criu, err := newest(filepath.Join(cache, "criu-*", "bin")); err == nil {
		path = append(path, criu)
	}
	return Config{
		Containerd: containerd, Path: path, Namespace: fmt.Sprintf("rsys-it-%d", os.Getpid()),
		Debug: os.Getenv("RSYS_DEBUG") != "",
	}, nil
}

// Cache is where hack/setup puts what it gets.
func Cache() string {
	if cache := os.Getenv("RSYS_CACHE"); cache != "" {
		return cache
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	return filepath.Join(home, ".cache/rsys")
}

// Release is the directory of a containerd that hack/setup has got, of a
// version or of how one begins.
func Release(version string) (string, error) {
	return newest(filepath.Join(Cache(), "containerd-"+version+"*", "bin"))
}

// newest is the last of the directories that match.
func newest(pattern string) (string, error) {
	found, _ := filepath.Glob(pattern)
	if len(found) == 0 {
		return "", fmt.Errorf("no %s: hack/setup gets it", pattern)
	}
	return found[len(found)-1], nil
}

// Daemon is a containerd of our own.
type Daemon struct {
	Config
	// Dir is its root directory, on disk; State is in our /run.
	Dir, State string
	Client     *client.Client
	// Others are processes that run beside the daemon, Docker's: they are no
	// leak, and stay when a test is cleaned up after.
	Others func() []int
	// Keeps are patterns of files that these look after themselves; what is
	// none is a mount too.
	Keeps []string

	logs   string
	cmd    *exec.Cmd
	exited chan error
}

// The image is the same for every daemon of a process.
var image = sync.OnceValues(func() ([]byte, error) {
	var buf bytes.Buffer
	err := WriteImage(&buf)
	return buf.Bytes(), err
})

// Start starts a containerd and loads the image into it.
func Start(cfg Config) (_ *Daemon, err error) {
	dir, err := os.MkdirTemp(os.Getenv(isolated), "containerd-")
	if err != nil {
		return nil, err
	}
	d := &Daemon{Config: cfg, Dir: dir, State: "/run/rsys-it", logs: filepath.Join(dir, "containerd.log")}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, d.Log(2000))
			d.Stop()
		}
	}()
	if cfg.CRI != nil {
		d.Namespace = "k8s.io" // CRI's, always
	}
	sandboxes := filepath.Join("io.containerd.sandbox.controller.v1.shim", d.Namespace)
	for _, sub := range []string{
		d.FIFOs(), d.Temp(), d.State,
		// containerd makes it with the first sandbox, and leaves it.
		filepath.Join(d.State, "state", sandboxes), filepath.Join(d.Dir, "root", sandboxes),
	} {
		if err := os.MkdirAll(sub, 0o711); err != nil {
			return nil, err
		}
	}
	if cfg.CRI != nil {
		if err := d.setUpCNI(); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(d.config(), []byte(d.toml()), 0o644); err != nil {
		return nil, err
	}
	if err := d.Run(); err != nil {
		return nil, err
	}
	tar, err := image()
	if err != nil {
		return nil, err
	}
	if err := d.Load(tar); err != nil {
		return nil, err
	}
	if cfg.CRI != nil {
		return d, d.setUpCRI()
	}
	return d, nil
}

// Load imports images and makes snapshots of them.
func (d *Daemon) Load(tar []byte) error {
	ctx, cancel := context.WithTimeout(d.Background(), time.Minute)
	defer cancel()
	imgs, err := d.Client.Import(ctx, bytes.NewReader(tar))
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	for _, img := range imgs {
		if err := client.NewImage(d.Client, img).Unpack(ctx, "overlayfs"); err != nil {
			return fmt.Errorf("unpack image: %w", err)
		}
	}
	return nil
}

// Address is where it listens.
func (d *Daemon) Address() string { return filepath.Join(d.State, "containerd.sock") }

// FIFOs is where clients' fifos are made.
func (d *Daemon) FIFOs() string { return filepath.Join(d.State, "fifo") }

// Temp is TMPDIR of the daemon and its shims.
func (d *Daemon) Temp() string { return filepath.Join(d.State, "tmp") }

// Bundle is where containerd puts a container's bundle.
func (d *Daemon) Bundle(id string) string {
	return filepath.Join(d.State, "state/io.containerd.runtime.v2.task", d.Namespace, id)
}

// CgroupName is part of the path of all cgroups. Other daemons have CRI's namespace too.
func (d *Daemon) CgroupName() string {
	if d.CRI != nil {
		return fmt.Sprintf("rsys-it-%d", os.Getpid())
	}
	return d.Namespace
}

func (d *Daemon) config() string { return filepath.Join(d.Dir, "config.toml") }

// toml is a configuration that both 1.7 and 2.x understand.
func (d *Daemon) toml() string {
	level := "info"
	if d.Debug {
		level = "debug"
	}
	if d.CRI != nil {
		return d.criTOML(level)
	}
	tracing := `"io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",`
	if d.Spans != "" {
		tracing = ""
	}
	return fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri", %s
]
[grpc]
  address = %q
[ttrpc]
  address = %q
[debug]
  level = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, filepath.Join(d.Dir, "root"), filepath.Join(d.State, "state"), tracing, d.Address(), d.Address()+".ttrpc", level, filepath.Join(d.Dir, "opt"))
}

// Background is a context with the namespace.
func (d *Daemon) Background() context.Context {
	return namespaces.WithNamespace(context.Background(), d.Namespace)
}

// Pid is the daemon's; 0 when it does not run.
func (d *Daemon) Pid() int {
	if d.cmd == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// stays tells that a process is the daemon or beside it.
func (d *Daemon) stays(pid int) bool {
	return pid == d.Pid() || d.Others != nil && slices.Contains(d.Others(), pid)
}

// Run starts the daemon, for the first time or again, and connects to it. After
// Kill it may be another release: Containerd is looked at each time.
func (d *Daemon) Run() error {
	logs, err := os.OpenFile(d.logs, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logs.Close()
	cmd := exec.Command(filepath.Join(d.Containerd, "containerd"), "--config", d.config())
	cmd.Stdout, cmd.Stderr = logs, logs
	path := strings.Join(append(append([]string{}, d.Path...), os.Getenv("PATH")), ":")
	// criu's name for: do without hardware breakpoints. Not every virtual machine has any that work, and then criu waits for ever.
	cmd.Env = append(os.Environ(), "PATH="+path, "TMPDIR="+d.Temp(), "CRIU_FAULT=130")
	if d.Spans != "" {
		cmd.Env = append(cmd.Env, "OTEL_EXPORTER_OTLP_ENDPOINT="+d.Spans, "OTEL_BSP_SCHEDULE_DELAY=100") // milliseconds
	}
	// Signals of a terminal are for us alone: we stop it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	d.cmd, d.exited = cmd, make(chan error, 1)
	go func() { d.exited <- cmd.Wait() }()

	ctx, cancel := context.WithTimeout(d.Background(), 30*time.Second)
	defer cancel()
	for {
		if d.Client, err = client.New(d.Address(), client.WithTimeout(5*time.Second)); err == nil {
			if ok, err := d.Client.IsServing(ctx); err == nil && ok {
				return nil
			}
			d.Client.Close()
		}
		select {
		case err := <-d.exited:
			d.exited <- err
			return fmt.Errorf("containerd exited: %v", err)
		case <-ctx.Done():
			return errors.New("containerd does not answer")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends the daemon as an accident would.
func (d *Daemon) Kill() { d.end(unix.SIGKILL) }

func (d *Daemon) end(sig syscall.Signal) {
	if d.Client != nil {
		// Not before the signal: requests are to be cut, not cancelled.
		defer d.Client.Close()
	}
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(sig)
	select {
	case <-d.exited:
	case <-time.After(20 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
	d.cmd = nil
}

// Stop ends the daemon and all that came from it, and removes its files.
func (d *Daemon) Stop() {
	d.end(unix.SIGTERM)
	KillDescendants()
	// What is left mounted below hides nothing once we are gone, but keeps
	// the directories from being removed.
	for _, m := range mountpoints() {
		if strings.HasPrefix(m, d.Dir+"/") || strings.HasPrefix(m, d.State+"/") {
			_ = unix.Unmount(m, unix.MNT_DETACH)
		}
	}
	_ = exec.Command("systemctl", "stop", d.Slice()).Run() // where there is one
	for _, dir := range cgroupDirs(d.CgroupName()) {
		_ = unix.Rmdir(dir)
	}
	_ = os.RemoveAll(d.Dir)
	_ = os.RemoveAll(d.State)
}

// Log is the end of the daemon's log, with what the shims wrote.
func (d *Daemon) Log(max int) string {
	data, _ := os.ReadFile(d.logs)
	if len(data) > max {
		data = data[len(data)-max:]
	}
	return string(data)
}

// logged is how much the log has.
func (d *Daemon) logged() int {
	data, _ := os.ReadFile(d.logs)
	return len(data)
}

// LogFrom is what was logged after the first from bytes, at most the last max
// bytes of it, without containerd's remarks on shims that came and went.
func (d *Daemon) LogFrom(from, max int) string {
	data, _ := os.ReadFile(d.logs)
	var out strings.Builder
	for line := range strings.Lines(string(data[min(from, len(data)):])) {
		if !d.Debug && strings.Contains(line, "level=info") {
			continue
		}
		out.WriteString(line)
	}
	s := out.String()
	return s[len(s)-min(len(s), max):]
}

// LookPath finds a program as the daemon and its shims do.
func (d *Daemon) LookPath(name string) (string, error) {
	for _, dir := range d.Config.Path {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return exec.LookPath(name)
}
