package stub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// testServer is a server, and the path of the program.
func testServer(t testing.TB, cfg Config) (*Server, string) {
	t.Helper()
	dir := t.TempDir()
	server, err := Listen(filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	server.Config = cfg
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	program := filepath.Join(dir, "program")
	if err := WriteProgram(program); err != nil {
		t.Fatal(err)
	}
	return server, program
}

// caught starts a program and is the stub that it became.
func caught(t testing.TB, server *Server, cmd *exec.Cmd) *Stub {
	t.Helper()
	cmd.Env = append(cmd.Environ(), SocketVariable+"="+server.Addr())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := server.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func bothTransports(t *testing.T, test func(t *testing.T, cfg Config)) {
	t.Run("arena", func(t *testing.T) { test(t, Config{}) })
	t.Run("socket", func(t *testing.T) { test(t, Config{Transport: DataSocket}) })
}

func TestACallerHasWhatItWasStartedWith(t *testing.T) {
	bothTransports(t, func(t *testing.T, cfg Config) {
		server, program := testServer(t, cfg)
		dir, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		extra, err := os.CreateTemp(dir, "extra")
		if err != nil {
			t.Fatal(err)
		}
		defer extra.Close()
		cmd := exec.Command(program, "one", "", strings.Repeat("three", 5000))
		cmd.Dir, cmd.Env = dir, []string{"A=1", "RSYS_STUB_SOCKE=no", "RSYS_STUB_SOCKETS=no", "RSYS_STU", "B="}
		cmd.Stdin = strings.NewReader("its input")
		cmd.ExtraFiles = []*os.File{extra}
		var out bytes.Buffer
		cmd.Stdout = &out
		s := caught(t, server, cmd)
		defer s.Close()
		ctx := context.Background()
		if s.Task.Pid() != cmd.Process.Pid || s.Description.Pid != s.Task.Pid() {
			t.Errorf("pid %d, described as %d, is %d", s.Task.Pid(), s.Description.Pid, cmd.Process.Pid)
		}
		if got := strings.Join(s.Description.Args, "|"); got != strings.Join(cmd.Args, "|") {
			t.Errorf("argv %q", got)
		}
		env := s.Description.Env
		if len(env) != 6 || env[0] != "A=1" || env[4] != "B=" || !strings.HasPrefix(strings.Join(env, "|"), strings.Join(cmd.Env[:5], "|")) {
			t.Errorf("environment %q", env)
		}
		if got, err := s.Getwd(ctx); err != nil || got != dir {
			t.Errorf("directory %q, %v", got, err)
		}
		run := s.Task.NewRun()
		defer run.Close()
		if err := run.Do(ctx,
			call.Step{Call: call.Read(s.Task.Stdin().Arg(), 100)},
			call.Step{Call: call.Write(s.Task.Stdout().Arg(), "its output")},
			call.Step{Call: call.Fcntl(s.Task.FD(3).Arg(), unix.F_GETFD, call.Null)},
		); err != nil {
			t.Fatal(err)
		}
		if got := string(run.Out(0, 1)[:run.Result(0).Value]); got != "its input" {
			t.Errorf("input %q", got)
		}
		if err := s.Exit(ctx, 7); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 7 || out.String() != "its output" {
			t.Errorf("%v, output %q", err, &out)
		}
	})
}

func TestACallersEndIsKnown(t *testing.T) {
	sh := func(script string) call.Call { return call.Execve("/bin/sh", []string{"sh", "-c", script}, nil) }
	bothTransports(t, func(t *testing.T, cfg Config) {
		server, program := testServer(t, cfg)
		for _, tt := range []struct {
			name   string
			end    func(s *Stub) error
			exit   rsys.ExitStatus
			execed bool
		}{
			{"execs", func(s *Stub) error {
				run := s.Task.NewRun()
				defer run.Close()
				return run.Exec(context.Background(), call.Step{Call: sh("sleep 0.05; exit 3")})
			}, rsys.ExitStatus{Code: 1, Status: 3}, true},
			{"is killed", func(s *Stub) error {
				return s.Task.Child.Signal(unix.SIGKILL)
			}, rsys.ExitStatus{Code: 2, Status: 9}, false},
			{"exits", func(s *Stub) error { return s.Exit(context.Background(), 9) }, rsys.ExitStatus{Code: 1, Status: 9}, false},
			{"is hung up on", func(s *Stub) error { s.Task.Forget(); return nil }, rsys.ExitStatus{Code: 1, Status: 125}, false},
			{"fails to exec", func(s *Stub) error {
				run := s.Task.NewRun()
				defer run.Close()
				err := run.Exec(context.Background(), call.Step{Call: call.Execve("/nosuch", []string{"x"}, nil)})
				if !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("got %v", err)
				}
				return s.Exit(context.Background(), 1)
			}, rsys.ExitStatus{Code: 1, Status: 1}, false},
		} {
			for _, reaped := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, reaped at once %v", tt.name, reaped), func(t *testing.T) {
					cmd := exec.Command(program)
					s := caught(t, server, cmd)
					defer s.Close()
					waited := make(chan error, 1)
					if reaped {
						go func() { waited <- cmd.Wait() }()
					}
					if err := tt.end(s); err != nil {
						t.Fatal(err)
					}
					got, err := s.Task.Child.Wait(context.Background())
					if err != nil || got != tt.exit && (got.Known() || !reaped) {
						t.Errorf("ended %v, %v; want %v", got, err, tt.exit)
					}
					if s.Task.Child.Execed() != tt.execed {
						t.Errorf("execed: %v", !tt.execed)
					}
					if !reaped {
						waited <- cmd.Wait()
					}
					<-waited
				})
			}
		}
	})
}

