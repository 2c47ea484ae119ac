package cri

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestAnExecProbe(t *testing.T) {
	p := start(t).Run()
	c := p.Container(harness.Sleep()...)
	for _, test := range []struct {
		script string
		want   harness.Exit
	}{
		{"echo out; echo err >&2", harness.Exit{Code: 0, Stdout: "out\n", Stderr: "err\n"}},
		{"exit 3", harness.Exit{Code: 3}},
		{"kill -KILL $$", harness.Exit{Code: 137}},
		{"head -c 100000 /dev/zero | tr '\\0' x", harness.Exit{Stdout: strings.Repeat("x", 100000)}},
	} {
		if got, err := c.Exec(10*time.Second, harness.Sh(test.script)...); err != nil || got != test.want {
			t.Errorf("%s: %.200q, %v", test.script, fmt.Sprint(got), err)
		}
	}
	_, err := c.Exec(10*time.Second, "no-such-program")
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a program that is not there: %v", err)
	}
	c.Stop(0)
	if _, err := c.Exec(10*time.Second, "true"); err == nil {
		t.Error("an exec in a container that has ended")
	}
}

func TestAnExecProbesTimeoutKillsItsProcess(t *testing.T) {
	for name, script := range map[string]string{
		"one that sleeps":         "exec sleep 3591",
		"one that ignores a TERM": "trap '' TERM; while :; do : 3591; done",
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t).Run()
			c := p.Container(harness.Sleep()...)
			began := time.Now()
			_, err := c.Exec(time.Second, harness.Sh(script)...)
			if status.Code(err) != codes.DeadlineExceeded && (err == nil || !strings.Contains(err.Error(), "timeout")) {
				t.Errorf("the error is %v", err)
			}
			if took := time.Since(began); took < time.Second || took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
			if got := c.Sh("ps -o args | grep -v grep | grep 3591; true"); got != "" {
				t.Errorf("it still runs: %q", got)
			}
			if got := c.Sh("echo lives"); got != "lives" {
				t.Errorf("the container: %q", got)
			}
		})
	}
}

// The child is not CRI's to kill: it is the container's. What must not be is that its hold on the output holds up the probe: CRI
// waits for the time that it is configured to, and then deletes the exec, with which the output ends.
func TestAnExecProbeIsNotHeldUpByAChildThatKeepsItsOutput(t *testing.T) {
	for _, test := range []struct {
		name, script string
		timeout      time.Duration
		least        time.Duration
		want         string
	}{
		{"of a process that has ended", "sleep 3593 & echo done", 20 * time.Second, harness.DrainTimeout, "io is still held by other processes"},
		{"of a process that was killed at the timeout", "sleep 3593 & exec sleep 3594", time.Second, time.Second + harness.DrainTimeout, "timeout"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := startWithRelay(t)
			c := p.Container(harness.Sleep()...)
			began := time.Now()
			got, err := c.Exec(test.timeout, harness.Sh(test.script)...)
			if took := time.Since(began); took < test.least || took > test.least+15*time.Second {
				t.Errorf("it took %v", took)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) && status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%+v, the error is %v", got, err)
			}
			if got := c.Sh("ps -o args | grep -c '[s]leep 359'"); got != "1" {
				t.Errorf("%s of the processes are left, one is the child", got)
			}
			if got := c.Sh("echo lives"); got != "lives" {
				t.Errorf("the container: %q", got)
			}
		})
	}
}

// startWithRelay begins a test with a pod whose output goes through the shim. With fifos under rsys the child has containerd's fifo
// itself, and nothing but its own end makes that end.
func startWithRelay(t *testing.T) *harness.Pod {
	t.Helper()
	if harness.Runtime() != "io.containerd.rsys.v1" {
		return start(t).Run()
	}
	return startStreamed(t)
}
