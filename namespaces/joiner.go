// Package namespaces spawns processes into namespaces: which flags, in which
// order, from whom.
//
// A process is born into the PID namespace that its parent has for children,
// and can't change its own. So a process in a PID namespace that exists
// already is spawned by a joiner: a task outside it that has joined.
package namespaces

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// A Joiner is a task that has joined namespaces to have children in them. It
// is itself in no PID namespace but ours, so nobody in there sees it.
type Joiner struct {
	task *rsys.Task
}

// JoinProcess makes a joiner in namespaces of a process, those of the
// CLONE_NEW* flags. In the process's mount namespace its root and working
// directory are that namespace's root.
func JoinProcess(ctx context.Context, from *rsys.Task, pidfd *os.File, flags uint64) (*Joiner, error) {
	return join(ctx, from, flags, func(task *rsys.Task) error {
		fds, err := task.Pass(ctx, pidfd)
		if err != nil {
			return err
		}
		if _, err := task.Call(ctx, call.Setns(fds[0].Arg(), int(flags))); err != nil {
			return err
		}
		return fds[0].Close(ctx, task)
	})
}

// JoinPID makes a joiner in the PID namespace of the file at path, and
// otherwise where from is.
func JoinPID(ctx context.Context, from *rsys.Task, path string) (*Joiner, error) {
	return join(ctx, from, unix.CLONE_NEWPID, func(task *rsys.Task) error {
		fd, err := task.Open(ctx, call.Openat(call.CWD, path, unix.O_RDONLY|unix.O_CLOEXEC, 0))
		if err != nil {
			return err
		}
		if _, err := task.Call(ctx, call.Setns(fd.Arg(), unix.CLONE_NEWPID)); err != nil {
			return err
		}
		return fd.Close(ctx, task)
	})
}

func join(ctx context.Context, from *rsys.Task, flags uint64, do func(*rsys.Task) error) (*Joiner, error) {
	task, err := from.Clone(ctx, rsys.CloneConfig{Flags: Memory(RoleJoiner, flags)})
	if err != nil {
		return nil, fmt.Errorf("joiner: %w", err)
	}
	if err := do(task); err != nil {
		task.Kill()
		return nil, fmt.Errorf("joiner: %w", err)
	}
	return &Joiner{task}, nil
}

// Spawn clones a task from the joiner, with new namespaces of flags.
func (j *Joiner) Spawn(ctx context.Context, flags uint64, cgroup *os.File) (*rsys.Task, error) {
	return spawn(ctx, j.task, flags, cgroup)
}

// Alive reports whether the joiner still serves.
func (j *Joiner) Alive() bool {
	select {
	case <-j.task.Child.Left():
		return false
	default:
		return true
	}
}

// Close kills the joiner and waits until it is gone, so that it holds no
// namespace any more, or ctx ends.
func (j *Joiner) Close(ctx context.Context) error {
	j.task.Kill()
	_, err := j.task.Child.Wait(ctx)
	return err
}

// Spawn clones a task from the stub, with new namespaces of flags.
func Spawn(ctx context.Context, from *rsys.Task, flags uint64, cgroup *os.File) (*rsys.Task, error) {
	return spawn(ctx, from, flags, cgroup)
}

func spawn(ctx context.Context, from *rsys.Task, flags uint64, cgroup *os.File) (*rsys.Task, error) {
	task, err := from.Clone(ctx, rsys.CloneConfig{Flags: flags | Memory(RoleProcess, flags), Cgroup: cgroup})
	if err != nil {
		return nil, err
	}
	// A process that has not yet become a container's is not to outlive us. Its
	// program takes this back just before it execs.
	if _, err := task.Call(ctx, call.Prctl(unix.PR_SET_PDEATHSIG, call.Int(int(unix.SIGKILL)))); err != nil {
		task.Kill()
		return nil, err
	}
	return task, nil
}
