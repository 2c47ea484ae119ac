package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
	"golang.org/x/sys/unix"
)

// Attacks of the kinds that advisories tell of, on what none of them was about.

// In the host's PID namespace /proc/PID/root of a process of the host is the host's root directory, for who has the rights. A runtime has them.
//
// Guards: container paths are opened without magic links (inRoot, oci/builder.go); the working directory must have a name in the root.
func TestAttackByTheRootOfAnotherProcess(t *testing.T) {
	name, look := "", ""
	host := fmt.Sprintf("/proc/%d/root", os.Getpid())
	// worst is a container with all that it can have, in whose image /up is the host's root.
	worst := func(e *harness.Env, args []string, opts ...oci.SpecOpts) *harness.Container {
		all := append([]oci.SpecOpts{oci.WithPrivileged, oci.WithAllCurrentCapabilities, oci.WithHostNamespace(specs.PIDNamespace)}, opts...)
		return image(e, e.Container(args, all...), func(root string) {
			e.Must(os.Symlink(host, root+"/up"), "symlink")
			e.Must(os.Remove(root+"/etc/passwd"), "remove")
			e.Must(os.Symlink(host+"/"+name, root+"/etc/passwd"), "symlink")
		})
	}
	begin := func(t *testing.T) *harness.Env {
		e := start(t)
		name, look = mark(e)
		e.Must(os.WriteFile("/"+name, []byte("root:x:0:0:root:/OUT:/bin/sh\n"), 0o644), "write the mark")
		return e
	}
	ways := []string{"/proc/1/root", "/up", "/proc/1/cwd", "/up/etc", host}
	t.Run("working directories", func(t *testing.T) {
		e := begin(t)
		c := worst(e, harness.Sleep()).Run()
		for _, cwd := range ways {
			x := c.Exec(nil, c.Process(harness.Sh(look), func(p *specs.Process) { p.Cwd = cwd }))
			if x.Process.Start(e.Ctx) == nil {
				t.Errorf("an exec in %s: %+v", cwd, x.WaitExec())
			} else {
				x.Process.Delete(e.Ctx)
			}
			refused(e, worst(e, harness.Sh(look), oci.WithProcessCwd(cwd)), "process.cwd")
		}
		c.Kill(syscall.SIGKILL)
		c.Wait()
	})
	t.Run("mounts, devices and paths", func(t *testing.T) {
		e := begin(t)
		made := name + "-made"
		vol := e.TempDir()
		for field, opt := range map[string]oci.SpecOpts{
			"mounts[":  withMount("tmpfs", "/up/"+made, "tmpfs"),
			"mounts[ ": withMount(vol, "/up/"+made, "bind", "bind"),
			"linux.devices[": change(func(s *oci.Spec) {
				s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/up/" + made + "/d", Type: "c", Major: 1, Minor: 3})
			}),
			"linux.maskedPaths[":   change(func(s *oci.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/up/"+name) }),
			"linux.readonlyPaths[": change(func(s *oci.Spec) { s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/up/etc") }),
		} {
			refused(e, worst(e, []string{"true"}, opt), strings.TrimSpace(field))
			if _, err := os.Lstat("/" + made); err == nil {
				t.Errorf("%s made something on the host", field)
				os.RemoveAll("/" + made)
			}
		}
	})
	t.Run("HOME", func(t *testing.T) {
		e := begin(t)
		noHome := func(p *specs.Process) { p.Env = []string{"PATH=/bin"} }
		c := worst(e, harness.Sh("echo $HOME; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"), change(func(s *oci.Spec) { noHome(s.Process) })).Run()
		e.Eventually("it tells", func() bool { return c.IO.Stdout.String() != "" })
		if got := c.IO.Stdout.String(); got != "/\n" {
			t.Errorf("the container's is %q", got)
		}
		if got := c.Exec(nil, c.Process(harness.Sh("echo $HOME"), noHome)).StartExec().WaitExec(); got.Stdout != "/\n" {
			t.Errorf("an exec's is %+v", got)
		}
		c.Kill(syscall.SIGKILL)
		c.Wait()
	})
}

// What a runtime reads of an image to find out HOME is whatever the image's maker, or the container, wants.
//
// Guards: it is opened without waiting, must be an ordinary file, and a bounded part of it is read (readPasswd, oci/process.go).
func TestAttackByThePasswdFile(t *testing.T) {
	for kind, furnish := range map[string]func(path string) error{
		"a fifo":              func(p string) error { return syscall.Mkfifo(p, 0o666) },
		"an endless device":   func(p string) error { return syscall.Mknod(p, syscall.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) },
		"a terminal":          func(p string) error { return syscall.Mknod(p, syscall.S_IFCHR|0o666, int(unix.Mkdev(5, 0))) },
		"a link to itself":    func(p string) error { return os.Symlink("passwd", p) },
		"a link to the input": func(p string) error { return os.Symlink("/proc/self/fd/0", p) },
		"a directory":         func(p string) error { return os.Mkdir(p, 0o755) },
		"the kernel's log":    func(p string) error { return os.Symlink("/proc/kmsg", p) },
		"very large": func(p string) error {
			if err := os.WriteFile(p, nil, 0o644); err != nil {
				return err
			}
			return os.Truncate(p, 1<<40)
		},
		"one long line": func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("root:", 1<<20)), 0o644) },
	} {
		t.Run(kind, func(t *testing.T) {
			e := start(t)
			noHome := func(p *specs.Process) { p.Env = []string{"PATH=/bin"} }
			began := time.Now()
			c := image(e, e.Container(harness.Sh("echo $HOME; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"), oci.WithPrivileged, oci.WithAllDevicesAllowed,
				change(func(s *oci.Spec) { noHome(s.Process) })), func(root string) {
				e.Must(os.Remove(root+"/etc/passwd"), "remove")
				e.Must(furnish(root+"/etc/passwd"), "make %s", kind)
			}).Run()
			e.Eventually("it tells", func() bool { return c.IO.Stdout.String() != "" })
			if got := c.IO.Stdout.String(); got != "/\n" {
				t.Errorf("the container's HOME is %q", got)
			}
			if got := c.Exec(nil, c.Process(harness.Sh("echo $HOME"), noHome)).StartExec().WaitExec(); got.Stdout != "/\n" {
				t.Errorf("an exec's HOME is %+v", got)
			}
			if took := time.Since(began); took > harness.Patience {
				t.Errorf("it took %v", took)
			}
			c.Kill(syscall.SIGKILL)
			c.Wait()
		})
	}
}

// What a tmpfs with tmpcopyup begins with is read when the host's root is still the runtime's: a link that comes and goes in
// a volume leads to the host's files, a fifo to a wait.
//
// Guard: each name is opened below the directory that it was read from, without links, and looked at again (container/copyup.go).
// With links followed there this fails.
func TestAttackOnWhatATmpfsBeginsWith(t *testing.T) {
	e := start(t)
	name, _ := mark(e)
	e.Must(os.WriteFile("/"+name, []byte("SECRET\n"), 0o600), "write the mark")
	host := e.TempDir()
	e.Must(os.WriteFile(host+"/s", []byte("SECRET\n"), 0o600), "write")
	vol := e.TempDir()
	var stops []func() int64
	for i := range 3 {
		dir := fmt.Sprintf("%s/stuff/%d", vol, i)
		e.Must(os.MkdirAll(dir+"/d", 0o755), "mkdir")
		e.Must(os.WriteFile(dir+"/f", nil, 0o644), "write")
		e.Must(os.Symlink("/"+name, dir+"/g"), "symlink")
		e.Must(os.Symlink(host, dir+"/e"), "symlink")
		e.Must(syscall.Mkfifo(dir+"/p", 0o644), "make a fifo")
		e.Must(os.WriteFile(dir+"/q", nil, 0o644), "write")
		if i%3 == 0 {
			stops = append(stops, swap(e, dir, "f", "g"))
		} else if i%3 == 1 {
			stops = append(stops, swap(e, dir, "d", "e"))
		} else {
			stops = append(stops, swap(e, dir, "p", "q"))
		}
	}
	stop := func() (n int64) {
		for _, s := range stops {
			n += s()
		}
		return n
	}
	defer stop()
	tried, ran := attempts(e, func() *harness.Container {
		return e.Container(harness.Sh("cd /vol/stuff && find . -type f -exec grep -l SECRET {} +; true"), withMount(vol, "/vol", "bind", "rbind"), withMount("tmpfs", "/vol/stuff", "tmpfs", "tmpcopyup"))
	})
	t.Logf("%d containers, of which %d ran, %d exchanges", tried, ran, stop())
}

// An image whose /dev, or /sys/fs/cgroup, is a link into a volume, where somebody exchanges what it leads to with a link to the root.
//
// Guard: what is made in /dev, and mounted below it, is so by descriptors from openat2 in the root (oci/devices.go, oci/mounts.go). Each part
// fails with paths not kept in the root (inRoot = 0).
func TestAttackByADevThatIsALink(t *testing.T) {
	for _, test := range []struct {
		name, dir, link, to string
		change              func(s *oci.Spec, made string)
	}{
		{"dev", "dev", "/dev", "vol/dev", func(s *oci.Spec, made string) {
			s.Mounts = append(s.Mounts, specs.Mount{Source: "tmpfs", Destination: "/dev/" + made + "/t", Type: "tmpfs"})
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/" + made + "/n", Type: "c", Major: 1, Minor: 3})
		}},
		{"cgroup", "cgroup", "/sys/fs/cgroup", "../../vol/cgroup", func(s *oci.Spec, made string) {
			s.Mounts = append(s.Mounts, specs.Mount{Source: "cgroup", Destination: "/sys/fs/cgroup/" + made, Type: "cgroup", Options: []string{"ro"}})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			vol := e.TempDir()
			name, look := mark(e)
			made := name + "-dev"
			e.Must(os.MkdirAll(vol+"/"+test.dir, 0o755), "mkdir")
			e.Must(os.Symlink("/", vol+"/link"), "symlink")
			escaped := []string{made}
			for _, n := range []string{"pts", "shm", "mqueue", "ptmx", "null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "core"} {
				if _, err := os.Lstat("/" + n); err != nil {
					escaped = append(escaped, n)
				}
			}
			stop := swap(e, vol, test.dir, "link")
			defer stop()
			tried, ran := attempts(e, func() *harness.Container {
				return image(e, e.Container(harness.Sh(look), change(func(s *oci.Spec) {
					s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "sysfs" })
					s.Mounts = append([]specs.Mount{{Source: vol, Destination: "/vol", Type: "bind", Options: []string{"rbind", "rw"}}}, s.Mounts...)
					s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
					test.change(s, made)
				})), func(root string) {
					e.Must(os.RemoveAll(root+test.link), "remove")
					e.Must(os.MkdirAll(filepath.Dir(root+test.link), 0o755), "mkdir")
					// Not an absolute one: followed as the host's path it would lead to nothing, whatever the guard.
					e.Must(os.Symlink(test.to, root+test.link), "symlink")
				})
			})
			t.Logf("%d containers, of which %d ran, %d exchanges", tried, ran, stop())
			for _, n := range escaped {
				if _, err := os.Lstat("/" + n); err == nil {
					t.Errorf("on the host there is now /%s", n)
					os.RemoveAll("/" + n)
				}
			}
		})
	}
}
