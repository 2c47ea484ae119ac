package oci

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// In a user namespace of its own the child has no rights over what is the host's: it can't mount the root file
// system, look into the directories of the host's root, or make a device. So its parent is a process for itself, with all the
// rights of ours and a mount namespace of its own, or the one that the container joins, in which it prepares all that takes them: it joins namespaces, mounts
// the root file system, and opens the sources of bind mounts and the host's devices as mounts that are
// nowhere yet. Then it clones the child into all the new namespaces at once, so that they belong to the new user namespace, and goes
// away. The child has the parent's descriptors and, as its own copy, its mounts.
//
// A time namespace that is new is entered by a child of the process that made it and set its clocks, so it has a parent too. So
// has a root file system on a block device, see blockdev.go.

func hasUserNS(spec *specs.Spec) bool {
	n := namespacesOf(spec)
	return n.has(specs.UserNamespace)
}

// parent is what the parent does.
func (c *compiler) parent() error {
	user, time := c.ns.has(specs.UserNamespace), c.ns.has(specs.TimeNamespace)
	devices := c.onDevices()
	if !user && !time && !devices {
		return nil
	}
	flags, joins := 0, 0
	if user && c.ns.isNew(specs.MountNamespace) {
		flags = unix.CLONE_NEWNS
	}
	if time {
		joins = unix.CLONE_NEWTIME
	}
	c.at("linux.namespaces", "")
	c.shim(CloneParent, call.Arg{Int: int64(flags), Form: call.FormClone}, call.Arg{Int: int64(joins), Form: call.FormClone})
	c.outside = true
	defer func() { c.outside = false }()

	c.at("process", "")
	c.do(call.Umask(0))
	if c.ns.isNew(specs.TimeNamespace) {
		c.newTime()
	}
	if devices {
		c.openDevices()
	}
	userns := c.parentJoins(user)
	if !user {
		return nil
	}
	if err := c.prepare(); err != nil {
		return err
	}
	if i := nsIndex(specs.UserNamespace); c.ns[i].path != "" {
		// Last, for the rights over everything else end here.
		c.at(c.ns[i].why, c.ns[i].path)
		c.do(call.Setns(userns, unix.CLONE_NEWUSER))
		c.close(userns)
		if l := c.spec.Linux; len(l.UIDMappings) > 0 {
			c.at("linux.uidMappings", "")
			c.shim(CheckMaps, call.String(mapText(l.UIDMappings)), call.String(mapText(l.GIDMappings)))
		}
	}
	return nil
}

// newTime makes the time namespace. Its clocks can be set as long as nobody is in it.
func (c *compiler) newTime() {
	i := nsIndex(specs.TimeNamespace)
	c.at(c.ns[i].why, "")
	c.do(call.Unshare(unix.CLONE_NEWTIME))
	c.joined[i] = true
	var b strings.Builder
	for _, clock := range timeClocks {
		if o, ok := c.spec.Linux.TimeOffsets[clock]; ok {
			fmt.Fprintf(&b, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
		}
	}
	if b.Len() > 0 {
		c.at("linux.timeOffsets", "")
		c.shim(WriteProc, call.String("timens_offsets"), call.String(b.String()))
	}
}

// timeClocks are the clocks that a time namespace has an offset for.
var timeClocks = []string{"monotonic", "boottime"}

// parentJoins joins what the child's user namespace might not let it join, and what can't be joined but by a
// parent. The user namespace is left open.
func (c *compiler) parentJoins(user bool) (userns call.Arg) {
	var fds [len(nsTypes)]call.Arg
	var list []int
	c.handed = make(map[int]call.Arg)
	for i, t := range nsTypes {
		if c.ns[i].path == "" {
			continue
		}
		born := t.name == specs.PIDNamespace && c.place != notBorn
		if user || t.name == specs.TimeNamespace || t.name == specs.PIDNamespace && !born {
			fds[i] = c.openNamespace(i)
			if born || t.name == specs.CgroupNamespace {
				// With a birth the child is to stay outside of the PID namespace. And with cgroup v2's nsdelegate nobody in a
				// cgroup namespace has a child in a cgroup of it without being there himself.
				c.handed[i] = fds[i]
				continue
			}
			c.joined[i] = true
			list = append(list, i)
		}
	}
	for _, i := range list {
		if nsTypes[i].name == specs.UserNamespace {
			continue
		}
		c.at(c.ns[i].why, c.ns[i].path)
		c.do(call.Setns(fds[i], nsTypes[i].flag))
		c.close(fds[i])
	}
	return fds[nsIndex(specs.UserNamespace)]
}

// prepare makes the root file system and opens what of the host is mounted in the container.
func (c *compiler) prepare() error {
	// Which of the mounts stay peers of the host's is as in a container without a user namespace.
	c.openShared()
	dir, _, err := c.hostRoot()
	if err != nil {
		return err
	}
	if c.sources == nil {
		c.sources = make(map[int]call.Arg)
	}
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		o := parseOptions(m.Options)
		if _, open := c.sources[i]; !o.binds() || open {
			continue
		}
		c.at(item("mounts", i), m.Destination)
		c.sources[i] = c.openSource(m, &o)
		if c.full() {
			return invalid(c.Why, "more steps than %d", maxSteps)
		}
	}
	if err := c.openNodes(); err != nil {
		return err
	}
	c.closeIDMaps()
	// A new mount namespace is a copy of this one, and the working directory is then in the copy.
	c.at("root.path", c.rootPath())
	c.do(call.Fchdir(dir))
	c.close(dir)
	return nil
}

