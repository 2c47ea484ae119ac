package rsys

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
)

// A Born is a process that a task bore as its last act; see [Run.Bear].
type Born struct {
	Child *Child
	Run   *Run // of the steps that the process runs by itself; their results are not to be trusted

	cradle *cradle
}

// A cradle is what a task bears a process into: memory that is mapped in the task, and
// a word of the task's own memory for the process's ID, where the process can't write.
type cradle struct {
	*Arena
	base uint64 // in the task
	tid  *Block
}

// Close frees what the task did not bear into.
func (c *cradle) Close() error {
	if c == nil {
		return nil
	}
	if c.tid != nil {
		c.tid.Free()
	}
	return c.Arena.Close()
}

// Birth is what a task is to bear.
type Birth struct {
	Before []call.Step // what the task does first; its last steps
	After  []call.Step // what the process does, ending in execve; it may wait at a [call.FutexWait]
}

// Bear has the task run its last steps, clone a process, and exit. The
// process runs steps of its own, with no channel to us, and ends if none of them is a
// successful execve. Indices of After go on behind those of Before and the clone, which counts
// as one.
//
// It is made to be seen by enemies. Between its birth and its execve whoever may ptrace it can do
// what it could and read what it has. So it has nothing: it is a copy of a task that has
// given up its privileges by then (that is what Before is for), without our arena
// (MADV_DONTFORK), and with no descriptor but those that Before left open; this and the server's code apart, all
// that it shares with us is the cradle, some pages of its own that hold its program, its stack and its futex.
// What it writes there is believed for nothing but the error of its own exec.
//
// A filter that Before installs must allow clone, exit_group, gettid, set_robust_list and futex; with less, the exec is not
// seen.
func (r *Run) Bear(ctx context.Context, b Birth) (_ *Born, err error) {
	t := r.task
	if err := t.canClone(); err != nil {
		return nil, fmt.Errorf("clone: %w", err)
	}
	size := nestSize + 4096 + stepSize*len(b.After)
	for i := range b.After {
		for j := range b.After[i].Args {
			size += argSize(&b.After[i].Args[j])
		}
	}
	cradle := t.cradle.Swap(nil)
	if cradle == nil || cradle.Size() < size {
		cradle.Close()
		if cradle, err = t.newCradle(ctx, size); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			cradle.Close()
		}
	}()
	tid := cradle.tid
	cradle.tid = nil
	pid := 0
	defer func() {
		if pid == 0 || err != nil {
			t.disown(tid.word(0), tid.Free)
		} else {
			tid.Free()
		}
	}()
	p := &Task{
		arena: cradle.Arena, base: cradle.base, entry: t.entry, link: sharedMemory{}, fds: newFDTable(t.fds),
		mem: &AddressSpace{ids.Add(1)}, ns: t.ns.child(0), sigmask: t.sigmask,
	}
	born := &Born{Run: p.NewRun(), cradle: cradle}
	born.Run.sent = now()
	nest, err := p.nest(cradle.Arena)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			born.Run.Close()
			nest.Free()
		}
	}()
	clone := call.Step{Call: p.cloneCall(nest, t.address(tid))}
	first := r.Len() + len(b.Before) + 1
	born.Run.steps = slices.Repeat([]ran{{call: new(call.Call)}}, first)
	if err := born.Run.encode(pointers(b.After)); err != nil {
		return nil, err
	}
	mem := nest.Bytes()
	binary.NativeEndian.PutUint64(mem[nestRequest+8:], born.Run.steps[first].addr)
	binary.NativeEndian.PutUint64(mem[nestRequest+16:], uint64(len(b.After)))

	pid, err = r.deliver(ctx, append(pointers(b.Before), &clone, &call.Step{Call: call.ExitGroup(0)}))
	word := nest.word(nestFutex + robustFutex)
	if err == nil {
		born.Child, err = newChild(pid, nil, nest)
	}
	if err != nil {
		return nil, err
	}
	p.Child = born.Child
	born.Child.watchBirth(word)
	return born, nil
}

// LayCradle prepares the task for a [Run.Bear] whose steps take up to size bytes, ahead of it. The
// task can't be cloned any more.
func (t *Task) LayCradle(ctx context.Context, size int) error {
	if err := t.canClone(); err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	c, err := t.newCradle(ctx, size)
	if err != nil {
		return err
	}
	t.cradle.Swap(c).Close()
	return nil
}

