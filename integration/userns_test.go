package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

const hostRoot = 100000 // what root of the tests' user namespaces is on the host

// withUserNS gives a container a user namespace of two ranges of users, new or that of a process.
func withUserNS(pid uint32) oci.SpecOpts {
	return change(func(s *oci.Spec) {
		ns := specs.LinuxNamespace{Type: specs.UserNamespace}
		if pid != 0 {
			ns.Path = fmt.Sprintf("/proc/%d/ns/user", pid)
		}
		s.Linux.Namespaces = append(s.Linux.Namespaces, ns)
		s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: hostRoot, Size: 5000}, {ContainerID: 5000, HostID: 300000, Size: 60000}}
		s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: hostRoot, Size: 65536}}
	})
}

// shifted makes the root file system of a container belong to the root of its user namespace.
func shifted(e *harness.Env, c *harness.Container) *harness.Container {
	e.Helper()
	dir := rootOf(e, c)
	defer unmountRoot(dir)
	e.Must(filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, hostRoot, hostRoot)
	}), "chown the root file system")
	return c
}

func userContainer(e *harness.Env, args []string, opts ...oci.SpecOpts) *harness.Container {
	e.Helper()
	return shifted(e, e.Container(args, append([]oci.SpecOpts{withUserNS(0)}, opts...)...))
}

func TestAUserNamespaceIsSeenFromInside(t *testing.T) {
	score := 500
	for _, test := range []struct {
		name string
		args []string
		opt  oci.SpecOpts
		want string
	}{
		{"the maps", harness.Sh("tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; cat /proc/self/setgroups"), nil,
			" 0 100000 5000\n 5000 300000 60000\n 0 100000 65536\nallow\n"},
		{"root", harness.Sh("id -u; id -g; stat -c %u:%g /proc/self/ /bin /etc"), nil, "0\n0\n0:0\n0:0\n0:0\n"},
		{"a user", harness.Sh("id -u; id -g; id -G"), change(func(s *oci.Spec) {
			s.Process.User = specs.User{UID: 6000, GID: 1001, AdditionalGids: []uint32{50}}
		}), "6000\n1001\n1001 50\n"},
		{"files that are made", harness.Sh("touch /new; stat -c %u:%g /new; chown 6000:1 /new; stat -c %u:%g /new"), nil, "0:0\n6000:1\n"},
		{"the devices", harness.Sh("stat -c '%n %F %t:%T' /dev/null /dev/full /dev/tty; echo x > /dev/null; head -c 4 /dev/zero | wc -c; ls -l /dev/ptmx | sed 's/.*>//'"), nil,
			"/dev/null character special file 1:3\n/dev/full character special file 1:7\n/dev/tty character special file 5:0\n4\n pts/ptmx\n"},
		{"file systems", harness.Sh("grep -c '/dev/mqueue .* - mqueue ' /proc/self/mountinfo; for d in /proc /sys /dev/mqueue /dev/pts /dev/shm; do stat -f -c %T $d; done; stat -c %u:%g /dev/pts /dev/shm /dev/mqueue"), nil,
			"1\nproc\nsysfs\nUNKNOWN\ndevpts\ntmpfs\n0:0\n0:0\n0:0\n"},
		{"masked paths", harness.Sh("wc -c < /proc/keys; cat /proc/timer_list | wc -c; ls /sys/firmware"), nil, "0\n0\n"},
		{"a read-only path", harness.Sh("echo 1 2>&1 > /proc/sys/vm/swappiness || true"), nil, "sh: can't create /proc/sys/vm/swappiness: Read-only file system\n"},
		{"the capabilities", []string{"sed", "-n", "s/^CapBnd:\t//p", "/proc/self/status"}, nil, "00000000a80425fb\n"},
		{"seccomp", []string{"sed", "-n", "s/^Seccomp:\t//p", "/proc/self/status"}, nil, "2\n"},
		{"a hostname", []string{"hostname"}, oci.WithHostname("shifted"), "shifted\n"},
		{"a sysctl", []string{"cat", "/proc/sys/net/ipv4/ip_forward"}, withSysctl("net.ipv4.ip_forward", "1"), "1\n"},
		{"a sysctl of the user namespace", []string{"cat", "/proc/sys/user/max_pid_namespaces"}, withSysctl("user.max_pid_namespaces", "77"), "77\n"},
		{"an OOM score", []string{"cat", "/proc/self/oom_score_adj"}, change(func(s *oci.Spec) { s.Process.OOMScoreAdj = &score }), "500\n"},
		{"a limit", harness.Sh("ulimit -Sn; ulimit -Hn"), change(func(s *oci.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1000, Hard: 1001}}
		}), "1000\n1001\n"},
		{"its standard files by name", harness.Sh("echo out > /dev/stdout"), oci.WithUIDGID(6000, 6000), "out\n"},
		{"its standard files by name, as root", harness.Sh("echo out > /dev/stdout"), nil, "out\n"},
		{"a cgroup namespace", harness.Sh("grep -c ':/$' /proc/self/cgroup; grep -vc ':/$' /proc/self/cgroup"),
			oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}), ""},
		{"a read-only root", harness.Sh("touch /x 2>&1"), oci.WithRootFSReadonly(), "touch: /x: Read-only file system\n"},
		{"the host's network", harness.Sh("readlink /proc/self/ns/net"), oci.Compose(oci.WithHostNamespace(specs.NetworkNamespace), oci.WithoutMounts("/sys")), link(t, "/proc/self/ns/net")},
		{"the host's IPC", harness.Sh("readlink /proc/self/ns/ipc"), oci.Compose(oci.WithHostNamespace(specs.IPCNamespace), oci.WithoutMounts("/dev/mqueue")), link(t, "/proc/self/ns/ipc")},
		{"the host's network, joined", harness.Sh("readlink /proc/self/ns/net"), oci.Compose(joining(specs.NetworkNamespace, fmt.Sprintf("/proc/%d/ns/net", os.Getpid())), oci.WithoutMounts("/sys")), link(t, "/proc/self/ns/net")},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			var opts []oci.SpecOpts
			if test.opt != nil {
				opts = append(opts, test.opt)
			}
			exit := userContainer(e, test.args, opts...).Finish()
			if test.want == "" {
				t.Logf("%q", exit.Stdout)
				return
			}
			if exit.Stdout != test.want || exit.Stderr != "" {
				t.Errorf("got  %q\nwant %q\nexit %+v", exit.Stdout, test.want, exit)
			}
		})
	}
}

