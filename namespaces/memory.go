package namespaces

import "golang.org/x/sys/unix"

// Role is what a clone is made for.
type Role uint8

const (
	RoleProcess Role = iota // to become a container's process
	RoleJoiner              // to join namespaces and clone from there
)

// Memory is the rule for who shares its parent's memory, CLONE_VM, and who
// gets a copy, 0. flags are the CLONE_NEW* of the namespaces it is in or joins.
//
// Sharing is quicker by the cost of a fork, but the kernel lets processes that share
// memory hurt each other: a write of oom_score_adj counts for all of them, the OOM
// killer kills all of them, and so does whoever can ptrace one. A container's
// process is in the container's cgroup and perhaps in sight of others
// before it execs, so it gets a copy. A joiner is in neither. But only a process
// alone in its memory can join a time namespace.
func Memory(role Role, flags uint64) uint64 {
	if role == RoleJoiner && flags&unix.CLONE_NEWTIME == 0 {
		return unix.CLONE_VM
	}
	return 0
}
