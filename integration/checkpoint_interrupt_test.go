package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/rsys-io/rsys/integration/harness"
)

// stopCriu stops a criu that has begun to write pages, and tells its PID; 0 if the dump is over before.
func stopCriu(e *harness.Env, done <-chan error) int {
	e.Helper()
	criu := 0
	for deadline := time.Now().Add(harness.Patience); time.Now().Before(deadline); {
		if len(done) > 0 {
			return 0
		}
		if criu == 0 {
			criu = atWork()
			continue
		}
		if pages, _ := filepath.Glob(e.Temp() + "/ctrd-checkpoint*/pages-*.img"); len(pages) > 0 {
			syscall.Kill(criu, syscall.SIGSTOP)
			return criu
		}
		time.Sleep(200 * time.Microsecond)
	}
	e.Fatal("criu writes no pages")
	return 0
}

// atWork is the PID of a criu, 0 if there is none. What it has forked has its command line, too.
func atWork() (pid int) {
	for _, p := range harness.Descendants() {
		if strings.Contains(p.Cmdline, "swrk") && (pid == 0 || p.Pid < pid) {
			pid = p.Pid
		}
	}
	return pid
}

// A checkpoint that is interrupted leaves nothing, and the container as it was: running, or paused.
func TestAnInterruptedCheckpoint(t *testing.T) {
	needCriu(t)
	for _, tc := range []struct {
		name      string
		paused    bool
		interrupt func(e *harness.Env, criu int, cancel func())
	}{
		{"criu is killed", false, func(e *harness.Env, criu int, _ func()) { syscall.Kill(criu, syscall.SIGKILL) }},
		{"criu is killed, the container was paused", true, func(e *harness.Env, criu int, _ func()) { syscall.Kill(criu, syscall.SIGKILL) }},
		{"the client gives up", false, func(_ *harness.Env, _ int, cancel func()) { cancel() }},
		{"the shim is killed", false, func(e *harness.Env, _ int, _ func()) { syscall.Kill(shims(e)[0], syscall.SIGKILL) }},
		{"containerd is killed", false, func(e *harness.Env, _ int, _ func()) { e.Kill() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := start(t)
			killed := strings.HasPrefix(tc.name, "containerd")
			if killed {
				e.MayLeave("directory " + e.Temp() + "/ctrd-checkpoint") // containerd's, empty
			}
			// Some memory, so that there is a middle.
			c := e.Container(harness.Sh("x=$(head -c 4000000 /dev/zero | tr '\\0' x)", "i=0", "while :; do i=$((i+1)); echo $i ${#x}; sleep 0.1; done"))
			out := filepath.Join(t.TempDir(), "out")
			c.IO.Creator = cio.LogFile(out)
			count := func() int { data, _ := os.ReadFile(out); return strings.Count(string(data), " 4000000\n") }
			c.Run()
			e.Eventually("it counts", func() bool { return count() > 2 })
			interrupted := false
			for range 5 {
				if tc.paused {
					e.Must(c.Task.Pause(e.Ctx), "pause")
				}
				ctx, cancel := context.WithCancel(e.Ctx)
				done := make(chan error, 1)
				go func() {
					_, err := e.Client.TaskService().Checkpoint(ctx, &tasks.CheckpointTaskRequest{ContainerID: c.ID()})
					done <- err
				}()
				if pid := stopCriu(e, done); pid != 0 {
					tc.interrupt(e, pid, cancel)
					time.Sleep(100 * time.Millisecond) // until the shim knows
					syscall.Kill(pid, syscall.SIGCONT)
				}
				err := <-done
				cancel()
				// A checkpoint that was over before is told by containerd to be there already, when it is made again.
				if interrupted = err != nil && !strings.Contains(err.Error(), "already exists"); interrupted {
					t.Log(err)
					break
				}
				if tc.paused {
					e.Must(c.Task.Resume(e.Ctx), "resume")
				}
			}
			if !interrupted {
				t.Fatal("no checkpoint was interrupted")
			}
			if killed {
				e.Must(e.Run(), "run containerd again")
				record, err := e.Client.LoadContainer(e.Ctx, c.ID())
				e.Must(err, "load")
				c.Task, err = record.Task(e.Ctx, nil)
				e.Must(err, "task")
			}
			e.Eventually("criu has ended", func() bool { return atWork() == 0 })
			if strings.HasPrefix(tc.name, "the shim") {
				c.DeleteOfDeadShim() // containerd has its containers killed
				return
			}
			if tc.paused {
				if s := c.Status(); s != client.Paused {
					t.Errorf("it is %s", s)
				}
				n := count()
				time.Sleep(500 * time.Millisecond)
				if count() != n {
					t.Error("a paused container runs")
				}
				e.Must(c.Task.Resume(e.Ctx), "resume")
			}
			n := count()
			e.Eventually("it goes on", func() bool { return count() > n+3 })
			if s := c.Status(); s != client.Running {
				t.Errorf("it is %s", s)
			}
			if files, _ := filepath.Glob(e.Temp() + "/ctrd-checkpoint*/*"); len(files) > 0 {
				t.Errorf("images are left: %q", files)
			}
			if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Task.Pid())); err != nil || !strings.Contains(string(status), "TracerPid:\t0\n") {
				t.Errorf("it is traced: %s %v", status, err)
			}
			exits, err := c.Task.Wait(e.Ctx)
			e.Must(err, "wait")
			e.Must(c.Task.Kill(e.Ctx, syscall.SIGKILL), "kill")
			<-exits
			_, err = c.Task.Delete(e.Ctx)
			e.Must(err, "delete")
			c.Task = nil
		})
	}
}
