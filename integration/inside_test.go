package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

func umask(u uint32) oci.SpecOpts { return change(func(s *oci.Spec) { s.Process.User.Umask = &u }) }

func only(caps ...string) oci.SpecOpts {
	return change(func(s *oci.Spec) {
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps, Ambient: caps}
	})
}

func deny(action specs.LinuxSeccompAction, errno *uint, names ...string) oci.SpecOpts {
	return change(func(s *oci.Spec) {
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
			Syscalls: []specs.LinuxSyscall{{Names: names, Action: action, ErrnoRet: errno}}}
	})
}

// What the config asks for is what a program in the container sees.
func TestAProgramSeesWhatTheConfigSays(t *testing.T) {
	score := 321
	enospc := uint(28)
	status := func(field string) []string {
		return []string{"sed", "-n", "s/^" + field + ":\t//p", "/proc/self/status"}
	}
	for _, test := range []struct {
		name string
		args []string
		opt  oci.SpecOpts
		want string
	}{
		{"the default user", harness.Sh("id -u; id -g"), nil, "0\n0\n"},
		{"a user and a group", harness.Sh("id -u; id -g"), oci.WithUIDGID(1000, 1001), "1000\n1001\n"},
		{"additional groups", []string{"id", "-G"}, change(func(s *oci.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{50, 4242}}
		}), "1000 50 4242\n"},
		{"a umask", harness.Sh("umask; > /tmp/f; stat -c %a /tmp/f"), umask(0o077), "0077\n600\n"},
		{"no capabilities", status("CapEff"), only(), "0000000000000000\n"},
		{"one capability in all sets", harness.Sh("grep ^Cap /proc/self/status"), only("CAP_NET_BIND_SERVICE"),
			"CapInh:\t0000000000000400\nCapPrm:\t0000000000000400\nCapEff:\t0000000000000400\nCapBnd:\t0000000000000400\nCapAmb:\t0000000000000400\n"},
		{"the default capabilities", status("CapBnd"), nil, "00000000a80425fb\n"},
		{"an ambient capability of a user", status("CapEff"), func() oci.SpecOpts {
			return oci.Compose(oci.WithUIDGID(1000, 1000), only("CAP_NET_ADMIN"))
		}(), "0000000000001000\n"},
		{"a limit of open files", harness.Sh("ulimit -Sn; ulimit -Hn"), change(func(s *oci.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}}
		}), "100\n200\n"},
		{"a hostname", []string{"hostname"}, oci.WithHostname("my-host"), "my-host\n"},
		{"a domain name", []string{"cat", "/proc/sys/kernel/domainname"}, oci.WithDomainname("example.org"), "example.org\n"},
		{"an environment", harness.Sh("echo $A,$B"), oci.WithEnv([]string{"A=one", "B=two words"}), "one,two words\n"},
		{"a working directory", []string{"pwd"}, oci.WithProcessCwd("/usr/bin"), "/usr/bin\n"},
		{"a working directory that is made", []string{"pwd"}, oci.WithProcessCwd("/new/dir"), "/new/dir\n"},
		{"no new privileges", status("NoNewPrivs"), oci.WithNoNewPrivileges, "1\n"},
		{"new privileges", status("NoNewPrivs"), oci.WithNewPrivileges, "0\n"},
		{"seccomp", status("Seccomp"), nil, "2\n"},
		{"no seccomp", status("Seccomp"), oci.WithSeccompUnconfined, "0\n"},
		{"a seccomp errno", harness.Sh("mkdir /tmp/d 2>&1; echo $?"), deny(specs.ActErrno, nil, "mkdir", "mkdirat"),
			"mkdir: can't create directory '/tmp/d': Operation not permitted\n1\n"},
		{"a seccomp errno of choice", harness.Sh("mkdir /tmp/d 2>&1"), deny(specs.ActErrno, &enospc, "mkdir", "mkdirat"),
			"mkdir: can't create directory '/tmp/d': No space left on device\n"},
		{"a seccomp kill", harness.Sh("exec 2>/dev/null", "mkdir /tmp/d; echo $?"), deny(specs.ActKillProcess, nil, "mkdir", "mkdirat"), "159\n"},
		{"the default seccomp profile", harness.Sh("unshare -U true 2>&1; echo $?"), nil, "unshare: unshare(0x10000000): Operation not permitted\n1\n"},
		{"an OOM score", []string{"cat", "/proc/self/oom_score_adj"}, change(func(s *oci.Spec) { s.Process.OOMScoreAdj = &score }), "321\n"},
		{"a sysctl", []string{"cat", "/proc/sys/net/ipv4/ip_forward"}, withSysctl("net.ipv4.ip_forward", "1"), "1\n"},
		{"a sysctl with slashes", []string{"cat", "/proc/sys/kernel/shm_rmid_forced"}, withSysctl("kernel/shm_rmid_forced", "1"), "1\n"},
		{"a masked file", harness.Sh("wc -c < /proc/keys; cat /proc/kcore | wc -c"), nil, "0\n0\n"},
		{"a masked directory", []string{"ls", "/sys/firmware"}, nil, ""},
		{"a masked file of the image", []string{"cat", "/etc/passwd"}, change(func(s *oci.Spec) {
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/etc/passwd", "/no/such/path")
		}), ""},
		{"a read-only path", harness.Sh("echo 1 2>&1 > /proc/sys/kernel/domainname"), nil, "sh: can't create /proc/sys/kernel/domainname: Read-only file system\n"},
		{"a read-only path of the image", harness.Sh("touch /etc/x 2>&1"), change(func(s *oci.Spec) {
			s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/etc")
		}), "touch: /etc/x: Read-only file system\n"},
		{"a root that is written to", harness.Sh("echo new > /file; cat /file"), nil, "new\n"},
		{"a read-only root", harness.Sh("touch /file 2>&1"), oci.WithRootFSReadonly(), "touch: /file: Read-only file system\n"},
		{"default devices", harness.Sh("cd /dev; for d in null zero full random urandom tty ptmx; do test -c $d || echo no $d; done",
			"stat -c '%n %a %t %T' null", "echo x > null; head -c 3 zero | wc -c; echo x 2>&1 > full; true"), nil,
			"null 666 1 3\n3\nsh: write error: No space left on device\n"},
		{"default links of /dev", harness.Sh("cd /dev; for l in fd stdin stdout stderr ptmx; do readlink $l; done"), nil,
			"/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n"},
		{"a device that is not allowed", harness.Sh("mknod /tmp/mem c 1 1 && cat /tmp/mem 2>&1 | head -c 100"), nil,
			"cat: can't open '/tmp/mem': Operation not permitted\n"},
		{"an extra device", harness.Sh("stat -c '%a %u %g %t %T' /dev/my/loop-control"), change(func(s *oci.Spec) {
			mode, uid, gid := os.FileMode(0o640), uint32(5), uint32(6)
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/my/loop-control", Type: "c", Major: 10, Minor: 237, FileMode: &mode, UID: &uid, GID: &gid})
		}), "640 5 6 a ed\n"},
		{"a /dev/shm of a size", harness.Sh("df -k /dev/shm | tail -1 | awk '{print $2}'"), oci.WithDevShmSize(1024), "1024\n"},
		{"a tmpfs with options", harness.Sh("grep ' /mnt ' /proc/mounts | cut -d' ' -f3-4 | sed 's/,inode64//'"),
			withMount("tmpfs", "/mnt", "tmpfs", "nosuid", "nodev", "noexec", "size=64k", "mode=711"), "tmpfs rw,nosuid,nodev,noexec,relatime,size=64k,mode=711\n"},
		{"a mount point that is made", harness.Sh("cd /new/mount/point && echo there"), withMount("tmpfs", "/new/mount/point", "tmpfs"), "there\n"},
		{"its own processes only", harness.Sh("set -- /proc/[0-9]*; echo $$ $#"), nil, "1 1\n"},
		{"its own network", harness.Sh("ls /sys/class/net"), nil, "lo\n"},
		{"the host's network", harness.Sh("test $(readlink /proc/self/ns/net) = " + hostNet() + " && echo same"), oci.WithHostNamespace(specs.NetworkNamespace), "same\n"},
		{"its own root of cgroups", harness.Sh("cut -d: -f3 /proc/self/cgroup | sort -u"), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}), "/\n"},
		{"ignored signals: none", status("SigIgn"), nil, "0000000000000000\n"},
		{"blocked signals: none", status("SigBlk"), nil, "0000000000000000\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			var opts []oci.SpecOpts
			if test.opt != nil {
				opts = append(opts, test.opt)
			}
			if got := e.Container(test.args, opts...).Finish(); got.Stdout != test.want {
				t.Errorf("it says %q, want %q (stderr %q, exit code %d)", got.Stdout, test.want, got.Stderr, got.Code)
			}
		})
	}
}

