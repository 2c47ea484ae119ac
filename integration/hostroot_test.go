package integration

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// hostMounts are how many mounts of our table, which is containerd's and so the host's, are at a path.
func hostMounts(path string) (n int) {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[4] == path {
			n++
		}
	}
	return n
}

var (
	onHost    = oci.WithAnnotations(map[string]string{"io.rsys.rootfs-on-host": "true"})
	notOnHost = oci.WithAnnotations(map[string]string{"io.rsys.rootfs-on-host": "false"})
)

func TestTheRootFileSystemIsSeenOnTheHostIfThatIsAskedFor(t *testing.T) {
	for _, test := range []struct {
		name    string
		options any
		make    func(*harness.Env, []string, ...oci.SpecOpts) *harness.Container
		opts    []oci.SpecOpts
		want    int
	}{
		{"not by itself", nil, (*harness.Env).Container, nil, 0},
		{"by the option", toml("RootfsOnHost = true"), (*harness.Env).Container, nil, 1},
		{"by the annotation", nil, (*harness.Env).Container, []oci.SpecOpts{onHost}, 1},
		{"not by the annotation, which goes before the option", toml("RootfsOnHost = true"), (*harness.Env).Container, []oci.SpecOpts{notOnHost}, 0},
		{"with a user namespace", toml("RootfsOnHost = true"), userContainer, nil, 1},
		{"with mounts that propagate", toml("RootfsOnHost = true"), (*harness.Env).Container,
			[]oci.SpecOpts{change(func(s *oci.Spec) { s.Linux.RootfsPropagation = "rshared" })}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := startWith(t, test.options)
			c := test.make(e, harness.Sh("echo from inside >/tmp/file", "trap 'exit 0' TERM", "while :; do sleep 0.1; done"), test.opts...)
			c.Create()
			root := filepath.Join(e.Bundle(c.ID()), "rootfs")
			if n := hostMounts(root); n != test.want {
				t.Fatalf("%d mounts at %s", n, root)
			}
			c.Start()
			if test.want > 0 {
				e.Eventually("what the container writes is seen on the host", func() bool {
					data, _ := os.ReadFile(filepath.Join(root, "tmp/file"))
					return string(data) == "from inside\n"
				})
				// And the other way round: it is the one file system.
				e.Must(os.WriteFile(filepath.Join(root, "tmp/other"), []byte("from outside\n"), 0o644), "write on the host")
				if got := c.RunExec("cat", "/tmp/other"); got.Stdout != "from outside\n" {
					t.Errorf("inside: %+v", got)
				}
				// The container's own mounts are none of it.
				if entries, _ := os.ReadDir(filepath.Join(root, "proc")); len(entries) > 0 {
					t.Errorf("its /proc on the host has %v", entries)
				}
			}
			if got := c.RunExec("cat", "/proc/self/mountinfo"); strings.Contains(got.Stdout, root) {
				t.Errorf("the container sees it in its table:\n%s", got.Stdout)
			}
			c.Kill(syscall.SIGKILL)
			c.Wait()
			if n := hostMounts(root); n != test.want {
				t.Errorf("%d mounts before the deletion", n)
			}
			c.Delete()
			if n := hostMounts(root); n != 0 {
				t.Errorf("%d mounts after the deletion", n)
			}
		})
	}
}

func TestARootFileSystemOnTheHostGoesWithAFailedCreate(t *testing.T) {
	e := startWith(t, toml("RootfsOnHost = true"))
	c := e.Container([]string{"no-such-program"})
	if err := c.TryCreate(); err == nil {
		t.Fatal("there is no such program")
	}
	if n := hostMounts(filepath.Join(e.Bundle(c.ID()), "rootfs")); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
}

func TestARootFileSystemOnTheHostGoesWhenTheShimWasKilled(t *testing.T) {
	if peer() {
		t.Skip("the option is ours")
	}
	for name, start := range map[string]bool{"created": false, "running": true} {
		t.Run(name, func(t *testing.T) {
			e := startToKill(t)
			e.RuntimeOptions = toml("RootfsOnHost = true")
			c := e.Container(harness.Sleep())
			c.Create()
			if start {
				c.Start()
			}
			root := filepath.Join(e.Bundle(c.ID()), "rootfs")
			if n := hostMounts(root); n != 1 {
				t.Fatalf("%d mounts at %s", n, root)
			}
			for _, pid := range shims(e) {
				e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill the shim")
			}
			e.Eventually("the root file system is gone from the host", func() bool { return hostMounts(root) == 0 })
			c.DeleteOfDeadShim()
		})
	}
}

func TestAHookFindsTheRootFileSystemOnTheHost(t *testing.T) {
	e := startWith(t, toml("RootfsOnHost = true"))
	out := filepath.Join(t.TempDir(), "out")
	c := e.Container([]string{"true"}, change(func(s *oci.Spec) {
		hook := func(kind string) specs.Hook {
			return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "cd rootfs && ls -d bin proc >>" + out + "; echo " + kind + " >>" + out}}
		}
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{hook("createRuntime")}, Poststop: []specs.Hook{hook("poststop")}}
	}))
	c.Finish()
	if data, _ := os.ReadFile(out); string(data) != "bin\nproc\ncreateRuntime\nbin\nproc\npoststop\n" {
		t.Errorf("the hooks saw %q", data)
	}
}
