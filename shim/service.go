package shim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rsys-io/rsys/container"
	"github.com/rsys-io/rsys/oci"
)

type eventSender interface {
	send(topic string, event proto.Message)
}

// service is the task service. Its types are those of version 2 of the API; version 3 has the
// same messages under another package's name, and a Go package that links all of grpc.
type service struct {
	namespace string
	runtime   containerRuntime
	events    eventSender
	streams   *streams
	// shutdown is called once, when containerd has asked for it and there are no containers.
	shutdown func()
	// settled is called when a change has left garbage behind.
	settled func()

	mu         sync.Mutex
	containers map[string]*containerTask // nil while it is being created
	pinned     bool                      // there is a sandbox, which outlives its containers
	used       bool                      // there was a container
	down       bool
	// leaving is a request to shut down that came while the only containers were being created: a containerd that
	// starts again makes it of a shim in which its predecessor's request still ends.
	leaving bool

	// sandboxes is set before the first request comes.
	sandboxes *sandboxService
}

func newService(namespace string, rt containerRuntime, events eventSender, shutdown, settled func()) *service {
	s := &service{
		namespace: namespace, runtime: rt, events: events, streams: newStreams(), shutdown: shutdown, settled: settled,
		containers: make(map[string]*containerTask),
	}
	s.sandboxes = &sandboxService{tasks: s}
	return s
}

var empty = new(emptypb.Empty)

func (s *service) container(id string) (*containerTask, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil {
		return nil, notFound("container not created")
	}
	return c, nil
}

func (s *service) find(id, execID string) (*process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	return c.process(execID)
}

// reserve keeps an ID for a container that is being created.
func (s *service) reserve(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return fmt.Errorf("the shim is shutting down: %w", errdefs.ErrUnavailable)
	}
	if _, ok := s.containers[id]; ok {
		return fmt.Errorf("container %s: %w", id, errdefs.ErrAlreadyExists)
	}
	s.containers[id] = nil
	s.used = true
	return nil
}

func (s *service) set(id string, c *containerTask) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c == nil {
		delete(s.containers, id)
		if s.leaving {
			s.leave()
		}
		return
	}
	s.leaving = false
	s.containers[id] = c
}

