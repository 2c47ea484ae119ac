package cri

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestAContainersEndIsTold(t *testing.T) {
	p := start(t).Run()
	for _, test := range []struct {
		script, reason string
		code           int32
	}{
		{"exit 0", "Completed", 0},
		{"exit 1", "Error", 1},
		{"exit 42", "Error", 42},
		{"sh -c 'kill -SEGV $$'; exit $?", "Error", 139},
		{"exec no-such-program", "Error", 127},
	} {
		c := p.Container(harness.Sh(test.script)...)
		st := c.Wait()
		if st.ExitCode != test.code || st.Reason != test.reason {
			t.Errorf("%s: exit code %d, reason %q", test.script, st.ExitCode, st.Reason)
		}
		// CRI takes the time of the start when it has the answer to it (StartContainer of containerd's container_start.go, under any
		// runtime), and that of the end from the shim: the start can be after the end.
		if st.StartedAt < st.CreatedAt || st.FinishedAt < st.CreatedAt {
			t.Errorf("%s: created at %d, started at %d, finished at %d", test.script, st.CreatedAt, st.StartedAt, st.FinishedAt)
		}
	}
}

func TestAContainersTimesAreInOrder(t *testing.T) {
	p := start(t).Run()
	before := time.Now().UnixNano()
	c := p.Container(harness.Sleep()...)
	running := c.Status() // so CRI has the time of the start
	killed := time.Now().UnixNano()
	c.Stop(0)
	st, after := c.Wait(), time.Now().UnixNano()
	for _, pair := range []struct {
		name         string
		first, later int64
	}{
		{"created after it was asked for", before, st.CreatedAt}, {"started after its creation", st.CreatedAt, st.StartedAt},
		{"the start's time does not change", running.StartedAt, st.StartedAt}, {"killed after its start", st.StartedAt, killed},
		{"finished after the kill", killed, st.FinishedAt}, {"finished before it was known", st.FinishedAt, after},
	} {
		if pair.first > pair.later || pair.first == 0 {
			t.Errorf("%s: %d, %d", pair.name, pair.first, pair.later)
		}
	}
}

func TestAContainerIsStartedAgainAsTheNextAttempt(t *testing.T) {
	p := start(t).Run()
	volume := t.TempDir()
	var last *harness.PodContainer
	for attempt := range uint32(3) {
		c := p.NewContainer(harness.Sh("echo again >> /volume/file; wc -l < /volume/file; exit 5")...)
		c.Config.Metadata = &runtimeapi.ContainerMetadata{Name: "app", Attempt: attempt}
		c.Config.LogPath = fmt.Sprintf("app/%d.log", attempt)
		p.Must(os.MkdirAll(filepath.Dir(c.LogFile()), 0o755), "directory of the logs")
		c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", HostPath: volume}}
		c.Run()
		if st := c.Wait(); st.ExitCode != 5 || st.Metadata.Attempt != attempt {
			t.Errorf("attempt %d: %v", attempt, st)
		}
		if got := c.Output("stdout"); got != itoa(int(attempt)+1)+"\n" {
			t.Errorf("attempt %d says %q", attempt, got)
		}
		// The kubelet keeps the last dead one.
		if last != nil {
			last.Remove()
		}
		last = c
	}
	again := p.NewContainer("true")
	again.Config.Metadata = last.Config.Metadata
	if err := again.TryCreate(); err == nil {
		t.Error("the same attempt is taken twice")
	}
	if got := shims(); len(got) != 1 {
		t.Errorf("%d shims", len(got))
	}
}

func TestAProgramThatIsNotThereIsAnErrorOfTheStart(t *testing.T) {
	p := start(t).Run()
	c := p.NewContainer("/no/such/program").Create()
	err := c.TryStart()
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("the error is %v", err)
	}
	// The kubelet tells by this code and reason.
	if st := c.Status(); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 128 || st.Reason != "StartError" {
		t.Errorf("the container: %v", st)
	}
	if got := p.Container("echo", "next").Wait(); got.ExitCode != 0 {
		t.Errorf("the next one: %v", got)
	}
}

