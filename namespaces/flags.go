package namespaces

import "golang.org/x/sys/unix"

// Flag is the CLONE_NEW* flag of a namespace type by its name in the runtime
// specification, 0 if there is none of that name.
func Flag(name string) uint64 {
	switch name {
	case "pid":
		return unix.CLONE_NEWPID
	case "network":
		return unix.CLONE_NEWNET
	case "mount":
		return unix.CLONE_NEWNS
	case "ipc":
		return unix.CLONE_NEWIPC
	case "uts":
		return unix.CLONE_NEWUTS
	case "user":
		return unix.CLONE_NEWUSER
	case "cgroup":
		return unix.CLONE_NEWCGROUP
	case "time":
		return unix.CLONE_NEWTIME
	}
	return 0
}
