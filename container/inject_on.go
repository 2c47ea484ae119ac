//go:build rsys_inject

package container

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// InjectAnnotation has a fault injected into a container's Plan or into its
// execs': "create 12 EIO" has step 12 of the creation fail with that errno,
// "exec 3 kill" has the process killed before step 3 of each exec. Only a build
// with the tag rsys_inject looks at it.
const InjectAnnotation = "io.rsys.inject"

type injected struct {
	at   int
	what string
}

func injection(spec *specs.Spec, plan string) injected {
	f := strings.Fields(spec.Annotations[InjectAnnotation])
	if len(f) != 3 || f[0] != plan {
		return injected{at: -1}
	}
	at, err := strconv.Atoi(f[1])
	if err != nil {
		at = -1
	}
	return injected{at, f[2]}
}

// after is the injection counted from step n.
func (i injected) after(n int) injected {
	i.at -= n
	return i
}

// inject is called before steps [from, end) are run. If the fault is for one of
// them, it runs those before it, and then does what the fault says.
func (r *run) inject(ctx context.Context, from, end int) error {
	at := r.injection.at
	if at < from || at >= end {
		return nil
	}
	r.injection.at = -1
	s := &r.plan.Steps[at]
	if from < at && s.Who != oci.Shim {
		if err := r.do(ctx, from, at, r.steps.DoAll); err != nil {
			return err
		}
	}
	if r.injection.what == "kill" {
		if r.task == nil {
			return stepError(s, fmt.Errorf("%s: no process yet to be killed", s.Name))
		}
		r.task.Child.Signal(unix.SIGKILL)
		if s.Who == oci.Shim {
			return nil // and see what becomes of it
		}
		return r.do(ctx, at, end, r.steps.DoAll)
	}
	for e := unix.Errno(1); e < 134; e++ {
		if unix.ErrnoName(e) == r.injection.what {
			return stepError(s, &rsys.StepError{Index: at, Call: s.Call, Errno: e})
		}
	}
	return nil
}

// injectInto puts the fault into steps, of which the first is step from of the Plan: it
// is for those that run without us. There, to be killed is to write to address 0.
func (r *run) injectInto(steps []call.Step, from int) {
	at := r.injection.at - from
	if at < 0 || at >= len(steps) {
		return
	}
	s := &steps[at]
	name := s.Name
	s.Call = call.Store32(call.Null, call.Null)
	for e := unix.Errno(1); e < 134; e++ {
		if unix.ErrnoName(e) == r.injection.what {
			s.Call = call.Expect(call.Null, 1, 1, e)
		}
	}
	// What reads its output would not even compile, and is never reached.
	for j := range steps[at+1:] {
		later := &steps[at+1+j]
		for _, a := range later.Args {
			if (a.Kind == call.KindWord || a.Kind == call.KindInt32 || a.Kind == call.KindOutPtr) && int(a.Step) == r.injection.at {
				later.Call = call.Expect(call.Null, 0, 0, unix.EIO)
				break
			}
		}
	}
	s.Name = name
	s.OnError, s.SkipOK, s.SkipErr = call.Stop, 0, 0
}
