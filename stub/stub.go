// Package stub starts the stub: a process of some kilobytes that runs
// nothing but the server of package rsys, in an address space of its own. All
// other tasks are cloned from it, so that nothing ever shares this process's memory.
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
	Arena       *rsys.Arena
	Description *Description
	data        *os.File
}

// bootstrapTime bounds a stub's bootstrap, which takes a millisecond.
const bootstrapTime = 10 * time.Second

// Start starts a stub with an arena of arenaSize bytes. It is killed when
// this process ends, however that is.
func Start(ctx context.Context, arenaSize int) (*Stub, error) {
	ctx, cancel := context.WithTimeout(ctx, bootstrapTime)
	defer cancel()
	arena, err := rsys.NewArena(arenaSize)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	s, err := start(ctx, arena)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("stub: %w", err), arena.Close())
	}
	return s, nil
}

func start(ctx context.Context, arena *rsys.Arena) (*Stub, error) {
	exe, err := sealedImage()
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	pairs, err := socketpairs(4)
	if err != nil {
		return nil, err
	}
	defer pairs.close()
	bootstrap, syscalls, data, connection := pairs[0], pairs[1], pairs[2], pairs[3]

	pid, err := spawn(exe, bootstrap.far)
	if err != nil {
		return nil, err
	}
	// Until it is a task, this is what ends it.
	abandon := func(err error) (*Stub, error) {
		unix.Kill(pid, unix.SIGKILL)
		unix.Wait4(pid, nil, 0, nil)
		return nil, err
	}
	rights := unix.UnixRights(int(syscalls.far.Fd()), int(data.far.Fd()), int(arena.File().Fd()), int(connection.far.Fd()))
	if err := unix.Sendmsg(int(bootstrap.near.Fd()), []byte{0}, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return abandon(os.NewSyscallError("sendmsg", err))
	}
	// Only the stub is to have these, or its end would not be seen.
	pairs.closeFar()
	near, err := nonblocking(data.near)
	if err != nil {
		return abandon(err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		near.SetReadDeadline(deadline)
	}
	desc, err := readDescription(near)
	if err != nil {
		near.Close()
		return abandon(err)
	}
	near.SetReadDeadline(time.Time{})
	task, err := rsys.NewTask(ctx, rsys.Config{
		Pid: pid, Channel: syscalls.near, Inlet: connection.near, FD: desc.SyscallFD, InletFD: desc.ConnectionFD,
		Entry: desc.Entry, Arena: arena, ArenaFD: desc.MemFD,
	})
	if err != nil {
		near.Close()
		return nil, err
	}
	s := &Stub{Task: task, Arena: arena, Description: desc, data: near}
	err = s.closeOthers(ctx)
	if err == nil {
		// So are its copies: one in sight of others, that has dropped its privileges, is not theirs to trace without CAP_SYS_PTRACE.
		_, err = task.Call(ctx, call.Prctl(unix.PR_SET_DUMPABLE, call.Int(0)))
	}
	if err != nil {
		return nil, errors.Join(err, task.Child.Signal(unix.SIGKILL), near.Close())
	}
	return s, nil
}

// closeOthers closes what the stub has inherited beside its own descriptors:
// whoever started us may have left some without close-on-exec.
func (s *Stub) closeOthers(ctx context.Context) error {
	own := []int{s.Description.SyscallFD, s.Description.DataFD, s.Description.ConnectionFD}
	slices.Sort(own)
	first := 3
	for _, fd := range append(own, math.MaxInt32) {
		if first < fd {
			if _, err := s.Task.Call(ctx, call.CloseRange(uint32(first), uint32(fd-1), 0)); err != nil {
				return err
			}
		}
		first = fd + 1
	}
	return nil
}

// Close kills the stub, waits until it is reaped, and closes the arena. Tasks
// cloned from it must have left.
func (s *Stub) Close() error {
	s.Task.Kill()
	<-s.Task.Child.Exited()
	return errors.Join(s.data.Close(), s.Arena.Close())
}

// sealedImage is the stub's program in a memfd that can't be changed any more.
func sealedImage() (*os.File, error) {
	fd, err := unix.MemfdCreate("rsys-stub", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("rsys-stub", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "rsys-stub")
	if _, err := f.Write(image()); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return f, nil
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
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			list.close()
			return nil, os.NewSyscallError("socketpair", err)
		}
		list = append(list, pair{os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")})
	}
	return list, nil
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
