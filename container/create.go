package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/cgroup"
	"github.com/rsys-io/rsys/namespaces"
	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/oci/seccomp"
	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// undoTime bounds the undoing of what failed, whose context may be over.
const undoTime = 10 * time.Second

type containerState struct {
	runtime *Runtime
	id      string
	bundle  string
	spec    *specs.Spec
	cgroup  *cgroup.Cgroup
	made    bool            // the cgroup is ours
	shown   bool            // the root file system is mounted on the host
	seccomp *seccomp.Filter // compiled, for the execs
	poststop

	isolation namespaces.Isolation

	dropping sync.Mutex // held while the joiner is ended
	joinerMu sync.Mutex
	joiner   *namespaces.Joiner // kept between execs
	ended    bool               // no joiner any more
	pending  map[*Ready]struct{}
	timed    bool // in a time namespace of criu's, which no config asks for
}

func (r *Runtime) create(ctx context.Context, cfg Config) (_ *Container, err error) {
	cg, err := cgroupOf(&cfg)
	if err != nil {
		return nil, err
	}
	req, err := cfg.request(cg)
	if err != nil {
		return nil, err
	}
	req.NoPivotRoot, req.NoNewKeyring, req.Born = cfg.NoPivotRoot, cfg.NoNewKeyring, bornUnprivileged
	isolation, err := cfg.isolation()
	if err != nil {
		return nil, err
	}
	plan, err := oci.Compile(cfg.Spec, req, thisHost())
	if err != nil {
		return nil, err
	}
	if err := keepsOurNetwork(cfg.Spec); err != nil {
		return nil, err
	}
	if err := hasDevices(cfg.Spec); err != nil {
		return nil, err
	}
	stub, err := r.ground(ctx)
	if err != nil {
		return nil, err
	}
	c := &Container{Warnings: slices.Concat(plan.Warnings, cg.NoEffect()), containerState: containerState{
		runtime: r, id: cfg.ID, bundle: cfg.Bundle, spec: cfg.Spec, cgroup: cg, seccomp: plan.Seccomp, isolation: isolation}}
	run := &run{plan: plan, injection: injection(cfg.Spec, "create")}
	c.keepPoststop(run)
	making := &creation{c: c, cfg: &cfg, from: stub.Task}
	run.shim = making.step
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			if c.Init != nil && c.Init.pty != nil {
				c.Init.pty.Close()
			}
			err = errors.Join(c.outOfMemory(err), run.abandon(ctx), making.dropJoiner(ctx), making.dropHolder(ctx), c.removeCgroup())
			c.runPoststop(context.WithoutCancel(ctx))
			err = errors.Join(err, c.removeHostRootfs(), unmountHostMounts(c.spec, c.bundle))
		}
	}()
	created := run.phase(oci.Start)
	if plan.Birth >= 0 {
		created = plan.Leave
	}
	if err := run.through(ctx, created); err != nil {
		return nil, err
	}
	c.Init = newProcess(c, run, cfg.Spec.Process)
	if c.Init.pty, err = run.terminal(ctx); err != nil {
		return nil, fmt.Errorf("process.terminal: %w", err)
	}
	child := run.task.Child
	if plan.Birth >= 0 {
		run.home(cfg.Spec.Process.User.UID)
		if err := run.bear(ctx); err != nil {
			return nil, err
		}
		child = run.born.Child
	}
	// The last call may have ended well and its context just then: the process is being killed, and is no container.
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	c.Init.adopt(child)
	go func() {
		<-c.Init.exited()
		c.dropJoiner()
	}()
	return c, nil
}

func cgroupOf(cfg *Config) (*cgroup.Cgroup, error) {
	return cgroup.New(cgroupConfig(cfg.ID, cfg.Spec, cfg.SystemdCgroup))
}

