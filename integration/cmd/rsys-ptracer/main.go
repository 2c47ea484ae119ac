// Command rsys-ptracer is the enemy in the test of package ptrace: the init of
// a container that has CAP_SYS_PTRACE. It attaches to every new process in its
// PID namespace as fast as it can, and looks at what that has before it is
// the program that was exec'd: capabilities beyond its own, the bytes of its first argument
// anywhere in memory, descriptors, the program file, the working directory. It prints what
// it finds, a line each, and on SIGTERM how many processes it has seen.
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	seize     = 0x4206 // PTRACE_SEIZE
	interrupt = 0x4207 // PTRACE_INTERRUPT
)

var (
	looked, attached int
	loadavg          int
)

func main() {
	planted := []byte(os.Args[1])
	own := capabilities("self")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	done := make(chan struct{})
	go func() {
		<-stop
		close(done)
	}()
	runtime.LockOSThread()
	var err error
	if loadavg, err = unix.Open("/proc/loadavg", unix.O_RDONLY, 0); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	last := newest()
	for {
		select {
		case <-done:
			fmt.Printf("looked at %d, attached to %d\n", looked, attached)
			return
		default:
		}
		// Process IDs are given in turn, so the next one is a good guess.
		n := newest()
		for pid := last + 1; pid <= n; pid++ {
			look(pid, own, planted)
		}
		if n <= last {
			look(last+1, own, planted)
		}
		last = max(last, n)
	}
}

// newest is the newest process ID in our namespace, the last field of /proc/loadavg.
func newest() int {
	var buf [64]byte
	n, _ := unix.Pread(loadavg, buf[:], 0)
	f := bytes.Fields(buf[:n])
	if len(f) == 0 {
		return 0
	}
	pid, _ := strconv.Atoi(string(f[len(f)-1]))
	return pid
}

func capabilities(pid string) (permitted uint64) {
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	for _, field := range []string{"CapPrm:\t", "CapEff:\t"} {
		if _, rest, ok := bytes.Cut(status, []byte(field)); ok {
			n, _ := strconv.ParseUint(string(rest[:16]), 16, 64)
			permitted |= n
		}
	}
	return permitted
}

// look looks at a process, if it is there, until it is seen to have exec'd.
func look(pid int, own uint64, planted []byte) {
	id := strconv.Itoa(pid)
	proc := "/proc/" + id + "/"
	if unix.Access(proc, 0) != nil || unix.Access("/proc/self/task/"+id, 0) == nil {
		return
	}
	looked++
	stopped := false
	if _, _, e := unix.RawSyscall6(unix.SYS_PTRACE, seize, uintptr(pid), 0, 0, 0, 0); e == 0 {
		attached++
		unix.RawSyscall6(unix.SYS_PTRACE, interrupt, uintptr(pid), 0, 0, 0, 0)
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err == nil {
			stopped = ws.Stopped()
		}
		defer unix.PtraceDetach(pid)
	}
	for range 50 {
		caps := capabilities(id)
		exe, _ := os.Readlink(proc + "exe")
		if strings.HasPrefix(exe, "/bin/") {
			return // it is the program
		}
		if extra := caps &^ own; extra != 0 {
			fmt.Printf("capabilities %#x of %d, %s\n", extra, pid, exe)
		}
		if exe != "" && !strings.Contains(exe, "rsys-stub") { // none: it is a zombie, or has no memory for a moment
			fmt.Printf("program %s of %d\n", exe, pid)
		}
		if cwd, err := os.Readlink(proc + "cwd"); err == nil && !strings.HasPrefix(cwd, "/") {
			fmt.Printf("directory %s of %d\n", cwd, pid)
		}
		if fds, err := filepath.Glob(proc + "fd/*"); err == nil && len(fds) > 3 {
			for _, fd := range fds {
				to, _ := os.Readlink(fd)
				fmt.Printf("descriptor %s, %s, of %d\n", filepath.Base(fd), to, pid)
			}
		}
		search(pid, proc, planted)
		if stopped {
			return
		}
	}
}

// search looks for the planted bytes in a process's memory.
func search(pid int, proc string, planted []byte) {
	maps, _ := os.ReadFile(proc + "maps")
	mem, err := os.Open(proc + "mem")
	if err != nil {
		return
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		if n, _ := fmt.Sscanf(line, "%x-%x r", &from, &to); n != 2 || to-from > 64<<20 || from < 0 {
			continue
		}
		buf := make([]byte, to-from)
		n, _ := mem.ReadAt(buf, from)
		if bytes.Contains(buf[:n], planted) {
			fmt.Printf("planted bytes in %d at %s", pid, line)
		}
	}
}
