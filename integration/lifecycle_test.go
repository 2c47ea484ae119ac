package integration

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/rsys-io/rsys/integration/harness"
)

func TestAContainerRunsAndItsOutputAndExitCodeAreSeen(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		want harness.Exit
	}{
		{"output on stdout", []string{"echo", "hello"}, harness.Exit{Stdout: "hello\n"}},
		{"output on stderr", harness.Sh("echo oops >&2"), harness.Exit{Stderr: "oops\n"}},
		{"exit code 0", []string{"true"}, harness.Exit{}},
		{"exit code 1", []string{"false"}, harness.Exit{Code: 1}},
		{"exit code 42", harness.Sh("exit 42"), harness.Exit{Code: 42}},
		{"exit code 255", harness.Sh("exit 255"), harness.Exit{Code: 255}},
		{"an absolute path", []string{"/bin/busybox", "echo", "abs"}, harness.Exit{Stdout: "abs\n"}},
		{"killed by itself", harness.Sh("exec 2>/dev/null", "sh -c 'kill -9 $$'", "echo $?"), harness.Exit{Stdout: "137\n"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := start(t).Container(test.args).Finish(); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestALotOfOutputArrivesWhole(t *testing.T) {
	got := start(t).Container(harness.Sh("yes 0123456789abcde | head -n 200000")).Finish()
	if want := strings.Repeat("0123456789abcde\n", 200000); got.Stdout != want {
		t.Errorf("%d bytes arrived of %d", len(got.Stdout), len(want))
	}
}

func TestStdinIsReadToItsEnd(t *testing.T) {
	e := start(t)
	c := e.Container([]string{"cat"})
	c.IO.In = strings.NewReader("line one\nline two\n")
	c.Run()
	e.Must(c.Task.CloseIO(e.Ctx, client.WithStdinCloser), "close stdin")
	if got := c.Wait(); got.Stdout != "line one\nline two\n" || got.Code != 0 {
		t.Errorf("got %+v", got)
	}
	c.Delete()
}

func TestTheStateAfterEachStepIsWhatItShouldBe(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep())
	expect := func(want client.ProcessStatus) {
		t.Helper()
		if got := c.Status(); got != want {
			t.Errorf("state is %q, want %q", got, want)
		}
	}
	c.Create()
	expect(client.Created)
	if c.Task.Pid() == 0 {
		t.Error("a created task has no pid")
	}
	c.Start()
	expect(client.Running)
	if err := c.Task.Start(e.Ctx); err == nil {
		t.Error("a running task was started again")
	}
	c.Kill(syscall.SIGKILL)
	if exit := c.Wait(); exit.Code != 137 {
		t.Errorf("exit code %d, want 137", exit.Code)
	}
	expect(client.Stopped)
	if err := c.Task.Kill(e.Ctx, syscall.SIGKILL); !errdefs.IsNotFound(err) {
		t.Errorf("kill of a stopped task: %v, want not found", err)
	}
	if st := c.Delete(); st.ExitCode() != 137 || time.Since(st.ExitTime()) > time.Minute {
		t.Errorf("delete answers %+v", st)
	}
	if _, err := c.Container.Task(e.Ctx, nil); !errdefs.IsNotFound(err) {
		t.Errorf("task after its delete: %v, want not found", err)
	}
}

func TestARunningTaskIsNotDeleted(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	if _, err := c.Task.Delete(e.Ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete: %v, want failed precondition", err)
	}
	// The client refuses by itself; the shim must too.
	if err := deleteRaw(e, c.ID()); err == nil || !peer() && !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete by the service: %v, want failed precondition", err)
	}
	if got := c.Status(); got != client.Running {
		t.Errorf("state after that is %q", got)
	}
}

func TestACreatedTaskIsDeletedWithoutHavingRun(t *testing.T) {
	e := start(t)
	c := e.Container([]string{"echo", "never"})
	c.Create()
	c.Kill(syscall.SIGKILL)
	if got := c.Wait(); got.Stdout != "" {
		t.Errorf("it ran: %q", got.Stdout)
	}
	c.Delete()
}

func TestATaskIsMadeAgainAfterItsDelete(t *testing.T) {
	c := start(t).Container([]string{"echo", "again"})
	for range 3 {
		c.IO = harness.IO{}
		if got := c.Finish(); got.Stdout != "again\n" {
			t.Fatalf("got %+v", got)
		}
	}
}

func TestSignalsReachTheProcess(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		sig  syscall.Signal
		code uint32
	}{
		{"SIGTERM that is handled", harness.Sh("trap 'exit 7' TERM", "echo up", "while :; do sleep 1; done"), syscall.SIGTERM, 7},
		{"SIGUSR1 that is handled", harness.Sh("trap 'exit 9' USR1", "echo up", "while :; do sleep 1; done"), syscall.SIGUSR1, 9},
		{"SIGKILL", harness.Sh("echo up", "sleep 3600"), syscall.SIGKILL, 137},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			c := e.Container(test.args).Run()
			e.Eventually("it says it is up", func() bool { return c.IO.Stdout.String() == "up\n" })
			c.Kill(test.sig)
			if got := c.Wait(); got.Code != test.code {
				t.Errorf("exit code %d, want %d", got.Code, test.code)
			}
			c.Delete()
		})
	}
}