// request is what a creation and a restore have in common.
func (cfg *Config) request(cg *cgroup.Cgroup) (req oci.Request, err error) {
	req = request(cfg.Stdio)
	req.ID, req.Bundle, req.Cgroups = cfg.ID, cfg.Bundle, cg.ByMountpoint()
	if req.HostRootfs, err = cfg.hostRootfs(); err != nil {
		return req, err
	}
	for _, m := range cfg.Rootfs {
		req.Rootfs = append(req.Rootfs, oci.Mount(m))
	}
	return req, nil
}

func request(stdio Stdio) (req oci.Request) {
	for i, f := range stdio.files() {
		req.Fifos[i], req.Null[i] = f != nil, f == nil
	}
	return req
}

func cgroupConfig(id string, spec *specs.Spec, systemd bool) cgroup.Config {
	cfg := cgroup.Config{ID: id, Systemd: systemd, Annotations: spec.Annotations}
	if spec.Linux != nil {
		cfg.Path, cfg.Resources = spec.Linux.CgroupsPath, spec.Linux.Resources
	}
	return cfg
}

// creation does the shim's steps of a container's creation.
type creation struct {
	c      *Container
	cfg    *Config
	from   *rsys.Task
	parent *rsys.Task // of the child, if the Plan has steps of one
	joiner *namespaces.Joiner
	holder *rsys.Task // in the cgroup, while the child is not
}

func (k *creation) step(ctx context.Context, r *run, s *oci.Step) (err error) {
	switch s.Name {
	case oci.CgroupCreate:
		return k.makeCgroup(ctx)
	case oci.CgroupJoin:
		if err := r.joinCgroup(ctx, k.c.cgroup); err != nil {
			return err
		}
		if err := k.dropHolder(ctx); err != nil {
			return err
		}
		return k.c.cgroup.Settle(ctx)
	case oci.JoinPID:
		k.joiner, err = namespaces.JoinPID(ctx, k.from, s.About, k.c.isolation)
		return err
	case oci.HostRootfs:
		return k.c.mountHostRootfs(ctx, r, s)
	case oci.LoopAttach:
		return r.attachLoop(ctx, s)
	case oci.RdtCreate:
		return hostResctrl.create(argString(s.Args[0]), s.Args[1].Int != 0, argString(s.Args[2]), argString(s.Args[3]))
	case oci.CheckMaps:
		return checkMaps(r.task.Pid(), argString(s.Args[0]), argString(s.Args[1]))
	case oci.MoveNetDevice:
		return r.moveDevice(ctx, argString(s.Args[0]), argString(s.Args[1]))
	case oci.SendListener:
		return k.c.sendListener(ctx, r, s, specs.StateCreated)
	case oci.RunHook:
		return k.c.hook(ctx, r, s)
	case oci.CloneParent:
		if k.parent, err = namespaces.Parent(ctx, k.from, uint64(s.Args[0].Int), uint64(s.Args[1].Int), k.c.isolation); err == nil {
			r.cloned(k.parent)
		}
		return err
	case oci.CloneChild:
		return k.clone(ctx, r, uint64(s.Args[0].Int))
	case oci.IDMap, oci.IDMapOf:
		r.value, err = k.idmap(ctx, r, s)
		return err
	default:
		return commonStep(ctx, r, s, k.c.cgroup, k.cfg.Stdio)
	}
}

func (k *creation) clone(ctx context.Context, r *run, flags uint64) error {
	dir, err := k.c.cgroupDir()
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
	}
	var task *rsys.Task
	switch {
	case k.parent != nil:
		if task, err = namespaces.Spawn(ctx, k.parent, flags, dir); err == nil {
			k.parent.Kill()
			_, err = k.parent.Child.Wait(ctx)
		}
	case k.joiner != nil:
		task, err = k.joiner.Spawn(ctx, flags, dir)
		err = errors.Join(err, k.dropJoiner(ctx))
	default:
		task, err = namespaces.Spawn(ctx, k.from, flags, dir)
	}
	if task != nil {
		r.cloned(task)
	}
	return err
}