func (s *service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (_ *taskapi.CreateTaskResponse, err error) {
	if r.ID == "" || r.Bundle == "" {
		return nil, invalid("create: no id or no bundle")
	}
	if err := s.reserve(r.ID); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.set(r.ID, nil)
			s.settled()
		}
	}()
	opts, err := parseOptions(r.Options)
	if err != nil {
		return nil, err
	}
	opts.tellOfRoot()
	spec, err := readSpec(r.Bundle)
	if err != nil {
		return nil, err
	}
	if spec.Linux == nil {
		spec.Linux = new(specs.Linux)
	}
	if spec.Process != nil {
		// The request says what is on the other side of the streams.
		spec.Process.Terminal = r.Terminal
	}
	s.sandboxes.share(spec)
	if err := saveOptions(r.Bundle, opts); err != nil {
		return nil, fmt.Errorf("save the options: %w", err)
	}
	c := &containerTask{
		s: s, id: r.ID, bundle: r.Bundle, procs: make(map[string]*process),
		ioUID: int(opts.IoUid), ioGID: int(opts.IoGid), criu: criuOptions{opts.CriuPath, opts.CriuWorkPath},
	}
	c.init = &process{
		c:     c,
		stdio: stdioPaths{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		done:  make(chan struct{}),
	}
	pio, err := openIO(ctx, c.init.stdio, c.ioOptions())
	if err != nil {
		return nil, fmt.Errorf("open the standard streams: %w", err)
	}
	cfg := container.Config{
		ID: r.ID, Bundle: r.Bundle, Spec: spec, SystemdCgroup: opts.SystemdCgroup, NoPivotRoot: opts.NoPivotRoot,
		NoNewKeyring: opts.NoNewKeyring, Isolation: opts.Isolation, HostRootfs: opts.RootfsOnHost, Stdio: pio.stdio,
	}
	for _, m := range r.Rootfs {
		cfg.Rootfs = append(cfg.Rootfs, container.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	recorded, rec := s.recorded(ctx)
	if images := cmp.Or(r.Checkpoint, opts.CriuImagePath); images != "" {
		c.init.restoring = true
		c.t, err = s.runtime.restore(recorded, cfg, container.Restore{Criu: c.criu.program, Images: images, Work: c.criu.work})
	} else {
		c.t, err = s.runtime.create(recorded, cfg)
	}
	c.trace = s.keepTrace(r.ID, r.Bundle, nil, rec)
	pio.handedOver()
	if err == nil {
		c.init.p = c.t.init()
		c.init.pid = c.init.p.Pid()
		c.init.io = pio
		err = pio.stdin.keep()
		if err == nil && r.Terminal && !c.init.restoring {
			err = pio.attach(c.init.p.Terminal())
		}
		if err == nil {
			// For the delete verb, should this shim die.
			err = os.WriteFile(filepath.Join(r.Bundle, pidFile), []byte(strconv.Itoa(c.init.pid)), 0o644)
		}
		if err != nil {
			c.init.p.Close()
			err = errors.Join(err, c.t.Delete(context.WithoutCancel(ctx)))
		}
	}
	if err != nil {
		pio.close()
		return nil, err
	}
	for _, w := range c.t.warnings() {
		log.L.Warnf("container %s: %s", r.ID, w)
	}
	s.events.send(topicCreate, &eventsapi.TaskCreate{
		ContainerID: r.ID,
		Bundle:      r.Bundle,
		Rootfs:      r.Rootfs,
		IO:          &eventsapi.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Pid:         uint32(c.init.pid),
	})
	c.watchOOM()
	s.set(r.ID, c)
	go c.watch()
	s.settled()
	return &taskapi.CreateTaskResponse{Pid: uint32(c.init.pid)}, nil
}

func readSpec(bundle string) (*specs.Spec, error) {
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, invalid("config.json: %v", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, oci.MaxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read config.json: %w", err)
	}
	return oci.Parse(data)
}

func (s *service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	pid, err := p.start(ctx)
	if err != nil {
		if r.ExecID == "" && !errdefs.IsFailedPrecondition(err) {
			p.awaitEnd(ctx)
		}
		return nil, err
	}
	if r.ExecID == "" {
		s.settled()
	}
	return &taskapi.StartResponse{Pid: uint32(pid)}, nil
}

func (s *service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.ExecID == "" {
		if err := c.delete(ctx); err != nil {
			return nil, err
		}
		s.set(r.ID, nil)
		s.settled()
	} else {
		if err := p.deleteExec(); err != nil {
			return nil, err
		}
		c.removeExec(r.ExecID)
	}
	_, pid, exit := p.snapshot()
	return &taskapi.DeleteResponse{Pid: uint32(pid), ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At)}, nil
}

func (s *service) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	if r.ExecID == "" {
		return nil, invalid("exec: no exec id")
	}
	if r.Spec == nil {
		return nil, invalid("exec: no process spec")
	}
	spec := new(specs.Process)
	if err := json.Unmarshal(r.Spec.Value, spec); err != nil {
		return nil, invalid("exec: process spec: %v", err)
	}
	spec.Terminal = r.Terminal
	p := &process{
		c: c, execID: r.ExecID, spec: spec,
		stdio: stdioPaths{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		done:  make(chan struct{}),
	}
	if err := c.addExec(p); err != nil {
		return nil, err
	}
	p.expectStart(ctx)
	s.events.send(topicExecAdded, &eventsapi.TaskExecAdded{ContainerID: c.id, ExecID: r.ExecID})
	return empty, nil
}

func (s *service) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if err := p.awaitStart(ctx); err != nil {
		return nil, err
	}
	_, pid, exit := p.snapshot()
	return &taskapi.StateResponse{
		ID:         p.id(),
		Bundle:     p.c.bundle,
		Pid:        uint32(pid),
		Status:     p.status(),
		Stdin:      p.stdio.Stdin,
		Stdout:     p.stdio.Stdout,
		Stderr:     p.stdio.Stderr,
		Terminal:   p.stdio.Terminal,
		ExitStatus: exit.Status,
		ExitedAt:   timestamppb.New(exit.At),
		ExecID:     p.execID,
	}, nil
}

