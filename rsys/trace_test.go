package rsys_test

import (
	"context"
	"math"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
	"github.com/rsys-io/rsys/stub"
)

// traced collects what is told while f runs.
func traced(f func()) (calls []rsys.Traced) {
	var mu sync.Mutex
	rsys.Trace(func(c []rsys.Traced) {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, c...)
	})
	defer rsys.Trace(nil)
	f()
	mu.Lock()
	defer mu.Unlock()
	return calls
}

func TestEachCallOfAProgramIsTracedWithItsTime(t *testing.T) {
	s := startStub(t, stub.Config{ArenaSize: 4 << 20})
	const pause = 20 * time.Millisecond
	ts := unix.NsecToTimespec(int64(pause))
	nap := make([]byte, 16)
	for i := range 8 {
		nap[i], nap[8+i] = byte(uint64(ts.Sec)>>(8*i)), byte(uint64(ts.Nsec)>>(8*i))
	}
	clock := rsys.NewClock()
	before := time.Now()
	calls := traced(func() {
		run := s.Task.NewRun()
		defer run.Close()
		err := run.Do(context.Background(),
			step(call.Call{Name: "getpid", Nr: unix.SYS_GETPID}),
			step(call.Call{Name: "nanosleep", Nr: unix.SYS_NANOSLEEP, Args: []call.Arg{call.Bytes(nap), call.Null}}),
			call.Step{Call: call.Close(call.FD(999)), OnError: call.Ignore, SkipErr: 1},
			step(call.Call{Name: "skipped", Nr: unix.SYS_GETPPID}),
			step(call.Call{Name: "gettid", Nr: unix.SYS_GETTID}))
		if err != nil {
			t.Error(err)
		}
		if _, err := s.Task.Call(context.Background(), call.Call{Name: "getuid", Nr: unix.SYS_GETUID}); err != nil {
			t.Error(err)
		}
	})
	took := time.Since(before)
	want := []string{"getpid", "nanosleep", "close", "gettid", "getuid"}
	if len(calls) != len(want) {
		t.Fatalf("%d calls: %+v", len(calls), calls)
	}
	last := uint64(0)
	for i, c := range calls {
		if c.Call.Name != want[i] || c.Pid != s.Task.Pid() || !c.Result.Ran {
			t.Errorf("call %d is %+v", i, c)
		}
		if c.Start < last || c.Result.Ticks < c.Start {
			t.Errorf("%s: from %d to %d, after %d", c.Call.Name, c.Start, c.Result.Ticks, last)
		}
		last = c.Result.Ticks
	}
	if calls[0].Result.Value != int64(s.Task.Pid()) || calls[2].Result.Errno != unix.EBADF {
		t.Errorf("results %+v, %+v", calls[0].Result, calls[2].Result)
	}
	at := clock.Times(calls[1].Start, calls[1].Result.Ticks, calls[4].Result.Ticks)
	if d := at[1] - at[0]; d < pause-time.Millisecond || d > took {
		t.Errorf("the nanosleep of %v took %v of %v", pause, d, took)
	}
	if diff := math.Abs(float64(at[2] - took)); diff > float64(5*time.Millisecond) {
		t.Errorf("the last call returned after %v of %v", at[2], took)
	}
}

func TestAnExecAndADeathAreTraced(t *testing.T) {
	s := startStub(t, stub.Config{ArenaSize: 4 << 20})
	ctx := context.Background()
	for _, test := range []struct {
		name string
		last call.Call
	}{
		{"execve", call.Call{Name: "execve", Nr: unix.SYS_EXECVE, Args: []call.Arg{call.String("/bin/true"), call.Strings([]string{"true"}), call.Strings(nil)}}},
		{"exit_group", call.ExitGroup(3)},
	} {
		task, err := s.Task.Clone(ctx, rsys.CloneConfig{})
		if err != nil {
			t.Fatal(err)
		}
		calls := traced(func() {
			run := task.NewRun()
			defer run.Close()
			run.Exec(ctx, step(call.Call{Name: "getpid", Nr: unix.SYS_GETPID}), step(test.last))
		})
		if n := len(calls); n != 2 || calls[1].Call.Name != test.name || calls[1].Result.Ran || calls[1].Result.Ticks <= calls[1].Start {
			t.Errorf("%s: %+v", test.name, calls)
		}
		task.Kill()
		task.Child.Wait(ctx)
	}
}

func TestNothingIsTracedThatIsNotAskedFor(t *testing.T) {
	s := startStub(t, stub.Config{ArenaSize: 4 << 20})
	calls := traced(func() {})
	s.Task.Call(context.Background(), call.Call{Name: "getuid", Nr: unix.SYS_GETUID})
	if len(calls) != 0 {
		t.Errorf("%+v", calls)
	}
}
