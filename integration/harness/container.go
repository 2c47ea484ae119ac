package harness

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func killPid(pid int) error     { return unix.Kill(pid, unix.SIGKILL) }
func unmount(path string) error { return unix.Unmount(path, unix.MNT_DETACH) }

// refitSeccomp makes containerd's default profile again for the capabilities
// that the spec ended up with. Tests with a profile of their own have none of
// containerd's many rules, and are left alone.
func refitSeccomp(ctx context.Context, c oci.Client, r *containers.Container, s *oci.Spec) error {
	if s.Linux == nil || s.Linux.Seccomp == nil || len(s.Linux.Seccomp.Syscalls) < 3 {
		return nil
	}
	return seccomp.WithDefaultProfile()(ctx, c, r, s)
}

// Buffer is a buffer that can be read while it is written.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// IO is what a process reads and writes.
type IO struct {
	In             io.Reader // nil: no stdin
	Terminal       bool
	Creator        cio.Creator // in place of all else
	Stdout, Stderr Buffer
}

func (i *IO) creator(d *Daemon) cio.Creator {
	if i.Creator != nil {
		return i.Creator
	}
	opts := []cio.Opt{cio.WithStreams(i.In, &i.Stdout, &i.Stderr), cio.WithFIFODir(d.FIFOs())}
	if i.Terminal {
		opts = append(opts, cio.WithTerminal)
	}
	return cio.NewCreator(opts...)
}

// Exit is how a process ended.
type Exit struct {
	Code           uint32
	Stdout, Stderr string
}

// Container is a container and its task.
type Container struct {
	*Env
	client.Container
	IO   IO
	Task client.Task
	exit <-chan client.ExitStatus
}

// Create creates the task.
func (c *Container) Create(opts ...client.NewTaskOpts) {
	c.Helper()
	c.Must(c.TryCreate(opts...), "create %s", c.ID())
}

// TryCreate is Create with an error.
func (c *Container) TryCreate(opts ...client.NewTaskOpts) error {
	if Systemd() {
		opts = append([]client.NewTaskOpts{WithSystemdCgroup}, opts...)
	}
	task, err := c.NewTask(c.Ctx, c.IO.creator(c.Daemon), opts...)
	if err != nil {
		return err
	}
	c.Task = task
	c.exit, err = task.Wait(c.Ctx)
	return err
}

// Start starts the created task.
func (c *Container) Start() {
	c.Helper()
	c.Must(c.Task.Start(c.Ctx), "start %s", c.ID())
}

// Run creates and starts the task.
func (c *Container) Run() *Container {
	c.Helper()
	c.Create()
	c.Start()
	return c
}

// Wait waits for the task's end.
func (c *Container) Wait() Exit {
	c.Helper()
	return c.await(c.ID(), c.exit, c.Task.IO(), &c.IO)
}

func (e *Env) await(name string, exit <-chan client.ExitStatus, io cio.IO, streams *IO) Exit {
	e.Helper()
	select {
	case st := <-exit:
		e.Must(st.Error(), "wait for %s", name)
		done := make(chan struct{})
		go func() {
			if io != nil {
				io.Wait()
			}
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(Patience):
			e.Fatalf("%s has exited, but its output does not end; so far %q", name, streams.Stdout.String())
		}
		return Exit{st.ExitCode(), streams.Stdout.String(), streams.Stderr.String()}
	case <-time.After(Patience):
		e.Fatalf("%s does not exit; output so far %q, %q", name, streams.Stdout.String(), streams.Stderr.String())
	}
	panic("not reached")
}

// Kill sends a signal to the container's process.
func (c *Container) Kill(sig syscall.Signal, opts ...client.KillOpts) {
	c.Helper()
	c.Must(c.Task.Kill(c.Ctx, sig, opts...), "kill %s with %v", c.ID(), sig)
}

// Delete deletes the task, which has ended.
func (c *Container) Delete() *client.ExitStatus {
	c.Helper()
	st, err := c.Task.Delete(c.Ctx)
	c.Must(err, "delete task of %s", c.ID())
	c.Task = nil
	return st
}

