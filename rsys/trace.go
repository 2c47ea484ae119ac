package rsys

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
)

// ticks is the counter that the server reads when a step has returned.
func ticks() uint64

// Ticks is the processor's time stamp counter (CNTVCT on arm64), as in a [Result].
func Ticks() uint64 { return ticks() }

// A Clock tells the time of ticks. It takes the counter to be the same on all processors and to run evenly, as it does on machines
// whose kernel has it for a clock source ("tsc"); elsewhere times are approximate.
type Clock struct {
	time  time.Time
	ticks uint64
}

// NewClock starts a clock. The longer it runs, the more exact it is; a millisecond is enough for a thousandth.
func NewClock() *Clock { return &Clock{time.Now(), ticks()} }

// Times converts ticks to the time that passed since the clock's start.
func (c *Clock) Times(list ...uint64) []time.Duration {
	now, passed := ticks(), time.Since(c.time)
	out := make([]time.Duration, len(list))
	for i, t := range list {
		if now > c.ticks && t > c.ticks {
			out[i] = time.Duration(float64(t-c.ticks) / float64(now-c.ticks) * float64(passed))
		}
	}
	return out
}

// Start is when the clock was started.
func (c *Clock) Start() time.Time { return c.time }

// A Call that a task has carried out, as a [Tracer] is told of it.
type Traced struct {
	Pid    int
	Call   call.Call
	Result Result // Ran is false of an execve that succeeded, and of the call in which a process died
	Start  uint64 // ticks when the call before it had returned or, of a program's first, when it was sent
}

// A Tracer is told of all the calls that a task has carried out at a request. It must not keep what
// it is given, nor call the task.
type Tracer func(calls []Traced)

var tracer atomic.Pointer[Tracer]

// Trace has f told of every remote system call of this process's from now on; nil ends that. It is
// for debugging: a program of steps is still one request, and what is told of its steps is what the server has noted anyway.
func Trace(f Tracer) {
	if f == nil {
		tracer.Store(nil)
		return
	}
	tracer.Store(&f)
}

// now is when a request is sent, if somebody wants to know.
func now() uint64 {
	if tracer.Load() == nil {
		return 0
	}
	return ticks()
}

// trace tells of the steps from first on, of which the request was sent at sent.
func (r *Run) trace(first int, sent uint64, err error) {
	f := tracer.Load()
	if f == nil || sent == 0 {
		return
	}
	calls := make([]Traced, 0, len(r.steps)-first)
	last := sent
	for i := first; i < len(r.steps); i++ {
		if res := r.Result(i); res.Ran {
			calls = append(calls, Traced{r.task.Pid(), *r.steps[i].call, res, last})
			last = res.Ticks
		}
	}
	if i := r.reached(first); err != nil && i < len(r.steps) {
		if _, failed := err.(*StepError); !failed {
			calls = append(calls, Traced{r.task.Pid(), *r.steps[i].call, Result{Ticks: ticks()}, last})
		}
	}
	if len(calls) > 0 {
		(*f)(calls)
	}
}

// traceCall tells of a call that was made by itself.
func (t *Task) traceCall(c call.Call, sent uint64, v int64, ran bool) {
	f := tracer.Load()
	if f == nil || sent == 0 {
		return
	}
	res := Result{Ran: ran, Value: v, Ticks: ticks()}
	if ran && uint64(v) >= ^uint64(0)-4094 {
		res.Value, res.Errno = 0, unix.Errno(-v)
	}
	(*f)([]Traced{{t.Pid(), c, res, sent}})
}
