package rsys

import (
	"context"
	"os"
	"sync"

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
	sock   *FD   // its end of conn
	inlet  *FD   // its end of passer

	arena *Arena
	base  uint64 // where the arena is mapped in it; 0 if it is not yet
	entry uint64 // where the server is in its memory
	fds   *FDTable
	mem   *AddressSpace
	ns    Namespaces

	mu sync.Mutex // held from a request to its response
}

// An AddressSpace is the memory of one or, by CLONE_VM, several tasks.
type AddressSpace struct{ id uint64 }

// Config describes a process that already runs the server, to make a task of it.
type Config struct {
	Pid     int      // a child of ours; it becomes the task's to reap
	Channel *os.File // our end of the channel, which is taken over
	Inlet   *os.File // our end of the channel for descriptors; nil if it is Channel
	FD      int      // its end of Channel
	InletFD int      // its end of Inlet
	Entry   uint64   // the address of the server in it
	Arena   *Arena
	ArenaFD int // the arena's memfd in it; it is mapped, and closed
}

// NewTask makes a task of a process that runs the server. The process and the
// channels are taken over: if it fails, the process is killed and reaped.
func NewTask(ctx context.Context, cfg Config) (*Task, error) {
	t := &Task{
		arena: cfg.Arena, entry: cfg.Entry, fds: newFDTable(nil),
		mem: &AddressSpace{ids.Add(1)}, ns: rootNamespaces(),
	}
	err := t.adopt(ctx, cfg)
	if err == nil {
		return t, nil
	}
	if t.Child == nil {
		unix.Kill(cfg.Pid, unix.SIGKILL)
		unix.Wait4(cfg.Pid, nil, 0, nil)
	} else {
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
	if t.Child, err = newChild(cfg.Pid, t.conn, nil); err != nil {
		return err
	}
	if err := t.hello(ctx); err != nil {
		return err
	}
	memfd := t.fds.handle(cfg.ArenaFD)
	addr, err := t.Call(ctx, call.Mmap(call.Null, cfg.Arena.Size(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, memfd.Arg(), 0))
	if err != nil {
		return err
	}
	t.base = uint64(addr)
	return memfd.Close(ctx, t)
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

func (t *Task) owns(owner uint64) bool { return owner == t.fds.id || owner == t.mem.id }

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
	if err := t.request(words); err != nil {
		return 0, err
	}
	v, err := t.response(ctx)
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
	}
}

// request sends a request. t.mu is held.
func (t *Task) request(words [7]uint64) error {
	if t.conn.request(words) != nil {
		return t.Child.diedError()
	}
	return nil
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
	err := run.requestWith(files, []call.Step{{Call: recvFDs(t.inlet.Arg(), n)}, {Call: expectFDs(0, n)}})
	if err == nil {
		err = run.finish(ctx, 0)
	}
	if err != nil {
		return nil, err
	}
	return t.received(run, 0, n), nil
}

// Kill kills the task's process; [Child.Wait] waits for its end. The task of a process
// that has exec'd is to be left alone, its Child is what remains.
func (t *Task) Kill() {
	t.Child.kill(ErrGone)
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
}
