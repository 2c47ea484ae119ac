package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// MaxInstructions is what the kernel accepts in one filter (BPF_MAXINSNS in include/uapi/linux/bpf_common.h).
const MaxInstructions = 4096

// An Instruction has the layout of struct sock_filter (include/uapi/linux/filter.h), so that a slice of them can be
// handed to the kernel as it is.
type Instruction struct {
	Code   uint16
	Jt, Jf uint8
	K      uint32
}

// A Filter is what seccomp(SECCOMP_SET_MODE_FILTER) needs.
type Filter struct {
	Instructions []Instruction
	// Flags are those of seccomp(2), with SECCOMP_FILTER_FLAG_NEW_LISTENER if Notify is set.
	Flags uint32
	// Notify says that the profile has rules with SCMP_ACT_NOTIFY: seccomp(2) will return a listener.
	Notify bool
}

// Compile makes the program for a profile on a machine of architecture goarch (as in runtime.GOARCH). Like runc it
// takes a nil profile, or one with neither a default action nor system calls, as no seccomp at all: the Filter is nil.
func Compile(s *specs.LinuxSeccomp, goarch string) (*Filter, error) {
	if s == nil || s.DefaultAction == "" && len(s.Syscalls) == 0 {
		return nil, nil
	}
	p, err := parse(s, goarch)
	if err != nil {
		return nil, err
	}
	insns, err := generate(p)
	if err != nil {
		return nil, err
	}
	return &Filter{Instructions: insns, Flags: p.flags, Notify: p.notify}, nil
}
