package seccomp

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// verdictOf compiles a profile and asks what becomes of a call.
func verdictOf(t *testing.T, s *specs.LinuxSeccomp, goarch string, c call) string {
	t.Helper()
	f, err := Compile(s, goarch)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(f.Instructions); err != nil {
		t.Fatal(err)
	}
	ret, _ := run(f.Instructions, &c, findArch(nativeName(goarch)).bigEndian)
	return retName(ret)
}

func TestNoProfileIsNoFilter(t *testing.T) {
	for _, s := range []*specs.LinuxSeccomp{nil, {}, {Architectures: []specs.Arch{specs.ArchX86}}} {
		if f, err := Compile(s, "amd64"); f != nil || err != nil {
			t.Errorf("%v: %v, %v", s, f, err)
		}
	}
}

func TestEveryActionReturnsItsValue(t *testing.T) {
	for _, tt := range []struct {
		action specs.LinuxSeccompAction
		errno  *uint
		want   string
	}{
		{specs.ActAllow, nil, "ALLOW"},
		{specs.ActErrno, nil, "ERRNO(1)"},
		{specs.ActErrno, errnoRet(38), "ERRNO(38)"},
		{specs.ActErrno, errnoRet(0), "ERRNO"},
		{specs.ActTrace, nil, "TRACE(1)"},
		{specs.ActTrace, errnoRet(7), "TRACE(7)"},
		{specs.ActTrace, errnoRet(65535), "TRACE(65535)"},
		{specs.ActErrno, errnoRet(4094), "ERRNO(4094)"},
		{specs.ActKill, nil, "KILL_THREAD"},
		{specs.ActKillThread, errnoRet(7), "KILL_THREAD"},
		{specs.ActKillProcess, nil, "KILL_PROCESS"},
		{specs.ActTrap, errnoRet(7), "TRAP"},
		{specs.ActLog, nil, "LOG"},
		{specs.ActNotify, nil, "NOTIFY"},
	} {
		s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: errnoRet(99), Syscalls: []specs.LinuxSyscall{{Names: []string{"getpid"}, Action: tt.action, ErrnoRet: tt.errno}}}
		if got := verdictOf(t, s, "amd64", call{nr: 39, audit: auditX8664}); got != tt.want {
			t.Errorf("%s as a rule: %s, want %s", tt.action, got, tt.want)
		}
		if tt.action == specs.ActNotify {
			continue
		}
		s = &specs.LinuxSeccomp{DefaultAction: tt.action, DefaultErrnoRet: tt.errno}
		if got := verdictOf(t, s, "amd64", call{nr: 39, audit: auditX8664}); got != tt.want {
			t.Errorf("%s as default: %s, want %s", tt.action, got, tt.want)
		}
	}
}

func TestCallsNewerThanTheProfileGetENOSYS(t *testing.T) {
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX32},
		Syscalls: []specs.LinuxSyscall{rules(specs.ActAllow, "getpid", "openat2")}}
	for _, tt := range []struct {
		name, want string
		nr         uint32
	}{
		{"named", "ALLOW", 437},
		{"not named, older than the newest named", "KILL_PROCESS", 436},
		{"newer", "ENOSYS", 438},
		{"newer on x32", "ENOSYS", x32Bit + 438},
		{"named on x32", "ALLOW", x32Bit + 437},
		{"no call at all", "ENOSYS", 1 << 31},
	} {
		if got := verdictOf(t, s, "amd64", call{nr: tt.nr, audit: auditX8664}); got != strings.ReplaceAll(tt.want, "ENOSYS", "ERRNO(38)") {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	for _, lenient := range []specs.LinuxSeccompAction{specs.ActAllow, specs.ActLog, specs.ActTrace} {
		s := &specs.LinuxSeccomp{DefaultAction: lenient, Syscalls: []specs.LinuxSyscall{rules(specs.ActErrno, "getpid")}}
		if got := verdictOf(t, s, "amd64", call{nr: 999, audit: auditX8664}); strings.HasPrefix(got, "ERRNO") {
			t.Errorf("default %s: a new call gets %s", lenient, got)
		}
	}
	if got := verdictOf(t, onlyGetpid(), "mips64le", call{nr: 5999, audit: findArch(specs.ArchMIPSEL64).audit}); got != "ERRNO(89)" {
		t.Errorf("ENOSYS on MIPS: %s", got)
	}
}

func onlyGetpid() *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{rules(specs.ActAllow, "getpid")}}
}

func TestCallsOfOtherArchitecturesKill(t *testing.T) {
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	for _, c := range []call{{nr: 1, audit: findArch(specs.ArchX86).audit}, {nr: 1, audit: 0x1234}, {nr: x32Bit + 1, audit: auditX8664}} {
		if got := verdictOf(t, s, "amd64", c); got != "KILL_THREAD" {
			t.Errorf("arch %#x, call %#x: %s", c.audit, c.nr, got)
		}
	}
}