func hostNet() string {
	link, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return "unknown"
	}
	return link
}

func TestBindMountsAreSeenWithTheirOptions(t *testing.T) {
	for _, test := range []struct {
		name    string
		file    bool
		options []string
		script  string
		want    string
	}{
		{"a directory", false, []string{"rbind"}, "cat /data/there; echo new > /data/new; cat /data/new", "of the host\nnew\n"},
		{"a read-only directory", false, []string{"rbind", "ro"}, "cat /data/there; touch /data/new 2>&1", "of the host\ntouch: /data/new: Read-only file system\n"},
		{"a directory without programs", false, []string{"bind", "noexec", "nosuid"}, "/data/run 2>&1; echo $?", "sh: /data/run: Permission denied\n126\n"},
		{"a file", true, []string{"bind"}, "cat /data; echo more >> /data; wc -l < /data", "of the host\n2\n"},
		{"a read-only file", true, []string{"bind", "ro"}, "echo more 2>&1 >> /data", "sh: can't create /data: Read-only file system\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			dir := t.TempDir()
			e.Must(os.WriteFile(dir+"/there", []byte("of the host\n"), 0o644), "write")
			e.Must(os.WriteFile(dir+"/run", []byte("#!/bin/sh\n"), 0o755), "write")
			source := dir
			if test.file {
				source += "/there"
			}
			c := e.Container(harness.Sh(test.script), withMount(source, "/data", "bind", test.options...))
			if got := c.Finish(); got.Stdout != test.want {
				t.Errorf("it says %q, want %q (stderr %q)", got.Stdout, test.want, got.Stderr)
			}
			if _, err := os.Stat(dir + "/new"); (err == nil) != strings.Contains(test.want, "new\n") && test.name == "a directory" {
				t.Errorf("the file written inside is not outside: %v", err)
			}
		})
	}
}

