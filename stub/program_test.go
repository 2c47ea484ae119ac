package stub

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
)

const noexecVariable = "RSYS_TEST_NOEXEC"

// vm.memfd_noexec is a PID namespace's.
func TestWhereMemfdsCanNotBeExecuted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a PID namespace")
	}
	if _, err := os.Stat("/proc/sys/vm/memfd_noexec"); err != nil {
		t.Skip("needs Linux 6.3")
	}
	dir, tmp := t.TempDir(), t.TempDir()
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestInNoexecNamespace$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), noexecVariable+"=1", "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: TestInNoexecNamespace") {
		t.Fatal(err)
	}
	for _, d := range []string{dir, tmp} {
		if left, err := os.ReadDir(d); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v %v", d, left, err)
		}
	}
}

func TestInNoexecNamespace(t *testing.T) {
	if os.Getenv(noexecVariable) == "" {
		t.Skip("run by TestWhereMemfdsCanNotBeExecuted")
	}
	if err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		os.WriteFile("/proc/sys/vm/memfd_noexec", []byte("2"), 0),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := sealedMemfd(); !errors.Is(err, unix.EACCES) {
		t.Fatalf("an executable memfd: %v", err)
	}
	tmp := os.TempDir()
	expectIn := func(t *testing.T, s *Stub, dir string) {
		t.Helper()
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.Task.Pid()))
		if err != nil || filepath.Dir(exe) != dir || !strings.HasSuffix(exe, " (deleted)") {
			t.Errorf("it runs %s, %v; want a deleted file in %s", exe, err, dir)
		}
		if fi, err := os.Stat(fmt.Sprintf("/proc/%d/exe", s.Task.Pid())); err != nil || fi.Mode() != 0o500 {
			t.Errorf("%v %v", fi.Mode(), err)
		}
	}
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("in the working directory", func(t *testing.T) { expectIn(t, testStub(t), cwd) })
	t.Run("in a directory by name", func(t *testing.T) {
		s, err := Config{Dir: tmp}.Start(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		expectIn(t, s, tmp)
	})
	t.Run("not where it is noexec", func(t *testing.T) {
		// A working directory below /run, as a shim's, on a host that mounts /run noexec.
		if err := unix.Mount("tmpfs", cwd, "tmpfs", unix.MS_NOEXEC, ""); err != nil {
			t.Fatal(err)
		}
		defer os.Chdir(cwd)
		defer unix.Unmount(cwd, unix.MNT_DETACH)
		if err := os.Chdir(cwd); err != nil {
			t.Fatal(err)
		}
		expectIn(t, testStub(t), tmp)
	})
	t.Run("all else is as ever", func(t *testing.T) {
		TestStubDescribesItselfAndServes(t)
		TestCloneExec(t)
	})
	t.Run("many at once", func(t *testing.T) {
		// No fork may hold the file open for writing: ETXTBSY.
		for range 8 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for range 10 {
					s := testStub(t)
					if _, err := s.Task.Call(context.Background(), call.Getpid()); err != nil {
						t.Fatal(err)
					}
					if err := exec.Command("/bin/true").Run(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	})
}

func TestWriteProgramWritesNoFileTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stub")
	if err := WriteProgram(path); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o755 || fi.Size() != int64(len(image())) {
		t.Errorf("%v %v", fi, err)
	}
	if err := WriteProgram(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("again: %v", err)
	}
	// With nobody to talk to it ends, and not as if it had done something.
	if err := exec.Command(path).Run(); err == nil || err.(*exec.ExitError).ExitCode() != 125 {
		t.Errorf("on its own: %v", err)
	}
}
