package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// image changes a container's root file system before it runs.
func image(e *harness.Env, c *harness.Container, change func(root string)) *harness.Container {
	e.Helper()
	root := rootOf(e, c)
	change(root)
	e.Must(unmountRoot(root), "unmount the root file system")
	return c
}

func TestATmpfsBeginsWithWhatItHides(t *testing.T) {
	for name, user := range map[string]bool{"as root": false, "in a user namespace": true} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			script := harness.Sh("cd /stuff; stat -f -c %T .; find . | sort", "stat -c '%n %a %u:%g' . file sub suid", "cat file sub/deep/f; readlink link; readlink dangling; wc -c < big; echo x > made")
			container := func(args []string, o oci.SpecOpts) *harness.Container { return e.Container(args, o) }
			if user {
				container = func(args []string, o oci.SpecOpts) *harness.Container { return userContainer(e, args, o) }
			}
			c := container(script, withMount("tmpfs", "/stuff", "tmpfs", "tmpcopyup", "size=8m"))
			own := 0
			if user {
				own = hostRoot
			}
			root := rootOf(e, c)
			at := func(p string) string { return filepath.Join(root, "stuff", p) }
			e.Must(os.MkdirAll(at("sub/deep"), 0o755), "mkdir")
			e.Must(os.WriteFile(at("file"), []byte("content\n"), 0o640), "write")
			e.Must(os.WriteFile(at("big"), make([]byte, 3<<20), 0o600), "write")
			e.Must(os.WriteFile(at("suid"), nil, 0o755), "write")
			e.Must(os.WriteFile(at("sub/deep/f"), []byte("deep\n"), 0o644), "write")
			e.Must(os.Symlink("/etc/passwd", at("link")), "symlink")
			e.Must(os.Symlink("nowhere", at("dangling")), "symlink")
			for _, p := range []string{"", "sub", "sub/deep", "file", "big", "suid", "sub/deep/f", "link", "dangling"} {
				e.Must(os.Lchown(at(p), own, own), "chown")
			}
			e.Must(os.Chown(at("file"), own+7, own+8), "chown")
			e.Must(syscall.Chmod(at("suid"), 0o4755), "chmod")
			e.Must(os.Chmod(at(""), 0o751), "chmod")
			e.Must(unmountRoot(root), "unmount")
			got := c.Finish()
			want := "tmpfs\n.\n./big\n./dangling\n./file\n./link\n./sub\n./sub/deep\n./sub/deep/f\n./suid\n" +
				". 751 0:0\nfile 640 7:8\nsub 755 0:0\nsuid 4755 0:0\ncontent\ndeep\n/etc/passwd\nnowhere\n3145728\n"
			if got.Stdout != want {
				t.Errorf("got  %q\nwant %q\n%+v", got.Stdout, want, got)
			}
		})
	}
}

func TestAMountIsChangedByARemount(t *testing.T) {
	e := start(t)
	dir := e.TempDir()
	c := e.Container(harness.Sh("touch /a/x 2>&1; grep ' /a ' /proc/self/mountinfo | cut -d' ' -f6 | tr , '\\n' | grep -x -e ro -e noexec"),
		withMount(dir, "/a", "bind", "rbind"), withMount("", "/a", "", "remount", "bind", "ro", "noexec"))
	if got, want := c.Finish(), "touch: /a/x: Read-only file system\nro\nnoexec\n"; got.Stdout != want {
		t.Errorf("got %q, want %q", got.Stdout, want)
	}
	// The file system, and the mount.
	c = e.Container(harness.Sh("grep ' /a ' /proc/mounts | cut -d' ' -f4 | sed 's/,inode64//'"),
		withMount("tmpfs", "/a", "tmpfs", "nosuid", "size=64k", "iversion"), withMount("", "/a", "", "remount", "size=128k", "noexec", "relatime"))
	if got, want := c.Finish(), "rw,noexec,relatime,size=128k\n"; got.Stdout != want {
		t.Errorf("got %q, want %q (%+v)", got.Stdout, want, got)
	}
	err := e.Container([]string{"true"}, withMount("", "/etc", "", "remount", "ro")).TryCreate()
	if err == nil || !strings.Contains(err.Error(), "(/etc): mount_setattr") {
		t.Errorf("a remount of what is no mount: %v", err)
	}
}

