package rsys

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
)

var (
	// ErrGone is returned by a task that has left us: its process exec'd, exited,
	// or was killed, and can serve no more calls.
	ErrGone = errors.New("rsys: task is gone")
	// ErrWrongTask is returned when a handle is used with a task that it does not belong to.
	ErrWrongTask = errors.New("rsys: handle belongs to another task")
	// ErrNotShared is returned for what needs memory shared with the task, by one that has a data socket instead.
	ErrNotShared = errors.New("rsys: task shares no memory with us")
	// ErrNotOurs is returned for the clone of a task that is not our child: we could not wait for it.
	ErrNotOurs = errors.New("rsys: task is not our child")
	// ErrInvalidated is returned when a handle is used after it was moved or closed.
	ErrInvalidated = errors.New("rsys: handle is no longer valid")
)

// A StepError is a step that failed and ended its program, or a call that failed alone.
type StepError struct {
	Index int // of the step in its run
	Call  call.Call
	Errno unix.Errno
}

func (e *StepError) Error() string {
	return fmt.Sprintf("%s: %s (%s)", e.Call.Name, unix.ErrnoName(e.Errno), e.Errno.Error())
}

func (e *StepError) Unwrap() error { return e.Errno }

// A DiedError says that a task's process ended before it could exec or
// answer. It wraps [ErrGone], and the cause if the process was killed by us
// for one.
type DiedError struct {
	Index int        // the step that it did not come to the end of; -1 if it was at none
	Call  *call.Call // nil if it was at none
	Last  int        // if more than Index: it was one of the steps from Index to Last, of a task that shares no memory
	Exit  ExitStatus
	Cause error // why we killed it: the context's error
}

func (e *DiedError) Error() string {
	where := "between calls"
	if e.Call != nil {
		where = "in " + e.Call.Name
		if e.Last > e.Index {
			where = fmt.Sprintf("in one of %d calls from %s on", e.Last-e.Index+1, e.Call.Name)
		}
	}
	if e.Cause != nil {
		return fmt.Sprintf("%s: task killed %s", e.Cause, where)
	}
	return fmt.Sprintf("task %s %s", e.Exit, where)
}

func (e *DiedError) Unwrap() []error {
	if e.Cause != nil {
		return []error{ErrGone, e.Cause}
	}
	return []error{ErrGone}
}
