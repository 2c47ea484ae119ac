package seccomp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const childVariable = "RSYS_TEST_SECCOMP_CHILD"

// From linux/prctl.h and linux/seccomp.h.
const (
	prSetNoNewPrivs  = 38
	setModeFilter    = 1
	filterFlagTsync  = 1
	callThatIsNone   = 0x3fff // newer than any
	someErrno        = 77
	nrSeccompX8664   = 317
	nrSeccompGeneric = 277
)

// childProfile allows all that a Go program does. It does not name what the test looks at.
func childProfile() *specs.LinuxSeccomp {
	allow := specs.LinuxSyscall{Action: specs.ActAllow}
	for i := range nameCount {
		switch n := nameText[nameStart[i]:nameStart[i+1]]; n {
		case "sethostname", "socket", "mseal", "personality":
		default:
			allow.Names = append(allow.Names, n)
		}
	}
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{allow,
		{Names: []string{"socket"}, Action: specs.ActErrno, ErrnoRet: errnoRet(someErrno), Args: []specs.LinuxSeccompArg{{Index: 0, Value: syscall.AF_INET, Op: specs.OpEqualTo}}},
		{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: syscall.AF_UNIX, Op: specs.OpEqualTo}}},
	}}
}

// The kernel takes a program and does what it says. The child is this test's own binary.
func TestTheKernelObeysTheFilter(t *testing.T) {
	if os.Getenv(childVariable) != "" {
		inChild()
		os.Exit(0)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestTheKernelObeysTheFilter$")
	cmd.Env = append(os.Environ(), childVariable+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if s := string(out); strings.HasPrefix(s, "skip: ") {
		t.Skip(s)
	} else if s != "obeyed\n" {
		t.Error(s)
	}
}

func inChild() {
	nr := uintptr(nrSeccompGeneric)
	switch runtime.GOARCH {
	case "amd64":
		nr = nrSeccompX8664
	case "arm64", "riscv64", "loong64":
	default:
		fmt.Println("skip: the test does not know seccomp's number here")
		return
	}
	f, err := Compile(childProfile(), runtime.GOARCH)
	if err != nil {
		fmt.Println(err)
		return
	}
	fprog := struct {
		n uint16
		p *Instruction
	}{uint16(len(f.Instructions)), &f.Instructions[0]}
	if _, _, e := syscall.RawSyscall(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0); e != 0 {
		fmt.Println("no_new_privs:", e)
		return
	}
	// The filter has to be on all threads of the Go runtime.
	if _, _, e := syscall.Syscall(nr, setModeFilter, uintptr(f.Flags|filterFlagTsync), uintptr(unsafe.Pointer(&fprog))); e != 0 {
		if e == syscall.ENOSYS || e == syscall.EPERM || e == syscall.EACCES {
			fmt.Println("skip: no filter can be loaded here:", e)
			return
		}
		fmt.Println("seccomp:", e)
		return
	}
	runtime.KeepAlive(f)

	ok := true
	expect := func(what string, got error, want error) {
		if !errors.Is(got, want) {
			ok = false
			fmt.Printf("%s: %v, want %v\n", what, got, want)
		}
	}
	expect("sethostname", syscall.Sethostname([]byte("x")), syscall.EPERM)
	_, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	expect("an inet socket", err, syscall.Errno(someErrno))
	_, err = syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW, 0)
	expect("a netlink socket", err, syscall.EPERM)
	_, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	expect("a unix socket", err, nil)
	_, _, e := syscall.Syscall(callThatIsNone, 0, 0, 0)
	expect("a call that is too new", e, syscall.ENOSYS)
	if ok {
		fmt.Println("obeyed")
	}
}