func TestALinkInTheImageDoesNotLeadAMountOut(t *testing.T) {
	e := start(t)
	host := t.TempDir()
	// The mount is on a path below a link that points to the host's directory;
	// inside the container that is a place in the container.
	first := e.Container(harness.Sh("true"))
	first.Finish()
	c := e.Container(harness.Sh("ls "+host+"/in"), withMount("tmpfs", "/evil/in", "tmpfs"))
	root := rootOf(e, c)
	e.Must(os.Symlink(host, root+"/evil"), "make the link")
	e.Must(unmountRoot(root), "unmount")
	c.Finish()
	if entries, _ := os.ReadDir(host); len(entries) != 0 {
		t.Errorf("the host's directory has %v", entries)
	}
}

func TestAProgramHasNoFileButItsStdio(t *testing.T) {
	e := start(t)
	c := e.Container([]string{"sleep", "3600"}).Run()
	x := c.Exec(nil, c.Process([]string{"sleep", "3600"})).StartExec()
	for name, pid := range map[string]uint32{"the container": c.Task.Pid(), "its exec": x.Process.Pid()} {
		e.Eventually(name+" is sleep", func() bool {
			p, ok := harness.ReadProc(int(pid))
			return ok && p.Cmdline == "sleep 3600"
		})
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		e.Must(err, "list the files")
		for _, fd := range fds {
			if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); fd.Name() > "2" {
				t.Errorf("%s has file %s open: %s", name, fd.Name(), to)
			}
		}
		if len(fds) < 3 {
			t.Errorf("%s has %d files open, want 3", name, len(fds))
		}
	}
}
