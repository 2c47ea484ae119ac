package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/rsys-io/rsys/cgroup"
	"github.com/rsys-io/rsys/container"
	"github.com/rsys-io/rsys/stub"
)

const sandboxAPI = "containerd.runtime.sandbox.v1.Sandbox"

// sandboxService holds the namespaces of a pod that has no pause container. It has one sandbox, as a shim is one pod's; its
// containers are those of the task service.
type sandboxService struct {
	tasks *service

	mu      sync.Mutex
	sandbox *sandbox // nil before it is created and after it was shut down
}

// A sandbox is a container in all but its program and root file system, which are ours: 227 bytes that sleep.
type sandbox struct {
	id, bundle   string
	spec         *specs.Spec
	files        *podFiles
	cgroupParent string
	t            taskContainer
	done         chan struct{} // closed when the process that holds the namespaces has ended

	op sync.Mutex // held while the sandbox is started or stopped

	mu sync.Mutex
	sandboxState
}

type sandboxState struct {
	state      string
	pid        int // 0 unless it runs
	exitStatus uint32
	createdAt  time.Time
	exitedAt   time.Time
}

// The states that CRI knows.
const (
	sandboxReady    = "SANDBOX_READY"
	sandboxNotReady = "SANDBOX_NOTREADY"
)

func (s *sandboxService) find(id string) (*sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sandbox == nil || s.sandbox.id != id {
		return nil, notFound("sandbox %s", id)
	}
	return s.sandbox, nil
}

func (sb *sandbox) snapshot() sandboxState {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.sandboxState
}

// create makes the sandbox up to its start. On an error nothing is left; containerd then asks for a shutdown.
func (s *sandboxService) create(ctx context.Context, r *sandboxRequest) (err error) {
	if r.id == "" || r.bundle == "" {
		return invalid("create: no sandbox_id or no bundle_path")
	}
	if r.rootfs > 0 {
		return fmt.Errorf("create: rootfs: a sandbox has no root file system here: %w", errdefs.ErrNotImplemented)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sandbox != nil {
		return fmt.Errorf("sandbox %s: this shim has %s: %w", r.id, s.sandbox.id, errdefs.ErrAlreadyExists)
	}
	sb := &sandbox{id: r.id, bundle: r.bundle, done: make(chan struct{})}
	pod, err := sb.configure(r)
	if err != nil {
		return err
	}
	if err := s.tasks.pin(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.tasks.unpin()
			s.tasks.settled()
		}
	}()
	owner, err := ownerOfNetwork(sb.spec)
	if err != nil {
		return err
	}
	defer owner.Close()
	// For the delete verb, should this shim die.
	systemd := inSlice(sb.cgroupParent)
	if err := saveOptions(sb.bundle, &options{Options: &runcoptions.Options{SystemdCgroup: systemd}}); err != nil {
		return fmt.Errorf("save the options: %w", err)
	}
	if sb.files, err = makePodFiles(sb.bundle, sb.spec, pod); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, sb.files.remove())
		}
	}()
	program := filepath.Join(sb.files.dir, "pause")
	if err := os.WriteFile(program, stub.Pause(), 0o555); err != nil {
		return err
	}
	hold(sb.spec, program)
	config, err := json.Marshal(sb.spec)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(sb.bundle, "config.json"), config, 0o644); err != nil {
		return err
	}
	sb.t, err = s.tasks.runtime.create(ctx, container.Config{
		ID: sb.id, Bundle: sb.bundle, Spec: sb.spec, SystemdCgroup: systemd, NoNewKeyring: true,
		Rootfs: []container.Mount{{Type: "tmpfs", Source: "pod", Options: []string{
			"nosuid", "mode=755", "size=64k",
			fmt.Sprintf("uid=%d", hostID(sb.spec.Linux.UIDMappings)), fmt.Sprintf("gid=%d", hostID(sb.spec.Linux.GIDMappings)),
		}}},
	})
	if err != nil {
		return fmt.Errorf("make the namespaces of sandbox %s: %w", sb.id, err)
	}
	for _, w := range sb.t.warnings() {
		log.L.Warnf("sandbox %s: %s", sb.id, w)
	}
	sb.state = sandboxNotReady
	s.sandbox = sb
	go sb.watch()
	s.tasks.settled()
	return nil
}

