package integration

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/rsys-io/rsys/integration/harness"
)

// restart kills containerd, does something meanwhile, and starts it again.
func restart(e *harness.Env, meanwhile func()) {
	e.Helper()
	e.Daemon.Kill()
	if meanwhile != nil {
		meanwhile()
	}
	e.Must(e.Daemon.Run(), "start containerd again")
}

// reload gets a container's task again after a restart.
func reload(e *harness.Env, c *harness.Container) client.Task {
	e.Helper()
	record, err := e.Client.LoadContainer(e.Ctx, c.ID())
	e.Must(err, "load %s", c.ID())
	task, err := record.Task(e.Ctx, nil)
	e.Must(err, "the task of %s after the restart", c.ID())
	c.Container = record
	return task
}

func await(e *harness.Env, ch <-chan client.ExitStatus) client.ExitStatus {
	e.Helper()
	select {
	case st := <-ch:
		return st
	case <-time.After(harness.Patience):
		e.Fatal("Wait does not answer")
		panic("not reached")
	}
}

func TestContainersLiveThroughARestartOfContainerd(t *testing.T) {
	e := start(t)
	// Its output goes to a file, as nobody reads fifos of a client that is
	// gone with the daemon's connection.
	log := t.TempDir() + "/log"
	c := e.Container(harness.Sh("trap 'echo bye; exit 3' TERM", "echo up", "while :; do sleep 0.1; done"))
	c.IO.Creator = cio.LogFile(log)
	c.Run()
	pid := c.Task.Pid()
	e.Eventually("it is up", func() bool { data, _ := os.ReadFile(log); return string(data) == "up\n" })
	restart(e, nil)
	task := reload(e, c)
	if task.Pid() != pid {
		t.Errorf("its pid is %d, was %d", task.Pid(), pid)
	}
	st, err := task.Status(e.Ctx)
	e.Must(err, "status")
	if st.Status != client.Running {
		t.Errorf("it is %q", st.Status)
	}
	exit, err := task.Wait(e.Ctx)
	e.Must(err, "wait")
	c.Task = task
	if got := c.RunExec("echo", "hello"); got.Stdout != "hello\n" {
		t.Errorf("an exec after the restart: %+v", got)
	}
	e.Must(task.Kill(e.Ctx, syscall.SIGTERM), "kill")
	if st := await(e, exit); st.ExitCode() != 3 {
		t.Errorf("exit code %d, want 3", st.ExitCode())
	}
	c.Delete()
	if data, _ := os.ReadFile(log); string(data) != "up\nbye\n" {
		t.Errorf("the log has %q", data)
	}
}

func TestAnExitWhileContainerdIsAwayIsNotLost(t *testing.T) {
	if peer() {
		t.Skip("containerd removes a task on its restart whose Pids are none, and runc's shim says so of a stopped one")
	}
	e := start(t)
	c := e.Container(harness.Sh("sleep 3600; exit 1"))
	c.IO.Creator = cio.NullIO
	c.Run()
	pid := int(c.Task.Pid())
	restart(e, func() {
		e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill the container's process")
		e.Eventually("it is gone", func() bool {
			p, ok := harness.ReadProc(pid)
			return !ok || p.State == "Z"
		})
	})
	task := reload(e, c)
	exit, err := task.Wait(e.Ctx)
	e.Must(err, "wait")
	if st := await(e, exit); st.ExitCode() != 137 || st.Error() != nil {
		t.Errorf("exit is %d, %v; want 137", st.ExitCode(), st.Error())
	}
	st, err := task.Delete(e.Ctx)
	e.Must(err, "delete")
	if st.ExitCode() != 137 {
		t.Errorf("delete answers %d, want 137", st.ExitCode())
	}
}

