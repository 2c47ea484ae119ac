package rsys

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
)

// Fetch is a copy, made non-blocking unless it is one of O_PATH, of a descriptor of the task's. It is taken by
// pidfd_getfd, or sent by the task where the kernel does not allow that, for which we would have to be allowed to ptrace the
// task: kernel.yama.ptrace_scope=3 forbids it to everybody, and a seccomp profile of our own may.
func (t *Task) Fetch(ctx context.Context, fd int) (*os.File, error) {
	f, err := t.Child.Fetch(fd)
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) {
		return f, err
	}
	if f, sendErr := t.sendBack(ctx, fd); sendErr == nil {
		return f, nil
	} else if !errors.Is(sendErr, errors.ErrUnsupported) {
		return nil, sendErr
	}
	return nil, err
}

// sendBack has the task send one of its descriptors, with a byte, by the channel by which it receives them.
func (t *Task) sendBack(ctx context.Context, fd int) (*os.File, error) {
	if t.passer != t.conn {
		return nil, errors.ErrUnsupported // no task of ours that has opened anything
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	run := t.NewRun()
	defer run.Close()
	if err := run.request(ctx, []*call.Step{{Call: sendFD(t.inlet.Arg(), fd)}}); err != nil {
		return nil, err
	}
	// If it can't be sent, the first byte that comes is the response's.
	n, err := t.receiveFD(ctx)
	if err != nil {
		return nil, run.died(0, err)
	}
	if n < 0 {
		rest := make([]byte, responseSize-1)
		if _, err := io.ReadFull(t.conn.file, rest); err != nil {
			return nil, run.died(0, t.Child.diedError())
		}
		return nil, &StepError{0, *run.steps[0].call, run.Result(0).Errno}
	}
	f := os.NewFile(uintptr(n), fmt.Sprintf("fd %d of %d", fd, t.Child.pid))
	if err := run.finish(ctx, 0); err != nil {
		f.Close()
		return nil, err
	}
	if err := unix.SetNonblock(n, true); err != nil && err != unix.EBADF {
		f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}

// receiveFD reads a byte, which is always the same, from the channel and the descriptor that came with it; -1 if none did.
func (t *Task) receiveFD(ctx context.Context) (fd int, err error) {
	stop := context.AfterFunc(ctx, func() { t.Child.interrupt(context.Cause(ctx)) })
	defer stop()
	raw, err := t.conn.file.SyscallConn()
	if err != nil {
		return -1, err
	}
	var buf [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, recvErr = unix.Recvmsg(int(fd), buf[:], oob, unix.MSG_CMSG_CLOEXEC)
		return recvErr != unix.EAGAIN
	})
	if err != nil || recvErr != nil || n == 0 {
		return -1, t.Child.diedError()
	}
	if oobn < unix.CmsgLen(4) {
		return -1, nil
	}
	return int(int32(binary.NativeEndian.Uint32(oob[cmsgHdrSize:]))), nil
}

// sendFD is a sendmsg of one byte with a descriptor.
func sendFD(sock call.Arg, fd int) call.Call {
	control := make([]byte, unix.CmsgSpace(4))
	binary.NativeEndian.PutUint64(control[0:], uint64(unix.CmsgLen(4)))
	binary.NativeEndian.PutUint32(control[8:], unix.SOL_SOCKET)
	binary.NativeEndian.PutUint32(control[12:], unix.SCM_RIGHTS)
	binary.NativeEndian.PutUint32(control[16:], uint32(fd))
	iov := make([]byte, 16)
	binary.NativeEndian.PutUint64(iov[8:], 1)
	hdr := make([]byte, 56)
	binary.NativeEndian.PutUint64(hdr[24:], 1)                    // msg_iovlen
	binary.NativeEndian.PutUint64(hdr[40:], uint64(len(control))) // msg_controllen
	data := call.Bytes(iov).With(call.Ptr{Off: 0, To: call.Bytes([]byte{0})})
	msg := call.Bytes(hdr).With(call.Ptr{Off: 16, To: data}, call.Ptr{Off: 32, To: call.Bytes(control)})
	msg.Form = call.FormHidden
	return call.Call{Name: "sendmsg", Nr: unix.SYS_SENDMSG, Args: []call.Arg{sock, msg, call.Int(unix.MSG_NOSIGNAL)}}
}
