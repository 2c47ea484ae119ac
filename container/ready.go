package container

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rsys-io/rsys/rsys"
)

// A Ready is a start made with an exec that is expected: what every exec needs first, whatever its
// program, is made while whoever asks for it still says what it is to be.
//
// It is a process in the container's namespaces but its PID namespace, seen by nobody in there, and on
// cgroup v2 in its cgroup, which it can't be moved to later as cheaply. It holds these, so it ends with the
// container's init.
type Ready struct {
	c      *Container
	cancel context.CancelFunc
	done   chan struct{}
	task   *rsys.Task // when done; nil if there is none
}

// cradleSize has room for the program of any exec but one with an environment larger than that.
const cradleSize = 64 << 10

func (c *Container) ready(ctx context.Context) *Ready {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &Ready{c: c, cancel: cancel, done: make(chan struct{})}
	c.joinerMu.Lock()
	defer c.joinerMu.Unlock()
	if c.ended {
		cancel()
		close(r.done)
		return r
	}
	if c.pending == nil {
		c.pending = make(map[*Ready]struct{})
	}
	c.pending[r] = struct{}{}
	go r.make(ctx)
	return r
}

// make has no error: the exec tries again what failed, and says why.
func (r *Ready) make(ctx context.Context) {
	defer close(r.done)
	task, err := r.c.outsider(ctx)
	if err != nil {
		return
	}
	if err := task.LayCradle(ctx, cradleSize); err != nil {
		task.Kill()
		return
	}
	r.task = task
}

// take is the process, which is the caller's from now on; nil if there is none, or one that died in the meantime.
func (r *Ready) take(ctx context.Context) *rsys.Task {
	select {
	case <-r.done:
	case <-ctx.Done():
		return nil
	}
	r.c.joinerMu.Lock()
	task := r.task
	r.task = nil
	delete(r.c.pending, r)
	r.c.joinerMu.Unlock()
	if task == nil {
		return nil
	}
	select {
	case <-task.Child.Left():
		task.Kill()
		return nil
	default:
		return task
	}
}

// Close ends what no exec has taken.
func (r *Ready) Close() {
	if r == nil {
		return
	}
	r.cancel()
	if task := r.take(context.Background()); task != nil {
		ctx, cancel := context.WithTimeout(context.Background(), undoTime)
		defer cancel()
		task.Kill()
		task.Child.Wait(ctx)
	}
}

// Exec is [Container.Exec] with what is ready for it.
func (r *Ready) Exec(ctx context.Context, spec *specs.Process, stdio Stdio) (*Process, error) {
	p, err := r.c.exec(ctx, spec, stdio)
	if err != nil {
		r.Close()
		return nil, err
	}
	p.ready = r
	return p, nil
}
