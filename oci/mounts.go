package oci

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// A target is where a mount goes.
type target struct {
	path    string // below the root, clean, without the leading slash
	kind    targetKind
	proc    procRule
	oldMode bool // the mount's root gets the mode of the directory that it hides
}

type targetKind uint8

const (
	directory targetKind = iota
	ordinary             // a directory whose path has no symbolic link in it
	asSource             // a directory or a file, as the mount's root is
)

// procRule says what of procfs may be mounted on. A container's init writes
// to its /proc as root, and what a mount there hides or fakes has been a way out (CVE-2019-16884, CVE-2019-19921).
type procRule uint8

const (
	notProc procRule = iota
	anyProc
)

// inProc are the files below /proc that may be mounted on: those that lxcfs emulates.
var inProc = map[string]bool{
	"proc/cpuinfo":                 true,
	"proc/diskstats":               true,
	"proc/meminfo":                 true,
	"proc/stat":                    true,
	"proc/swaps":                   true,
	"proc/uptime":                  true,
	"proc/loadavg":                 true,
	"proc/slabinfo":                true,
	"proc/sys/kernel/ns_last_pid":  true,
	"proc/sys/crypto/fips_enabled": true,
}

// inside is the path p as one below a directory: clean, no leading slash.
func inside(p string) string { return path.Clean("/" + p)[1:] }

func (c *compiler) mounts() error {
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		c.at(item("mounts", i), m.Destination)
		c.mount(i, m)
		if c.full() {
			return invalid(c.Why, "more steps than %d", maxSteps)
		}
	}
	return nil
}

func (c *compiler) mount(i int, m *specs.Mount) {
	o := parseOptions(m.Options)
	t := target{path: inside(m.Destination)}
	if inProc[t.path] {
		t.proc = anyProc
	}
	if m.Type == "proc" && t.path == "proc" {
		t.proc = anyProc
	}
	switch {
	case o.remount:
		if t.path == "proc" {
			t.proc = anyProc
		}
		c.remount(&o, t)
	case o.bind:
		t.kind = asSource
		tree, open := c.sources[i]
		if !open {
			tree = c.openSource(m, &o)
			if !c.ns.has(specs.MountNamespace) {
				// The host's mounts have not been made slaves; the clones are.
				c.setattr(tree, o.rec, 0, 0, unix.MS_SLAVE)
			}
		}
		c.bind(tree, &o, t)
	case m.Type == "cgroup" && !c.host.CgroupV2:
		c.cgroupV1(m, &o, t)
	case m.Type == "cgroup":
		if !c.ns.has(specs.CgroupNamespace) && c.host.CgroupFlags != nil {
			// In the host's cgroup namespace what a mount does not name is taken from the host's file system too.
			o.super = append(slices.Clip(o.super), c.host.CgroupFlags()...)
		}
		c.fresh("cgroup2", m.Source, &o, t)
	default:
		if m.Type == "proc" || m.Type == "sysfs" {
			t.kind = ordinary
		}
		t.oldMode = m.Type == "tmpfs" && !has(o.data, "mode")
		c.fresh(m.Type, m.Source, &o, t)
	}
}

// remount changes the mount at t, which must be there; the kernel says EINVAL if none has its root there. With
// options of a file system that is changed too, for all its mounts, and the mount has no attributes but those that are named, as with mount(2).
func (c *compiler) remount(o *mountOptions, t target) {
	at := call.ResultOf(c.do(call.Openat2(c.root, t.path, oPath, 0, inRoot)))
	c.guardProc(at, t)
	if len(o.data)+len(o.super) > 0 && !o.bind {
		c.do(call.Fchdir(at))
		c.do(call.Mount("", ".", "", o.ms|unix.MS_REMOUNT, strings.Join(o.data, ",")))
	} else if set, clear := o.bindAttrs(); set|clear != 0 {
		c.setattr(at, false, set, clear, 0)
	}
	if o.recSet|o.recClear != 0 {
		c.setattr(at, true, o.recSet, o.recClear, 0)
	}
	for _, p := range o.propagation {
		c.setattr(at, p.rec, 0, 0, p.flag)
	}
	c.close(at)
}

// openSource clones what a bind mount is of.
func (c *compiler) openSource(m *specs.Mount, o *mountOptions) call.Arg {
	source := m.Source
	if !path.IsAbs(source) {
		source = path.Join(c.req.Bundle, source)
	}
	f := uint(treeClone)
	if o.rec {
		f |= unix.AT_RECURSIVE
	}
	tree := call.ResultOf(c.do(call.OpenTree(call.CWD, source, f)))
	if o.idmap || len(m.UIDMappings) > 0 {
		c.idmapMount(tree, c.mountMap(m), o.ridmap)
	}
	return tree
}

