package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"
)

// key names a process: the container's own has no exec id.
type key struct{ id, exec string }

// service is the task service over bare processes.
type service struct {
	ctx      context.Context
	shutdown shutdown.Service
	events   chan any

	mu    sync.Mutex
	procs map[key]*process
}

var empty = &emptypb.Empty{}

func newService(ctx context.Context, pub shim.Publisher, sd shutdown.Service) *service {
	s := &service{ctx: ctx, shutdown: sd, events: make(chan any, 128), procs: map[key]*process{}}
	go s.publish(pub)
	return s
}

// RegisterTTRPC is how the library learns what the service serves.
func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

// publish sends events one after the other, as they happened.
func (s *service) publish(pub shim.Publisher) {
	ns, _ := namespaces.Namespace(s.ctx)
	ctx := namespaces.WithNamespace(context.Background(), ns)
	for ev := range s.events {
		if err := pub.Publish(ctx, runtime.GetTopic(ev), ev); err != nil {
			log.G(ctx).WithError(err).Error("post event")
		}
	}
	pub.Close()
}

func (s *service) get(id, exec string) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.procs[key{id, exec}]; p != nil {
		return p, nil
	}
	return nil, errgrpc.ToGRPCf(errdefs.ErrNotFound, "process %q of container %q", exec, id)
}

func (s *service) add(k key, p *process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.procs[k] != nil {
		return errgrpc.ToGRPCf(errdefs.ErrAlreadyExists, "process %q of container %q", k.exec, k.id)
	}
	s.procs[k] = p
	return nil
}

// Create remembers what to run. Until Start there is no process, and the shim
// gives its own number for one.
func (s *service) Create(_ context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	data, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	p := &process{bundle: r.Bundle, args: spec.Process.Args, env: spec.Process.Env,
		stdin: r.Stdin, stdout: r.Stdout, stderr: r.Stderr, pid: os.Getpid(), done: make(chan struct{})}
	if err := s.add(key{r.ID, ""}, p); err != nil {
		return nil, err
	}
	s.events <- &events.TaskCreate{ContainerID: r.ID, Bundle: r.Bundle, Rootfs: r.Rootfs, Pid: uint32(p.pid),
		IO: &events.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr}}
	return &taskapi.CreateTaskResponse{Pid: uint32(p.pid)}, nil
}

// Exec remembers one more process to run.
func (s *service) Exec(_ context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	if _, err := s.get(r.ID, ""); err != nil {
		return nil, err
	}
	v, err := typeurl.UnmarshalAny(r.Spec)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	spec, ok := v.(*specs.Process)
	if !ok {
		return nil, errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "not a process spec: %T", v)
	}
	p := &process{args: spec.Args, env: spec.Env, stdin: r.Stdin, stdout: r.Stdout, stderr: r.Stderr, done: make(chan struct{})}
	if err := s.add(key{r.ID, r.ExecID}, p); err != nil {
		return nil, err
	}
	s.events <- &events.TaskExecAdded{ContainerID: r.ID, ExecID: r.ExecID}
	return empty, nil
}

// Start runs it.
func (s *service) Start(_ context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	p, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	pid, err := p.start(func(pid int) {
		// The start event goes before the exit event, which waits for this.
		if r.ExecID == "" {
			s.events <- &events.TaskStart{ContainerID: r.ID, Pid: uint32(pid)}
		} else {
			s.events <- &events.TaskExecStarted{ContainerID: r.ID, ExecID: r.ExecID, Pid: uint32(pid)}
		}
	}, func(pid int, st status) {
		id := r.ExecID
		if id == "" {
			id = r.ID
		}
		s.events <- &events.TaskExit{ContainerID: r.ID, ID: id, Pid: uint32(pid), ExitStatus: st.code, ExitedAt: protobuf.ToTimestamp(st.at)}
	})
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &taskapi.StartResponse{Pid: uint32(pid)}, nil
}

// Delete forgets a process that is not running.
func (s *service) Delete(_ context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	p, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	state, pid, st := p.state()
	if state == task.Status_RUNNING {
		return nil, errgrpc.ToGRPCf(errdefs.ErrFailedPrecondition, "process is running")
	}
	s.mu.Lock()
	delete(s.procs, key{r.ID, r.ExecID})
	s.mu.Unlock()
	if r.ExecID == "" {
		s.events <- &events.TaskDelete{ContainerID: r.ID, Pid: uint32(pid), ExitStatus: st.code, ExitedAt: protobuf.ToTimestamp(st.at)}
	}
	return &taskapi.DeleteResponse{Pid: uint32(pid), ExitStatus: st.code, ExitedAt: protobuf.ToTimestamp(st.at)}, nil
}

// State tells how a process is.
func (s *service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	p, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	state, pid, st := p.state()
	id := r.ExecID
	if id == "" {
		id = r.ID
	}
	return &taskapi.StateResponse{ID: id, ExecID: r.ExecID, Bundle: p.bundle, Pid: uint32(pid), Status: state,
		Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, ExitStatus: st.code, ExitedAt: protobuf.ToTimestamp(st.at)}, nil
}

// Kill sends a signal.
func (s *service) Kill(_ context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	p, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if err := p.kill(int(r.Signal)); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return empty, nil
}

// Wait answers when a process has exited.
func (s *service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	p, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, errgrpc.ToGRPC(ctx.Err())
	}
	_, _, st := p.state()
	return &taskapi.WaitResponse{ExitStatus: st.code, ExitedAt: protobuf.ToTimestamp(st.at)}, nil
}

// Pids lists the processes that run.
func (s *service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &taskapi.PidsResponse{}
	for k, p := range s.procs {
		if state, pid, _ := p.state(); k.id == r.ID && state == task.Status_RUNNING {
			resp.Processes = append(resp.Processes, &task.ProcessInfo{Pid: uint32(pid)})
		}
	}
	return resp, nil
}

// Connect tells the numbers of the shim and the container's process.
func (s *service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	var pid int
	if p, err := s.get(r.ID, ""); err == nil {
		_, pid, _ = p.state()
	}
	return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: uint32(pid)}, nil
}

// Shutdown ends the shim once it serves nobody.
func (s *service) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.procs) == 0 {
		s.shutdown.Shutdown()
	}
	return empty, nil
}

// CloseIO has nothing to close: the process has its own end of the fifo, and
// ours was closed at start.
func (s *service) CloseIO(context.Context, *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	return empty, nil
}

// The rest is not a bare process's business.

var errNot = errgrpc.ToGRPC(errdefs.ErrNotImplemented)

func (s *service) Pause(context.Context, *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return nil, errNot
}
func (s *service) Resume(context.Context, *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return nil, errNot
}
func (s *service) Checkpoint(context.Context, *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, errNot
}
func (s *service) ResizePty(context.Context, *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	return nil, errNot
}
func (s *service) Update(context.Context, *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	return nil, errNot
}
func (s *service) Stats(context.Context, *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	return nil, errNot
}
