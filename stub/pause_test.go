package stub

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// state is the third field of /proc/PID/stat.
func state(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "gone"
	}
	return strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))[0]
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5 seconds: %s", what)
		}
	}
}

func TestPauseSleepsReapsAndIsKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(path, Pause(), 0o755); err != nil {
		t.Fatal(err)
	}
	// The shell leaves it a child.
	cmd := exec.Command("/bin/sh", "-c", "sleep 0.2 & exec "+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	comm := func() string {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return strings.TrimSpace(string(data))
	}
	children := func() string {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		return strings.TrimSpace(string(data))
	}
	eventually(t, "the program runs and sleeps", func() bool { return comm() == "pause" && state(pid) == "S" })
	if children() == "" {
		t.Fatal("the shell's sleep is not there: nothing is tested")
	}
	eventually(t, "its child is reaped", func() bool { return children() == "" })
	if s := state(pid); s != "S" {
		t.Errorf("state %s after its child's end", s)
	}
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT} {
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it sleeps after a stop", func() bool { return state(pid) == "S" })
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != unix.SIGKILL {
		t.Errorf("it ended with %v", err)
	}
}

func TestPauseIsSmall(t *testing.T) {
	n := len(Pause())
	if n > 512 {
		t.Errorf("%d bytes", n)
	}
	t.Logf("%d bytes", n)
}
