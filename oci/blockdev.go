package oci

import (
	"path"
	"slices"
	"strconv"

	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// Who mounts a block device is asked by the device cgroup whether it may, and the container's says no. So root file systems on
// devices, loop devices among them, are made by a parent that is not in the container's cgroup, as mounts that are nowhere yet.

// ofDevice says that a mount may be of a block device. Of others it does no harm.
func (m *Mount) ofDevice(o *mountOptions) bool {
	return o.loop || !o.bind && m.Type != "overlay" && path.IsAbs(m.Source)
}

// onDevices says that the root file system has a mount of a block device.
func (c *compiler) onDevices() bool {
	return slices.ContainsFunc(c.req.Rootfs, func(m Mount) bool {
		o := parseOptions(m.Options)
		return m.ofDevice(&o)
	})
}

// openDevices makes the mounts of block devices, as the parent. What is wrong with them is told when they are used.
func (c *compiler) openDevices() {
	c.devices = make(map[int]call.Arg)
	for i := range c.req.Rootfs {
		m := &c.req.Rootfs[i]
		if o := parseOptions(m.Options); m.ofDevice(&o) {
			c.at(item("rootfs", i), m.Source)
			c.devices[i] = c.deviceMount(m, o)
		}
	}
}

func (c *compiler) deviceMount(m *Mount, o mountOptions) call.Arg {
	source := m.Source
	if !o.loop {
		return c.newMount(m.Type, source, &o, o.attrs())
	}
	// It ends with the last who has it open, which soon is the mount alone.
	flags := int64(unix.LO_FLAGS_AUTOCLEAR)
	if o.ms&unix.MS_RDONLY != 0 {
		flags |= unix.LO_FLAGS_READ_ONLY
	}
	if i := slices.Index(o.data, "direct-io"); i >= 0 { // containerd's option, and none of the file system's
		flags |= unix.LO_FLAGS_DIRECT_IO
		o.data = slices.Delete(slices.Clone(o.data), i, i+1)
	}
	attach := c.shim(LoopAttach, call.String(m.Source), call.Arg{Int: flags, Form: call.FormLoop})
	first := len(c.Steps)
	// The device has no name yet; it is written as Plans write results.
	mnt := c.newMount(m.Type, "/dev/loop$"+strconv.Itoa(attach), &o, o.attrs())
	c.Loops = append(c.Loops, Loop{Attach: attach, Source: first + 1}) // fsopen, and then the source
	return mnt
}
