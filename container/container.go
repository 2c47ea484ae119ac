// Package container makes containers of Plans: it knows the stub, the
// cgroups and the order in which they meet, and nothing of containerd.
package container

import (
	"context"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A Runtime is what all containers of one shim share: the stub, its arena and the monitors.
type Runtime struct{ runtimeState }

// New starts a Runtime. The stub is started in the background; a failure of
// it is the error of the first Create.
func New() *Runtime { return newRuntime() }

// Close kills the stub. Containers are to be deleted before; what is left of them when this
// process ends, ends with it if it has not exec'd.
func (r *Runtime) Close() error { return r.close() }

// Mount is a mount of the root file system, as containerd's create request has it.
type Mount struct {
	Type, Source, Target string
	Options              []string
}

// IsolationAnnotation is the config's annotation that says how much its processes are kept
// apart before they exec: "auto", or "always", with which not even a joiner shares memory with the stub.
const IsolationAnnotation = "io.rsys.isolation"

// HostRootfsAnnotation is the config's annotation, "true" or "false", that says whether the root file system is to be mounted at the
// bundle's rootfs on the host too, for tools that look there.
const HostRootfsAnnotation = "io.rsys.rootfs-on-host"

// Config is a container to be created.
type Config struct {
	ID            string
	Bundle        string
	Spec          *specs.Spec
	Rootfs        []Mount
	SystemdCgroup bool
	NoPivotRoot   bool
	NoNewKeyring  bool
	Isolation     string // as [IsolationAnnotation]; of the two the stricter holds
	HostRootfs    bool   // unless [HostRootfsAnnotation] says otherwise
	Stdio         Stdio
}

// Stdio is what a process has as standard input, output and error. With
// process.terminal set it is ignored: the process gets a pseudoterminal, whose
// master is [Process.Terminal]. A nil file is /dev/null. The caller keeps the files and
// may close them as soon as Create or Exec has returned.
type Stdio struct{ Stdin, Stdout, Stderr *os.File }

// Create makes a container, up to but not with the exec of its program. On an
// error nothing is left. Its init is c.Init.
func (r *Runtime) Create(ctx context.Context, cfg Config) (*Container, error) {
	return r.create(ctx, cfg)
}

// Restore makes a container that is there as criu's images have it, once its Init is started; until then it has no process, and
// Pid is 0. The config is that which the dumped one was made of, but for where things are.
func (r *Runtime) Restore(ctx context.Context, cfg Config, from Restore) (*Container, error) {
	return r.restore(ctx, cfg, from)
}

// A Container is a created container.
type Container struct {
	Init     *Process
	Warnings []string // what of the config this kernel or runtime does not know, and may ignore
	containerState
}

// A Process is a container's init or an exec'd process.
type Process struct {
	Warnings []string // as a Container's, of an exec'd process
	processState
}

// Pid is the process's ID in the shim's PID namespace.
func (p *Process) Pid() int { return p.pid() }

// Start runs the process's program; it returns when execve has succeeded or failed.
func (p *Process) Start(ctx context.Context) error { return p.start(ctx) }

// Terminal is the master of the process's pseudoterminal, non-blocking and owned by
// the Process; nil if it has none.
func (p *Process) Terminal() *os.File { return p.terminal() }

// Signal sends a signal to the process; errdefs.ErrNotFound if it has exited.
func (p *Process) Signal(sig unix.Signal) error { return p.signal(sig) }

// Exit is how a process ended.
type Exit struct {
	Status uint32 // as containerd has it: the exit code, or 128 + the signal
	At     time.Time
}

// Exited is closed when the process has exited and was reaped; Exit then tells how.
func (p *Process) Exited() <-chan struct{} { return p.exited() }

// Exit may be called when Exited is closed.
func (p *Process) Exit() Exit { return p.exit() }

// Close kills the process if it still runs, waits for it, and frees what it holds.
func (p *Process) Close() error { return p.close() }

// Exec makes a process in the container, to be started by its Start. It is
// only compiled and checked here; the process is cloned by Start, so that Pid is 0 before.
// terminal files are available after Start.
func (c *Container) Exec(ctx context.Context, spec *specs.Process, stdio Stdio) (*Process, error) {
	return c.ready(ctx).Exec(ctx, spec, stdio)
}

// Ready begins, in the background, with an Exec that is to come: [Ready.Exec], or [Ready.Close] if it does not.
func (c *Container) Ready(ctx context.Context) *Ready { return c.ready(ctx) }

// KillAll sends SIGKILL to every process in the container's cgroup, frozen ones too; any
// other signal is sent to each once.
func (c *Container) KillAll(sig unix.Signal) error { return c.killAll(sig) }

// Pids are the processes in the container's cgroup, in the shim's PID namespace. Of one that is yet to be restored, it is the
// process that holds its mounts: a containerd that starts forgets a task of which there is none, and ends its shim.
func (c *Container) Pids() ([]int, error) { return c.pids() }

func (c *Container) Pause(ctx context.Context) error  { return c.pause(ctx) }
func (c *Container) Resume(ctx context.Context) error { return c.resume(ctx) }

// Checkpoint has criu dump the container, whose program must run; it may be frozen. Without Checkpoint.Exit it goes on as it was,
// as it does after an error.
func (c *Container) Checkpoint(ctx context.Context, cfg Checkpoint) error {
	return c.checkpoint(ctx, cfg)
}

// Update changes the resources of the container's cgroup.
func (c *Container) Update(res *specs.LinuxResources) error { return c.update(res) }

// Stats are the cgroup's metrics, in the type that containerd expects for the
// host's cgroup version, ready to be put in an Any.
func (c *Container) Stats() (any, error) { return c.stats() }

// OOM yields a value each time the kernel killed something in the container for want of
// memory; it is closed when the cgroup goes.
func (c *Container) OOM(ctx context.Context) (<-chan struct{}, error) { return c.oom(ctx) }

// SharesPID says that the container has no PID namespace of its own, so that processes
// may outlive its init.
func (c *Container) SharesPID() bool { return c.sharesPID() }

// Delete removes what is left of a container whose init has exited: its
// processes, its cgroup. It may be called again after an error.
func (c *Container) Delete(ctx context.Context) error { return c.delete(ctx) }

// Cleanup removes what a container left whose shim was killed, knowing only its
// bundle: the delete verb's work.
func Cleanup(ctx context.Context, id, bundle string, systemdCgroup bool) (Exit, error) {
	return cleanup(ctx, id, bundle, systemdCgroup)
}
