package shim

import (
	"context"
	"os"

	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/container"
)

// What the task service needs of package container. The methods are documented there.
type (
	containerRuntime interface {
		create(context.Context, container.Config) (taskContainer, error)
		restore(context.Context, container.Config, container.Restore) (taskContainer, error)
		Close() error
	}
	taskContainer interface {
		init() taskProcess
		warnings() []string
		ready(context.Context) taskReady
		KillAll(unix.Signal) error
		Pids() ([]int, error)
		Pause(context.Context) error
		Resume(context.Context) error
		Checkpoint(context.Context, container.Checkpoint) error
		Update(*specs.LinuxResources) error
		Stats() (any, error)
		OOM(context.Context) (<-chan struct{}, error)
		SharesPID() bool
		Delete(context.Context) error
	}
	taskReady interface {
		exec(context.Context, *specs.Process, container.Stdio) (taskProcess, error)
		Close()
	}
	taskProcess interface {
		Pid() int
		Start(context.Context) error
		Terminal() *os.File
		Signal(unix.Signal) error
		Exited() <-chan struct{}
		Exit() container.Exit
		Close() error
	}
)

// realRuntime and the others only turn package container's types into the interfaces.
type (
	realRuntime   struct{ *container.Runtime }
	realContainer struct{ *container.Container }
	realReady     struct{ *container.Ready }
)

func (r realRuntime) create(ctx context.Context, cfg container.Config) (taskContainer, error) {
	c, err := r.Create(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return realContainer{c}, nil
}

func (r realRuntime) restore(ctx context.Context, cfg container.Config, from container.Restore) (taskContainer, error) {
	c, err := r.Restore(ctx, cfg, from)
	if err != nil {
		return nil, err
	}
	return realContainer{c}, nil
}

func (c realContainer) init() taskProcess  { return c.Init }
func (c realContainer) warnings() []string { return c.Warnings }

func (c realContainer) ready(ctx context.Context) taskReady { return realReady{c.Ready(ctx)} }

func (r realReady) exec(ctx context.Context, spec *specs.Process, stdio container.Stdio) (taskProcess, error) {
	p, err := r.Exec(ctx, spec, stdio)
	if err != nil {
		return nil, err
	}
	for _, w := range p.Warnings {
		log.G(ctx).Warnf("exec: %s", w)
	}
	return p, nil
}
