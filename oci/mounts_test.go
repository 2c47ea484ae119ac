package oci

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

func mountPlan(t testing.TB, m ...specs.Mount) *Plan {
	t.Helper()
	return compile(t, func(s *specs.Spec, _ *Request) { s.Mounts = m })
}

// of are the calls for one field, without those that find the destination.
func of(p *Plan, why string) (list []string) {
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Why == why && slices.Contains([]string{"open_tree", "mount_setattr", "fsconfig", "fsmount", "mount"}, s.Name) {
			text := s.Call.String()
			for k := range s.Args {
				if s.Args[k].Kind == call.KindResult {
					text = strings.ReplaceAll(text, fmt.Sprintf("$%d", s.Args[k].Step), "$")
				}
			}
			list = append(list, text)
		}
	}
	return list
}

func TestOptionsBecomeWhatTheKernelUnderstands(t *testing.T) {
	for _, c := range []struct {
		fstype, options string
		want            []string
	}{
		{"bind", "bind", []string{`open_tree(AT_FDCWD, "/src", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC)`}},
		{"bind", "rbind,rprivate,ro", []string{
			`open_tree(AT_FDCWD, "/src", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE)`,
			`mount_setattr($, "", AT_EMPTY_PATH, {set MOUNT_ATTR_RDONLY, clear MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC|MOUNT_ATTR_NOSYMFOLLOW})`,
			`mount_setattr($, "", AT_EMPTY_PATH|AT_RECURSIVE, {MS_PRIVATE})`}},
		{"bind", "rbind,rw", []string{
			`open_tree(AT_FDCWD, "/src", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE)`,
			`mount_setattr($, "", AT_EMPTY_PATH, {clear MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC|MOUNT_ATTR_NOSYMFOLLOW})`}},
		{"bind", "bind,noatime,nosuid", []string{
			`open_tree(AT_FDCWD, "/src", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC)`,
			`mount_setattr($, "", AT_EMPTY_PATH, {set MOUNT_ATTR_NOSUID|MOUNT_ATTR_NOATIME, clear MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC|MOUNT_ATTR__ATIME|MOUNT_ATTR_NOSYMFOLLOW})`}},
		{"bind", "rbind,rro,rnoatime", []string{
			`open_tree(AT_FDCWD, "/src", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE)`,
			`mount_setattr($, "", AT_EMPTY_PATH|AT_RECURSIVE, {set MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOATIME, clear MOUNT_ATTR__ATIME})`}},
		{"bind", "rbind,rro,rrw,rnodev,rdev", []string{
			`open_tree(AT_FDCWD, "/src", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE)`,
			`mount_setattr($, "", AT_EMPTY_PATH|AT_RECURSIVE, {clear MOUNT_ATTR_RDONLY|MOUNT_ATTR_NODEV})`}},
		{"bind", "bind,rshared,slave", []string{
			`open_tree(AT_FDCWD, "/src", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC)`,
			`mount_setattr($, "", AT_EMPTY_PATH|AT_RECURSIVE, {MS_SHARED})`,
			`mount_setattr($, "", AT_EMPTY_PATH, {MS_SLAVE})`}},
		{"ext4", "ro,sync,noload,data=journal", []string{
			`fsconfig($, FSCONFIG_SET_STRING, "source", "/src", 0)`, `fsconfig($, FSCONFIG_SET_FLAG, "sync", 0, 0)`,
			`fsconfig($, FSCONFIG_SET_FLAG, "ro", 0, 0)`, `fsconfig($, FSCONFIG_SET_FLAG, "noload", 0, 0)`,
			`fsconfig($, FSCONFIG_SET_STRING, "data", "journal", 0)`, `fsconfig($, FSCONFIG_CMD_CREATE, 0, 0, 0)`,
			`fsmount($, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY)`}},
		{"sysfs", "ro", []string{
			`fsconfig($, FSCONFIG_SET_STRING, "source", "/src", 0)`, `fsconfig($, FSCONFIG_CMD_CREATE, 0, 0, 0)`,
			`fsmount($, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY)`}},
		{"tmpfs", "ro,mode=700,nodev,dev,silent,defaults", []string{
			`fsconfig($, FSCONFIG_SET_STRING, "source", "/src", 0)`, `fsconfig($, FSCONFIG_SET_STRING, "mode", "700", 0)`,
			`fsconfig($, FSCONFIG_CMD_CREATE, 0, 0, 0)`, `fsmount($, FSMOUNT_CLOEXEC, 0)`,
			`mount_setattr($, "", AT_EMPTY_PATH, {set MOUNT_ATTR_RDONLY})`}},
		{"overlay", "ro,lowerdir=" + strings.Repeat("/l", 150) + ",index=off", []string{
			`mount("/src", ".", "overlay", MS_RDONLY, "lowerdir=` + strings.Repeat("/l", 150) + `,index=off")`}},
	} {
		p := mountPlan(t, specs.Mount{Destination: "/a", Type: c.fstype, Source: "/src", Options: strings.Split(c.options, ",")})
		got := of(p, "mounts[0]")
		if c.fstype == "overlay" && len(got) == 2 && got[0] == got[1] {
			got = got[:1] // for a destination that is there, and for one that is made
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s %s:\ngot  %s\nwant %s", c.fstype, c.options, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
		}
	}
}

