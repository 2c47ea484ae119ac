package rsys

import "golang.org/x/sys/unix"

// A Namespace stands for a namespace of the kernel. Two tasks are known to be
// in the same one when they have the same Namespace.
type Namespace struct{ id uint32 }

// Namespaces are those that a task is in. PIDForChildren is the one that its
// children are born into, which setns and unshare change; the task's own is fixed
// for life.
type Namespaces struct {
	User, PID, PIDForChildren, Mount, Net, IPC, UTS, Cgroup, Time *Namespace
}

func (n *Namespaces) slots(flags int) []**Namespace {
	var s []**Namespace
	for _, f := range []struct {
		flag int
		slot **Namespace
	}{
		{unix.CLONE_NEWUSER, &n.User}, {unix.CLONE_NEWPID, &n.PIDForChildren}, {unix.CLONE_NEWNS, &n.Mount},
		{unix.CLONE_NEWNET, &n.Net}, {unix.CLONE_NEWIPC, &n.IPC}, {unix.CLONE_NEWUTS, &n.UTS},
		{unix.CLONE_NEWCGROUP, &n.Cgroup}, {unix.CLONE_NEWTIME, &n.Time},
	} {
		if flags&f.flag != 0 {
			s = append(s, f.slot)
		}
	}
	return s
}

// renew puts new namespaces where flags, of CLONE_NEW*, say so: unshare, or a
// setns of one that we have no Namespace for.
func (n *Namespaces) renew(flags int) {
	for _, slot := range n.slots(flags) {
		*slot = &Namespace{ids.Add(1)}
	}
}

// child are the namespaces of a child cloned with flags.
func (n Namespaces) child(flags int) Namespaces {
	n.renew(flags)
	n.PID = n.PIDForChildren
	return n
}

func rootNamespaces() Namespaces {
	var n Namespaces
	n.renew(^0)
	n.PID = n.PIDForChildren
	return n
}
