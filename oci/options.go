package oci

import (
	"strings"

	"golang.org/x/sys/unix"
)

// mountOptions are a mount's options, sorted by how the kernel is told them.
type mountOptions struct {
	bind, rec bool
	idmap     bool
	ridmap    bool // with all mounts below
	copyUp    bool // a tmpfs begins with what is where it is mounted
	remount   bool // change what is mounted there already
	flags     bool // there is at least one per-mount option besides bind and rbind

	set   uint64 // MOUNT_ATTR_*, without access times
	atime int64  // MOUNT_ATTR__ATIME's field; -1 if not said
	ms    uintptr

	recSet, recClear uint64
	propagation      []propagation

	super []string // of the file system, as flags: "sync"
	data  []string // of the file system: "key=value" or "key"

	uidmap, gidmap string // containerd's

	loop bool // of a file, by a loop device; of a root file system's mount
}

type propagation struct {
	flag uint64
	rec  bool
}

type attrOption struct {
	clear bool
	attr  uint64
	ms    uintptr
}

// attrOptions are those of a mount; with an "r" before them, of all mounts below it too.
var attrOptions = map[string]attrOption{
	"ro":          {false, unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY},
	"rw":          {true, unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY},
	"nosuid":      {false, unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID},
	"suid":        {true, unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID},
	"nodev":       {false, unix.MOUNT_ATTR_NODEV, unix.MS_NODEV},
	"dev":         {true, unix.MOUNT_ATTR_NODEV, unix.MS_NODEV},
	"noexec":      {false, unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC},
	"exec":        {true, unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC},
	"nodiratime":  {false, unix.MOUNT_ATTR_NODIRATIME, unix.MS_NODIRATIME},
	"diratime":    {true, unix.MOUNT_ATTR_NODIRATIME, unix.MS_NODIRATIME},
	"nosymfollow": {false, unix.MOUNT_ATTR_NOSYMFOLLOW, unix.MS_NOSYMFOLLOW},
	"symfollow":   {true, unix.MOUNT_ATTR_NOSYMFOLLOW, unix.MS_NOSYMFOLLOW},
}

// atimeOptions are values of one field, not bits; relatime is 0 and the default.
var atimeOptions = map[string]attrOption{
	"noatime":       {false, unix.MOUNT_ATTR_NOATIME, unix.MS_NOATIME},
	"atime":         {true, unix.MOUNT_ATTR_NOATIME, unix.MS_NOATIME},
	"relatime":      {false, unix.MOUNT_ATTR_RELATIME, unix.MS_RELATIME},
	"norelatime":    {true, unix.MOUNT_ATTR_RELATIME, unix.MS_RELATIME},
	"strictatime":   {false, unix.MOUNT_ATTR_STRICTATIME, unix.MS_STRICTATIME},
	"nostrictatime": {true, unix.MOUNT_ATTR_STRICTATIME, unix.MS_STRICTATIME},
}

// superOptions are the options of a superblock that are the same for every file system.
var superOptions = map[string]attrOption{
	"sync":       {false, 0, unix.MS_SYNCHRONOUS},
	"async":      {true, 0, unix.MS_SYNCHRONOUS},
	"dirsync":    {false, 0, unix.MS_DIRSYNC},
	"mand":       {false, 0, unix.MS_MANDLOCK},
	"nomand":     {true, 0, unix.MS_MANDLOCK},
	"lazytime":   {false, 0, unix.MS_LAZYTIME},
	"nolazytime": {true, 0, unix.MS_LAZYTIME},
	"iversion":   {false, 0, unix.MS_I_VERSION}, // with mount(2) only
	"noiversion": {true, 0, unix.MS_I_VERSION},
}

var propagationOptions = map[string]propagation{
	"private":     {unix.MS_PRIVATE, false},
	"rprivate":    {unix.MS_PRIVATE, true},
	"slave":       {unix.MS_SLAVE, false},
	"rslave":      {unix.MS_SLAVE, true},
	"shared":      {unix.MS_SHARED, false},
	"rshared":     {unix.MS_SHARED, true},
	"unbindable":  {unix.MS_UNBINDABLE, false},
	"runbindable": {unix.MS_UNBINDABLE, true},
}

