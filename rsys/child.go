package rsys

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Child is the process of a task, a child of ours, from its birth to
// the day it is reaped.
//
//	          execve                     exit
//	serving ----------> exec'd ------------------------> reaped
//	   |                                                    ^
//	   +----------------------------------------------------+
//	                 exit, a signal: it died
//
// The futex monitor reports that it has left the memory that it shared with
// us, the child monitor that its pidfd is readable, in either order as far
// as we can see. Which of exec and death it was, the kernel says: a process
// that has not exec'd since its fork bears PF_FORKNOEXEC, even as a zombie,
// and one that is dying PF_EXITING. A stub has exec'd to become one. It bears a name
// instead that is random; execve takes it away.
//
// A stub that was not started by us but called on us (package stub's Server) is no
// child: its parent reaps it. Exited is then closed when it has ended, its resource usage is not known,
// and its exit status only where the kernel still or already tells it: see [ExitStatus.Known].
type Child struct {
	pid   int
	pidfd *os.File
	stat  *os.File // its /proc/pid/stat, until it has left
	conn  *conn
	data  *conn  // of a task without shared memory
	nest  *Block // what it needs while it serves
	stub  bool   // not forked by a task, but started as the server's program
	peer  bool   // not our child

	mu      sync.Mutex
	execed  bool
	died    bool // without exec
	unsure  bool // died, or perhaps exec'd before: a peer that nobody saw end
	adopted bool // of a stub: it has come to be a task
	mark    string
	word    *atomic.Uint32 // the futex of a stub, which is watched when somebody wants to know
	value   uint32
	cause   error
	watch   *watch

	left   chan struct{} // closed when it has exec'd or died
	exited chan struct{} // closed when it is reaped; status and at are then set
	status ExitStatus
	at     time.Time
	usage  unix.Rusage
}

// An ExitStatus is how a process ended, as waitid(2) has it. The zero value is that nobody knows.
type ExitStatus struct {
	Code   int32 // CLD_EXITED, CLD_KILLED or CLD_DUMPED
	Status int32 // the exit status, or the signal
}

// Known reports whether it is known how the process ended; of a child it is.
func (s ExitStatus) Known() bool { return s.Code != 0 }

// Values of ExitStatus.Code.
const (
	cldExited = 1
	cldKilled = 2
	cldDumped = 3
)

// Exited reports whether the process called exit, and with what.
func (s ExitStatus) Exited() (status int, ok bool) { return int(s.Status), s.Code == cldExited }

// Signaled reports whether a signal killed the process, and which.
func (s ExitStatus) Signaled() (sig unix.Signal, ok bool) {
	return unix.Signal(s.Status), s.Code == cldKilled || s.Code == cldDumped
}

func (s ExitStatus) String() string {
	if sig, ok := s.Signaled(); ok {
		return "killed by " + unix.SignalName(sig)
	}
	if !s.Known() {
		return "ended with an unknown status"
	}
	return fmt.Sprintf("exited with status %d", s.Status)
}

// children counts those that are not reaped, for tests.
var children atomic.Int64

// newChild takes a child over. If it fails, which it does for want of descriptors, the child is the caller's.
func newChild(pid int, conn *conn, nest *Block) (*Child, error) {
	return (&Child{pid: pid, conn: conn, nest: nest}).start(nil)
}

// AdoptChild makes a Child of a child of ours that is no task and never was: one that another program, say criu, has made
// in our name. From then on it is the Child that reaps it.
func AdoptChild(pid int) (*Child, error) {
	c, err := (&Child{pid: pid, execed: true}).start(nil)
	if err != nil {
		return nil, err
	}
	c.stat.Close()
	close(c.left)
	return c, nil
}

// start opens what tells of the child and starts its monitor. A peer's pidfd is given, and a copy taken.
func (c *Child) start(pidfd *os.File) (*Child, error) {
	// As the parent, we alone can reap pid: it is this process or its zombie.
	var fd int
	var err error
	if c.peer {
		fd, err = copyNonblocking(pidfd)
	} else {
		fd, err = unix.PidfdOpen(c.pid, unix.PIDFD_NONBLOCK)
		err = os.NewSyscallError("pidfd_open", err)
	}
	if err != nil {
		return nil, err
	}
	c.pidfd = os.NewFile(uintptr(fd), "pidfd")
	// Opened now: what it says later must not depend on there being a descriptor left.
	path := "/proc/" + strconv.Itoa(c.pid) + "/stat"
	stat, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		c.pidfd.Close()
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	c.stat = os.NewFile(uintptr(stat), "stat")
	if c.peer && !c.there() {
		c.pidfd.Close()
		c.stat.Close() // perhaps another's, who has the number by now
		return nil, os.ErrProcessDone
	}
	c.left, c.exited = make(chan struct{}), make(chan struct{})
	children.Add(1)
	if c.peer {
		go c.monitorPeer()
	} else {
		go c.monitor()
	}
	return c, nil
}

