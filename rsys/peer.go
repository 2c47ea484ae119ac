package rsys

import (
	"errors"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A peer is a Child that is not a child of ours: a program that became a task
// by calling on us. Its parent reaps it. So what it ended with is not waited for; it is read
// while it is a zombie, or, from Linux 6.15 on, asked of the pidfd
// afterwards, or not known.

func (c *Child) monitorPeer() {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		panic(err) // of a file that nobody else closes
	}
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
	c.at = time.Now()
	c.leave(true)
	if err == nil { // and not abandoned
		c.status = c.peerStatus()
	}
	c.pidfd.Close()
	c.stat.Close()
	children.Add(-1)
	close(c.exited)
}

// abandon lets go of a peer that did not become a task. It is not ours to kill.
func (c *Child) abandon() {
	c.end()
	<-c.exited
}

// peerStatus is how an ended peer ended.
func (c *Child) peerStatus() ExitStatus {
	const tries = 3 // while it is being reaped neither place has it
	for i := range tries {
		if i > 0 {
			time.Sleep(time.Millisecond)
		}
		if st, err := c.look(); err == nil && (st.exit != 0 || os.Geteuid() == 0) { // others may see a 0 instead
			return waitStatus(st.exit)
		}
		if exit, err := c.pidfdExit(); err == nil {
			return waitStatus(exit)
		}
	}
	return ExitStatus{}
}

// waitStatus translates what wait(2) would have said.
func waitStatus(exit int32) ExitStatus {
	switch w := unix.WaitStatus(exit); {
	case w.Exited():
		return ExitStatus{cldExited, int32(w.ExitStatus())}
	case w.CoreDump():
		return ExitStatus{cldDumped, int32(w.Signal())}
	default:
		return ExitStatus{cldKilled, int32(w.Signal())}
	}
}

const (
	pidfdGetInfo  = 0xc040ff0b // PIDFD_GET_INFO, of a struct pidfd_info of 64 bytes
	pidfdInfoExit = 1 << 3
)

type pidfdInfo struct {
	mask, cgroup uint64
	_            [11]uint32 // IDs
	exit         int32
}

// pidfdExit asks the kernel for the exit status of a process that is reaped: Linux 6.15.
func (c *Child) pidfdExit() (int32, error) {
	info := pidfdInfo{mask: pidfdInfoExit}
	err := errors.ErrUnsupported
	raw, rawErr := c.pidfd.SyscallConn()
	if rawErr != nil {
		return 0, rawErr
	}
	raw.Control(func(fd uintptr) {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info))); errno != 0 {
			err = errno
		} else if info.mask&pidfdInfoExit != 0 {
			err = nil
		}
	})
	return info.exit, err
}

// there reports whether the process, or its zombie, is there.
func (c *Child) there() bool {
	err := c.Signal(0)
	return err == nil || errors.Is(err, unix.EPERM)
}
