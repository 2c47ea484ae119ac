package integration

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
	"golang.org/x/sys/unix"
)

// What the advisories of runtimes before us describe, done to this one. Whoever attacks has what they had: an image and a
// config, or a container that shares a volume with one that is being created.

// attackTime bounds a race.
const attackTime = 3 * time.Second

// mark makes a file in the root directory of the host that a container which gets out can see, and a script that looks for
// it: below every mount, in the working directory and above it.
func mark(e *harness.Env) (name, look string) {
	e.Helper()
	name = fmt.Sprintf("rsys-attack-%d", os.Getpid())
	e.Must(os.WriteFile("/"+name, nil, 0o600), "make a mark")
	e.Cleanup(func() { os.Remove("/" + name) })
	return name, `for d in $(cut -d' ' -f5 /proc/self/mountinfo) . .. ../.. ../../.. ../../../.. ../../../../../..; do
	[ -e $d/` + name + ` ] && echo "OUT by $d"
done
true`
}

// swap exchanges two names in a directory as fast as it can, with pauses that leave one way or the other for a while, until
// the function that it returns is called. It tells how often.
func swap(e *harness.Env, dir, a, b string) (stop func() int64) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	e.Must(err, "open %s", dir)
	var n atomic.Int64
	var over atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !over.Load() {
			if unix.Renameat2(fd, a, fd, b, unix.RENAME_EXCHANGE) == nil {
				n.Add(1)
			}
			if rand.IntN(300) == 0 {
				time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
			}
		}
	})
	return func() int64 {
		if over.CompareAndSwap(false, true) {
			wg.Wait()
			unix.Close(fd)
		}
		return n.Load()
	}
}

// attempts creates and runs containers until the time is over, and says how many of them came to run. Creating
// or starting may fail; a container that runs must say nothing.
func attempts(e *harness.Env, make func() *harness.Container) (tried, ran int) {
	e.Helper()
	for end := time.Now().Add(attackTime); time.Now().Before(end); tried++ {
		c := make()
		if c.TryCreate() != nil {
			continue
		}
		if c.Task.Start(e.Ctx) != nil {
			continue
		}
		got := c.Wait()
		c.Delete()
		ran++
		if got.Stdout != "" {
			e.Errorf("attempt %d: %+v", tried, got)
			return tried, ran
		}
	}
	return tried, ran
}

// refused tells that a container is not created, or does not start, and the error says why.
func refused(e *harness.Env, c *harness.Container, why string) {
	e.Helper()
	err := c.TryCreate()
	if err == nil {
		err = c.Task.Start(e.Ctx)
		if err == nil {
			e.Errorf("it runs: %+v", c.Wait())
			return
		}
	}
	if !strings.Contains(err.Error(), why) {
		e.Errorf("got %v, want %s", err, why)
	}
}

func sum(e *harness.Env, path string) [32]byte {
	e.Helper()
	data, err := os.ReadFile(path)
	e.Must(err, "read")
	return sha256.Sum256(data)
}