// Its parent reaps it before anybody can look. That it exec'd shows in that it exited by itself.
func TestACallerThatExecsAndEndsAtOnceHasExeced(t *testing.T) {
	server, program := testServer(t, Config{})
	unknown := 0
	for range 30 {
		cmd := exec.Command(program)
		s := caught(t, server, cmd)
		waited := make(chan error, 1)
		go func() { waited <- cmd.Wait() }()
		run := s.Task.NewRun()
		err := run.Exec(context.Background(), call.Step{Call: call.Execve("/bin/true", []string{"true"}, nil)})
		var died *rsys.DiedError
		if errors.As(err, &died) && !died.Exit.Known() {
			unknown++ // before Linux 6.15
		} else if err != nil || !s.Task.Child.Execed() {
			t.Errorf("%v, execed %v", err, s.Task.Child.Execed())
		}
		run.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-waited; err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d of 30 unknown", unknown)
}

func TestACallerCanNotBeCloned(t *testing.T) {
	server, program := testServer(t, Config{})
	cmd := exec.Command(program)
	s := caught(t, server, cmd)
	if _, err := s.Task.Clone(context.Background(), rsys.CloneConfig{}); !errors.Is(err, rsys.ErrNotOurs) {
		t.Errorf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
}

func TestAServerThatIsGoneIsAnError(t *testing.T) {
	server, program := testServer(t, Config{})
	for name, path := range map[string]string{
		"no socket": filepath.Join(t.TempDir(), "none"), "no path": "", "a long path": strings.Repeat("x", 200),
		"the longest path": strings.Repeat("x", 107), "not a socket": program,
	} {
		cmd := exec.Command(program)
		cmd.Env = []string{SocketVariable + "=" + path}
		if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 125 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Listen(server.Addr()); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second server: %v", err)
	}
	if _, err := Listen(filepath.Join(t.TempDir(), strings.Repeat("x", 200))); err == nil {
		t.Error("a path that is too long for a socket is taken")
	}
}

func TestAcceptEnds(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	server, err := Listen(filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := server.Accept(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	conn, err := net.Dial("unix", server.Addr()) // one that nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	done := make(chan error)
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	go func() {
		_, err := server.Accept(context.Background())
		done <- err
	}()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("its caller: %v", err)
	}
	if _, err := os.Lstat(server.Addr()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket: %v", err)
	}
	settled(t, goroutines, -1)
}

// settled waits until there are not more goroutines and descriptors (unless -1) than before.
func settled(t testing.TB, goroutines, fds int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		g, f := runtime.NumGoroutine(), openFDs(t)
		if g <= goroutines && (fds < 0 || f <= fds) {
			return
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, were %d; %d descriptors, were %d\n%s", g, goroutines, f, fds, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func openFDs(t testing.TB) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
