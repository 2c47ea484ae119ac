package rsys

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
)

// A Run is the running of a list of steps in one task. The list may be given
// in several parts, each run when it is given; indices in arguments count
// from the first step of all, so a step can use what one of an earlier part returned.
//
// What the steps pass and return stays in the arena until Close.
type Run struct {
	task   *Task
	steps  []ran
	outs   []out // by step
	blocks []*Block
	sent   uint64 // when the last request was, if calls are traced
}

type ran struct {
	call *call.Call      // the caller's: a long list is not copied
	at   *[stepSize]byte // the step in the arena; nil if done elsewhere
	addr uint64
	done int64 // the result, if at is nil
}

// An out is the output of argument arg of a step.
type out struct {
	step, arg int32
	addr      uint64
	mem       []byte
}

// out is the output of argument arg of a step, of one that has several the last; without memory if that is none.
func (r *Run) out(step, arg int) (o out) {
	i, _ := slices.BinarySearchFunc(r.outs, step, func(o out, step int) int { return int(o.step) - step })
	for ; i < len(r.outs) && int(r.outs[i].step) == step; i++ {
		if int(r.outs[i].arg) == arg {
			o = r.outs[i]
		}
	}
	return o
}

// NewRun starts a list.
func (t *Task) NewRun() *Run { return &Run{task: t} }

// Close frees the run's memory; that of a process that was killed and is still in a
// system call, when it is gone.
func (r *Run) Close() {
	blocks := r.blocks
	r.blocks, r.steps, r.outs = nil, nil, nil
	free := func() {
		for _, b := range blocks {
			b.Free()
		}
	}
	if c := r.task.Child; c != nil && c.killed() {
		go func() {
			<-c.left
			free()
		}()
		return
	}
	free()
}

// Len is the number of steps so far: the index of the next one.
func (r *Run) Len() int { return len(r.steps) }

// Done adds a step that was done elsewhere and returned result.
func (r *Run) Done(c call.Call, result int64) {
	r.steps = append(r.steps, ran{call: &c, done: result})
}

// Rewind forgets the steps from i on, so that the next part begins there.
func (r *Run) Rewind(i int) {
	r.steps = r.steps[:i]
	for n := len(r.outs); n > 0 && int(r.outs[n-1].step) >= i; n-- {
		r.outs = r.outs[:n-1]
	}
}

// A Result is what became of a step.
type Result struct {
	Ran   bool
	Value int64      // what it returned, if it succeeded
	Errno unix.Errno // 0 if it succeeded
	Ticks uint64     // the processor's time stamp counter (CNTVCT on arm64) when it returned
}

// Result tells what became of a step. A step that was skipped or not reached has not run.
func (r *Run) Result(i int) Result {
	s := &r.steps[i]
	v := s.done
	var ticks uint64
	if s.at != nil {
		v = int64(binary.NativeEndian.Uint64(s.at[stepResult:]))
		ticks = binary.NativeEndian.Uint64(s.at[stepTime:])
	}
	switch {
	case v == notRun:
		return Result{}
	case uint64(v) >= ^uint64(0)-4094:
		return Result{Ran: true, Errno: unix.Errno(-v), Ticks: ticks}
	default:
		return Result{Ran: true, Value: v, Ticks: ticks}
	}
}

// Out is a copy of what step i wrote to its arg-th argument, one made by [call.Out].
func (r *Run) Out(i, arg int) []byte {
	return append([]byte(nil), r.out(i, arg).mem...)
}

// Do runs more steps. The error is a [StepError] if one failed that may not, and a
// [DiedError] if the task's process ended or the context did.
func (r *Run) Do(ctx context.Context, steps ...call.Step) error {
	return r.DoAll(ctx, pointers(steps))
}

// DoAll is [Run.Do] of a list that is not copied.
func (r *Run) DoAll(ctx context.Context, steps []*call.Step) error {
	if len(steps) == 0 {
		return nil
	}
	t := r.task
	t.mu.Lock()
	defer t.mu.Unlock()
	first := len(r.steps)
	if err := r.request(ctx, steps); err != nil {
		return err
	}
	return r.finish(ctx, first)
}

func pointers(steps []call.Step) []*call.Step {
	list := make([]*call.Step, len(steps))
	for i := range steps {
		list[i] = &steps[i]
	}
	return list
}

// request encodes steps and asks the task to run them. t.mu is held.
func (r *Run) request(ctx context.Context, steps []*call.Step) error {
	first := len(r.steps)
	if err := r.encode(steps); err != nil {
		r.Rewind(first)
		return err
	}
	if err := r.task.link.flush(ctx, r.task, r.blocks[len(r.blocks)-1]); err != nil {
		return r.died(first, err)
	}
	words := [7]uint64{^uint64(0), r.steps[first].addr, uint64(len(steps))}
	r.sent = now()
	return r.died(first, r.task.request(ctx, words))
}