func TestARuleWithoutArgsBeatsThoseWithWhateverTheirOrder(t *testing.T) {
	with := specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{{Index: 1, Value: 7, Op: specs.OpEqualTo}}}
	for _, list := range [][]specs.LinuxSyscall{{with, rules(specs.ActAllow, "ioctl")}, {rules(specs.ActAllow, "ioctl"), with}} {
		s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: list}
		if got := verdictOf(t, s, "amd64", call{nr: 16, audit: auditX8664, args: [6]uint64{0, 7}}); got != "ALLOW" {
			t.Error(got)
		}
	}
}

func TestUnknownNamesAreSkipped(t *testing.T) {
	if got := verdictOf(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{rules(specs.ActAllow, "no_such_call", "getpid", "zzz", "0")}}, "amd64", call{nr: 39, audit: auditX8664}); got != "ALLOW" {
		t.Error(got)
	}
}

func TestFlagsAreThoseOfRunc(t *testing.T) {
	notify := rules(specs.ActNotify, "mknod")
	for _, tt := range []struct {
		name  string
		flags []specs.LinuxSeccompFlag
		rules []specs.LinuxSyscall
		want  uint32
	}{
		{"no list", nil, nil, 4},
		{"an empty list", []specs.LinuxSeccompFlag{}, nil, 0},
		{"TSYNC is not passed on", []specs.LinuxSeccompFlag{ociFlagTsync}, nil, 0},
		{"LOG and SPEC_ALLOW", []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow}, nil, 6},
		{"a rule with NOTIFY", []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}, []specs.LinuxSyscall{notify}, 0x28},
		{"a rule with NOTIFY for a name that is not known", []specs.LinuxSeccompFlag{}, []specs.LinuxSyscall{rules(specs.ActNotify, "no_such_call")}, 8},
	} {
		f, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: tt.flags, Syscalls: tt.rules}, "amd64")
		if err != nil {
			t.Fatal(err)
		}
		if f.Flags != tt.want || f.Notify != (tt.want&flagNewListener != 0) {
			t.Errorf("%s: %#x, %v", tt.name, f.Flags, f.Notify)
		}
	}
}

func TestErrorsNameTheField(t *testing.T) {
	arg := func(a specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: specs.OpEqualTo}, a}}
	}
	with := func(list ...specs.LinuxSyscall) specs.LinuxSeccomp {
		return specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: list}
	}
	equal := func(action specs.LinuxSeccompAction, values ...uint64) specs.LinuxSyscall {
		b := specs.LinuxSyscall{Names: []string{"ioctl"}, Action: action}
		for i, v := range values {
			b.Args = append(b.Args, specs.LinuxSeccompArg{Index: uint(i), Value: v, Op: specs.OpEqualTo})
		}
		return b
	}
	many := specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow}
	for v := range uint64(5000) {
		many.Args = append(many.Args, specs.LinuxSeccompArg{Value: v << 32, Op: specs.OpNotEqual})
	}
	for want, s := range map[string]specs.LinuxSeccomp{
		`linux.seccomp.defaultAction: unknown action "SCMP_ACT_FOO"`:                             {DefaultAction: "SCMP_ACT_FOO"},
		`linux.seccomp.defaultAction: unknown action ""`:                                         {Syscalls: []specs.LinuxSyscall{rules(specs.ActAllow, "read")}},
		`linux.seccomp.defaultAction: SCMP_ACT_NOTIFY can't be`:                                  {DefaultAction: specs.ActNotify},
		`linux.seccomp.defaultErrnoRet: 70000 does not fit`:                                      {DefaultAction: specs.ActErrno, DefaultErrnoRet: errnoRet(70000)},
		`linux.seccomp.architectures[1]: unknown architecture "SCMP_ARCH_VAX"`:                   {DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86, "SCMP_ARCH_VAX"}},
		`linux.seccomp.architectures[0]: SCMP_ARCH_S390X has another byte order`:                 {DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchS390X}},
		`linux.seccomp.flags[1]: unknown flag "X"`:                                               {DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, "X"}},
		`linux.seccomp.flags[0]: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs`:                   {DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}},
		`linux.seccomp.syscalls[1].action: unknown action "A"`:                                   with(rules(specs.ActAllow, "read"), rules("A", "read")),
		`linux.seccomp.syscalls[0].errnoRet: 4095 is not an errno`:                               with(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: errnoRet(4095)}),
		`linux.seccomp.defaultErrnoRet: 65535 is not an errno`:                                   {DefaultAction: specs.ActErrno, DefaultErrnoRet: errnoRet(65535)},
		`linux.seccomp.syscalls[0].errnoRet: 65536 does not fit`:                                 with(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActTrace, ErrnoRet: errnoRet(65536)}),
		`linux.seccomp.syscalls[0].names[1]: empty`:                                              with(rules(specs.ActAllow, "read", "")),
		`linux.seccomp.syscalls[0].names[1]: SCMP_ACT_NOTIFY can't be used for write`:            with(rules(specs.ActNotify, "read", "write")),
		`linux.seccomp.syscalls[0].args[1].op: unknown operator "SCMP_CMP_FOO"`:                  with(arg(specs.LinuxSeccompArg{Index: 1, Op: "SCMP_CMP_FOO"})),
		`linux.seccomp.syscalls[0].args[1].index: 6, but`:                                        with(arg(specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo})),
		`linux.seccomp.syscalls[1]: contradicts syscalls[0]: on SCMP_ARCH_X86_64`:                with(equal(specs.ActAllow, 1), equal(specs.ActLog, 1)),
		`linux.seccomp.syscalls[2]: contradicts syscalls[0]: on SCMP_ARCH_X86_64`:                with(equal(specs.ActAllow, 1, 2), rules(specs.ActAllow, "read"), equal(specs.ActLog, 1)),
		`linux.seccomp: the profile needs more than the 4096 instructions that the kernel accep`: with(many),
	} {
		if f, err := Compile(&s, "amd64"); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("want %s..., have %v, %v", want, f, err)
		}
	}
	if _, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, "wasm"); err == nil || !strings.Contains(err.Error(), "wasm") {
		t.Error(err)
	}
}