func (s *service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	exit, err := p.wait(ctx)
	if err != nil {
		return nil, err
	}
	return &taskapi.WaitResponse{ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At)}, nil
}

func (s *service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	if r.Signal > 64 {
		return nil, invalid("signal %d", r.Signal)
	}
	return empty, c.kill(ctx, r.ExecID, unix.Signal(r.Signal), r.All)
}

func (s *service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	pids, err := c.t.Pids()
	if err != nil {
		return nil, fmt.Errorf("list the processes of container %s: %w", r.ID, err)
	}
	if _, pid, _ := c.init.snapshot(); len(pids) == 0 && pid != 0 {
		// Like a process that nobody has waited for. A containerd that starts again forgets a task, and its
		// exit status with it, that has no processes; also one whose end is still to be told, after its output.
		pids = []int{pid}
	}
	execs := make(map[int]string)
	for _, p := range c.allExecs() {
		if st, pid, _ := p.snapshot(); st == running {
			execs[pid] = p.execID
		}
	}
	resp := &taskapi.PidsResponse{Processes: make([]*task.ProcessInfo, 0, len(pids))}
	for _, pid := range pids {
		info := &task.ProcessInfo{Pid: uint32(pid)}
		if id, ok := execs[pid]; ok {
			if info.Info, err = toAny(&runcoptions.ProcessDetails{ExecID: id}); err != nil {
				return nil, err
			}
		}
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

func (s *service) ResizePty(_ context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return empty, p.resize(r.Width, r.Height)
}

func (s *service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	p.closeIO()
	return empty, nil
}

func (s *service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return empty, c.doPause(ctx)
}

func (s *service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return empty, c.doResume(ctx)
}

func (s *service) Update(_ context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	if st, _, _ := c.init.snapshot(); st == stopped || st == deleted {
		return nil, precondition("cannot update a %s container", st)
	}
	if r.Resources == nil {
		return nil, invalid("update: no resources")
	}
	res := new(specs.LinuxResources)
	if err := json.Unmarshal(r.Resources.Value, res); err != nil {
		return nil, invalid("update: resources: %v", err)
	}
	return empty, c.t.Update(res)
}

func (s *service) Stats(_ context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	stats, err := c.t.Stats()
	if err != nil {
		return nil, fmt.Errorf("metrics of container %s: %w", r.ID, err)
	}
	a, err := statsAny(stats)
	if err != nil {
		return nil, err
	}
	return &taskapi.StatsResponse{Stats: a}, nil
}

func statsAny(stats any) (*anypb.Any, error) {
	switch m := stats.(type) {
	case interface { // encoded already
		GetTypeUrl() string
		GetValue() []byte
	}:
		return &anypb.Any{TypeUrl: m.GetTypeUrl(), Value: m.GetValue()}, nil
	case proto.Message:
		return toAny(m)
	}
	return nil, fmt.Errorf("metrics of type %T: %w", stats, errdefs.ErrNotImplemented)
}

func (s *service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	resp := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, err := s.container(r.ID); err == nil {
		_, pid, _ := c.init.snapshot()
		resp.TaskPid = uint32(pid)
	}
	return resp, nil
}

func (s *service) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pinned {
		return empty, nil
	}
	for _, c := range s.containers {
		if c != nil {
			return empty, nil
		}
	}
	s.leaving = true
	s.leave()
	return empty, nil
}

// leave ends the shim if there is neither container nor sandbox. The lock is held.
func (s *service) leave() {
	if len(s.containers) > 0 || s.pinned || s.down {
		return
	}
	s.down = true
	s.shutdown()
}

// idle says whether there is neither container nor sandbox, and if so sees to it that there will be none.
func (s *service) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.containers) > 0 || s.pinned || s.down {
		return false
	}
	s.down = true
	return true
}
