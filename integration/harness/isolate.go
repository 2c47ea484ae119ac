// Package harness runs a private containerd and looks after what is left
// behind. The tests and the benchmark stand on it.
//
// A process that called [Isolate] has a mount namespace of its own with an
// empty /run, and adopts every orphan of its descendants. So what the daemon,
// its shims and their containers leave behind can be told from what the rest of
// the machine does, exactly and not by guessing from names: each process of
// theirs descends from us, each mount is in our table, each socket in our /run.
package harness

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// isolated is the variable by which the second run knows that it is that, and
// where to put its files: a directory that the first one removes.
const isolated = "RSYS_ISOLATED"

// Isolate continues the program in a mount namespace of its own: it runs the
// program again there, and exits as that did. In the second run it returns. Flags are
// of clone, for further namespaces: CLONE_NEWNET gives a network of one's own,
// with a loopback interface alone.
func Isolate(flags ...uintptr) {
	var more uintptr
	for _, f := range flags {
		more |= f
	}
	if os.Getenv(isolated) != "" {
		if err := settle(more); err != nil {
			fmt.Fprintln(os.Stderr, "harness:", err)
			os.Exit(1)
		}
		return
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "harness: containerd needs root; run this as root")
		os.Exit(1)
	}
	os.Exit(runIsolated(more))
}

func runIsolated(more uintptr) int {
	// The death signal is sent when the thread goes that started the child.
	runtime.LockOSThread()
	if err := adopt(); err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "rsys-it-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP)
	inner, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env: append(os.Environ(), isolated+"="+dir), Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | more, Pdeathsig: unix.SIGKILL},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness: isolate:", err)
		return 1
	}
	go func() {
		for s := range signals {
			_ = unix.Kill(inner, s.(syscall.Signal))
		}
	}()
	// This process has no other children than that one and orphans, which it
	// reaps as a machine's init does. It matters: a PID namespace does not end
	// before all that is in it has been reaped.
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "harness: wait:", err)
			return 1
		case pid == inner:
			// Whatever the way it ended, nothing of it may go on running.
			killAll(os.Getpid())
			_ = os.RemoveAll(dir)
			if more&unix.CLONE_NEWNET != 0 {
				// CNI's library makes them, whatever its plugins are told; they stay if there is anything else in them.
				_ = unix.Rmdir("/var/lib/cni/results")
				_ = unix.Rmdir("/var/lib/cni")
			}
			for _, kind := range []string{"it", "bench"} {
				for _, cgroup := range cgroupDirs(fmt.Sprintf("rsys-%s-%d", kind, inner)) {
					_ = unix.Rmdir(cgroup)
				}
			}
			if st.Exited() {
				return st.ExitStatus()
			}
			fmt.Fprintln(os.Stderr, "harness: ended by", st.Signal())
			return 1
		}
	}
}

// ownNetwork says that nobody else's interfaces and rules are in our network namespace.
var ownNetwork bool

// settle furnishes the new namespaces.
func settle(flags uintptr) error {
	// As on a host with systemd: a shim that lets a container's mounts
	// propagate shows in our table.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make / shared: %w", err)
	}
	// Where the host's systemd is asked, if it runs one.
	kept := map[string]int{}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		for _, dir := range []string{"/run/systemd", "/run/dbus"} {
			if fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err == nil {
				kept[dir] = fd
			}
		}
	}
	// containerd's place for shims' sockets is fixed, /run/containerd/s.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("private /run: %w", err)
	}
	for dir, fd := range kept {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("the host's %s: %w", dir, err)
		}
		unix.Close(fd)
	}
	if flags&unix.CLONE_NEWNET != 0 {
		// /sys stays, and shows the other namespace's devices: plugins ask by netlink.
		ownNetwork = true
		return loopbackUp()
	}
	return nil
}

// loopbackUp sets the flag of the interface: in a new namespace it is down.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("set the loopback interface up: %w", err)
	}
	return nil
}

func adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	return nil
}

// KillDescendants kills all that came from this process.
func KillDescendants() { killAll(root()) }

func killAll(root int) {
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		procs := DescendantsOf(root)
		if len(procs) == 0 {
			return
		}
		for _, p := range procs {
			thaw(p.Cgroup)
			_ = unix.Kill(p.Pid, unix.SIGKILL)
			if p.Parent == os.Getpid() && root == os.Getpid() {
				_, _ = unix.Wait4(p.Pid, nil, unix.WNOHANG, nil)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// thaw resumes a frozen cgroup, whose processes can't die otherwise.
func thaw(cgroups string) {
	for line := range strings.Lines(cgroups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && f[1] == "freezer" && f[2] != "/" {
			_ = os.WriteFile("/sys/fs/cgroup/freezer"+f[2]+"/freezer.state", []byte("THAWED"), 0)
		}
	}
}