// Jumps that are too far for eight bits go by stepping stones.
func TestAProgramAlmostAsLongAsTheKernelAcceptsIsRight(t *testing.T) {
	b := specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActLog}
	for v := range uint64(990) {
		b.Args = append(b.Args, specs.LinuxSeccompArg{Index: 1, Value: v << 32, Op: specs.OpEqualTo})
	}
	s := containerdProfile(t)
	s.Architectures, s.Syscalls[0].Names = nil, s.Syscalls[0].Names[1:]
	for i, n := range s.Syscalls[0].Names {
		if n == "read" {
			s.Syscalls[0].Names[i] = "getpid"
		}
	}
	s.Syscalls = append(s.Syscalls, b)
	f, err := Compile(s, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(f.Instructions))
	for v := range uint64(1000) {
		want := "LOG"
		if v >= 990 {
			want = "ERRNO(1)"
		}
		ret, _ := run(f.Instructions, &call{audit: auditX8664, args: [6]uint64{0, v << 32}}, false)
		if retName(ret) != want {
			t.Fatalf("%d: %s", v, retName(ret))
		}
	}
	if ret, _ := run(f.Instructions, &call{nr: 39, audit: auditX8664}, false); ret != retAllow {
		t.Error(retName(ret))
	}
}

// holds is what a comparison means.
func holds(a specs.LinuxSeccompArg, args [maxArgs]uint64) bool {
	v := args[a.Index]
	switch a.Op {
	case specs.OpEqualTo:
		return v == a.Value
	case specs.OpNotEqual:
		return v != a.Value
	case specs.OpLessThan:
		return v < a.Value
	case specs.OpLessEqual:
		return v <= a.Value
	case specs.OpGreaterThan:
		return v > a.Value
	case specs.OpGreaterEqual:
		return v >= a.Value
	}
	return v&a.Value == a.ValueTwo&a.Value
}

// This covers the combinations that libseccomp can't be asked about.
func TestRulesOfOneCallAreORedAndTheirConditionsANDed(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 3))
		s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		for range 1 + r.IntN(5) {
			b := rules(specs.ActAllow, "ioctl")
			for range 1 + r.IntN(3) {
				a := randomArg(r)
				a.Index %= 3
				b.Args = append(b.Args, a)
			}
			s.Syscalls = append(s.Syscalls, b)
		}
		goarch := pick(r, []string{"amd64", "s390x"})
		f, err := Compile(s, goarch)
		if err != nil {
			t.Fatal(err)
		}
		native := findArch(nativeName(goarch))
		i, _ := lookup("ioctl")
		for _, args := range argumentsToTry(r, s, 300) {
			want := false
			for _, b := range s.Syscalls {
				seen, separate := [maxArgs]bool{}, false
				all, any := true, false
				for _, a := range b.Args {
					separate = separate || seen[a.Index]
					seen[a.Index] = true
					h := holds(a, args)
					all, any = all && h, any || h
				}
				want = want || all || separate && any
			}
			ret, _ := run(f.Instructions, &call{nr: native.abi.number(i), audit: native.audit, args: args}, native.bigEndian)
			if (ret == retAllow) != want {
				t.Fatalf("seed %d on %s: %#x: %s\n%v\n%s", seed, goarch, args, retName(ret), s.Syscalls, listing(f.Instructions))
			}
		}
	}
}
