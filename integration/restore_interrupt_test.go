package integration

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/rsys-io/rsys/integration/harness"
)

// A restore that is interrupted leaves nothing, at whatever moment: also not what criu has made and would have to undo.
func TestAnInterruptedRestore(t *testing.T) {
	needCriu(t)
	for _, tc := range []struct {
		name      string
		interrupt func(e *harness.Env, criu int, cancel func())
	}{
		{"criu is killed", func(e *harness.Env, criu int, _ func()) { syscall.Kill(criu, syscall.SIGKILL) }},
		{"the shim is killed", func(e *harness.Env, _ int, _ func()) { syscall.Kill(shims(e)[0], syscall.SIGKILL) }},
		{"the client gives up", func(_ *harness.Env, _ int, cancel func()) { cancel() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := start(t)
			c := e.Container(harness.Sh("x=$(head -c 4000000 /dev/zero | tr '\\0' x)", "i=0", "while :; do i=$((i+1)); echo $i ${#x}; sleep 0.1; done"))
			c.Run()
			e.Eventually("it counts", func() bool { return strings.Contains(c.IO.Stdout.String(), "3 ") })
			img, err := checkpoint(c, &options.CheckpointOptions{Exit: true})
			e.Must(err, "checkpoint")
			c.Wait()
			c.Delete()
			interrupted := 0
			for at := time.Duration(0); at < 120*time.Millisecond; at += 8 * time.Millisecond {
				r := restore(e, c, img)
				e.Eventually("the shim before has ended", func() bool { return len(shims(e)) == 1 })
				ctx, cancel := context.WithCancel(e.Ctx)
				done := make(chan error, 1)
				go func() { done <- r.Task.Start(ctx) }()
				criu := 0
				for deadline := time.Now().Add(harness.Patience); criu == 0 && len(done) == 0 && time.Now().Before(deadline); {
					criu = atWork()
				}
				time.Sleep(at)
				over := criu == 0 || len(done) > 0
				if !over {
					syscall.Kill(criu, syscall.SIGSTOP)
					tc.interrupt(e, criu, cancel)
					time.Sleep(20 * time.Millisecond)
					syscall.Kill(criu, syscall.SIGCONT)
				}
				err := <-done
				cancel()
				t.Logf("after %v: %v", at, err)
				if strings.HasPrefix(tc.name, "the shim") && !over {
					r.DeleteOfDeadShim()
				} else {
					// A start that nobody waits for any more is carried out. Who asks for the state is answered after it.
					switch st := r.Status(); st {
					case client.Running:
						if err != nil && strings.HasPrefix(tc.name, "criu") {
							t.Error("it runs")
						}
						r.Kill(syscall.SIGKILL)
					case client.Stopped:
					default:
						t.Errorf("it is %s", st)
					}
					r.Wait()
					r.Delete()
				}
				var left []string
				for deadline := time.Now().Add(harness.Patience / 2); ; time.Sleep(20 * time.Millisecond) {
					left = nil
					for _, p := range harness.Descendants() {
						if p.Pid != e.Pid() {
							left = append(left, p.String())
						}
					}
					if left == nil || time.Now().After(deadline) {
						break
					}
				}
				if left != nil {
					t.Fatalf("left: %s", strings.Join(left, "; "))
				}
				if !over && err != nil {
					interrupted++
				}
			}
			if interrupted == 0 {
				t.Error("no restore was interrupted")
			}
			t.Log(interrupted, "were interrupted")
		})
	}
}
