package seccomp

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// expectation is what runc with libseccomp makes of a profile: libseccomp's program, and runc's ENOSYS rule before it
// (libcontainer/seccomp/patchbpf), of which this is an account of its own.
type expectation struct {
	prog      []Instruction
	bigEndian bool
	tooNew    func(nr, audit uint32) (ret uint32, yes bool)
}

func (r *reference) expect(s *specs.LinuxSeccomp, goarch string) (e expectation, refused int) {
	e.bigEndian = findArch(nativeName(goarch)).bigEndian
	e.prog, refused = r.compile(s, goarch)
	e.tooNew = func(uint32, uint32) (uint32, bool) { return 0, false }
	switch s.DefaultAction {
	case specs.ActAllow, specs.ActLog, specs.ActTrace:
		return e, refused
	}
	largest := map[specs.Arch]uint32{}
	for _, a := range append(slices.Clone(s.Architectures), nativeName(goarch)) {
		for _, b := range s.Syscalls {
			for _, n := range b.Names {
				if nr, ok, _ := r.number(a, n); ok && nr > largest[a] {
					largest[a] = nr
				}
			}
		}
	}
	e.tooNew = func(nr, audit uint32) (uint32, bool) {
		for a, max := range largest {
			arch := findArch(a)
			if arch.audit != audit || max == 0 {
				continue
			}
			if audit == auditX8664 && (nr&x32Bit != 0) != (a == specs.ArchX32) {
				continue
			}
			if nr > max || nr == 0 && (a == specs.ArchS390 || a == specs.ArchS390X) {
				return arch.retENOSYS(), true
			}
		}
		return 0, false
	}
	return e, refused
}

func (e *expectation) verdict(c *call) (ret uint32, looked bool) {
	if ret, yes := e.tooNew(c.nr, c.audit); yes {
		return ret, false
	}
	return run(e.prog, c, e.bigEndian)
}

// known drops the names that the local libseccomp is too old for.
func (r *reference) known(s *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	c := *s
	c.Syscalls = slices.Clone(s.Syscalls)
	for i := range c.Syscalls {
		var names []string
		for _, n := range c.Syscalls[i].Names {
			if _, _, known := r.number(specs.ArchX86_64, n); known {
				names = append(names, n)
			}
		}
		c.Syscalls[i].Names = names
	}
	return &c
}

// numbersToTry are all small numbers, in each ABI's range, and what is around the bits that mean something.
func numbersToTry() []uint32 {
	var nrs []uint32
	for _, base := range []uint32{0, 4000, 5000, 6000, x32Bit} {
		for n := range uint32(601) {
			nrs = append(nrs, base+n)
		}
	}
	for n := range uint32(9) {
		nrs = append(nrs, armPrivate+n)
	}
	for _, n := range []uint32{1 << 15, 1 << 16, 1 << 29, x32Bit, 1 << 31, 3 << 30, 0} {
		for d := range uint32(3) {
			nrs = append(nrs, n+d-1, n+d-1+600)
		}
	}
	return nrs
}

// auditsToTry are all architectures that there are, and one that is none.
func auditsToTry() []uint32 {
	audits := []uint32{0, 0x12345678}
	for _, a := range arches {
		if !slices.Contains(audits, a.audit) {
			audits = append(audits, a.audit)
		}
	}
	return audits
}

// argumentsToTry are, for each argument that a profile compares, values on both sides of every comparison, also with
// other upper and lower halves; first one at a time, then mixed.
func argumentsToTry(r *rand.Rand, s *specs.LinuxSeccomp, mixed int) [][maxArgs]uint64 {
	var values [maxArgs][]uint64
	add := func(i uint, v uint64) {
		for _, w := range []uint64{v - 1, v, v + 1, v & 0xffffffff, v &^ 0xffffffff, v ^ 1<<32, v ^ 1<<63, ^v} {
			if !slices.Contains(values[i], w) {
				values[i] = append(values[i], w)
			}
		}
	}
	for _, b := range s.Syscalls {
		for _, a := range b.Args {
			add(a.Index, a.Value)
			if a.Op == specs.OpMaskedEqual {
				add(a.Index, a.ValueTwo)
				add(a.Index, a.ValueTwo&a.Value)
				add(a.Index, a.ValueTwo|^a.Value)
			}
		}
	}
	// The selectors of socketcall(2) and ipc(2).
	for n := range uint64(26) {
		values[0] = append(values[0], n)
	}
	all := [][maxArgs]uint64{{}}
	for i, vs := range values {
		for _, v := range vs {
			var args [maxArgs]uint64
			args[i] = v
			all = append(all, args)
		}
	}
	for range mixed {
		var args [maxArgs]uint64
		for i, vs := range values {
			if len(vs) > 0 {
				args[i] = pick(r, vs)
			}
		}
		all = append(all, args)
	}
	return all
}

// compare gives both programs the same calls, and returns what they do not agree on, at most a few.
func compare(e *expectation, got []Instruction, args [][maxArgs]uint64) (calls int, differ []string) {
	for _, audit := range auditsToTry() {
		for _, nr := range numbersToTry() {
			c := call{nr: nr, audit: audit}
			_, looked1 := e.verdict(&c)
			_, looked2 := run(got, &c, e.bigEndian)
			some := args
			if !looked1 && !looked2 {
				some = args[:1]
			}
			for _, c.args = range some {
				calls++
				want, _ := e.verdict(&c)
				have, _ := run(got, &c, e.bigEndian)
				if want != have {
					differ = append(differ, fmt.Sprintf("arch %#x, call %#x%#x: %s, libseccomp %s", audit, nr, c.args, retName(have), retName(want)))
					if len(differ) == 5 {
						return calls, differ
					}
					break
				}
			}
		}
	}
	return calls, differ
}

