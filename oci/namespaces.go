package oci

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// namespaces are those of the config, each at its place in nsTypes.
type namespaces [len(nsTypes)]struct {
	why  string // "" if the container has none of its own
	path string // "" if it is new
}

// nsTypes is in the order of joining: the user namespace first, for it gives the
// right to join the others, and the mount namespace last, for with it the paths change.
var nsTypes = [...]struct {
	name specs.LinuxNamespaceType
	flag int
}{
	{specs.UserNamespace, unix.CLONE_NEWUSER},
	{specs.IPCNamespace, unix.CLONE_NEWIPC},
	{specs.UTSNamespace, unix.CLONE_NEWUTS},
	{specs.NetworkNamespace, unix.CLONE_NEWNET},
	{specs.PIDNamespace, unix.CLONE_NEWPID},
	{specs.CgroupNamespace, unix.CLONE_NEWCGROUP},
	{specs.TimeNamespace, unix.CLONE_NEWTIME},
	{specs.MountNamespace, unix.CLONE_NEWNS},
}

func nsIndex(t specs.LinuxNamespaceType) int {
	for i := range nsTypes {
		if nsTypes[i].name == t {
			return i
		}
	}
	return -1
}

func namespacesOf(spec *specs.Spec) (n namespaces) {
	if spec.Linux == nil {
		return n
	}
	for i, ns := range spec.Linux.Namespaces {
		if k := nsIndex(ns.Type); k >= 0 {
			n[k].why = item("linux.namespaces", i)
			n[k].path = ns.Path
		}
	}
	return n
}

// has says that the container is not in the host's namespace of a type.
func (n *namespaces) has(t specs.LinuxNamespaceType) bool { return n[nsIndex(t)].why != "" }

func (n *namespaces) isNew(t specs.LinuxNamespaceType) bool {
	e := &n[nsIndex(t)]
	return e.why != "" && e.path == ""
}

// unshared says that a new namespace of type t is none that the child is cloned into. The root of a
// cgroup namespace is the cgroup that its maker is in, so the child makes it when it has moved. In an IPC
// namespace the file system of message queues belongs to its maker, who is root in the user namespace if there is one.
func (c *compiler) unshared(t specs.LinuxNamespaceType) bool {
	return t == specs.CgroupNamespace || t == specs.TimeNamespace || t == specs.IPCNamespace && c.ns.has(specs.UserNamespace)
}

// clone clones the child.
func (c *compiler) clone() {
	if pid := &c.ns[nsIndex(specs.PIDNamespace)]; pid.path != "" && c.place == notBorn && !c.joined[nsIndex(specs.PIDNamespace)] {
		c.at(pid.why, pid.path)
		c.shim(JoinPID, call.String(pid.path))
	}
	flags := 0
	for i, t := range nsTypes {
		if c.ns[i].why != "" && c.ns[i].path == "" && !c.unshared(t.name) {
			flags |= t.flag
		}
	}
	c.at("linux.namespaces", "")
	c.shim(CloneChild, call.Arg{Int: int64(flags), Form: call.FormClone})
}

// joinNamespaces joins those given by path. All are opened first, while the paths are the host's.
func (c *compiler) joinNamespaces() {
	var fds [len(nsTypes)]call.Arg
	joined := func(i int) bool {
		return c.ns[i].path != "" && !c.joined[i] && (nsTypes[i].name != specs.PIDNamespace || c.place != notBorn)
	}
	for i := range nsTypes {
		if fd, open := c.handed[i]; open {
			fds[i] = fd
		} else if joined(i) {
			fds[i] = c.openNamespace(i)
		}
	}
	for i, t := range nsTypes {
		if joined(i) {
			c.at(c.ns[i].why, c.ns[i].path)
			c.do(call.Setns(fds[i], t.flag))
			if t.name == specs.PIDNamespace {
				c.pidns = &fds[i]
				continue
			}
			c.close(fds[i])
		}
	}
	for i, t := range nsTypes {
		if c.ns.isNew(t.name) && c.unshared(t.name) && !c.joined[i] {
			c.at(c.ns[i].why, "")
			c.do(call.Unshare(t.flag))
		}
	}
}

// openNamespace opens one that is to be joined. The path may lead to anything: a fifo must not be waited at.
func (c *compiler) openNamespace(i int) call.Arg {
	c.at(c.ns[i].why, c.ns[i].path)
	fd := call.ResultOf(c.do(call.Openat(call.CWD, c.ns[i].path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)))
	if nsTypes[i].name == specs.MountNamespace {
		// The root of a mount namespace that is joined is changed, for all who are in it. That shall not be us.
		st := c.do(call.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO))
		ours := c.try(call.Expect(call.WordOf(st, 4, call.StatxInoOff), ^uint64(0), c.host.MountNS, unix.EXDEV), call.Tolerate(unix.EXDEV))
		c.fails(unix.EBUSY)
		c.errHere(ours)
	}
	return fd
}

// ownNamespaces sets what is set in the new namespaces themselves.
func (c *compiler) ownNamespaces() {
	if c.ns.isNew(specs.NetworkNamespace) {
		// Programs expect the loopback interface of a container without a network to work.
		c.at(c.ns[nsIndex(specs.NetworkNamespace)].why, "lo")
		s := call.ResultOf(c.do(call.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)))
		ifreq := make([]byte, 40) // struct ifreq: the name, 16 bytes, and the flags
		copy(ifreq, "lo")
		ifreq[16] = unix.IFF_UP
		c.do(call.Ioctl(s, "SIOCSIFFLAGS", unix.SIOCSIFFLAGS, call.Bytes(ifreq)))
		c.close(s)
	}
	c.netDevices()
	if c.spec.Hostname != "" {
		c.at("hostname", "")
		c.do(call.Sethostname(c.spec.Hostname))
	}
	if c.spec.Domainname != "" {
		c.at("domainname", "")
		c.do(call.Setdomainname(c.spec.Domainname))
	}
}
