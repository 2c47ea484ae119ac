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
	"golang.org/x/sys/unix"
)

// The attacks of 2025: on what the runtime finds in the container's /dev and /proc.

// devVolume gives a container a /dev that is a volume, made by furnish.
func devVolume(e *harness.Env, furnish func(dir string)) oci.SpecOpts {
	dir := e.TempDir()
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		e.Must(syscall.Mknod(filepath.Join(dir, name), syscall.S_IFCHR|0o666, int(unix.Mkdev(1, minor))), "mknod")
	}
	e.Must(os.Mkdir(dir+"/pts", 0o755), "mkdir")
	furnish(dir)
	return change(func(s *oci.Spec) {
		for i := range s.Mounts {
			if s.Mounts[i].Destination == "/dev" {
				s.Mounts[i] = specs.Mount{Source: dir, Destination: "/dev", Type: "bind", Options: []string{"rbind", "rw"}}
			}
		}
		s.Linux.Devices = nil
	})
}

// The null device that masked files are hidden behind is a link to what the attacker wants to write to.
//
// Guard: it is looked at by the descriptor that is then bound (expectNull, oci/devices.go). Without it all of this fails but "a link to nothing".
func TestAttack2025_31133(t *testing.T) {
	masked := change(func(s *oci.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/secret") })
	for name, target := range map[string]string{"a link to core_pattern": "/proc/sys/kernel/core_pattern", "a link to a file": "/etc/passwd", "a link to another device": "zero", "a link to nothing": "nothing"} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			refused(e, e.Container([]string{"true"}, masked, devVolume(e, func(dir string) {
				e.Must(os.Remove(dir+"/null"), "remove")
				e.Must(os.Symlink(target, dir+"/null"), "symlink")
			})), "linux.maskedPaths")
		})
	}
	t.Run("a race", func(t *testing.T) {
		e := start(t)
		vol := ""
		opt := devVolume(e, func(dir string) {
			vol = dir
			e.Must(os.Symlink("/proc/sys/kernel/core_pattern", dir+"/link"), "symlink")
		})
		stop := swap(e, vol, "null", "link")
		defer stop()
		tried, ran := attempts(e, func() *harness.Container {
			return e.Container(harness.Sh(`for p in /proc/keys /proc/timer_list; do [ -s $p ] && echo "NOT MASKED $p"; done
cut -d' ' -f4 /proc/self/mountinfo | grep core_pattern
true`), opt)
		})
		t.Logf("%d containers, of which %d ran, %d exchanges", tried, ran, stop())
	})
}

// /dev/console, and the terminal that is mounted on it, are links of the attacker's.
//
// Guards: /dev/console is opened without following links, and what is bound there is the terminal by its descriptor, from
// TIOCGPTPEER (oci/terminal.go). With links followed all of this fails but "no devpts". The checks that the multiplexer is a devpts' are the second
// line: without them this passes, since the kernel answers TIOCSPTLCK on anything else with an error.
func TestAttack2025_52565(t *testing.T) {
	const look = "cut -d' ' -f5 /proc/self/mountinfo | grep -e core_pattern -e passwd -e hostname; true"
	for name, furnish := range map[string]func(e *harness.Env, dir string){
		"the console is a link to core_pattern": func(e *harness.Env, dir string) {
			e.Must(os.Symlink("/proc/sys/kernel/core_pattern", dir+"/console"), "symlink")
		},
		"the console is a link to a file": func(e *harness.Env, dir string) {
			e.Must(os.Symlink("/etc/passwd", dir+"/console"), "symlink")
		},
		"the console is a link up": func(e *harness.Env, dir string) {
			e.Must(os.Symlink("../etc/passwd", dir+"/console"), "symlink")
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			c := e.Container(harness.Sh(look), withTerminal, devVolume(e, func(dir string) { furnish(e, dir) }))
			c.IO.Terminal = true
			refused(e, c, "process.terminal")
		})
	}
	t.Run("no devpts", func(t *testing.T) {
		e := start(t)
		c := e.Container(harness.Sh(look), withTerminal, oci.WithoutMounts("/dev/pts"), devVolume(e, func(dir string) {
			e.Must(os.Symlink("/proc/sys/kernel/core_pattern", dir+"/pts/ptmx"), "symlink")
		}))
		c.IO.Terminal = true
		refused(e, c, "process.terminal")
	})
	t.Run("a race", func(t *testing.T) {
		e := start(t)
		vol := ""
		opt := devVolume(e, func(dir string) {
			vol = dir
			e.Must(os.WriteFile(dir+"/console", nil, 0o600), "write")
			e.Must(os.Symlink("/proc/sys/kernel/core_pattern", dir+"/link"), "symlink")
		})
		stop := swap(e, vol, "console", "link")
		defer stop()
		tried, ran := attempts(e, func() *harness.Container {
			c := e.Container(harness.Sh(look), withTerminal, opt)
			c.IO.Terminal = true
			return c
		})
		t.Logf("%d containers, of which %d ran, %d exchanges", tried, ran, stop())
	})
}

