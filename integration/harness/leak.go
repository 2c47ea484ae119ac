package harness

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Snapshot is what there is at one time, of the daemon's, its shims' and their
// containers': each thing by a line that tells a reader what it is.
type Snapshot map[string]bool

// Snapshot looks at everything that a container can leave behind.
func (d *Daemon) Snapshot() Snapshot {
	s := Snapshot{}
	for _, line := range mountLines() {
		if f := strings.Fields(line); len(f) < 5 || !slices.Contains(d.Keeps, f[4]) {
			s["mount "+line] = true
		}
	}
	for _, dir := range cgroupDirs(d.CgroupName()) {
		if base := filepath.Base(dir); base != d.CgroupName() && base != d.Slice() { // the parent of all stays
			s["cgroup "+dir] = true
		}
	}
	d.processes(s)
	d.files(s)
	d.loops(s)
	if d.CRI != nil {
		d.network(s)
	}
	return s
}

// More lists what s has and before has not.
func (s Snapshot) More(before Snapshot) []string {
	var more []string
	for thing := range s {
		if !before[thing] {
			more = append(more, thing)
		}
	}
	sort.Strings(more)
	return more
}

// Leaks waits for things to settle and lists what is there now and was not
// before. Containers end in several steps, so it looks again for a while.
func (d *Daemon) Leaks(before Snapshot, patience time.Duration, but ...string) []string {
	deadline := time.Now().Add(patience)
	for {
		more := slices.DeleteFunc(d.Snapshot().More(before), func(thing string) bool {
			return slices.ContainsFunc(but, func(prefix string) bool { return strings.HasPrefix(thing, prefix) })
		})
		if len(more) == 0 || time.Now().After(deadline) {
			return more
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// loops adds the loop devices whose files are those of a test, by the directories that tests make, or the daemon's.
func (d *Daemon) loops(s Snapshot) {
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range names {
		if file, err := os.ReadFile(name); err == nil && (strings.HasPrefix(string(file), d.Dir) || strings.HasPrefix(string(file), filepath.Join(os.TempDir(), "Test"))) {
			s[fmt.Sprintf("loop device %s of %s", strings.Split(name, "/")[3], strings.TrimSpace(string(file)))] = true
		}
	}
}

func mountLines() []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{"unreadable: " + err.Error()}
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func mountpoints() []string {
	var points []string
	for _, line := range mountLines() {
		if f := strings.Fields(line); len(f) > 4 {
			points = append([]string{f[4]}, points...) // last mounted first
		}
	}
	return points
}

// cgroupDirs lists the cgroups in all hierarchies whose path has the name in
// it, the deeper before their parents.
func cgroupDirs(name string) []string {
	var dirs []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.Contains(path, name) {
			dirs = append(dirs, path)
		}
		return nil
	})
	sort.Sort(sort.Reverse(sort.StringSlice(dirs)))
	return dirs
}

// processes adds every process that came from us, but the daemon itself, and
// the network namespaces that they keep alive.
func (d *Daemon) processes(s Snapshot) {
	self, _ := os.Readlink("/proc/self/ns/net")
	for _, p := range Descendants() {
		if d.stays(p.Pid) {
			continue
		}
		if p.State == "Z" && (p.Parent == root() || p.Parent == os.Getpid()) {
			continue // on its way out
		}
		s[fmt.Sprintf("process %d (%s) %q of parent %d, started at %s%s", p.Pid, p.Comm, p.Cmdline, p.Parent, p.Start,
			map[bool]string{true: ", a zombie"}[p.State == "Z"])] = true
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.Pid)); err == nil && ns != self {
			s["network namespace "+ns] = true
		}
	}
	for _, p := range Descendants() {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.Pid))
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "net:[") && to != self {
				s[fmt.Sprintf("network namespace %s, open in process %d (%s)", to, p.Pid, p.Comm)] = true
			}
		}
	}
}

// files adds what is in our /run (sockets, fifos, the daemon's state) and in
// the working directories of containers.
func (d *Daemon) files(s Snapshot) {
	// Made with the first container, for all that follow.
	stays := map[string]bool{"/run/containerd": true, "/run/containerd/s": true, "/run/runc": true, "/run/containerd/runc": true,
		"/run/containerd/fifo": true, "/run/rsys": true, "/run/rsys/trace.json": true, "/run/netns": true, filepath.Join("/run/containerd/runc", d.Namespace): true, filepath.Dir(d.Bundle("x")): true}
	for _, dir := range []string{d.criDir("root"), d.criDir("state")} {
		for _, sub := range []string{"", "containers", "sandboxes", "image-volumes"} {
			stays[filepath.Join(dir, sub)] = true
		}
	}
	for _, file := range []string{"", "lock", "last_reserved_ip.0"} {
		stays[d.cni("leases", networkName, file)] = true
	}
	walk := func(root string) {
		_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || stays[path] || path == root || d.keeps(path) {
				return nil
			}
			s[fmt.Sprintf("%s %s", kind(e.Type()), path)] = true
			if e.IsDir() && isMountpoint(path) {
				return filepath.SkipDir // reported as a mount
			}
			return nil
		})
	}
	walk("/run")
	walk(filepath.Join(d.Dir, "root/io.containerd.runtime.v2.task", d.Namespace))
	if d.CRI != nil {
		// A lease is a file by the name of an address.
		for _, dir := range []string{d.cni("leases"), d.cni("results"), d.criDir("root")} {
			walk(dir)
		}
	}
}

func (d *Daemon) keeps(path string) bool {
	return slices.ContainsFunc(d.Keeps, func(pattern string) bool {
		ok, _ := filepath.Match(pattern, path)
		return ok
	})
}

func isMountpoint(path string) bool {
	var st, up unix.Stat_t
	return unix.Lstat(path, &st) == nil && unix.Lstat(filepath.Dir(path), &up) == nil && st.Dev != up.Dev
}

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSymlink != 0:
		return "link"
	case m.IsDir():
		return "directory"
	}
	return "file"
}
