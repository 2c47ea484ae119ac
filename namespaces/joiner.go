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
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// A Joiner is a task that has joined namespaces to have children in them. It
// is itself in no PID namespace but ours, so nobody in there sees it.
type Joiner struct {
	task   *rsys.Task
	pid    *rsys.FD // the PID namespace for outsiders' children; nil if there is none
	cgroup *rsys.FD // the cgroup namespace for the children themselves; nil if there is none
}

// JoinProcess makes a joiner in namespaces of a process, those of the
// CLONE_NEW* flags. In the process's mount namespace its root and working
// directory are that namespace's root, or the process's if the namespace is not among them. The PID namespace it has at hand, for its outsiders to join, and the cgroup namespace
// for all its children: with cgroup v2's nsdelegate nobody in one has a child in a cgroup of it without being there himself.
func JoinProcess(ctx context.Context, from *rsys.Task, process *rsys.Child, flags uint64, isolation Isolation) (*Joiner, error) {
	files := []*os.File{process.Pidfd()}
	// By files of their own: to join by a pidfd one must be allowed to trace the process, which who is in a user
	// namespace by then is not as long as that has not exec'd.
	var late []string
	if flags&unix.CLONE_NEWNS == 0 {
		// In the mount namespace of all, the process has a root of its own.
		root, err := os.OpenFile("/proc/"+strconv.Itoa(process.Pid())+"/root", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, fmt.Errorf("joiner: %w", err)
		}
		defer root.Close()
		files = append(files, root)
	}
	roots := len(files) - 1
	if flags&unix.CLONE_NEWPID != 0 {
		late = append(late, "pid")
	}
	if flags&unix.CLONE_NEWCGROUP != 0 {
		late = append(late, "cgroup")
	}
	for _, name := range late {
		ns, err := os.Open("/proc/" + strconv.Itoa(process.Pid()) + "/ns/" + name)
		if err != nil {
			return nil, fmt.Errorf("joiner: %w", err)
		}
		defer ns.Close()
		files = append(files, ns)
	}
	handed := make(map[string]*rsys.FD)
	j, err := join(ctx, from, How(RoleJoiner, 0, flags, isolation), func(task *rsys.Task) error {
		fds, err := task.Pass(ctx, files...)
		if err != nil {
			return err
		}
		for i, name := range late {
			handed[name] = fds[1+roots+i]
		}
		if others := flags &^ (unix.CLONE_NEWPID | unix.CLONE_NEWCGROUP); others != 0 {
			if _, err := task.Call(ctx, call.Setns(fds[0].Arg(), int(others))); err != nil {
				return err
			}
		}
		for _, root := range fds[1 : 1+roots] {
			if _, err := task.Call(ctx, call.Fchdir(root.Arg())); err != nil {
				return err
			}
			if _, err := task.Call(ctx, call.Chroot(".")); err != nil {
				return err
			}
			// What was opened by number was the process's, if that is there now.
			if err := process.Signal(0); err != nil {
				return err
			}
			if err := root.Close(ctx, task); err != nil {
				return err
			}
		}
		return fds[0].Close(ctx, task)
	})
	if err == nil {
		j.pid, j.cgroup = handed["pid"], handed["cgroup"]
	}
	return j, err
}

// JoinPID makes a joiner in the PID namespace of the file at path, and
// otherwise where from is.
func JoinPID(ctx context.Context, from *rsys.Task, path string, isolation Isolation) (*Joiner, error) {
	return join(ctx, from, How(RoleJoiner, 0, unix.CLONE_NEWPID, isolation), func(task *rsys.Task) error {
		fd, err := task.Open(ctx, call.Openat(call.CWD, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0))
		if err != nil {
			return err
		}
		if _, err := task.Call(ctx, call.Setns(fd.Arg(), unix.CLONE_NEWPID)); err != nil {
			return err
		}
		return fd.Close(ctx, task)
	})
}

func join(ctx context.Context, from *rsys.Task, way Way, do func(*rsys.Task) error) (*Joiner, error) {
	task, err := from.Clone(ctx, rsys.CloneConfig{Flags: way.memory()})
	if err != nil {
		return nil, fmt.Errorf("joiner: %w", err)
	}
	if err := do(task); err != nil {
		task.Kill()
		return nil, fmt.Errorf("joiner: %w", err)
	}
	return &Joiner{task: task}, nil
}

// Spawn clones a task from the joiner, with new namespaces of flags.
func (j *Joiner) Spawn(ctx context.Context, flags uint64, cgroup *os.File) (*rsys.Task, error) {
	return spawn(ctx, j.task, flags, cgroup, nil)
}

// Outsider clones a task that is where the joiner is, outside the PID namespace
// that its children will be born into.
func (j *Joiner) Outsider(ctx context.Context, cgroup *os.File) (*rsys.Task, error) {
	return spawn(ctx, j.task, 0, cgroup, enter(j.pid, j.cgroup))
}

// enter joins a PID and a cgroup namespace that a task has inherited, of which either may be nil.
func enter(pid, cgroup *rsys.FD) func(*rsys.Task) ([]call.Step, error) {
	return func(task *rsys.Task) (steps []call.Step, err error) {
		for _, ns := range []struct {
			fd   *rsys.FD
			flag int
		}{{pid, unix.CLONE_NEWPID}, {cgroup, unix.CLONE_NEWCGROUP}} {
			if ns.fd == nil {
				continue
			}
			fd, err := ns.fd.Inherit(task)
			if err != nil {
				return nil, err
			}
			steps = append(steps, call.Step{Call: call.Setns(fd.Arg(), ns.flag)})
		}
		return steps, nil
	}
}

// Insider clones a task in all of the joiner's namespaces, the PID namespace too. There it
// can be seen while it has the privileges that the joiner has.
func (j *Joiner) Insider(ctx context.Context, cgroup *os.File) (*rsys.Task, error) {
	outsider, err := spawn(ctx, j.task, 0, nil, enter(j.pid, nil))
	if err != nil {
		return nil, err
	}
	ns := j.cgroup
	if ns != nil {
		ns, err = ns.Inherit(outsider)
	}
	var task *rsys.Task
	if err == nil {
		task, err = spawn(ctx, outsider, 0, cgroup, enter(nil, ns))
	}
	outsider.Kill()
	if _, waitErr := outsider.Child.Wait(ctx); waitErr != nil && err == nil {
		task.Kill()
		return nil, waitErr
	}
	return task, err
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
	return spawn(ctx, from, flags, cgroup, nil)
}

// spawn clones a task and has it do its first steps: those that then gives, after one of our own.
func spawn(ctx context.Context, from *rsys.Task, flags uint64, cgroup *os.File, then func(*rsys.Task) ([]call.Step, error)) (*rsys.Task, error) {
	task, err := from.Clone(ctx, rsys.CloneConfig{Flags: flags | How(RoleInit, flags, 0, IsolationAuto).memory(), Cgroup: cgroup})
	if err != nil {
		return nil, err
	}
	// A process that has not yet become a container's is not to outlive us. Its
	// program takes this back just before it execs.
	steps := []call.Step{{Call: call.Prctl(unix.PR_SET_PDEATHSIG, call.Int(int(unix.SIGKILL)))}}
	if then != nil {
		var more []call.Step
		more, err = then(task)
		steps = append(steps, more...)
	}
	if err == nil {
		run := task.NewRun()
		err = run.Do(ctx, steps...)
		run.Close()
	}
	if err != nil {
		task.Kill()
		return nil, err
	}
	return task, nil
}
