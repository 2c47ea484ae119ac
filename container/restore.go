package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/criu"
	"github.com/rsys-io/rsys/namespaces"
	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys"
)

// Restore says of what a container is restored, instead of being created.
type Restore struct {
	Criu   string // as a Checkpoint's
	Images string
	Work   string
}

// restoring is a container that is yet to be restored, by its start.
type restoring struct {
	c      *Container
	cfg    Restore
	holder int // the PID of what has its mounts for criu, until there is a process
	making *creation
}

// restore makes what criu needs, and leaves the rest to the start: a container that is restored has no state "created", as
// its processes run from the moment when they are there.
func (r *Runtime) restore(ctx context.Context, cfg Config, from Restore) (_ *Container, err error) {
	if _, err := os.Stat(filepath.Join(from.Images, descriptorsFile)); err != nil {
		return nil, fmt.Errorf("restore: not the images of a container: %w", err)
	}
	if _, err := joinedNamespaces(cfg.Spec); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	cg, err := cgroupOf(&cfg)
	if err != nil {
		return nil, err
	}
	req, err := cfg.request(cg)
	if err != nil {
		return nil, err
	}
	isolation, err := cfg.isolation()
	if err != nil {
		return nil, err
	}
	// The config is what the container was made of: what a creation would refuse, or say, holds for it too.
	whole, err := oci.Compile(cfg.Spec, req, thisHost())
	if err != nil {
		return nil, err
	}
	plan, err := oci.CompileRestore(cfg.Spec, req, thisHost())
	if err != nil {
		return nil, err
	}
	stub, err := r.ground(ctx)
	if err != nil {
		return nil, err
	}
	c := &Container{Warnings: whole.Warnings, containerState: containerState{
		runtime: r, id: cfg.ID, bundle: cfg.Bundle, spec: cfg.Spec, cgroup: cg, seccomp: whole.Seccomp, isolation: isolation}}
	c.keepPoststop(&run{plan: whole})
	prep := &run{plan: plan}
	making := &creation{c: c, cfg: &cfg, from: stub.Task}
	prep.shim = func(ctx context.Context, r *run, s *oci.Step) error {
		if s.Name != oci.CloneChild {
			return making.step(ctx, r, s)
		}
		// Not into the cgroup: it is none of the container's processes.
		task, err := namespaces.Spawn(ctx, stub.Task, uint64(s.Args[0].Int), nil)
		if err == nil {
			r.cloned(task)
		}
		return err
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			err = errors.Join(err, prep.abandon(ctx), making.dropHolder(ctx), c.removeCgroup(), c.removeHostRootfs())
		}
	}()
	if err := prep.through(ctx, len(plan.Steps)); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	c.Init = newProcess(c, prep, cfg.Spec.Process)
	if c.Init.stdio, err = cfg.Stdio.copy(); err != nil {
		return nil, err
	}
	c.Init.restoring = &restoring{c, from, prep.task.Pid(), making}
	go func() {
		<-c.Init.exited()
		c.dropJoiner()
	}()
	return c, nil
}

// do has criu restore the container. What it makes is our own child, by criu's clone with CLONE_PARENT.
func (s *restoring) do(ctx context.Context, r *run, p *processState) error {
	c := s.c
	work, done, err := c.criuWork(s.cfg.Work, restoreLog)
	if err != nil {
		return fmt.Errorf("restore: work directory: %w", err)
	}
	req := &criu.Request{
		Path: s.cfg.Criu, Type: rpc.CriuReqType_RESTORE, Images: s.cfg.Images, Work: work, Holder: r.task.Pid(), Note: filepath.Join(c.bundle, criuNote),
		Opts: &rpc.CriuOpts{
			LogLevel: criu.Ptr(int32(criuLogLevel)), LogFile: criu.Ptr(restoreLog), RstSibling: criu.Ptr(true),
			Root: criu.Ptr(oci.RestoredRoot(c.spec, c.bundle)), EvasiveDevices: criu.Ptr(true), OrphanPtsMaster: criu.Ptr(true),
			ManageCgroups: criu.Ptr(true), ManageCgroupsMode: criu.Ptr(rpc.CriuCgMode_SOFT),
			// Whether there may be such things was decided when they were dumped.
			TcpEstablished: criu.Ptr(true), ExtUnixSk: criu.Ptr(true), FileLocks: criu.Ptr(true),
		},
	}
	configFile(c.spec, req.Opts)
	if hasNamespace(c.spec, specs.NetworkNamespace) && !hasNetwork(s.cfg.Images) {
		req.Opts.EmptyNs = criu.Ptr(uint32(unix.CLONE_NEWNET))
	}
	deny, err := s.letRead()
	defer deny()
	if err != nil {
		return done(fmt.Errorf("restore: %w", err))
	}
	closeFiles, err := s.restoreOf(req, &p.stdio)
	defer closeFiles()
	if err != nil {
		return done(fmt.Errorf("restore: %w", err))
	}
	var child *rsys.Child
	req.Notify = func(script string, pid int, file *os.File) (err error) {
		if script == "orphan-pts-master" && file != nil && p.pty == nil {
			p.mu.Lock()
			p.pty = file
			p.mu.Unlock()
		} else if file != nil {
			file.Close()
		}
		if pid > 0 && child == nil {
			child, err = rsys.AdoptChild(pid)
		}
		return err
	}
	restores.Lock()
	defer restores.Unlock()
	before := criu.Children()
	resp, err := req.Do(ctx)
	if err == nil && child == nil {
		child, err = rsys.AdoptChild(int(resp.GetRestore().GetPid()))
	}
	if err == nil && p.spec.Terminal && p.pty == nil {
		err = errors.New("criu has restored no terminal")
	}
	if err == nil && len(c.spec.Linux.UIDMappings) > 0 && c.spec.Process != nil {
		err = chownStdio(child.Pid(), c.spec.Process.User.UID, p.stdio)
	}
	if child != nil {
		if err != nil {
			child.Signal(unix.SIGKILL)
		}
		c.timed = hasOwnClock(child.Pid())
		p.adopt(child)
	}
	if err != nil {
		// All that is in the cgroup is criu's doing.
		err = errors.Join(err, c.cgroup.Kill())
	}
	if err != nil && child == nil {
		reapNew(before)
	}
	if err = done(err); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	p.stdio.close()
	return nil
}

