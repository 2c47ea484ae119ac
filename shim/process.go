package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rsys-io/rsys/container"
)

type state int

const (
	created state = iota
	running
	stopped
	deleted
)

func (s state) String() string { return [...]string{"created", "running", "stopped", "deleted"}[s] }

const (
	// A reader that takes its time with a terminal's output delays the exit event by so much, and
	// the delete by so much more; then what is left is dropped.
	drainAtExit   = 2 * time.Second
	drainAtDelete = 10 * time.Second
)

// A process is a task, or a process exec'd in one.
type process struct {
	c      *containerTask
	execID string // empty: the task itself
	spec   *specs.Process
	stdio  stdioPaths

	// op is held by what changes the process for as long as that takes, events included, so that
	// an exit is never told before the start.
	op sync.Mutex

	mu    sync.Mutex
	state state
	p     taskProcess // nil before an exec's start
	ready taskReady   // of an exec that is added, and was not started
	pid   int
	io    *processIO
	size  *unix.Winsize // asked for before there was a terminal
	exit  container.Exit
	done  chan struct{}

	starting    chan struct{} // closed when the start that is under way is over; nil if none is
	inputClosed bool          // by CloseIO, maybe before there was io
	restoring   bool          // by criu, at the start; until then there is no process
}

func (p *process) id() string {
	if p.execID == "" {
		return p.c.id
	}
	return p.execID
}

// snapshot is what State and others answer with.
func (p *process) snapshot() (state, int, container.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, p.pid, p.exit
}

func (p *process) status() task.Status {
	s, _, _ := p.snapshot()
	if s != stopped && s != deleted {
		if st := p.c.pauseStatus(); st != task.Status_UNKNOWN && (s == running || p.execID != "") {
			return st
		}
	}
	switch s {
	case created:
		return task.Status_CREATED
	case running:
		return task.Status_RUNNING
	}
	return task.Status_STOPPED
}

// start runs the process's program.
func (p *process) start(ctx context.Context) (pid int, err error) {
	p.op.Lock()
	defer p.op.Unlock()
	if s, _, _ := p.snapshot(); s != created {
		return 0, precondition("cannot start a %s process", s)
	}
	defer p.startsNow()()
	if p.execID != "" {
		return p.startExec(ctx)
	}
	if p.c.pauseStatus() != task.Status_UNKNOWN {
		return 0, precondition("cannot start a paused process")
	}
	ctx, rec := p.c.s.recorded(ctx)
	err = p.p.Start(ctx)
	p.c.s.keepTrace(p.c.id, p.c.bundle, p.c.trace, rec)
	p.c.trace = nil
	if err == nil && p.restoring {
		err = p.restored()
	}
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	p.state = running
	pid = p.pid
	p.mu.Unlock()
	p.c.s.events.send(topicStart, &eventsapi.TaskStart{ContainerID: p.c.id, Pid: uint32(pid)})
	return pid, nil
}

// startsNow has those wait who ask what the process's state is, until what it returns is called.
func (p *process) startsNow() (over func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	starting := make(chan struct{})
	p.starting = starting
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.starting = nil
		close(starting)
	}
}

