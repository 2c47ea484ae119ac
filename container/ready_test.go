package container

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func isDone(t *testing.T, r *Ready) int {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing gets ready")
	}
	if r.task == nil {
		t.Fatal("nothing is ready")
	}
	return r.task.Pid()
}

func gone(pid int) bool { return unix.Kill(pid, 0) == unix.ESRCH }

func TestWhatIsReadyBecomesTheExec(t *testing.T) {
	ctx := context.Background()
	c := sleeping(t, testRuntime(t), bundle(t))
	p := *c.spec.Process
	p.Args = []string{"echo", "hello"}
	r := c.Ready(ctx)
	pid := isDone(t, r)
	for _, name := range []string{"mnt", "net", "pid_for_children"} {
		got, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/" + name)
		want, wantErr := os.Readlink("/proc/" + strconv.Itoa(c.Init.Pid()) + "/ns/" + name)
		if err != nil || wantErr != nil || got != want {
			t.Errorf("namespace %s: %s, %v; the container's is %s, %v", name, got, err, want, wantErr)
		}
	}
	if ours, _ := os.Readlink("/proc/self/ns/pid"); ours == "" {
		t.Error("no PID namespace")
	} else if its, _ := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/pid"); its != ours {
		t.Errorf("it is itself in PID namespace %s, not in ours", its)
	}
	out := capture(t)
	ex, err := r.Exec(ctx, &p, Stdio{Stdout: out.w})
	if err != nil {
		t.Fatal(err)
	}
	defer ex.Close()
	if err := ex.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if ex.run != nil || r.task != nil || len(c.pending) != 0 {
		t.Error("it was not taken")
	}
	if got, code := out.text(), wait(t, ex); got != "hello\n" || code != 0 {
		t.Errorf("%q, exit %d", got, code)
	}
	if !gone(pid) {
		t.Error("it is still there")
	}
}

func TestWhatIsReadyAndNotUsedIsEnded(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *Container, *Ready)
	}{
		{"by its owner", func(_ *testing.T, _ *Container, r *Ready) { r.Close() }},
		{"with the process it was for", func(t *testing.T, c *Container, r *Ready) {
			ex, err := r.Exec(ctx, c.spec.Process, Stdio{})
			if err != nil {
				t.Fatal(err)
			}
			if err := ex.Close(); err != nil {
				t.Error(err)
			}
		}},
		{"with an exec that is refused", func(t *testing.T, c *Container, r *Ready) {
			p := *c.spec.Process
			p.Cwd = ""
			if _, err := r.Exec(ctx, &p, Stdio{}); err == nil {
				t.Error("an exec without a working directory")
			}
		}},
		{"with the container's init", func(t *testing.T, c *Container, _ *Ready) {
			c.Init.Signal(unix.SIGKILL)
			wait(t, c.Init)
			c.dropJoiner()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := sleeping(t, testRuntime(t), bundle(t))
			r := c.Ready(ctx)
			pid := isDone(t, r)
			tt.end(t, c, r)
			if !gone(pid) {
				t.Error("it is still there")
			}
			if len(c.pending) != 0 {
				t.Error("it is still kept")
			}
		})
	}
}

func TestAnExecDoesWithoutWhatWasReadyAndWasKilled(t *testing.T) {
	ctx := context.Background()
	c := sleeping(t, testRuntime(t), bundle(t))
	p := *c.spec.Process
	p.Args = []string{"sh", "-c", "exit 7"}
	r := c.Ready(ctx)
	pid := isDone(t, r)
	unix.Kill(pid, unix.SIGKILL)
	<-r.task.Child.Left()
	ex, err := r.Exec(ctx, &p, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	defer ex.Close()
	if err := ex.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if code := wait(t, ex); code != 7 {
		t.Errorf("exit %d", code)
	}
}
