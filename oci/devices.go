package oci

import (
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// defaultDevices are in every container's /dev.
var defaultDevices = []struct {
	name         string
	major, minor uint32
}{
	{"null", 1, 3},
	{"random", 1, 8},
	{"full", 1, 7},
	{"tty", 5, 0},
	{"zero", 1, 5},
	{"urandom", 1, 9},
}

var devSymlinks = [][2]string{
	{"fd", "/proc/self/fd"},
	{"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"},
}

// dev fills /dev, unless that is a bind mount and somebody else's. The child's umask is 0.
func (c *compiler) dev() error {
	mounted, bound := c.devMounted()
	if bound {
		return nil
	}
	c.at("linux.devices", "/dev")
	if !mounted {
		c.try(call.Mkdirat(c.root, "dev", 0o755), mayExist)
	}
	dev := call.ResultOf(c.do(call.Openat2(c.root, "dev", oDir, 0, inRoot)))

	given := make(map[string]bool, len(c.spec.Linux.Devices))
	for i := range c.spec.Linux.Devices {
		given[inside(c.spec.Linux.Devices[i].Path)] = true
	}
	for _, d := range defaultDevices {
		if !given["dev/"+d.name] {
			c.about("/dev/" + d.name)
			if tree, ok := c.nodes["dev/"+d.name]; ok {
				c.bindNode(tree, dev, d.name)
				continue
			}
			c.try(call.Mknodat(dev, d.name, unix.S_IFCHR|0o666, unix.Mkdev(d.major, d.minor)), mayExist)
		}
	}
	for i := range c.spec.Linux.Devices {
		d := &c.spec.Linux.Devices[i]
		c.at(item("linux.devices", i), d.Path)
		c.device(dev, d)
		if c.full() {
			return invalid(c.Why, "more steps than %d", maxSteps)
		}
	}

	c.at("linux.devices", "/dev/ptmx")
	c.try(call.Unlinkat(dev, "ptmx", 0), mayBeMissing)
	c.do(call.Symlinkat("pts/ptmx", dev, "ptmx"))
	for _, l := range devSymlinks {
		c.about("/dev/" + l[0])
		c.try(call.Symlinkat(l[1], dev, l[0]), mayExist)
	}
	if c.host.Kcore {
		c.about("/dev/core")
		c.try(call.Symlinkat("/proc/kcore", dev, "core"), mayExist)
	}
	c.close(dev)
	return nil
}

// devMounted says whether something is mounted on /dev, and whether that is a bind mount.
func (c *compiler) devMounted() (mounted, bound bool) {
	for i := range c.spec.Mounts {
		if m := &c.spec.Mounts[i]; inside(m.Destination) == "dev" {
			mounted = true
			if o := parseOptions(m.Options); o.bind {
				bound = true
			}
		}
	}
	return mounted, bound
}

// device makes one node. One that is there already is left alone.
func (c *compiler) device(dev call.Arg, d *specs.LinuxDevice) {
	p := inside(d.Path)
	if p == "dev/ptmx" {
		return
	}
	dir, name := path.Split(p)
	parent := dev
	if dir != "dev/" {
		parent = c.makeDirs(c.root, dir, inRoot)
	}
	if tree, ok := c.nodes[p]; ok {
		c.bindNode(tree, parent, name)
		if dir != "dev/" {
			c.closeUnless(parent, c.root)
		}
		return
	}
	kind, mode := deviceKind(d.Type), uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(*d.FileMode) & 0o7777
	}
	var rdev uint64
	if kind != unix.S_IFIFO {
		rdev = unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	}
	mk := c.try(call.Mknodat(parent, name, kind|mode, rdev), mayExist)
	if uid, gid := id(d.UID), id(d.GID); uid != 0 || gid != 0 {
		// The directory may be a volume in which somebody swaps names.
		node := call.ResultOf(c.do(call.Openat2(parent, name, oPath|unix.O_NOFOLLOW, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)))
		st := c.do(call.Statx(node, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS))
		c.do(call.Expect(call.Int32Of(st, 4, call.StatxModeOff), unix.S_IFMT, uint64(kind), unix.ENODEV))
		if kind != unix.S_IFIFO {
			c.expectRdev(st, uint32(d.Major), uint32(d.Minor))
		}
		c.do(call.Fchownat(node, "", uid, gid, unix.AT_EMPTY_PATH))
		c.close(node)
		c.errHere(mk)
	}
	if dir != "dev/" {
		c.closeUnless(parent, c.root)
	}
}

func id(p *uint32) int {
	if p == nil {
		return 0
	}
	return int(*p)
}

func deviceKind(t string) uint32 {
	switch t {
	case "b":
		return unix.S_IFBLK
	case "c", "u":
		return unix.S_IFCHR
	case "p":
		return unix.S_IFIFO
	}
	return 0
}

// expectRdev checks the device number in the output of the statx step st.
func (b *builder) expectRdev(st int, major, minor uint32) {
	b.do(call.Expect(call.WordOf(st, 4, call.StatxRdevOff), ^uint64(0), uint64(major)|uint64(minor)<<32, unix.ENODEV))
}

// expectNull checks that fd is the null device. What is bound over a masked file, or is
// given to the process, must not be something that an image put there (CVE-2025-31133).
func (b *builder) expectNull(fd call.Arg) {
	st := b.do(call.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS))
	b.do(call.Expect(call.Int32Of(st, 4, call.StatxModeOff), unix.S_IFMT, unix.S_IFCHR, unix.ENODEV))
	b.expectRdev(st, 1, 3)
}