// makeCgroup makes the cgroup. One that systemd makes has a process in it from the beginning, and ends when it has
// none. That is one of ours, which does nothing, until the child is there: so the child is born into its cgroup as it is into any
// other. It has memory of its own, for it is under the container's limits.
func (k *creation) makeCgroup(ctx context.Context) (err error) {
	pid := 0
	if k.c.cgroup.NeedsHolder() {
		if k.holder, err = namespaces.Spawn(ctx, k.from, 0, nil); err != nil {
			return fmt.Errorf("a process to hold the scope: %w", err)
		}
		pid = k.holder.Pid()
	}
	return k.c.makeCgroup(ctx, pid)
}

func (k *creation) dropHolder(ctx context.Context) error {
	h := k.holder
	k.holder = nil
	if h == nil {
		return nil
	}
	h.Kill()
	_, err := h.Child.Wait(ctx)
	return err
}

// dropJoiner ends the joiner, if there is one.
func (k *creation) dropJoiner(ctx context.Context) error {
	j := k.joiner
	k.joiner = nil
	if j == nil {
		return nil
	}
	return j.Close(ctx)
}

// cgroupDir is the container's cgroup to be born into: of a hybrid host its v2 part; nil if there is no v2.
func (c *Container) cgroupDir() (*os.File, error) {
	path, ok := c.cgroup.V2Dir()
	if !ok {
		return nil, nil
	}
	return os.Open(path)
}

// commonStep does the shim's steps that a creation and an exec have in common.
func commonStep(ctx context.Context, r *run, s *oci.Step, cg *cgroup.Cgroup, stdio Stdio) error {
	switch s.Name {
	case oci.CgroupJoin:
		return r.joinCgroup(ctx, cg)
	case oci.PassStdio:
		return r.passStdio(ctx, stdio)
	case oci.RdtJoin:
		return hostResctrl.join(argString(s.Args[0]), argString(s.Args[1]), r.task.Pid())
	case oci.WriteAttr:
		return r.writeAttr(ctx, argString(s.Args[0]), argString(s.Args[1]))
	case oci.CopyUp:
		from, to := r.steps.Result(int(s.Args[0].Step)).Value, r.steps.Result(int(s.Args[1].Step)).Value
		return copyTree(ctx, r.task, call.FD(int(from)), call.FD(int(to)))
	case oci.RaiseRlimit:
		return raiseRlimit(r.task.Pid(), int(s.Args[0].Int), uint64(s.Args[1].Int))
	case oci.ChownStdio:
		return chownStdio(r.task.Pid(), uint32(s.Args[0].Int), stdio)
	case oci.WriteProc:
		file := "/proc/" + strconv.Itoa(r.task.Pid()) + "/" + argString(s.Args[0])
		err := os.WriteFile(file, []byte(argString(s.Args[1])), 0)
		if errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		return err
	}
	return fmt.Errorf("unknown step of the shim")
}

// joinCgroup has the child join by itself what it was not born into, cgroup v1.
// A thread that moves itself does not stop every fork on the host as moving a process does.
func (r *run) joinCgroup(ctx context.Context, cg *cgroup.Cgroup) error {
	_, born := cg.V2Dir()
	files, err := cg.JoinFiles(!born)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if len(files) == 0 {
		return nil
	}
	join, err := r.task.PassAnd(ctx, files, func(fds []call.Arg) (steps []call.Step) {
		for _, fd := range fds {
			steps = append(steps, call.Step{Call: call.Write(fd, "0")}, call.Step{Call: call.Close(fd)})
		}
		return steps
	})
	var failed *rsys.StepError
	switch {
	case err == nil:
		join.Close()
		return nil
	case errors.As(err, &failed) && failed.Index >= 2:
		return fmt.Errorf("%s: %w", files[(failed.Index-2)/2].Name(), err)
	}
	return err
}

func argString(a call.Arg) string {
	return strings.TrimSuffix(a.Data, "\x00")
}
