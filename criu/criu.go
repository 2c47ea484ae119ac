// Package criu talks to criu, which checkpoints and restores processes. criu is a program of its own; it is started for each
// request, as `criu swrk`, and asked over a socket in the protocol of go-criu's package rpc.
package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// Program is what is looked for in PATH if nobody says which criu is meant.
const Program = "criu"

// FirstFile is the descriptor that the first of a Request's Files has in criu: 3 is the socket.
const FirstFile = 4

// A Request is one request to criu.
type Request struct {
	Path string // of the program, or its name in PATH; Program if empty
	Type rpc.CriuReqType
	Opts *rpc.CriuOpts
	// Images is where the images are, and Work where criu writes its log, Opts.LogFile, and its statistics: Images
	// if empty. Both are there already.
	Images, Work string
	Files        []*os.File // passed on, from FirstFile
	// Holder is a process in the mount namespace in which criu is to run; 0: ours. Nothing else is in it: when criu has failed, what
	// it has left there, and what it has made in our name, is killed.
	Holder int
	// Note is a file that is there while criu works in another mount namespace, for EndNoted if we are killed; none if empty.
	Note string
	// Notify is told of criu's progress, and of a file that came with a notification. An error of it fails the request.
	Notify func(script string, pid int, file *os.File) error
}

// waitEnd is how long criu may take to end when it has answered.
const waitEnd = 10 * time.Second

// waitUndo is how long it may take when we have hung up. It finds that out at its next notification, the last of which comes
// when all memory is dumped, and undoes what it has done. Killed, it can leave a process with code of criu's in it.
var waitUndo = time.Minute

// Do sends the request and waits for criu's answer and end. The error has what criu itself says is wrong, and where its log is. When
// the context ends, criu gives up and undoes what it has done; if it does not, it is killed, and undoes nothing.
func (r *Request) Do(ctx context.Context) (resp *rpc.CriuResp, err error) {
	program, err := r.program()
	if err != nil {
		return nil, err
	}
	// criu mounts below its working directory, which can be done by a file only if that is of its own namespace.
	root := ""
	if r.Holder != 0 {
		root = "/proc/" + strconv.Itoa(r.Holder) + "/root"
	}
	images, err := os.Open(root + r.Images)
	if err != nil {
		return nil, fmt.Errorf("criu: images: %w", err)
	}
	defer images.Close()
	// criu opens both by our /proc/PID/fd: it takes the socket's maker for who asks.
	r.Opts.ImagesDirFd = Ptr(int32(images.Fd()))
	r.Opts.NotifyScripts = Ptr(r.Notify != nil)
	logs := r.Images
	if r.Work != "" {
		work, err := os.Open(root + r.Work)
		if err != nil {
			return nil, fmt.Errorf("criu: work directory: %w", err)
		}
		defer work.Close()
		r.Opts.WorkDirFd = Ptr(int32(work.Fd()))
		logs = r.Work
	}
	started := time.Now()
	p, err := r.start(program)
	if err != nil {
		return nil, fmt.Errorf("criu: start %s: %w", program, err)
	}
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ctx.Done():
			p.conn.Close()
		case <-done:
		}
	}()
	resp, err = p.converse(r)
	close(done)
	<-stopped
	wait := waitEnd
	if ctx.Err() != nil {
		wait = waitUndo
	}
	endErr := p.end(wait)
	if r.Holder != 0 && (err != nil || endErr != nil) {
		endErr = errors.Join(endErr, p.killLeft(r.Holder))
	}
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause
	} else if err == nil {
		err = endErr
	}
	if err != nil {
		return nil, failure(err, p.stderr.String(), logs, r.Opts.GetLogFile(), started)
	}
	return resp, nil
}

func (r *Request) program() (string, error) {
	name := r.Path
	if name == "" {
		name = Program
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("criu, without which there is no checkpoint and no restore: %w", err)
	}
	return path, nil
}

type conversation struct {
	cmd    *exec.Cmd
	conn   *net.UnixConn
	stderr *head
	ended  chan struct{} // then status is what Wait gave
	status error
	exe    os.FileInfo // criu's own program, which Path may only call
}

