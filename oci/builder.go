package oci

import (
	"strconv"

	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// A builder appends steps to a Plan.
type builder struct {
	*Plan
	*Reason // of the steps to come
	phase   Phase
	outside bool            // the child's steps are the parent's
	made    map[string]bool // directories below the root that steps have made, or found there
}

// maxSteps is far above what any container needs and far below what would hurt the shim.
const maxSteps = 1 << 17

// stepsAMount is what a bind mount takes. A long list that grows as it goes is memory that a new shim has yet to get, page by page.
const stepsAMount = 20

func newBuilder(steps int) *builder {
	return &builder{Reason: new(Reason), made: map[string]bool{}, Plan: &Plan{Steps: make([]Step, 0, steps), Birth: -1, Gate: -1, Terminal: -1, Passwd: -1, Lookup: Lookup{Failed: -1}}}
}

// item is the path of an element of a list in the config.
func item(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

// at names the config field that asks for the steps to come.
func (b *builder) at(why, about string) { b.Reason = &Reason{why, about} }

// about says what they are about, for the same field.
func (b *builder) about(what string) { b.at(b.Why, what) }

func (b *builder) add(who Who, c call.Call, p call.Policy) int {
	switch {
	case who == Child && b.outside:
		who = Parent
	case who == Child && b.Birth >= 0:
		who = Born
	}
	b.Steps = append(b.Steps, Step{
		Step: call.Step{Call: c, OnError: p},
		Who:  who, Phase: b.phase, Reason: b.Reason,
	})
	return len(b.Steps) - 1
}

// do is a step that must succeed.
func (b *builder) do(c call.Call) int { return b.add(Child, c, call.Stop) }

// try is a step that may fail as p says.
func (b *builder) try(c call.Call, p call.Policy) int { return b.add(Child, c, p) }

// shim is a step of the shim's.
func (b *builder) shim(name string, args ...call.Arg) int {
	return b.add(Shim, call.Call{Name: name, Nr: NrShim, Args: args}, call.Stop)
}

// fails is a step that stops the program with errno.
func (b *builder) fails(errno unix.Errno) int {
	return b.do(call.Expect(call.Int(0), 1, 1, errno))
}

// okHere makes a success of step i go on with the step that is added next.
func (b *builder) okHere(i int) { b.Steps[i].SkipOK = int32(len(b.Steps) - i - 1) }

// errHere makes a tolerated error of step i go on with the step that is added next.
func (b *builder) errHere(i int) { b.Steps[i].SkipErr = int32(len(b.Steps) - i - 1) }

func (b *builder) close(fd call.Arg) int { return b.do(call.Close(fd)) }

// full says that the Plan has become absurd.
func (b *builder) full() bool { return len(b.Steps) > maxSteps }

const (
	oPath = unix.O_PATH | unix.O_CLOEXEC
	oDir  = unix.O_PATH | unix.O_CLOEXEC | unix.O_DIRECTORY

	inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	// plain is for what must be exactly where its path says.
	plain = inRoot | unix.RESOLVE_NO_SYMLINKS

	treeClone   = unix.OPEN_TREE_CLONE | unix.O_CLOEXEC
	treeCloneFD = treeClone | unix.AT_EMPTY_PATH
	moveFD      = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
)

var (
	mayBeMissing = call.Tolerate(unix.ENOENT)
	mayExist     = call.Tolerate(unix.EEXIST)
)

// moveMount puts the mount that from is the root of on what to refers to.
func (b *builder) moveMount(from, to call.Arg) int {
	return b.do(call.MoveMount(from, "", to, "", moveFD))
}

// setattr changes a mount by its fd.
func (b *builder) setattr(mount call.Arg, recursive bool, set, clear, propagation uint64) int {
	f := uint(unix.AT_EMPTY_PATH)
	if recursive {
		f |= unix.AT_RECURSIVE
	}
	return b.do(call.MountSetattr(mount, "", f, set, clear, propagation))
}
