package rsys_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
	"github.com/rsys-io/rsys/stub"
)

func clone(t testing.TB, from *rsys.Task, flags uint64) *rsys.Task {
	t.Helper()
	task, err := from.Clone(context.Background(), rsys.CloneConfig{Flags: flags})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		task.Kill()
		if _, err := task.Child.Wait(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return task
}

// The same programs run in a stub by either transport, in a clone that shares its memory, and in a copy.
func everywhere(t *testing.T, test func(t *testing.T, task *rsys.Task)) {
	s := testStub(t)
	t.Run("in the stub", func(t *testing.T) { test(t, s.Task) })
	t.Run("in a stub by socket", func(t *testing.T) { test(t, startStub(t, stub.Config{Transport: stub.DataSocket}).Task) })
	t.Run("in a clone that shares memory", func(t *testing.T) { test(t, clone(t, s.Task, unix.CLONE_VM)) })
	t.Run("in a copy", func(t *testing.T) { test(t, clone(t, s.Task, 0)) })
	t.Run("in a clone of a clone", func(t *testing.T) { test(t, clone(t, clone(t, s.Task, unix.CLONE_VM), 0)) })
}

func TestProgramsFlowAsTheirStepsSay(t *testing.T) {
	fail := func(p call.Policy) call.Step {
		return call.Step{Call: call.Close(call.Int(-1)), OnError: p}
	}
	pid := step(call.Getpid())
	skip := func(s call.Step, ok, err int32) call.Step { s.SkipOK, s.SkipErr = ok, err; return s }
	const ran, not = true, false
	for _, tt := range []struct {
		name    string
		program []call.Step
		errno   unix.Errno
		at      int
		ran     []bool
	}{
		{"all steps are run", []call.Step{pid, pid, pid}, 0, 0, []bool{ran, ran, ran}},
		{"an error ends it", []call.Step{pid, fail(call.Stop), pid}, unix.EBADF, 1, []bool{ran, ran, not}},
		{"any error is ignored", []call.Step{fail(call.Ignore), pid}, 0, 0, []bool{ran, ran}},
		{"a listed error is tolerated", []call.Step{fail(call.Tolerate(unix.ENOENT, unix.EBADF)), pid}, 0, 0, []bool{ran, ran}},
		{"one that is not listed is not", []call.Step{fail(call.Tolerate(unix.ENOENT, unix.EPERM)), pid}, unix.EBADF, 0, []bool{ran, not}},
		{"the eighth of a list counts", []call.Step{fail(call.Tolerate(1, 2, 3, 4, 5, 6, 7, unix.EBADF)), pid}, 0, 0, []bool{ran, ran}},
		{"a success skips", []call.Step{skip(pid, 1, 0), pid, pid}, 0, 0, []bool{ran, not, ran}},
		{"a tolerated error skips", []call.Step{skip(fail(call.Ignore), 0, 2), pid, pid, pid}, 0, 0, []bool{ran, not, not, ran}},
		{"skipping past the end ends it", []call.Step{skip(pid, 9, 0), pid}, 0, 0, []bool{ran, not}},
		{"what is expected goes on", []call.Step{pid, step(call.Expect(call.Int(0x1234), 0xff, 0x34, unix.EPERM)), pid}, 0, 0, []bool{ran, ran, ran}},
		{"what is not expected ends it", []call.Step{step(call.Expect(call.Int(0x1234), 0xff, 0x35, unix.ESTALE)), pid}, unix.ESTALE, 0, []bool{ran, not}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			everywhere(t, func(t *testing.T, task *rsys.Task) {
				run := task.NewRun()
				defer run.Close()
				err := run.Do(context.Background(), tt.program...)
				var se *rsys.StepError
				if tt.errno == 0 && err != nil || tt.errno != 0 && (!errors.As(err, &se) || se.Errno != tt.errno || se.Index != tt.at) {
					t.Fatalf("got %v, want %v at %d", err, tt.errno, tt.at)
				}
				for i, want := range tt.ran {
					if got := run.Result(i); got.Ran != want || want && got.Ticks == 0 {
						t.Errorf("step %d: %+v, want ran %v", i, got, want)
					}
				}
			})
		})
	}
}

