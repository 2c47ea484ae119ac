package rsys_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// processes are our children that nobody has reaped, zombies too.
func processes(t testing.TB) (pids []string) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, th := range threads {
		list, _ := os.ReadFile("/proc/self/task/" + th.Name() + "/children")
		pids = append(pids, strings.Fields(string(list))...)
	}
	slices.Sort(pids)
	return pids
}

// nothingMore fails the test if there are other children than before, in a while.
func nothingMore(t testing.TB, before []string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		now := processes(t)
		if slices.Equal(now, before) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("children %v, were %v", now, before)
			return
		}
	}
}

func rounds(n int) int {
	if testing.Short() {
		return n / 10
	}
	return n
}

func TestACloneWhoseParentIsKilledMeanwhileIsNotLost(t *testing.T) {
	ctx := context.Background()
	s := testStub(t)
	before := processes(t)
	for range rounds(3000) {
		parent, err := s.Task.Clone(ctx, rsys.CloneConfig{Flags: unix.CLONE_VM})
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(rand.IntN(1200))*time.Microsecond, func() { parent.Child.Signal(unix.SIGKILL) })
		if child, err := parent.Clone(ctx, rsys.CloneConfig{}); err == nil {
			child.Kill()
			child.Child.Wait(ctx)
		}
		parent.Child.Wait(ctx)
		parent.Kill()
	}
	nothingMore(t, before)
}

func TestABirthWhoseTaskIsKilledMeanwhileIsNotLost(t *testing.T) {
	ctx := context.Background()
	s := testStub(t)
	before := processes(t)
	for range rounds(1000) {
		task, err := s.Task.Clone(ctx, rsys.CloneConfig{})
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(rand.IntN(1500))*time.Microsecond, func() { task.Child.Signal(unix.SIGKILL) })
		run := task.NewRun()
		if born, err := run.Bear(ctx, rsys.Birth{Before: leaving, After: []call.Step{step(call.Execve("/bin/true", []string{"true"}, nil))}}); err == nil {
			born.Await(ctx)
			<-born.Child.Exited()
			if err := born.Close(); err != nil {
				t.Error(err)
			}
		}
		task.Kill()
		task.Child.Wait(ctx)
		run.Close()
	}
	nothingMore(t, before)
}

// full leaves this process free more descriptors, until it is called.
func full(t *testing.T, free int) (restore func()) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	highest := 0
	for _, e := range list {
		n, _ := strconv.Atoi(e.Name())
		highest = max(highest, n)
	}
	var fill []int // no hole is left below the limit
	for fd := 0; fd <= highest; {
		if fd, err = unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		fill = append(fill, fd)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Cur: uint64(fill[len(fill)-1] + 1 + free), Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return func() {
		unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
		for _, fd := range fill {
			unix.Close(fd)
		}
	}
}

func TestACloneForWhichThereIsNoDescriptorLeavesNothing(t *testing.T) {
	s := testStub(t)
	for free := range 8 {
		t.Run(fmt.Sprint(free, " free"), func(t *testing.T) {
			before := processes(t)
			restore := full(t, free)
			task, err := s.Task.Clone(context.Background(), rsys.CloneConfig{})
			restore()
			if err == nil {
				task.Kill()
				task.Child.Wait(context.Background())
			} else if !errors.Is(err, unix.EMFILE) {
				t.Errorf("got %v", err)
			}
			nothingMore(t, before)
		})
	}
}

func TestWithoutADescriptorExecIsStillToldFromDeath(t *testing.T) {
	ctx := context.Background()
	s := testStub(t)
	for i := range 20 {
		task, err := s.Task.Clone(ctx, rsys.CloneConfig{})
		if err != nil {
			t.Fatal(err)
		}
		run := task.NewRun()
		restore := full(t, 0)
		if i%2 == 0 {
			err = run.Exec(ctx, step(call.ExitGroup(9)))
			if !errors.Is(err, rsys.ErrGone) {
				t.Errorf("one that exits: %v", err)
			}
		} else if err = run.Exec(ctx, step(call.Execve("/bin/true", []string{"true"}, nil))); err != nil {
			t.Errorf("one that execs: %v", err)
		}
		restore()
		task.Child.Wait(ctx)
		task.Forget()
		run.Close()
	}
}

func TestAnExecThatSucceededIsNotKilledForItsContext(t *testing.T) {
	s := testStub(t)
	for range rounds(1000) {
		task, err := s.Task.Clone(context.Background(), rsys.CloneConfig{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(100+rand.IntN(1500))*time.Microsecond)
		run := task.NewRun()
		err = run.Exec(ctx, step(call.Execve("/bin/true", []string{"true"}, nil)))
		st, _ := task.Child.Wait(context.Background())
		if err == nil && st != exited(0) {
			t.Errorf("exec succeeded, and then %v", st)
		}
		cancel()
		run.Close()
		task.Forget()
	}
}

func TestAProcessThatIsNotOurChildIsNoTask(t *testing.T) {
	out, err := exec.Command("sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(pid, unix.SIGKILL)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fds[1])
	arena := newArena(t)
	failed := make(chan error, 1)
	go func() {
		_, err := rsys.NewTask(context.Background(), rsys.Config{Pid: pid, Channel: os.NewFile(uintptr(fds[0]), "channel"), Arena: arena, FD: 3})
		failed <- err
	}()
	select {
	case err := <-failed:
		if err == nil {
			t.Error("it became a task")
		}
	case <-time.After(5 * time.Second):
		t.Error("no answer")
	}
}

func newArena(t *testing.T) *rsys.Arena {
	a, err := rsys.NewArena(4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}