func TestSixteenLifecyclesInParallel(t *testing.T) {
	e := start(t)
	var wg sync.WaitGroup
	for i := range 16 {
		c := e.Container(harness.Sh(fmt.Sprintf("echo number %d", i), fmt.Sprintf("exit %d", i)))
		wg.Go(func() {
			if err := lifecycle(e, c, fmt.Sprintf("number %d\n", i), uint32(i)); err != nil {
				t.Errorf("container %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// lifecycle is Finish for other goroutines than the test's own.
func lifecycle(e *harness.Env, c *harness.Container, out string, code uint32) error {
	ctx, cancel := context.WithTimeout(e.Ctx, 2*harness.Patience)
	defer cancel()
	var stdout, stderr harness.Buffer
	task, err := c.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, &stdout, &stderr), cio.WithFIFODir(e.FIFOs())))
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	exit, err := task.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	if err := task.Start(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	st := <-exit
	if st.Error() != nil {
		return fmt.Errorf("exit: %w", st.Error())
	}
	if _, err := task.Delete(ctx); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if got := stdout.String(); got != out || st.ExitCode() != code {
		return fmt.Errorf("got %q and exit code %d, want %q and %d (stderr %q)", got, st.ExitCode(), out, code, stderr.String())
	}
	return nil
}

func TestALoggerOfAFileGetsTheOutput(t *testing.T) {
	e := start(t)
	path := e.TempDir() + "/log"
	script, want := []string{"echo one", "echo two"}, "one\ntwo\n"
	if !peer() {
		// runc's shim copies the two streams, in no order, and may lose an end.
		script, want = append(script, "echo three >&2", "echo four"), want+"three\nfour\n"
	}
	c := e.Container(harness.Sh(script...))
	c.IO.Creator = cio.LogFile(path)
	if got := c.Finish(); got.Code != 0 {
		t.Fatalf("got %+v", got)
	}
	data, err := os.ReadFile(path)
	e.Must(err, "read the log")
	if got := string(data); got != want {
		t.Errorf("the log has %q", got)
	}
}

func TestALoggerProgramGetsTheOutput(t *testing.T) {
	e := start(t)
	dir := e.TempDir()
	// A logger reads stdout and stderr as fds 3 and 4, and closes 5 when it is
	// ready; it ends when both do.
	script := "#!/bin/busybox sh\n" +
		"echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $1 $2\" >" + dir + "/env\n" +
		"exec 5>&-\ncat <&3 >" + dir + "/out &\ncat <&4 >" + dir + "/err &\nwait\n"
	e.Must(os.WriteFile(dir+"/logger", []byte(script), 0o755), "write logger")
	c := e.Container(harness.Sh("echo to stdout", "echo to stderr >&2"))
	c.IO.Creator = cio.BinaryIO(dir+"/logger", map[string]string{"key": "value"})
	if got := c.Finish(); got.Code != 0 {
		t.Fatalf("got %+v", got)
	}
	for file, want := range map[string]string{"out": "to stdout\n", "err": "to stderr\n",
		"env": c.ID() + " " + e.Namespace + " key value\n"} {
		e.Eventually(file+" of the logger has "+want, func() bool {
			data, _ := os.ReadFile(dir + "/" + file)
			return string(data) == want
		})
	}
}
