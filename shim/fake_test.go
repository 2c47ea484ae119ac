package shim

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/rsys-io/rsys/container"
)

// A fakeRuntime makes containers of nothing, whose processes end when they are told to.
type fakeRuntime struct {
	mu        sync.Mutex
	nextPid   int
	sharesPID bool
	createErr error
	created   []*fakeContainer
	configs   []container.Config
	restored  []container.Restore
}

func (r *fakeRuntime) create(_ context.Context, cfg container.Config) (taskContainer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.createErr != nil {
		return nil, r.createErr
	}
	c := &fakeContainer{r: r, oom: make(chan struct{})}
	c.main = r.newProcess()
	c.main.pidNow()
	r.created = append(r.created, c)
	r.configs = append(r.configs, cfg)
	return c, nil
}

func (r *fakeRuntime) restore(ctx context.Context, cfg container.Config, from container.Restore) (taskContainer, error) {
	c, err := r.create(ctx, cfg)
	if err == nil {
		r.restored = append(r.restored, from)
		f := c.(*fakeContainer)
		f.main.mu.Lock()
		f.main.pid = 0
		f.main.mu.Unlock()
	}
	return c, err
}

func (r *fakeRuntime) Close() error { return nil }

func (r *fakeRuntime) newProcess() *fakeProcess {
	r.nextPid++
	return &fakeProcess{want: 1000 + r.nextPid, ended: make(chan struct{})}
}

func (r *fakeRuntime) last() *fakeContainer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.created[len(r.created)-1]
}

type fakeContainer struct {
	r    *fakeRuntime
	main *fakeProcess
	oom  chan struct{}

	mu     sync.Mutex
	execs  []*fakeProcess
	frozen bool
	calls  []string
	fail   error // of Pause, Delete, Checkpoint

	checkpoints []container.Checkpoint
}

func (c *fakeContainer) note(call string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, call)
}

func (c *fakeContainer) init() taskProcess  { return c.main }
func (c *fakeContainer) warnings() []string { return []string{"what it does not know"} }

func (c *fakeContainer) ready(context.Context) taskReady { return c }
func (c *fakeContainer) Close()                          { c.note("ready closed") }

func (c *fakeContainer) exec(_ context.Context, spec *specs.Process, _ container.Stdio) (taskProcess, error) {
	if len(spec.Args) > 0 && spec.Args[0] == "bad" {
		return nil, errors.New("bad spec")
	}
	c.r.mu.Lock()
	p := c.r.newProcess()
	c.r.mu.Unlock()
	if len(spec.Args) > 0 && spec.Args[0] == "nosuch" {
		p.startErr = errors.New("not in $PATH")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.execs = append(c.execs, p)
	return p, nil
}

func (c *fakeContainer) KillAll(sig unix.Signal) error {
	c.note("killall " + unix.SignalName(sig))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.execs {
		p.end(128 + uint32(sig))
	}
	c.main.end(128 + uint32(sig))
	return nil
}

func (c *fakeContainer) Checkpoint(_ context.Context, cfg container.Checkpoint) error {
	c.note("checkpoint to " + cfg.Images)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checkpoints = append(c.checkpoints, cfg)
	return c.fail
}

func (c *fakeContainer) Pids() ([]int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var pids []int
	for _, p := range append([]*fakeProcess{c.main}, c.execs...) {
		select {
		case <-p.ended:
		default:
			pids = append(pids, p.Pid())
		}
	}
	return pids, nil
}

func (c *fakeContainer) Pause(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen = c.fail == nil
	return c.fail
}

func (c *fakeContainer) Resume(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen = false
	return nil
}

func (c *fakeContainer) Update(res *specs.LinuxResources) error { c.note("update"); return nil }
func (c *fakeContainer) Stats() (any, error)                    { return wrapperspb.String("stats"), nil }
func (c *fakeContainer) SharesPID() bool                        { return c.r.sharesPID }

func (c *fakeContainer) OOM(context.Context) (<-chan struct{}, error) { return c.oom, nil }

func (c *fakeContainer) Delete(context.Context) error {
	c.note("delete")
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fail
}

type fakeProcess struct {
	want     int
	startErr error
	endEarly bool          // the process has ended before Start returns
	starts   chan struct{} // if not nil, Start waits for what comes by it

	mu     sync.Mutex
	pid    int
	once   sync.Once
	ended  chan struct{}
	exit   container.Exit
	term   *os.File
	closed bool
}

func (p *fakeProcess) pidNow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = p.want
}

func (p *fakeProcess) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

func (p *fakeProcess) Start(context.Context) error {
	if p.starts != nil {
		<-p.starts
	}
	if p.startErr != nil {
		return p.startErr
	}
	p.pidNow()
	if p.endEarly {
		p.end(7)
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

func (p *fakeProcess) Terminal() *os.File { return p.term }

func (p *fakeProcess) Signal(sig unix.Signal) error {
	select {
	case <-p.ended:
		return errdefs.ErrNotFound
	default:
	}
	if sig == unix.SIGKILL || sig == unix.SIGTERM {
		p.end(128 + uint32(sig))
	}
	return nil
}

func (p *fakeProcess) end(status uint32) {
	p.once.Do(func() {
		p.exit = container.Exit{Status: status, At: time.Now()}
		close(p.ended)
	})
}

func (p *fakeProcess) Exited() <-chan struct{} { return p.ended }
func (p *fakeProcess) Exit() container.Exit    { return p.exit }

func (p *fakeProcess) Close() error {
	p.end(137)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}

// An eventLog is a publisher that keeps what it is given.
type eventLog struct {
	mu     sync.Mutex
	topics []string
	events []proto.Message
}

func (l *eventLog) send(topic string, event proto.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.topics = append(l.topics, topic)
	l.events = append(l.events, event)
}

func (l *eventLog) got() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.topics...)
}
