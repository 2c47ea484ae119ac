package container

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
)

// forbidden is the variable by which the test's second process knows that it is that.
const forbidden = "RSYS_TEST_NO_PIDFD_GETFD"

// forbidGetfd has the kernel refuse pidfd_getfd to this process, as kernel.yama.ptrace_scope=3 does, which can't be taken back.
func forbidGetfd(t *testing.T) {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_PIDFD_GETFD},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		t.Fatal("seccomp: ", errno)
	}
}

func TestATerminalNeedsNoPtrace(t *testing.T) {
	if os.Getenv(forbidden) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), forbidden+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) && !strings.Contains(string(out), "--- SKIP") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	forbidGetfd(t)
	ctx := context.Background()
	r, dir := testRuntime(t), bundle(t)
	spec := defaultSpec(t, "sh", "-c", "echo a terminal: $(test -t 0 && echo yes); sleep 100")
	spec.Process.Terminal = true
	c, err := r.Create(ctx, Config{ID: "x", Bundle: dir, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Init.child.Fetch(0); !errors.Is(err, unix.EPERM) {
		t.Fatalf("pidfd_getfd is not forbidden: %v", err)
	}
	// What can't be sent is an error, and the task serves on.
	var failed *rsys.StepError
	if _, err := c.Init.run.task.Fetch(ctx, 999); !errors.As(err, &failed) || failed.Errno != unix.EBADF {
		t.Errorf("the descriptor 999: %v", err)
	}
	if err := c.Init.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c.Init.Terminal()).ReadString('\n'); line != "a terminal: yes\r\n" {
		t.Errorf("the init wrote %q, %v", line, err)
	}
	execSpec := *spec.Process
	execSpec.Args = []string{"sh", "-c", "test -t 1 && echo one too"}
	p, err := c.Exec(ctx, &execSpec, Stdio{})
	if err == nil {
		err = p.Start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(p.Terminal()).ReadString('\n'); line != "one too\r\n" {
		t.Errorf("the exec wrote %q, %v", line, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Delete(ctx); err != nil {
		t.Error(err)
	}
}
