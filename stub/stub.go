package stub

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// A Stub is a running stub.
type Stub struct {
	Task        *rsys.Task
	Arena       *rsys.Arena // where the task's programs are; not shared with it if it has a data socket
	Description *Description

	futex *rsys.Arena // beside a data socket
	own   int         // bytes of Arena for itself
}

// A Transport is how what a remote call points to gets into a stub's memory.
type Transport int

const (
	// SharedArena is memory that the stub maps as well as we do.
	SharedArena Transport = iota
	// DataSocket is a socket: the stub's memory is its own, and it is asked to read
	// from the socket and write to it. Such a stub can't be cloned.
	DataSocket
)

// Config says what a stub is to have.
type Config struct {
	Transport Transport
	ArenaSize int    // in bytes, a multiple of the page size; [DefaultArenaSize] if 0
	Dir       string // where the program's file is made if memfds can't be executed, before other places are tried
}

// DefaultArenaSize takes only as much memory as is used of it.
const DefaultArenaSize = 1 << 20

// bootstrapTime bounds a stub's bootstrap, which takes a millisecond.
const bootstrapTime = 10 * time.Second

// Start starts a stub with a shared arena of arenaSize bytes; see [Config.Start].
func Start(ctx context.Context, arenaSize int) (*Stub, error) {
	return Config{ArenaSize: arenaSize}.Start(ctx)
}

// Start starts a stub. It is killed when this process ends, however that is.
func (c Config) Start(ctx context.Context) (*Stub, error) {
	s, err := c.start(ctx, spawn)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	return s, nil
}

func (c Config) start(ctx context.Context, spawn func(exe, bootstrap *os.File) (int, error)) (*Stub, error) {
	near, far, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer near.Close()
	pid := 0
	err = c.program(func(exe *os.File) (err error) {
		pid, err = spawn(exe, far)
		return err
	})
	far.Close()
	if err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	s, err := c.bootstrap(ctx, near, process{pid: pid})
	if err != nil {
		return nil, err
	}
	if err := s.seclude(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("seclude it: %w", err), s.Close())
	}
	return s, nil
}

// A process is what has been started, or has called: pidfd is nil if it is a child of ours.
type process struct {
	pid   int
	pidfd *os.File
	sure  bool // the kernel gave us the pidfd, not the number
}

// reject ends a process that has not become a task. Without anybody at the
// other end a stub ends by itself; what is not our child is not ours to kill.
func (p process) reject() {
	if p.pidfd == nil {
		unix.Kill(p.pid, unix.SIGKILL)
		var status unix.WaitStatus
		for _, err := unix.Wait4(p.pid, &status, 0, nil); err == unix.EINTR || err == nil && status.Stopped(); {
			_, err = unix.Wait4(p.pid, &status, 0, nil)
		}
	}
}

// bootstrap makes a task of a stub that waits at the other end of conn. If it fails, nothing
// of the process is left, and the error names the step.
func (c Config) bootstrap(ctx context.Context, conn *os.File, p process) (_ *Stub, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootstrapTime)
	defer cancel()
	task := false // NewTask has taken the process over
	s := &Stub{}
	defer func() {
		if err != nil {
			if !task {
				p.reject()
			}
			err = errors.Join(err, s.free())
		}
	}()
	if err := s.allocate(c); err != nil {
		return nil, err
	}
	pairs, err := socketpairs(3)
	if err != nil {
		return nil, err
	}
	defer pairs.close()
	syscalls, data, connection := pairs[0], pairs[1], pairs[2]
	inode, err := inodeOf(syscalls.far)
	if err != nil {
		return nil, err
	}
	if err := send(conn, syscalls.far, data.far, s.shared().File(), connection.far); err != nil {
		return nil, fmt.Errorf("send descriptors: %w", err)
	}
	conn.Close()
	// Only the stub is to have these, or its end would not be seen.
	pairs.closeFar()
	near, err := nonblocking(data.near)
	if err != nil {
		return nil, err
	}
	defer near.Close()
	stop := context.AfterFunc(ctx, func() { near.SetReadDeadline(time.Unix(1, 0)) })
	desc, err := readDescription(near)
	if !stop() && err != nil {
		err = fmt.Errorf("%w: %w", errDescription, context.Cause(ctx))
	}
	if err != nil {
		return nil, err
	}
	if err := p.holds(desc.SyscallFD, inode); err != nil {
		return nil, fmt.Errorf("check its identity: %w", err)
	}
	s.Description = desc
	cfg := rsys.Config{
		Pid: p.pid, Pidfd: p.pidfd, TID: desc.Pid, Channel: syscalls.near, Inlet: connection.near, FD: desc.SyscallFD, InletFD: desc.ConnectionFD,
		Entry: desc.Entry, Sigmask: desc.Sigmask, Arena: s.Arena, ArenaFD: desc.MemFD,
	}
	if c.Transport == DataSocket {
		cfg.Data, cfg.DataFD, cfg.Futex = near, desc.DataFD, s.futex
	}
	task = true
	if s.Task, err = rsys.NewTask(ctx, cfg); err != nil {
		return nil, fmt.Errorf("make a task of it: %w", err)
	}
	s.own = s.Arena.Used()
	return s, nil
}

