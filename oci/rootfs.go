package oci

import (
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// A Mount is a mount of the root file system, as containerd's create request has it.
type Mount struct {
	Type, Source, Target string
	Options              []string
}

// pageSize bounds mount(2)'s options. Pages may be larger elsewhere; not smaller.
const pageSize = 4096

// rootfs makes the root file system and opens it. The mount table is the child's own copy by now.
func (c *compiler) rootfs() error {
	if c.ns.has(specs.UserNamespace) {
		// The parent has made it, and it is the working directory. As it is here it is not to be moved
		// by the user namespace, but a clone of it is.
		c.at("root.path", c.rootPath())
		dir := call.ResultOf(c.do(call.Openat(call.CWD, ".", oDir, 0)))
		c.bindRoot(dir)
		c.do(call.Chdir("/"))
		return nil
	}
	c.openShared()
	dir, mounted, err := c.hostRoot()
	if err != nil {
		return err
	}
	if !c.ns.has(specs.MountNamespace) {
		c.bindOnHost(dir)
		return nil
	}
	if mounted {
		c.root = dir
		return nil
	}
	c.bindRoot(dir)
	return nil
}

// HostMounts is where the root file system of a container in the host's mount namespace is mounted. All mounts of the
// container are below, and all that are there are its.
func HostMounts(spec *specs.Spec, bundle string) (dir string, ok bool) {
	if ns := namespacesOf(spec); ns.has(specs.MountNamespace) {
		return "", false
	}
	return path.Join(bundle, "rootfs"), true
}

// bindOnHost binds the root to HostMounts, private: what comes below is in no other namespace's view.
func (c *compiler) bindOnHost(dir call.Arg) {
	home, _ := HostMounts(c.spec, c.req.Bundle)
	c.root = call.ResultOf(c.do(call.OpenTree(dir, "", treeCloneFD|unix.AT_RECURSIVE)))
	c.close(dir)
	c.try(call.Mkdirat(call.CWD, home, 0o711), mayExist)
	at := call.ResultOf(c.do(call.Openat(call.CWD, home, oDir|unix.O_NOFOLLOW, 0)))
	c.moveMount(c.root, at)
	c.close(at)
	c.setattr(c.root, true, 0, 0, unix.MS_PRIVATE)
}

// bindRoot makes of a directory the mount point that pivot_root wants, by binding it onto itself.
func (c *compiler) bindRoot(dir call.Arg) {
	c.root = call.ResultOf(c.do(call.OpenTree(dir, "", treeCloneFD|unix.AT_RECURSIVE)))
	c.setattr(c.root, false, 0, 0, unix.MS_PRIVATE)
	c.moveMount(c.root, dir)
	c.close(dir)
}

// hostRoot mounts the root file system where the host has its paths, and opens it. It may be a mount of its own.
func (c *compiler) hostRoot() (dir call.Arg, isMount bool, err error) {
	if c.ns.has(specs.MountNamespace) {
		c.at("linux.rootfsPropagation", c.spec.Linux.RootfsPropagation)
		// Nothing that is mounted from here on is seen on the host.
		flag := uint64(unix.MS_SLAVE)
		if propagationOptions[c.spec.Linux.RootfsPropagation].flag == unix.MS_PRIVATE {
			flag = unix.MS_PRIVATE
		}
		c.do(call.Mount("", "/", "", uintptr(flag)|unix.MS_REC, ""))
	}

	c.at("root", "")
	mounted := path.Join(c.req.Bundle, "rootfs")
	if len(c.req.Rootfs) > 0 {
		c.try(call.Mkdirat(call.CWD, mounted, 0o711), mayExist)
		for i := range c.req.Rootfs {
			c.at(item("rootfs", i), c.req.Rootfs[i].Source)
			if err := c.rootMount(i, mounted); err != nil {
				return dir, false, err
			}
		}
		c.showOnHost(mounted)
	}
	root := c.rootPath()
	c.at("root.path", root)
	// A link in its place is refused, as by runc.
	dir = call.ResultOf(c.do(call.Openat(call.CWD, root, oDir|unix.O_NOFOLLOW, 0)))
	return dir, len(c.req.Rootfs) > 0 && path.Clean(root) == mounted, nil
}

// showOnHost gives the shim a copy of the root file system's mounts, which it alone can put into the host's table.
func (c *compiler) showOnHost(mounted string) {
	if !c.req.HostRootfs || !c.ns.has(specs.MountNamespace) {
		return
	}
	c.at("rootfs", mounted)
	tree := call.ResultOf(c.do(call.OpenTree(call.CWD, mounted, treeClone|unix.AT_RECURSIVE)))
	c.shim(HostRootfs, tree)
	c.close(tree)
}

// openShared opens the sources of the bind mounts whose events are to be seen on the host as well. That has to
// be while this namespace's mounts still are the peers of the host's: what is cloned from them is too, and stays so.
func (c *compiler) openShared() {
	if propagationOptions[c.spec.Linux.RootfsPropagation].flag != unix.MS_SHARED {
		return
	}
	c.sources = make(map[int]call.Arg)
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		o := parseOptions(m.Options)
		if n := len(o.propagation); o.binds() && (n == 0 || o.propagation[n-1].flag == unix.MS_SHARED) {
			c.at(item("mounts", i), m.Destination)
			c.sources[i] = c.openSource(m, &o)
		}
	}
}

