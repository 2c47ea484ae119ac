package integration

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// holder is a process in namespaces of its own, for a container to join.
func holder(e *harness.Env, attr syscall.SysProcAttr) uint32 {
	e.Helper()
	cmd := exec.Command("sleep", "3600")
	cmd.SysProcAttr = &attr
	e.Must(cmd.Start(), "start a process with namespaces")
	e.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return uint32(cmd.Process.Pid)
}

func mountTable(e *harness.Env, pid any) []string {
	e.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%v/mountinfo", pid))
	e.Must(err, "read a mount table")
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func TestAMountNamespaceIsJoinedByPath(t *testing.T) {
	for _, test := range []struct {
		name   string
		attr   syscall.SysProcAttr
		userNS bool
	}{
		{"of the host's user namespace", syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}, false},
		{"with its user namespace", syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostRoot, Size: 65536}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostRoot, Size: 65536}}, GidMappingsEnableSetgroups: true}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			pid := holder(e, test.attr)
			opts := []oci.SpecOpts{joining(specs.MountNamespace, fmt.Sprintf("/proc/%d/ns/mnt", pid)), withMount("tmpfs", "/mnt", "tmpfs", "size=64k"),
				oci.WithRootFSReadonly()}
			if test.userNS {
				opts = append(opts, joining(specs.UserNamespace, fmt.Sprintf("/proc/%d/ns/user", pid)))
			}
			c := e.Container(harness.Sh("id -u", "touch /x 2>&1", "trap 'exit 0' TERM", "while :; do sleep 3600 & wait $!; done"), opts...)
			if test.userNS {
				shifted(e, c)
			}
			host := mountTable(e, "self")
			c.Run()
			e.Eventually("it tells", func() bool { return c.IO.Stdout.String() == "0\ntouch: /x: Read-only file system\n" })
			if a, b := inode(e, pid, "mnt"), inode(e, c.Task.Pid(), "mnt"); a != b {
				t.Errorf("the container is in %s, not %s", b, a)
			}
			// As with runc, who is in the namespace now has the container's root.
			if a, b := mountTable(e, pid), mountTable(e, c.Task.Pid()); !slices.Equal(a, b) {
				t.Errorf("the one who was there sees\n%s\nand the container\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
			}
			got := c.RunExec(harness.Sh("readlink /proc/self/ns/mnt", "stat -f -c %T /mnt", "cat /proc/1/comm", "touch /x 2>&1")...)
			if want := inode(e, pid, "mnt") + "\ntmpfs\nsh\ntouch: /x: Read-only file system\n"; got.Stdout != want {
				t.Errorf("an exec says %q, want %q (%+v)", got.Stdout, want, got)
			}
			if now := mountTable(e, "self"); !slices.Equal(now, host) {
				t.Errorf("the host's mounts are now\n%s\nand were\n%s", strings.Join(now, "\n"), strings.Join(host, "\n"))
			}
			c.Kill(syscall.SIGTERM)
			if got := c.Wait(); got.Code != 0 {
				t.Errorf("it ended so: %+v", got)
			}
			c.Delete()
		})
	}
}

// To join the host's would be to change the root of all who are in it, which runc does.
func TestTheHostsMountNamespaceIsNotJoinedByPath(t *testing.T) {
	if peer() {
		t.Skip("runc does it, and then the machine has no root file system any more")
	}
	e := start(t)
	host := mountTable(e, "self")
	err := e.Container([]string{"true"}, joining(specs.MountNamespace, fmt.Sprintf("/proc/%d/ns/mnt", os.Getpid()))).TryCreate()
	if err == nil || !strings.Contains(err.Error(), "linux.namespaces[") || !strings.Contains(err.Error(), "/ns/mnt): ") || !strings.Contains(err.Error(), "EBUSY") {
		t.Errorf("got %v", err)
	}
	if now := mountTable(e, "self"); !slices.Equal(now, host) {
		t.Errorf("the host's mounts are now\n%s", strings.Join(now, "\n"))
	}
}