// What the runtime writes to /proc/sys is led to other files, by mounts on them or links that come and go.
//
// Guards: nothing but what lxcfs emulates is mounted on a procfs, however the path led there (guardProc, oci/mounts.go): without it
// the mount and the race fail. Sysctls are written by a procfs that nobody else has seen (oci/sysctl.go): with the container's
// /proc instead, what the image has there is written to. Labels are written by the host's: TestALabelIsWrittenToTheKernelsFile, container/attr_test.go.
func TestAttack2025_52881(t *testing.T) {
	for name, fake := range map[string]func(e *harness.Env, root string) (file string){
		"what the image has on /proc": func(e *harness.Env, root string) string {
			e.Must(os.MkdirAll(root+"/proc/sys/net/ipv4", 0o755), "mkdir")
			return root + "/proc/sys/net/ipv4/ip_forward"
		},
		"a link on /proc": func(e *harness.Env, root string) string {
			e.Must(os.RemoveAll(root+"/proc"), "remove")
			e.Must(os.Symlink("/fake", root+"/proc"), "symlink")
			e.Must(os.MkdirAll(root+"/fake/sys/net/ipv4", 0o755), "mkdir")
			return root + "/fake/sys/net/ipv4/ip_forward"
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			where := ""
			c := image(e, e.Container(harness.Sh("cat /real/sys/net/ipv4/ip_forward"), oci.WithoutMounts("/proc"), change(func(s *oci.Spec) {
				s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
			}), withSysctl("net.ipv4.ip_forward", "1"), withMount("proc", "/real", "proc")), func(root string) {
				file := fake(e, root)
				e.Must(os.WriteFile(file, []byte("fake\n"), 0o644), "write")
				where = strings.TrimPrefix(file, root)
			})
			if got := c.Finish(); got.Stdout != "1\n" {
				t.Errorf("the sysctl was not set: %+v", got)
			}
			image(e, c, func(root string) {
				if left, err := os.ReadFile(root + where); string(left) != "fake\n" {
					t.Errorf("written to the image's file: %q, %v", left, err)
				}
			})
		})
	}
	t.Run("a mount", func(t *testing.T) {
		e := start(t)
		vol := e.TempDir()
		e.Must(os.WriteFile(vol+"/f", nil, 0o666), "write")
		for _, dest := range []string{"/proc/sys/net/ipv4/ip_forward", "/link/sys/net/ipv4/ip_forward", "/sys-link/net/ipv4/ip_forward"} {
			refused(e, image(e, e.Container([]string{"true"}, withSysctl("net.ipv4.ip_forward", "1"), withMount(vol+"/f", dest, "bind", "bind")), func(root string) {
				e.Must(os.Symlink("/proc", root+"/link"), "symlink")
				e.Must(os.Symlink("/proc/sys", root+"/sys-link"), "symlink")
			}), "mounts[")
		}
		if left, _ := os.ReadFile(vol + "/f"); len(left) != 0 {
			t.Errorf("written: %q", left)
		}
	})
	t.Run("a race", func(t *testing.T) {
		e := start(t)
		// A container of the attacker's swaps what leads to procfs in a volume of both.
		vol := e.TempDir()
		e.Must(os.MkdirAll(vol+"/dir/net/ipv4", 0o777), "mkdir")
		e.Must(os.WriteFile(vol+"/dir/net/ipv4/ip_forward", nil, 0o666), "write")
		e.Must(os.WriteFile(vol+"/fake", []byte("fake\n"), 0o666), "write")
		e.Must(os.Symlink("/proc/sys", vol+"/link"), "symlink")
		stop := swap(e, vol, "dir", "link")
		defer stop()
		script := `read v < /proc/sys/net/ipv4/ip_forward; [ "$v" = 1 ] || echo "ip_forward is $v"
grep ' /proc/sys/net' /proc/self/mountinfo; true`
		tried, ran := attempts(e, func() *harness.Container {
			return e.Container(harness.Sh(script), withSysctl("net.ipv4.ip_forward", "1"), withMount(vol, "/vol", "bind", "rbind"),
				withMount(vol+"/fake", "/vol/dir/net/ipv4/ip_forward", "bind", "bind"))
		})
		t.Logf("%d containers, of which %d ran, %d exchanges", tried, ran, stop())
		for _, f := range []string{"dir", "link"} {
			if st, err := os.Lstat(filepath.Join(vol, f)); err == nil && st.IsDir() {
				if left, _ := os.ReadFile(filepath.Join(vol, f, "net/ipv4/ip_forward")); len(left) != 0 {
					t.Errorf("written: %q", left)
				}
			}
		}
		if left, _ := os.ReadFile(vol + "/fake"); string(left) != "fake\n" {
			t.Errorf("written: %q", left)
		}
	})
}