var profiles = flag.Int("profiles", 200, "how many random profiles to compare")

func errnoRet(e uint) *uint { return &e }

func rules(action specs.LinuxSeccompAction, names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: action}
}

func TestVerdictsAreThoseOfRuncWithLibseccomp(t *testing.T) {
	r := startReference(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	x86 := families[0].listed
	for _, tt := range []struct {
		name, goarch string
		profile      *specs.LinuxSeccomp
	}{
		{"containerd's default profile", "amd64", containerdProfile(t)},
		{"Docker's default profile", "amd64", dockerProfile(t, dockerCapabilities...)},
		{"Docker's default profile for all capabilities", "amd64", dockerProfile(t, dockerAll(t)...)},
		{"containerd's default profile without x32", "amd64", func() *specs.LinuxSeccomp {
			s := containerdProfile(t)
			s.Architectures = x86[:2]
			return s
		}()},
		{"a profile that allows everything", "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: x86}},
		{"a profile that forbids everything", "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: x86}},
		{"a profile without architectures", "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess, Syscalls: []specs.LinuxSyscall{rules(specs.ActAllow, "read", "write", "exit_group")}}},
		{"a list of what is forbidden", "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: x86, Syscalls: []specs.LinuxSyscall{
			rules(specs.ActErrno, "mount", "umount2", "ptrace", "socket", "semget", "reboot"), rules(specs.ActTrap, "kexec_load", "bpf"),
			{Names: []string{"ioctl"}, Action: specs.ActErrno, ErrnoRet: errnoRet(25), Args: []specs.LinuxSeccompArg{{Index: 1, Value: 0x5412, Op: specs.OpEqualTo}}},
			{Names: []string{"clone"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0x10000000, ValueTwo: 0x10000000, Op: specs.OpMaskedEqual}}}}}},
		{"a list of what is allowed", "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: errnoRet(13), Architectures: x86,
			Syscalls: []specs.LinuxSyscall{rules(specs.ActAllow, "read", "write", "openat", "close", "mmap", "bind", "shmat", "exit_group", "futex_waitv"),
				{Names: []string{"socket", "accept4"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 2, Op: specs.OpEqualTo}, {Index: 1, Value: 5, Op: specs.OpLessEqual}}}}}},
		{"only call 0 is named, which sets no limit", "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: x86, Syscalls: []specs.LinuxSyscall{rules(specs.ActAllow, "read")}}},
		{"only a name that x32 has not", "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: x86, Syscalls: []specs.LinuxSyscall{rules(specs.ActAllow, "time", "waitpid", "uselib")}}},
		{"a multiplexed call on s390x", "s390x", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchS390X, specs.ArchS390},
			Syscalls: []specs.LinuxSyscall{rules(specs.ActAllow, "read", "accept", "send", "msgget")}}},
		{"only a multiplexed call", "386", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{rules(specs.ActAllow, "socket")}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := r.known(tt.profile)
			f, err := Compile(s, tt.goarch)
			if err != nil {
				t.Fatal(err)
			}
			e, refused := r.expect(s, tt.goarch)
			if refused > 0 {
				t.Fatalf("libseccomp refuses %d rules", refused)
			}
			n, differ := compare(&e, f.Instructions, argumentsToTry(rnd, s, 200))
			for _, d := range differ {
				t.Error(d)
			}
			t.Logf("%d calls; %d instructions, libseccomp %d", n, len(f.Instructions), len(e.prog))
		})
	}
}

func TestVerdictsOfRandomProfilesAreThoseOfRuncWithLibseccomp(t *testing.T) {
	r := startReference(t)
	var names []string
	for i := range nameCount {
		n := nameText[nameStart[i]:nameStart[i+1]]
		// libseccomp 2.5.4 has one pseudo number for two calls of powerpc.
		if _, _, known := r.number(specs.ArchX86_64, n); known && n != "switch_endian" && n != "sys_debug_setcontext" && justified[n] == "" {
			names = append(names, n)
		}
	}
	calls, compared, skipped := 0, 0, 0
	for seed := uint64(0); compared < *profiles; seed++ {
		rnd := rand.New(rand.NewPCG(seed, 0))
		m := families[0]
		if seed%2 == 1 {
			m = pick(rnd, families)
		}
		s := randomProfile(rnd, names, m.listed)
		f, err := Compile(s, m.goarch)
		if err != nil {
			t.Fatalf("seed %d on %s: %v", seed, m.goarch, err)
		}
		if err := validate(f.Instructions); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		e, refused := r.expect(s, m.goarch)
		if refused > 0 {
			t.Errorf("seed %d on %s: libseccomp refuses %d rules", seed, m.goarch, refused)
		}
		if confused(e.prog) {
			skipped++
			continue
		}
		compared++
		n, differ := compare(&e, f.Instructions, argumentsToTry(rnd, s, 100))
		calls += n
		for _, d := range differ {
			t.Errorf("seed %d on %s: %s", seed, m.goarch, d)
		}
	}
	t.Logf("%d profiles, %d calls; %d profiles left out where libseccomp forgets to load the call's number", compared, calls, skipped)
}
