package shim

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

type harness struct {
	*testing.T
	ctx      context.Context
	rt       *fakeRuntime
	log      *eventLog
	svc      *service
	task     taskapi.TTRPCTaskService
	shutdown chan struct{}
}

// newHarness serves the task service, over a fake runtime, to a ttrpc client.
func newHarness(t *testing.T) *harness {
	h := &harness{T: t, ctx: testContext(t), rt: new(fakeRuntime), log: new(eventLog), shutdown: make(chan struct{})}
	h.svc = newService("test", h.rt, h.log, func() { close(h.shutdown) }, func() {})
	server, err := newServer(h.svc, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(context.Background(), l)
	t.Cleanup(func() { server.Close() })
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	h.task = taskapi.NewTTRPCTaskClient(client)
	return h
}

func (h *harness) create(id string) *fakeContainer {
	h.Helper()
	r := &taskapi.CreateTaskRequest{ID: id, Bundle: newBundle(h.T, `{"process":{"args":["x"],"terminal":true}}`)}
	if _, err := h.task.Create(h.ctx, r); err != nil {
		h.Fatal(err)
	}
	return h.rt.last()
}

func (h *harness) start(id, exec string) {
	h.Helper()
	if _, err := h.task.Start(h.ctx, &taskapi.StartRequest{ID: id, ExecID: exec}); err != nil {
		h.Fatal(err)
	}
}

func (h *harness) exec(id, exec, arg string) error {
	_, err := h.task.Exec(h.ctx, &taskapi.ExecProcessRequest{ID: id, ExecID: exec, Spec: &anypb.Any{Value: []byte(`{"args":["` + arg + `"]}`)}})
	return err
}

func (h *harness) wait(id, exec string) uint32 {
	h.Helper()
	r, err := h.task.Wait(h.ctx, &taskapi.WaitRequest{ID: id, ExecID: exec})
	if err != nil {
		h.Fatal(err)
	}
	if r.ExitedAt.AsTime().Before(time.Now().Add(-time.Minute)) {
		h.Errorf("exited at %v", r.ExitedAt.AsTime())
	}
	return r.ExitStatus
}

func (h *harness) status(id, exec string) task.Status {
	h.Helper()
	r, err := h.task.State(h.ctx, &taskapi.StateRequest{ID: id, ExecID: exec})
	if err != nil {
		h.Fatal(err)
	}
	return r.Status
}

func (h *harness) wantCode(what string, err error, want codes.Code) {
	h.Helper()
	if got := status.Code(err); got != want {
		h.Errorf("%s: %v (%v), want %v", what, got, err, want)
	}
}

func (h *harness) wantEvents(want ...string) {
	h.Helper()
	eventually(h.T, strings.Join(want, " "), func() bool { return len(h.log.got()) >= len(want) })
	if got := h.log.got(); !slices.Equal(got, want) {
		h.Errorf("events %q, want %q", got, want)
	}
}

func TestLifecycle(t *testing.T) {
	h := newHarness(t)
	h.create("c")
	if s := h.status("c", ""); s != task.Status_CREATED {
		t.Error(s)
	}
	if h.rt.configs[0].Spec.Process.Terminal {
		t.Error("the request's terminal does not overrule the spec's")
	}
	_, err := h.task.Create(h.ctx, &taskapi.CreateTaskRequest{ID: "c", Bundle: t.TempDir()})
	h.wantCode("create again", err, codes.AlreadyExists)
	_, err = h.task.Pause(h.ctx, &taskapi.PauseRequest{ID: "c"})
	h.wantCode("pause a created one", err, codes.FailedPrecondition)
	h.start("c", "")
	if s := h.status("c", ""); s != task.Status_RUNNING {
		t.Error(s)
	}
	_, err = h.task.Start(h.ctx, &taskapi.StartRequest{ID: "c"})
	h.wantCode("start again", err, codes.FailedPrecondition)
	_, err = h.task.Delete(h.ctx, &taskapi.DeleteRequest{ID: "c"})
	h.wantCode("delete a running one", err, codes.FailedPrecondition)
	if _, err := h.task.Shutdown(h.ctx, &taskapi.ShutdownRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := h.task.Kill(h.ctx, &taskapi.KillRequest{ID: "c", Signal: 15}); err != nil {
		t.Error(err)
	}
	if s := h.wait("c", ""); s != 143 {
		t.Error(s)
	}
	if s := h.status("c", ""); s != task.Status_STOPPED {
		t.Error(s)
	}
	_, err = h.task.Kill(h.ctx, &taskapi.KillRequest{ID: "c", Signal: 9})
	h.wantCode("kill a stopped one", err, codes.NotFound)
	_, err = h.task.Kill(h.ctx, &taskapi.KillRequest{ID: "c", Signal: 9, All: true})
	h.wantCode("kill all of a stopped one", err, codes.NotFound)
	h.wantCode("exec in a stopped one", h.exec("c", "e", "x"), codes.FailedPrecondition)
	_, err = h.task.Update(h.ctx, &taskapi.UpdateTaskRequest{ID: "c", Resources: &anypb.Any{Value: []byte("{}")}})
	h.wantCode("update a stopped one", err, codes.FailedPrecondition)
	d, err := h.task.Delete(h.ctx, &taskapi.DeleteRequest{ID: "c"})
	if err != nil || d.ExitStatus != 143 || d.Pid != 1001 {
		t.Errorf("%v, %v", d, err)
	}
	for what, call := range map[string]func() error{
		"state":  func() error { _, err := h.task.State(h.ctx, &taskapi.StateRequest{ID: "c"}); return err },
		"start":  func() error { _, err := h.task.Start(h.ctx, &taskapi.StartRequest{ID: "c"}); return err },
		"delete": func() error { _, err := h.task.Delete(h.ctx, &taskapi.DeleteRequest{ID: "c"}); return err },
		"wait":   func() error { _, err := h.task.Wait(h.ctx, &taskapi.WaitRequest{ID: "c"}); return err },
		"kill":   func() error { _, err := h.task.Kill(h.ctx, &taskapi.KillRequest{ID: "c"}); return err },
		"pids":   func() error { _, err := h.task.Pids(h.ctx, &taskapi.PidsRequest{ID: "c"}); return err },
		"stats":  func() error { _, err := h.task.Stats(h.ctx, &taskapi.StatsRequest{ID: "c"}); return err },
		"exec":   func() error { return h.exec("c", "e", "x") },
		"checkpoint": func() error {
			_, err := h.task.Checkpoint(h.ctx, &taskapi.CheckpointTaskRequest{ID: "c"})
			return err
		},
	} {
		h.wantCode(what+" of a deleted one", call(), codes.NotFound)
	}
	h.wantEvents(topicCreate, topicStart, topicExit, topicDelete)
	if _, err := h.task.Shutdown(h.ctx, &taskapi.ShutdownRequest{}); err != nil {
		t.Error(err)
	}
	select {
	case <-h.shutdown:
	case <-h.ctx.Done():
		t.Error("no shutdown")
	}
	_, err = h.task.Create(h.ctx, &taskapi.CreateTaskRequest{ID: "late", Bundle: t.TempDir()})
	h.wantCode("create after shutdown", err, codes.Unavailable)
}

func TestExec(t *testing.T) {
	h := newHarness(t)
	c := h.create("c")
	h.start("c", "")
	if err := h.exec("c", "e", "x"); err != nil {
		t.Fatal(err)
	}
	h.wantCode("a second e", h.exec("c", "e", "x"), codes.AlreadyExists)
	if s := h.status("c", "e"); s != task.Status_CREATED {
		t.Error(s)
	}
	_, err := h.task.Kill(h.ctx, &taskapi.KillRequest{ID: "c", ExecID: "e", Signal: 9})
	h.wantCode("kill before the start", err, codes.FailedPrecondition)
	_, err = h.task.CloseIO(h.ctx, &taskapi.CloseIORequest{ID: "c", ExecID: "e", Stdin: true})
	h.wantCode("close before the start", err, codes.OK)
	h.start("c", "e")
	if e, err := h.svc.find("c", "e"); err != nil || !e.inputClosed {
		t.Errorf("a close before the start is forgotten: %v", err)
	}
	pids, err := h.task.Pids(h.ctx, &taskapi.PidsRequest{ID: "c"})
	if err != nil || len(pids.Processes) != 2 {
		t.Fatalf("%v, %v", pids, err)
	}
	var details runcoptions.ProcessDetails
	if err := pids.Processes[1].Info.UnmarshalTo(&details); err != nil || details.ExecID != "e" || pids.Processes[0].Info != nil {
		t.Errorf("%v: %v", pids, err)
	}
	_, err = h.task.Delete(h.ctx, &taskapi.DeleteRequest{ID: "c", ExecID: "e"})
	h.wantCode("delete a running exec", err, codes.FailedPrecondition)
	c.execs[0].end(3)
	if s := h.wait("c", "e"); s != 3 {
		t.Error(s)
	}
	if d, err := h.task.Delete(h.ctx, &taskapi.DeleteRequest{ID: "c", ExecID: "e"}); err != nil || d.ExitStatus != 3 || !c.execs[0].closed {
		t.Errorf("%v, %v", d, err)
	}
	_, err = h.task.State(h.ctx, &taskapi.StateRequest{ID: "c", ExecID: "e"})
	h.wantCode("state of a deleted exec", err, codes.NotFound)
	h.wantEvents(topicCreate, topicStart, topicExecAdded, topicExecStarted, topicExit)

	// What can't be started ends for those who wait for it.
	for _, arg := range []string{"bad", "nosuch"} {
		if err := h.exec("c", arg, arg); err != nil {
			t.Fatal(err)
		}
		_, err = h.task.Start(h.ctx, &taskapi.StartRequest{ID: "c", ExecID: arg})
		h.wantCode("start "+arg, err, codes.Unknown)
		if s := h.wait("c", arg); s != 255 {
			t.Error(s)
		}
		if _, err := h.task.Delete(h.ctx, &taskapi.DeleteRequest{ID: "c", ExecID: arg}); err != nil {
			t.Error(err)
		}
	}
	h.wantCode("a spec that is none", func() error {
		_, err := h.task.Exec(h.ctx, &taskapi.ExecProcessRequest{ID: "c", ExecID: "z", Spec: &anypb.Any{Value: []byte(`{"args":1}`)}})
		return err
	}(), codes.InvalidArgument)
	// One that was never started can be deleted.
	if err := h.exec("c", "never", "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.task.Delete(h.ctx, &taskapi.DeleteRequest{ID: "c", ExecID: "never"}); err != nil {
		t.Error(err)
	}
}

// An exit is told after the start, however fast it was; the init's after all others.
func TestEventOrder(t *testing.T) {
	for _, shares := range []bool{false, true} {
		h := newHarness(t)
		h.rt.sharesPID = shares
		c := h.create("c")
		c.main.endEarly = true
		if err := h.exec("c", "e", "x"); err != nil {
			t.Fatal(err)
		}
		h.start("c", "e")
		h.start("c", "")
		_, err := h.task.Start(h.ctx, &taskapi.StartRequest{ID: "c", ExecID: "nosuch"})
		h.wantCode("start of nothing", err, codes.NotFound)
		if !shares {
			time.Sleep(30 * time.Millisecond)
			if got := h.log.got(); slices.Contains(got, topicExit) {
				t.Errorf("the init's exit before the exec's: %q", got)
			}
			c.execs[0].end(137)
		}
		h.wait("c", "")
		got := h.log.got()
		if len(got) != 6 || got[5] != topicExit || !slices.Contains(got[:5], topicStart) {
			t.Fatalf("events %q", got)
		}
		if e := h.log.events[slices.Index(got, topicExit)].(*eventsapi.TaskExit); e.ID != "e" || e.ExitStatus != 137 {
			t.Error(e)
		}
		if e := h.log.events[5].(*eventsapi.TaskExit); e.ID != "c" || e.ExitStatus != 7 {
			t.Error(e)
		}
	}
}

// What a client asks that was cut off from a start by a restart of containerd: whether it has to start the process.
func TestTheStateDuringAStartIsThatAfterIt(t *testing.T) {
	h := newHarness(t)
	c := h.create("c")
	c.main.starts = make(chan struct{})
	started := make(chan error, 1)
	go func() {
		_, err := h.task.Start(h.ctx, &taskapi.StartRequest{ID: "c"})
		started <- err
	}()
	p, err := h.svc.find("c", "")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start is under way", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.starting != nil
	})
	state := make(chan task.Status, 1)
	go func() { state <- h.status("c", "") }()
	short, cancel := context.WithTimeout(h.ctx, 50*time.Millisecond)
	defer cancel()
	if r, err := h.task.State(short, &taskapi.StateRequest{ID: "c"}); err == nil {
		t.Errorf("who does not wait so long is told %s", r.Status)
	}
	select {
	case s := <-state:
		t.Errorf("during the start it is %s", s)
	default:
	}
	c.main.starts <- struct{}{}
	if s := <-state; s != task.Status_RUNNING {
		t.Error(s)
	}
	if err := <-started; err != nil {
		t.Error(err)
	}
}

