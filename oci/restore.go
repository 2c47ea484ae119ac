package oci

import (
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// CompileRestore makes the Plan of what has to be there before criu restores a container: its cgroup, and a process in a mount
// namespace of its own, in which the root file system is a mount at the path that RestoredRoot tells, and has the mounts' targets.
// Everything else is in criu's images. The process is not the container's.
func CompileRestore(spec *specs.Spec, req Request, host Host) (*Plan, error) {
	if err := Validate(spec); err != nil {
		return nil, err
	}
	if err := checkRequest(&req); err != nil {
		return nil, err
	}
	c := &compiler{builder: newBuilder(128), spec: spec, proc: spec.Process, req: req, host: host, ns: namespacesOf(spec)}
	if !c.ns.isNew(specs.MountNamespace) {
		return nil, notYet("linux.namespaces: a restore without a mount namespace of its own")
	}
	c.at("linux.cgroupsPath", spec.Linux.CgroupsPath)
	c.shim(CgroupCreate)
	c.at("linux.namespaces", "")
	c.shim(CloneChild, call.Arg{Int: unix.CLONE_NEWNS, Form: call.FormClone})
	c.at("root.path", "")
	c.do(call.Umask(0))
	dir, mounted, err := c.hostRoot()
	if err != nil {
		return nil, err
	}
	if mounted {
		c.root = dir
	} else {
		c.bindRoot(dir)
	}
	c.targets()
	c.closeIDMaps()
	return c.Plan, nil
}

// RestoredRoot is where CompileRestore's process has the root file system.
func RestoredRoot(spec *specs.Spec, bundle string) string {
	c := &compiler{spec: spec, req: Request{Bundle: bundle}}
	return c.rootPath()
}

// targets makes what criu mounts on, as a creation would, but for what is in a file system that criu fills.
func (c *compiler) targets() {
	var filled []string
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		o := parseOptions(m.Options)
		t := target{path: inside(m.Destination), proc: anyProc}
		within := false
		for _, f := range filled {
			within = within || strings.HasPrefix(t.path+"/", f+"/")
		}
		if within || o.remount || t.path == "" {
			continue
		}
		c.at(item("mounts", i), m.Destination)
		source := call.Null
		if o.bind {
			t.kind = asSource
			from := m.Source
			if !path.IsAbs(from) {
				from = path.Join(c.req.Bundle, from)
			}
			source = call.ResultOf(c.do(call.Openat(call.CWD, from, oPath, 0)))
		} else {
			filled = append(filled, t.path)
		}
		c.close(c.find(t, source))
		if o.bind {
			c.close(source)
		}
	}
}
