// Package nerdctl has the tests of the shim under nerdctl, as hack/setup builds it, with the
// CNI plugins of Debian. They heed RSYS_CONTAINERD and RSYS_RUNTIME as those of package integration do.
package nerdctl

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/integration/harness"
)

var (
	daemon  *harness.Daemon
	program string
)

func TestMain(m *testing.M) {
	// The bridge, its addresses and the firewall's rules are our own.
	harness.Isolate(unix.CLONE_NEWNET)
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "nerdctl:", err)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	cfg, err := harness.FromEnv()
	if err != nil {
		return 1, err
	}
	found, _ := filepath.Glob(filepath.Join(harness.Cache(), "nerdctl-*", "bin", "nerdctl"))
	if len(found) == 0 {
		return 1, fmt.Errorf("no nerdctl: hack/setup nerdctl gets it")
	}
	program = found[len(found)-1]
	if daemon, err = harness.Start(cfg); err != nil {
		return 1, err
	}
	defer daemon.Stop()
	// nerdctl's own notes, of networks and ports.
	daemon.Keeps = []string{"/run/nerdctl", "/run/nerdctl/*", "/run/nerdctl/*/*", "/run/nerdctl/*/*/*"}
	if r := nerdctl(nil, "run", "--rm", "--pull", "never", "--runtime", harness.Runtime(), harness.ImageName, "true"); r.Code != 0 {
		return 1, fmt.Errorf("%v\n%s", r, daemon.Log(3000))
	}
	fmt.Printf("# runtime %s, containerd in %s, %s\n", harness.Runtime(), cfg.Containerd, strings.TrimSpace(nerdctl(nil, "--version").Stdout))
	return m.Run(), nil
}

// command is a command of nerdctl, not yet run.
func command(args ...string) *exec.Cmd {
	manager := "cgroupfs"
	if harness.Systemd() {
		manager = "systemd"
	}
	cmd := exec.Command(program, append([]string{
		"--address", daemon.Address(), "--namespace", daemon.Namespace, "--snapshotter", "overlayfs", "--cgroup-manager", manager,
		"--data-root", filepath.Join(daemon.Dir, "nerdctl"), "--cni-path", "/usr/lib/cni", "--cni-netconfpath", filepath.Join(daemon.Dir, "cni"),
	}, args...)...)
	cmd.Env = append(os.Environ(), "NERDCTL_TOML="+filepath.Join(daemon.Dir, "none.toml"), "TMPDIR="+daemon.Temp())
	return cmd
}

func nerdctl(in io.Reader, args ...string) harness.Result {
	cmd := command(args...)
	cmd.Stdin = in
	return harness.RunClient(cmd)
}

// env is what a test works with.
type env struct{ *harness.Env }

func start(t *testing.T) env {
	t.Helper()
	return env{harness.New(t, daemon)}
}

var serial atomic.Int64

// name is a container's name that is not taken; the container is removed at the end of the test.
func (e env) name() string {
	name := fmt.Sprintf("n%d-%d", os.Getpid()%1000, serial.Add(1))
	e.Cleanup(func() {
		if r := nerdctl(nil, "rm", "--force", "--volumes", name); r.Code != 0 && !strings.Contains(r.Stderr, "no such container") {
			e.Error(r)
		}
	})
	return name
}

func args(name string, flags []string, command ...string) []string {
	all := append([]string{"run", "--pull", "never", "--runtime", harness.Runtime(), "--name", name}, flags...)
	return append(append(all, harness.ImageName), command...)
}

// run runs a container to its end and removes it.
func (e env) run(flags []string, command ...string) harness.Result {
	e.Helper()
	return nerdctl(nil, args(e.name(), append([]string{"--rm"}, flags...), command...)...)
}

// detached runs a container in the background.
func (e env) detached(flags []string, command ...string) (name string) {
	e.Helper()
	name = e.name()
	e.must(args(name, append([]string{"--detach"}, flags...), command...)...)
	return name
}

// must is a command that succeeds; its output without the last line's end.
func (e env) must(args ...string) string {
	e.Helper()
	r := nerdctl(nil, args...)
	if r.Code != 0 {
		e.Fatal(r)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

func (e env) is(r harness.Result, code int, stdout string) {
	e.Helper()
	if r.Code != code || r.Stdout != stdout {
		e.Errorf("want exit code %d and stdout %q; %v", code, stdout, r)
	}
}
