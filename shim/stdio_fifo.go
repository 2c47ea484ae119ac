package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// An inputFifo is the shim's hold on a process's stdin: a writer, so that the process sees no end of its input when
// one client goes and another comes, until CloseIO.
//
// There is none yet while a container is created: a client that has all of the input at hand may write it and be gone before
// containerd knows of the task, and with it of whom to pass CloseIO on to. That client's end is the end of the input.
type inputFifo struct {
	mu   sync.Mutex
	hold int // -1: let go
	peek int // the fifo opened for reading, until keep; -1 after
}

// openInput opens a fifo for reading, in blocking mode unless the shim itself is to read it. Neither
// open waits for the other side: the order is one in which each already has its peer.
func openInput(path string, ours bool) (*inputFifo, *os.File, error) {
	probe, err := openFD(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, nil, err
	}
	in := &inputFifo{hold: -1, peek: -1}
	if isFifo(probe) {
		if in.peek, err = unix.FcntlInt(uintptr(probe), unix.F_DUPFD_CLOEXEC, 0); err == nil && ours {
			err = in.keep() // the shim's own reading must not find an end before the first writer
		}
		if err != nil {
			unix.Close(probe)
			in.close()
			return nil, nil, fmt.Errorf("hold %s: %w", path, err)
		}
	}
	if err := unix.SetNonblock(probe, ours); err != nil {
		unix.Close(probe)
		in.close()
		return nil, nil, fmt.Errorf("set the mode of %s: %w", path, err)
	}
	return in, os.NewFile(uintptr(probe), path), nil
}

// keep opens the hold, before the process can read, unless a client has come and gone.
func (in *inputFifo) keep() (err error) {
	if in == nil {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.peek < 0 {
		return nil
	}
	if !hungUp(in.peek) {
		in.hold, err = openFD(fmt.Sprintf("/proc/self/fd/%d", in.peek), unix.O_WRONLY|unix.O_NONBLOCK)
	}
	unix.Close(in.peek)
	in.peek = -1
	return err
}

// hungUp says whether a pipe has no writer, and has had one: the kernel reports a hang-up only if there was a
// writer since it was opened for reading.
func hungUp(r int) bool {
	fds := []unix.PollFd{{Fd: int32(r)}}
	for {
		_, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return err == nil && fds[0].Revents&unix.POLLHUP != 0
		}
	}
}

func (in *inputFifo) close() {
	if in == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.peek >= 0 {
		unix.Close(in.peek)
		in.peek = -1
	}
	if in.hold >= 0 {
		unix.Close(in.hold)
		in.hold = -1
	}
}

// An outputFifo is the shim's hold on a process's stdout or stderr: a reader that never reads, so
// that a process whose reader is restarted waits for it instead of dying of SIGPIPE, and so that what it has written
// is there for the next reader until the process is deleted.
type outputFifo struct {
	path string

	mu     sync.Mutex
	hold   int // reader, -1 when let go
	writer int // after the process's end, while nobody else reads; -1 if there is none
	timer  *time.Timer
}

const (
	minPulse = 10 * time.Millisecond
	maxPulse = 500 * time.Millisecond
)

// readerWait is how long a client may take to open its side. Clients of containerd do so
// before they ask for a process, but in another thread, and a program that has ended before
// its reader came would leave nothing to open for it.
const readerWait = time.Second

// openOutput opens a fifo for writing, in blocking mode unless the shim itself is to write. What
// is no fifo is appended to.
func openOutput(ctx context.Context, path string, ours bool) (*outputFifo, *os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, nil, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		fd, err := openFD(path, unix.O_WRONLY|unix.O_APPEND)
		if err != nil {
			return nil, nil, err
		}
		return nil, os.NewFile(uintptr(fd), path), nil
	}
	w, err := openWithReader(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	hold, err := openFD(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err == nil && w < 0 {
		// Nobody reads, but what is written is kept as long as this is held.
		if w, err = openFD(path, unix.O_WRONLY|unix.O_NONBLOCK); err != nil {
			unix.Close(hold)
		}
	}
	if err == nil {
		if err = unix.SetNonblock(w, ours); err != nil {
			err = fmt.Errorf("set the mode of %s: %w", path, err)
			unix.Close(hold)
		}
	}
	if err != nil {
		if w >= 0 {
			unix.Close(w)
		}
		return nil, nil, err
	}
	return &outputFifo{path: path, hold: hold, writer: -1}, os.NewFile(uintptr(w), path), nil
}

// openWithReader opens a fifo for writing as soon as it has a reader, or returns -1 when
// none has come in time.
func openWithReader(ctx context.Context, path string) (int, error) {
	limit := time.Now().Add(readerWait)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		fd, err := openFD(path, unix.O_WRONLY|unix.O_NONBLOCK)
		if !errors.Is(err, unix.ENXIO) {
			return fd, err
		}
		if time.Now().After(limit) {
			return -1, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return -1, ctx.Err()
		}
	}
}

// release lets the reader see the end of file, now that the process has ended: there is no writer any more. A
// client that is restarted just then may have left something in the pipe, so the pipe is held until close; and as long
// as nobody reads there is a writer, for the open of a client that comes waits for one, and CRI's gives up soon.
func (out *outputFifo) release() {
	out.mu.Lock()
	defer out.mu.Unlock()
	if out.hold < 0 || out.timer != nil {
		return
	}
	out.look()
	pause := minPulse
	out.timer = time.AfterFunc(pause, func() {
		out.mu.Lock()
		defer out.mu.Unlock()
		if out.hold < 0 {
			return
		}
		out.look()
		pause = min(2*pause, maxPulse)
		out.timer.Reset(pause)
	})
}

// look keeps a writer if nobody but us reads, and none if somebody does. To see which, our own reader has to go for
// a moment, in which who writes gets a SIGPIPE. So it stays as long as what the process has left behind can write; then that
// is the writer that a reader finds. Nobody but those who have the fifo from the process can open it in a container.
func (out *outputFifo) look() {
	if out.writer >= 0 {
		unix.Close(out.writer)
		out.writer = -1
	}
	if !hungUp(out.hold) {
		return
	}
	w, err := openFD(fmt.Sprintf("/proc/self/fd/%d", out.hold), unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		return
	}
	unix.Close(out.hold)
	read := hasReader(w)
	if out.hold, err = openFD(fmt.Sprintf("/proc/self/fd/%d", w), unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
		out.hold = -1
	}
	out.writer = w
	if read {
		unix.Close(w)
		out.writer = -1
	}
}

// hasReader says whether a pipe's read side is open anywhere.
func hasReader(w int) bool {
	fds := []unix.PollFd{{Fd: int32(w), Events: unix.POLLOUT}}
	for {
		_, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return err != nil || fds[0].Revents&unix.POLLERR == 0
		}
	}
}

// close lets the pipe go. What a reader has open stays to be read.
func (out *outputFifo) close() {
	out.mu.Lock()
	defer out.mu.Unlock()
	if out.timer != nil {
		out.timer.Stop()
	}
	for _, fd := range []*int{&out.hold, &out.writer} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

func openFD(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
		default:
			return -1, fmt.Errorf("open %s: %w", path, err)
		}
	}
}

func isFifo(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}
