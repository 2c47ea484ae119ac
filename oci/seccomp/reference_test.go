package seccomp

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/bits"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// reference is libseccomp, as the C program in testdata/reference.c offers it.
type reference struct {
	t   testing.TB
	in  io.Writer
	out *bufio.Scanner
}

func startReference(t testing.TB) *reference {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("libseccomp is a library for Linux")
	}
	bin := filepath.Join(t.TempDir(), "reference")
	cc := exec.Command("cc", "-O1", "-o", bin, "testdata/reference.c", "-lseccomp")
	if out, err := cc.CombinedOutput(); err != nil {
		t.Skipf("no libseccomp to compare with (Debian: apt-get install gcc libseccomp-dev): %v\n%s", err, out)
	}
	cmd := exec.Command(bin)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// On some rules that contradict each other libseccomp 2.5.4 never comes back; there are none here.
	watch := time.AfterFunc(5*time.Minute, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		watch.Stop()
		in.Close()
		cmd.Wait()
	})
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<22)
	return &reference{t: t, in: in, out: s}
}

func (r *reference) tell(format string, args ...any) {
	if _, err := fmt.Fprintf(r.in, format+"\n", args...); err != nil {
		r.t.Fatalf("libseccomp: %v", err)
	}
}

func (r *reference) ask(format string, args ...any) string {
	r.tell(format, args...)
	if !r.out.Scan() {
		r.t.Fatalf("libseccomp: no answer to %s", fmt.Sprintf(format, args...))
	}
	a := r.out.Text()
	if strings.HasPrefix(a, "failed") {
		r.t.Fatalf("libseccomp: %s for %s", a, fmt.Sprintf(format, args...))
	}
	return a
}

// scmpNames are libseccomp's names of architectures; its 2.5 does not have loong64.
var scmpNames = map[specs.Arch]string{specs.ArchX86_64: "x86_64", specs.ArchX86: "x86", specs.ArchX32: "x32", specs.ArchAARCH64: "aarch64",
	specs.ArchARM: "arm", specs.ArchRISCV64: "riscv64", specs.ArchPPC64LE: "ppc64le", specs.ArchPPC64: "ppc64", specs.ArchPPC: "ppc",
	specs.ArchS390X: "s390x", specs.ArchS390: "s390", specs.ArchMIPS: "mips", specs.ArchMIPSEL: "mipsel", specs.ArchMIPS64: "mips64",
	specs.ArchMIPSEL64: "mipsel64", specs.ArchMIPS64N32: "mips64n32", specs.ArchMIPSEL64N32: "mipsel64n32"}

// number resolves a name as libseccomp does for a caller: a call that has a multiplexer has no number there.
func (r *reference) number(arch specs.Arch, name string) (nr uint32, ok, known bool) {
	a := r.ask("resolve %s %s", scmpNames[arch], name)
	if n, isNumber := strings.CutPrefix(a, "number "); isNumber {
		i, err := strconv.Atoi(n)
		if err != nil {
			r.t.Fatal(err)
		}
		return uint32(i), true, true
	}
	return 0, false, a == "none"
}

var scmpOps = map[specs.LinuxSeccompOperator]int{specs.OpNotEqual: 1, specs.OpLessThan: 2, specs.OpLessEqual: 3, specs.OpEqualTo: 4,
	specs.OpGreaterEqual: 5, specs.OpGreaterThan: 6, specs.OpMaskedEqual: 7}

