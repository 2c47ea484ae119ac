package seccomp

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Flags of seccomp(2) (include/uapi/linux/seccomp.h).
const (
	flagLog              = 1 << 1
	flagSpecAllow        = 1 << 2
	flagNewListener      = 1 << 3
	flagWaitKillableRecv = 1 << 5
)

// The runtime-spec names it in its text, not in its Go package.
const ociFlagTsync = "SECCOMP_FILTER_FLAG_TSYNC"

// parseFlags follows runc (libcontainer/specconv): no list at all means SPEC_ALLOW, an empty one means no flag. TSYNC is
// accepted and not passed on: the process that loads the filter has one thread, and the kernel would refuse TSYNC
// together with a listener.
func parseFlags(list []specs.LinuxSeccompFlag, notify bool) (uint32, error) {
	flags := uint32(0)
	if notify {
		flags |= flagNewListener
	}
	if list == nil {
		return flags | flagSpecAllow, nil
	}
	for i, f := range list {
		switch f {
		case ociFlagTsync:
		case specs.LinuxSeccompFlagLog:
			flags |= flagLog
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= flagSpecAllow
		case specs.LinuxSeccompFlagWaitKillableRecv:
			if !notify {
				return 0, fmt.Errorf("linux.seccomp.flags[%d]: %s needs a rule with %s", i, f, specs.ActNotify)
			}
			flags |= flagWaitKillableRecv
		default:
			return 0, fmt.Errorf("linux.seccomp.flags[%d]: unknown flag %q", i, f)
		}
	}
	return flags, nil
}