func link(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return s + "\n"
}

func TestProcessesAreExecutedInAUserNamespace(t *testing.T) {
	for _, test := range []struct {
		name   string
		opt    oci.SpecOpts
		script string
		user   specs.User
		want   string
	}{
		{"root", nil, "id -u; touch /f; stat -c %u:%g /f /proc/self/; sed -n 's/^CapEff:\t//p' /proc/self/status; echo $$ > /dev/null", specs.User{},
			"0\n0:0\n0:0\n00000000a80425fb\n"},
		{"a user", nil, "id -u; id -G; touch /tmp/f; stat -c %u:%g /tmp/f; sed -n 's/^CapEff:\t//p' /proc/self/status; echo x > /dev/stderr", specs.User{UID: 6000, GID: 7},
			"6000\n7\n6000:7\n0000000000000000\n"},
		{"in a cgroup namespace", oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}), "grep -vc ':/$' /proc/self/cgroup || true", specs.User{}, "0\n"},
		{"on the host's network", oci.Compose(oci.WithHostNamespace(specs.NetworkNamespace), oci.WithoutMounts("/sys")), "readlink /proc/self/ns/net", specs.User{}, link(t, "/proc/self/ns/net")},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			var opts []oci.SpecOpts
			if test.opt != nil {
				opts = append(opts, test.opt)
			}
			c := userContainer(e, harness.Sleep(), opts...).Run()
			for range 2 { // the second has the joiner of the first
				got := c.Exec(nil, c.Process(harness.Sh(test.script), func(p *specs.Process) { p.User = test.user })).StartExec().WaitExec()
				if got.Stdout != test.want || got.Code != 0 {
					t.Errorf("got  %q\nwant %q\n%+v", got.Stdout, test.want, got)
				}
			}
			c.Kill(syscall.SIGKILL)
			c.Wait()
		})
	}
}

