package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/namespaces"
	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys"
)

// hookGrace is how long a hook's output is read after its end: what it left running may hold the pipes.
const hookGrace = 50 * time.Millisecond

// hook does a RunHook step.
func (c *Container) hook(ctx context.Context, r *run, s *oci.Step) error {
	h := &r.plan.Hooks[s.Args[0].Int]
	state, err := c.hookState(r, h)
	if err != nil {
		return err
	}
	defer state.Close()
	out, err := newHookOutput()
	if err != nil {
		return err
	}
	defer out.close()
	stdio := Stdio{Stdin: state, Stdout: out.stdout.write, Stderr: out.stderr.write}
	var p hookProcess
	switch h.Kind {
	case oci.CreateContainer:
		p, err = c.startInside(ctx, r, h, stdio)
	case oci.StartContainer:
		p, err = c.startAsProcess(ctx, h, stdio)
	default:
		p, err = startOutside(h, c.bundle, stdio)
	}
	if err != nil {
		return err
	}
	return awaitHook(ctx, h, p, out)
}

// A hookProcess is a hook that runs.
type hookProcess interface {
	exited() <-chan struct{}
	ended() string // how, when it has; "" for success
	kill()
	close()
}

func awaitHook(ctx context.Context, h *oci.Hook, p hookProcess, out *hookOutput) error {
	defer p.close()
	out.handedOver()
	var late <-chan time.Time
	if h.Timeout > 0 {
		t := time.NewTimer(h.Timeout)
		defer t.Stop()
		late = t.C
	}
	how := ""
	select {
	case <-p.exited():
		how = p.ended()
	case <-late:
		how = fmt.Sprintf("killed after its timeout of %s", h.Timeout)
	case <-ctx.Done():
		how = context.Cause(ctx).Error()
	}
	p.kill()
	<-p.exited()
	if how == "" {
		return nil
	}
	if last := out.lastLine(); last != "" {
		how += ": " + last
	}
	return errors.New(how)
}

// hookState is a file with the state that a hook is given: runtime.md of the specification, "State".
func (c *Container) hookState(r *run, h *oci.Hook) (*os.File, error) {
	s := specs.State{Version: c.spec.Version, ID: c.id, Status: h.Status, Bundle: c.bundle, Annotations: c.spec.Annotations}
	if r.task != nil && h.Status != specs.StateStopped {
		s.Pid = r.pid()
		if h.Kind == oci.CreateContainer || h.Kind == oci.StartContainer {
			// As the container sees it.
			pid, err := innermostPid(s.Pid)
			if err != nil {
				return nil, err
			}
			s.Pid = pid
		}
	}
	data, err := json.Marshal(&s)
	if err != nil {
		return nil, err
	}
	return sealedFile("state", data)
}

// sealedFile is a file in memory, at its start, that nobody can change.
func sealedFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.WriteAt(data, 0); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// innermostPid is a process's ID in its own PID namespace: the last that the line NSpid of proc_pid_status(5) has.
func innermostPid(pid int) (int, error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if list, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(list)
			if len(f) > 0 {
				return strconv.Atoi(f[len(f)-1])
			}
		}
	}
	return 0, fmt.Errorf("/proc/%d/status: no NSpid", pid)
}

// outside is a hook in the runtime's namespaces, an ordinary child of ours.
type outside struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

func startOutside(h *oci.Hook, dir string, stdio Stdio) (hookProcess, error) {
	p := &outside{done: make(chan struct{}), cmd: &exec.Cmd{
		Path: h.Path, Args: h.Args, Env: h.Env, Dir: dir,
		Stdin: stdio.Stdin, Stdout: stdio.Stdout, Stderr: stdio.Stderr,
		// A group of its own, so that all of it can be killed.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}}
	if err := p.cmd.Start(); err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *outside) exited() <-chan struct{} { return p.done }
func (p *outside) close()                  {}

func (p *outside) kill() {
	select {
	case <-p.done:
	default:
		unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	}
}

func (p *outside) ended() string {
	if p.err == nil {
		return ""
	}
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return "killed by " + unix.SignalName(ws.Signal())
	}
	if code := p.cmd.ProcessState.ExitCode(); code > 0 {
		return fmt.Sprintf("exited with status %d", code)
	}
	return p.err.Error()
}

// insideHook is a hook of the host's in the container's namespaces.
type insideHook struct {
	child  *rsys.Child
	joiner *namespaces.Joiner
}

// startInside starts a createContainer hook. It is spawned by a joiner, for a PID namespace's first process can't
// have siblings made of itself: clone(2), EINVAL for CLONE_PARENT. The container's own root is not entered yet, so the
// joiner, at the root of its mount namespace, has the host's files, and what is mounted for the container in them.
func (c *Container) startInside(ctx context.Context, r *run, h *oci.Hook, stdio Stdio) (_ hookProcess, err error) {
	stub, err := c.runtime.ground(ctx)
	if err != nil {
		return nil, err
	}
	joiner, err := namespaces.JoinProcess(ctx, stub.Task, r.task.Child, c.namespaces(), c.isolation)
	if err != nil {
		return nil, err
	}
	sub := &run{plan: r.plan}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			err = errors.Join(err, sub.abandon(ctx), joiner.Close(ctx))
		}
	}()
	dir, err := c.cgroupDir()
	if err != nil {
		return nil, err
	}
	if dir != nil {
		defer dir.Close()
	}
	task, err := joiner.Insider(ctx, dir)
	if err != nil {
		return nil, err
	}
	sub.task, sub.steps = task, task.NewRun()
	if err := sub.joinCgroup(ctx, c.cgroup); err != nil {
		return nil, err
	}
	if err := sub.passStdio(ctx, stdio); err != nil {
		return nil, err
	}
	if err := sub.steps.Exec(ctx, h.Steps...); err != nil {
		return nil, err
	}
	task.Forget()
	sub.steps.Close()
	return &insideHook{child: task.Child, joiner: joiner}, nil
}