// openNodes opens the devices of the host that the container has: it can't make its own. What the
// config says of their owners and modes would be the host's devices', so it does not count.
func (c *compiler) openNodes() error {
	if _, bound := c.devMounted(); bound {
		return nil
	}
	c.nodes = make(map[string]call.Arg)
	for i := range c.spec.Linux.Devices {
		d := &c.spec.Linux.Devices[i]
		p := inside(d.Path)
		if _, open := c.nodes[p]; open || p == "dev/ptmx" || d.Type == "p" {
			continue
		}
		c.at(item("linux.devices", i), d.Path)
		c.openNode(p, deviceKind(d.Type), uint32(d.Major), uint32(d.Minor))
		if c.full() {
			return invalid(c.Why, "more steps than %d", maxSteps)
		}
	}
	for _, d := range defaultDevices {
		p := "dev/" + d.name
		if _, open := c.nodes[p]; !open {
			c.at("linux.devices", "/"+p)
			c.openNode(p, unix.S_IFCHR, d.major, d.minor)
		}
	}
	return nil
}

// openNode clones the mount of a device; it must be the one that is meant.
func (c *compiler) openNode(p string, kind, major, minor uint32) {
	tree := call.ResultOf(c.do(call.OpenTree(call.CWD, "/"+p, treeClone)))
	st := c.do(call.Statx(tree, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS))
	c.do(call.Expect(call.Int32Of(st, 4, call.StatxModeOff), unix.S_IFMT, uint64(kind), unix.ENODEV))
	c.expectRdev(st, major, minor)
	c.nodes[p] = tree
}

// bindNode mounts a device on a file of the directory parent.
func (c *compiler) bindNode(tree, parent call.Arg, name string) {
	c.try(call.Mknodat(parent, name, unix.S_IFREG|0o666, 0), mayExist)
	at := call.ResultOf(c.do(call.Openat2(parent, name, oPath|unix.O_NOFOLLOW, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)))
	c.moveMount(tree, at)
	c.close(at)
	c.close(tree)
}

// writeMaps gives a new user namespace its maps. Written by us they need no setgroups of deny.
func (c *compiler) writeMaps() {
	if c.exec || !c.ns.isNew(specs.UserNamespace) {
		return
	}
	l := c.spec.Linux
	c.at("linux.uidMappings", "")
	c.shim(WriteProc, call.String("uid_map"), call.String(mapText(l.UIDMappings)))
	c.at("linux.gidMappings", "")
	c.shim(WriteProc, call.String("gid_map"), call.String(mapText(l.GIDMappings)))
}

// helpInUserNS is what the shim does for a process that has no right to it.
func (c *compiler) helpInUserNS() {
	if !hasUserNS(c.spec) {
		return
	}
	for i, r := range c.proc.Rlimits {
		c.at(item("process.rlimits", i), r.Type)
		c.shim(RaiseRlimit, call.Arg{Int: int64(rlimits[r.Type]), Form: call.FormRlimit}, call.Int(r.Hard))
	}
	if !c.proc.Terminal && c.req.Fifos != [3]bool{} {
		c.at("process.user", "")
		c.shim(ChownStdio, call.Int(c.proc.User.UID))
	}
}

// becomeRoot makes the child root in its user namespace: what it makes there is to belong to someone. A
// change of credentials takes back that it dies with us.
func (c *compiler) becomeRoot() {
	if !hasUserNS(c.spec) {
		return
	}
	c.at("process", "root of the user namespace")
	c.do(call.Setgroups(nil))
	c.do(call.Setresgid(0, 0, 0))
	c.do(call.Setresuid(0, 0, 0))
	c.do(call.Prctl(unix.PR_SET_PDEATHSIG, call.Int(int(unix.SIGKILL))))
}