func parseOptions(list []string) mountOptions {
	o := mountOptions{atime: -1}
	for _, s := range list {
		o.parse(s)
	}
	return o
}

func (o *mountOptions) parse(s string) {
	if a, ok := attrOptions[s]; ok {
		o.flags = true
		if a.clear {
			o.set &^= a.attr
			o.ms &^= a.ms
		} else {
			o.set |= a.attr
			o.ms |= a.ms
		}
		return
	}
	if a, ok := atimeOptions[s]; ok {
		o.flags = true
		if !a.clear {
			o.atime = int64(a.attr)
			o.ms = o.ms&^(unix.MS_NOATIME|unix.MS_RELATIME|unix.MS_STRICTATIME) | a.ms
		} else if o.atime == int64(a.attr) {
			o.atime = -1
			o.ms &^= a.ms
		}
		return
	}
	if p, ok := propagationOptions[s]; ok {
		o.propagation = append(o.propagation, p)
		return
	}
	if a, ok := superOptions[s]; ok {
		o.super = append(o.super, s)
		if a.clear {
			o.ms &^= a.ms
		} else {
			o.ms |= a.ms
		}
		return
	}
	if strings.HasPrefix(s, "r") {
		if a, ok := attrOptions[s[1:]]; ok {
			if a.clear {
				o.recClear |= a.attr
				o.recSet &^= a.attr
			} else {
				o.recSet |= a.attr
				o.recClear &^= a.attr
			}
			return
		}
		if a, ok := atimeOptions[s[1:]]; ok {
			// An access time is set by clearing the whole field first.
			o.recClear |= unix.MOUNT_ATTR__ATIME
			o.recSet &^= unix.MOUNT_ATTR__ATIME
			if !a.clear {
				o.recSet |= a.attr
			}
			return
		}
	}
	switch s {
	case "bind":
		o.bind = true
	case "rbind":
		o.bind, o.rec = true, true
	case "", "defaults", "silent", "loud":
		// Nothing asks for anything: silent and loud are about the kernel's log.
	case "idmap":
		o.idmap = true
	case "ridmap":
		o.idmap, o.ridmap = true, true
	case "tmpcopyup":
		o.copyUp = true
	case "remount":
		o.remount = true
	case "loop":
		o.loop = true
	default:
		// containerd's own, of a root file system's mount. As a file system's they would fail anyway.
		switch k, v, _ := strings.Cut(s, "="); k {
		case "uidmap":
			o.uidmap = v
		case "gidmap":
			o.gidmap = v
		default:
			o.data = append(o.data, s)
		}
	}
}

// binds says that the mount is a new bind mount.
func (o *mountOptions) binds() bool { return o.bind && !o.remount }

// attrs are the attributes of a new mount.
func (o *mountOptions) attrs() uint64 {
	if o.atime > 0 {
		return o.set | uint64(o.atime)
	}
	return o.set
}

// bindAttrs are what mount_setattr sets and clears on a bind mount. If any option is
// given then exactly those given hold, as with runc and mount(8); access times stay unless one is named.
func (o *mountOptions) bindAttrs() (set, clear uint64) {
	if !o.flags {
		return 0, 0
	}
	set = o.set
	clear = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV |
		unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW
	if o.atime >= 0 {
		set |= uint64(o.atime)
		clear |= unix.MOUNT_ATTR__ATIME
	}
	return set, clear
}

// long says that the new mount API does not take a value, of which it takes 255 bytes, or an option.
func (o *mountOptions) long(source string) bool {
	if o.ms&unix.MS_I_VERSION != 0 {
		return true
	}
	if len(source) > 255 {
		return true
	}
	for _, d := range o.data {
		if len(d) > 255 {
			return true
		}
	}
	return false
}