// bind makes a bind mount of tree.
func (c *compiler) bind(tree call.Arg, o *mountOptions, t target) {
	if t.path == "proc" {
		// Only a procfs may stand on /proc.
		st := c.do(call.Fstatfs(tree))
		c.do(call.Expect(call.WordOf(st, 1, 0), ^uint64(0), unix.PROC_SUPER_MAGIC, unix.EPERM))
		t.proc = anyProc
	}
	if set, clear := o.bindAttrs(); set|clear != 0 {
		c.setattr(tree, false, set, clear, 0)
	}
	if o.recSet|o.recClear != 0 {
		c.setattr(tree, true, o.recSet, o.recClear, 0)
	}
	for _, p := range o.propagation {
		c.setattr(tree, p.rec, 0, 0, p.flag)
	}
	c.attach(tree, t)
	c.close(tree)
}

// fresh mounts a new file system.
func (c *compiler) fresh(fstype, source string, o *mountOptions, t target) {
	if o.long(source) {
		c.freshOld(fstype, source, o, t)
		return
	}
	attrs := o.attrs()
	late := attrs&unix.MOUNT_ATTR_RDONLY != 0 && (fstype == "tmpfs" || t.path == "dev")
	if late {
		// What comes later makes its mount points and devices there.
		attrs &^= unix.MOUNT_ATTR_RDONLY
	}
	var mnt call.Arg
	if label := c.spec.Linux.MountLabel; fstype == "mqueue" && label != "" {
		mnt = c.newMount(fstype, source, o, attrs&^unix.MOUNT_ATTR_RDONLY)
		c.labelFile(mnt, label)
		if attrs&unix.MOUNT_ATTR_RDONLY != 0 {
			c.setattr(mnt, false, unix.MOUNT_ATTR_RDONLY, 0, 0)
		}
	} else {
		mnt = c.newMount(fstype, source, o, attrs)
	}
	for _, p := range o.propagation {
		c.setattr(mnt, p.rec, 0, 0, p.flag)
	}
	if o.copyUp {
		dir := c.makeDirs(c.root, t.path, resolution(t))
		c.shim(CopyUp, dir, mnt)
		c.closeUnless(dir, c.root)
	}
	c.attach(mnt, t)
	if late {
		c.late = append(c.late, lateReadonly{mnt, c.Reason})
		return
	}
	c.close(mnt)
}

// newMount makes a file system and a detached mount of it.
func (c *compiler) newMount(fstype, source string, o *mountOptions, attrs uint64) call.Arg {
	fs := call.ResultOf(c.do(call.Fsopen(fstype, unix.FSOPEN_CLOEXEC)))
	if source != "" {
		c.do(call.FsconfigString(fs, "source", source))
	}
	if label := c.context(fstype, o.data); label != "" {
		c.do(call.FsconfigString(fs, "context", label))
	}
	if fstype == "proc" && c.pidns != nil {
		c.do(call.FsconfigFD(fs, "pidns", *c.pidns))
	}
	for _, s := range o.super {
		if s == "noiversion" {
			continue // nothing but iversion makes it otherwise
		}
		c.do(call.FsconfigFlag(fs, s))
	}
	if attrs&unix.MOUNT_ATTR_RDONLY != 0 && !sharedSuper[fstype] {
		c.do(call.FsconfigFlag(fs, "ro"))
	}
	for _, d := range o.data {
		for d := range strings.SplitSeq(d, ",") {
			if k, v, ok := strings.Cut(d, "="); ok {
				c.do(call.FsconfigString(fs, k, v))
			} else if d != "" {
				c.do(call.FsconfigFlag(fs, d))
			}
		}
	}
	c.do(call.FsconfigCreate(fs))
	mnt := call.ResultOf(c.do(call.Fsmount(fs, unix.FSMOUNT_CLOEXEC, uint(attrs))))
	c.close(fs)
	return mnt
}

// sharedSuper are the file systems of which a namespace has one superblock. To make that
// read-only would make it so for the next container in the namespace, a privileged one say.
var sharedSuper = map[string]bool{"proc": true, "sysfs": true, "mqueue": true, "cgroup": true, "cgroup2": true}

// freshOld is fresh by mount(2), which takes a page of options.
func (c *compiler) freshOld(fstype, source string, o *mountOptions, t target) {
	ms, late := o.ms, false
	if ms&unix.MS_RDONLY != 0 && (fstype == "tmpfs" || t.path == "dev") {
		ms, late = ms&^unix.MS_RDONLY, true
	}
	dir := c.find(t, call.Null)
	c.do(call.Fchdir(dir))
	data := o.data
	if label := c.context(fstype, data); label != "" {
		// In quotes, for the commas in it.
		data = append(data[:len(data):len(data)], `context="`+label+`"`)
	}
	c.do(call.Mount(source, ".", fstype, ms, strings.Join(data, ",")))
	c.close(dir)
	if len(o.propagation) == 0 && !late {
		return
	}
	mnt := call.ResultOf(c.do(call.Openat2(c.root, t.path, oPath, 0, resolution(t))))
	for _, p := range o.propagation {
		c.setattr(mnt, p.rec, 0, 0, p.flag)
	}
	if late {
		c.late = append(c.late, lateReadonly{mnt, c.Reason})
		return
	}
	c.close(mnt)
}