// compile gives libseccomp a profile as runc would, and returns its program, and how many rules it refused.
func (r *reference) compile(s *specs.LinuxSeccomp, goarch string) (prog []Instruction, refused int) {
	action := func(a specs.LinuxSeccompAction, e *uint) uint32 {
		ret, err := returnValue(a, e)
		if err != nil {
			r.t.Fatal(err.what)
		}
		return ret
	}
	def := action(s.DefaultAction, s.DefaultErrnoRet)
	r.tell("profile %x %s", def, scmpNames[nativeName(goarch)])
	for _, a := range s.Architectures {
		r.tell("arch %s", scmpNames[a])
	}
	calls := 0
	for _, b := range s.Syscalls {
		calls += len(b.Names)
	}
	if calls > 32 {
		r.tell("optimize")
	}
	for _, b := range s.Syscalls {
		act := action(b.Action, b.ErrnoRet)
		if act == def {
			continue
		}
		var args []string
		seen, separate := map[uint]bool{}, false
		for _, a := range b.Args {
			args = append(args, fmt.Sprintf(" %d %d %x %x", a.Index, scmpOps[a.Op], a.Value, a.ValueTwo))
			separate = separate || seen[a.Index]
			seen[a.Index] = true
		}
		for _, n := range b.Names {
			rules := []string{fmt.Sprintf("%d%s", len(args), strings.Join(args, ""))}
			if separate {
				rules = nil
				for _, a := range args {
					rules = append(rules, "1"+a)
				}
			}
			for _, rule := range rules {
				if strings.HasPrefix(r.ask("rule %x %s %s", act, n, rule), "refused") {
					refused++
				}
			}
		}
	}
	raw, err := hex.DecodeString(strings.TrimPrefix(r.ask("end"), "program "))
	if err != nil {
		r.t.Fatal(err)
	}
	var order binary.ByteOrder = binary.LittleEndian
	if findArch(nativeName(goarch)).bigEndian {
		order = binary.BigEndian
	}
	for ; len(raw) >= 8; raw = raw[8:] {
		prog = append(prog, Instruction{order.Uint16(raw), raw[2], raw[3], order.Uint32(raw[4:])})
	}
	if order == binary.BigEndian {
		swapBack(prog, s, def)
	}
	return prog, refused
}

// swapBack undoes what libseccomp does on a machine of the other byte order to the returns that it repeats for the sake
// of short jumps: it swaps their value twice.
func swapBack(prog []Instruction, s *specs.LinuxSeccomp, def uint32) {
	rets := []uint32{def, retKillThread}
	for _, b := range s.Syscalls {
		ret, _ := returnValue(b.Action, b.ErrnoRet)
		rets = append(rets, ret)
	}
	for i := range prog {
		if k := prog[i].K; prog[i].Code == opRet && !slices.Contains(rets, k) {
			prog[i].K = bits.ReverseBytes32(k)
		}
	}
}

// confused says that libseccomp's program compares the architecture as if it were the call's number: 2.5.4 leaves out the
// load where the profile names calls that the architecture does not have.
func confused(prog []Instruction) bool {
	for pc, i := range prog {
		if i.Code == opJeq && findAudit(i.K) {
			if next := prog[pc+1+int(i.Jt)]; next.Code != opLoad && next.Code != opRet && next.Code != opJump {
				return true
			}
		}
	}
	return false
}

func findAudit(audit uint32) bool {
	return slices.ContainsFunc(arches[:], func(a arch) bool { return a.audit == audit })
}

// justified are the entries where the kernel's headers say otherwise than libseccomp: memfd_secret is for 64 bits.
var justified = map[string]specs.Arch{"memfd_secret": specs.ArchS390}

// The tables agree with libseccomp's, which is made from other sources, where both know a name.
func TestNumbersAreTheSameAsInLibseccomp(t *testing.T) {
	r := startReference(t)
	differ, newer := 0, 0
	for i := range nameCount {
		name := nameText[nameStart[i]:nameStart[i+1]]
		for _, a := range arches {
			if scmpNames[a.name] == "" {
				continue
			}
			want, ok, known := r.number(a.name, name)
			if !known {
				newer++
				break
			}
			if a.mux && muxCall[i] != 0 || justified[name] == a.name {
				continue
			}
			if got := a.abi.number(i); !ok && got != noNumber || ok && got != want {
				t.Errorf("%s on %s: %d (%v), libseccomp %d (%v)", name, a.name, int32(got), got != noNumber, want, ok)
				differ++
			}
		}
	}
	t.Logf("%d names, %d of them unknown to this libseccomp", nameCount, newer)
}