func TestACreatedContainerStartsAfterARestartOfContainerd(t *testing.T) {
	e := start(t)
	log := t.TempDir() + "/log"
	c := e.Container([]string{"echo", "started"})
	c.IO.Creator = cio.LogFile(log)
	c.Create()
	restart(e, nil)
	task := reload(e, c)
	exit, err := task.Wait(e.Ctx)
	e.Must(err, "wait")
	e.Must(task.Start(e.Ctx), "start")
	if st := await(e, exit); st.ExitCode() != 0 {
		t.Errorf("exit code %d", st.ExitCode())
	}
	_, err = task.Delete(e.Ctx)
	e.Must(err, "delete")
	if data, _ := os.ReadFile(log); string(data) != "started\n" {
		t.Errorf("the log has %q", data)
	}
}

// shims are the shim processes: what runs containerd-shim-*, is not a child of
// one, and is not on an errand of containerd's (the verbs start and delete).
func shims(e *harness.Env) []int {
	var pids []int
	for _, p := range harness.Descendants() {
		errand := strings.HasSuffix(p.Cmdline, " start") || strings.HasSuffix(p.Cmdline, " delete")
		if !errand && strings.HasPrefix(harness.ExeOf(p.Pid), "containerd-shim") && !strings.HasPrefix(harness.ExeOf(p.Parent), "containerd-shim") {
			pids = append(pids, p.Pid)
		}
	}
	return pids
}

func TestAShimThatIsKilledLeavesNothing(t *testing.T) {
	for _, test := range []struct {
		name  string
		reach func(c *harness.Container)
	}{
		{"after create", func(c *harness.Container) { c.Create() }},
		{"after start", func(c *harness.Container) { c.Run() }},
		{"with an exec added", func(c *harness.Container) {
			c.Run()
			c.Exec(nil, c.Process([]string{"true"}))
		}},
		{"with an exec running", func(c *harness.Container) {
			c.Run()
			c.Exec(nil, c.Process([]string{"sleep", "3600"})).StartExec()
		}},
		{"while paused", func(c *harness.Container) {
			c.Run()
			c.Must(c.Task.Pause(c.Ctx), "pause")
		}},
		{"after the exit", func(c *harness.Container) {
			c.Run()
			c.Kill(syscall.SIGKILL)
			c.Wait()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if peer() && test.name == "while paused" {
				t.Skip("runc delete --force does not end a frozen container on cgroup v1")
			}
			e := startToKill(t)
			c := e.Container(harness.Sleep())
			test.reach(c)
			pids := shims(e)
			if len(pids) != 1 {
				t.Fatalf("there are %d shims: %v", len(pids), pids)
			}
			init := int(c.Task.Pid())
			e.Must(syscall.Kill(pids[0], syscall.SIGKILL), "kill the shim")
			e.Eventually("the container's process is gone", func() bool {
				p, ok := harness.ReadProc(init)
				return !ok || p.State == "Z"
			})
			c.DeleteOfDeadShim()
		})
	}
}

func TestAShimThatIsKilledDuringCreateOrStartLeavesNothing(t *testing.T) {
	for _, after := range []time.Duration{0, 2, 5, 10, 15, 20, 30, 50, 80} {
		after *= time.Millisecond
		t.Run(after.String(), func(t *testing.T) {
			e := startToKill(t)
			c := e.Container([]string{"sleep", "3600"})
			done := make(chan error, 1)
			go func() {
				err := c.TryCreate()
				if err == nil {
					err = c.Task.Start(e.Ctx)
				}
				done <- err
			}()
			var pids []int
			e.Eventually("there is a shim", func() bool { pids = shims(e); return len(pids) > 0 || len(done) > 0 })
			time.Sleep(after)
			for _, pid := range shims(e) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			select {
			case err := <-done:
				// A shim that was killed between the answer of its start and containerd's connecting to it is one that containerd 1.7
				// and 2.4 do not ask to be deleted: binary.Start returns makeConnection's error, startShim that as "start failed", and only
				// the bundle is removed. The socket then stays until the next start of the same ID.
				if err != nil && c.Task == nil && strings.Contains(err.Error(), "start failed") {
					t.Logf("create: %v", err)
					e.MayLeave("socket /run/containerd/s/")
				}
			case <-time.After(harness.Patience):
				t.Fatal("create or start hangs")
			}
			e.Eventually("the task can be deleted", func() bool {
				task, err := c.Container.Task(e.Ctx, nil)
				if err != nil {
					return true
				}
				_, err = task.Delete(e.Ctx, client.WithProcessKill)
				return err == nil
			})
			if c.Task != nil {
				c.Task.IO().Cancel()
				c.Task.IO().Close()
				c.Task = nil
			}
		})
	}
}