func TestStepsUseWhatEarlierStepsFound(t *testing.T) {
	dir := t.TempDir()
	everywhere(t, func(t *testing.T, task *rsys.Task) {
		ctx := context.Background()
		name := filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "_"))
		run := task.NewRun()
		defer run.Close()
		if err := run.Do(ctx,
			step(call.Openat(call.CWD, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)),
			step(call.Write(call.ResultOf(0), "\x01\x02\x03\x04\x05\x06\x07\x08")),
			step(call.Pread64(call.ResultOf(0), 8, 0)),
			step(call.Expect(call.WordOf(2, 1, 0), ^uint64(0), 0x0807060504030201, unix.EIO)),
			step(call.Expect(call.Int32Of(2, 1, 4), ^uint64(0), 0x08070605, unix.EIO)),
			step(call.Store32(call.OutPtrOf(2, 1, 4), call.Int(-2))),
			step(call.Expect(call.Int32Of(2, 1, 4), ^uint64(0), ^uint64(1), unix.EIO)),
			step(call.Store64(call.OutPtrOf(2, 1, 0), call.ResultOf(1))),
		); err != nil {
			t.Fatal(err)
		}
		if err := run.Do(ctx, step(call.Expect(call.WordOf(2, 1, 0), ^uint64(0), 8, unix.EIO)), step(call.Close(call.ResultOf(0)))); err != nil {
			t.Fatalf("in a later part: %v", err)
		}
		if got := binary.NativeEndian.Uint64(run.Out(2, 1)); got != 8 {
			t.Errorf("output is %d", got)
		}
	})
}

