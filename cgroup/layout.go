package cgroup

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const mountpoint = "/sys/fs/cgroup"

// A hierarchy is one mounted tree of cgroups.
type hierarchy struct {
	dir         string   // where it is mounted
	controllers []string // what it controls; "name=x" for a named one; nil for v2
	v2          bool
	own         string // the cgroup of this process in it, as a directory below dir
}

func (h *hierarchy) has(controller string) bool {
	for _, c := range h.controllers {
		if c == controller {
			return true
		}
	}
	return false
}

// A layout is how a host has its hierarchies. In a hybrid one the last is v2, without controllers.
type layout struct {
	v2          bool // v2 and nothing else
	hierarchies []hierarchy
}

// host finds the layout of this host, once per process. It does not parse the mount table, which is as long
// as the host has mounts, unless the hierarchies are not where everybody puts them.
var host = sync.OnceValues(func() (*layout, error) { return findLayout(mountpoint) })

func findLayout(root string) (*layout, error) {
	own, err := ownCgroups("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	if magic(root) == unix.CGROUP2_SUPER_MAGIC {
		for _, h := range own {
			if h.v2 {
				return &layout{v2: true, hierarchies: []hierarchy{{dir: root, v2: true, own: h.own}}}, nil
			}
		}
		return nil, fmt.Errorf("cgroup: %s is v2, but this process is in no v2 cgroup", root)
	}
	l := &layout{}
	var mounts []mount
	for _, h := range own {
		switch {
		case h.v2:
			h.dir = filepath.Join(root, "unified")
			if magic(h.dir) != unix.CGROUP2_SUPER_MAGIC {
				continue
			}
		default:
			// The directory is named for the controllers, "cpu,cpuacct", in some order; there may be links for each.
			name := strings.TrimPrefix(strings.Join(h.controllers, ","), "name=")
			h.dir = filepath.Join(root, name)
			if magic(h.dir) != unix.CGROUP_SUPER_MAGIC {
				h.dir = filepath.Join(root, strings.TrimPrefix(h.controllers[0], "name="))
			}
			if magic(h.dir) != unix.CGROUP_SUPER_MAGIC {
				if mounts == nil {
					if mounts, err = readMounts("/proc/self/mountinfo"); err != nil {
						return nil, err
					}
				}
				if h.dir = findMount(mounts, h.controllers[0]); h.dir == "" {
					continue // known to the kernel, mounted nowhere
				}
			}
		}
		l.hierarchies = append(l.hierarchies, h)
	}
	if len(l.hierarchies) == 0 || len(l.hierarchies[0].controllers) == 0 {
		return nil, fmt.Errorf("cgroup: no cgroup hierarchy is mounted below %s", root)
	}
	if l.find("devices") == nil {
		return nil, fmt.Errorf("cgroup: the devices controller is not mounted: a container could not be kept from the host's devices")
	}
	return l, nil
}

func (l *layout) find(controller string) *hierarchy {
	for i := range l.hierarchies {
		if l.hierarchies[i].has(controller) {
			return &l.hierarchies[i]
		}
	}
	return nil
}

func magic(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Type)
}

// ownCgroups reads a file like /proc/self/cgroup. The v2 hierarchy comes last in what it returns.
func ownCgroups(file string) ([]hierarchy, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	var hs []hierarchy
	var v2 *hierarchy
	for line := range strings.Lines(string(b)) {
		id, rest, ok1 := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		names, own, ok2 := strings.Cut(rest, ":")
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("cgroup: %s: malformed line %q", file, line)
		}
		if id == "0" && names == "" {
			v2 = &hierarchy{v2: true, own: own}
			continue
		}
		hs = append(hs, hierarchy{controllers: strings.Split(names, ","), own: own})
	}
	if v2 != nil {
		hs = append(hs, *v2)
	}
	return hs, nil
}

type mount struct{ root, dir, fstype, options string }

func readMounts(file string) ([]mount, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	defer f.Close()
	ms := []mount{}
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		// 31 30 0:28 / /sys/fs/cgroup/cpu rw,relatime shared:5 - cgroup cgroup rw,cpu
		pre, post, ok := strings.Cut(s.Text(), " - ")
		a, b := strings.Fields(pre), strings.Fields(post)
		if !ok || len(a) < 6 || len(b) < 3 || (b[0] != "cgroup" && b[0] != "cgroup2") {
			continue
		}
		ms = append(ms, mount{root: a[3], dir: a[4], fstype: b[0], options: b[2]})
	}
	return ms, s.Err()
}

func findMount(ms []mount, controller string) string {
	for _, m := range ms {
		for o := range strings.SplitSeq(m.options, ",") {
			if m.fstype == "cgroup" && o == controller {
				return m.dir
			}
		}
	}
	return ""
}

// resolve is the directory of a cgroup given by path. An absolute one is below the mount; a relative one below the
// cgroup of this process (v2: its parent's, since a cgroup with processes can't have limited children).
func (h *hierarchy) resolve(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Join(h.dir, path)
	}
	own := h.own
	if ms, err := readMounts("/proc/self/mountinfo"); err == nil {
		for _, m := range ms {
			// In a container without a cgroup namespace the mount shows a part of the tree only.
			if m.dir == h.dir && m.root != "/" {
				if rest, ok := strings.CutPrefix(own, m.root); ok {
					own = rest
				}
			}
		}
	}
	if h.v2 {
		own = filepath.Dir("/" + own)
	}
	return filepath.Join(h.dir, own, filepath.Clean("/"+path))
}