// newCradle makes a cradle, maps it in the task, and keeps our arena out of the task's children.
func (t *Task) newCradle(ctx context.Context, size int) (_ *cradle, err error) {
	arena, err := NewArena((size + 4095) &^ 4095)
	if err != nil {
		return nil, err
	}
	c := &cradle{Arena: arena}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if c.tid, err = t.arena.Alloc(4); err != nil {
		return nil, err
	}
	run, err := t.PassAnd(ctx, []*os.File{arena.File()}, func(fds []call.Arg) []call.Step {
		return []call.Step{
			{Call: call.Mmap(call.Null, arena.Size(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, fds[0], 0)},
			{Call: call.Close(fds[0])},
			{Call: call.Call{Name: "madvise", Nr: unix.SYS_MADVISE, Args: []call.Arg{
				call.Int(t.base), call.Int(t.arena.Size()), call.Int(unix.MADV_DONTFORK)}}},
			{Call: touch(t.address(c.tid))},
		}
	})
	if err != nil {
		return nil, err
	}
	defer run.Close()
	c.base = uint64(run.Result(2).Value)
	return c, nil
}

// nest prepares the robust futex and the trampoline of a process without a channel.
func (t *Task) nest(arena *Arena) (*Block, error) {
	nest, err := arena.Alloc(nestSize)
	if err != nil {
		return nil, err
	}
	mem, addr := nest.Bytes(), t.address(nest)
	putRobust(mem, addr)
	put := func(off int, v uint64) { binary.NativeEndian.PutUint64(mem[off:], v) }
	put(trampoline+0, t.entry)
	put(trampoline+8, ^uint64(0)) // no channel, and no stub
	put(trampoline+16, addr+nestFutex)
	put(trampoline+24, addr+nestRequest)
	return nest, nil
}

// BirthFlags are those of the clone by which a process is born.
const BirthFlags = unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID

// cloneCall is the old clone(2): seccomp filters let it pass where they know no clone3.
func (t *Task) cloneCall(nest *Block, tid uint64) call.Call {
	args := []call.Arg{{Int: BirthFlags, Form: call.FormClone}, call.Int(t.address(nest) + trampoline), call.Int(tid), call.Null, call.Null}
	return call.Call{Name: "clone", Nr: unix.SYS_CLONE, Args: args}
}

// deliver runs the task's last steps, of which the last two are clone and exit_group, and
// returns the clone's result. It is read from memory: no descriptor may be left to answer by.
func (r *Run) deliver(ctx context.Context, steps []*call.Step) (pid int, err error) {
	t := r.task
	t.mu.Lock()
	defer t.mu.Unlock()
	first := len(r.steps)
	if err := r.request(ctx, steps); err != nil {
		return 0, err
	}
	err = r.finish(ctx, first)
	var died *DiedError
	if errors.As(err, &died) && died.Cause == nil {
		if res := r.Result(first + len(steps) - 2); res.Ran && res.Errno == 0 && res.Value > 0 {
			return int(res.Value), nil
		}
	}
	if err == nil {
		err = fmt.Errorf("rsys: task did not bear a process")
	}
	return 0, r.failed(first, steps, err)
}

// failed finds what failed in the memory of a process that died without an answer.
func (r *Run) failed(first int, steps []*call.Step, err error) error {
	var died *DiedError
	if errors.As(err, &died) && died.Cause == nil {
		if i := r.reached(first) - 1; i >= first {
			if e := r.Result(i).Errno; e != 0 && !steps[i-first].OnError.Tolerates(e) {
				return &StepError{i, *r.steps[i].call, e}
			}
		}
	}
	return err
}

// Open lets the process go on that waits at step, a [call.FutexWait].
func (b *Born) Open(step int) {
	word := wordAt(b.Run.out(step, 0).mem)
	word.Store(1)
	futexWakeAll(word)
}

// Await waits until the process has exec'd, which is nil, or what failed.
func (b *Born) Await(ctx context.Context) (err error) {
	// What it does before it is let go on is told of with the rest.
	defer func() {
		if err == nil {
			b.Run.trace(b.first(), b.Run.sent, ErrGone)
		} else {
			b.Run.trace(b.first(), b.Run.sent, err)
		}
	}()
	select {
	case <-b.Child.left:
	case <-ctx.Done():
		b.Child.interrupt(context.Cause(ctx))
		select {
		case <-b.Child.left:
		case <-time.After(killTime):
			return b.Run.died(b.first(), &DiedError{Index: -1, Cause: context.Cause(ctx)})
		}
	}
	if b.Child.Execed() {
		return nil
	}
	<-b.Child.exited
	first := b.first()
	if i := b.Run.reached(first) - 1; i >= first && b.Child.endedByItself() {
		if e := b.Run.Result(i).Errno; e != 0 {
			return &StepError{i, *b.Run.steps[i].call, e}
		}
	}
	return b.Run.died(first, &DiedError{Index: -1, Exit: b.Child.status, Cause: b.Child.killCause()})
}

// killTime is how long a process that is killed gets to end. In a call that no signal ends it takes longer.
const killTime = time.Second

// first is the first step that is the process's.
func (b *Born) first() int {
	i := 0
	for i < len(b.Run.steps) && b.Run.steps[i].at == nil {
		i++
	}
	return i
}

// endedByItself reports whether the process ran to the end of its program.
func (c *Child) endedByItself() bool {
	status, ok := c.status.Exited()
	return ok && status == exitServer
}

// Close frees the cradle, as soon as the process has left it.
func (b *Born) Close() error {
	end := func() error {
		b.Run.Close()
		return b.cradle.Close()
	}
	select {
	case <-b.Child.left:
		return end()
	default:
		go func() {
			<-b.Child.left
			end()
		}()
		return nil
	}
}
