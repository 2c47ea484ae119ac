package oci

import (
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// A Hierarchy is a mounted cgroup v1 hierarchy of the host.
type Hierarchy struct {
	Mountpoint  string   // "/sys/fs/cgroup/cpu,cpuacct"
	Controllers []string // "cpu", "cpuacct"; "name=systemd"
}

// cgroupV1 makes a tmpfs with a directory for each hierarchy, and mounts the container's part of
// each on it: with a cgroup namespace the hierarchy itself, which then begins there.
func (c *compiler) cgroupV1(m *specs.Mount, o *mountOptions, t target) {
	const attrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	tmpfs := mountOptions{data: []string{"mode=755"}}
	dir := c.newMount("tmpfs", "tmpfs", &tmpfs, attrs)
	for _, p := range o.propagation {
		c.setattr(dir, p.rec, 0, 0, p.flag)
	}
	c.attach(dir, t)

	readonly := o.set & unix.MOUNT_ATTR_RDONLY
	for _, h := range c.host.CgroupV1 {
		name := path.Base(h.Mountpoint)
		c.about(path.Join(m.Destination, name))
		var mnt call.Arg
		if c.ns.has(specs.CgroupNamespace) {
			source := "cgroup"
			if name == "systemd" {
				source = name
			}
			mnt = c.newMount("cgroup", source, &mountOptions{data: h.Controllers}, attrs|readonly)
		} else {
			mnt = call.ResultOf(c.do(call.OpenTree(call.CWD, c.cgroupDir(h.Mountpoint), treeClone|unix.AT_RECURSIVE)))
			if set, clear := o.bindAttrs(); set|clear != 0 {
				c.setattr(mnt, false, set, clear, 0)
			}
		}
		for _, p := range o.propagation {
			c.setattr(mnt, p.rec, 0, 0, p.flag)
		}
		c.do(call.Mkdirat(dir, name, 0o755))
		at := call.ResultOf(c.do(call.Openat2(dir, name, oDir, 0, plain)))
		c.moveMount(mnt, at)
		c.close(at)
		c.close(mnt)
		if strings.Contains(name, ",") {
			for one := range strings.SplitSeq(name, ",") {
				c.try(call.Symlinkat(name, dir, one), mayExist)
			}
		}
	}
	c.close(dir)
}

// cgroupDir is the directory of the container's cgroup in a v1 hierarchy. A relative linux.cgroupsPath is another one in each.
func (c *compiler) cgroupDir(mountpoint string) string {
	if dir := c.req.Cgroups[mountpoint]; dir != "" {
		return dir
	}
	name := c.req.ID
	if c.spec.Linux != nil && c.spec.Linux.CgroupsPath != "" {
		name = c.spec.Linux.CgroupsPath
	}
	return path.Join(mountpoint, inside(name))
}
