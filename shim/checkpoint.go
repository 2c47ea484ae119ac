package shim

import (
	"cmp"
	"context"
	"fmt"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/rsys-io/rsys/container"
)

// Checkpoint dumps a container by criu. It may be paused, as containerd's client has it by then. No process of it
// can be added, started or deleted meanwhile.
func (s *service) Checkpoint(ctx context.Context, r *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	opts, err := checkpointOptions(r.Options)
	if err != nil {
		return nil, err
	}
	// containerd 1.7 knows ImagePath of runc's shim alone, and has another Path for others.
	images := cmp.Or(opts.ImagePath, r.Path)
	work := opts.WorkPath
	if work == "" {
		work = c.criu.work
	}
	err = c.doCheckpoint(ctx, container.Checkpoint{
		Criu: c.criu.program, Images: images, Work: work, Parent: opts.ParentPath, Exit: opts.Exit, OpenTCP: opts.OpenTcp,
		ExternalUnixSockets: opts.ExternalUnixSockets, Terminal: opts.Terminal, FileLocks: opts.FileLocks,
		EmptyNamespaces: opts.EmptyNamespaces, CgroupsMode: opts.CgroupsMode,
	})
	if err != nil {
		return nil, err
	}
	s.events.send(topicCheckpointed, &eventsapi.TaskCheckpointed{ContainerID: c.id, Checkpoint: images})
	return empty, nil
}

func checkpointOptions(a *anypb.Any) (*runcoptions.CheckpointOptions, error) {
	opts := new(runcoptions.CheckpointOptions)
	if a == nil || len(a.Value) == 0 {
		return opts, nil
	}
	if name := typeName(a); name != "containerd.runc.v1.CheckpointOptions" {
		return nil, invalid("checkpoint: options: unknown type %q", a.TypeUrl)
	}
	if err := proto.Unmarshal(a.Value, opts); err != nil {
		return nil, invalid("checkpoint: options: %v", err)
	}
	return opts, nil
}

// criuOptions are where a container's criu is and where it works, of the create request's options.
type criuOptions struct{ program, work string }

func (c *containerTask) doCheckpoint(ctx context.Context, cfg container.Checkpoint) error {
	c.pauseOp.Lock()
	defer c.pauseOp.Unlock()
	if s, _, _ := c.init.snapshot(); s != running {
		return precondition("cannot checkpoint a task in %s state", s)
	}
	was := c.pauseStatus()
	if was == task.Status_UNKNOWN {
		// It is, by criu. So no exec begins.
		c.setPause(task.Status_PAUSING)
		defer c.setPause(task.Status_UNKNOWN)
	}
	if err := c.t.Checkpoint(ctx, cfg); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}
