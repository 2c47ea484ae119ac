package integration

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// fileSystem makes a file system of a kind in a file, with the image's files in it.
func fileSystem(e *harness.Env, kind string) (file string) {
	e.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		e.Skip("this machine has no loop devices: ", err)
	}
	tool := "mkfs." + kind
	if kind == "squashfs" {
		tool = "mksquashfs"
	}
	if _, err := exec.LookPath(tool); err != nil {
		e.Skip("no tool to make it: ", err)
	}
	known, err := os.ReadFile("/proc/filesystems")
	e.Must(err, "read the file systems")
	if !strings.Contains(string(known), "\t"+kind+"\n") && exec.Command("modprobe", kind).Run() != nil {
		e.Skip("this kernel has no ", kind)
	}
	from := rootOf(e, e.Container([]string{"true"}))
	defer func() { e.Must(unmountRoot(from), "unmount the image") }()
	file = filepath.Join(e.TempDir(), kind+".img")
	cmd := exec.Command(tool, file, from)
	switch kind {
	case "ext4":
		e.Must(os.WriteFile(file, nil, 0o600), "make a file")
		e.Must(os.Truncate(file, 16<<20), "make a large file")
		cmd = exec.Command(tool, "-q", "-d", from, file)
	case "squashfs":
		cmd = exec.Command(tool, from, file, "-quiet", "-no-progress")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		e.Fatalf("%s: %v\n%s", tool, err, out)
	}
	e.NoSnapshot = true
	return file
}

// loops are the loop devices whose file is this one.
func loops(file string) (devices []string) {
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range names {
		if data, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(data)) == file {
			devices = append(devices, strings.Split(name, "/")[3])
		}
	}
	return devices
}

// old tells that this containerd has no mount manager.
func old(e *harness.Env) bool {
	e.Helper()
	v, err := e.Client.Version(e.Ctx)
	e.Must(err, "version of containerd")
	return strings.HasPrefix(strings.TrimPrefix(v.Version, "v"), "1.")
}

func rootMounts(mounts ...mount.Mount) client.NewTaskOpts { return client.WithRootFS(mounts) }

func TestTheRootFileSystemIsInAFile(t *testing.T) {
	for _, test := range []struct {
		kind     string
		options  []string
		opts     []oci.SpecOpts
		readonly bool
	}{
		{"ext4", []string{"loop"}, nil, false},
		{"ext4", []string{"ro", "loop"}, nil, true},
		{"ext4", []string{"loop", "direct-io", "sync"}, nil, false},
		{"erofs", []string{"ro", "loop"}, nil, true},
		{"squashfs", []string{"ro", "loop"}, nil, true},
	} {
		t.Run(test.kind+" "+strings.Join(test.options, ","), func(t *testing.T) {
			e := start(t)
			if test.kind == "erofs" && !old(e) {
				t.Skip("containerd 2 mounts a single erofs by itself, and then hands on nothing: see TestLayersInFiles")
			}
			file := fileSystem(e, test.kind)
			c := e.Container(harness.Sh("echo x >/made; cat /made; grep ' / / ' /proc/self/mountinfo; cat /etc/hostname; trap 'exit 3' TERM; while :; do sleep 0.1; done"), test.opts...)
			e.Must(c.TryCreate(rootMounts(mount.Mount{Type: test.kind, Source: file, Options: test.options})), "create")
			c.Start()
			e.Eventually("it tells", func() bool { return strings.HasSuffix(c.IO.Stdout.String(), "image\n") })
			devices := loops(file)
			if len(devices) != 1 {
				t.Fatalf("its loop devices are %v", devices)
			}
			out := c.IO.Stdout.String()
			if wrote := strings.HasPrefix(out, "x\n"); wrote == test.readonly {
				t.Errorf("it could write: %v; it says %q", wrote, out)
			}
			if want := " - " + test.kind + " /dev/" + devices[0] + " "; !strings.Contains(out, want) {
				t.Errorf("it has no %q in its mounts: %q", want, out)
			}
			for name, want := range map[string]bool{"ro": test.readonly, "loop/autoclear": true, "loop/dio": strings.Contains(strings.Join(test.options, " "), "direct-io")} {
				if data, err := os.ReadFile("/sys/block/" + devices[0] + "/" + name); err != nil || strings.TrimSpace(string(data)) == "1" != want {
					t.Errorf("%s of the device is %q, %v; want %v", name, data, err, want)
				}
			}
			if got := c.RunExec("cat", "/etc/hostname"); got.Stdout != "image\n" {
				t.Errorf("an exec: %+v", got)
			}
			c.Kill(syscall.SIGTERM)
			if got := c.Wait(); got.Code != 3 {
				t.Errorf("it ended so: %+v", got)
			}
			c.Delete()
			e.Eventually("the loop device has gone", func() bool { return len(loops(file)) == 0 })
			if test.readonly {
				return
			}
			// What was written is in the file.
			again := e.Container([]string{"cat", "/made"})
			e.Must(again.TryCreate(rootMounts(mount.Mount{Type: test.kind, Source: file, Options: test.options})), "create again")
			again.Start()
			if got := again.Wait(); got.Stdout != "x\n" {
				t.Errorf("another container finds %+v", got)
			}
			again.Delete()
		})
	}
}

