package container

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// A Recorder takes note of the steps of Plans that are carried out with its context: of a create, or of a start.
type Recorder struct {
	clock *rsys.Clock
	mu    sync.Mutex
	steps []Step
}

// A Step is a step of a Plan that has been carried out.
type Step struct {
	Index      int // in the Plan
	Phase, Who string
	Pid        int    // of who carried it out; 0 for the shim
	Name, Call string // "openat", "openat(...)"
	Why, About string // the config's field, and what of it
	Result     string // the number, "ok" of an execve, or an errno's name
	Failed     bool   // it was an error that ended the Plan
	Start, End time.Time
	start, end uint64
}

// NewRecorder starts a recorder.
func NewRecorder() *Recorder { return &Recorder{clock: rsys.NewClock()} }

type recorderKey struct{}

// WithRecorder has the Plans that are carried out with the context recorded.
func WithRecorder(ctx context.Context, r *Recorder) context.Context {
	return context.WithValue(ctx, recorderKey{}, r)
}

// RecorderOf is the recorder of a context; nil if it has none.
func RecorderOf(ctx context.Context) *Recorder {
	r, _ := ctx.Value(recorderKey{}).(*Recorder)
	return r
}

// recording is what the plans of ctx are recorded by, and when what follows begins; nil if they are not.
func recording(ctx context.Context) (*Recorder, uint64) {
	if r := RecorderOf(ctx); r != nil {
		return r, rsys.Ticks()
	}
	return nil, 0
}

// Steps are what has been recorded.
func (r *Recorder) Steps() []Step {
	r.mu.Lock()
	defer r.mu.Unlock()
	steps := slices.Clone(r.steps)
	ticks := make([]uint64, 0, 2*len(steps))
	for _, s := range steps {
		ticks = append(ticks, s.start, s.end)
	}
	for i, d := range r.clock.Times(ticks...) {
		if at := r.clock.Start().Add(d); i%2 == 0 {
			steps[i/2].Start = at
		} else {
			steps[i/2].End = at
		}
	}
	return steps
}

func (r *Recorder) add(p *oci.Plan, i int, res rsys.Result, pid int, start, end uint64) {
	s := &p.Steps[i]
	step := Step{
		Index: i, Phase: s.Phase.String(), Who: s.Who.String(), Pid: pid, Name: s.Name, Call: Readable(s.Call).String(), Why: s.Why, About: s.About,
		Result: Outcome(res), start: start, end: max(start, end),
	}
	step.Failed = res.Errno != 0 && !s.OnError.Tolerates(res.Errno)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, step)
}

// shim records a step of the shim's.
func (r *Recorder) shim(p *oci.Plan, i int, began uint64, value int64, err error) {
	if r == nil {
		return
	}
	res := rsys.Result{Ran: true, Value: value}
	if err != nil {
		res.Errno = unix.EIO // for want of one
		errors.As(err, &res.Errno)
	}
	r.add(p, i, res, 0, began, rsys.Ticks())
}

// program records steps that were one program, sent at began.
func (r *Recorder) program(p *oci.Plan, from, end, pid int, began uint64, result func(int) rsys.Result, err error) {
	if r == nil {
		return
	}
	last, next := began, from
	for i := from; i < end; i++ {
		if res := result(i); res.Ran && p.Steps[i].Who != oci.Shim {
			r.add(p, i, res, pid, last, res.Ticks)
			last, next = res.Ticks, i+1
		}
	}
	// Of an execve that has succeeded, and of a call in which the process was killed, there is no result.
	left := err == nil && next < end && p.Steps[next].Nr == unix.SYS_EXECVE
	var died *rsys.DiedError
	if left || errors.As(err, &died) && died.Index >= from && died.Index < end {
		if !left {
			next = died.Index
		}
		r.add(p, next, rsys.Result{}, pid, last, rsys.Ticks())
		r.mu.Lock()
		r.steps[len(r.steps)-1].Failed = !left
		if left {
			r.steps[len(r.steps)-1].Result = "ok"
		}
		r.mu.Unlock()
	}
}

// Outcome is a result as it is printed: a number, an errno's name, or that there is none.
func Outcome(res rsys.Result) string {
	switch {
	case !res.Ran:
		return "none"
	case res.Errno != 0:
		if n := unix.ErrnoName(res.Errno); n != "" {
			return n
		}
		return "errno " + strconv.Itoa(int(res.Errno))
	}
	return strconv.FormatInt(res.Value, 10)
}

// Readable is a call for a log: without an environment, in which there may be secrets.
func Readable(c call.Call) call.Call {
	env := -1
	switch {
	case c.Nr == unix.SYS_EXECVE:
		env = 2
	case c.Name == oci.RunHook:
		env = 3
	}
	if env < 0 || env >= len(c.Args) || c.Args[env].Form != call.FormStrings {
		return c
	}
	c.Args = slices.Clone(c.Args)
	c.Args[env] = call.Arg{Form: call.FormNamed, Data: "[" + strconv.Itoa(len(c.Args[env].Ptrs())) + " variables]"}
	return c
}
