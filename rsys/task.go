package rsys

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
)

// A Task is a process that performs system calls for us. It is made from a
// stub, by [NewTask], or cloned from another task, by [Task.Clone].
//
// A task serves one request at a time; its methods may be called from any
// goroutine. A context that ends while a request is under way kills the task: there is
// no other way to take a system call back.
type Task struct {
	Child *Child // its process

	conn   *conn // requests and responses
	passer *conn // our end of the channel by which it receives descriptors
	data   *conn // our end of the data socket, if it has one
	sock   *FD   // its end of conn
	inlet  *FD   // its end of passer

	arena   *Arena    // where our side of its memory is
	link    transport // how it gets to be the task's
	base    uint64    // where the arena, or its copy, is in the task; 0 if it is not yet
	entry   uint64    // where the server is in its memory
	fds     *FDTable
	mem     *AddressSpace
	ns      Namespaces
	sigmask Sigset

	cradle atomic.Pointer[cradle] // for what it may bear

	mu sync.Mutex // held from a request to its response
}

// An AddressSpace is the memory of one or, by CLONE_VM, several tasks.
type AddressSpace struct{ id uint32 }

// Config describes a process that already runs the server, to make a task of it.
//
// What calls point to gets into the task's memory in one of two ways. Without Data the task
// maps Arena. With Data, its memory is its own, Arena is our copy of it, made by
// [NewLocalArena], and the bytes go through the data socket; that needs nothing of the
// task but read and write, and costs a round trip each way. Either way the task maps a memfd, where
// its robust futex lies.
type Config struct {
	Pid     int      // a child of ours; it becomes the task's to reap
	Pidfd   *os.File // if it is not our child: its pidfd, of which a copy is taken
	TID     int      // its thread ID in its own PID namespace, which its futex is to hold
	Channel *os.File // our end of the channel, which is taken over
	Inlet   *os.File // our end of the channel for descriptors; nil if it is Channel
	FD      int      // its end of Channel
	InletFD int      // its end of Inlet
	Entry   uint64   // the address of the server in it
	Sigmask Sigset
	Arena   *Arena
	ArenaFD int      // the memfd in it, of Futex if that is set, or of Arena; it is mapped, and closed
	Data    *os.File // our end of the data socket, of which a copy is taken; nil if it maps Arena
	DataFD  int      // its end of Data
	Futex   *Arena   // with Data: the memory for the futex
}

// NewTask makes a task of a process that runs the server. The process and the
// channels are taken over: if it fails, the process is killed and reaped, one that is
// not our child is hung up on. The error says what was being done.
func NewTask(ctx context.Context, cfg Config) (*Task, error) {
	t := &Task{
		arena: cfg.Arena, link: sharedMemory{}, entry: cfg.Entry, fds: newFDTable(nil),
		mem: &AddressSpace{ids.Add(1)}, ns: rootNamespaces(), sigmask: cfg.Sigmask,
	}
	err := t.adopt(ctx, cfg)
	switch {
	case err == nil:
		return t, nil
	case t.Child == nil && cfg.Pidfd == nil:
		unix.Kill(cfg.Pid, unix.SIGKILL)
		unix.Wait4(cfg.Pid, nil, 0, nil)
	case t.Child == nil:
	case t.Child.peer:
		t.Child.abandon()
	default:
		t.Child.kill(err)
		<-t.Child.exited
	}
	t.closeConns()
	return nil, err
}

