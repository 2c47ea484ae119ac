package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Proc is a process as /proc shows it.
type Proc struct {
	Pid, Parent int
	Start       string // since boot, in ticks: with Pid, it names a process
	State       string
	Comm        string
	Cmdline     string
	Cgroup      string
}

func (p Proc) String() string {
	cgroup := ""
	for line := range strings.Lines(p.Cgroup) {
		if strings.Contains(line, ":pids:") || strings.HasPrefix(line, "0::") {
			cgroup += " " + strings.TrimSpace(line)
		}
	}
	return fmt.Sprintf("process %d (%s) state %s, parent %d, command %q, cgroup%s", p.Pid, p.Comm, p.State, p.Parent, p.Cmdline, cgroup)
}

// ReadProc reads what /proc has on a process; false when it is gone.
func ReadProc(pid int) (Proc, bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Proc{}, false
	}
	// The name is in parentheses and may have some itself.
	open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	if open < 0 || end < open {
		return Proc{}, false
	}
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 20 {
		return Proc{}, false
	}
	parent, _ := strconv.Atoi(f[1])
	cmdline, _ := os.ReadFile(dir + "/cmdline")
	cgroup, _ := os.ReadFile(dir + "/cgroup")
	return Proc{
		Pid: pid, Parent: parent, State: f[0], Start: f[19], Comm: string(stat[open+1 : end]),
		Cmdline: strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")), Cgroup: string(cgroup),
	}, true
}

// Processes lists all processes of the machine.
func Processes() []Proc {
	entries, _ := os.ReadDir("/proc")
	var procs []Proc
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, ok := ReadProc(pid); ok {
				procs = append(procs, p)
			}
		}
	}
	return procs
}

// Descendants lists the processes that come from this one, zombies and adopted
// orphans too.
func Descendants() []Proc { return DescendantsOf(root()) }

// root is the process that adopts orphans: our parent, after Isolate.
func root() int {
	if os.Getenv(isolated) != "" {
		return os.Getppid()
	}
	return os.Getpid()
}

// DescendantsOf lists the processes that come from a process.
func DescendantsOf(root int) []Proc {
	children := map[int][]Proc{}
	for _, p := range Processes() {
		children[p.Parent] = append(children[p.Parent], p)
	}
	var all []Proc
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		for _, p := range children[queue[0]] {
			if p.Pid != os.Getpid() {
				all = append(all, p)
			}
			queue = append(queue, p.Pid)
		}
	}
	return all
}

// ExeOf tells which program a process runs, by the base name of its file.
func ExeOf(pid int) string {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	return filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
}