// Docker deletes the task as soon as its start has failed, which containerd's client refuses while it is created.
func TestAContainerWhoseStartFailedHasEndedWhenThatIsTold(t *testing.T) {
	h := newHarness(t)
	c := h.create("c")
	c.main.startErr = errors.New("capset: EPERM")
	go func() {
		time.Sleep(50 * time.Millisecond)
		c.main.end(137)
	}()
	if _, err := h.task.Start(h.ctx, &taskapi.StartRequest{ID: "c"}); err == nil || !strings.Contains(err.Error(), "capset: EPERM") {
		t.Errorf("start: %v", err)
	}
	if s := h.status("c", ""); s != task.Status_STOPPED {
		t.Errorf("it is %s", s)
	}
}

// A containerd that starts again takes a shim whose container has no processes for a leftover, and ends it: from a process's end
// on, before that is told, there has to be one.
func TestAContainerHasAProcessUntilItIsDeleted(t *testing.T) {
	h := newHarness(t)
	c := h.create("c")
	h.start("c", "")
	want := func(when string) {
		t.Helper()
		r, err := h.task.Pids(h.ctx, &taskapi.PidsRequest{ID: "c"})
		if err != nil || len(r.Processes) != 1 || r.Processes[0].Pid != 1001 {
			t.Errorf("%s: %v, %v", when, r, err)
		}
	}
	want("running")
	p, err := h.svc.find("c", "")
	if err != nil {
		t.Fatal(err)
	}
	p.op.Lock() // as while output is waited for
	c.main.end(0)
	if s := h.status("c", ""); s != task.Status_RUNNING {
		t.Fatal(s)
	}
	want("ended, and not yet told so")
	p.op.Unlock()
	h.wait("c", "")
	want("stopped")
}

