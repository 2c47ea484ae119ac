package oci

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
)

// noModule is the error for a label of a security module that this kernel does not run: as in runc, the
// process is not to run without what should confine it.
func noModule(field, module string) error {
	return fmt.Errorf("%s: %s is not enabled on this host: %w", field, module, errdefs.ErrFailedPrecondition)
}

func validateLabels(spec *specs.Spec, p *specs.Process) error {
	l := [][2]string{{"process.apparmorProfile", p.ApparmorProfile}, {"process.selinuxLabel", p.SelinuxLabel}}
	if spec != nil && spec.Linux != nil {
		l = append(l, [2]string{"linux.mountLabel", spec.Linux.MountLabel})
	}
	for _, f := range l {
		// The kernel takes at most a page, with the words before it.
		if strings.ContainsAny(f[1], "\x00\n") || len(f[1]) > pageSize-16 {
			return invalid(f[0], "not a label")
		}
	}
	return nil
}

// checkLabels refuses what the host's security modules can't do.
func (c *compiler) checkLabels() error {
	switch {
	case c.proc.ApparmorProfile != "" && !c.host.AppArmor:
		return noModule("process.apparmorProfile", "AppArmor")
	case c.proc.SelinuxLabel != "" && !c.host.SELinux:
		return noModule("process.selinuxLabel", "SELinux")
	case c.spec.Linux.MountLabel != "" && !c.host.SELinux:
		return noModule("linux.mountLabel", "SELinux")
	case c.host.KnowsLabel == nil:
		return nil
	}
	for _, l := range [][2]string{{"process.selinuxLabel", c.proc.SelinuxLabel}, {"linux.mountLabel", c.spec.Linux.MountLabel}} {
		if l[1] != "" && !c.host.KnowsLabel(l[1]) {
			return invalid(l[0], "SELinux's policy has no label %s", l[1])
		}
	}
	return nil
}

// labels has the child's next execve, which is the program's, change its profile or label: apparmor(7) and
// aa_change_onexec(2), and the files exec and keycreate of proc_pid_attr(5). Who is cloned of the child inherits it.
func (c *compiler) labels() {
	if p := c.proc.ApparmorProfile; p != "" {
		c.at("process.apparmorProfile", p)
		c.shim(WriteAttr, call.String("apparmor/exec"), call.String("exec "+p))
	}
	if l := c.proc.SelinuxLabel; l != "" {
		c.at("process.selinuxLabel", l)
		if !c.req.NoNewKeyring {
			c.shim(WriteAttr, call.String("keycreate"), call.String(l))
		}
		c.shim(WriteAttr, call.String("exec"), call.String(l))
	}
}

// labelFile gives the directory that a mount begins with linux.mountLabel. An mqueue has no option for it: all of an IPC namespace are one
// file system.
func (c *compiler) labelFile(mount call.Arg, label string) {
	c.do(call.Fchdir(mount))
	c.do(call.Setxattr(".", "security.selinux", []byte(label)))
}

// context is linux.mountLabel for a new file system's option of that name; "" if it is to have none. Those whose files have
// labels of their own are left alone, as in runc.
func (c *compiler) context(fstype string, data []string) string {
	switch fstype {
	case "proc", "sysfs", "mqueue", "cgroup", "cgroup2":
		return ""
	}
	if has(data, "context") {
		return ""
	}
	return c.spec.Linux.MountLabel
}