func TestEveryPathOfTheContainerIsOpenedBelowItsRoot(t *testing.T) {
	for _, g := range golden {
		if g.exec != nil || g.spec != "" {
			continue
		}
		spec := readSpec(t, g.plan)
		req := request()
		p, err := Compile(spec, req, g.host)
		if err != nil {
			t.Fatal(err)
		}
		entered := index(t, p, "pivot_root")
		host := []string{req.Bundle, "/snapshots", "overlay", "/sys/fs/cgroup", "/proc/kcore", "/proc/self/fd"}
		if path.IsAbs(spec.Root.Path) {
			host = append(host, spec.Root.Path)
		}
		for _, m := range spec.Mounts {
			if m.Type == "bind" {
				host = append(host, m.Source)
			}
		}
		for _, n := range spec.Linux.Namespaces {
			host = append(host, n.Path)
		}
		for i := range p.Steps[:entered] {
			s := &p.Steps[i]
			if s.Who == Shim || strings.HasPrefix(s.Why, "rootfs[") || s.Name == "openat2" || s.Name == "fsopen" || s.Name == "fsconfig" || s.Name == "keyctl" {
				continue
			}
			for _, a := range s.Args {
				if a.Kind != call.KindIn || a.Form != call.FormString {
					continue
				}
				text := a.Data[:len(a.Data)-1]
				if strings.HasPrefix(text, "/") && text != "/" && !slices.ContainsFunc(host, func(h string) bool { return h != "" && strings.HasPrefix(text, h) }) &&
					!strings.HasPrefix(req.Bundle, text) {
					t.Errorf("%s, step %d: %s believes a path", g.plan, i, s.Call)
				}
				if !strings.HasPrefix(text, "/") && strings.Contains(text, "/") && text != "pts/ptmx" {
					t.Errorf("%s, step %d: %s walks a path", g.plan, i, s.Call)
				}
			}
		}
	}
}

func TestTheRestOfProcIsOutOfBounds(t *testing.T) {
	p := mountPlan(t, specs.Mount{Destination: "/proc/uptime", Source: "/s", Options: []string{"bind"}})
	if len(calls(p, "0x9fa0")) != 0 {
		t.Error("lxcfs' files may be mounted in /proc")
	}
	p = mountPlan(t, specs.Mount{Destination: "/proc", Source: "/s", Options: []string{"bind"}})
	if got := calls(p, "0x9fa0"); len(got) != 1 || !strings.Contains(got[0], "EPERM") {
		t.Errorf("a bind mount on /proc must be of a procfs: %q", got)
	}
	p = mountPlan(t, specs.Mount{Destination: "/link", Source: "/s", Options: []string{"bind"}})
	move := index(t, p, "move_mount")
	var before []string
	for i := range p.Steps[move-4 : move] {
		before = append(before, p.Steps[move-4+i].Name)
	}
	if want := []string{"openat2", "fstatfs", "expect", "expect"}; !slices.Equal(before, want) || len(calls(p, "0x9fa0")) != 1 {
		t.Errorf("what is mounted on was not looked at: %q before move_mount", before)
	}
}

