package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rsys-io/rsys/integration/harness"
)

// ctr runs containerd's own client.
func ctr(e *harness.Env, args ...string) (string, error) {
	e.Helper()
	args = append([]string{"--address", e.Address(), "--namespace", e.Namespace}, args...)
	out, err := exec.Command(filepath.Join(e.Containerd, "ctr"), args...).CombinedOutput()
	return string(out), err
}

// commands are the lines of a page's blocks of code whose program, the first word, is one of those.
func commands(t *testing.T, page string, programs ...string) (lines []string) {
	t.Helper()
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	code := false
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "```") {
			code = !code
		} else if program, _, _ := strings.Cut(line, " "); code && slices.Contains(programs, program) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func TestTheCommandsOfTheDebuggingPageWork(t *testing.T) {
	if peer() {
		t.Skip("they are about our shim")
	}
	e := startTraced(t)
	c := e.Container(harness.Sleep()).Run()
	c.RunExec("true") // a joiner is there
	bundle := e.Bundle(c.ID())
	ids := shims(e)
	if len(ids) != 1 {
		t.Fatalf("there are %d shims", len(ids))
	}
	shim := strconv.Itoa(ids[0])
	socket, err := os.ReadFile(filepath.Join(bundle, "debug-address"))
	e.Must(err, "where the debug socket is")
	const bundles = "/run/containerd/io.containerd.runtime.v2.task" // where the machine's containerd has them, in our own /run
	e.Must(os.MkdirAll(filepath.Dir(bundles), 0o711), "make containerd's directory")
	e.Must(os.Symlink(filepath.Dir(filepath.Dir(bundle)), bundles), "link the bundles")
	t.Cleanup(func() { os.Remove(bundles) })
	// What stands for something in capitals.
	words := strings.NewReplacer("NAMESPACE", e.Namespace, "ID", c.ID(), "SHIM", shim, "SOCKET", strings.TrimPrefix(string(socket), "unix://"),
		"PID", strconv.Itoa(int(c.Task.Pid())), "seconds=10", "seconds=1")
	_, noCurl := exec.LookPath("curl")
	help, _ := ctr(e, "shim", "--help")
	// Left out are building, journalctl, and the call of the verb delete, which ends the container.
	lines := commands(t, "../docs/debugging.md", "containerd-shim-rsys-v1", "cat", "ctr", "ls", "pgrep", "grep", "kill", "curl")
	if len(lines) < 15 {
		t.Fatalf("the page has %q", lines)
	}
	for _, line := range lines {
		switch {
		case strings.HasPrefix(line, "ctr run"): // package faults
			continue
		case strings.HasPrefix(line, "curl") && noCurl != nil, strings.Contains(line, " pprof ") && !strings.Contains(help, "pprof"):
			t.Logf("not here: %s", line)
			continue
		}
		cmd := exec.CommandContext(e.Ctx, "sh", "-c", words.Replace(line))
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "PATH="+strings.Join(append(slices.Clone(e.Path), e.Containerd, os.Getenv("PATH")), ":"),
			"CONTAINERD_ADDRESS="+e.Address(), "CONTAINERD_NAMESPACE="+e.Namespace)
		out, err := cmd.CombinedOutput()
		if files, _ := filepath.Glob(filepath.Join(cmd.Dir, "*")); len(files) == 1 {
			more, _ := os.ReadFile(files[0])
			out = append(out, more...)
		}
		if err != nil || len(out) == 0 && !strings.HasPrefix(line, "kill") {
			t.Errorf("%s: %v: %.300q", line, err, out)
		}
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
}

func TestTheDebugSocketAnswersPprof(t *testing.T) {
	e := startTraced(t)
	if out, _ := ctr(e, "shim", "--help"); !strings.Contains(out, "pprof") {
		t.Skip("this containerd's ctr can't ask for it: it has no shim pprof")
	}
	c := e.Container(harness.Sleep()).Run()
	for _, test := range []struct {
		args []string
		want string // how it begins, or what is in it
	}{
		{[]string{"goroutines"}, "goroutine "},
		{[]string{"heap", "--debug", "1"}, "heap profile: "},
		{[]string{"threadcreate", "--debug", "1"}, "threadcreate profile: "},
		{[]string{"block", "--debug", "1"}, "--- contention:"},
		{[]string{"heap"}, "\x1f\x8b"}, // gzip of a protobuf
		{[]string{"profile", "--seconds", "1s"}, "\x1f\x8b"},
		{[]string{"trace", "--seconds", "1s"}, "go 1."},
	} {
		before := time.Now()
		out, err := ctr(e, append([]string{"shim", "--id", c.ID(), "pprof"}, test.args...)...)
		if err != nil || !strings.HasPrefix(out, test.want) {
			t.Errorf("%v: %v: %.200q", test.args, err, out)
		}
		if took := time.Since(before); took > 10*time.Second {
			t.Errorf("%v took %v", test.args, took)
		}
	}
	if data, err := os.ReadFile(filepath.Join(e.Bundle(c.ID()), "debug-address")); err != nil {
		t.Error(err)
	} else if out, err := exec.Command("stat", "-c", "%a %u", strings.TrimPrefix(string(data), "unix://")).Output(); string(out) != "600 0\n" {
		t.Errorf("the socket's mode and owner are %q, %v", out, err)
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete() // and the harness sees that the socket goes with the shim
}

func TestThereIsNoDebugSocketAtOtherLevels(t *testing.T) {
	if daemon.Debug {
		t.Skip("containerd's own level is debug")
	}
	e := startWith(t, nil)
	c := e.Container(harness.Sleep()).Run()
	if out, err := ctr(e, "shim", "--id", c.ID(), "pprof", "goroutines"); err == nil {
		t.Errorf("it answers: %.200q", out)
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
}

func TestTheDebugSocketOfAKilledShimIsRemoved(t *testing.T) {
	if peer() {
		t.Skip("the option is ours")
	}
	e := startToKill(t)
	e.RuntimeOptions = toml("LogLevel = 'debug'")
	t.Cleanup(func() { os.RemoveAll("/run/rsys") })
	c := e.Container(harness.Sleep()).Run()
	data, err := os.ReadFile(filepath.Join(e.Bundle(c.ID()), "debug-address"))
	e.Must(err, "where the debug socket is")
	socket := strings.TrimPrefix(string(data), "unix://")
	if !exists(socket) {
		t.Fatal("there is no debug socket")
	}
	for _, pid := range shims(e) {
		e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill the shim")
	}
	e.Eventually("the socket is gone", func() bool { return !exists(socket) })
	c.DeleteOfDeadShim()
}

func TestASignalHasTheStacksLogged(t *testing.T) {
	e := startWith(t, nil)
	c := e.Container(harness.Sleep()).Run()
	pids := shims(e)
	if len(pids) != 1 {
		t.Fatalf("there are %d shims", len(pids))
	}
	e.Must(syscall.Kill(pids[0], syscall.SIGUSR1), "signal the shim")
	e.Eventually("the stacks are in the log", func() bool {
		log := e.Daemon.Log(1 << 20)
		return strings.Contains(log, "goroutine 1 [") && strings.Contains(log, "shim.serve(") && strings.Contains(log, "the stacks end here")
	})
	// And it works on.
	if got := c.RunExec("echo", "here"); got.Stdout != "here\n" {
		t.Errorf("an exec: %+v", got)
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
}
