package stub

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

func execve(path string, args ...string) call.Step {
	return call.Step{Call: call.Execve(path, append([]string{path}, args...), nil)}
}

// fates are what can become of a stub; each says if it is taken for another.
var fates = map[string]func(ctx context.Context, s *Stub) error{
	"execs": func(ctx context.Context, s *Stub) error {
		run := s.Task.NewRun()
		defer run.Close()
		if err := run.Exec(ctx, execve("/bin/sh", "-c", "exit 7")); err != nil {
			return err
		}
		return ended(ctx, s, true, rsys.ExitStatus{Code: 1, Status: 7})
	},
	"fails to exec": func(ctx context.Context, s *Stub) error {
		run := s.Task.NewRun()
		defer run.Close()
		if err := run.Exec(ctx, execve("/nosuch")); !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("got %v", err)
		}
		s.Task.Kill()
		return ended(ctx, s, false, rsys.ExitStatus{Code: 2, Status: 9})
	},
	"is killed": func(ctx context.Context, s *Stub) error {
		if err := s.Task.Child.Signal(unix.SIGKILL); err != nil {
			return err
		}
		return ended(ctx, s, false, rsys.ExitStatus{Code: 2, Status: 9})
	},
	"exits": func(ctx context.Context, s *Stub) error {
		if err := s.Exit(ctx, 9); err != nil {
			return err
		}
		return ended(ctx, s, false, rsys.ExitStatus{Code: 1, Status: 9})
	},
	"exits in a program to exec": func(ctx context.Context, s *Stub) error {
		run := s.Task.NewRun()
		defer run.Close()
		var died *rsys.DiedError
		if err := run.Exec(ctx, call.Step{Call: call.ExitGroup(9)}, execve("/bin/sh")); !errors.As(err, &died) {
			return fmt.Errorf("got %v", err)
		}
		return ended(ctx, s, false, rsys.ExitStatus{Code: 1, Status: 9})
	},
	"is killed as it execs": func(ctx context.Context, s *Stub) error {
		run := s.Task.NewRun()
		defer run.Close()
		time.AfterFunc(time.Duration(rand.IntN(800))*time.Microsecond, func() { s.Task.Child.Signal(unix.SIGKILL) })
		err := run.Exec(ctx, execve("/bin/sleep", "100"))
		var died *rsys.DiedError
		if err != nil && !errors.As(err, &died) {
			return err
		}
		return ended(ctx, s, err == nil, rsys.ExitStatus{Code: 2, Status: 9})
	},
}

func ended(ctx context.Context, s *Stub, execed bool, want rsys.ExitStatus) error {
	if got, err := s.Task.Child.Wait(ctx); err != nil || got != want {
		return fmt.Errorf("ended %v, %v; want %v", got, err, want)
	}
	if s.Task.Child.Execed() != execed {
		return fmt.Errorf("execed: %v", !execed)
	}
	return nil
}

func TestEveryStubIsClassifiedRight(t *testing.T) {
	total := 10000
	if testing.Short() {
		total = 300
	}
	onSpawner(func() {}) // which stays
	fds, maps, goroutines := openFDs(t), arenas(t), runtime.NumGoroutine()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	var names []string
	for name := range fates {
		names = append(names, name)
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range 16 {
		wg.Go(func() {
			for next.Add(1) <= int64(total) && !t.Failed() {
				name, transport := names[rand.IntN(len(names))], Transport(rand.IntN(2))
				s, err := Config{Transport: transport, ArenaSize: 1 << 16}.Start(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				if err := fates[name](ctx, s); err != nil {
					t.Errorf("one (transport %d) that %s: %v", transport, name, err)
				}
				if err := s.Close(); err != nil {
					t.Errorf("one that %s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d stubs in %v", total, time.Since(start).Round(time.Millisecond))
	settled(t, goroutines, fds)
	if n := arenas(t); n != maps {
		t.Errorf("%d arenas are mapped, were %d", n, maps)
	}
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		if children, err := os.ReadFile(list); err == nil && strings.TrimSpace(string(children)) != "" {
			t.Errorf("children are left: %s", children)
		}
	}
}