// awaitStart waits for a start that is under way. Who was cut off from one by a restart of containerd asks for the state to
// know whether it has to start the process, and is not to hear that it is only created.
func (p *process) awaitStart(ctx context.Context) error {
	p.mu.Lock()
	starting := p.starting
	p.mu.Unlock()
	if starting == nil {
		return nil
	}
	select {
	case <-starting:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// endTime bounds the wait for the end of a process whose start failed, which was killed for it.
const endTime = 2 * time.Second

// awaitEnd waits until it is told of the process that it has ended. Who has its start fail deletes the task at once, as Docker does, and
// containerd's client refuses that while the task is created.
func (p *process) awaitEnd(ctx context.Context) {
	select {
	case <-p.done:
	case <-ctx.Done():
	case <-time.After(endTime):
	}
}

// restored takes note of the process that there is now.
func (p *process) restored() error {
	p.mu.Lock()
	p.pid = p.p.Pid()
	pid, pio := p.pid, p.io
	p.mu.Unlock()
	err := os.WriteFile(filepath.Join(p.c.bundle, pidFile), []byte(strconv.Itoa(pid)), 0o644)
	if err == nil && p.stdio.Terminal {
		err = pio.attach(p.p.Terminal())
		p.mu.Lock()
		p.applySize()
		p.mu.Unlock()
	}
	if err != nil {
		p.p.Close()
	}
	return err
}

func (p *process) startExec(ctx context.Context) (pid int, err error) {
	if err := p.c.execStarts(); err != nil {
		return 0, err
	}
	defer func() {
		if err == nil {
			return
		}
		// Waiters were promised an exit; one that is not success.
		p.setExit(container.Exit{Status: unknownExit, At: time.Now()})
		close(p.done)
		p.c.execs.Done()
	}()
	ready := p.takeReady()
	pio, err := openIO(ctx, p.stdio, p.c.ioOptions())
	if err != nil {
		ready.Close()
		return 0, fmt.Errorf("open the standard streams: %w", err)
	}
	if err := pio.stdin.keep(); err != nil {
		ready.Close()
		pio.close()
		return 0, fmt.Errorf("open the standard streams: %w", err)
	}
	tp, err := ready.exec(ctx, p.spec, pio.stdio)
	if err != nil {
		pio.close()
		return 0, err
	}
	err = tp.Start(ctx)
	pio.handedOver()
	if err == nil && p.stdio.Terminal {
		err = pio.attach(tp.Terminal())
	}
	if err != nil {
		tp.Close()
		pio.close()
		return 0, err
	}
	p.mu.Lock()
	p.p, p.io, p.state = tp, pio, running
	p.pid = tp.Pid()
	pid = p.pid
	p.applySize()
	closed := p.inputClosed
	p.mu.Unlock()
	if closed {
		pio.closeStdin()
	}
	p.c.s.events.send(topicExecStarted, &eventsapi.TaskExecStarted{ContainerID: p.c.id, ExecID: p.execID, Pid: uint32(pid)})
	go func() {
		<-tp.Exited()
		p.finish(tp.Exit())
		p.c.execs.Done()
	}()
	return pid, nil
}

// closeIO lets the process see the end of its input. One that is just being started, whose client has been quick, sees it then.
func (p *process) closeIO() {
	p.mu.Lock()
	pio := p.io
	p.inputClosed = true
	p.mu.Unlock()
	pio.closeStdin()
}

// expectStart has ready, of an exec that was added, what its start will need.
func (p *process) expectStart(ctx context.Context) {
	r := p.c.t.ready(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = r
}

func (p *process) takeReady() taskReady {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.ready
	p.ready = nil
	return r
}

// unknownExit is containerd's exit status for a process of which it knows none.
const unknownExit = 255

// finish makes a process's end known, after what it has written.
func (p *process) finish(exit container.Exit) {
	p.op.Lock()
	defer p.op.Unlock()
	p.io.exited()
	if !p.io.drain(drainAtExit) {
		log.L.Warnf("%s: output not yet read", p.id())
	}
	pid := p.setExit(exit)
	p.c.s.events.send(topicExit, &eventsapi.TaskExit{
		ContainerID: p.c.id,
		ID:          p.id(),
		Pid:         uint32(pid),
		ExitStatus:  exit.Status,
		ExitedAt:    timestamppb.New(exit.At),
	})
	close(p.done)
}

func (p *process) setExit(exit container.Exit) (pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state, p.exit = stopped, exit
	return p.pid
}

func (p *process) wait(ctx context.Context) (container.Exit, error) {
	select {
	case <-p.done:
		_, _, exit := p.snapshot()
		return exit, nil
	case <-ctx.Done():
		return container.Exit{}, ctx.Err()
	}
}

func (p *process) kill(sig unix.Signal) error {
	p.mu.Lock()
	s, tp := p.state, p.p
	p.mu.Unlock()
	switch {
	case s == deleted:
		return notFound("cannot kill a deleted process")
	case s == stopped:
		return notFound("process already finished")
	case tp == nil:
		return precondition("process not created")
	}
	if err := tp.Signal(sig); err != nil {
		return fmt.Errorf("kill %s: %w", p.id(), err)
	}
	return nil
}

// deleteExec frees what an exec'd process holds.
func (p *process) deleteExec() error {
	p.op.Lock()
	defer p.op.Unlock()
	p.mu.Lock()
	s, tp, pio := p.state, p.p, p.io
	p.mu.Unlock()
	switch s {
	case running:
		return precondition("cannot delete a running process")
	case deleted:
		return notFound("cannot delete a deleted process")
	}
	if r := p.takeReady(); r != nil {
		r.Close()
	}
	pio.drain(drainAtDelete)
	pio.close()
	if tp != nil {
		if err := tp.Close(); err != nil {
			log.L.WithError(err).Warnf("close process %s", p.execID)
		}
	}
	p.mu.Lock()
	p.state = deleted
	p.mu.Unlock()
	return nil
}

func (p *process) resize(width, height uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == stopped || p.state == deleted {
		if p.execID == "" {
			return nil // as runc's shim: the init of a container that has just ended is resized by every client
		}
		return precondition("cannot resize a %s process", p.state)
	}
	p.size = &unix.Winsize{Col: uint16(width), Row: uint16(height)}
	return p.applySize()
}

func (p *process) applySize() error {
	if p.size == nil || p.p == nil || !p.stdio.Terminal {
		return nil
	}
	term := p.p.Terminal()
	if term == nil {
		return nil
	}
	return setWinsize(term, p.size)
}

func setWinsize(term *os.File, ws *unix.Winsize) error {
	// Not Fd(), which would make the terminal blocking.
	conn, err := term.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	if err := conn.Control(func(fd uintptr) { ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, ws) }); err != nil {
		return err
	}
	if ierr != nil {
		return fmt.Errorf("TIOCSWINSZ: %w", ierr)
	}
	return nil
}