func (r *Request) start(program string) (*conversation, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "criu"), os.NewFile(uintptr(fds[1]), "criu")
	defer theirs.Close()
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	p := &conversation{conn: c.(*net.UnixConn), stderr: new(head), ended: make(chan struct{})}
	p.cmd = exec.Command(program, "swrk", "3")
	p.cmd.Stdout, p.cmd.Stderr = p.stderr, p.stderr
	// What it has started and left behind may hold the pipe.
	p.cmd.WaitDelay = time.Second
	p.cmd.ExtraFiles = append([]*os.File{theirs}, r.Files...)
	if err := startIn(r.Holder, p.cmd); err != nil {
		p.conn.Close()
		return nil, err
	}
	go func() {
		p.status = p.cmd.Wait()
		// What it has forked has its end of the socket, too, so that its own end is not that. What it has sent can be read still.
		p.conn.CloseRead()
		close(p.ended)
	}()
	return p, nil
}

// maxMessage is far more than criu sends.
const maxMessage = 64 << 10

func (p *conversation) send(req *rpc.CriuReq) error {
	data, err := req.MarshalVT()
	if err != nil {
		return err
	}
	_, err = p.conn.Write(data)
	return err
}

// converse asks, and answers criu's notifications until it gives its answer.
func (p *conversation) converse(r *Request) (*rpc.CriuResp, error) {
	if err := p.send(&rpc.CriuReq{Type: &r.Type, Opts: r.Opts}); err != nil {
		return nil, fmt.Errorf("send the request: %w", err)
	}
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*4))
	for {
		n, oobn, _, _, err := p.conn.ReadMsgUnix(buf, oob)
		switch {
		case errors.Is(err, unix.ECONNRESET), errors.Is(err, io.EOF):
			return nil, errors.New("it ended without an answer")
		case err != nil:
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		file, err := received(oob[:oobn])
		if err != nil {
			return nil, err
		}
		resp := new(rpc.CriuResp)
		if n == 0 {
			err = errors.New("it ended without an answer")
		} else if err = resp.UnmarshalVT(buf[:n]); err == nil && !resp.GetSuccess() {
			err = refusal(resp)
		}
		if err != nil {
			closeFile(file)
			return nil, err
		}
		if resp.GetType() != rpc.CriuReqType_NOTIFY {
			closeFile(file)
			return resp, nil
		}
		if p.exe == nil {
			// At its first notification, before it forks.
			p.exe, _ = os.Stat("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/exe")
			if r.Note != "" {
				if err := note(r.Note, p.cmd.Process.Pid); err != nil {
					closeFile(file)
					return nil, err
				}
				defer os.Remove(r.Note)
			}
		}
		if r.Notify != nil {
			err = r.Notify(resp.GetNotify().GetScript(), int(resp.GetNotify().GetPid()), file)
		} else {
			closeFile(file)
		}
		if sendErr := p.send(&rpc.CriuReq{Type: Ptr(rpc.CriuReqType_NOTIFY), NotifySuccess: Ptr(err == nil)}); err == nil {
			err = sendErr
		} else {
			// It is told that we have failed, and cleans up; the reason is ours.
			p.conn.SetReadDeadline(time.Now().Add(waitEnd))
			p.conn.Read(buf)
		}
		if err != nil {
			return nil, err
		}
	}
}

// A refused error is an answer that says no.
type refused struct {
	what, msg string
	errno     unix.Errno
}

func refusal(resp *rpc.CriuResp) error {
	return &refused{strings.ToLower(resp.GetType().String()), resp.GetCrErrmsg(), unix.Errno(resp.GetCrErrno())}
}

func (e *refused) Error() string {
	if e.errno != 0 {
		return e.what + " failed: " + e.errno.Error()
	}
	return e.what + " failed"
}

// received is the file that came with a message, nil if there was none.
func received(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var file *os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if file != nil {
				unix.Close(fd)
				continue
			}
			// Non-blocking, as what Go's poller waits for has to be.
			unix.SetNonblock(fd, true)
			file = os.NewFile(uintptr(fd), "from criu")
		}
	}
	return file, nil
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}

// end hangs up and reaps criu, which is killed if it does not end in time.
func (p *conversation) end(wait time.Duration) error {
	p.conn.Close()
	timer := time.AfterFunc(wait, func() { p.cmd.Process.Kill() })
	defer timer.Stop()
	<-p.ended
	if errors.Is(p.status, exec.ErrWaitDelay) {
		return nil
	}
	return p.status
}

// Ptr is a pointer to a copy of v, as the messages want them.
func Ptr[T any](v T) *T { return &v }
