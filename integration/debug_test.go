package integration

import (
	"os"
	"os/exec"
	"path/filepath"
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
