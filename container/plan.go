package container

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// A run is a Plan being carried out, phase by phase: the shim's steps here, the
// child's, as many as stand together, in one program.
type run struct {
	plan  *oci.Plan
	next  int // the step to be done next
	steps *rsys.Run
	task  *rsys.Task
	born  *rsys.Born // by the task, if the Plan has a birth
	shim  shimSteps

	value int64 // the result of the step of the shim's that is being done

	loops []*os.File // devices that are being mounted

	injection injected
}

// shimSteps does a step that is the shim's.
type shimSteps func(ctx context.Context, r *run, s *oci.Step) error

// through carries the Plan out up to, not including, step end.
func (r *run) through(ctx context.Context, end int) error {
	for r.next < end {
		from := r.next
		if s := &r.plan.Steps[from]; s.Who == oci.Shim {
			if err := r.inject(ctx, from, from+1); err != nil {
				return err
			}
			rec, began := recording(ctx)
			err := r.shim(ctx, r, s)
			rec.shim(r.plan, from, began, r.value, err)
			if err != nil {
				return stepError(s, fmt.Errorf("%s: %w", s.Name, r.died(err)))
			}
			if r.steps != nil {
				r.steps.Done(s.Call, r.value)
			}
			r.value = 0
			r.next++
			continue
		}
		for r.next < end && r.plan.Steps[r.next].Who != oci.Shim {
			r.next++
		}
		if err := r.inject(ctx, from, r.next); err != nil {
			return err
		}
		if err := r.do(ctx, from, r.next, r.steps.DoAll); err != nil {
			return err
		}
		r.leaveLoops()
	}
	return nil
}

// died says of what went wrong in a step of the shim's about a child that has died that this is why.
func (r *run) died(err error) error {
	var told *rsys.DiedError
	if r.task == nil || errors.As(err, &told) || !r.task.Child.Ending() {
		return err
	}
	select {
	case <-r.task.Child.Exited():
		exit, _ := r.task.Child.Status()
		return fmt.Errorf("%w: %w", &rsys.DiedError{Index: -1, Exit: exit}, err)
	case <-time.After(endTime):
		return err
	}
}

// exec carries the rest of the Plan out, which ends in execve.
func (r *run) exec(ctx context.Context) error {
	end := r.startEnd()
	last := end
	for last > r.next && r.plan.Steps[last-1].Who == oci.Child {
		last--
	}
	if err := r.through(ctx, last); err != nil {
		return err
	}
	from := r.next
	if err := r.inject(ctx, from, end); err != nil {
		return err
	}
	return r.do(ctx, from, end, r.steps.ExecAll)
}

func (r *run) do(ctx context.Context, from, end int, do func(context.Context, []*call.Step) error) error {
	rec, began := recording(ctx)
	err := do(ctx, r.childSteps(from, end))
	defer func() { rec.program(r.plan, from, end, r.task.Pid(), began, r.known, err) }()
	for err != nil {
		at := r.mendable(err)
		if at < 0 {
			break
		}
		if mendErr := r.mend(ctx, &r.plan.Steps[at]); mendErr != nil {
			break
		}
		r.steps.Rewind(at)
		if err = do(ctx, r.childSteps(at, end)); r.mendable(err) == at {
			break
		}
	}
	return r.explain(err)
}

// childSteps are the calls of steps [from, end), none of which is the shim's.
func (r *run) childSteps(from, end int) []*call.Step {
	steps := make([]*call.Step, 0, end-from)
	for i := from; i < end; i++ {
		steps = append(steps, &r.plan.Steps[i].Step)
	}
	return steps
}

// known is a step's result, of one that may not have been reached.
func (r *run) known(step int) rsys.Result {
	if step >= r.steps.Len() {
		return rsys.Result{}
	}
	return r.steps.Result(step)
}