// A container that overwrites the runtime's program by way of /proc/<pid>/exe: it catches what the runtime executes, by names
// that lead to it and by looking at a process that joins its PID namespace, holds it open, and writes to it when nobody executes it
// any more, which here is when the shim has been killed.
//
// Guard: no file of the host is ever executed in a container's sight. What can be caught is the stub, a memfd that is sealed
// (stub/program.go). The shim itself can't be reached, so what is mutated is the stub: with a memfd that is not sealed, or
// with a file of the host in its place, this fails.
func TestAttack2019_5736(t *testing.T) {
	if peer() {
		t.Skip("looks for the stub of this runtime")
	}
	e := startToKill(t)
	cfg, err := harness.FromEnv()
	e.Must(err, "config")
	shim := ""
	for _, dir := range cfg.Path {
		if p := filepath.Join(dir, "containerd-shim-rsys-v1"); shim == "" {
			if _, err := os.Stat(p); err == nil {
				shim = p
			}
		}
	}
	before := sum(e, shim)

	// Its program is the runtime itself, or a script whose interpreter that is.
	links := func(root string) {
		e.Must(os.Symlink("/proc/self/exe", root+"/self"), "symlink")
		e.Must(os.WriteFile(root+"/script", []byte("#!/proc/self/exe\n"), 0o755), "write")
	}
	self := image(e, e.Container([]string{"/self"}, oci.WithPrivileged), links)
	if self.TryCreate() == nil {
		if self.Task.Start(e.Ctx) == nil {
			self.Wait() // as the stub, which finds nobody to serve
		}
		self.Delete()
	}

	// Whatever shows up in its PID namespace it opens, keeps open, and tries to write to, with all rights that a container can have.
	// (Without `command` the shell would end with the first process that is gone before it is opened.)
	vol := e.TempDir()
	c := image(e, e.Container(harness.Sh(`n=3
while :; do
	for p in /proc/[0-9]*; do
		exe=$(readlink $p/exe) || continue
		[ "$exe" = /bin/busybox ] && continue
		[ $n -lt 9 ] && eval "command exec $n< $p/exe" && echo "$exe" >>/vol/caught && n=$((n+1))
	done
	i=3
	while [ $i -lt $n ]; do
		{ echo owned > /proc/self/fd/$i; } && echo $i >>/vol/owned
		i=$((i+1))
	done
	[ -e /vol/now ] && [ $n -gt 3 ] && while :; do { echo owned > /proc/self/fd/3; } && echo 3 >>/vol/owned; done
done 2>/dev/null`), oci.WithPrivileged, oci.WithAllCurrentCapabilities, oci.WithSeccompUnconfined, withMount(vol, "/vol", "bind", "rbind")), links).Run()
	n := 0
	for end := time.Now().Add(attackTime); time.Now().Before(end); n++ {
		args := [][]string{{"/script"}, {"/self"}, {"true"}}[n%3]
		x := c.Exec(nil, c.Process(args))
		if x.Process.Start(e.Ctx) == nil {
			x.WaitExec()
		} else {
			x.Process.Delete(e.Ctx)
		}
	}
	// One that is created, and not started, is there to be looked at.
	victim := e.Container([]string{"true"}, joining(specs.PIDNamespace, fmt.Sprintf("/proc/%d/ns/pid", c.Task.Pid())))
	victim.Create()
	caught := func() string { data, _ := os.ReadFile(vol + "/caught"); return string(data) }
	e.Eventually("the attacker has caught what the runtime executes", func() bool { return caught() != "" })
	type program struct {
		name string
		file *os.File
		sum  [32]byte
	}
	var programs []program
	killed := shims(e)
	for _, pid := range killed {
		for _, p := range append(harness.DescendantsOf(pid), harness.Proc{Pid: pid}) {
			path := fmt.Sprintf("/proc/%d/exe", p.Pid)
			name, _ := os.Readlink(path)
			if file, err := os.Open(path); err == nil && !strings.HasSuffix(name, "/busybox") {
				defer file.Close()
				programs = append(programs, program{name, file, sum(e, path)})
			}
		}
	}
	if len(programs) < 2 {
		t.Errorf("found no programs of the runtime but %v", programs)
	}
	e.Must(os.WriteFile(vol+"/now", nil, 0o644), "write")
	time.Sleep(100 * time.Millisecond)
	for _, pid := range killed {
		e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill the shim")
	}
	for _, dead := range []*harness.Container{victim, c} {
		dead.DeleteOfDeadShim()
	}
	if owned, err := os.ReadFile(vol + "/owned"); err == nil {
		t.Errorf("the attacker could write to %.20q… (caught were %q)", owned, caught())
	}
	for _, p := range programs {
		if sum(e, fmt.Sprintf("/proc/self/fd/%d", p.file.Fd())) != p.sum {
			t.Errorf("%s has been changed", p.name)
		}
	}
	if sum(e, shim) != before {
		t.Error("the shim's program has been changed")
	}
	t.Logf("%d execs, %d programs, caught were %q", n, len(programs), caught())
}

