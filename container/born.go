package container

import (
	"context"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// bear carries out the rest of a Plan with a birth: the child's last steps, and by the process that it
// bears, which is given to adopt as soon as it is there, those up to execve.
func (r *run) bear(ctx context.Context, adopt func(*rsys.Child)) error {
	from, birth, end := r.next, r.plan.Birth, r.startEnd()
	before, after := r.callSteps(from, birth), r.callSteps(birth+1, end)
	r.injectInto(before, from)
	r.injectInto(after, birth+1)
	born, err := r.steps.Bear(ctx, rsys.Birth{Before: before, After: after})
	if err != nil {
		return r.explain(err)
	}
	r.born = born
	adopt(born.Child)
	return r.explain(born.Await(ctx))
}

func (r *run) callSteps(from, end int) []call.Step {
	steps := make([]call.Step, 0, end-from)
	for i := from; i < end; i++ {
		steps = append(steps, r.plan.Steps[i].Step)
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
