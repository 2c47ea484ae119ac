package stub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// SocketVariable is the environment variable that tells the stub's program the path of a
// server's socket.
const SocketVariable = "RSYS_STUB_SOCKET"

// A Server makes tasks of programs that call on it: a process that executes
// the stub's program, which [WriteProgram] writes, with [SocketVariable] in its environment.
type Server struct {
	Config // of the stubs; may be set before the first Accept

	path  string
	l     *net.UnixListener
	calls chan caller
	ended chan struct{}
	once  sync.Once
}

type caller struct {
	conn *net.UnixConn
	err  error
}

// Listen makes a socket at path that only this user may connect to.
func Listen(path string) (*Server, error) {
	l, path, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("stub: listen: %w", err)
	}
	s := &Server{path: path, l: l, calls: make(chan caller), ended: make(chan struct{})}
	go s.loop()
	return s, nil
}

func listen(path string) (*net.UnixListener, string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, "", err
	}
	// Nobody can connect before listen, so nobody can before the mode is set.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, "", os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, "", &os.PathError{Op: "bind", Path: path, Err: err}
	}
	err = errors.Join(os.NewSyscallError("chmod", unix.Chmod(path, 0o600)), os.NewSyscallError("listen", unix.Listen(fd, unix.SOMAXCONN)))
	if err == nil {
		var l net.Listener
		if l, err = net.FileListener(f); err == nil {
			return l.(*net.UnixListener), path, nil
		}
	}
	return nil, "", errors.Join(err, os.Remove(path))
}

// Addr is the absolute path of the socket.
func (s *Server) Addr() string { return s.path }

func (s *Server) loop() {
	defer close(s.ended)
	for {
		conn, err := s.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			close(s.calls)
			return
		}
		s.calls <- caller{conn, err}
	}
}

// Accept waits for a program and makes a task of it. Its [Description] is what it was started
// with; its standard descriptors are the task's 0, 1 and 2; no other is closed.
//
// An error is about one caller, unless it is ctx's or [net.ErrClosed]. It is not
// killed, just hung up on, and the program ends with status 125, or of SIGPIPE, when it is the stub's. A caller that is
// slow takes up to 10 seconds; Accept may be called by several goroutines at once.
//
// The process is not our child. That it has ended is seen by its pidfd; what it ended
// with is known if its parent has not reaped it then, or from Linux 6.15 on; otherwise the [rsys.ExitStatus]
// is not Known. For the same reason execve is told from a death by its parent's leave: a program that ends within
// microseconds of its execve by a signal, reaped at once, is taken for one that never was.
func (s *Server) Accept(ctx context.Context) (*Stub, error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case c, ok := <-s.calls:
		if !ok {
			return nil, net.ErrClosed
		}
		if c.err != nil {
			return nil, fmt.Errorf("stub: accept: %w", c.err)
		}
		return s.receive(ctx, c.conn)
	}
}

func (s *Server) receive(ctx context.Context, conn *net.UnixConn) (*Stub, error) {
	defer conn.Close()
	p, err := caughtPeer(conn)
	if err != nil {
		return nil, fmt.Errorf("stub: accept: %w", err)
	}
	defer p.pidfd.Close()
	f, err := conn.File()
	if err != nil {
		return nil, fmt.Errorf("stub: accept: %w", err)
	}
	conn.Close()
	defer f.Close()
	stub, err := s.bootstrap(ctx, f, p)
	if err != nil {
		return nil, fmt.Errorf("stub: accept: process %d: %w", p.pid, err)
	}
	return stub, nil
}

// Close closes and removes the socket. Stubs that were accepted remain.
func (s *Server) Close() error {
	err := net.ErrClosed
	s.once.Do(func() {
		err = errors.Join(os.Remove(s.path), s.l.Close())
		for c := range s.calls {
			if c.conn != nil {
				c.conn.Close()
			}
		}
		<-s.ended
	})
	return err
}

// caughtPeer is the process that connected.
func caughtPeer(conn *net.UnixConn) (p process, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return p, err
	}
	if ctlErr := raw.Control(func(fd uintptr) { p, err = peerOf(int(fd)) }); ctlErr != nil {
		return p, ctlErr
	}
	return p, err
}

func peerOf(fd int) (process, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	switch {
	case err != nil:
		return process{}, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	case cred.Pid <= 0:
		return process{}, errors.New("the caller is in a PID namespace that can't be seen from here")
	case cred.Uid != 0 && int(cred.Uid) != os.Geteuid():
		return process{}, fmt.Errorf("the caller, process %d, is user %d's", cred.Pid, cred.Uid)
	}
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	sure := err == nil
	if err != nil { // before Linux 6.5; holds finds out if the number is another's by now
		pidfd, err = unix.PidfdOpen(int(cred.Pid), 0)
		if err != nil {
			return process{}, os.NewSyscallError("pidfd_open", err)
		}
	}
	return process{int(cred.Pid), os.NewFile(uintptr(pidfd), "pidfd"), sure}, nil
}

// holds checks that the process is the one that serves: that it has the socket with this inode as
// its descriptor fd. The pidfd is of who connected, who could have passed the connection on.
func (p process) holds(fd int, inode uint64) error {
	if p.pidfd == nil {
		return nil // we started it
	}
	n, err := unix.PidfdGetfd(int(p.pidfd.Fd()), fd, 0)
	if err == unix.EPERM && p.sure {
		return nil // we may not look (a host with Yama, and without root), but it is who called
	}
	if err != nil {
		return os.NewSyscallError("pidfd_getfd", err)
	}
	f := os.NewFile(uintptr(n), "channel")
	defer f.Close()
	if got, err := inodeOf(f); err != nil || got != inode {
		return errors.Join(err, fmt.Errorf("process %d does not have the channel", p.pid))
	}
	return nil
}