func (t *Task) adopt(ctx context.Context, cfg Config) (err error) {
	defer cfg.Channel.Close()
	if t.conn, err = copyConn(cfg.Channel); err != nil {
		return err
	}
	t.sock, t.passer = t.fds.handle(cfg.FD), t.conn
	t.inlet = t.sock
	if cfg.Inlet != nil {
		defer cfg.Inlet.Close()
		if t.passer, err = copyConn(cfg.Inlet); err != nil {
			return err
		}
		t.inlet = t.fds.handle(cfg.InletFD)
	}
	if cfg.Data != nil {
		if t.data, err = copyConn(cfg.Data); err != nil {
			return err
		}
	}
	child := &Child{pid: cfg.Pid, conn: t.conn, data: t.data, stub: true}
	child.peer = cfg.Pidfd != nil
	if t.Child, err = child.start(cfg.Pidfd); err != nil {
		return err
	}
	if err := t.hello(ctx); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	shared := cfg.Arena
	if cfg.Data != nil {
		shared = cfg.Futex
	}
	memfd := t.fds.handle(cfg.ArenaFD)
	addr, err := t.Call(ctx, call.Mmap(call.Null, shared.Size(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, memfd.Arg(), 0))
	if err != nil {
		return fmt.Errorf("shared memory: %w", err)
	}
	t.base = uint64(addr)
	if cfg.Data != nil {
		base, err := t.Call(ctx, call.Mmap(call.Null, cfg.Arena.Size(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, call.Int(-1), 0))
		if err != nil {
			return fmt.Errorf("memory: %w", err)
		}
		t.base, t.link = uint64(base), &dataSocket{t.data, cfg.DataFD}
	}
	if err := t.registerFutex(ctx, shared, uint64(addr), cfg.TID, memfd); err != nil {
		return fmt.Errorf("futex: %w", err)
	}
	return nil
}

// registerFutex gives a stub what tells when it execs or dies: a robust futex
// in shared memory, mapped at base in it, and a name that execve takes away. It also closes the memfd.
func (t *Task) registerFutex(ctx context.Context, shared *Arena, base uint64, tid int, memfd *FD) error {
	nest, err := shared.Alloc(nestRequest)
	if err != nil {
		return err
	}
	mark := fmt.Sprintf("rsys-stub:%05x", rand.Uint32()&0xfffff)
	addr := base + uint64(nest.span.off)
	putRobust(nest.Bytes(), addr)
	c := t.Child
	// The kernel marks the word only if it holds the ID that the task has for itself.
	word := nest.word(nestFutex + robustFutex)
	word.Store(uint32(tid)&futexTIDMask | futexWaiters)
	c.value = word.Load()
	run := t.NewRun()
	defer run.Close()
	err = run.Do(ctx,
		call.Step{Call: call.Close(memfd.Arg())},
		call.Step{Call: call.Prctl(unix.PR_SET_NAME, call.String(mark))},
		call.Step{Call: call.SetRobustList(call.Int(addr+nestFutex), robustHead)})
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && (c.died || c.execed) {
		err = ErrGone
	}
	if err != nil {
		nest.Free()
		return err
	}
	c.nest, c.mark, c.word, c.adopted = nest, mark, word, true
	return nil
}

// hello waits for the server's first word.
func (t *Task) hello(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, err := t.response(ctx)
	if err == nil && v != 0 {
		err = &StepError{Call: call.Call{Name: "set_robust_list"}, Errno: unix.Errno(-v)}
	}
	return err
}

// Pid is the process's ID, in this process's PID namespace.
func (t *Task) Pid() int { return t.Child.pid }

// Namespaces are those that the task is in, as far as its clones, unshares and joins tell.
func (t *Task) Namespaces() Namespaces { return t.ns }

// FDTable is the task's descriptor table.
func (t *Task) FDTable() *FDTable { return t.fds }

// AddressSpace is the task's memory.
func (t *Task) AddressSpace() *AddressSpace { return t.mem }

// FD is the task's descriptor n, one that we know to be there.
func (t *Task) FD(n int) *FD { return t.fds.handle(n) }

// Stdin, Stdout and Stderr are descriptors 0, 1 and 2.
func (t *Task) Stdin() *FD  { return t.FD(0) }
func (t *Task) Stdout() *FD { return t.FD(1) }
func (t *Task) Stderr() *FD { return t.FD(2) }

func (t *Task) address(b *Block) uint64 { return t.base + uint64(b.span.off) }

func (t *Task) owns(owner uint32) bool { return owner == t.fds.id || owner == t.mem.id }

// Call performs one system call and returns its result; the error is a
// [StepError], with the errno, or a [DiedError].
func (t *Task) Call(ctx context.Context, c call.Call) (int64, error) {
	words := [7]uint64{uint64(c.Nr)}
	plain := c.Nr >= 0
	for i, a := range c.Args {
		plain = plain && a.Kind == call.KindInt && (a.Owner == 0 || t.owns(a.Owner))
		if i < 6 {
			words[1+i] = uint64(a.Int)
		}
	}
	if !plain {
		run := t.NewRun()
		defer run.Close()
		if err := run.Do(ctx, call.Step{Call: c}); err != nil {
			return 0, err
		}
		return run.Result(0).Value, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	sent := now()
	if err := t.request(ctx, words); err != nil {
		return 0, err
	}
	v, err := t.response(ctx)
	t.traceCall(c, sent, v, err == nil)
	if err != nil {
		if d, ok := err.(*DiedError); ok {
			d.Index, d.Call = 0, &c
		}
		return 0, err
	}
	if uint64(v) >= ^uint64(0)-4094 {
		return 0, &StepError{0, c, unix.Errno(-v)}
	}
	t.track(c)
	return v, nil
}

// Open performs a call that returns a descriptor.
func (t *Task) Open(ctx context.Context, c call.Call) (*FD, error) {
	n, err := t.Call(ctx, c)
	if err != nil {
		return nil, err
	}
	return t.fds.handle(int(n)), nil
}

// track follows the task's namespaces.
func (t *Task) track(c call.Call) {
	switch c.Nr {
	case unix.SYS_UNSHARE:
		t.ns.renew(int(c.Args[0].Int))
		if c.Args[0].Int&unix.CLONE_FILES != 0 {
			t.fds = newFDTable(t.fds)
		}
	case unix.SYS_SETNS:
		t.ns.renew(int(c.Args[1].Int))
	case unix.SYS_RT_SIGPROCMASK:
		t.trackSigmask(c)
	case unix.SYS_PRCTL:
		if c.Args[0].Int == unix.PR_SET_NAME && len(c.Args) > 1 {
			t.Child.rename(c.Args[1].Data)
		}
	}
}

// request sends a request. t.mu is held.
func (t *Task) request(ctx context.Context, words [7]uint64) error {
	if t.conn.request(words) != nil {
		return t.gone(ctx)
	}
	return nil
}

// gone is why a channel ended. Who hangs up and lives on is killed when the context ends.
func (t *Task) gone(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { t.Child.interrupt(context.Cause(ctx)) })
	defer stop()
	return t.Child.diedError()
}

// response waits for the response to a request. t.mu is held.
func (t *Task) response(ctx context.Context) (int64, error) {
	stop := context.AfterFunc(ctx, func() { t.Child.interrupt(context.Cause(ctx)) })
	defer stop()
	v, err := t.conn.response()
	if err == nil {
		return v, nil
	}
	return 0, t.Child.diedError()
}

// Pass gives the task descriptors, of files that stay ours as well.
func (t *Task) Pass(ctx context.Context, files ...*os.File) ([]*FD, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	run := t.NewRun()
	defer run.Close()
	n := len(files)
	err := run.requestWith(ctx, files, []call.Step{{Call: recvFDs(t.inlet.Arg(), n)}, {Call: expectFDs(0, n)}})
	if err == nil {
		err = run.finish(ctx, 0)
	}
	if err != nil {
		return nil, err
	}
	return t.received(run, 0, n), nil
}

// PassAnd gives the task descriptors and has it run steps that use them, all as one program. The
// run that it returns, to be closed, has the steps' results, from index 2 on.
func (t *Task) PassAnd(ctx context.Context, files []*os.File, use func(fds []call.Arg) []call.Step) (*Run, error) {
	n := len(files)
	fds := make([]call.Arg, n)
	for i := range fds {
		fds[i] = receivedFD(0, i)
	}
	steps := append([]call.Step{{Call: recvFDs(t.inlet.Arg(), n)}, {Call: expectFDs(0, n)}}, use(fds)...)
	t.mu.Lock()
	defer t.mu.Unlock()
	run := t.NewRun()
	err := run.requestWith(ctx, files, steps)
	if err == nil {
		err = run.finish(ctx, 0)
	}
	if err != nil {
		run.Close()
		return nil, err
	}
	return run, nil
}

// Kill kills the task's process; [Child.Wait] waits for its end. The task of a process
// that has exec'd is to be left alone, its Child is what remains.
func (t *Task) Kill() {
	t.Child.kill(ErrGone)
	t.cradle.Swap(nil).Close()
	t.closeConns()
}

// Forget closes our end of a task that has left us by execve.
func (t *Task) Forget() { t.closeConns() }

func (t *Task) closeConns() {
	if t.conn != nil {
		t.conn.close()
	}
	if t.passer != nil && t.passer != t.conn {
		t.passer.close()
	}
	if t.data != nil {
		t.data.close()
	}
}
