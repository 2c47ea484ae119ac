package integration

import (
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

func TestAnExecsOutputAndExitCodeAreSeen(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	for _, test := range []struct {
		name string
		args []string
		want harness.Exit
	}{
		{"output", []string{"echo", "hello"}, harness.Exit{Stdout: "hello\n"}},
		{"both outputs and an exit code", harness.Sh("echo out; echo err >&2; exit 3"), harness.Exit{Code: 3, Stdout: "out\n", Stderr: "err\n"}},
		{"true", []string{"true"}, harness.Exit{}},
		{"an absolute path", []string{"/bin/busybox", "false"}, harness.Exit{Code: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := c.RunExec(test.args...); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
	if got := c.Status(); got != client.Running {
		t.Errorf("the container is %q after its execs", got)
	}
}

func TestAFailedExecSaysWhy(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"not in PATH", []string{"nosuch"}, `exec: "nosuch": executable file not found in $PATH`},
		{"not there", []string{"/no/such"}, "no such file or directory"},
		{"not executable", []string{"/etc/passwd"}, "permission denied"},
		{"a directory", []string{"/etc"}, "is a directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := c.Exec(nil, c.Process(test.args))
			err := x.Process.Start(e.Ctx)
			if err == nil {
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %q, which should have %q", err, test.want)
			}
			if _, err := x.Process.Delete(e.Ctx); err != nil {
				t.Errorf("delete of the failed exec: %v", err)
			}
		})
	}
	if got := c.RunExec("echo", "fine"); got.Stdout != "fine\n" {
		t.Errorf("an exec after the failed ones: %+v", got)
	}
}

func TestAContainerWhoseProgramIsMissingDoesNotStart(t *testing.T) {
	e := start(t)
	c := e.Container([]string{"nosuch"})
	const want = `exec: "nosuch": executable file not found in $PATH`
	// runc says it at create; at start would be right too.
	err := c.TryCreate()
	if err == nil {
		err = c.Task.Start(e.Ctx)
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %v, which should have %q", err, want)
	}
}

func TestAnExecReadsItsStdinToTheEnd(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	r, w := io.Pipe()
	x := c.Exec(&harness.Exec{IO: harness.IO{In: r}}, c.Process([]string{"cat"})).StartExec()
	for _, line := range []string{"one\n", "two\n"} {
		_, err := io.WriteString(w, line)
		e.Must(err, "write to stdin")
		e.Eventually("cat echoes "+line, func() bool { return strings.HasSuffix(x.IO.Stdout.String(), line) })
	}
	w.Close()
	e.Must(x.Process.CloseIO(e.Ctx, client.WithStdinCloser), "close stdin")
	if got := x.WaitExec(); got.Stdout != "one\ntwo\n" || got.Code != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestAnExecIsKilled(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	for _, test := range []struct {
		name string
		sig  syscall.Signal
		code uint32
	}{{"SIGKILL", syscall.SIGKILL, 137}, {"SIGTERM", syscall.SIGTERM, 143}, {"SIGUSR1", syscall.SIGUSR1, 138}} {
		t.Run(test.name, func(t *testing.T) {
			x := c.Exec(nil, c.Process([]string{"sleep", "3600"})).StartExec()
			if peer() {
				// runc answers before its init has become the program, and
				// that one swallows signals.
				e.Eventually("it has become sleep", func() bool {
					p, ok := harness.ReadProc(int(x.Process.Pid()))
					return ok && p.Comm == "sleep"
				})
			}
			e.Must(x.Process.Kill(e.Ctx, test.sig), "kill the exec")
			if got := x.WaitExec(); got.Code != test.code {
				t.Errorf("exit code %d, want %d", got.Code, test.code)
			}
		})
	}
	if got := c.Status(); got != client.Running {
		t.Errorf("the container is %q after that", got)
	}
}

func TestARunningExecIsNotDeletedAndAnUnknownOneNotFound(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	x := c.Exec(nil, c.Process([]string{"sleep", "3600"})).StartExec()
	if _, err := x.Process.Delete(e.Ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete of a running exec: %v, want failed precondition", err)
	}
	if _, err := c.Task.LoadProcess(e.Ctx, "unknown", nil); !errdefs.IsNotFound(err) {
		t.Errorf("an unknown exec: %v, want not found", err)
	}
	if _, err := c.Task.Exec(e.Ctx, x.Process.ID(), c.Process([]string{"true"}), nullIO); !errdefs.IsAlreadyExists(err) {
		t.Errorf("two execs of one name: %v, want already exists", err)
	}
	e.Must(x.Process.Kill(e.Ctx, syscall.SIGKILL), "kill the exec")
	x.WaitExec()
}

func TestAnExecNeverStartedIsDeleted(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	x := c.Exec(nil, c.Process([]string{"true"}))
	st, err := x.Process.Status(e.Ctx)
	e.Must(err, "status of the exec")
	if st.Status != client.Created {
		t.Errorf("state of an exec not started is %q", st.Status)
	}
	_, err = x.Process.Delete(e.Ctx)
	e.Must(err, "delete the exec")
}

func TestExecsEndWithTheirContainer(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	x := c.Exec(nil, c.Process([]string{"sleep", "3600"})).StartExec()
	c.Kill(syscall.SIGKILL)
	c.Wait()
	if got := x.WaitExec(); got.Code != 137 {
		t.Errorf("the exec's exit code is %d, want 137", got.Code)
	}
	c.Delete()
}

func TestAnExecInAStoppedContainerIsRefused(t *testing.T) {
	e := start(t)
	c := e.Container([]string{"true"}).Run()
	c.Wait()
	process, err := c.Task.Exec(e.Ctx, "late", c.Process([]string{"true"}), nullIO)
	if err == nil {
		err = process.Start(e.Ctx)
	}
	if err == nil {
		t.Error("it was started")
	}
	c.Delete()
}

func TestATerminalIsOneAndIsResized(t *testing.T) {
	e := start(t)
	for _, where := range []string{"of the container", "of an exec"} {
		t.Run(where, func(t *testing.T) {
			script := harness.Sh("test -t 0 && test -t 1 && test -t 2 && echo is a tty", "stty size",
				"trap 'stty size; exit 5' WINCH", "echo ready", "while :; do sleep 0.1; done")
			r, w := io.Pipe()
			defer w.Close()
			var streams *harness.IO
			var resize func(w, h uint32) error
			var wait func() harness.Exit
			if where == "of the container" {
				c := e.Container(script, withTerminal)
				c.IO.In, c.IO.Terminal = r, true
				c.Create()
				e.Must(c.Task.Resize(e.Ctx, 80, 24), "first size")
				c.Start()
				streams, wait = &c.IO, c.Wait
				resize = func(w, h uint32) error { return c.Task.Resize(e.Ctx, w, h) }
				defer c.Delete()
			} else {
				c := e.Container(harness.Sleep()).Run()
				x := c.Exec(&harness.Exec{IO: harness.IO{In: r, Terminal: true}},
					c.Process(script, func(p *specs.Process) { p.Terminal, p.ConsoleSize = true, &specs.Box{Width: 80, Height: 24} })).StartExec()
				streams, wait = &x.IO, x.WaitExec
				resize = func(w, h uint32) error { return x.Process.Resize(e.Ctx, w, h) }
			}
			e.Eventually("the script is ready", func() bool { return strings.Contains(streams.Stdout.String(), "ready") })
			if out := streams.Stdout.String(); !strings.HasPrefix(out, "is a tty\r\n24 80\r\n") {
				t.Errorf("it says %q", out)
			}
			time.Sleep(50 * time.Millisecond)
			e.Must(resize(132, 43), "resize")
			if got := wait(); !strings.HasSuffix(got.Stdout, "43 132\r\n") || got.Code != 5 {
				t.Errorf("after the resize: %+v", got)
			}
		})
	}
}

func TestATerminalEchoesAndPassesControlCharacters(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("trap 'exit 9' INT", "cat"), withTerminal)
	r, w := io.Pipe()
	c.IO.In, c.IO.Terminal = r, true
	c.Run()
	_, err := io.WriteString(w, "typed\r")
	e.Must(err, "type")
	e.Eventually("the line is echoed and answered", func() bool { return c.IO.Stdout.String() == "typed\r\ntyped\r\n" })
	_, err = io.WriteString(w, "\x03")
	e.Must(err, "type ^C")
	if got := c.Wait(); got.Code != 9 {
		t.Errorf("exit code %d after ^C, want the 9 of its handler", got.Code)
	}
	w.Close()
	c.Delete()
}

func TestAnExecHasTheUserDirectoryAndEnvironmentOfItsSpec(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	x := c.Exec(nil, c.Process(harness.Sh("id -u; id -g; id -G; pwd; echo $COLOUR; grep NoNewPrivs /proc/self/status"), func(p *specs.Process) {
		p.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{50, 77}}
		p.Cwd, p.Env = "/tmp", append(p.Env, "COLOUR=green")
		p.NoNewPrivileges = true
	})).StartExec()
	const want = "1000\n1000\n1000 50 77\n/tmp\ngreen\nNoNewPrivs:\t1\n"
	if got := x.WaitExec(); got.Stdout != want {
		t.Errorf("got %+v, want %q", got, want)
	}
}

func TestAnExecHasTheUmaskOfItsSpec(t *testing.T) {
	if peer() {
		t.Skip("runc exec does not heed process.user.umask")
	}
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	umask := uint32(0o027)
	x := c.Exec(nil, c.Process([]string{"sh", "-c", "umask"}, func(p *specs.Process) { p.User.Umask = &umask })).StartExec()
	if got := x.WaitExec(); got.Stdout != "0027\n" {
		t.Errorf("got %+v, want 0027", got)
	}
}