// DeleteOfDeadShim deletes the task of a shim that was killed, as soon as containerd has noticed: then the task is stopped or
// gone, and can be deleted in either case.
func (c *Container) DeleteOfDeadShim() {
	c.Helper()
	var last error
	defer func() {
		if c.Failed() && last != nil {
			c.TB.Log("delete: ", last)
		}
	}()
	c.Eventually("the task can be deleted", func() bool {
		task, err := c.Container.Task(c.Ctx, nil)
		if err != nil {
			return true
		}
		_, last = task.Delete(c.Ctx)
		return last == nil
	})
	c.Task.IO().Cancel()
	c.Task.IO().Close()
	c.Task = nil
}

// Status is the task's.
func (c *Container) Status() client.ProcessStatus {
	c.Helper()
	st, err := c.Task.Status(c.Ctx)
	c.Must(err, "status of %s", c.ID())
	return st.Status
}

// Finish runs the container to its end and deletes the task.
func (c *Container) Finish() Exit {
	c.Helper()
	c.Run()
	exit := c.Wait()
	c.Delete()
	return exit
}

// remove is what the end of a test does.
func (c *Container) remove() {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Background(), 2*Patience)
	defer cancel()
	// By its name: the daemon may have been restarted, the task be another.
	record, err := c.Client.LoadContainer(ctx, c.ID())
	if err != nil {
		return // the test has removed it
	}
	if task, err := record.Task(ctx, nil); err == nil {
		if _, err := task.Delete(ctx, client.WithProcessKill); err != nil {
			c.Errorf("delete the task of %s at the end: %v", c.ID(), err)
		}
	}
	if err := record.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		c.Errorf("delete %s at the end: %v", c.ID(), err)
	}
	if c.Task != nil && c.Task.IO() != nil {
		c.Task.IO().Cancel()
		c.Task.IO().Close()
	}
}

// Exec is one more process in a container.
type Exec struct {
	*Container
	client.Process
	IO   IO
	exit <-chan client.ExitStatus
}

// Process makes a process spec from the container's own.
func (c *Container) Process(args []string, change ...func(*specs.Process)) *specs.Process {
	c.Helper()
	spec, err := c.Spec(c.Ctx)
	c.Must(err, "spec of %s", c.ID())
	p := *spec.Process
	p.Args, p.Terminal = args, false
	for _, f := range change {
		f(&p)
	}
	return &p
}

// Exec adds a process, not yet started.
func (c *Container) Exec(x *Exec, p *specs.Process) *Exec {
	c.Helper()
	if x == nil {
		x = &Exec{}
	}
	x.Container = c
	process, err := c.Task.Exec(c.Ctx, fmt.Sprintf("x%d", c.serial()), p, x.IO.creator(c.Daemon))
	c.Must(err, "exec %q in %s", p.Args, c.Container.ID())
	x.Process = process
	c.Cleanup(func() {
		if io := process.IO(); io != nil {
			io.Cancel()
			io.Close()
		}
	})
	x.exit, err = process.Wait(c.Ctx)
	c.Must(err, "wait for %q in %s", p.Args, c.Container.ID())
	return x
}

// StartExec starts it.
func (x *Exec) StartExec() *Exec {
	x.Helper()
	x.Must(x.Process.Start(x.Ctx), "start exec %s", x.Process.ID())
	return x
}

// WaitExec waits for its end, and deletes it.
func (x *Exec) WaitExec() Exit {
	x.Helper()
	exit := x.await("exec "+x.Process.ID(), x.exit, x.Process.IO(), &x.IO)
	_, err := x.Process.Delete(x.Ctx)
	x.Must(err, "delete exec %s", x.Process.ID())
	return exit
}

// RunExec runs a command in the container to its end.
func (c *Container) RunExec(args ...string) Exit {
	c.Helper()
	return c.Exec(nil, c.Process(args)).StartExec().WaitExec()
}

// Sh is the arguments of a shell that runs a script.
func Sh(lines ...string) []string { return []string{"sh", "-c", strings.Join(lines, "\n")} }

// Sleep are the arguments of a process that stays, and ends on SIGTERM.
func Sleep() []string {
	return Sh("trap 'exit 0' TERM", "while :; do sleep 3600 & wait $!; done")
}