func TestMountsGoWhereTheirDestinationsSay(t *testing.T) {
	e := start(t)
	dir := e.TempDir()
	e.Must(os.WriteFile(filepath.Join(dir, "f"), []byte("host\n"), 0o644), "write")
	e.Must(os.Symlink("f", filepath.Join(dir, "to-f")), "symlink")
	long := make([]string, 0, 60)
	for i := range 60 {
		p := filepath.Join(dir, fmt.Sprintf("layer%d", i))
		e.Must(os.Mkdir(p, 0o755), "mkdir")
		long = append(long, p)
	}
	e.Must(os.WriteFile(filepath.Join(dir, "layer59/deepest"), nil, 0o644), "write")
	for _, test := range []struct {
		name   string
		mount  specs.Mount
		script string
		want   string
	}{
		{"a relative destination", specs.Mount{Source: dir, Destination: "a/../b", Type: "bind", Options: []string{"bind"}}, "cat /b/f", "host\n"},
		{"a file on a file that is not there", specs.Mount{Source: dir + "/f", Destination: "/x/y/z", Type: "bind", Options: []string{"bind"}}, "cat /x/y/z", "host\n"},
		{"a file on one of the image", specs.Mount{Source: dir + "/f", Destination: "/etc/passwd", Type: "bind", Options: []string{"bind"}}, "cat /etc/passwd", "host\n"},
		{"a source that is a link", specs.Mount{Source: dir + "/to-f", Destination: "/y", Type: "bind", Options: []string{"bind"}}, "cat /y", "host\n"},
		{"a destination that is a link", specs.Mount{Source: dir, Destination: "/link", Type: "bind", Options: []string{"bind"}}, "cat /target/f; readlink /link", "host\n/target\n"},
		{"a destination below a chain of links", specs.Mount{Source: dir, Destination: "/chain/in", Type: "bind", Options: []string{"bind"}}, "cat /target/in/f", "host\n"},
		{"a destination below a link that leads up", specs.Mount{Source: dir, Destination: "/up/in", Type: "bind", Options: []string{"bind"}}, "cat /in/f", "host\n"},
		{"options of more than 255 bytes", specs.Mount{Source: "o", Destination: "/o", Type: "overlay", Options: []string{"lowerdir=" + strings.Join(long, ":")}}, "ls /o", "deepest\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			c := image(e, e.Container(harness.Sh(test.script), oci.WithMounts([]specs.Mount{test.mount})), func(root string) {
				e.Must(os.Mkdir(root+"/target", 0o755), "mkdir")
				e.Must(os.Symlink("/target", root+"/link"), "symlink")
				e.Must(os.Symlink("link2", root+"/chain"), "symlink")
				e.Must(os.Symlink("./link", root+"/link2"), "symlink")
				e.Must(os.Symlink("../../../..", root+"/up"), "symlink")
			})
			if got := c.Finish(); got.Stdout != test.want || got.Stderr != "" {
				t.Errorf("%+v", got)
			}
		})
	}
}

// A directory that was made for one mount, and is hidden by the next, is made again for the third.
func TestAMountGoesIntoWhatHidesADirectory(t *testing.T) {
	for name, over := range map[string]string{"by its path": "/d", "by a link to it": "/link"} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			volume, hides := e.TempDir(), e.TempDir()
			e.Must(os.WriteFile(volume+"/f", []byte("volume\n"), 0o644), "write")
			bind := func(source, destination string) specs.Mount {
				return specs.Mount{Source: source, Destination: destination, Type: "bind", Options: []string{"rbind"}}
			}
			c := image(e, e.Container(harness.Sh("cat /d/x/2/f; ls /d/x"),
				oci.WithMounts([]specs.Mount{bind(volume, "/d/x/1"), bind(hides, over), bind(volume, "/d/x/2"), bind(volume, "/d/x/3")})), func(root string) {
				e.Must(os.Mkdir(root+"/d", 0o755), "mkdir")
				e.Must(os.Symlink("/d", root+"/link"), "symlink")
			})
			if got := c.Finish(); got.Stdout != "volume\n2\n3\n" || got.Stderr != "" {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestTheRootsPropagationIsTheConfigs(t *testing.T) {
	for prop, want := range map[string]string{"": "", "private": "", "rprivate": "", "slave": "master", "rslave": "master", "shared": "shared", "rshared": "shared", "unbindable": "unbindable", "runbindable": "unbindable"} {
		t.Run(prop, func(t *testing.T) {
			e := start(t)
			// A bind mount, for the root file system itself has no peer.
			dir := e.TempDir()
			e.Must(syscall.Mount("t", dir, "tmpfs", 0, ""), "mount")
			defer syscall.Unmount(dir, syscall.MNT_DETACH)
			e.Must(syscall.Mount("", dir, "", syscall.MS_SHARED, ""), "make it shared")
			c := e.Container(harness.Sh("grep -e ' / / ' -e ' /v ' /proc/self/mountinfo | sed 's/.*\\( \\/v \\| \\/ \\)[^ ]* //; s/ - .*//'"), withMount(dir, "/v", "bind", "rbind"),
				change(func(s *oci.Spec) { s.Linux.RootfsPropagation = prop }))
			got := c.Finish()
			lines := strings.Split(strings.TrimRight(got.Stdout, "\n"), "\n")
			if len(lines) != 2 {
				t.Fatalf("%+v", got)
			}
			root, volume := lines[0], lines[1]
			switch want {
			case "shared", "unbindable":
				if !strings.Contains(root, want) {
					t.Errorf("the root is %q", root)
				}
			case "":
				if strings.Contains(root, "shared") || strings.Contains(root, "unbindable") {
					t.Errorf("the root is %q", root)
				}
			}
			if want == "" && prop != "" && strings.Contains(volume, "master") || want == "master" && !strings.Contains(volume, "master") {
				t.Errorf("the volume is %q", volume)
			}
		})
	}
}

// A pod with many volumes.
func TestThreeHundredMounts(t *testing.T) {
	for name, user := range map[string]bool{"as root": false, "in a user namespace": true} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			dir := e.TempDir()
			var mounts []specs.Mount
			for i := range 300 {
				src := filepath.Join(dir, fmt.Sprint(i))
				options := []string{"rbind", "rprivate", "rw"}
				switch i % 3 {
				case 0:
					e.Must(os.WriteFile(src, fmt.Append(nil, i, "\n"), 0o644), "write")
					options = append(options, "ro")
				default:
					e.Must(os.Mkdir(src, 0o755), "mkdir")
					e.Must(os.WriteFile(src+"/f", fmt.Append(nil, i, "\n"), 0o644), "write")
				}
				mounts = append(mounts, specs.Mount{Source: src, Destination: fmt.Sprintf("/var/volumes/of/%d/v", i), Type: "bind", Options: options})
			}
			args := harness.Sh("cd /var/volumes/of; for i in *; do if [ -f $i/v ]; then cat $i/v; else cat $i/v/f; fi; done | sort -n | uniq | wc -l; grep -c /var/volumes /proc/self/mountinfo")
			var c *harness.Container
			if user {
				c = userContainer(e, args, oci.WithMounts(mounts))
			} else {
				c = e.Container(args, oci.WithMounts(mounts))
			}
			begin := time.Now()
			c.Create()
			t.Logf("created in %v", time.Since(begin))
			c.Start()
			if got := c.Wait(); got.Stdout != "300\n300\n" {
				t.Errorf("%+v", got)
			}
		})
	}
}