// An image's volume on /proc, so that what the runtime writes there is written to files of the attacker's.
//
// Guard: nothing is mounted on a procfs but what lxcfs emulates, however the path led there (guardProc, oci/mounts.go).
func TestAttack2019_16884(t *testing.T) {
	e := start(t)
	fake := e.TempDir()
	e.Must(os.MkdirAll(fake+"/self/attr", 0o755), "mkdir")
	e.Must(os.WriteFile(fake+"/self/attr/exec", nil, 0o666), "write")
	for name, m := range map[string][]specs.Mount{
		"a directory on /proc":         {{Source: fake, Destination: "/proc", Type: "bind", Options: []string{"rbind"}}},
		"a tmpfs on /proc":             {{Source: "tmpfs", Destination: "/proc", Type: "tmpfs"}},
		"a directory in /proc":         {{Source: fake, Destination: "/proc/self", Type: "bind", Options: []string{"rbind"}}},
		"a tmpfs in /proc":             {{Source: "tmpfs", Destination: "/proc/sys", Type: "tmpfs"}},
		"by a link of the image's":     {{Source: fake + "/self", Destination: "/to-proc/self", Type: "bind", Options: []string{"rbind"}}},
		"by a link to it":              {{Source: fake, Destination: "/to-proc", Type: "bind", Options: []string{"rbind"}}},
		"by a longer way":              {{Source: fake, Destination: "/tmp/../proc/./sys", Type: "bind", Options: []string{"rbind"}}},
		"by a link with a longer way":  {{Source: fake, Destination: "/to-root/proc/sys", Type: "bind", Options: []string{"rbind"}}},
		"a second procfs, and on that": {{Source: "proc", Destination: "/p", Type: "proc"}, {Source: fake, Destination: "/p/sys", Type: "bind", Options: []string{"rbind"}}},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			refused(e, image(e, e.Container([]string{"true"}, oci.WithMounts(m)), func(root string) {
				e.Must(os.Symlink("/proc", root+"/to-proc"), "symlink")
				e.Must(os.Symlink("/", root+"/to-root"), "symlink")
			}), "mounts[")
		})
	}
	if left, _ := os.ReadFile(fake + "/self/attr/exec"); len(left) != 0 {
		t.Errorf("something was written: %q", left)
	}
}

// An image whose /proc or /sys is a link, so that procfs is mounted elsewhere and the container has its own files on /proc;
// CVE-2023-27561 is the same with a link into a volume, and CVE-2023-28642 with other ways to name it.
//
// Guard: a procfs or sysfs is mounted on a directory that no link leads to (resolution, oci/mounts.go). With links allowed
// there all four of these fail.
func TestAttack2019_19921(t *testing.T)  { linkedProc(t, "evil") }
func TestAttack2023_27561(t *testing.T)  { linkedProc(t, "/vol/fake") }
func TestAttack2023_28642a(t *testing.T) { linkedProc(t, "../../vol/../vol/fake") }

func linkedProc(t *testing.T, target string) {
	for _, name := range []string{"proc", "sys"} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			vol := e.TempDir()
			e.Must(os.MkdirAll(vol+"/fake/self/attr", 0o755), "mkdir")
			c := e.Container([]string{"true"}, change(func(s *oci.Spec) {
				s.Mounts = append([]specs.Mount{{Source: vol, Destination: "/vol", Type: "bind", Options: []string{"rbind"}}}, s.Mounts...)
			}))
			refused(e, image(e, c, func(root string) {
				e.Must(os.RemoveAll(filepath.Join(root, name)), "remove")
				e.Must(os.MkdirAll(root+"/evil", 0o755), "mkdir")
				e.Must(os.Symlink(target, filepath.Join(root, name)), "symlink")
			}), "(/"+name+"): openat2: ")
		})
	}
}

// The same with destinations that are /proc, but do not say so.
//
// Guard: what is checked is the kind of file system and the cleaned path, not the string. With the check made for "/proc" as it is
// written this fails, and those above do not.
func TestAttack2023_28642(t *testing.T) {
	for _, dest := range []string{"/proc/", "//proc", "/tmp/../proc", "proc", "./proc/."} {
		e := start(t)
		vol := e.TempDir()
		c := e.Container([]string{"true"}, change(func(s *oci.Spec) {
			for i := range s.Mounts {
				if s.Mounts[i].Type == "proc" {
					s.Mounts[i].Destination = dest
				}
			}
			s.Mounts = append([]specs.Mount{{Source: vol, Destination: "/vol", Type: "bind", Options: []string{"rbind"}}}, s.Mounts...)
		}))
		refused(e, image(e, c, func(root string) {
			e.Must(os.RemoveAll(root+"/proc"), "remove")
			e.Must(os.Symlink("/vol", root+"/proc"), "symlink")
		}), "openat2: ")
	}
}

