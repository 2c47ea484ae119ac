package integration

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rsys-io/rsys/integration/harness"
)

// A namespace's path that leads to something else is refused by its name, and nobody waits for the other end of a fifo.
func TestAPathThatIsNoNamespacesIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"user", "ipc", "uts", "network", "pid", "cgroup", "time", "mount"} {
		for name, path := range map[string]string{"nothing": dir + "/nothing", "a fifo": dir + "/fifo", "a directory": dir, "a file": "/etc/passwd", "a loop of links": dir + "/loop", "a device": "/dev/null"} {
			if kind != "network" && name != "a fifo" && name != "a file" {
				continue
			}
			t.Run(kind+": "+name, func(t *testing.T) {
				if peer() && name == "a fifo" {
					t.Skip("runc waits at it")
				}
				e := start(t)
				c := e.Container(harness.Sh("echo ran"))
				putSpec(e, c, edit(func(_, _, linux object) { setNamespace(linux, kind, path) }))
				err := c.TryCreate()
				if err == nil {
					t.Fatal("it was created")
				}
				if !peer() && !strings.Contains(err.Error(), "linux.namespaces[0] ("+path+")") {
					t.Errorf("the error does not name the path: %v", err)
				}
				t.Log(err)
			})
		}
	}
}