// In the host's cgroup namespace a mount of cgroup2 has its options set for the host's too: nsdelegate, say, must not be lost.
func TestACgroupMountLeavesTheHostsItsOptions(t *testing.T) {
	if !onV2() {
		t.Skip("of cgroup v2")
	}
	if peer() {
		t.Skip("runc mounts it without options")
	}
	e := start(t)
	look := func() (options string) {
		for line := range strings.Lines(read(t, "/proc/self/mountinfo")) {
			if f := strings.Fields(line); f[4] == "/sys/fs/cgroup" {
				options = f[len(f)-1]
			}
		}
		return options
	}
	before := look()
	c := e.Container(harness.Sh("grep -c ' - cgroup2 ' /proc/self/mountinfo"), oci.WithHostNamespace(specs.CgroupNamespace), oci.WithoutMounts("/sys/fs/cgroup"),
		withMount("cgroup", "/sys/fs/cgroup", "cgroup", "ro", "nosuid", "noexec", "nodev"))
	if got := c.Finish(); got.Stdout != "1\n" {
		t.Errorf("got %+v", got)
	}
	if after := look(); after != before {
		t.Errorf("the host's options were %s, and are %s", before, after)
	}
}

// A relative cgroupsPath is below the shim's own cgroup, which need not be the same in each hierarchy.
func TestACgroupMountShowsARelativeCgroupWhereEachHierarchyHasIt(t *testing.T) {
	if onV2() {
		t.Skip("cgroup v2 has one hierarchy")
	}
	e := start(t)
	own := filepath.Join("/sys/fs/cgroup/pids", e.Namespace+"-daemon")
	e.Must(os.Mkdir(own, 0o755), "make a cgroup for containerd")
	move := func(dir string) {
		e.Must(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(e.Daemon.Pid())), 0), "move containerd to %s", dir)
	}
	move(own)
	e.Cleanup(func() {
		move("/sys/fs/cgroup/pids")
		e.Eventually("its cgroup is empty", func() bool { return os.Remove(own) == nil })
	})
	c := e.Container([]string{"sh", "-c", "cd /sys/fs/cgroup; for d in *; do echo $(grep -cx 1 $d/cgroup.procs); done | sort -u"},
		oci.WithCgroup("relative-"+e.Namespace), oci.WithHostNamespace(specs.CgroupNamespace), withMount("cgroup", "/sys/fs/cgroup", "cgroup", "ro"))
	if got := c.Finish(); got.Stdout != "1\n" {
		t.Errorf("its PID 1 is in the cgroups that it sees so often: %+v", got)
	}
}
