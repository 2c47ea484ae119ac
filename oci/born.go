package oci

import (
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/oci/seccomp"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// A process in a PID namespace that others live in can be seen by them, and one that has CAP_SYS_PTRACE can
// become it. So it is born unprivileged: the child, outside that namespace, does all that takes
// privileges, gives them up, loads the filter, and only then bears the process, which has nothing left to do but what a
// process must do itself.

// BirthCall is the name of the child's last step in a Plan with a birth. Its number is clone's; what its arguments are is the
// machine's business.
const BirthCall = "clone"

// birthPlace is where the filter is loaded relative to the birth.
type birthPlace uint8

const (
	notBorn      birthPlace = iota
	filterBefore            // by the child: the process is never without it
	filterAfter             // by the process, which may under no_new_privs
)

// placeOfBirth decides. The child and the process need some system calls between filter and execve. A
// filter that forbids one of them is loaded by the process itself; without no_new_privs
// that would take a privilege, which the process then has while it is in sight: that is not being born unprivileged, and is
// warned of.
func (c *compiler) placeOfBirth(filter *seccomp.Filter) birthPlace {
	if !c.req.Born {
		return notBorn
	}
	if lost := c.lostAtBirth(); lost != "" {
		c.Warnings = append(c.Warnings, "process.scheduler: "+lost+
			" is not inherited, so a process is privileged until it has set it, in sight of those in its PID namespace")
		return notBorn
	}
	if filter != nil && filter.Notify {
		// The shim takes the listener from who loads the filter before that has anything to be asked about.
		c.Warnings = append(c.Warnings, "linux.seccomp: with "+string(specs.ActNotify)+
			" a process is privileged until it has loaded the filter, in sight of those in its PID namespace")
		return notBorn
	}
	missing := c.forbidden(filter)
	switch {
	case missing == "":
		return filterBefore
	case c.proc.NoNewPrivileges:
		return filterAfter
	}
	c.Warnings = append(c.Warnings, "linux.seccomp: forbids "+missing+
		", so a process is privileged until it has loaded the filter, in sight of those in its PID namespace")
	return notBorn
}

// forbidden is a system call that a birth under the filter needs and does not get; "" if there is none.
func (c *compiler) forbidden(filter *seccomp.Filter) string {
	if filter == nil {
		return ""
	}
	for _, need := range []struct {
		name string
		nr   int64
		args []uint64
	}{
		{"clone", unix.SYS_CLONE, []uint64{unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID}},
		{"exit_group", unix.SYS_EXIT_GROUP, nil},
		{"gettid", unix.SYS_GETTID, nil},
		{"set_robust_list", unix.SYS_SET_ROBUST_LIST, nil},
		{"futex", unix.SYS_FUTEX, []uint64{0, 1 /* FUTEX_WAKE */}},
		{"futex", unix.SYS_FUTEX, []uint64{0, 0 /* FUTEX_WAIT */}},
		{"setsid", unix.SYS_SETSID, nil},
		{"prctl", unix.SYS_PRCTL, []uint64{unix.PR_SET_PDEATHSIG}},
		{"ioctl", unix.SYS_IOCTL, []uint64{0, unix.TIOCSCTTY}},
	} {
		if !filter.Allows(runtime.GOARCH, need.nr, need.args...) {
			return need.name
		}
	}
	return ""
}

// placeOfInit is placeOfBirth for a container's init, in a PID namespace that it joins. Its procfs must be of that, and the
// child who makes it is not in there: that takes the option pidns of Linux 6.17. Without it, the child is cloned into the
// namespace with its privileges. So it is with a new user namespace, which has no rights over a PID namespace that was before.
func (c *compiler) placeOfInit() birthPlace {
	pid := &c.ns[nsIndex(specs.PIDNamespace)]
	if pid.path == "" || !c.host.ProcPIDNS || c.ns.isNew(specs.UserNamespace) {
		return notBorn
	}
	return c.placeOfBirth(c.Seccomp)
}

// bear is the birth, and what the process does for itself. An init is born when it is created,
// and waits for the start; then it is not to outlive us.
func (c *compiler) bear() {
	c.at("process", "")
	c.Birth = c.do(call.Call{Name: BirthCall, Nr: unix.SYS_CLONE, Args: []call.Arg{{Int: unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID, Form: call.FormClone}}})
	if !c.exec {
		c.do(call.Prctl(unix.PR_SET_PDEATHSIG, call.Int(int(unix.SIGKILL))))
		c.Gate = c.try(call.FutexWait(), call.Tolerate(unix.EAGAIN))
		c.do(call.Prctl(unix.PR_SET_PDEATHSIG, call.Int(0)))
		c.phase = Start
		c.hooks(StartContainer)
	}
	c.do(call.Setsid())
	if c.proc.Terminal {
		c.at("process.terminal", "")
		c.do(call.Ioctl(call.FD(0), "TIOCSCTTY", unix.TIOCSCTTY, call.Int(0)))
	}
}
