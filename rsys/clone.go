package rsys

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
)

// CloneConfig says what a child is to be.
//
// With CLONE_VM in Flags the child shares its parent's memory: quick to make,
// and each can hurt the other. Without it the child has a copy, of which only the arena is shared.
// With CLONE_FILES it shares the descriptor table. CLONE_NEW* flags give it new namespaces.
// Signal handlers are reset and the exit signal is that of the parent: the
// parent of the child is the parent's parent, this process.
type CloneConfig struct {
	Flags  uint64
	Cgroup *os.File // a directory of cgroup v2 to be born into; nil for the parent's cgroup
}

// What a clone needs of the arena, in one block.
const (
	nestArgs    = 0   // struct clone_args
	nestTID     = 88  // the child's ID in the parent's PID namespace, as soon as there is a child
	nestFutex   = 96  // the robust futex, or just the futex word in it
	nestRequest = 136 // of a child that serves nobody: its only request
	nestStack   = 192 // the child's stack; the trampoline is at its end
	nestSize    = 768
	trampoline  = nestSize - 32
)

// Layout of the robust futex: a list head with one node, as set_robust_list(2) wants it.
const (
	robustNext    = 0
	robustOffset  = 8 // from a node to its futex
	robustPending = 16
	robustFutex   = 24
	robustNode    = 32
	robustHead    = 24 // the size of the head
)

const cloneArgsSize = 88 // CLONE_ARGS_SIZE_VER2, Linux 5.7

// Clone makes a child that is a task too: clone_child_task of rsyscall.
//
// The parent receives the child's end of a new channel and clones; the child
// starts on a stack of its own at the trampoline, which jumps into the
// server, and greets. Its futex then lets the futex monitor see when it leaves.
// The child comes first and the monitor's watch after it, for the
// child is to be the first process of a new PID namespace.
//
// The child is ours to reap: CLONE_PARENT makes it a sibling of its parent,
// which is a child of ours. That is why pidfd_open can't be deceived by a
// reused number, and no descriptor is left in the parent as CLONE_PIDFD would.
//
// The child's stack and futex lie in shared memory, so a task that has a data socket instead
// can't be cloned: [ErrNotShared]. Neither can one that is not our child, whose children would not be ours: [ErrNotOurs].
func (t *Task) Clone(ctx context.Context, cfg CloneConfig) (*Task, error) {
	if err := t.canClone(); err != nil {
		return nil, fmt.Errorf("clone3: %w", err)
	}
	c, far, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	nest, err := t.arena.Alloc(nestSize)
	if err != nil {
		c.close()
		return nil, err
	}
	child := &Task{
		conn: c, passer: c, arena: t.arena, base: t.base, entry: t.entry, link: t.link,
		fds: t.fds, mem: t.mem, ns: t.ns.child(int(cfg.Flags)), sigmask: t.sigmask,
	}
	pid, err := t.clone(ctx, cfg, nest, child, far)
	if err != nil {
		t.disown(nest.word(nestTID), nest.Free)
		c.close()
		return nil, err
	}
	word := nest.word(nestFutex + robustFutex)
	if child.Child, err = newChild(pid, c, nest); err != nil {
		t.disown(nest.word(nestTID), nest.Free)
		c.close()
		return nil, err
	}
	if err := child.hello(ctx); err != nil {
		child.Kill()
		return nil, fmt.Errorf("clone3: child: %w", err)
	}
	child.Child.watchFutex(word)
	return child, nil
}