// configure says what the sandbox is: by CRI's configuration, by the spec that a client of containerd gave the sandbox, or, with
// neither, namespaces of each kind that a pod has.
func (sb *sandbox) configure(r *sandboxRequest) (*podConfig, error) {
	pod := new(podConfig)
	if r.options != nil && len(r.options.Value) > 0 {
		if name := string(r.options.MessageName()); name != podConfigType {
			return nil, invalid("create: options: unknown type %q", r.options.TypeUrl)
		}
		if err := pod.parse(r.options.Value); err != nil {
			return nil, invalid("create: options: %s: %v", podConfigType, err)
		}
	} else if _, err := os.Stat(filepath.Join(r.bundle, "config.json")); err == nil {
		spec, err := readSpec(r.bundle)
		if err != nil {
			return nil, err
		}
		if ns := namespaceOf(spec, specs.NetworkNamespace); ns != nil && r.netns != "" {
			ns.Path = r.netns
		}
		sb.spec = spec
		return pod, nil
	}
	spec, err := pod.spec(r.id, r.netns)
	if err != nil {
		return nil, err
	}
	for _, kv := range r.annotations {
		spec.Annotations[kv[0]] = kv[1]
	}
	sb.spec, sb.cgroupParent = spec, pod.cgroupParent
	return pod, nil
}

// ownerOfNetwork has the sandbox in the user namespace that owns its network namespace, if it is to be in one of its own: the pod's root
// is to be root of the pod's network. CRI makes the two together.
func ownerOfNetwork(spec *specs.Spec) (*os.File, error) {
	user, net := namespaceOf(spec, specs.UserNamespace), namespaceOf(spec, specs.NetworkNamespace)
	if user == nil || user.Path != "" || net == nil || net.Path == "" {
		return nil, nil
	}
	f, err := os.Open(net.Path)
	if err != nil {
		return nil, invalid("netns_path: %v", err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return nil, fmt.Errorf("ioctl(NS_GET_USERNS) of %s: %w", net.Path, err)
	}
	unix.CloseOnExec(fd)
	owner := os.NewFile(uintptr(fd), "user namespace of "+net.Path)
	var ours, its unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/self/ns/user", &ours), unix.Fstat(fd, &its)); err != nil {
		owner.Close()
		return nil, err
	}
	if ours.Ino != its.Ino {
		user.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
	}
	return owner, nil
}

// watch waits for the end of the process that holds the namespaces.
func (sb *sandbox) watch() {
	p := sb.t.init()
	<-p.Exited()
	exit := p.Exit()
	sb.mu.Lock()
	sb.state, sb.pid, sb.exitStatus, sb.exitedAt = sandboxNotReady, 0, exit.Status, exit.At
	sb.mu.Unlock()
	close(sb.done)
}

func (s *sandboxService) start(ctx context.Context, id string) (sandboxState, *anypb.Any, error) {
	sb, err := s.find(id)
	if err != nil {
		return sandboxState{}, nil, err
	}
	sb.op.Lock()
	defer sb.op.Unlock()
	if st := sb.snapshot(); !st.createdAt.IsZero() || !st.exitedAt.IsZero() {
		return st, nil, precondition("sandbox %s was started before", id)
	}
	config, err := json.Marshal(sb.spec)
	if err != nil {
		return sandboxState{}, nil, err
	}
	p := sb.t.init()
	if err := p.Start(ctx); err != nil {
		return sandboxState{}, nil, fmt.Errorf("start sandbox %s: %w", id, err)
	}
	if err := os.WriteFile(filepath.Join(sb.bundle, pidFile), []byte(strconv.Itoa(p.Pid())), 0o644); err != nil {
		return sandboxState{}, nil, err
	}
	sb.mu.Lock()
	sb.createdAt = time.Now()
	if sb.exitedAt.IsZero() {
		sb.state, sb.pid = sandboxReady, p.Pid()
	}
	sb.mu.Unlock()
	s.tasks.settled()
	return sb.snapshot(), &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: config}, nil
}

func (s *sandboxService) platform(id string) (*types.Platform, error) {
	if _, err := s.find(id); err != nil {
		return nil, err
	}
	return &types.Platform{OS: goruntime.GOOS, Architecture: goruntime.GOARCH}, nil
}

