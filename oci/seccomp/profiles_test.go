package seccomp

import (
	"math/rand/v2"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// edges are values on both sides of where comparisons of halves can go wrong.
var edges = []uint64{0, 1, 2, 3, 7, 8, 0x7f, 0xff, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 0x100000000, 0x100000001, 0x1ffffffff,
	0x200000001, 0x7fffffffffffffff, 0x8000000000000000, 0xfffffffe00000001, 0xffffffff00000000, 0xffffffffffffffff}

var operators = []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual,
	specs.OpGreaterThan, specs.OpMaskedEqual}

var actions = []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActErrno, specs.ActKill, specs.ActKillThread, specs.ActKillProcess,
	specs.ActTrap, specs.ActTrace, specs.ActLog, specs.ActNotify}

// families are machines, and what a profile can list on them.
var families = []struct {
	goarch string
	listed []specs.Arch
}{
	{"amd64", []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}},
	{"386", []specs.Arch{specs.ArchX86, specs.ArchX32, specs.ArchX86_64}},
	{"arm64", []specs.Arch{specs.ArchAARCH64, specs.ArchARM}},
	{"arm", []specs.Arch{specs.ArchARM}},
	{"riscv64", []specs.Arch{specs.ArchRISCV64}},
	{"ppc64le", []specs.Arch{specs.ArchPPC64LE}},
	{"ppc64", []specs.Arch{specs.ArchPPC64, specs.ArchPPC}},
	{"s390x", []specs.Arch{specs.ArchS390X, specs.ArchS390}},
	{"mips", []specs.Arch{specs.ArchMIPS}},
	{"mips64le", []specs.Arch{specs.ArchMIPSEL64, specs.ArchMIPSEL, specs.ArchMIPSEL64N32}},
	{"mips64", []specs.Arch{specs.ArchMIPS64, specs.ArchMIPS, specs.ArchMIPS64N32}},
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// randomProfile makes a profile of some names, about which libseccomp can be asked.
func randomProfile(r *rand.Rand, names []string, listed []specs.Arch) *specs.LinuxSeccomp {
	errno := func() *uint {
		if r.IntN(2) == 0 {
			return nil
		}
		e := uint(r.IntN(200))
		return &e
	}
	s := &specs.LinuxSeccomp{DefaultAction: pick(r, actions[:9]), DefaultErrnoRet: errno()}
	for _, a := range listed {
		if r.IntN(3) > 0 {
			s.Architectures = append(s.Architectures, a)
		}
	}
	// The names are dense in a part of the profiles, so that ranges form.
	if r.IntN(2) == 0 {
		at := r.IntN(len(names) - 40)
		names = names[at : at+40]
	}
	taken := map[string]taken{}
	for range r.IntN(14) {
		b := specs.LinuxSyscall{Action: pick(r, actions), ErrnoRet: errno()}
		switch r.IntN(3) {
		case 0:
		case 1:
			b.Args = append(b.Args, randomArg(r))
		case 2:
			for range 1 + r.IntN(3) {
				b.Args = append(b.Args, randomArg(r))
			}
		}
		many := 1 + r.IntN(6)
		if len(b.Args) == 0 {
			many = 1 + r.IntN(60)
		}
		for range many {
			n := pick(r, names)
			if n == "write" && b.Action == specs.ActNotify {
				continue
			}
			if !comparable(taken, n, &b) {
				continue
			}
			b.Names = append(b.Names, n)
		}
		s.Syscalls = append(s.Syscalls, b)
	}
	return s
}

// taken is what a profile has on a name so far.
type taken struct {
	action         specs.LinuxSeccompAction
	errno          *uint
	less, compares int
}

// comparable says that libseccomp can be trusted with another rule for a name, and notes it. Not so are: different
// actions on different conditions, or on any rule of a multiplexed call, which has always one; and less together with
// another comparison by size, where 2.5.4 is wrong if the upper halves of their values differ (it does not go on to the
// second one where the first fails in the lower half).
func comparable(names map[string]taken, name string, b *specs.LinuxSyscall) bool {
	i, _ := lookup(name)
	mux := muxCall[i] != 0
	if len(b.Args) == 0 && !mux {
		return true
	}
	if name == "socketcall" || name == "ipc" {
		return false
	}
	t, ok := names[name]
	if ok && (t.action != b.Action || t.errno != b.ErrnoRet) {
		return false
	}
	t.action, t.errno = b.Action, b.ErrnoRet
	for _, a := range b.Args {
		switch a.Op {
		case specs.OpLessThan, specs.OpLessEqual:
			t.less++
			t.compares++
		case specs.OpGreaterThan, specs.OpGreaterEqual:
			t.compares++
		}
	}
	if t.less > 0 && t.compares > 1 {
		return false
	}
	names[name] = t
	return true
}

func randomArg(r *rand.Rand) specs.LinuxSeccompArg {
	value := func() uint64 {
		if r.IntN(4) == 0 {
			return r.Uint64() >> r.IntN(64)
		}
		return pick(r, edges)
	}
	return specs.LinuxSeccompArg{Index: uint(r.IntN(maxArgs)), Op: pick(r, operators), Value: value(), ValueTwo: value()}
}