// requestWith is [Run.request] of steps of which the first is a [recvFDs] of files. t.mu is held.
func (r *Run) requestWith(ctx context.Context, files []*os.File, steps []call.Step) error {
	return withFDs(files, nil, func(fds []int) error {
		if err := r.request(ctx, pointers(steps)); err != nil {
			return err
		}
		err := r.task.passer.pass(fds)
		if err != nil {
			r.task.Child.kill(err) // or it would wait for ever
		}
		return err
	})
}

// finish waits for the response. t.mu is held.
func (r *Run) finish(ctx context.Context, first int) (err error) {
	defer func() { r.trace(first, r.sent, err) }()
	left, err := r.task.response(ctx)
	if err != nil {
		return r.died(first, err)
	}
	// A step may have written to what earlier parts point to.
	for _, b := range r.blocks {
		if err := r.task.link.fetch(ctx, r.task, b); err != nil {
			return r.died(first, err)
		}
	}
	for i := first; i < len(r.steps); i++ {
		if res := r.Result(i); res.Ran && res.Errno == 0 {
			r.task.track(*r.steps[i].call)
		}
	}
	if left <= 0 { // less if the last step skipped more than there was
		return nil
	}
	i := len(r.steps) - int(left)
	if i < first || i >= len(r.steps) {
		return fmt.Errorf("rsys: response out of range: %d", left)
	}
	return &StepError{i, *r.steps[i].call, r.Result(i).Errno}
}

// Exec runs steps of which the last ones are execve. It returns nil when
// execve has succeeded: the task is gone then, and its Child the new program's process. A
// [StepError] says which step failed, execve for one, and leaves the task in place; a [DiedError] that
// the process died before.
//
// After a step that installs a seccomp filter the server may be unable to
// answer. So what failed is also read from the memory of a process that died.
func (r *Run) Exec(ctx context.Context, steps ...call.Step) error {
	return r.ExecAll(ctx, pointers(steps))
}

// ExecAll is [Run.Exec] of a list that is not copied.
func (r *Run) ExecAll(ctx context.Context, steps []*call.Step) error {
	t := r.task
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Child.observe()
	first := len(r.steps)
	if err := r.request(ctx, steps); err != nil {
		return err
	}
	err := r.finish(ctx, first)
	switch err {
	case nil:
		return fmt.Errorf("rsys: a program to exec ended without execve")
	case ErrGone:
		return nil
	}
	if r.surelyExeced(first) {
		return nil
	}
	return r.failed(first, steps, err)
}

// surelyExeced decides the case of a peer that was reaped before anybody saw it: where it
// was in execve and exited by itself, it was not the server that did.
func (r *Run) surelyExeced(first int) bool {
	c := r.task.Child
	if r.task.shares() != nil || !c.peer {
		return false
	}
	select {
	case <-c.exited:
	default:
		return false
	}
	i := r.reached(first)
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.status.Exited(); !ok || !c.unsure || i >= len(r.steps) || r.steps[i].call.Nr != unix.SYS_EXECVE {
		return false
	}
	c.execed, c.died, c.unsure = true, false, false
	return true
}

// died says which step the process did not come to the end of, if its death is how err came about.
func (r *Run) died(first int, err error) error {
	d, ok := err.(*DiedError)
	if !ok {
		return err
	}
	if i := r.reached(first); i < len(r.steps) {
		d.Index, d.Call = i, r.steps[i].call
		if r.task.shares() != nil {
			d.Last = len(r.steps) - 1
		}
	}
	return d
}

// reached is the step behind the last one that has a result.
func (r *Run) reached(first int) int {
	at := first
	for i := first; i < len(r.steps); i++ {
		if r.Result(i).Ran {
			at = i + 1
		}
	}
	return at
}