func TestManyLayersAreNamedByTheirCommonParent(t *testing.T) {
	var lower []string
	for i := range 120 {
		lower = append(lower, fmt.Sprintf("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/%d/fs", i))
	}
	p := compile(t, func(_ *specs.Spec, r *Request) {
		r.Rootfs = []Mount{{Type: "overlay", Source: "overlay", Options: []string{"upperdir=/u", "lowerdir=" + strings.Join(lower, ":")}}}
	})
	if len(calls(p, `chdir("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/")`)) != 1 {
		t.Errorf("%q", calls(p, "chdir"))
	}
	m := calls(p, `mount("overlay"`)
	if len(m) != 1 || !strings.Contains(m[0], "upperdir=/u,lowerdir=0/fs:1/fs:2/fs:") {
		t.Errorf("%q", m)
	}
}

func TestNoPropagationOfTheRootReachesTheHost(t *testing.T) {
	for _, how := range []string{"", "rshared", "shared", "rslave", "slave", "runbindable", "unbindable", "rprivate", "private"} {
		p := compile(t, func(s *specs.Spec, _ *Request) {
			s.Linux.RootfsPropagation = how
			s.Mounts = []specs.Mount{
				{Destination: "/both", Source: "/b", Options: []string{"rbind", "rshared"}},
				{Destination: "/in", Source: "/i", Options: []string{"rbind", "rslave"}},
			}
		})
		cut := index(t, p, `mount("", "/", "", MS_REC|MS_`)
		if cut > index(t, p, `mount("overlay"`) || cut > index(t, p, "move_mount") {
			t.Errorf("%s: something is mounted before the host is out of reach", how)
		}
		if both := index(t, p, `open_tree(AT_FDCWD, "/b"`); (both < cut) != strings.HasSuffix(how, "shared") {
			t.Errorf("%s: a source to be shared with the host is opened at %d, the host out of reach at %d", how, both, cut)
		}
		if index(t, p, `open_tree(AT_FDCWD, "/i"`) < cut {
			t.Errorf("%s: a source that is not shared is opened too early", how)
		}
	}
}

func TestThreeHundredMountsHoldNoDescriptors(t *testing.T) {
	var m []specs.Mount
	for i := range 300 {
		m = append(m, specs.Mount{Destination: fmt.Sprintf("/volumes/%d", i), Source: "/s", Options: []string{"rbind", "rprivate", "rw"}})
	}
	one, two, three := mountPlan(t, m[:100]...), mountPlan(t, m[:200]...), mountPlan(t, m...)
	if a, b, c := len(one.Steps), len(two.Steps), len(three.Steps); c-b != b-a {
		t.Errorf("%d steps for 100, %d for 200, %d for 300", a, b, c)
	}
}

func TestADeviceOfAUserIsLookedAtBeforeItIsGivenAway(t *testing.T) {
	uid := uint32(7)
	p := compile(t, func(s *specs.Spec, _ *Request) {
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/srv/dev/x", Type: "b", Major: 7, Minor: 1, UID: &uid}}
	})
	i := index(t, p, "fchownat")
	if got := p.Steps[i-1].Call.String(); !strings.Contains(got, fmt.Sprintf("%#x", 7|1<<32)) {
		t.Error(got)
	}
	mk := index(t, p, `"x", S_IFBLK|0666, 7:1`)
	if !p.Steps[mk].OnError.Tolerates(unix.EEXIST) || mk+1+int(p.Steps[mk].SkipErr) <= i {
		t.Error("a node that was there is given away")
	}
}

func TestABoundDevIsLeftAlone(t *testing.T) {
	p := mountPlan(t, specs.Mount{Destination: "/dev/", Source: "/dev", Options: []string{"rbind"}})
	if got := calls(p, "mknodat", "S_IFCHR"); len(got) != 0 {
		t.Errorf("%q", got)
	}
}
