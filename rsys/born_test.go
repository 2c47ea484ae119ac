package rsys_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

var leaving = []call.Step{
	step(call.Setresuid(1000, 1000, 1000)),
	step(call.CloseRange(3, ^uint32(0), 0)),
}

var gate = call.Step{Call: call.FutexWait(), OnError: call.Tolerate(unix.EAGAIN)}

func bear(t *testing.T, task *rsys.Task, before, after []call.Step) (*rsys.Born, error) {
	t.Helper()
	run := task.NewRun()
	t.Cleanup(run.Close)
	if err := run.Do(context.Background(), step(call.Getpid())); err != nil {
		t.Fatal(err)
	}
	return run.Bear(context.Background(), rsys.Birth{Before: before, After: after})
}

func TestABornProcessExecs(t *testing.T) {
	s := testStub(t)
	born, err := bear(t, clone(t, s.Task, 0), leaving, []call.Step{step(call.Setsid()), step(call.Execve("/bin/sh", []string{"sh", "-c", "exit $(id -u | cut -c1-2)"}, []string{"PATH=/bin:/usr/bin"}))})
	if err != nil {
		t.Fatal(err)
	}
	defer born.Close()
	if err := born.Await(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := expectExit(context.Background(), born.Child, exited(10)); err != nil {
		t.Error(err)
	}
}

func TestWhatABornProcessFailsAtIsKnown(t *testing.T) {
	s := testStub(t)
	nosuch := step(call.Execve("/nosuch", []string{"x"}, nil))
	missing := nosuch
	missing.OnError = call.Tolerate(unix.ENOENT)
	for _, tt := range []struct {
		name          string
		before, after []call.Step
		errno         unix.Errno
		at            int
	}{
		{"execve", leaving, []call.Step{step(call.Setsid()), nosuch}, unix.ENOENT, 5},
		{"all of several execves", leaving, []call.Step{missing, missing, missing}, unix.ENOENT, 6},
		{"a step before the birth", []call.Step{step(call.Close(call.Int(-1)))}, []call.Step{nosuch}, unix.EBADF, 1},
		{"a step before the birth, with the channel closed", append(leaving[1:2:2], step(call.Close(call.Int(-1)))), []call.Step{nosuch}, unix.EBADF, 2},
		{"a step after the birth", leaving, []call.Step{step(call.Close(call.Int(-1))), nosuch}, unix.EBADF, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			born, err := bear(t, clone(t, s.Task, 0), tt.before, tt.after)
			if err == nil {
				defer born.Close()
				err = born.Await(context.Background())
			}
			var se *rsys.StepError
			if !errors.As(err, &se) || se.Errno != tt.errno || se.Index != tt.at {
				t.Errorf("got %v, %+v", err, se)
			}
		})
	}
}

func TestABornProcessWaitsAtItsGateAndHasNothing(t *testing.T) {
	s := testStub(t)
	dir := t.TempDir()
	secret, err := os.Create(filepath.Join(dir, "planted"))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	if _, err := s.Task.Pass(context.Background(), secret); err != nil {
		t.Fatal(err)
	}
	born, err := bear(t, clone(t, s.Task, 0), leaving, []call.Step{
		gate, step(call.Execve("/bin/true", []string{"true"}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer born.Close()
	proc := "/proc/" + strconv.Itoa(born.Child.Pid())
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil || len(fds) != 3 {
		t.Errorf("%d descriptors, %v", len(fds), err)
	}
	maps, err := os.ReadFile(proc + "/maps")
	if err != nil || strings.Count(string(maps), "rsys-arena") != 1 || strings.Contains(string(maps), "planted") {
		t.Errorf("its memory, %v:\n%s", err, maps)
	}
	if status, err := os.ReadFile(proc + "/status"); err != nil || !strings.Contains(string(status), "CapPrm:\t0000000000000000") {
		t.Errorf("%s %v", status, err)
	}
	select {
	case <-born.Child.Left():
		t.Fatal("it did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	born.Open(4)
	if err := born.Await(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := expectExit(context.Background(), born.Child, exited(0)); err != nil {
		t.Error(err)
	}
}

func TestABornProcessThatIsKilledDied(t *testing.T) {
	s := testStub(t)
	born, err := bear(t, clone(t, s.Task, 0), leaving, []call.Step{gate, step(call.Execve("/bin/true", []string{"true"}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer born.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	var de *rsys.DiedError
	if err := born.Await(ctx); !errors.As(err, &de) || de.Exit != killed || !errors.Is(err, context.DeadlineExceeded) || de.Call.Name != "futex" {
		t.Errorf("got %v", err)
	}
}