// stopTime is how long a stop without a timeout waits for what it has killed.
const stopTime = 10 * time.Second

// stop ends what is left of the pod's containers, and the holder of its namespaces. What was stopped stays so.
func (s *sandboxService) stop(ctx context.Context, id string, timeout time.Duration) error {
	sb, err := s.find(id)
	if err != nil {
		return err
	}
	if timeout <= 0 {
		timeout = stopTime
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return s.end(ctx, sb)
}

func (s *sandboxService) end(ctx context.Context, sb *sandbox) error {
	sb.op.Lock()
	defer sb.op.Unlock()
	err := s.tasks.killContainers(ctx)
	p := sb.t.init()
	if sb.snapshot().createdAt.IsZero() {
		err = errors.Join(err, p.Close()) // it was not started
	} else if e := p.Signal(unix.SIGKILL); e != nil && !errdefs.IsNotFound(e) {
		err = errors.Join(err, e)
	}
	select {
	case <-sb.done:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("end sandbox %s: %w", sb.id, ctx.Err()))
	}
}

func (s *sandboxService) wait(ctx context.Context, id string) (sandboxState, error) {
	sb, err := s.find(id)
	if err != nil {
		return sandboxState{}, err
	}
	select {
	case <-sb.done:
		return sb.snapshot(), nil
	case <-ctx.Done():
		return sandboxState{}, ctx.Err()
	}
}

func (s *sandboxService) status(id string, verbose bool) (sandboxState, [][2]string, error) {
	sb, err := s.find(id)
	if err != nil {
		return sandboxState{}, nil, err
	}
	st := sb.snapshot()
	if !verbose {
		return st, nil, nil
	}
	info, err := json.Marshal(struct {
		Pid         int         `json:"pid"`
		ShimPid     int         `json:"shimPid"`
		RuntimeSpec *specs.Spec `json:"runtimeSpec"`
	}{st.pid, os.Getpid(), sb.spec})
	if err != nil {
		return st, nil, err
	}
	return st, [][2]string{{"info", string(info)}}, nil
}

// metrics are those of the pod's cgroup, which has the containers' below it; without one, of the holder's own.
func (s *sandboxService) metrics(id string) (*anypb.Any, error) {
	sb, err := s.find(id)
	if err != nil {
		return nil, err
	}
	if sb.cgroupParent == "" {
		stats, err := sb.t.Stats()
		if err != nil {
			return nil, fmt.Errorf("metrics of sandbox %s: %w", id, err)
		}
		return statsAny(stats)
	}
	cg, err := cgroup.Load(cgroup.Config{Path: sb.cgroupParent, ID: id})
	if err != nil {
		return nil, fmt.Errorf("metrics of sandbox %s: cgroup %s: %w", id, sb.cgroupParent, err)
	}
	stats, err := cg.Stats()
	if err != nil {
		return nil, fmt.Errorf("metrics of sandbox %s: %w", id, err)
	}
	return statsAny(stats)
}

// shutdown ends the shim, and before that all that there is of the pod. It may be asked of a shim whose sandbox was not created.
func (s *sandboxService) shutdown(ctx context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb := s.sandbox
	if sb == nil {
		_, err := s.tasks.Shutdown(ctx, nil)
		return err
	}
	if sb.id != id {
		return notFound("sandbox %s", id)
	}
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	if err := s.end(ctx, sb); err != nil {
		return err
	}
	if err := errors.Join(s.tasks.deleteContainers(ctx), sb.t.Delete(ctx), sb.files.remove()); err != nil {
		return fmt.Errorf("shut down sandbox %s: %w", id, err)
	}
	s.sandbox = nil
	s.tasks.unpin()
	_, err := s.tasks.Shutdown(ctx, nil)
	return err
}

// shutdownWhatIs is a shutdown of whatever sandbox there is.
func (s *sandboxService) shutdownWhatIs(ctx context.Context) error {
	s.mu.Lock()
	id := ""
	if s.sandbox != nil {
		id = s.sandbox.id
	}
	s.mu.Unlock()
	return s.shutdown(ctx, id)
}

// share gives a container of the sandbox its share of the pod's files.
func (s *sandboxService) share(spec *specs.Spec) {
	if sb, err := s.find(spec.Annotations[sandboxIDAnnotation]); err == nil {
		sb.files.share(spec)
	}
}