// explain says of an error whose step it is.
func (r *run) explain(err error) error {
	var failed *rsys.StepError
	var died *rsys.DiedError
	switch {
	case errors.As(err, &failed):
		if i := failed.Index; i == r.plan.Lookup.Failed || slices.Contains(r.plan.Lookup.Exec, i) {
			return r.lookup()
		}
		return stepError(&r.plan.Steps[failed.Index], err)
	case errors.As(err, &died) && died.Index >= 0 && died.Index < len(r.plan.Steps):
		return stepError(&r.plan.Steps[died.Index], err)
	}
	return err
}

// stepError puts the config field, and what it is about, before an error.
func stepError(s *oci.Step, err error) error {
	switch {
	case s.Why == "":
		return err
	case s.About == "":
		return fmt.Errorf("%s: %w", s.Why, err)
	}
	return fmt.Errorf("%s (%s): %w", s.Why, s.About, err)
}

// startEnd is the index behind the steps of the start, which end in execve.
func (r *run) startEnd() int { return r.phase(oci.Started) }

// cloned takes note of the child, or its parent, once there is one: from now on steps can be its. What the
// parent has opened is open in the child.
func (r *run) cloned(task *rsys.Task) {
	before := r.steps
	r.task = task
	r.steps = task.NewRun()
	for i := range r.next {
		var v int64
		if before != nil && i < before.Len() {
			if res := before.Result(i); !res.Ran {
				v = math.MinInt64
			} else if v = res.Value; res.Errno != 0 {
				v = -int64(res.Errno)
			}
		}
		r.steps.Done(r.plan.Steps[i].Call, v)
	}
	if before != nil {
		before.Close()
	}
}

// phase is the index of the first step of a phase, or of a later one.
func (r *run) phase(p oci.Phase) int {
	for i := range r.plan.Steps {
		if r.plan.Steps[i].Phase >= p {
			return i
		}
	}
	return len(r.plan.Steps)
}

// lookup is the error of a search for a program that found none, or of a
// program that could not be executed.
func (r *run) lookup() error {
	return r.plan.Lookup.Error(func(step int) (unix.Errno, bool) {
		res := r.result(step)
		return res.Errno, res.Ran
	})
}

// home completes the environment from what was read of the root's passwd.
func (r *run) home(uid uint32) {
	var passwd []byte
	if i := r.plan.Passwd; i >= 0 {
		if res := r.steps.Result(i); res.Ran && res.Errno == 0 {
			passwd = r.steps.Out(i, 1)
			passwd = passwd[:min(int(res.Value), len(passwd))]
		}
	}
	home, ok := oci.Home(passwd, uid)
	if !ok {
		home = "/"
	}
	r.plan.SetHome(home)
}

// terminal fetches the master of the child's pseudoterminal.
func (r *run) terminal(ctx context.Context) (*os.File, error) {
	if r.plan.Terminal < 0 {
		return nil, nil
	}
	return r.task.Fetch(ctx, int(r.steps.Result(r.plan.Terminal).Value))
}

// passStdio puts files in the child's descriptors 0, 1 and 2; where there is
// none, /dev/null stays.
func (r *run) passStdio(ctx context.Context, stdio Stdio) error {
	var files []*os.File
	var to []int
	for i, f := range stdio.files() {
		if f != nil {
			files, to = append(files, f), append(to, i)
		}
	}
	if len(files) == 0 {
		return nil
	}
	run, err := r.task.PassAnd(ctx, files, func(fds []call.Arg) (steps []call.Step) {
		for i, fd := range fds {
			steps = append(steps, call.Step{Call: call.Dup3(fd, to[i], 0)}, call.Step{Call: call.Close(fd)})
		}
		return steps
	})
	if err == nil {
		run.Close()
	}
	return err
}

// abandon kills the child, if there is one.
func (r *run) abandon(ctx context.Context) error {
	r.leaveLoops()
	if r.task == nil {
		return nil
	}
	r.task.Kill()
	_, err := r.task.Child.Wait(ctx)
	r.steps.Close()
	if r.born != nil {
		r.born.Child.Signal(unix.SIGKILL)
		err = errors.Join(err, r.born.Close())
	}
	return err
}