// Names in a shared volume are exchanged with links that lead out while mounts are made below them.
//
// Guard: a mount's target is opened in the root and used by descriptor (find, oci/mounts.go). With paths that are not kept in the root
// the host gets a mount point.
func TestAttack2021_30465(t *testing.T) {
	e := start(t)
	vol := e.TempDir()
	name, look := mark(e)
	// Where a mount that gets out would be, and its mount point on the host.
	x := name + "-x"
	defer func() {
		if _, err := os.Stat("/" + x); err == nil {
			t.Error("a mount point was made on the host: /" + x)
			os.RemoveAll("/" + x)
		}
	}()
	e.Must(os.MkdirAll(vol+"/a/"+x, 0o777), "mkdir")
	e.Must(os.MkdirAll(vol+"/b/"+x, 0o777), "mkdir")
	e.Must(os.Symlink("/", vol+"/a-link"), "symlink")
	e.Must(os.Symlink("../../../../../../../..", vol+"/b-link"), "symlink")
	stops := []func() int64{swap(e, vol, "a", "a-link"), swap(e, vol, "b", "b-link")}
	defer func() {
		for _, s := range stops {
			s()
		}
	}()
	mounts := []specs.Mount{{Source: vol, Destination: "/vol", Type: "bind", Options: []string{"rbind", "rw"}}}
	for i := range 20 {
		mounts = append(mounts,
			specs.Mount{Source: vol, Destination: fmt.Sprintf("/vol/a/%s/%d", x, i), Type: "bind", Options: []string{"rbind"}},
			specs.Mount{Source: "tmpfs", Destination: fmt.Sprintf("/vol/b/%s/%d", x, i), Type: "tmpfs"})
	}
	tried, ran := attempts(e, func() *harness.Container { return e.Container(harness.Sh(look), oci.WithMounts(mounts)) })
	for _, s := range stops {
		t.Logf("%d exchanges", s())
	}
	t.Logf("%d containers, of which %d ran", tried, ran)
}

// The runtime's making of mount points is led to a directory of the host's by a link that comes and goes.
//
// Guard: directories are made one by one below descriptors in the root (makeDirs, oci/mounts.go). With paths that are not kept in the
// root they are on the host.
func TestAttack2024_45310(t *testing.T) {
	e := start(t)
	vol, host := e.TempDir(), e.TempDir()
	e.Must(os.MkdirAll(vol+"/dir", 0o777), "mkdir")
	e.Must(os.Symlink(host, vol+"/link"), "symlink")
	stop := swap(e, vol, "dir", "link")
	defer stop()
	mounts := []specs.Mount{{Source: vol, Destination: "/vol", Type: "bind", Options: []string{"rbind", "rw"}}}
	for i := range 20 {
		mounts = append(mounts, specs.Mount{Source: "/etc/hostname", Destination: fmt.Sprintf("/vol/dir/new%d/sub/file", i), Type: "bind", Options: []string{"bind"}})
	}
	n := 0
	tried, ran := attempts(e, func() *harness.Container {
		n++
		for i := range 20 {
			mounts[1+i].Destination = fmt.Sprintf("/vol/dir/new%d-%d/sub/file", n, i)
		}
		cwd := fmt.Sprintf("/vol/dir/cwd%d/sub", n)
		return e.Container([]string{"true"}, oci.WithMounts(mounts), oci.WithProcessCwd(cwd), change(func(s *oci.Spec) {
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: fmt.Sprintf("/vol/dir/dev%d/null", n), Type: "c", Major: 1, Minor: 3})
		}))
	})
	t.Logf("%d containers, of which %d ran, %d exchanges", tried, ran, stop())
	if made, _ := os.ReadDir(host); len(made) != 0 {
		t.Errorf("on the host there is now %v", made)
	}
}

