package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
)

// processState is a process:
//
//	made --Start--> running --> exited
//	  |                           ^
//	  +---- Close, failed Start --+
//
// The init has a child from the beginning, an exec'd process from Start on.
type processState struct {
	container *Container
	spec      *specs.Process
	stdio     Stdio // copies, of a process that is yet to be cloned
	ready     *Ready
	restoring *restoring // of an init that criu is to make
	done      chan struct{}
	result    Exit

	starting sync.Mutex // held by Start and Close

	mu     sync.Mutex
	run    *run                    // until started
	cancel context.CancelCauseFunc // of the start
	child  *rsys.Child
	pty    *os.File
}

var errClosed = errors.New("process is closed")

func newProcess(c *Container, r *run, spec *specs.Process) *Process {
	return &Process{processState: processState{container: c, run: r, spec: spec, done: make(chan struct{})}}
}

// adopt makes child the process's.
func (p *processState) adopt(child *rsys.Child) {
	p.mu.Lock()
	p.child = child
	p.mu.Unlock()
	go func() {
		<-child.Exited()
		status, at := child.Status()
		p.finish(exitStatus(status), at)
	}()
}

func (p *processState) finish(status uint32, at time.Time) {
	p.result = Exit{Status: status, At: at}
	close(p.done)
}

// exitStatus is a status as shells and containerd have it.
func exitStatus(s rsys.ExitStatus) uint32 {
	if sig, ok := s.Signaled(); ok {
		return 128 + uint32(sig)
	}
	return uint32(s.Status)
}

func (p *processState) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.child == nil {
		return 0
	}
	return p.child.Pid()
}

func (p *processState) terminal() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pty
}

func (p *processState) exited() <-chan struct{} { return p.done }
func (p *processState) exit() Exit              { return p.result }

func (p *processState) start(ctx context.Context) error {
	p.starting.Lock()
	defer p.starting.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.mu.Lock()
	r := p.run
	p.run, p.cancel = nil, cancel
	p.mu.Unlock()
	if r == nil {
		return fmt.Errorf("process was started already: %w", errdefs.ErrFailedPrecondition)
	}
	if p.restoring != nil {
		return p.restored(ctx, r)
	}
	err := p.startRun(ctx, r)
	p.ready.Close()
	if err == nil {
		err = r.poststart(ctx)
	}
	if err == nil {
		r.forget()
		return nil
	}
	undoCtx, undone := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer undone()
	if c := p.container; c.Init != nil && p == &c.Init.processState {
		err = c.outOfMemory(err)
	}
	err = errors.Join(p.container.stopped(p, err), r.abandon(undoCtx))
	if p.pid() == 0 {
		p.finish(255, time.Now())
	}
	return err
}

// endTime bounds the wait for the end of an init that has begun to end: the kernel first ends all others in its PID namespace.
const endTime = 2 * time.Second

// restored is the start of a process that criu makes. What held the mounts for criu has done its work.
func (p *processState) restored(ctx context.Context, r *run) error {
	err := p.restoring.do(ctx, r, p)
	undoCtx, undone := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer undone()
	err = errors.Join(err, r.abandon(undoCtx), p.restoring.making.dropHolder(undoCtx))
	if err == nil {
		err = p.container.cgroup.Settle(undoCtx)
	}
	if err != nil && p.pid() == 0 {
		p.finish(255, time.Now())
	}
	return err
}

// stopped says of what went wrong in an exec whose container has stopped that this is why. The failure
// may be there before the end is: from its first moment on the kernel refuses what is asked of the namespaces, as ENOENT, ESRCH or ENOMEM.
func (c *Container) stopped(p *processState, err error) error {
	if c.Init == nil || p == &c.Init.processState {
		return err
	}
	select {
	case <-c.Init.exited():
	default:
		if err == nil || !c.Init.child.Ending() {
			return err
		}
		select {
		case <-c.Init.exited():
		case <-time.After(endTime):
		}
	}
	return fmt.Errorf("container has stopped: %w: %w", errdefs.ErrFailedPrecondition, err)
}

func (p *processState) startRun(ctx context.Context, r *run) error {
	if p.pid() == 0 {
		if err := p.spawn(ctx, r); err != nil {
			return err
		}
	}
	if r.plan.Birth < 0 {
		r.home(p.spec.User.UID)
		return r.exec(ctx)
	}
	if r.born == nil {
		r.home(p.spec.User.UID)
		if err := r.bear(ctx); err != nil {
			return err
		}
		p.adopt(r.born.Child)
	}
	return r.open(ctx)
}

func (p *processState) signal(sig unix.Signal) error {
	p.mu.Lock()
	child := p.child
	p.mu.Unlock()
	if child == nil {
		return fmt.Errorf("process is not started: %w", errdefs.ErrFailedPrecondition)
	}
	err := child.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	return err
}

func (p *processState) close() error {
	// A start that is under way ends first: it may hang in a hook, or in execve.
	p.mu.Lock()
	if p.cancel != nil {
		p.cancel(errClosed)
	}
	p.mu.Unlock()
	p.starting.Lock()
	defer p.starting.Unlock()

	p.mu.Lock()
	r, child, pty := p.run, p.child, p.pty
	p.run, p.pty = nil, nil
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	var errs []error
	if r != nil {
		errs = append(errs, r.abandon(ctx))
		if p.restoring != nil {
			errs = append(errs, p.restoring.making.dropHolder(ctx))
		}
	}
	p.stdio.close()
	p.ready.Close()
	if child == nil {
		select {
		case <-p.done:
		default:
			p.finish(255, time.Now())
		}
	} else {
		child.Signal(unix.SIGKILL)
		_, err := child.Wait(ctx)
		errs = append(errs, err)
	}
	if pty != nil {
		errs = append(errs, pty.Close())
	}
	return errors.Join(errs...)
}

func (s *Stdio) files() [3]*os.File { return [3]*os.File{s.Stdin, s.Stdout, s.Stderr} }

// copy is a Stdio that stays when its owner closes the files.
func (s *Stdio) copy() (Stdio, error) {
	var copies [3]*os.File
	for i, f := range s.files() {
		if f == nil {
			continue
		}
		raw, err := f.SyscallConn()
		if err == nil {
			n := -1
			raw.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
			if err == nil {
				copies[i] = os.NewFile(uintptr(n), f.Name())
			}
		}
		if err != nil {
			c := Stdio{copies[0], copies[1], copies[2]}
			c.close()
			return Stdio{}, fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return Stdio{copies[0], copies[1], copies[2]}, nil
}

func (s *Stdio) close() {
	for _, f := range s.files() {
		if f != nil {
			f.Close()
		}
	}
	*s = Stdio{}
}