// restoreOf adds what the container is to have from outside. The files that it opens for that are closed by the function that is returned.
func (s *restoring) restoreOf(req *criu.Request, stdio *Stdio) (closeFiles func(), err error) {
	var opened []*os.File
	closeFiles = func() {
		for _, f := range opened {
			f.Close()
		}
	}
	inherit := func(key string, f *os.File) {
		fd := int32(criu.FirstFile + len(req.Files))
		req.Files = append(req.Files, f)
		req.Opts.InheritFd = append(req.Opts.InheritFd, &rpc.InheritFd{Key: &key, Fd: &fd})
	}
	c := s.c
	external, err := externalMounts(c.spec, c.cgroup.ByMountpoint())
	if err != nil {
		return closeFiles, err
	}
	for _, m := range external {
		source := m.source
		if !filepath.IsAbs(source) {
			source = filepath.Join(c.bundle, source)
		}
		req.Opts.ExtMnt = append(req.Opts.ExtMnt, &rpc.ExtMountMap{Key: criu.Ptr(m.dest), Val: &source})
	}
	// What runc's images have for masked files.
	req.Opts.ExtMnt = append(req.Opts.ExtMnt, &rpc.ExtMountMap{Key: criu.Ptr("/dev/null"), Val: criu.Ptr("/dev/null")})
	for _, p := range c.cgroup.Paths() {
		req.Opts.CgRoot = append(req.Opts.CgRoot, &rpc.CgroupRoot{Ctrl: criu.Ptr(p.Controller), Path: criu.Ptr(p.Path)})
	}
	joined := externalNamespaces(c.spec)
	for _, ns := range joined {
		f, err := os.Open(ns.path)
		if err != nil {
			return closeFiles, fmt.Errorf("linux.namespaces: %w", err)
		}
		opened = append(opened, f)
		inherit(ns.key, f)
	}
	if req.Opts.JoinNs, err = joinedNamespaces(c.spec); err != nil {
		return closeFiles, err
	}
	data, err := os.ReadFile(filepath.Join(s.cfg.Images, descriptorsFile))
	if err != nil {
		return closeFiles, err
	}
	var names []string
	if err := json.Unmarshal(data, &names); err != nil {
		return closeFiles, fmt.Errorf("%s: %w: %w", descriptorsFile, err, errdefs.ErrInvalidArgument)
	}
	files := stdio.files()
	for i, name := range names {
		if i >= len(files) || slices.Contains(names[:i], name) || !strings.HasPrefix(name, "pipe:[") {
			continue
		}
		f := files[i]
		if f == nil {
			if f, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return closeFiles, err
			}
			opened = append(opened, f)
		}
		inherit(name, f)
	}
	return closeFiles, nil
}

// joinedNamespaces are those that criu itself joins, by their paths.
func joinedNamespaces(spec *specs.Spec) (list []*rpc.JoinNamespace, err error) {
	names := map[specs.LinuxNamespaceType]string{specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.UserNamespace: "user"}
	for _, ns := range spec.Linux.Namespaces {
		name := names[ns.Type]
		switch {
		case ns.Path == "" || ns.Type == specs.NetworkNamespace || ns.Type == specs.PIDNamespace:
		case name == "":
			return nil, fmt.Errorf("linux.namespaces: criu can't join a %s namespace: %w", ns.Type, errdefs.ErrNotImplemented)
		default:
			list = append(list, &rpc.JoinNamespace{Ns: &name, NsFile: criu.Ptr(ns.Path)})
		}
	}
	return list, nil
}

// restores is held by one restore at a time, so that what is left of one that failed can be told from another's.
var restores sync.Mutex

// reapNew reaps what criu has made in our name before it failed, and killed. It was not told of; who has somebody who waits for
// him is reaped by that one, at once.
func reapNew(before []int) {
	for range 2 {
		time.Sleep(100 * time.Millisecond)
		zombies := slices.DeleteFunc(criu.Children(), func(pid int) bool { return slices.Contains(before, pid) || !isZombie(pid) })
		if len(zombies) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
		for _, pid := range zombies {
			if isZombie(pid) {
				unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
	}
}

func isZombie(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	s := string(data)
	return strings.HasPrefix(s[strings.LastIndexByte(s, ')')+1:], " Z")
}