// encode lays steps and all that they point to out in one block.
func (r *Run) encode(steps []*call.Step) error {
	size := stepSize * len(steps)
	for _, s := range steps {
		if n := len(s.Args); n > 6 {
			return fmt.Errorf("rsys: %s has %d arguments", s.Name, n)
		}
		for j := range s.Args {
			size += argSize(&s.Args[j])
		}
	}
	block, err := r.task.arena.Alloc(size)
	if err != nil {
		return err
	}
	r.blocks = append(r.blocks, block)
	e := encoder{run: r, mem: block.Bytes(), addr: r.task.address(block), next: stepSize * len(steps)}
	r.steps = slices.Grow(r.steps, len(steps))
	for i, s := range steps {
		at := (*[stepSize]byte)(e.mem[stepSize*i:])
		r.steps = append(r.steps, ran{call: &s.Call, at: at, addr: e.addr + uint64(stepSize*i)})
		binary.NativeEndian.PutUint64(at[stepNr:], uint64(s.Nr))
		binary.NativeEndian.PutUint64(at[stepPolicy:], uint64(s.OnError))
		binary.NativeEndian.PutUint32(at[stepSkipOK:], uint32(s.SkipOK))
		binary.NativeEndian.PutUint32(at[stepSkipErr:], uint32(s.SkipErr))
		binary.NativeEndian.PutUint64(at[stepResult:], 1<<63)
		var loads uint64
		for j := range s.Args {
			v, load, err := e.arg(&s.Args[j], len(r.steps)-1, j)
			if err != nil {
				return fmt.Errorf("%s: argument %d: %w", s.Name, j, err)
			}
			binary.NativeEndian.PutUint64(at[stepArgs+8*j:], v)
			loads |= load << j
		}
		binary.NativeEndian.PutUint64(at[stepLoads:], loads)
	}
	return nil
}

func argSize(a *call.Arg) int {
	switch a.Kind {
	case call.KindOut:
		return align(int(a.Int))
	case call.KindIn:
		n := align(len(a.Data))
		ptrs := a.Ptrs()
		for i := range ptrs {
			n += argSize(&ptrs[i].To)
		}
		return n
	}
	return 0
}

func align(n int) int { return (n + 7) &^ 7 }

type encoder struct {
	run  *Run
	mem  []byte
	addr uint64
	next int
}

const (
	loadWord  = 1
	loadInt32 = 0x100
)

// arg encodes argument j of step i: its value and how the server is to load it.
func (e *encoder) arg(a *call.Arg, i, j int) (v, load uint64, err error) {
	switch a.Kind {
	case call.KindInt:
		if a.Owner != 0 && !e.run.task.owns(a.Owner) {
			if a.Owner == ownerGone {
				return 0, 0, ErrInvalidated
			}
			return 0, 0, ErrWrongTask
		}
		return uint64(a.Int), 0, nil
	case call.KindResult:
		if a.Step < 0 || int(a.Step) >= i {
			return 0, 0, fmt.Errorf("step %d is not an earlier one", a.Step)
		}
		if s := &e.run.steps[a.Step]; s.at == nil {
			return uint64(s.done), 0, nil
		}
		return e.run.steps[a.Step].addr + stepResult, loadWord, nil
	case call.KindWord, call.KindInt32, call.KindOutPtr:
		width := 0
		switch a.Kind {
		case call.KindWord:
			width = 8
		case call.KindInt32:
			width = 4
		}
		if a.Step < 0 || int(a.Step) >= i || a.Index >= 6 {
			return 0, 0, fmt.Errorf("step %d has no such output", a.Step)
		}
		o := e.run.out(int(a.Step), int(a.Index))
		if a.Off < 0 || int(a.Off)+width > len(o.mem) {
			return 0, 0, fmt.Errorf("step %d has no output at %d", a.Step, a.Off)
		}
		switch v = o.addr + uint64(a.Off); a.Kind {
		case call.KindWord:
			load = loadWord
		case call.KindInt32:
			load = loadInt32
		}
		return v, load, nil
	case call.KindOut:
		off, size := e.take(int(a.Int)), int(a.Int)
		e.run.outs = append(e.run.outs, out{int32(i), int32(j), e.addr + uint64(off), e.mem[off : off+size]})
		return e.addr + uint64(off), 0, nil
	case call.KindIn:
		off := e.take(len(a.Data))
		copy(e.mem[off:], a.Data)
		ptrs := a.Ptrs()
		for k := range ptrs {
			p := &ptrs[k]
			if p.Off < 0 || p.Off+8 > len(a.Data) {
				return 0, 0, fmt.Errorf("pointer at %d is outside", p.Off)
			}
			v, load, err := e.arg(&p.To, i, j)
			if err != nil {
				return 0, 0, err
			}
			if load != 0 {
				return 0, 0, fmt.Errorf("pointer at %d is to no memory", p.Off)
			}
			binary.NativeEndian.PutUint64(e.mem[off+p.Off:], v)
		}
		return e.addr + uint64(off), 0, nil
	}
	return 0, 0, fmt.Errorf("unknown kind %d", a.Kind)
}

func (e *encoder) take(n int) int {
	off := e.next
	e.next += align(n)
	return off
}