// What is executed must have no inheritable capabilities that nobody asked for.
//
// Guard: the inheritable set is the config's and nothing else (applyCaps, oci/caps.go).
func TestAttack2022_29162(t *testing.T) {
	e := start(t)
	inherits := []string{"sed", "-n", "s/^CapInh:\t//p", "/proc/self/status"}
	const none = "0000000000000000\n"
	if got := e.Container(inherits).Finish(); got.Stdout != none {
		t.Errorf("the container has %s", got.Stdout)
	}
	c := e.Container(harness.Sleep()).Run()
	for name, change := range map[string]func(*specs.Process){
		"an exec":           func(*specs.Process) {},
		"an exec of a user": func(p *specs.Process) { p.User = specs.User{UID: 1000, GID: 1000} },
		"an exec with a capability": func(p *specs.Process) {
			p.Capabilities.Bounding = append(p.Capabilities.Bounding, "CAP_SYS_PTRACE")
			p.Capabilities.Permitted = p.Capabilities.Bounding
		},
		"an exec that says no capabilities": func(p *specs.Process) { p.Capabilities = nil },
	} {
		if got := c.Exec(nil, c.Process(inherits, change)).StartExec().WaitExec(); got.Stdout != none {
			t.Errorf("%s has %q", name, got.Stdout)
		}
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
}

// A working directory, or a program, that is named by a descriptor which the runtime has left open.
//
// Guards: the child has no descriptor of the host's directories when the container's paths are walked; the working
// directory must have a name in the root (oci/process.go); who executes for an exec is not in the container's PID namespace, so that the
// container's /proc/self is nobody. With a descriptor of the host's root left open the programs fail this, without the check of the working
// directory as well the directories do; of an exec, only when it is not born (the build rsys_plain).
func TestAttack2024_21626(t *testing.T) {
	e := start(t)
	name, look := mark(e)
	descriptors := 40
	if testing.Short() {
		descriptors = 15 // as the containers below
	}
	// A program that is in the host's root directory alone, and everywhere that a descriptor may lead to.
	e.Must(os.WriteFile("/"+name, []byte("#!/bin/sh\necho OUT as a program\n"), 0o755), "write the mark")
	e.Must(os.Chmod("/"+name, 0o755), "make the mark a program")
	var dirs []string
	for fd := range descriptors {
		for _, up := range []string{"", "/..", "/../../../../../../.."} {
			dirs = append(dirs, fmt.Sprintf("/proc/self/fd/%d%s", fd, up), fmt.Sprintf("/to%d%s", fd, up))
		}
	}
	search := func(p *specs.Process) { p.Env = []string{"PATH=" + strings.Join(dirs, ":")} }
	linked := func(c *harness.Container) *harness.Container {
		return image(e, c, func(root string) {
			for fd := range descriptors {
				e.Must(os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("%s/to%d", root, fd)), "symlink")
			}
		})
	}
	c := linked(e.Container(harness.Sleep())).Run()
	for fd := range descriptors {
		for _, cwd := range []string{fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("/to%d", fd), fmt.Sprintf("/proc/self/fd/%d/..", fd)} {
			x := c.Exec(nil, c.Process(harness.Sh(look), func(p *specs.Process) { p.Cwd = cwd }))
			if x.Process.Start(e.Ctx) != nil {
				x.Process.Delete(e.Ctx)
			} else if got := x.WaitExec(); got.Stdout != "" {
				t.Errorf("exec in %s: %+v", cwd, got)
			}
		}
	}
	if x := c.Exec(nil, c.Process([]string{name}, search)); x.Process.Start(e.Ctx) == nil {
		t.Errorf("an exec's program by a descriptor: %+v", x.WaitExec())
	} else {
		x.Process.Delete(e.Ctx)
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
	// Where processors are emulated, the two take longer than one Env has.
	e = start(t)
	refused(e, linked(e.Container([]string{name}, change(func(s *oci.Spec) { search(s.Process) }))), "not found")
	for fd := 3; fd < 15; fd++ {
		cwd := fmt.Sprintf([]string{"/proc/self/fd/%d", "/to%d"}[fd%2], fd)
		c := linked(e.Container(harness.Sh(look), oci.WithProcessCwd(cwd)))
		if c.TryCreate() == nil && c.Task.Start(e.Ctx) == nil {
			if got := c.Wait(); got.Stdout != "" {
				t.Errorf("a container in %s: %+v", cwd, got)
			}
		}
	}
}
