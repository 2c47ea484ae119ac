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

// ByMountpoint are the cgroup's directories by the mountpoint of the hierarchy.
func (c *Cgroup) ByMountpoint() map[string]string {
	dirs := make(map[string]string, len(c.dirs))
	for i, dir := range c.dirs {
		dirs[c.layout.hierarchies[i].dir] = dir
	}
	return dirs
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
