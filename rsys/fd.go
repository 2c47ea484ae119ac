package rsys

import (
	"context"
	"sync/atomic"

	"github.com/rsys-io/rsys/rsys/call"
)

// ids number fd tables and namespaces; 0 is none.
var ids atomic.Uint32

// An FDTable is a table of file descriptors in the kernel, shared by the tasks
// that were cloned with CLONE_FILES.
type FDTable struct {
	id   uint32
	from *FDTable // the table it was copied from
	at   uint64   // when: descriptors with a higher number came later
	last atomic.Uint64
}

func newFDTable(from *FDTable) *FDTable {
	t := &FDTable{id: ids.Add(1), from: from}
	if from != nil {
		t.at = from.last.Load()
	}
	return t
}

// An FD is a handle of a descriptor in a task's table. It is valid with every
// task that has this table and with no other; [FD.Inherit] and [FD.Move] give the handle of the
// same descriptor in a child that got a copy.
type FD struct {
	table *FDTable
	n     int
	seq   uint64
	gone  atomic.Bool
}

func (t *FDTable) handle(n int) *FD {
	return &FD{table: t, n: n, seq: t.last.Add(1)}
}

// Arg is the descriptor as an argument. Running it in a task with another table is [ErrWrongTask].
func (f *FD) Arg() call.Arg {
	a := call.FD(f.n)
	a.Owner = f.table.id
	if f.gone.Load() {
		a.Owner = ownerGone
	}
	return a
}

// ownerGone is an owner that no task has.
const ownerGone = ^uint32(0)

// Inherit is the handle of f in the table of child, which was cloned without
// CLONE_FILES from a task with f's table after f was opened. A child cloned
// earlier does not have the descriptor.
func (f *FD) Inherit(child *Task) (*FD, error) {
	if f.gone.Load() {
		return nil, ErrInvalidated
	}
	if child.fds == f.table {
		return f, nil
	}
	if child.fds.from != f.table || f.seq > child.fds.at {
		return nil, ErrWrongTask
	}
	return child.fds.handle(f.n), nil
}

// Move is [FD.Inherit], and closes f in the task that it was in.
func (f *FD) Move(ctx context.Context, from, child *Task) (*FD, error) {
	g, err := f.Inherit(child)
	if err != nil || g == f {
		return g, err
	}
	return g, f.Close(ctx, from)
}

// Close closes the descriptor and invalidates the handle.
func (f *FD) Close(ctx context.Context, t *Task) error {
	if f.gone.Load() {
		return ErrInvalidated
	}
	if _, err := t.Call(ctx, call.Close(f.Arg())); err != nil {
		return err
	}
	f.gone.Store(true)
	return nil
}
