package oci

import (
	"path"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/oci/seccomp"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// A filter with SCMP_ACT_NOTIFY asks somebody else about system calls, the agent at linux.seccomp.listenerPath: see
// seccomp_unotify(2), and config-linux.md of the runtime specification under "Seccomp" and "The Container Process State".
// What seccomp(2) returns for it, the listener, is fetched by the shim from the child between the loading of the filter and
// execve, which would close it.

func validateListener(s *specs.LinuxSeccomp) error {
	if s == nil {
		return nil
	}
	switch {
	case s.ListenerPath != "" && (!isPath(s.ListenerPath) || !path.IsAbs(s.ListenerPath)):
		return invalid("linux.seccomp.listenerPath", "%q is not an absolute path", s.ListenerPath)
	case s.ListenerMetadata != "" && s.ListenerPath == "":
		return invalid("linux.seccomp.listenerMetadata", "without listenerPath")
	}
	return nil
}

// checkListener refuses a filter whose listener could not be handed over. Under it the child must still be able
// to answer and to be asked.
func (c *compiler) checkListener(f *seccomp.Filter) error {
	if f == nil || !f.Notify {
		return nil
	}
	if c.spec.Linux.Seccomp == nil || c.spec.Linux.Seccomp.ListenerPath == "" {
		return invalid("linux.seccomp.listenerPath", "missing, for %s", specs.ActNotify)
	}
	for name, nr := range map[string]int64{"read": unix.SYS_READ, "write": unix.SYS_WRITE} {
		if !f.Allows(runtime.GOARCH, nr) {
			return invalid("linux.seccomp.syscalls", "%s must be allowed for %s", name, specs.ActNotify)
		}
	}
	return nil
}

// sendListener has the listener that the step loaded returned sent to the agent.
func (c *compiler) sendListener(loaded int) {
	if c.Seccomp.Notify {
		c.at("linux.seccomp.listenerPath", c.spec.Linux.Seccomp.ListenerPath)
		c.shim(SendListener, call.ResultOf(loaded), call.String(c.spec.Linux.Seccomp.ListenerPath), call.String(c.spec.Linux.Seccomp.ListenerMetadata))
	}
}