func (t *Task) clone(ctx context.Context, cfg CloneConfig, nest *Block, child *Task, far *os.File) (int, error) {
	mem, addr := nest.Bytes(), t.address(nest)
	put := func(off int, v uint64) { binary.NativeEndian.PutUint64(mem[off:], v) }

	flags := cfg.Flags | unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID | unix.CLONE_CLEAR_SIGHAND
	robust := uint64(0)
	if flags&unix.CLONE_VM != 0 {
		flags |= unix.CLONE_CHILD_CLEARTID
		binary.NativeEndian.PutUint32(mem[nestFutex+robustFutex:], 1)
		put(nestArgs+16, addr+nestFutex+robustFutex) // child_tid
	} else {
		child.mem = &AddressSpace{ids.Add(1)}
		robust = addr + nestFutex
		putRobust(mem, addr)
	}
	files := []*os.File{far}
	if cfg.Cgroup != nil {
		flags |= unix.CLONE_INTO_CGROUP
		files = append(files, cfg.Cgroup)
	}
	put(nestArgs+0, flags)
	put(nestArgs+24, addr+nestTID)         // parent_tid
	put(nestArgs+40, addr+nestStack)       // stack
	put(nestArgs+48, trampoline-nestStack) // stack_size
	put(trampoline+0, t.entry)             // the function,
	put(trampoline+16, robust)             // its second argument
	steps := []call.Step{
		{Call: recvFDs(t.inlet.Arg(), len(files))},
		{Call: expectFDs(0, len(files))},
		{Call: call.Store64(call.Int(addr+trampoline+8), receivedFD(0, 0))},
		{Call: touch(addr + nestTID)},
	}
	if cfg.Cgroup != nil {
		steps = append(steps, call.Step{Call: call.Store64(call.Int(addr+nestArgs+80), receivedFD(0, 1))})
	}
	clone3 := len(steps)
	steps = append(steps, call.Step{OnError: call.Ignore, Call: call.Call{Name: "clone3", Nr: unix.SYS_CLONE3, Args: []call.Arg{
		call.Int(addr + nestArgs), call.Int(cloneArgsSize)}}})
	if cfg.Flags&unix.CLONE_FILES == 0 { // otherwise the child's end lies in the shared table
		child.fds = newFDTable(t.fds)
		steps = append(steps, call.Step{Call: call.Close(receivedFD(0, 0)), OnError: call.Ignore})
	}
	if cfg.Cgroup != nil {
		steps = append(steps, call.Step{Call: call.Close(receivedFD(0, 1)), OnError: call.Ignore})
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	run := t.NewRun()
	defer run.Close()
	if err := run.requestWith(ctx, files, steps); err != nil {
		return 0, err
	}
	// The stub serves all: it is not to be killed because one caller gave up.
	if err := run.finish(context.WithoutCancel(ctx), 0); err != nil {
		return 0, err
	}
	res := run.Result(clone3)
	if res.Errno != 0 {
		return 0, &StepError{clone3, *run.steps[clone3].call, res.Errno}
	}
	num := int32(binary.NativeEndian.Uint32(run.Out(0, 1)[cmsgHdrSize:]))
	child.sock = child.fds.handle(int(num))
	child.inlet = child.sock
	return int(res.Value), nil
}

// touch has a page there for the kernel to write to: it fails to get one, and says nothing, for a process that is being killed.
func touch(addr uint64) call.Call { return call.Store32(call.Int(addr), call.Int(0)) }

// disown is what is to be done when it is not known whether a clone has made a child: the parent may have died
// before it could say so, and the kernel has made one all the same. Then its ID is in word, which
// CLONE_PARENT_SETTID sets before the child runs, even if the parent is being killed. The child is killed and
// reaped; it would be a zombie for ever otherwise, for which its PID namespace's init waits. Then free is called.
func (t *Task) disown(word *atomic.Uint32, free func()) {
	end := func() {
		if pid := int(int32(word.Load())); pid > 0 {
			unix.Kill(pid, unix.SIGKILL)
			for {
				if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
					break
				}
			}
		}
		free()
	}
	if t.Child.killed() {
		go func() {
			<-t.Child.left
			end()
		}()
		return
	}
	end()
}

// putRobust makes the robust futex of a nest at addr.
func putRobust(mem []byte, addr uint64) {
	put := func(off int, v uint64) { binary.NativeEndian.PutUint64(mem[nestFutex+off:], v) }
	offset := robustFutex - robustNode
	put(robustNext, addr+nestFutex+robustNode)
	put(robustOffset, uint64(offset))
	put(robustNode, addr+nestFutex)
}

const cmsgHdrSize = 16

// recvFDs is a recvmsg of one byte with n descriptors. Its output, argument 1, is the control message.
func recvFDs(sock call.Arg, n int) call.Call {
	iov := make([]byte, 16)
	binary.NativeEndian.PutUint64(iov[8:], 1)
	hdr := make([]byte, 56)
	space := cmsgHdrSize + (4*n+7)&^7
	binary.NativeEndian.PutUint64(hdr[24:], 1)             // msg_iovlen
	binary.NativeEndian.PutUint64(hdr[40:], uint64(space)) // msg_controllen
	data := call.Bytes(iov).With(call.Ptr{Off: 0, To: call.Out(1)})
	// The output that is kept is an argument's last.
	msg := call.Bytes(hdr).With(call.Ptr{Off: 16, To: data}, call.Ptr{Off: 32, To: call.Out(space)})
	msg.Form = call.FormHidden
	return call.Call{Name: "recvmsg", Nr: unix.SYS_RECVMSG, Args: []call.Arg{sock, msg, call.Int(unix.MSG_CMSG_CLOEXEC)}}
}

// expectFDs checks that step, a [recvFDs], has received n descriptors: those for which the table has no room are not there.
func expectFDs(step, n int) call.Call {
	return call.Expect(call.WordOf(step, 1, 0), ^uint64(0), uint64(cmsgHdrSize+4*n), unix.EMFILE)
}

// receivedFD is the i-th descriptor that step, a recvFDs, received.
func receivedFD(step, i int) call.Arg { return call.Int32Of(step, 1, cmsgHdrSize+4*i) }

func (t *Task) received(run *Run, step, n int) []*FD {
	msg := run.Out(step, 1)
	fds := make([]*FD, n)
	for i := range fds {
		fds[i] = t.fds.handle(int(int32(binary.NativeEndian.Uint32(msg[cmsgHdrSize+4*i:]))))
	}
	return fds
}