func TestALoopDeviceIsUsedByContainersOfEveryKind(t *testing.T) {
	for name, make := range map[string]func(e *harness.Env) *harness.Container{
		"with a user namespace": func(e *harness.Env) *harness.Container {
			return e.Container([]string{"cat", "/etc/hostname"}, withUserNS(0))
		},
		"seen on the host": func(e *harness.Env) *harness.Container { return e.Container([]string{"cat", "/etc/hostname"}, onHost) },
		"in the host's mount namespace": func(e *harness.Env) *harness.Container {
			return e.Container([]string{"cat", "/etc/hostname"}, withHostMounts())
		},
	} {
		t.Run(name, func(t *testing.T) {
			if peer() {
				t.Skip("how runc does these is another test's business")
			}
			e := start(t)
			file := fileSystem(e, "ext4")
			c := make(e)
			e.Must(c.TryCreate(rootMounts(mount.Mount{Type: "ext4", Source: file, Options: []string{"loop"}})), "create")
			if n := loops(file); len(n) != 1 {
				t.Errorf("its loop devices are %v", n)
			}
			c.Start()
			if got := c.Wait(); got.Stdout != "image\n" {
				t.Errorf("it says %+v", got)
			}
			c.Delete()
			e.Eventually("the loop device has gone", func() bool { return len(loops(file)) == 0 })
		})
	}
}

// A snapshotter that has its layers on block devices, devmapper for one, names the device. The container's cgroup does not allow it.
func TestTheRootFileSystemIsOnABlockDevice(t *testing.T) {
	e := start(t)
	file := fileSystem(e, "ext4")
	device, err := mount.AttachLoopDevice(file)
	e.Must(err, "attach a loop device")
	e.Cleanup(func() { e.Must(mount.DetachLoopDevice(device), "detach the loop device") })
	for name, opts := range map[string][]oci.SpecOpts{"plain": nil, "user namespace": {withUserNS(0)}, "time namespace": {oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.TimeNamespace})}} {
		c := e.Container(harness.Sh("grep -o ' - ext4 .*' /proc/self/mountinfo | head -n 1; cat "+device+" 2>&1; mknod /dev/block b 7 "+strings.TrimPrefix(device, "/dev/loop")+" 2>&1; cat /dev/block 2>&1 | head -c 100"), opts...)
		e.Must(c.TryCreate(rootMounts(mount.Mount{Type: "ext4", Source: device, Options: []string{"rw"}})), "create")
		c.Start()
		got := c.Wait()
		if !strings.HasPrefix(got.Stdout, " - ext4 "+device+" rw") {
			t.Errorf("%s: its root is %+v", name, got)
		}
		if !strings.Contains(got.Stdout, "not permitted") {
			t.Errorf("%s: it could read the device: %+v", name, got)
		}
		c.Delete()
	}
}

// On each way out of a creation the device is let go of.
func TestALoopDeviceGoesWithAFailedCreate(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		m    func(file string) mount.Mount
		want string
	}{
		"there is no such program": {[]string{"/no/such"}, func(f string) mount.Mount {
			return mount.Mount{Type: "ext4", Source: f, Options: []string{"loop"}}
		}, "/no/such"},
		"it is another file system": {[]string{"true"}, func(f string) mount.Mount {
			return mount.Mount{Type: "xfs", Source: f, Options: []string{"loop"}}
		}, "rootfs[0] ("},
		"the file system does not know an option": {[]string{"true"}, func(f string) mount.Mount {
			return mount.Mount{Type: "ext4", Source: f, Options: []string{"loop", "nonsense"}}
		}, "rootfs[0] ("},
		"there is no such file": {[]string{"true"}, func(f string) mount.Mount {
			return mount.Mount{Type: "ext4", Source: f + "-", Options: []string{"loop"}}
		}, "no such file"},
		"it is a fifo": {[]string{"true"}, func(f string) mount.Mount {
			if err := syscall.Mkfifo(f+".fifo", 0o600); err != nil {
				panic(err)
			}
			return mount.Mount{Type: "ext4", Source: f + ".fifo", Options: []string{"loop"}}
		}, "neither a file nor a block device"},
		"it is a directory": {[]string{"true"}, func(f string) mount.Mount {
			return mount.Mount{Type: "ext4", Source: filepath.Dir(f), Options: []string{"loop"}}
		}, "is a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			file := fileSystem(e, "ext4")
			m := test.m(file)
			err := e.Container(test.args).TryCreate(rootMounts(m))
			if err == nil {
				t.Fatal("no error")
			}
			if !peer() && (!strings.Contains(err.Error(), test.want) || test.want != "/no/such" && !strings.Contains(err.Error(), m.Source)) {
				t.Errorf("got %v, want %s and the file's name", err, test.want)
			}
			e.Eventually("no loop device is left", func() bool { return len(loops(file)) == 0 })
		})
	}
	t.Run("the shim was killed", func(t *testing.T) {
		e := startToKill(t)
		file := fileSystem(e, "ext4")
		c := e.Container(harness.Sleep())
		e.Must(c.TryCreate(rootMounts(mount.Mount{Type: "ext4", Source: file, Options: []string{"loop"}})), "create")
		for _, pid := range shims(e) {
			e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill the shim")
		}
		c.DeleteOfDeadShim()
		if !peer() {
			e.Eventually("no loop device is left", func() bool { return len(loops(file)) == 0 })
		}
	})
}

