package namespaces

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Role is what a clone is made for.
type Role uint8

const (
	RoleInit   Role = iota // a container's first process
	RoleExec               // a process in a container that runs
	RoleJoiner             // to join namespaces and have children there
)

// Isolation is how much a user wants processes kept apart.
type Isolation uint8

const (
	IsolationAuto   Isolation = iota // as the rule has it
	IsolationAlways                  // nothing shares memory with the stub
)

// ParseIsolation reads an Isolation as it is written in a config; "" is auto.
func ParseIsolation(s string) (Isolation, error) {
	switch s {
	case "", "auto":
		return IsolationAuto, nil
	case "always":
		return IsolationAlways, nil
	}
	return 0, fmt.Errorf("isolation %q: not auto or always", s)
}

// A Way is how a process comes to be.
type Way struct {
	// ShareMemory: it has its parent's memory, CLONE_VM, and not a copy.
	ShareMemory bool
	// ByJoiner: its parent is a task that has joined for it, and stays outside its PID namespace.
	ByJoiner bool
	// Born: it is borne by a task that has given up its privileges; see rsys.Run.Bear.
	Born bool
}

// How is the rule for who is cloned how. created are the CLONE_NEW* flags of the
// namespaces that are made for the process, joined of those that it joins.
//
// Memory. Sharing is quicker by the cost of a fork, but the kernel lets processes that share
// memory hurt each other: a write of oom_score_adj counts for all of them, the OOM
// killer kills all of them, and so does whoever can ptrace one. A container's
// process is in the container's cgroup, and perhaps in sight of others, before it
// execs, so it gets a copy. A joiner is in neither. But only a process alone in its
// memory can join a time namespace (EUSERS).
//
// Joiner. A process can't change its own PID namespace, so one that goes into an existing one has a
// parent that joined it. Everything exec'd does.
//
// Born. In a PID namespace that is made for it a process is alone, and nobody sees its
// privileges. In one that others live in they would.
func How(role Role, created, joined uint64, isolation Isolation) Way {
	if role == RoleJoiner {
		return Way{ShareMemory: isolation != IsolationAlways && joined&unix.CLONE_NEWTIME == 0}
	}
	inhabited := joined&unix.CLONE_NEWPID != 0
	return Way{ByJoiner: role == RoleExec, Born: role == RoleExec || inhabited && created&unix.CLONE_NEWPID == 0}
}

func (w Way) memory() uint64 {
	if w.ShareMemory {
		return unix.CLONE_VM
	}
	return 0
}