// rootMount does one mount of the create request.
func (c *compiler) rootMount(i int, mounted string) error {
	m := &c.req.Rootfs[i]
	o := parseOptions(m.Options)
	if o.remount || o.copyUp || o.idmap {
		return invalid(c.Why+".options", "not those of a root file system")
	}
	if strings.HasPrefix(m.Type, "fuse.") || strings.HasPrefix(m.Type, "fuse3.") {
		return notYet(c.Why + ".type: " + m.Type)
	}
	for _, s := range m.Options {
		if strings.HasPrefix(s, "X-containerd.") {
			// containerd's mount manager does these before it asks for a task; one that comes here it has not done.
			return notYet(c.Why + ".options: " + s + ", which is containerd's mount manager's")
		}
	}
	for _, prefix := range []string{"format/", "mkfs/", "mkdir/"} {
		if strings.HasPrefix(m.Type, prefix) {
			return notYet(c.Why + ".type: " + m.Type + ", which is containerd's mount manager's")
		}
	}
	idmapped, err := rootMap(c.Why, &o)
	if err != nil {
		return err
	}
	if o.loop && (o.bind || !path.IsAbs(m.Source)) {
		return invalid(c.Why+".options", "loop is for the file system in a file of an absolute path")
	}
	if m.ofDevice(&o) {
		if idmapped != nil {
			return notYet(c.Why + ".options: uidmap of a " + m.Type)
		}
		mnt, made := c.devices[i]
		if !made {
			mnt = c.deviceMount(m, o)
		}
		at := c.openTarget(m, mounted)
		c.moveMount(mnt, at)
		c.close(at)
		c.close(mnt)
		return nil
	}
	if o.bind {
		f := uint(treeClone)
		if o.rec {
			f |= unix.AT_RECURSIVE
		}
		tree := call.ResultOf(c.do(call.OpenTree(call.CWD, m.Source, f)))
		if idmapped != nil {
			c.idmapMount(tree, *idmapped, o.rec)
		}
		var set uint64
		if o.set&unix.MOUNT_ATTR_RDONLY != 0 {
			set = o.attrs()
		}
		c.setattr(tree, false, set, 0, unix.MS_PRIVATE)
		at := c.openTarget(m, mounted)
		c.moveMount(tree, at)
		c.close(at)
		c.close(tree)
		return nil
	}
	data := strings.Join(o.data, ",")
	dir := ""
	switch {
	case idmapped != nil && (m.Type != "overlay" || m.Target != ""):
		return notYet(c.Why + ".options: uidmap of a " + m.Type)
	case idmapped != nil:
		if data, err = c.mapLower(o.data, *idmapped, mounted); err != nil {
			return err
		}
	case len(data) >= pageSize && m.Type == "overlay":
		dir, data = shortenLower(o.data)
	}
	if len(data) >= pageSize {
		return invalid(c.Why+".options", "%d bytes are more than a page", len(data))
	}
	if m.Target == "" {
		if dir != "" {
			c.do(call.Chdir(dir))
		}
		c.do(call.Mount(m.Source, mounted, m.Type, o.ms, data))
	} else {
		if dir != "" {
			return notYet(c.Why + ".target: with as many layers")
		}
		at := c.openTarget(m, mounted)
		c.do(call.Fchdir(at))
		c.do(call.Mount(m.Source, ".", m.Type, o.ms, data))
		c.close(at)
	}
	if dir != "" || m.Target != "" || idmapped != nil {
		c.do(call.Chdir("/"))
	}
	return nil
}

