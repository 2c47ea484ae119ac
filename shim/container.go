package shim

import (
	"context"
	"fmt"
	"sync"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A containerTask is a container as containerd knows it: the task and what was exec'd in it.
type containerTask struct {
	s            *service
	id, bundle   string
	t            taskContainer
	init         *process
	ioUID, ioGID int
	criu         criuOptions
	stopOOM      context.CancelFunc
	trace        []traceStep // of the create, until the start; nil if traces are not made

	// pauseOp is held while the container is paused or resumed.
	pauseOp sync.Mutex

	mu       sync.Mutex
	procs    map[string]*process
	initGone bool
	pause    task.Status // PAUSED, PAUSING or, for neither, UNKNOWN
	execs    sync.WaitGroup
}

func (c *containerTask) ioOptions() ioOptions {
	return ioOptions{id: c.id, namespace: c.s.namespace, uid: c.ioUID, gid: c.ioGID, streams: c.s.streams}
}

// process finds the task itself or, by its ID, an exec'd process.
func (c *containerTask) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.procs[execID]
	if p == nil {
		return nil, notFound("process does not exist %s", execID)
	}
	return p, nil
}

func (c *containerTask) addExec(p *process) error {
	s, _, _ := c.init.snapshot()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.procs[p.execID] != nil || p.execID == c.id {
		return fmt.Errorf("id %s: %w", p.execID, errdefs.ErrAlreadyExists)
	}
	switch {
	case s == stopped || s == deleted || c.initGone:
		return precondition("cannot exec in a stopped state")
	case c.pause != task.Status_UNKNOWN:
		return precondition("cannot exec in a paused state")
	}
	c.procs[p.execID] = p
	return nil
}

func (c *containerTask) removeExec(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.procs, id)
}

func (c *containerTask) allExecs() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*process, 0, len(c.procs))
	for _, p := range c.procs {
		all = append(all, p)
	}
	return all
}

// execStarts counts an exec that the init's exit has to wait for.
func (c *containerTask) execStarts() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.initGone {
		return precondition("container %s init process is not running", c.id)
	}
	c.execs.Add(1)
	return nil
}

// watch tells of the init's exit, the last one of a container.
func (c *containerTask) watch() {
	<-c.init.p.Exited()
	c.mu.Lock()
	c.initGone = true
	paused := c.pause != task.Status_UNKNOWN
	c.mu.Unlock()
	if c.t.SharesPID() {
		// No PID namespace ends with the init, so what it leaves behind is ended here.
		if err := c.t.KillAll(unix.SIGKILL); err != nil {
			log.L.WithError(err).Warnf("kill what is left of container %s", c.id)
		}
		// One that has moved to another cgroup would be waited for below.
		for _, p := range c.allExecs() {
			p.kill(unix.SIGKILL)
		}
	}
	if paused {
		if err := c.thaw(context.Background()); err != nil {
			log.L.WithError(err).Warnf("resume container %s, whose init has exited", c.id)
		}
	}
	c.execs.Wait()
	c.init.finish(c.init.p.Exit())
}

// watchOOM forwards the kernel's out-of-memory kills.
func (c *containerTask) watchOOM() {
	ctx, cancel := context.WithCancel(context.Background())
	c.stopOOM = cancel
	kills, err := c.t.OOM(ctx)
	if err != nil {
		log.L.WithError(err).Warnf("watch container %s for out-of-memory kills", c.id)
		return
	}
	if kills == nil {
		return
	}
	go func() {
		for range kills {
			c.s.events.send(topicOOM, &eventsapi.TaskOOM{ContainerID: c.id})
		}
	}()
}

func (c *containerTask) pauseStatus() task.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pause
}

func (c *containerTask) setPause(s task.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pause = s
}

func (c *containerTask) doPause(ctx context.Context) error {
	c.pauseOp.Lock()
	defer c.pauseOp.Unlock()
	if s, _, _ := c.init.snapshot(); s != running {
		return precondition("cannot pause task in %s state", s)
	}
	if c.pauseStatus() != task.Status_UNKNOWN {
		return precondition("cannot pause a paused container")
	}
	c.setPause(task.Status_PAUSING)
	if err := c.t.Pause(ctx); err != nil {
		c.setPause(task.Status_UNKNOWN)
		return err
	}
	c.setPause(task.Status_PAUSED)
	c.s.events.send(topicPaused, &eventsapi.TaskPaused{ContainerID: c.id})
	return nil
}

func (c *containerTask) doResume(ctx context.Context) error {
	c.pauseOp.Lock()
	defer c.pauseOp.Unlock()
	if s, _, _ := c.init.snapshot(); s != running {
		return precondition("cannot resume task in %s state", s)
	}
	if c.pauseStatus() == task.Status_UNKNOWN {
		return precondition("cannot resume a running process")
	}
	if err := c.t.Resume(ctx); err != nil {
		return err
	}
	c.setPause(task.Status_UNKNOWN)
	c.s.events.send(topicResumed, &eventsapi.TaskResumed{ContainerID: c.id})
	return nil
}

func (c *containerTask) thaw(ctx context.Context) error {
	c.pauseOp.Lock()
	defer c.pauseOp.Unlock()
	if c.pauseStatus() == task.Status_UNKNOWN {
		return nil
	}
	err := c.t.Resume(ctx)
	c.setPause(task.Status_UNKNOWN)
	return err
}

// kill signals the init, one exec'd process, or everything.
func (c *containerTask) kill(ctx context.Context, execID string, sig unix.Signal, all bool) error {
	p, err := c.process(execID)
	if err != nil {
		return err
	}
	if execID == "" && all {
		if s, _, _ := p.snapshot(); s == stopped || s == deleted {
			return notFound("process already finished")
		}
		return c.t.KillAll(sig)
	}
	if err := p.kill(sig); err != nil {
		return err
	}
	if sig == unix.SIGKILL && c.pauseStatus() == task.Status_PAUSED && execID == "" {
		// What is frozen by a cgroup v1 dies only when it is thawed.
		return c.thaw(ctx)
	}
	return nil
}

// delete removes the task, which must not be running.
func (c *containerTask) delete(ctx context.Context) error {
	p := c.init
	switch s, _, _ := p.snapshot(); s {
	case running:
		return precondition("cannot delete a running process")
	case deleted:
		return notFound("cannot delete a deleted process")
	case created:
		if err := p.p.Close(); err != nil {
			return fmt.Errorf("end the created process: %w", err)
		}
		// Its exit is told before its deletion.
		if _, err := p.wait(ctx); err != nil {
			return err
		}
	}
	p.op.Lock()
	defer p.op.Unlock()
	if s, _, _ := p.snapshot(); s == deleted {
		return notFound("cannot delete a deleted process")
	}
	p.io.drain(drainAtDelete)
	if err := c.t.Delete(ctx); err != nil {
		return fmt.Errorf("delete container %s: %w", c.id, err)
	}
	c.stopOOM()
	p.io.close()
	for _, e := range c.allExecs() {
		if err := e.deleteExec(); err != nil {
			log.L.WithError(err).Warnf("delete process %s", e.execID)
		}
	}
	p.mu.Lock()
	p.state = deleted
	pid, exit := p.pid, p.exit
	p.mu.Unlock()
	c.s.events.send(topicDelete, &eventsapi.TaskDelete{
		ContainerID: c.id,
		Pid:         uint32(pid),
		ExitStatus:  exit.Status,
		ExitedAt:    timestamppb.New(exit.At),
	})
	return nil
}