// A process is born into the container's cgroup by one that is outside; with cgroup v2's nsdelegate that is not
// possible out of the container's cgroup namespace.
func TestProcessesAreExecutedInACgroupNamespace(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep(), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace})).Run()
	for range 2 {
		got := c.RunExec(harness.Sh("grep -vc ':/$' /proc/self/cgroup; readlink /proc/self/ns/cgroup")...)
		if want := "0\n" + link(t, fmt.Sprintf("/proc/%d/ns/cgroup", c.Task.Pid())); got.Stdout != want {
			t.Errorf("got %q, want %q\n%+v", got.Stdout, want, got)
		}
	}
	joined := e.Container(harness.Sh("readlink /proc/self/ns/cgroup"), joining(specs.CgroupNamespace, fmt.Sprintf("/proc/%d/ns/cgroup", c.Task.Pid()))).Finish()
	if want := link(t, fmt.Sprintf("/proc/%d/ns/cgroup", c.Task.Pid())); joined.Stdout != want {
		t.Errorf("joined: got %q, want %q\n%+v", joined.Stdout, want, joined)
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
}

func TestATerminalInAUserNamespaceBelongsToItsUser(t *testing.T) {
	e := start(t)
	for _, uid := range []uint32{0, 6000} {
		c := userContainer(e, harness.Sh("stat -c %u $(readlink /proc/self/fd/0); tty; echo hi > /dev/console; echo there > /dev/tty"), withTerminal, oci.WithUIDGID(uid, 5))
		c.IO.Terminal = true
		got := c.Finish()
		if want := fmt.Sprintf("%d\r\n/dev/pts/0\r\nhi\r\nthere\r\n", uid); got.Stdout != want {
			t.Errorf("got %q, want %q", got.Stdout, want)
		}
	}
}