func (c *compiler) openTarget(m *Mount, mounted string) call.Arg {
	at := call.ResultOf(c.do(call.Openat(call.CWD, mounted, oDir, 0)))
	if t := inside(m.Target); t != "" {
		below := call.ResultOf(c.do(call.Openat2(at, t, oDir, 0, inRoot)))
		c.close(at)
		at = below
	}
	return at
}

// shortenLower makes an overlay's lower directories relative to their common parent, in which mount(2) then is called.
func shortenLower(data []string) (dir, short string) {
	for i, d := range data {
		list, ok := strings.CutPrefix(d, "lowerdir=")
		if !ok {
			continue
		}
		lower := strings.Split(list, ":")
		dir = lower[0]
		for _, l := range lower[1:] {
			n := 0
			for n < len(dir) && n < len(l) && dir[n] == l[n] {
				n++
			}
			dir = dir[:n]
		}
		dir = dir[:strings.LastIndexByte(dir, '/')+1]
		if len(dir) <= 1 {
			break
		}
		for j := range lower {
			lower[j] = lower[j][len(dir):]
			if lower[j] == "" {
				lower[j] = "."
			}
		}
		out := append([]string(nil), data...)
		out[i] = "lowerdir=" + strings.Join(lower, ":")
		return dir, strings.Join(out, ",")
	}
	return "", strings.Join(data, ",")
}

// enter makes the root file system the root.
func (c *compiler) enter() {
	c.at("root.path", "")
	c.do(call.Fchdir(c.root))
	prop := propagationOptions[c.spec.Linux.RootfsPropagation]
	if !c.ns.has(specs.MountNamespace) {
		// The root of the host's namespace stays.
		c.do(call.Chroot("."))
		c.do(call.Chdir("/"))
	} else if c.req.NoPivotRoot {
		// The host's tree stays below; without its own proc and sys the container's are not a second
		// way to them.
		for _, p := range []string{"/proc", "/sys"} {
			c.try(call.Mount("", p, "", unix.MS_SLAVE|unix.MS_REC, ""), call.Ignore)
			c.try(call.Umount2(p, unix.MNT_DETACH), call.Ignore)
		}
		c.do(call.MoveMount(c.root, "", call.CWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH))
		c.do(call.Chroot("."))
		c.do(call.Chdir("/"))
	} else {
		// The old root comes to lie on top of the new one, where "." is.
		c.do(call.PivotRoot(".", "."))
		c.do(call.Umount2(".", unix.MNT_DETACH))
		c.do(call.Chdir("/"))
	}
	if prop.flag != 0 && prop.flag != unix.MS_PRIVATE {
		c.at("linux.rootfsPropagation", c.spec.Linux.RootfsPropagation)
		f := uintptr(prop.flag)
		if prop.rec {
			f |= unix.MS_REC
		}
		c.do(call.Mount("", "/", "", f, ""))
	}
}