func TestCreatedIsDeleted(t *testing.T) {
	h := newHarness(t)
	h.create("c")
	d, err := h.task.Delete(h.ctx, &taskapi.DeleteRequest{ID: "c"})
	if err != nil || d.ExitStatus != 137 {
		t.Fatalf("%v, %v", d, err)
	}
	h.wantEvents(topicCreate, topicExit, topicDelete)
}

func TestDeleteAgainAfterAnError(t *testing.T) {
	h := newHarness(t)
	c := h.create("c")
	c.fail = errors.New("busy")
	_, err := h.task.Delete(h.ctx, &taskapi.DeleteRequest{ID: "c"})
	h.wantCode("delete", err, codes.Unknown)
	c.mu.Lock()
	c.fail = nil
	c.mu.Unlock()
	if _, err := h.task.Delete(h.ctx, &taskapi.DeleteRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	h.wantEvents(topicCreate, topicExit, topicDelete)
}

func TestPause(t *testing.T) {
	h := newHarness(t)
	c := h.create("c")
	h.start("c", "")
	if err := h.exec("c", "e", "x"); err != nil {
		t.Fatal(err)
	}
	h.start("c", "e")
	_, err := h.task.Resume(h.ctx, &taskapi.ResumeRequest{ID: "c"})
	h.wantCode("resume a running one", err, codes.FailedPrecondition)
	if _, err := h.task.Pause(h.ctx, &taskapi.PauseRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	if s := h.status("c", ""); s != task.Status_PAUSED {
		t.Error(s)
	}
	if s := h.status("c", "e"); s != task.Status_PAUSED {
		t.Error(s)
	}
	_, err = h.task.Pause(h.ctx, &taskapi.PauseRequest{ID: "c"})
	h.wantCode("pause again", err, codes.FailedPrecondition)
	h.wantCode("exec in a paused one", h.exec("c", "f", "x"), codes.FailedPrecondition)
	if _, err := h.task.Resume(h.ctx, &taskapi.ResumeRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	if s := h.status("c", ""); s != task.Status_RUNNING {
		t.Error(s)
	}
	c.fail = errors.New("no freezer")
	_, err = h.task.Pause(h.ctx, &taskapi.PauseRequest{ID: "c"})
	h.wantCode("pause", err, codes.Unknown)
	if s := h.status("c", ""); s != task.Status_RUNNING {
		t.Error(s)
	}
	c.mu.Lock()
	c.fail = nil
	c.mu.Unlock()

	// What is frozen is thawed to die.
	if _, err := h.task.Pause(h.ctx, &taskapi.PauseRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	c.execs[0].end(0)
	if _, err := h.task.Kill(h.ctx, &taskapi.KillRequest{ID: "c", Signal: uint32(unix.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	h.wait("c", "")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frozen {
		t.Error("still frozen")
	}
}

func TestWaitIsCancelled(t *testing.T) {
	h := newHarness(t)
	h.create("c")
	ctx, cancel := context.WithTimeout(h.ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := h.task.Wait(ctx, &taskapi.WaitRequest{ID: "c"}); err == nil {
		t.Error("waited for nothing")
	}
}

func TestOthers(t *testing.T) {
	h := newHarness(t)
	c := h.create("c")
	r, err := h.task.Connect(h.ctx, &taskapi.ConnectRequest{ID: "c"})
	if err != nil || int(r.ShimPid) != os.Getpid() || r.TaskPid != 1001 {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := h.task.Connect(h.ctx, &taskapi.ConnectRequest{ID: "other"}); err != nil || r.TaskPid != 0 {
		t.Errorf("%v, %v", r, err)
	}
	st, err := h.task.Stats(h.ctx, &taskapi.StatsRequest{ID: "c"})
	if err != nil || st.Stats.TypeUrl != "google.protobuf.StringValue" {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := h.task.Update(h.ctx, &taskapi.UpdateTaskRequest{ID: "c", Resources: &anypb.Any{Value: []byte(`{"pids":{"limit":5}}`)}}); err != nil {
		t.Error(err)
	}
	_, err = h.task.Update(h.ctx, &taskapi.UpdateTaskRequest{ID: "c", Resources: &anypb.Any{Value: []byte(`{"pids":5}`)}})
	h.wantCode("update", err, codes.InvalidArgument)
	_, err = h.task.Checkpoint(h.ctx, &taskapi.CheckpointTaskRequest{ID: "c"})
	h.wantCode("checkpoint of a created one", err, codes.FailedPrecondition)
	_, err = h.task.Kill(h.ctx, &taskapi.KillRequest{ID: "c", Signal: 99})
	h.wantCode("signal 99", err, codes.InvalidArgument)
	c.oom <- struct{}{}
	h.wantEvents(topicCreate, topicOOM)
	if _, err := h.task.Kill(h.ctx, &taskapi.KillRequest{ID: "c", Signal: 9, All: true}); err != nil {
		t.Error(err)
	}
	h.wait("c", "")
}

func TestCreateErrors(t *testing.T) {
	h := newHarness(t)
	req := func(config string, change func(*taskapi.CreateTaskRequest)) error {
		r := &taskapi.CreateTaskRequest{ID: "c", Bundle: newBundle(t, config), Rootfs: []*types.Mount{{Type: "bind"}}}
		if change != nil {
			change(r)
		}
		_, err := h.task.Create(h.ctx, r)
		return err
	}
	binaryName, _ := toAny(&runcoptions.Options{BinaryName: "crun"})
	h.wantCode("empty config", req("", nil), codes.InvalidArgument)
	h.wantCode("truncated config", req(`{"process":`, nil), codes.InvalidArgument)
	h.wantCode("wrong type", req(`{"process":{"args":{}}}`, nil), codes.InvalidArgument)
	h.wantCode("no bundle", req(`{}`, func(r *taskapi.CreateTaskRequest) { r.Bundle = "" }), codes.InvalidArgument)
	h.wantCode("no config", req(`{}`, func(r *taskapi.CreateTaskRequest) { r.Bundle = t.TempDir() }), codes.InvalidArgument)
	h.wantCode("binary name", req(`{}`, func(r *taskapi.CreateTaskRequest) { r.Options = binaryName }), codes.InvalidArgument)
	h.wantCode("stream by grpc", req(`{}`, func(r *taskapi.CreateTaskRequest) { r.Stdout = "grpc+vsock://3:1/?streaming_id=x" }), codes.Unimplemented)
	h.wantCode("stream without ID", req(`{}`, func(r *taskapi.CreateTaskRequest) { r.Stdout = "ttrpc+unix:///s" }), codes.InvalidArgument)
	h.wantCode("scheme", req(`{}`, func(r *taskapi.CreateTaskRequest) { r.Stdout = "gopher://x" }), codes.InvalidArgument)
	h.rt.createErr = errdefs.ErrNotFound
	h.wantCode("runtime", req(`{}`, nil), codes.NotFound)
	if got := h.log.got(); len(got) > 0 {
		t.Errorf("events %q", got)
	}
	h.rt.createErr = nil
	h.wantCode("after all that", req(`{}`, nil), codes.OK)
}

// containerd, started again, asks a shim to go in which a request of its predecessor still ends.
func TestShutdownDuringACreateWaitsForItsEnd(t *testing.T) {
	for _, tt := range []struct {
		name  string
		end   func(h *harness)
		leave bool
	}{
		{"one that fails", func(h *harness) { h.svc.set("c", nil) }, true},
		{"one that succeeds", func(h *harness) {
			h.svc.set("c", new(containerTask))
			h.svc.set("c", nil) // long after
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			if err := h.svc.reserve("c"); err != nil {
				t.Fatal(err)
			}
			if _, err := h.task.Shutdown(h.ctx, &taskapi.ShutdownRequest{}); err != nil {
				t.Fatal(err)
			}
			select {
			case <-h.shutdown:
				t.Fatal("it goes while a container is created")
			default:
			}
			tt.end(h)
			select {
			case <-h.shutdown:
				if !tt.leave {
					t.Error("it goes")
				}
			default:
				if tt.leave {
					t.Error("it stays")
				}
			}
		})
	}
}

func TestWhatIsCarriedThroughKeepsItsDeadlineAlone(t *testing.T) {
	ctx, lost := context.WithTimeout(context.Background(), 50*time.Millisecond)
	call := through(func(ctx context.Context, _ int) (int, error) {
		lost()
		if err := ctx.Err(); err != nil {
			t.Errorf("ended by the loss of the connection: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
		}
		return 0, ctx.Err()
	})
	if _, err := call(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