// mapText is a map as the kernel reads it.
func mapText(list []specs.LinuxIDMapping) string {
	var b strings.Builder
	for _, m := range list {
		fmt.Fprintf(&b, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return b.String()
}

// An idmap is the user namespace that a mount is idmapped by: new with maps, or that of a path.
type idmap struct{ uid, gid, path string }

// mountMap is that of a bind mount: its own, or the container's.
func (c *compiler) mountMap(m *specs.Mount) idmap {
	l := c.spec.Linux
	switch {
	case len(m.UIDMappings) > 0:
		return idmap{uid: mapText(m.UIDMappings), gid: mapText(m.GIDMappings)}
	case len(l.UIDMappings) > 0:
		return idmap{uid: mapText(l.UIDMappings), gid: mapText(l.GIDMappings)}
	}
	return idmap{path: c.ns[nsIndex(specs.UserNamespace)].path}
}

// idmapMount has a mount that is nowhere yet show the owners of its files through k.
func (c *compiler) idmapMount(mount call.Arg, k idmap, recursive bool) {
	ns, ok := c.idmaps[k]
	if !ok {
		if k.path != "" {
			ns = call.ResultOf(c.shim(IDMapOf, call.String(k.path)))
		} else {
			ns = call.ResultOf(c.shim(IDMap, call.String(k.uid), call.String(k.gid)))
		}
		if c.idmaps == nil {
			c.idmaps = make(map[idmap]call.Arg)
		}
		c.idmaps[k] = ns
		c.idmapOrder = append(c.idmapOrder, k)
	}
	f := uint(unix.AT_EMPTY_PATH)
	if recursive {
		f |= unix.AT_RECURSIVE
	}
	c.do(call.MountSetattrIDMap(mount, "", f, ns))
}

func (c *compiler) closeIDMaps() {
	for _, k := range c.idmapOrder {
		c.at("mounts", "uidMappings")
		c.close(c.idmaps[k])
	}
	c.idmaps, c.idmapOrder = nil, nil
}

// maxMaps and a page are what the kernel takes.
const maxMaps = 340

func validateMaps(field string, list []specs.LinuxIDMapping) error {
	if len(list) > maxMaps || len(mapText(list)) >= pageSize {
		return invalid(field, "%d ranges are more than the kernel takes", len(list))
	}
	for i, m := range list {
		f := item(field, i)
		switch {
		case m.Size == 0:
			return invalid(f+".size", "0")
		case uint64(m.ContainerID)+uint64(m.Size) > math.MaxUint32:
			return invalid(f+".containerID", "%d and the %d behind it are not all IDs", m.ContainerID, m.Size)
		case uint64(m.HostID)+uint64(m.Size) > math.MaxUint32:
			return invalid(f+".hostID", "%d and the %d behind it are not all IDs", m.HostID, m.Size)
		}
		for j, o := range list[:i] {
			if m.ContainerID < o.ContainerID+o.Size && o.ContainerID < m.ContainerID+m.Size ||
				m.HostID < o.HostID+o.Size && o.HostID < m.HostID+m.Size {
				return invalid(f, "overlaps with %s", item(field, j))
			}
		}
	}
	return nil
}

func isMapped(list []specs.LinuxIDMapping, id uint32) bool {
	return slices.ContainsFunc(list, func(m specs.LinuxIDMapping) bool { return id >= m.ContainerID && id-m.ContainerID < m.Size })
}

func validateUserNS(spec *specs.Spec) error {
	l := spec.Linux
	if l == nil {
		return nil
	}
	ns := namespacesOf(spec)
	if !ns.has(specs.UserNamespace) {
		for _, f := range []struct {
			name string
			list []specs.LinuxIDMapping
		}{{"linux.uidMappings", l.UIDMappings}, {"linux.gidMappings", l.GIDMappings}} {
			if len(f.list) > 0 {
				return invalid(f.name, "without a user namespace")
			}
		}
	} else {
		if ns.isNew(specs.UserNamespace) && len(l.UIDMappings) == 0 {
			return invalid("linux.uidMappings", "missing, of a new user namespace")
		}
		if len(l.UIDMappings) > 0 != (len(l.GIDMappings) > 0) {
			return invalid("linux.gidMappings", "without uidMappings, or these without it")
		}
		if err := validateMaps("linux.uidMappings", l.UIDMappings); err != nil {
			return err
		}
		if err := validateMaps("linux.gidMappings", l.GIDMappings); err != nil {
			return err
		}
		if err := validateMapped(spec, spec.Process); err != nil {
			return err
		}
	}
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if o := parseOptions(m.Options); o.idmap && len(m.UIDMappings) == 0 && !ns.has(specs.UserNamespace) {
			return invalid(item("mounts", i)+".uidMappings", "missing, and the container has no user namespace")
		}
		// A list that is there and empty is not one that is left out, as in runc.
		if (m.UIDMappings != nil || m.GIDMappings != nil) && len(m.UIDMappings) == 0 {
			return invalid(item("mounts", i)+".uidMappings", "of no ranges")
		}
		for _, f := range []struct {
			name string
			list []specs.LinuxIDMapping
		}{{".uidMappings", m.UIDMappings}, {".gidMappings", m.GIDMappings}} {
			if err := validateMaps(item("mounts", i)+f.name, f.list); err != nil {
				return err
			}
		}
	}
	return nil
}

// validateMapped refuses a process whose users there are none of in the user namespace, as far as its maps are known.
func validateMapped(spec *specs.Spec, p *specs.Process) error {
	if spec.Linux == nil || !hasUserNS(spec) || len(spec.Linux.UIDMappings) == 0 {
		return nil
	}
	u, g := spec.Linux.UIDMappings, spec.Linux.GIDMappings
	switch {
	case !isMapped(u, 0):
		return invalid("linux.uidMappings", "0 is not among the users")
	case !isMapped(g, 0):
		return invalid("linux.gidMappings", "0 is not among the groups")
	case !isMapped(u, p.User.UID):
		return invalid("process.user.uid", "%d is not in linux.uidMappings", p.User.UID)
	case !isMapped(g, p.User.GID):
		return invalid("process.user.gid", "%d is not in linux.gidMappings", p.User.GID)
	}
	for i, id := range p.User.AdditionalGids {
		if !isMapped(g, id) {
			return invalid(item("process.user.additionalGids", i), "%d is not in linux.gidMappings", id)
		}
	}
	return nil
}

func validateTimeNS(spec *specs.Spec) error {
	if spec.Linux == nil {
		return nil
	}
	ns := namespacesOf(spec)
	for clock, o := range spec.Linux.TimeOffsets {
		field := "linux.timeOffsets[" + clock + "]"
		switch {
		case !slices.Contains(timeClocks, clock):
			return invalid(field, "not a clock of a time namespace")
		case !ns.isNew(specs.TimeNamespace):
			return invalid(field, "without a new time namespace")
		case o.Nanosecs >= 1e9:
			return invalid(field+".nanosecs", "%d is a second or more", o.Nanosecs)
		}
	}
	return nil
}

// parseMapOption reads the value of containerd's uidmap and gidmap: "container:host:size", several with commas.
func parseMapOption(s string) (list []specs.LinuxIDMapping, ok bool) {
	for one := range strings.SplitSeq(s, ",") {
		var m specs.LinuxIDMapping
		if n, err := fmt.Sscanf(one, "%d:%d:%d", &m.ContainerID, &m.HostID, &m.Size); n != 3 || err != nil ||
			one != fmt.Sprintf("%d:%d:%d", m.ContainerID, m.HostID, m.Size) {
			return nil, false
		}
		list = append(list, m)
	}
	return list, true
}

// rootMap is the idmap of a mount of the create request; nil if it has none.
func rootMap(why string, o *mountOptions) (*idmap, error) {
	if o.uidmap == "" && o.gidmap == "" {
		return nil, nil
	}
	u, ok := parseMapOption(o.uidmap)
	if !ok {
		return nil, invalid(why+".options", "uidmap=%s", o.uidmap)
	}
	g, ok := parseMapOption(o.gidmap)
	if !ok {
		return nil, invalid(why+".options", "gidmap=%s", o.gidmap)
	}
	if err := validateMaps(why+".options: uidmap", u); err != nil {
		return nil, err
	}
	if err := validateMaps(why+".options: gidmap", g); err != nil {
		return nil, err
	}
	return &idmap{uid: mapText(u), gid: mapText(g)}, nil
}

// mapLower idmaps the lower directories of an overlay: a clone of the mount of their common parent, which then
// lies where the overlay will be. The working directory becomes that, and the options are relative to it.
func (c *compiler) mapLower(data []string, k idmap, mounted string) (string, error) {
	dir, short := shortenLower(data)
	if dir == "" {
		return "", notYet(c.Why + ".options: uidmap of layers without a common directory")
	}
	tree := call.ResultOf(c.do(call.OpenTree(call.CWD, path.Clean(dir), treeClone)))
	c.idmapMount(tree, k, false)
	c.setattr(tree, false, unix.MOUNT_ATTR_RDONLY, 0, unix.MS_PRIVATE)
	at := call.ResultOf(c.do(call.Openat(call.CWD, mounted, oDir, 0)))
	c.moveMount(tree, at)
	c.close(at)
	c.do(call.Fchdir(tree))
	c.close(tree)
	return short, nil
}