// allocate makes the stub's memory on our side.
func (s *Stub) allocate(c Config) (err error) {
	size := c.ArenaSize
	if size == 0 {
		size = DefaultArenaSize
	}
	if c.Transport == SharedArena {
		s.Arena, err = rsys.NewArena(size)
		return err
	}
	if s.futex, err = rsys.NewArena(os.Getpagesize()); err != nil {
		return err
	}
	s.Arena, err = rsys.NewLocalArena(size)
	return err
}

// shared is the memory that the stub is sent.
func (s *Stub) shared() *rsys.Arena {
	if s.futex != nil {
		return s.futex
	}
	return s.Arena
}

func (s *Stub) free() error {
	var errs []error
	for _, a := range []*rsys.Arena{s.Arena, s.futex} {
		if a != nil {
			errs = append(errs, a.Close())
		}
	}
	return errors.Join(errs...)
}

// InUse is the number of bytes of the arena that are allocated, what the stub itself needs not counted.
func (s *Stub) InUse() int {
	select {
	case <-s.Task.Child.Left():
		return s.Arena.Used()
	default:
		return s.Arena.Used() - s.own
	}
}

// Getwd is the stub's working directory.
func (s *Stub) Getwd(ctx context.Context) (string, error) {
	const size = 4096
	run := s.Task.NewRun()
	defer run.Close()
	if err := run.Do(ctx, call.Step{Call: call.Getcwd(size)}); err != nil {
		return "", err
	}
	// It counts the null; a process that lies about it gets what it wrote.
	return unix.ByteSliceToString(run.Out(0, 0)), nil
}

// Exit has the stub exit with status, and waits for it.
func (s *Stub) Exit(ctx context.Context, status int) error {
	_, err := s.Task.Call(ctx, call.ExitGroup(status))
	var died *rsys.DiedError
	if !errors.As(err, &died) || died.Cause != nil {
		return err
	}
	if n, ok := died.Exit.Exited(); died.Exit.Known() && (!ok || n != status&0xff) {
		return err
	}
	return nil
}

// seclude closes what the stub has inherited beside its own descriptors: whoever started us may have
// left some without close-on-exec. And it is made undumpable, as its copies will be: one in sight of
// others, that has dropped its privileges, is not theirs to trace without CAP_SYS_PTRACE.
func (s *Stub) seclude(ctx context.Context) error {
	own := []int{s.Description.SyscallFD, s.Description.DataFD, s.Description.ConnectionFD}
	slices.Sort(own)
	steps := []call.Step{{Call: call.Prctl(unix.PR_SET_DUMPABLE, call.Int(0))}}
	first := 3
	for _, fd := range append(own, math.MaxInt32) {
		if first < fd {
			steps = append(steps, call.Step{Call: call.CloseRange(uint32(first), uint32(fd-1), 0)})
		}
		first = fd + 1
	}
	run := s.Task.NewRun()
	defer run.Close()
	return run.Do(ctx, steps...)
}

// Close kills the stub, waits for its end, and closes the arena. A stub that
// has exec'd is left alone: its Child remains. Tasks cloned from it must have left.
func (s *Stub) Close() error {
	if s.Task.Child.Execed() {
		s.Task.Forget()
	} else {
		s.Task.Kill()
		<-s.Task.Child.Exited()
	}
	return s.free()
}

// spawn starts the stub's program with bootstrap as its descriptor 3, in a
// session of its own, with nothing of our environment, and in "/".
func spawn(exe, bootstrap *os.File) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	var pid int
	onSpawner(func() {
		var p *os.Process
		p, err = os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", exe.Fd()), []string{"rsys-stub"}, &os.ProcAttr{
			Dir:   "/",
			Env:   []string{},
			Files: []*os.File{null, null, null, bootstrap},
			Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		})
		if err == nil {
			pid = p.Pid
			p.Release()
		}
	})
	return pid, err
}

// The parent-death signal goes off when the thread that forked ends, so all stubs are
// forked by one thread that never does.
var (
	spawner     chan func()
	spawnerOnce sync.Once
)

func onSpawner(f func()) {
	spawnerOnce.Do(func() {
		spawner = make(chan func())
		go func() {
			runtime.LockOSThread()
			for f := range spawner {
				f()
			}
		}()
	})
	done := make(chan struct{})
	spawner <- func() {
		defer close(done)
		f()
	}
	<-done
}

type pair struct{ near, far *os.File }

type pairList []pair

func socketpairs(n int) (pairList, error) {
	var list pairList
	for range n {
		near, far, err := socketpair()
		if err != nil {
			list.close()
			return nil, err
		}
		list = append(list, pair{near, far})
	}
	return list, nil
}

func socketpair() (near, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far"), nil
}

// send sends one byte with the files' descriptors. There is room for it in the
// socket: it is the first that is sent.
func send(conn *os.File, files ...*os.File) error {
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	return os.NewSyscallError("sendmsg", unix.Sendmsg(int(conn.Fd()), []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT))
}

func inodeOf(f *os.File) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st.Ino, os.NewSyscallError("fstat", err)
}

func (l pairList) closeFar() {
	for _, p := range l {
		p.far.Close()
	}
}

func (l pairList) close() {
	l.closeFar()
	for _, p := range l {
		p.near.Close()
	}
}

// nonblocking is a copy of f that Go's poller serves.
func nonblocking(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
