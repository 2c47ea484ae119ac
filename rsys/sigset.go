package rsys

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
)

// A Sigset is a set of signals, as the kernel has it: bit n-1 is signal n.
type Sigset uint64

// Has reports whether sig is in the set.
func (s Sigset) Has(sig unix.Signal) bool { return sig > 0 && sig <= 64 && s>>(sig-1)&1 != 0 }

// Sigmask are the signals that the task blocks, as far as what it was made from and its calls tell.
func (t *Task) Sigmask() Sigset { return t.sigmask }

const (
	sigBlock   = 0 // SIG_BLOCK
	sigUnblock = 1
	sigSetmask = 2
)

// trackSigmask follows a rt_sigprocmask.
func (t *Task) trackSigmask(c call.Call) {
	if len(c.Args) < 2 || c.Args[1].Kind != call.KindIn || len(c.Args[1].Data) != 8 {
		return // it only asks
	}
	set := Sigset(binary.NativeEndian.Uint64([]byte(c.Args[1].Data)))
	switch c.Args[0].Int {
	case sigBlock:
		t.sigmask |= set
	case sigUnblock:
		t.sigmask &^= set
	case sigSetmask:
		t.sigmask = set
	}
}
