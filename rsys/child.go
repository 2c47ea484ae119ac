package rsys

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Child is a process that is a child of ours, from its birth as a task to
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
// and one that is dying PF_EXITING.
type Child struct {
	pid   int
	pidfd *os.File
	stat  *os.File // its /proc/pid/stat, until it has left
	conn  *conn
	nest  *Block // what it needs while it serves

	mu     sync.Mutex
	execed bool
	died   bool // without exec
	cause  error
	watch  *watch

	left   chan struct{} // closed when it has exec'd or died
	exited chan struct{} // closed when it is reaped; status and at are then set
	status ExitStatus
	at     time.Time
	usage  unix.Rusage
}

// An ExitStatus is how a process ended, as waitid(2) has it.
type ExitStatus struct {
	Code   int32 // CLD_EXITED, CLD_KILLED or CLD_DUMPED
	Status int32 // the exit status, or the signal
}

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
	return fmt.Sprintf("exited with status %d", s.Status)
}

// children counts those that are not reaped, for tests.
var children atomic.Int64

// newChild takes a child over. If it fails, which it does for want of descriptors, the child is the caller's.
func newChild(pid int, conn *conn, nest *Block) (*Child, error) {
	// As the parent, we alone can reap pid: it is this process or its zombie.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	// Opened now: what it says later must not depend on there being a descriptor left.
	stat, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "open", Path: "/proc/" + strconv.Itoa(pid) + "/stat", Err: err}
	}
	c := &Child{
		pid: pid, conn: conn, nest: nest, pidfd: os.NewFile(uintptr(fd), "pidfd"), stat: os.NewFile(uintptr(stat), "stat"),
		left: make(chan struct{}), exited: make(chan struct{}),
	}
	children.Add(1)
	go c.monitor()
	return c, nil
}

// Pid is its process ID in our PID namespace.
func (c *Child) Pid() int { return c.pid }

// Pidfd is its pidfd, which stays the Child's.
func (c *Child) Pidfd() *os.File { return c.pidfd }

// Left is closed when the process has exec'd or died; Execed tells which.
func (c *Child) Left() <-chan struct{} { return c.left }

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

// Fetch is a copy, made non-blocking, of a descriptor of the process:
// pidfd_getfd(2), Linux 5.6.
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
	if err := unix.SetNonblock(n, true); err != nil {
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
	c.Signal(unix.SIGKILL)
	// It may be in a call that no signal ends. Who waits is not to.
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
		c.Signal(unix.SIGKILL)
		c.hangUp()
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
		return waitid(unix.WEXITED|unix.WNOHANG|unix.WNOWAIT) != nil || info.pid != 0
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
	flags, err := c.flags()
	switch {
	case ended:
		c.died = err != nil || flags&pfForkNoExec != 0
		c.execed = !c.died
	case err == nil && flags&pfExiting != 0:
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
	c.stat.Close()
	close(c.left)
}

// futexOwnerDied is FUTEX_OWNER_DIED: the owner has exec'd or ended.
const futexOwnerDied = 0x40000000

// watchFutex has the futex monitor watch the process's futex.
func (c *Child) watchFutex(word *atomic.Uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nest != nil {
		c.watch = c.nest.arena.monitor.watch(word, word.Load(), func() { c.leave(false) })
	}
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
		<-c.left
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

// flags reads the process's flags: a zombie has them too.
func (c *Child) flags() (uint64, error) {
	var buf [1024]byte
	n, err := c.stat.ReadAt(buf[:], 0)
	if n == 0 {
		return 0, err
	}
	return statFlags(buf[:n])
}

func statFlags(stat []byte) (uint64, error) {
	// The second field is the name in parentheses, which may hold anything.
	_, rest, ok := bytes.Cut(stat[max(bytes.LastIndexByte(stat, ')'), 0):], []byte(") "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 7 {
		return 0, fmt.Errorf("stat: too few fields")
	}
	return strconv.ParseUint(string(fields[6]), 10, 64)
}

// siginfo is the part of siginfo_t that waitid fills.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte
}

func (s *siginfo) waitid(pidfd, options int, usage *unix.Rusage) error {
	*s = siginfo{}
	for {
		err := unix.Waitid(unix.P_PIDFD, pidfd, (*unix.Siginfo)(unsafe.Pointer(s)), options, usage)
		if err != unix.EINTR {
			return err
		}
	}
}