// withHostMounts puts a container in the host's mount namespace.
func withHostMounts() oci.SpecOpts {
	return oci.Compose(oci.WithHostNamespace(specs.MountNamespace), change(func(s *oci.Spec) {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	}))
}

func TestAContainerInTheHostsMountNamespace(t *testing.T) {
	if peer() {
		t.Skip("runc leaves its mounts, and the host's root a slave")
	}
	e := start(t)
	host := mountTable(e, "self")
	dir := t.TempDir()
	e.Must(os.WriteFile(dir+"/there", []byte("of the host\n"), 0o644), "write")
	c := e.Container(harness.Sh("ls -d "+dir+" /etc/passwd 2>/dev/null", "cat /data/there", "touch /data/x 2>&1", "touch /x 2>&1", "echo $(ls /dev/pts) $$", "pwd",
		"trap 'exit 0' TERM", "while :; do sleep 3600 & wait $!; done"), withHostMounts(), withMount(dir, "/data", "bind", "rbind", "ro"),
		oci.WithRootFSReadonly(), oci.WithProcessCwd("/etc")).Run()
	want := "/etc/passwd\nof the host\ntouch: /data/x: Read-only file system\ntouch: /x: Read-only file system\nptmx 1\n/etc\n"
	e.Eventually("it tells", func() bool { return strings.HasSuffix(c.IO.Stdout.String(), "/etc\n") })
	if got := c.IO.Stdout.String(); got != want {
		t.Errorf("it says %q, want %q", got, want)
	}
	if a, b := inode(e, uint32(os.Getpid()), "mnt"), inode(e, c.Task.Pid(), "mnt"); a != b {
		t.Errorf("the container is in %s, not the host's %s", b, a)
	}
	// The host has the container's mounts more, and they are where they are expected.
	root := e.Daemon.Bundle(c.ID()) + "/rootfs"
	now := mountTable(e, "self")
	if !slices.Equal(now[:min(len(now), len(host))], host) || len(now) < len(host)+5 {
		t.Errorf("the host's mounts are now\n%s\nand were\n%s", strings.Join(now, "\n"), strings.Join(host, "\n"))
	}
	for _, line := range now[min(len(now), len(host)):] {
		if f := strings.Fields(line); f[4] != root && !strings.HasPrefix(f[4], root+"/") {
			t.Errorf("a mount elsewhere: %s", line)
		}
	}
	got := c.RunExec(harness.Sh("cat /data/there", "touch /x 2>&1", "pwd", "readlink /proc/self/ns/mnt")...)
	if want := "of the host\ntouch: /x: Read-only file system\n/etc\n" + inode(e, uint32(os.Getpid()), "mnt") + "\n"; got.Stdout != want {
		t.Errorf("an exec says %q, want %q (%+v)", got.Stdout, want, got)
	}
	c.Kill(syscall.SIGTERM)
	c.Wait()
	c.Delete()
	if now := mountTable(e, "self"); !slices.Equal(now, host) {
		t.Errorf("the host's mounts afterwards are\n%s", strings.Join(now, "\n"))
	}
}

// What fails leaves none of its mounts on the host; nor does a shim that is killed.
func TestMountsOnTheHostGoWithTheirContainer(t *testing.T) {
	if peer() {
		t.Skip("runc leaves its mounts")
	}
	t.Run("one that could not be created", func(t *testing.T) {
		e := start(t)
		host := mountTable(e, "self")
		if err := e.Container([]string{"/no/such/program"}, withHostMounts()).TryCreate(); err == nil {
			t.Error("no error")
		}
		if now := mountTable(e, "self"); !slices.Equal(now, host) {
			t.Errorf("the host's mounts are now\n%s", strings.Join(now, "\n"))
		}
	})
	t.Run("one whose shim was killed", func(t *testing.T) {
		e := start(t)
		host := mountTable(e, "self")
		e.Container(harness.Sleep(), withHostMounts()).Run()
		for _, pid := range shims(e) {
			e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill the shim")
		}
		e.Eventually("the mounts have gone", func() bool { return slices.Equal(mountTable(e, "self"), host) })
	})
}
