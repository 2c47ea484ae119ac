package stub

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

func testStub(t testing.TB) *Stub {
	t.Helper()
	s, err := Start(context.Background(), 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if used := s.InUse(); used != 0 {
			t.Errorf("%d bytes of the arena are still allocated", used)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStubDescribesItselfAndServes(t *testing.T) {
	s := testStub(t)
	if s.Description.Pid != s.Task.Pid() {
		t.Errorf("described pid %d, has %d", s.Description.Pid, s.Task.Pid())
	}
	if a := s.Description.Args; len(a) != 1 || a[0] != "rsys-stub" || len(s.Description.Env) != 0 {
		t.Errorf("argv %q, env %q", a, s.Description.Env)
	}
	pid, err := s.Task.Call(context.Background(), call.Getpid())
	if err != nil || int(pid) != s.Task.Pid() {
		t.Fatalf("getpid: %d, %v", pid, err)
	}
}

func TestCloneExec(t *testing.T) {
	s := testStub(t)
	ctx := context.Background()
	for name, flags := range map[string]uint64{"copied": 0, "shared": unix.CLONE_VM, "new namespaces": unix.CLONE_NEWPID | unix.CLONE_NEWNS} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			child, err := s.Task.Clone(ctx, rsys.CloneConfig{Flags: flags})
			if err != nil {
				t.Fatal(err)
			}
			t.Log("clone", time.Since(start))
			start = time.Now()
			run := child.NewRun()
			defer run.Close()
			err = run.Exec(ctx, call.Step{Call: call.Execve("/bin/nosuch", []string{"x"}, nil)})
			var se *rsys.StepError
			if !errors.As(err, &se) || se.Errno != unix.ENOENT {
				t.Fatalf("exec of nothing: %v", err)
			}
			t.Log("failed exec", time.Since(start))
			start = time.Now()
			err = run.Exec(ctx, call.Step{Call: call.Execve("/bin/sh", []string{"sh", "-c", "exit 7"}, nil)})
			if err != nil {
				t.Fatal(err)
			}
			t.Log("exec", time.Since(start))
			child.Forget()
			st, err := child.Child.Wait(ctx)
			if code, ok := st.Exited(); err != nil || !ok || code != 7 {
				t.Fatalf("%v %v", st, err)
			}
		})
	}
}
