package cgroup

import "strings"

// A Hierarchy is a mounted cgroup v1 hierarchy.
type Hierarchy struct {
	Mountpoint  string
	Controllers []string // "cpu", "cpuacct"; "name=systemd"
}

// Hierarchies are the host's of cgroup v1; v2 says that it has only cgroup v2.
func Hierarchies() (list []Hierarchy, v2 bool) {
	l, err := host()
	if err != nil {
		return nil, false
	}
	for _, h := range l.hierarchies {
		if !h.v2 {
			list = append(list, Hierarchy{h.dir, h.controllers})
		}
	}
	return list, l.v2
}

// Path is the cgroup's path below its hierarchies; one relative to our own cgroup, in the first of them.
func (c *Cgroup) Path() string {
	return strings.TrimPrefix(c.dirs[0], c.layout.hierarchies[0].dir)
}

// A PathOf is the path of a cgroup in one hierarchy, that of a controller or, for "", of cgroup v2.
type PathOf struct{ Controller, Path string }

// Paths are the cgroup's paths in all hierarchies.
func (c *Cgroup) Paths() (list []PathOf) {
	for _, dir := range c.dirs {
		for _, h := range c.layout.hierarchies {
			path, ok := strings.CutPrefix(dir, h.dir+"/")
			if !ok {
				continue
			}
			if h.v2 {
				list = append(list, PathOf{"", "/" + path})
			}
			for _, name := range h.controllers {
				list = append(list, PathOf{name, "/" + path})
			}
		}
	}
	return list
}
