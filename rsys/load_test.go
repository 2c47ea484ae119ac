package rsys_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
	"github.com/rsys-io/rsys/stub"
)

func testStub(t testing.TB) *stub.Stub {
	t.Helper()
	return startStub(t, stub.Config{ArenaSize: 4 << 20})
}

func startStub(t testing.TB, cfg stub.Config) *stub.Stub {
	t.Helper()
	s, err := cfg.Start(context.Background())
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

func step(c call.Call) call.Step { return call.Step{Call: c} }

// openFDs is the number of this process's descriptors.
func openFDs(t testing.TB) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// fate is one thing that can become of a clone; it returns an error if it is taken for another.
type fate struct {
	name string
	meet func(ctx context.Context, task *rsys.Task) error
}

func expectExit(ctx context.Context, c *rsys.Child, want rsys.ExitStatus) error {
	got, err := c.Wait(ctx)
	if err != nil || got != want {
		return fmt.Errorf("ended %v, %v; want %v", got, err, want)
	}
	return nil
}

var (
	exited = func(n int32) rsys.ExitStatus { return rsys.ExitStatus{Code: 1, Status: n} }
	killed = rsys.ExitStatus{Code: 2, Status: int32(unix.SIGKILL)}
)

func execSteps(path string) []call.Step {
	return []call.Step{step(call.Getpid()), step(call.Execve(path, []string{"sh", "-c", "exit 7"}, nil))}
}

var fates = []fate{
	{"execs", func(ctx context.Context, task *rsys.Task) error {
		run := task.NewRun()
		defer run.Close()
		if err := run.Exec(ctx, execSteps("/bin/sh")...); err != nil {
			return err
		}
		if !task.Child.Execed() {
			return errors.New("not execed")
		}
		task.Forget()
		return expectExit(ctx, task.Child, exited(7))
	}},
	{"fails to exec", func(ctx context.Context, task *rsys.Task) error {
		run := task.NewRun()
		defer run.Close()
		var se *rsys.StepError
		if err := run.Exec(ctx, execSteps("/nosuch")...); !errors.As(err, &se) || se.Errno != unix.ENOENT || se.Index != 1 {
			return fmt.Errorf("got %v", err)
		}
		if task.Child.Execed() {
			return errors.New("execed")
		}
		task.Kill()
		return expectExit(ctx, task.Child, killed)
	}},
	{"exits before exec", func(ctx context.Context, task *rsys.Task) error {
		run := task.NewRun()
		defer run.Close()
		err := run.Exec(ctx, append([]call.Step{step(call.ExitGroup(9))}, execSteps("/bin/sh")...)...)
		var de *rsys.DiedError
		if !errors.As(err, &de) || de.Exit != exited(9) || de.Index != 0 || de.Call.Name != "exit_group" {
			return fmt.Errorf("got %v", err)
		}
		task.Forget()
		return expectExit(ctx, task.Child, exited(9))
	}},
	{"is killed while it waits", func(ctx context.Context, task *rsys.Task) error {
		if err := task.Child.Signal(unix.SIGKILL); err != nil {
			return err
		}
		_, err := task.Call(ctx, call.Call{Name: "pause", Nr: unix.SYS_PPOLL})
		var de *rsys.DiedError
		if !errors.As(err, &de) || de.Exit != killed {
			return fmt.Errorf("got %v", err)
		}
		task.Forget()
		return expectExit(ctx, task.Child, killed)
	}},
	{"is killed at any moment of an exec", func(ctx context.Context, task *rsys.Task) error {
		run := task.NewRun()
		defer run.Close()
		delay := time.Duration(rand.IntN(600)) * time.Microsecond
		time.AfterFunc(delay, func() { task.Child.Signal(unix.SIGKILL) })
		err := run.Exec(ctx, step(call.Execve("/bin/sleep", []string{"sleep", "100"}, nil)))
		var de *rsys.DiedError
		switch {
		case err == nil && task.Child.Execed():
		case errors.As(err, &de) && de.Exit == killed && !task.Child.Execed():
		default:
			return fmt.Errorf("got %v, execed %v", err, task.Child.Execed())
		}
		task.Forget()
		return expectExit(ctx, task.Child, killed)
	}},
}

func TestEveryCloneIsClassifiedRight(t *testing.T) {
	total := 10000
	if testing.Short() {
		total = 1000
	}
	s := testStub(t)
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 7))
			for i := 0; i < total/16 && !t.Failed(); i++ {
				f := fates[rnd.IntN(len(fates))]
				flags := uint64(rnd.IntN(2) * unix.CLONE_VM)
				child, err := s.Task.Clone(ctx, rsys.CloneConfig{Flags: flags})
				if err != nil {
					t.Errorf("clone: %v", err)
					return
				}
				if err := f.meet(ctx, child); err != nil {
					t.Errorf("one that %s (flags %#x): %v", f.name, flags, err)
				}
			}
		})
	}
	wg.Wait()
	if n := rsys.Children(); n != 1 {
		t.Errorf("%d children are left, want the stub", n)
	}
	deadline := time.Now().Add(5 * time.Second)
	for openFDs(t) > fds || runtime.NumGoroutine() > goroutines+1 {
		if time.Now().After(deadline) {
			t.Errorf("%d descriptors, were %d; %d goroutines, were %d", openFDs(t), fds, runtime.NumGoroutine(), goroutines)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	remote, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.Task.Pid()))
	if err != nil || len(remote) != 6 { // 0, 1, 2, syscall, data, connection
		t.Errorf("the stub has %d descriptors, %v", len(remote), err)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