func (p *insideHook) exited() <-chan struct{} { return p.child.Exited() }
func (p *insideHook) kill()                   { p.child.Signal(unix.SIGKILL) }

func (p *insideHook) ended() string {
	if s, _ := p.child.Status(); s != (rsys.ExitStatus{Code: 1}) {
		return s.String()
	}
	return ""
}

func (p *insideHook) close() {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	p.joiner.Close(ctx)
}

// processHook is a hook of the image's: a process like those that are executed in the container.
type processHook struct{ p *Process }

func (c *Container) startAsProcess(ctx context.Context, h *oci.Hook, stdio Stdio) (hookProcess, error) {
	req := request(stdio)
	req.ID, req.Bundle, req.Seccomp = c.id, c.bundle, c.seccomp
	plan, spec, err := oci.CompileHook(c.spec, h, req, thisHost())
	if err != nil {
		return nil, err
	}
	p := newProcess(c, &run{plan: plan, injection: injection(c.spec, "hook")}, spec)
	if p.stdio, err = stdio.copy(); err != nil {
		return nil, err
	}
	if err := p.Start(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return processHook{p}, nil
}

func (h processHook) exited() <-chan struct{} { return h.p.Exited() }
func (h processHook) kill()                   { h.p.Signal(unix.SIGKILL) }
func (h processHook) close()                  { h.p.Close() }

func (h processHook) ended() string {
	if s, _ := h.p.child.Status(); s != (rsys.ExitStatus{Code: 1}) {
		return s.String()
	}
	return ""
}

// hookOutput reads what a hook writes, and keeps the end.
type hookOutput struct{ stdout, stderr tail }

func newHookOutput() (*hookOutput, error) {
	o := new(hookOutput)
	if err := o.stdout.open(); err != nil {
		return nil, err
	}
	if err := o.stderr.open(); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// handedOver closes our copies of what the hook writes to.
func (o *hookOutput) handedOver() {
	o.stdout.write.Close()
	o.stderr.write.Close()
}

func (o *hookOutput) close() {
	for _, t := range []*tail{&o.stdout, &o.stderr} {
		if t.read != nil {
			t.write.Close()
			t.read.Close()
			<-t.done
		}
	}
}

// lastLine is the last line of the error output or, if there is none, of the other.
func (o *hookOutput) lastLine() string {
	limit := time.Now().Add(hookGrace)
	for _, t := range []*tail{&o.stderr, &o.stdout} {
		t.read.SetReadDeadline(limit)
		<-t.done
		lines := strings.Split(strings.TrimSpace(string(t.buf)), "\n")
		if last := lines[len(lines)-1]; last != "" {
			return strings.ToValidUTF8(last, "?")
		}
	}
	return ""
}

// tail is the read end of a pipe and the last of what came out of it.
type tail struct {
	read, write *os.File
	done        chan struct{}
	buf         []byte
}

const tailSize = 1024

func (t *tail) open() (err error) {
	if t.read, t.write, err = os.Pipe(); err != nil {
		return err
	}
	t.done = make(chan struct{})
	go func() {
		defer close(t.done)
		io.Copy(t, onlyReader{t.read})
	}()
	return nil
}

type onlyReader struct{ io.Reader }

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - tailSize; n > 0 {
		t.buf = bytes.Clone(t.buf[n:])
	}
	return len(p), nil
}

// poststart runs the poststart hooks of a process that has been started. If one fails the process is to be killed:
// runtime.md of the specification, "Lifecycle", step 9.
func (r *run) poststart(ctx context.Context) error {
	if end := r.phase(oci.Deleted); r.phase(oci.Started) < end {
		r.next = r.phase(oci.Started)
		return r.through(ctx, end)
	}
	return nil
}

// poststop is what remains to be run at a container's end: its poststop hooks, once.
type poststop struct {
	once sync.Once
	run  *run // nil if there are none
}

// keepPoststop keeps the poststop hooks, and of the Plan no more than that.
func (c *Container) keepPoststop(r *run) {
	from := r.phase(oci.Deleted)
	if from == len(r.plan.Steps) {
		return
	}
	plan := &oci.Plan{Steps: append([]oci.Step(nil), r.plan.Steps[from:]...), Hooks: r.plan.Hooks}
	c.poststop.run = &run{plan: plan, injection: r.injection.after(from), shim: c.hook}
}

// runPoststop runs the poststop hooks. Whatever becomes of them is only logged.
func (c *Container) runPoststop(ctx context.Context) {
	c.poststop.once.Do(func() {
		r := c.poststop.run
		for r != nil && r.next < len(r.plan.Steps) {
			at := r.next
			if err := r.through(ctx, at+1); err != nil {
				log.G(ctx).WithError(err).Warnf("container %s: poststop hook failed", c.id)
				r.next = at + 1
			}
		}
	})
}

// cleanupPoststop runs the poststop hooks of a container of which there is nothing but its bundle.
func cleanupPoststop(ctx context.Context, id, bundle string, spec *specs.Spec) {
	if spec.Hooks == nil || len(spec.Hooks.Poststop) == 0 {
		return
	}
	bundle, err := filepath.Abs(bundle)
	if err != nil {
		return
	}
	plan, err := oci.Compile(spec, oci.Request{ID: id, Bundle: bundle}, thisHost())
	if err != nil {
		return // it was refused, so nothing was made
	}
	c := &Container{containerState: containerState{id: id, bundle: bundle, spec: spec}}
	c.keepPoststop(&run{plan: plan, injection: injection(spec, "cleanup")})
	c.runPoststop(ctx)
}
