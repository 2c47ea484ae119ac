package container

import (
	"context"
	"fmt"

	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// bear carries out a Plan's birth: the child's last steps, and by the process that it bears those up to
// execve, for which it may have to be let in, by open.
func (r *run) bear(ctx context.Context) error {
	from, birth, end := r.next, r.plan.Birth, r.startEnd()
	before, after := r.callSteps(from, birth), r.callSteps(birth+1, end)
	r.injectInto(before, from)
	r.injectInto(after, birth+1)
	rec, began := recording(ctx)
	born, err := r.steps.Bear(ctx, rsys.Birth{Before: before, After: after})
	rec.program(r.plan, from, birth+1, r.task.Pid(), began, r.known, err)
	if err != nil {
		return r.explain(err)
	}
	r.born = born
	return nil
}

// open carries out the shim's steps of the start, lets the born process go on if it
// waits, and waits for its execve.
func (r *run) open(ctx context.Context) error {
	for i := r.phase(oci.Start); i < r.startEnd(); i++ {
		s := &r.plan.Steps[i]
		if s.Who != oci.Shim {
			continue
		}
		if err := r.inject(ctx, i, i+1); err != nil {
			return err
		}
		rec, began := recording(ctx)
		err := r.shim(ctx, r, s)
		rec.shim(r.plan, i, began, r.value, err)
		if err != nil {
			return stepError(s, fmt.Errorf("%s: %w", s.Name, err))
		}
	}
	rec, began := recording(ctx)
	if r.plan.Gate >= 0 {
		r.born.Open(r.plan.Gate)
	}
	err := r.born.Await(ctx)
	// It may have done all of it before it was waited for: then all of it counts for its first step's time.
	rec.program(r.plan, r.plan.Birth+1, r.startEnd(), r.born.Child.Pid(), began, r.born.Run.Result, err)
	return r.explain(err)
}

// pid is the process's, in our PID namespace.
func (r *run) pid() int {
	if r.born != nil {
		return r.born.Child.Pid()
	}
	return r.task.Pid()
}

// callSteps are the calls of steps [from, end). One of the shim's among them does nothing, in its place.
func (r *run) callSteps(from, end int) []call.Step {
	steps := make([]call.Step, 0, end-from)
	for i := from; i < end; i++ {
		s := r.plan.Steps[i].Step
		if r.plan.Steps[i].Who == oci.Shim {
			s = call.Step{Call: call.Expect(call.Null, 0, 0, 0)}
		}
		steps = append(steps, s)
	}
	return steps
}

// result is that of a step, whoever did it.
func (r *run) result(step int) rsys.Result {
	switch {
	case step < r.steps.Len() && (r.plan.Birth < 0 || step <= r.plan.Birth):
		return r.steps.Result(step)
	case r.born != nil && step < r.born.Run.Len():
		return r.born.Run.Result(step)
	}
	return rsys.Result{}
}

// forget lets go of what was needed up to execve.
func (r *run) forget() error {
	r.task.Forget()
	r.steps.Close()
	if r.born != nil {
		return r.born.Close()
	}
	return nil
}
