package seccomp

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// What a filter returns (include/uapi/linux/seccomp.h): an action in the upper half, data in the lower.
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retNotify      = 0x7fc00000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000

	retActionMask = 0xffff0000
)

// Errnos of include/uapi/asm-generic. MIPS has another ENOSYS, see arch.retENOSYS.
const (
	eperm  = 1
	enosys = 38
)

// maxErrno is MAX_ERRNO of include/linux/err.h, to which the kernel lowers what is more. libseccomp, and so runc, takes what is less.
const maxErrno = 4095

// An actionError says what is wrong with an action or with its errno.
type actionError struct {
	errno bool
	what  string
}

// returnValue is what a filter returns for an action.
func returnValue(action specs.LinuxSeccompAction, errnoRet *uint) (uint32, *actionError) {
	switch action {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActErrno:
		if errnoRet != nil && *errnoRet >= maxErrno && *errnoRet <= 0xffff {
			return 0, &actionError{errno: true, what: fmt.Sprintf("%d is not an errno", *errnoRet)}
		}
		return withErrno(retErrno, errnoRet)
	case specs.ActTrace:
		return withErrno(retTrace, errnoRet)
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActNotify:
		return retNotify, nil
	}
	return 0, &actionError{what: fmt.Sprintf("unknown action %q", action)}
}

func withErrno(ret uint32, errnoRet *uint) (uint32, *actionError) {
	switch {
	case errnoRet == nil:
		return ret | eperm, nil
	case *errnoRet > 0xffff:
		return 0, &actionError{errno: true, what: fmt.Sprintf("%d does not fit 16 bits", *errnoRet)}
	}
	return ret | uint32(*errnoRet), nil
}

// lenient says of a default action that it must not be replaced by ENOSYS for new system calls: it lets them pass, or a
// tracer sees them (runc's libcontainer/seccomp/patchbpf).
func lenient(ret uint32) bool {
	switch ret & retActionMask {
	case retAllow, retLog, retTrace:
		return true
	}
	return false
}