// Many at once are after the same free device.
func TestLoopDevicesAreTakenAtOnce(t *testing.T) {
	e := start(t)
	file := fileSystem(e, "ext4")
	const n = 6
	errs := make(chan error, n)
	var containers []*harness.Container
	for i := range n {
		data, err := os.ReadFile(file)
		e.Must(err, "read")
		own := fmt.Sprintf("%s-%d", file, i)
		e.Must(os.WriteFile(own, data, 0o600), "copy")
		c := e.Container([]string{"cat", "/etc/hostname"})
		containers = append(containers, c)
		go func() {
			errs <- c.TryCreate(rootMounts(mount.Mount{Type: "ext4", Source: own, Options: []string{"loop"}}))
		}()
	}
	for range n {
		e.Must(<-errs, "create")
	}
	for _, c := range containers {
		c.Start()
		if got := c.Wait(); got.Stdout != "image\n" {
			t.Errorf("it says %+v", got)
		}
		c.Delete()
	}
}

// As containerd's erofs snapshotter says it: a mount for each layer, and one that names what the others have become. containerd 2.2 and
// later do all of it but the last, for whatever shim; before that nobody does.
func TestLayersInFiles(t *testing.T) {
	for kind, options := range map[string][]string{"ext4": {"ro", "loop", "noload"}, "erofs": {"ro", "loop"}} {
		t.Run(kind, func(t *testing.T) {
			e := start(t)
			lower, upper := fileSystem(e, kind), e.TempDir()
			e.Must(os.MkdirAll(upper+"/fs", 0o755), "mkdir")
			e.Must(os.MkdirAll(upper+"/work", 0o755), "mkdir")
			second := lower + "-2"
			data, err := os.ReadFile(lower)
			e.Must(err, "read")
			e.Must(os.WriteFile(second, data, 0o600), "copy")
			c := e.Container(harness.Sh("echo x >/made && cat /made /etc/hostname && grep -o ' - overlay' /proc/self/mountinfo"))
			err = c.TryCreate(rootMounts(
				mount.Mount{Type: kind, Source: lower, Options: options},
				mount.Mount{Type: kind, Source: second, Options: options},
				mount.Mount{Type: "format/overlay", Source: "overlay", Options: []string{"lowerdir={{ overlay 0 1 }}", "upperdir=" + upper + "/fs", "workdir=" + upper + "/work"}}))
			if old(e) {
				if err == nil || !strings.Contains(err.Error(), "rootfs[2].type: format/overlay") && !peer() {
					t.Errorf("got %v", err)
				}
				return
			}
			e.Must(err, "create")
			c.Start()
			if got := c.Wait(); got.Stdout != "x\nimage\n - overlay\n" {
				t.Errorf("it says %+v", got)
			}
			c.Delete()
		})
	}
}

// A root that is a directory of the host's is the caller's: as with runc, the mount points that a set-up has made there before it failed stay, and nothing else does.
func TestAFailedCreateLeavesMountPointsInARootOfTheHosts(t *testing.T) {
	e := start(t)
	root, source := t.TempDir(), filepath.Join(t.TempDir(), "hostname")
	e.Must(os.WriteFile(source, nil, 0o644), "write a source")
	c, err := e.TryContainer("in-a-directory", []string{"true"}, oci.WithRootFSPath(root),
		withMount(source, "/etc/deep/hostname", "bind", "rbind"), withMount("/no/such/source", "/data/x", "bind", "rbind"))
	e.Must(err, "make the container")
	if err := c.TryCreate(); err == nil {
		t.Fatal("there is no such source")
	}
	var left []string
	e.Must(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		left = append(left, strings.TrimPrefix(path, root)+" "+d.Type().String())
		if info, err := d.Info(); err != nil || d.Type().IsRegular() && info.Size() != 0 {
			t.Errorf("%s has %v, %v", path, info, err)
		}
		return err
	}), "look at the root")
	want := []string{" d---------", "/dev d---------", "/etc d---------", "/etc/deep d---------", "/etc/deep/hostname ----------", "/proc d---------", "/run d---------", "/sys d---------"}
	if !slices.Equal(left, want) {
		t.Errorf("there are %q", left)
	}
}