func TestAStopIsSIGTERMThenSIGKILL(t *testing.T) {
	p := start(t).Run()
	t.Run("a container that heeds SIGTERM ends by itself", func(t *testing.T) {
		c := p.Container(harness.Sh("trap 'echo got TERM; exit 7' TERM", "echo ready", "while :; do sleep 0.1; done")...)
		p.Eventually("it is ready", func() bool { return strings.Contains(c.Output("stdout"), "ready") })
		began := time.Now()
		c.Stop(20 * time.Second)
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("the stop took %v", took)
		}
		if st := c.Wait(); st.ExitCode != 7 || !strings.Contains(c.Output("stdout"), "got TERM") {
			t.Errorf("exit code %d, output %q", st.ExitCode, c.Output("stdout"))
		}
	})
	t.Run("one that ignores it is killed after the timeout", func(t *testing.T) {
		c := p.Container(harness.Sh("trap 'echo got TERM' TERM", "echo ready", "while :; do sleep 0.1; done")...)
		p.Eventually("it is ready", func() bool { return strings.Contains(c.Output("stdout"), "ready") })
		began := time.Now()
		c.Stop(2 * time.Second)
		if took := time.Since(began); took < 2*time.Second || took > 20*time.Second {
			t.Errorf("the stop took %v", took)
		}
		if st := c.Wait(); st.ExitCode != 137 || !strings.Contains(c.Output("stdout"), "got TERM") {
			t.Errorf("exit code %d, output %q", st.ExitCode, c.Output("stdout"))
		}
	})
	t.Run("the container chooses its signal", func(t *testing.T) {
		if daemon.Old() {
			t.Skip("containerd 1.7 has no such field")
		}
		c := p.NewContainer(harness.Sh("trap 'echo got USR1; exit 3' USR1", "echo ready", "while :; do sleep 0.1; done")...)
		c.Config.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
		c.Run()
		p.Eventually("it is ready", func() bool { return strings.Contains(c.Output("stdout"), "ready") })
		c.Stop(20 * time.Second)
		if st := c.Wait(); st.ExitCode != 3 {
			t.Errorf("exit code %d, output %q", st.ExitCode, c.Output("stdout"))
		}
	})
	t.Run("the pod's stop ends its containers", func(t *testing.T) {
		c := p.Container(harness.Sleep()...)
		p.Stop()
		if st := c.Wait(); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("it is %v", st.State)
		}
		if st := p.Status().State; st != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("the pod is %v", st)
		}
	})
}

func TestAContainerThatEatsTooMuchIsOOMKilled(t *testing.T) {
	for _, test := range []struct {
		name, script string
		code         int32
	}{
		{"the process itself", "exec tail /dev/zero", 137},
		{"a child of it", "tail /dev/zero; exit 5", 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := start(t).Run()
			c := p.NewContainer(harness.Sh(test.script)...)
			c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}
			c.Run()
			st := c.Wait()
			if st.ExitCode != test.code || st.Reason != "OOMKilled" {
				t.Errorf("exit code %d, reason %q, want %d, OOMKilled", st.ExitCode, st.Reason, test.code)
			}
			// Not the other containers, nor a restart.
			if st := p.Container("true").Wait(); st.Reason != "Completed" {
				t.Errorf("the next one: %q", st.Reason)
			}
		})
	}
}

func TestAPodsEndIsSeenWithoutAQuestion(t *testing.T) {
	p := start(t).Run()
	ctx, cancel := context.WithCancel(p.Ctx)
	defer cancel()
	stream, err := p.CRI.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	p.Must(err, "events")
	events := make(chan *runtimeapi.ContainerEventResponse, 4096) // those of tests before come first, and containerd stops while they are not read
	go func() {
		defer close(events)
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			events <- e
		}
	}()
	time.Sleep(100 * time.Millisecond) // the subscription has no answer
	c := p.Container("true")
	c.Wait()
	c.Remove()
	var got []runtimeapi.ContainerEventType
	for len(got) < 4 {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("the events end after %v", got)
			}
			if e.ContainerId == c.ID {
				got = append(got, e.ContainerEventType)
			}
		case <-time.After(harness.Patience):
			t.Fatalf("only these events: %v", got)
		}
	}
	want := "[CONTAINER_CREATED_EVENT CONTAINER_STARTED_EVENT CONTAINER_STOPPED_EVENT CONTAINER_DELETED_EVENT]"
	if fmt.Sprint(got) != want {
		t.Errorf("events %v", got)
	}
}

func TestThePauseContainersDeathMakesThePodNotReady(t *testing.T) {
	p := start(t).Run()
	c := p.Container(harness.Sleep()...)
	proc, err := os.FindProcess(p.Pid())
	p.Must(err, "find")
	p.Must(proc.Kill(), "kill the pause container")
	p.Eventually("the pod is not ready", func() bool {
		return p.Status().State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
	if st := c.Status().State; st != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container, in a PID namespace of its own, is %v", st)
	}
}