func TestReferencesThatPointNowhereAreRefused(t *testing.T) {
	s := testStub(t)
	for name, arg := range map[string]call.Arg{
		"to the step itself":        call.ResultOf(1),
		"to a step to come":         call.ResultOf(5),
		"to an output not there":    call.WordOf(0, 3, 0),
		"behind an output's end":    call.WordOf(0, 1, 1),
		"to a negative step":        call.ResultOf(-1),
		"before an output's start":  call.Int32Of(0, 1, -4),
		"of a pointer outside":      call.Bytes(make([]byte, 8)).With(call.Ptr{Off: 1, To: call.String("x")}),
		"of a pointer to no memory": call.Bytes(make([]byte, 8)).With(call.Ptr{Off: 0, To: call.ResultOf(0)}),
	} {
		t.Run(name, func(t *testing.T) {
			run := s.Task.NewRun()
			defer run.Close()
			if err := run.Do(context.Background(), step(call.Pread64(call.Int(-1), 8, 0)), step(call.Close(arg))); err == nil || errors.Is(err, unix.EBADF) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestHandlesAreRefusedInOtherTables(t *testing.T) {
	ctx := context.Background()
	s := testStub(t)
	fd, err := s.Task.Open(ctx, call.Openat(call.CWD, "/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0))
	if err != nil {
		t.Fatal(err)
	}
	copied, shared := clone(t, s.Task, 0), clone(t, s.Task, unix.CLONE_FILES)
	if _, err := copied.Call(ctx, call.Fchdir(fd.Arg())); !errors.Is(err, rsys.ErrWrongTask) {
		t.Errorf("in a copied table: %v", err)
	}
	if _, err := shared.Call(ctx, call.Fchdir(fd.Arg())); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("in a shared table: %v", err)
	}
	own, err := fd.Move(ctx, s.Task, copied)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Task.Call(ctx, call.Fchdir(fd.Arg())); !errors.Is(err, rsys.ErrInvalidated) {
		t.Errorf("after it moved: %v", err)
	}
	if _, err := copied.Call(ctx, call.Fchdir(own.Arg())); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("where it moved to: %v", err)
	}
	late, err := s.Task.Open(ctx, call.Openat(call.CWD, "/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Inherit(copied); !errors.Is(err, rsys.ErrWrongTask) {
		t.Errorf("one opened after the clone: %v", err)
	}
	if err := late.Close(ctx, s.Task); err != nil {
		t.Error(err)
	}
	if err := own.Close(ctx, copied); err != nil {
		t.Error(err)
	}
}

func TestPassedDescriptorsArrive(t *testing.T) {
	everywhere(t, func(t *testing.T, task *rsys.Task) {
		ctx := context.Background()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		fds, err := task.Pass(ctx, r, w)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := task.Call(ctx, call.Write(fds[1].Arg(), "hello")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 9)
		if n, err := r.Read(buf); err != nil || string(buf[:n]) != "hello" {
			t.Errorf("%q %v", buf[:n], err)
		}
		for _, fd := range fds {
			if err := fd.Close(ctx, task); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestNamespacesAreTracked(t *testing.T) {
	ctx := context.Background()
	s := testStub(t)
	child := clone(t, s.Task, unix.CLONE_NEWPID|unix.CLONE_NEWNS)
	a, b := s.Task.Namespaces(), child.Namespaces()
	if a.PID == b.PID || a.Mount == b.Mount || a.Net != b.Net || b.PID != b.PIDForChildren {
		t.Error("after clone")
	}
	if _, err := child.Call(ctx, call.Unshare(unix.CLONE_NEWNET)); err != nil {
		t.Fatal(err)
	}
	if child.Namespaces().Net == a.Net || child.Namespaces().Mount != b.Mount {
		t.Error("after unshare")
	}
	if pid, err := child.Call(ctx, call.Getpid()); err != nil || pid != 1 {
		t.Errorf("first process of its PID namespace is %d, %v", pid, err)
	}
}

func TestAContextThatEndsKillsWhatHangs(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	s := testStub(t)
	for name, flags := range map[string]uint64{"sharing memory": unix.CLONE_VM, "a copy": 0} {
		t.Run(name, func(t *testing.T) {
			task := clone(t, s.Task, flags)
			run := task.NewRun()
			defer run.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
			defer cancel()
			err := run.Do(ctx, step(call.Getpid()), step(call.Openat(call.CWD, fifo, unix.O_RDONLY, 0)), step(call.Getpid()))
			var de *rsys.DiedError
			if !errors.As(err, &de) || de.Call == nil || de.Call.Name != "openat" || de.Index != 1 ||
				!errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "in openat") {
				t.Fatalf("got %v", err)
			}
			if st, err := task.Child.Wait(context.Background()); err != nil || st != killed {
				t.Errorf("ended %v %v", st, err)
			}
			if _, err := task.Call(context.Background(), call.Getpid()); !errors.Is(err, rsys.ErrGone) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// A filter that forbids all but execve and exit_group: the server can't answer.
func TestAnExecThatFailsUnderAStrictFilterIsKnown(t *testing.T) {
	for name, deny := range map[string]uint32{"with EPERM": 0x00050001, "by death": 0x80000000} {
		t.Run(name, func(t *testing.T) {
			var prog []byte
			ins := func(code uint16, jt, jf byte, k uint32) {
				prog = binary.NativeEndian.AppendUint16(prog, code)
				prog = append(prog, jt, jf)
				prog = binary.NativeEndian.AppendUint32(prog, k)
			}
			ins(0x20, 0, 0, 0) // load nr
			ins(0x15, 2, 0, uint32(unix.SYS_EXECVE))
			ins(0x15, 1, 0, uint32(unix.SYS_EXIT_GROUP))
			ins(0x06, 0, 0, deny)
			ins(0x06, 0, 0, 0x7fff0000)
			s := testStub(t)
			task := clone(t, s.Task, 0)
			run := task.NewRun()
			defer run.Close()
			err := run.Exec(context.Background(),
				step(call.Prctl(unix.PR_SET_NO_NEW_PRIVS, call.Int(1))),
				step(call.Seccomp(0, prog, 5)),
				step(call.Execve("/nosuch", []string{"x"}, nil)))
			var se *rsys.StepError
			if !errors.As(err, &se) || se.Errno != unix.ENOENT || se.Index != 2 {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func BenchmarkCall(b *testing.B) {
	s := testStub(b)
	for b.Loop() {
		if _, err := s.Task.Call(context.Background(), call.Getpid()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProgramOf64(b *testing.B)       { benchmarkProgram(b, stub.SharedArena) }
func BenchmarkProgramOf64Socket(b *testing.B) { benchmarkProgram(b, stub.DataSocket) }

func benchmarkProgram(b *testing.B, transport stub.Transport) {
	s := startStub(b, stub.Config{Transport: transport})
	steps := make([]call.Step, 64)
	for i := range steps {
		steps[i] = step(call.Getpid())
	}
	for b.Loop() {
		run := s.Task.NewRun()
		if err := run.Do(context.Background(), steps...); err != nil {
			b.Fatal(err)
		}
		run.Close()
	}
}

func benchmarkClone(b *testing.B, flags uint64, exec bool) {
	s := testStub(b)
	ctx := context.Background()
	for b.Loop() {
		task, err := s.Task.Clone(ctx, rsys.CloneConfig{Flags: flags})
		if err != nil {
			b.Fatal(err)
		}
		if exec {
			run := task.NewRun()
			if err := run.Exec(ctx, step(call.Execve("/bin/true", []string{"true"}, nil))); err != nil {
				b.Fatal(err)
			}
			run.Close()
			task.Forget()
		} else {
			task.Kill()
		}
		if _, err := task.Child.Wait(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCloneShared(b *testing.B)     { benchmarkClone(b, unix.CLONE_VM, false) }
func BenchmarkCloneCopied(b *testing.B)     { benchmarkClone(b, 0, false) }
func BenchmarkCloneExecShared(b *testing.B) { benchmarkClone(b, unix.CLONE_VM, true) }
func BenchmarkCloneExecCopied(b *testing.B) { benchmarkClone(b, 0, true) }