// As the CRI does with hostUsers: false: the containers of a pod join the namespaces of its pause container.
func TestContainersOfAPodShareItsUserNamespace(t *testing.T) {
	e := start(t)
	pause := userContainer(e, harness.Sleep()).Run()
	pid := pause.Task.Pid()
	ns := func(kind specs.LinuxNamespaceType, file string) oci.SpecOpts {
		return joining(kind, fmt.Sprintf("/proc/%d/ns/%s", pid, file))
	}
	pod := oci.Compose(withUserNS(pid), ns(specs.NetworkNamespace, "net"), ns(specs.IPCNamespace, "ipc"), ns(specs.UTSNamespace, "uts"))
	seen := "cd /proc/self/ns; for n in user net ipc uts; do readlink $n; done; touch /f; stat -c %u:%g /f"
	want := ""
	for _, n := range []string{"user", "net", "ipc", "uts"} {
		want += link(t, fmt.Sprintf("/proc/%d/ns/%s", pid, n))
	}
	for _, test := range []struct {
		name string
		opt  oci.SpecOpts
		want string
	}{
		{"a PID namespace of its own", pod, want + "0:0\n"},
		{"the pod's PID namespace", oci.Compose(pod, ns(specs.PIDNamespace, "pid")), want + "0:0\n"},
		{"without maps", oci.Compose(pod, change(func(s *oci.Spec) { s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil })), want + "0:0\n"},
	} {
		c := shifted(e, e.Container(harness.Sh(seen), test.opt))
		got := c.Finish()
		if got.Stdout != test.want || got.Code != 0 {
			t.Errorf("%s: got  %q\nwant %q\n%+v", test.name, got.Stdout, test.want, got)
		}
	}
	c := shifted(e, e.Container(harness.Sleep(), oci.Compose(pod, ns(specs.PIDNamespace, "pid")))).Run()
	if got := c.RunExec("stat", "-c", "%u:%g", "/bin", "/proc/self/"); got.Stdout != "0:0\n0:0\n" {
		t.Errorf("exec: %+v", got)
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	pause.Kill(syscall.SIGKILL)
	pause.Wait()
}

// Nothing of the host's is root's in the container, and the container's root is nobody on the host.
func TestRootOfAUserNamespaceIsNobodyOnTheHost(t *testing.T) {
	e := start(t)
	dir := e.TempDir()
	secret := filepath.Join(dir, "secret")
	e.Must(os.WriteFile(secret, []byte("x"), 0o600), "write")
	e.Must(os.Chmod(dir, 0o777), "chmod")
	c := userContainer(e, harness.Sh("cat /host/secret; touch /host/made; stat -c %u:%g /host/secret"), withMount(dir, "/host", "bind", "rbind"))
	got := c.Finish()
	if got.Stdout != "65534:65534\n" || !strings.Contains(got.Stderr, "can't open '/host/secret': Permission denied") {
		t.Errorf("%+v", got)
	}
	st, err := os.Stat(filepath.Join(dir, "made"))
	e.Must(err, "stat")
	if uid := st.Sys().(*syscall.Stat_t).Uid; uid != hostRoot {
		t.Errorf("what it made belongs to %d", uid)
	}
}

func TestBindMountsAreIDMapped(t *testing.T) {
	ranges := func(host uint32) []specs.LinuxIDMapping {
		return []specs.LinuxIDMapping{{ContainerID: 0, HostID: host, Size: 65536}}
	}
	mapped := func(host uint32, dir string, options ...string) oci.SpecOpts {
		m := specs.Mount{Source: dir, Destination: "/data", Type: "bind", Options: options}
		if host != 0 {
			m.UIDMappings, m.GIDMappings = ranges(host), ranges(host)
		}
		return oci.WithMounts([]specs.Mount{m})
	}
	script := harness.Sh("stat -c %u:%g /data/f; touch /data/new; stat -c %u:%g /data/new; stat -c %u:%g /data/sub/g")
	for _, test := range []struct {
		name      string
		user      bool
		host      uint32
		options   []string
		want      string
		newOnDisk uint32
	}{
		{"by the container's maps", true, 0, []string{"rbind", "idmap"}, "0:0\n0:0\n65534:65534\n", 0},
		{"by the container's maps, with all below", true, 0, []string{"rbind", "ridmap"}, "0:0\n0:0\n0:0\n", 0},
		{"by maps of its own", true, hostRoot, []string{"rbind", "idmap"}, "0:0\n0:0\n65534:65534\n", 0},
		{"by maps without the option", true, hostRoot, []string{"rbind"}, "0:0\n0:0\n65534:65534\n", 0},
		{"read-only", true, hostRoot, []string{"rbind", "ro"}, "0:0\n", 0},
		{"without a user namespace", false, 1000, []string{"rbind", "ridmap"}, "1000:1000\n", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			dir := e.TempDir()
			e.Must(os.WriteFile(filepath.Join(dir, "f"), nil, 0o644), "write")
			sub := filepath.Join(dir, "sub")
			e.Must(os.Mkdir(sub, 0o755), "mkdir")
			e.Must(syscall.Mount(e.TempDir(), sub, "", syscall.MS_BIND, ""), "mount") // no tmpfs, which Linux can idmap from 6.3 on only
			defer syscall.Unmount(sub, syscall.MNT_DETACH)
			e.Must(os.WriteFile(filepath.Join(sub, "g"), nil, 0o644), "write")
			var got harness.Exit
			if test.user {
				got = userContainer(e, script, mapped(test.host, dir, test.options...)).Finish()
			} else {
				got = e.Container(script, mapped(test.host, dir, test.options...)).Finish()
			}
			if !strings.HasPrefix(got.Stdout, test.want) {
				t.Errorf("got %q, want %q\n%+v", got.Stdout, test.want, got)
			}
			if st, err := os.Stat(filepath.Join(dir, "new")); err == nil {
				if uid := st.Sys().(*syscall.Stat_t).Uid; uid != test.newOnDisk {
					t.Errorf("what it made belongs to %d on disk", uid)
				}
			} else if test.name != "read-only" && test.user {
				t.Error(err)
			}
		})
	}
}