// attach puts a detached mount on its target, making that if need be.
func (c *compiler) attach(mnt call.Arg, t target) {
	at := c.find(t, mnt)
	c.moveMount(mnt, at)
	c.close(at)
}

func resolution(t target) uint64 {
	if t.kind == ordinary {
		return plain
	}
	return inRoot
}

// find opens a mount's target, making it if it is not there. It is opened once more when it is known to be there, so that
// what follows is the same steps for both ways: of many mounts most of the time goes into making up and passing on steps.
func (c *compiler) find(t target, mnt call.Arg) call.Arg {
	flags, resolve := oPath, resolution(t)
	if t.kind == ordinary {
		flags = oDir
	}
	there := c.try(call.Openat2(c.root, t.path, flags, 0, resolve), mayBeMissing)
	at := call.ResultOf(there)
	if t.oldMode && mnt.Kind != call.KindInt {
		st := c.do(call.Statx(at, "", unix.AT_EMPTY_PATH, unix.STATX_MODE))
		chmod := call.Fchmodat(mnt, ".", 0)
		chmod.Args[2] = call.Int32Of(st, 4, call.StatxModeOff)
		chmod.Args[2].Form = call.FormOctal
		c.do(chmod)
	}
	end := c.close(at)
	c.errHere(there)

	dir, name := path.Split(t.path)
	parent := c.makeDirs(c.root, dir, resolve)
	if t.kind == asSource {
		c.makeLike(parent, name, mnt)
	} else {
		c.try(call.Mkdirat(parent, name, 0o755), mayExist)
	}
	c.closeUnless(parent, c.root)
	c.okHere(end)
	at = call.ResultOf(c.do(call.Openat2(c.root, t.path, flags, 0, resolve)))
	c.guardProc(at, t)
	return at
}

// guardProc stops if at is of a procfs, wherever that is mounted and however the path led there.
func (c *compiler) guardProc(at call.Arg, t target) {
	if t.proc == anyProc {
		return
	}
	st := c.do(call.Fstatfs(at))
	is := c.try(call.Expect(call.WordOf(st, 1, 0), ^uint64(0), unix.PROC_SUPER_MAGIC, unix.EXDEV), call.Tolerate(unix.EXDEV))
	c.fails(unix.EPERM)
	c.errHere(is)
}

// makeDirs makes the directories of a path below root and opens the last. The
// path is walked from root each time, so that a symbolic link in it leads where it would in the container.
//
// Many mounts are in few directories: it begins with what steps before have made, or have found there. That is mended if a mount
// has hidden it since.
func (c *compiler) makeDirs(root call.Arg, p string, resolve uint64) call.Arg {
	p = strings.TrimSuffix(p, "/")
	mend := resolve&unix.RESOLVE_NO_SYMLINKS == 0
	open := func(dir string) call.Arg {
		step := c.do(call.Openat2(root, dir, oDir, 0, resolve))
		c.Steps[step].Mend = mend
		c.made[dir] = c.made[dir] || mend
		return call.ResultOf(step)
	}
	made := p
	for made != "" && !(mend && c.made[made]) {
		made = made[:max(strings.LastIndexByte(made, '/'), 0)]
	}
	cur, i := root, 0
	if made != "" {
		cur, i = open(made), len(made)+1
	}
	for i < len(p) {
		n := strings.IndexByte(p[i:], '/')
		if n < 0 {
			n = len(p) - i
		}
		c.try(call.Mkdirat(cur, p[i:i+n], 0o755), mayExist)
		next := open(p[:i+n])
		c.closeUnless(cur, root)
		cur = next
		i += n + 1
	}
	return cur
}

func (c *compiler) closeUnless(fd, keep call.Arg) {
	if fd.Kind != keep.Kind || fd.Step != keep.Step || fd.Int != keep.Int {
		c.close(fd)
	}
}

// makeLike makes a directory if the root of mnt is one, and an empty file otherwise.
func (c *compiler) makeLike(parent call.Arg, name string, mnt call.Arg) {
	st := c.do(call.Statx(mnt, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE))
	isDir := c.try(call.Expect(call.Int32Of(st, 4, call.StatxModeOff), unix.S_IFMT, unix.S_IFDIR, unix.ENOTDIR), call.Tolerate(unix.ENOTDIR))
	mkdir := c.try(call.Mkdirat(parent, name, 0o755), mayExist)
	c.errHere(isDir)
	c.try(call.Mknodat(parent, name, unix.S_IFREG|0o644, 0), mayExist)
	c.okHere(mkdir)
	c.errHere(mkdir)
}

// has says whether the options of a file system contain a key.
func has(data []string, key string) bool {
	for _, d := range data {
		for d := range strings.SplitSeq(d, ",") {
			if k, _, _ := strings.Cut(d, "="); k == key {
				return true
			}
		}
	}
	return false
}