func TestShimAndContainerdKilledTogetherLeaveNothing(t *testing.T) {
	e := startToKill(t)
	c := e.Container(harness.Sleep())
	c.IO.Creator = cio.NullIO
	c.Run()
	pids := shims(e)
	init := int(c.Task.Pid())
	restart(e, func() {
		for _, pid := range pids {
			e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill the shim")
		}
	})
	// The daemon finds the bundle without a shim and has it cleaned.
	e.Eventually("the container's process is gone", func() bool {
		p, ok := harness.ReadProc(init)
		return !ok || p.State == "Z"
	})
	record, err := e.Client.LoadContainer(e.Ctx, c.ID())
	e.Must(err, "load the container")
	if task, err := record.Task(e.Ctx, nil); err == nil {
		if _, err := task.Delete(e.Ctx, client.WithProcessKill); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	c.Task = nil
}

func TestACreateThatFailsIsUndoneWhole(t *testing.T) {
	for _, test := range []struct {
		name string
		opt  func(*harness.Env) error
	}{
		{"a mount whose source is missing", func(e *harness.Env) error {
			return e.Container([]string{"true"}, withMount("/no/such/source", "/mnt", "bind", "rbind")).TryCreate()
		}},
		{"a file system that is unknown", func(e *harness.Env) error {
			return e.Container([]string{"true"}, withMount("none", "/mnt", "nosuchfs")).TryCreate()
		}},
		{"a namespace whose path is missing", func(e *harness.Env) error {
			return e.Container([]string{"true"}, joining("network", "/no/such/ns")).TryCreate()
		}},
		{"a namespace that is of another type", func(e *harness.Env) error {
			return e.Container([]string{"true"}, joining("network", "/proc/self/ns/uts")).TryCreate()
		}},
		{"a sysctl that is unknown", func(e *harness.Env) error {
			return e.Container([]string{"true"}, withSysctl("net.no.such", "1")).TryCreate()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			if err := test.opt(e); err == nil {
				t.Error("it was created")
			} else if strings.Contains(err.Error(), "exit status") && !peer() {
				t.Errorf("the error says nothing: %v", err)
			}
		})
	}
}

func TestShimsOfOtherContainersLiveWhenOneIsKilled(t *testing.T) {
	e := startToKill(t)
	one, two := e.Container(harness.Sleep()), e.Container(harness.Sleep())
	one.Run()
	before := shims(e)
	two.Run()
	for _, pid := range shims(e) {
		if !slices.Contains(before, pid) {
			e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill the second shim")
		}
	}
	e.Eventually("the second task is gone or stopped", func() bool {
		task, err := two.Container.Task(e.Ctx, nil)
		if err != nil {
			return true
		}
		_, err = task.Delete(e.Ctx)
		return err == nil
	})
	two.Task.IO().Cancel()
	two.Task.IO().Close()
	two.Task = nil
	if got := one.RunExec("echo", "alive"); got.Stdout != "alive\n" {
		t.Errorf("an exec in the other: %+v", got)
	}
}

// startToKill begins a test that kills shims.
func startToKill(t *testing.T) *harness.Env {
	t.Helper()
	e := start(t)
	if peer() {
		e.MayLeave("socket /run/containerd/s/") // runc's shim removes it only when it ends well
		e.MayLeave("cgroup ")                   // its delete does not know those of a create that was not done
	}
	return e
}