// As containerd's overlay snapshotter asks for with remapped labels: the layers stay root's on the host, and only the
// upper directory is the user namespace's.
func TestTheRootFileSystemIsIDMapped(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("stat -c %u:%g / /bin /bin/busybox /etc/passwd; touch /etc/passwd /bin/new; stat -c %u:%g /etc/passwd /bin/new"), withUserNS(0))
	mounts, err := e.Client.SnapshotService("overlayfs").Mounts(e.Ctx, c.ID())
	e.Must(err, "mounts")
	upper := ""
	for _, o := range mounts[0].Options {
		if u, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = u
		}
	}
	e.Must(os.Chown(upper, hostRoot, hostRoot), "chown")
	const maps = "0:100000:5000,5000:300000:60000"
	mounts[0].Options = append(mounts[0].Options, "uidmap="+maps, "gidmap=0:100000:65536")
	c.Create(func(_ context.Context, _ *client.Client, i *client.TaskInfo) error {
		i.RootFS = mounts
		return nil
	})
	c.Start()
	got := c.Wait()
	c.Delete()
	if want := strings.Repeat("0:0\n", 6); got.Stdout != want {
		t.Errorf("got %q\n%+v", got.Stdout, got)
	}
	st, err := os.Stat(filepath.Join(upper, "bin/new"))
	e.Must(err, "stat")
	if uid := st.Sys().(*syscall.Stat_t).Uid; uid != hostRoot {
		t.Errorf("what it made belongs to %d on disk", uid)
	}
}

func TestBadUserNamespacesAreRefusedByName(t *testing.T) {
	e := start(t)
	for name, opt := range map[string]oci.SpecOpts{
		"process.user.uid: 66000 is not in linux.uidMappings": oci.Compose(withUserNS(0), oci.WithUIDGID(66000, 0)),
		"linux.uidMappings: 0 is not among the users": oci.Compose(withUserNS(0), change(func(s *oci.Spec) {
			s.Linux.UIDMappings = s.Linux.UIDMappings[1:]
		})),
		"linux.uidMappings: missing, of a new user namespace": oci.Compose(withUserNS(0), change(func(s *oci.Spec) { s.Linux.UIDMappings = nil })),
		"linux.uidMappings: without a user namespace":         oci.Compose(withUserNS(0), oci.WithHostNamespace(specs.UserNamespace)),
	} {
		if err := e.Container([]string{"true"}, opt).TryCreate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %s", err, name)
		}
	}
}

func TestTimeNamespaces(t *testing.T) {
	const day = 86400
	uptime := harness.Sh("cut -d. -f1 /proc/uptime; readlink /proc/self/ns/time")
	newTime := change(func(s *oci.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000 * day}, "monotonic": {Secs: 2000 * day}}
	})
	check := func(t *testing.T, out string) (ns string) {
		t.Helper()
		f := strings.Fields(out)
		if len(f) != 2 {
			t.Fatalf("%q", out)
		}
		if n, err := strconv.Atoi(f[0]); err != nil || n < 1000*day {
			t.Errorf("up for %s s", f[0])
		}
		if f[1]+"\n" == link(t, "/proc/self/ns/time") {
			t.Error("in the host's time namespace")
		}
		return f[1]
	}
	for name, user := range map[string]bool{"alone": false, "with a user namespace": true} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			container := e.Container
			if user {
				container = func(args []string, opts ...oci.SpecOpts) *harness.Container { return userContainer(e, args, opts...) }
			}
			check(t, container(uptime, newTime).Finish().Stdout)
			c := container(harness.Sleep(), newTime).Run()
			ns := check(t, c.RunExec(uptime...).Stdout)
			if got := link(t, fmt.Sprintf("/proc/%d/ns/time", c.Task.Pid())); got != ns+"\n" {
				t.Errorf("exec is in %s, the container in %s", ns, got)
			}
			joined := container(uptime, joining(specs.TimeNamespace, fmt.Sprintf("/proc/%d/ns/time", c.Task.Pid()))).Finish()
			if got := check(t, joined.Stdout); got != ns {
				t.Errorf("joined %s instead of %s", got, ns)
			}
			c.Kill(syscall.SIGKILL)
			c.Wait()
		})
	}
}
