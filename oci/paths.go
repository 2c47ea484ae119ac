package oci

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// readonlyPaths makes what is there read-only, with all that is mounted below as it is.
func (c *compiler) readonlyPaths() error {
	for i, p := range c.spec.Linux.ReadonlyPaths {
		c.at(item("linux.readonlyPaths", i), p)
		open := c.try(call.Openat2(c.root, inside(p), oPath, 0, inRoot), mayBeMissing)
		at := call.ResultOf(open)
		tree := call.ResultOf(c.do(call.OpenTree(at, "", treeCloneFD|unix.AT_RECURSIVE)))
		c.setattr(tree, false, unix.MOUNT_ATTR_RDONLY, 0, 0)
		c.moveMount(tree, at)
		c.close(tree)
		c.close(at)
		c.errHere(open)
		if c.full() {
			return invalid(c.Why, "more steps than %d", maxSteps)
		}
	}
	return nil
}

// maskedPaths hides directories behind one empty file system and files behind the null
// device. It must come before the root is entered: the first mount of the empty file system is put into the
// host's tree, as this namespace has it, since the kernel clones only what is mounted somewhere.
func (c *compiler) maskedPaths() error {
	paths := c.spec.Linux.MaskedPaths
	if len(paths) == 0 {
		return nil
	}
	c.at("linux.maskedPaths", "")
	empty := c.newMount("tmpfs", "tmpfs", &mountOptions{data: []string{"nr_blocks=1", "nr_inodes=1"}}, unix.MOUNT_ATTR_RDONLY)
	somewhere := c.req.Bundle
	if c.ns.has(specs.UserNamespace) {
		somewhere = "/dev" // which the child can reach, and has no need of any more
	}
	at := call.ResultOf(c.do(call.Openat(call.CWD, somewhere, oDir, 0)))
	c.moveMount(empty, at)
	c.close(at)
	null := call.ResultOf(c.do(call.Openat2(c.root, "dev/null", oPath, 0, inRoot)))
	c.expectNull(null)

	seen := make(map[string]bool, len(paths))
	for i, p := range paths {
		if seen[inside(p)] {
			continue
		}
		seen[inside(p)] = true
		c.at(item("linux.maskedPaths", i), p)
		dir := c.try(call.Openat2(c.root, inside(p), oDir, 0, inRoot), call.Tolerate(unix.ENOENT, unix.ENOTDIR))
		end := c.mask(empty, call.ResultOf(dir))
		c.errHere(dir)
		file := c.try(call.Openat2(c.root, inside(p), oPath, 0, inRoot), mayBeMissing)
		c.mask(null, call.ResultOf(file))
		c.errHere(file)
		c.okHere(end)
		if c.full() {
			return invalid(c.Why, "more steps than %d", maxSteps)
		}
	}
	c.at("linux.maskedPaths", "")
	c.close(null)
	c.close(empty)
	return nil
}

func (c *compiler) mask(with, at call.Arg) int {
	tree := call.ResultOf(c.do(call.OpenTree(with, "", treeCloneFD)))
	c.moveMount(tree, at)
	c.close(tree)
	return c.close(at)
}

// lateReadonly is a mount that is made read-only when all is in it.
type lateReadonly struct {
	mount call.Arg
	*Reason
}

func (c *compiler) readonly() {
	for _, l := range c.late {
		c.Reason = l.Reason
		c.setattr(l.mount, false, unix.MOUNT_ATTR_RDONLY, 0, 0)
		c.close(l.mount)
	}
	if c.spec.Root.Readonly {
		c.at("root.readonly", "")
		c.setattr(c.root, false, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
}
