package cri

import (
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

// startStreamed begins a test with a pod whose containers' streams containerd opens at the shim. CRI knows the address of a sandbox's shim, so
// there is no pause container.
func startStreamed(t *testing.T) *harness.Pod {
	t.Helper()
	p := startPauseless(t)
	p.Handler = streamed
	return p.Run()
}

func TestLogsAreWholeWithStreamsOfTheShim(t *testing.T) {
	p := startStreamed(t)
	c := p.Container(harness.Sh("yes 'a line of some length, as programs write them to a log' | head -n 100000", "echo to stderr >&2", "exit 7")...)
	if st := c.Wait(); st.ExitCode != 7 {
		t.Errorf("it ended with %v", st)
	}
	if got := strings.Count(c.Output("stdout"), "a line of some length, as programs write them to a log\n"); got != 100000 {
		t.Errorf("%d lines of 100000", got)
	}
	if got := c.Output("stderr"); got != "to stderr\n" {
		t.Errorf("stderr: %q", got)
	}
}

func TestExecProbesWithStreamsOfTheShim(t *testing.T) {
	p := startStreamed(t)
	c := p.Container(harness.Sleep()...)
	for _, test := range []struct {
		script string
		want   harness.Exit
	}{
		{"echo out; echo err >&2; exit 3", harness.Exit{Code: 3, Stdout: "out\n", Stderr: "err\n"}},
		{"head -c 1000000 /dev/zero | tr '\\0' x", harness.Exit{Stdout: strings.Repeat("x", 1000000)}},
	} {
		if got, err := c.Exec(20*time.Second, harness.Sh(test.script)...); err != nil || got != test.want {
			t.Errorf("%s: exit %d, %d bytes, stderr %q, %v", test.script, got.Code, len(got.Stdout), got.Stderr, err)
		}
	}
	if _, err := c.Exec(time.Second, "sleep", "3595"); err == nil {
		t.Error("no error after the timeout")
	}
	if got := c.Sh("ps -o args | grep -c '[s]leep 3595'; true"); got != "0" {
		t.Errorf("%s processes are left", got)
	}
}

func TestExecAndAttachWithStreamsOfTheShim(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *harness.Pod){
		"exec":                     func(t *testing.T, p *harness.Pod) { execStreams(t, p, bySPDY) },
		"exec, to the input's end": func(t *testing.T, p *harness.Pod) { endOfInput(t, p, p.Container(harness.Sleep()...)) },
		"exec with a terminal":     func(t *testing.T, p *harness.Pod) { execWithATerminal(t, p, bySPDY) },
		"attach":                   attach,
		"attach to a terminal":     func(t *testing.T, p *harness.Pod) { attachToATerminal(t, p, bySPDY) },
	} {
		t.Run(name, func(t *testing.T) { test(t, startStreamed(t)) })
	}
}

// What was sent to the containerd that was killed and not written is lost, a line in part perhaps. What comes after is not.
func TestALogGoesOnWithStreamsOfTheShimWhenContainerdIsBack(t *testing.T) {
	p := startStreamed(t)
	c := p.Container(harness.Sh("trap 'echo last words; exit 6' TERM", "i=0", "while :; do i=$((i+1)); echo line $i; sleep 0.05; done")...)
	p.Eventually("it writes", func() bool { return len(c.Log()) > 2 })
	p.Daemon.Kill()
	p.Must(p.Daemon.Run(), "containerd again")
	p.Eventually("CRI knows the container", func() bool {
		st, err := p.CRI.ContainerStatus(p.Ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
		return err == nil && st.Status.State == runtimeapi.ContainerState_CONTAINER_RUNNING
	})
	seen := len(c.Log())
	p.Eventually("the log goes on", func() bool { return len(c.Log()) > seen+5 })
	c.Stop(10 * time.Second)
	if st := c.Wait(); st.ExitCode != 6 {
		t.Errorf("it ended with %v", st)
	}
	if out := c.Output("stdout"); !strings.HasSuffix(out, "last words\n") {
		t.Errorf("the log ends with %q", out[max(0, len(out)-100):])
	}
}