// rename takes note that a stub was given another name.
func (c *Child) rename(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mark != "" {
		name, _, _ = strings.Cut(name, "\x00")
		c.mark = name[:min(len(name), 15)]
	}
}

// Pid is its process ID in our PID namespace.
func (c *Child) Pid() int { return c.pid }

// Pidfd is its pidfd, which stays the Child's.
func (c *Child) Pidfd() *os.File { return c.pidfd }

// Left is closed when the process has exec'd or died; Execed tells which.
func (c *Child) Left() <-chan struct{} {
	c.observe()
	return c.left
}

// Execed reports whether the process has exec'd.
func (c *Child) Execed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.execed
}

// Exited is closed when the process has ended and is reaped.
func (c *Child) Exited() <-chan struct{} { return c.exited }

// Wait waits until the process is reaped.
func (c *Child) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-c.exited:
		return c.status, nil
	case <-ctx.Done():
		return ExitStatus{}, context.Cause(ctx)
	}
}

// Status is how the process ended and when we saw it. It may be called when Exited is closed.
func (c *Child) Status() (ExitStatus, time.Time) { return c.status, c.at }

// Ending reports whether the process has begun to end: it may not be a zombie for long yet, if it is the first of a PID
// namespace and others have to go before it, but nothing can be done in its namespaces any more.
func (c *Child) Ending() bool {
	select {
	case <-c.exited:
		return true
	default:
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid) + "/stat")
	if err != nil {
		return true // reaped, and about to be told of
	}
	st, err := parseStat(stat)
	return err == nil && st.flags&pfExiting != 0
}

// Usage is what the process and those that it reaped used. It may be called when Exited is closed.
func (c *Child) Usage() unix.Rusage { return c.usage }

// Signal sends the process a signal: os.ErrProcessDone if it is reaped.
func (c *Child) Signal(sig unix.Signal) error {
	err := os.ErrProcessDone
	if raw, rawErr := c.pidfd.SyscallConn(); rawErr == nil {
		raw.Control(func(fd uintptr) {
			err = os.NewSyscallError("pidfd_send_signal", unix.PidfdSendSignal(int(fd), sig, nil, 0))
		})
	}
	return err
}

// Fetch is a copy, made non-blocking unless it is one of O_PATH, of a descriptor of the process:
// pidfd_getfd(2), Linux 5.6, for which we must be allowed to ptrace it. [Task.Fetch] can do without.
func (c *Child) Fetch(fd int) (*os.File, error) {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := -1
	raw.Control(func(pidfd uintptr) { n, err = unix.PidfdGetfd(int(pidfd), fd, 0) })
	if err != nil {
		return nil, os.NewSyscallError("pidfd_getfd", err)
	}
	if err := unix.SetNonblock(n, true); err != nil && err != unix.EBADF { // O_PATH
		unix.Close(n)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(n), fmt.Sprintf("fd %d of %d", fd, c.pid)), nil
}

// watchBirth is [Child.watchFutex] of a process that has yet to set its futex.
func (c *Child) watchBirth(word *atomic.Uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nest == nil {
		return // it has left already
	}
	if v := word.Load(); v != 0 {
		c.watch = c.nest.arena.monitor.watch(word, v&^futexOwnerDied, func() { c.leave(false) })
		return
	}
	c.watch = c.nest.arena.monitor.watch(word, 0, func() { c.watchBirth(word) })
}

// kill kills a process that serves us, or did; the first cause is the error of what it is at.
func (c *Child) kill(cause error) {
	c.mu.Lock()
	if c.cause == nil && !c.execed && !c.died {
		c.cause = cause
	}
	c.mu.Unlock()
	c.end()
}

// end kills the process, and hangs up: it may be in a call that no signal ends, and who
// waits is not to. A stranger that did not become a task is not ours to kill; it is let go of.
func (c *Child) end() {
	c.mu.Lock()
	stranger := c.peer && !c.adopted
	c.mu.Unlock()
	if stranger {
		c.pidfd.Close()
	} else {
		c.Signal(unix.SIGKILL)
	}
	c.hangUp()
}

// interrupt is kill, unless the process has left by now.
func (c *Child) interrupt(cause error) {
	c.mu.Lock()
	left := c.execed || c.died
	if !left && c.cause == nil {
		c.cause = cause
	}
	c.mu.Unlock()
	if !left {
		c.end()
	}
}

// killCause is why we killed the process; nil if we did not.
func (c *Child) killCause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// hangUp ends the channel, if there is one.
func (c *Child) hangUp() {
	if c.conn != nil {
		c.conn.shutdown()
	}
	if c.data != nil {
		c.data.shutdown()
	}
}

