package rsys

import (
	"encoding/binary"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A conn is our end of a channel to a server: requests out, responses in,
// one at a time. It is non-blocking here, in Go's poller, and blocking there.
type conn struct {
	file *os.File
}

// socketpair makes a channel: our end, and the end for a task.
func socketpair() (*conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	c, err := newConn(fds[0])
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, err
	}
	return c, os.NewFile(uintptr(fds[1]), "rsys-task-end"), nil
}

// copyConn is a conn on a copy of f's descriptor.
func copyConn(f *os.File) (*conn, error) {
	fd, err := copyNonblocking(f)
	if err != nil {
		return nil, err
	}
	return &conn{os.NewFile(uintptr(fd), "rsys-channel")}, nil
}

// copyNonblocking is a copy of f's descriptor that Go's poller will take.
func copyNonblocking(f *os.File) (int, error) {
	fd := -1
	err := withFDs([]*os.File{f}, nil, func(fds []int) (err error) {
		fd, err = unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}

func newConn(fd int) (*conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &conn{os.NewFile(uintptr(fd), "rsys-channel")}, nil
}

func (c *conn) request(words [7]uint64) error {
	var b [requestSize]byte
	for i, w := range words {
		binary.NativeEndian.PutUint64(b[8*i:], w)
	}
	_, err := c.file.Write(b[:])
	return err
}

func (c *conn) response() (int64, error) {
	var b [responseSize]byte
	if _, err := io.ReadFull(c.file, b[:]); err != nil {
		return 0, err
	}
	return int64(binary.NativeEndian.Uint64(b[:])), nil
}

// pass sends one byte with descriptors.
func (c *conn) pass(fds []int) error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	rights := unix.UnixRights(fds...)
	var sendErr error
	if err := raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), []byte{0}, rights, nil, unix.MSG_NOSIGNAL)
		return sendErr != unix.EAGAIN
	}); err != nil {
		return err
	}
	return os.NewSyscallError("sendmsg", sendErr)
}

// withFDs calls f with the files' descriptors, and keeps the files from being closed meanwhile: a
// number that is closed by then may be another file's. It leaves non-blocking ones so, as Fd does not.
func withFDs(files []*os.File, fds []int, f func([]int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) { err = withFDs(files[1:], append(fds, int(fd)), f) })
	if controlErr != nil {
		return controlErr
	}
	return err
}

// shutdown makes every read and write on the channel, at both ends, see its
// end; reads that are under way too.
func (c *conn) shutdown() {
	if raw, err := c.file.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
}

func (c *conn) close() error { return c.file.Close() }