// monitor is the child monitor: it waits for the pidfd, in Go's poller, and
// reaps this process and no other.
func (c *Child) monitor() {
	var info siginfo
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		panic(err) // of a file that nobody else closes
	}
	waitid := func(options int) (err error) {
		raw.Control(func(fd uintptr) { err = info.waitid(int(fd), options, &c.usage) })
		return err
	}
	// An error is of a process that is no child of ours; then its end is not known.
	raw.Read(func(uintptr) bool {
		return waitid(unix.WEXITED|unix.WNOHANG|unix.WNOWAIT) != nil || info.ended()
	})
	c.at = time.Now()
	c.leave(true)
	waitid(unix.WEXITED)
	c.status = ExitStatus{info.code, info.status}
	c.pidfd.Close()
	children.Add(-1)
	close(c.exited)
}

// leave takes note that the process has left our memory. It is called by the
// futex monitor, and when it has ended but is not reaped.
func (c *Child) leave(ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execed || c.died {
		return
	}
	st, err := c.look()
	switch {
	case ended:
		c.died = err != nil || c.isServer(st)
		c.execed = !c.died
		c.unsure = c.peer && err != nil
	case err == nil && st.flags&pfExiting != 0, c.peer && err != nil:
		return // the child monitor will see it
	default:
		// It left its memory and lives: execve is past the point of no return.
		c.execed = true
	}
	c.hangUp()
	if c.watch != nil {
		c.watch.cancel()
	}
	if c.nest != nil {
		c.nest.Free()
		c.nest = nil
	}
	if !c.peer { // of which there is one question more
		c.stat.Close()
	}
	close(c.left)
}

// futexOwnerDied is FUTEX_OWNER_DIED: the owner has exec'd or ended.
const (
	futexOwnerDied = 0x40000000
	futexWaiters   = 0x80000000 // the kernel is to wake who waits
	futexTIDMask   = 0x3fffffff
)

// watchFutex has the futex monitor watch the process's futex.
func (c *Child) watchFutex(word *atomic.Uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nest != nil {
		c.watch = c.nest.arena.monitor.watch(word, word.Load(), func() { c.leave(false) })
	}
}

// observe has the futex monitor watch a stub's futex: from when it matters
// whether the stub has exec'd. The word keeps what the kernel wrote, so it is never too late.
func (c *Child) observe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.word != nil && c.watch == nil && c.nest != nil {
		c.watch = c.nest.arena.monitor.watch(c.word, c.value, func() { c.leave(false) })
	}
}

// isServer reports whether what the process runs, or ran, is the server: it
// has not exec'd. The lock is held.
func (c *Child) isServer(st procStat) bool {
	if c.stub {
		return c.mark == "" || st.comm == c.mark
	}
	return st.flags&pfForkNoExec != 0
}

// killed reports whether we have killed a process that is not known to be gone yet.
func (c *Child) killed() bool {
	select {
	case <-c.left:
		return false
	default:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.cause != nil
	}
}

// diedError is why a channel ended: it waits until that is known.
func (c *Child) diedError() error {
	cause := c.killCause()
	if cause == nil {
		<-c.Left()
		if cause = c.killCause(); cause == nil && c.Execed() {
			return ErrGone
		}
		if cause == nil {
			<-c.exited
			cause = c.killCause()
		}
	}
	select {
	case <-c.exited:
		return &DiedError{Index: -1, Exit: c.status, Cause: cause}
	default:
		return &DiedError{Index: -1, Cause: cause}
	}
}

// Bits of the kernel's task_struct.flags (include/linux/sched.h), which
// /proc/pid/stat gives as its ninth field.
const (
	pfExiting    = 0x4
	pfForkNoExec = 0x40
)

// procStat is what we want of /proc/pid/stat.
type procStat struct {
	comm  string
	flags uint64
	exit  int32 // of a zombie, as wait(2) has it; 0 for those who may not know
}

// look reads what the kernel says of the process: of a zombie too, but not of one that is reaped.
func (c *Child) look() (procStat, error) {
	var buf [1024]byte
	n, err := c.stat.ReadAt(buf[:], 0)
	if n == 0 {
		return procStat{}, err
	}
	return parseStat(buf[:n])
}

func parseStat(stat []byte) (st procStat, err error) {
	// The second field is the name in parentheses, which may hold anything.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return st, fmt.Errorf("stat: no name")
	}
	st.comm = string(stat[open+1 : end])
	fields := bytes.Fields(stat[end+1:])
	if len(fields) < 7 {
		return st, fmt.Errorf("stat: too few fields")
	}
	if len(fields) >= 50 {
		exit, _ := strconv.ParseInt(string(fields[49]), 10, 32)
		st.exit = int32(exit)
	}
	st.flags, err = strconv.ParseUint(string(fields[6]), 10, 64)
	return st, err
}

// siginfo is the part of siginfo_t that waitid fills.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte
}

// ended tells an end from the stop of a process that a thread of ours traces.
func (s *siginfo) ended() bool { return s.pid != 0 && s.code <= cldDumped }

func (s *siginfo) waitid(pidfd, options int, usage *unix.Rusage) error {
	*s = siginfo{}
	for {
		err := unix.Waitid(unix.P_PIDFD, pidfd, (*unix.Siginfo)(unsafe.Pointer(s)), options, usage)
		if err != unix.EINTR {
			return err
		}
	}
}
