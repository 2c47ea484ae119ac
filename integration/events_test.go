package integration

import (
	"context"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/typeurl/v2"
	"github.com/rsys-io/rsys/integration/harness"
)

// recorder keeps the events of tasks as lines: the kind, the container, the exec.
type recorder struct {
	e    *harness.Env
	mu   sync.Mutex
	seen []string
	exit map[string]uint32
}

// record begins to record, and ends with the test.
func record(e *harness.Env) *recorder {
	ctx, cancel := context.WithCancel(e.Ctx)
	e.Cleanup(cancel)
	r := &recorder{e: e, exit: map[string]uint32{}}
	ch, errs := e.Client.Subscribe(ctx, `topic~="/tasks/"`)
	go func() {
		for {
			select {
			case ev := <-ch:
				v, err := typeurl.UnmarshalAny(ev.Event)
				if err != nil {
					continue
				}
				r.add(strings.TrimPrefix(ev.Topic, "/tasks/"), v)
			case <-errs:
				return
			}
		}
	}()
	// Subscribing is not done when Subscribe returns.
	e.Eventually("the recorder hears", func() bool {
		e.Must(e.Client.EventService().Publish(e.Ctx, "/tasks/ready", &events.TaskPaused{ContainerID: "recorder"}), "publish")
		return len(r.of("recorder")) > 0
	})
	return r
}

func (r *recorder) add(kind string, v any) {
	var f []string
	switch v := v.(type) {
	case *events.TaskExit:
		f = []string{v.ContainerID}
		if v.ID != v.ContainerID {
			f = append(f, v.ID)
		}
		r.mu.Lock()
		r.exit[strings.Join(f, " ")] = v.ExitStatus
		r.mu.Unlock()
	case *events.TaskExecAdded:
		f = []string{v.ContainerID, v.ExecID}
	case *events.TaskExecStarted:
		f = []string{v.ContainerID, v.ExecID}
	case interface{ GetContainerID() string }:
		f = []string{v.GetContainerID()}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, kind+" "+strings.Join(f, " "))
}

// of lists the events of one container, without its name.
func (r *recorder) of(id string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var seen []string
	for _, s := range r.seen {
		if f := strings.Fields(s); f[1] == id {
			seen = append(seen, strings.Join(slices.Delete(f, 1, 2), " "))
		}
	}
	return seen
}

func (r *recorder) eventually(what string, so func(seen []string) bool) {
	r.e.Helper()
	r.e.Eventually(what, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return so(r.seen)
	})
}

func TestEventsComeInContainerdsOrder(t *testing.T) {
	e := start(t)
	r := record(e)
	c := e.Container(harness.Sleep()).Run()
	x := c.Exec(nil, c.Process(harness.Sh("exit 6"))).StartExec()
	x.WaitExec()
	e.Must(c.Task.Pause(e.Ctx), "pause")
	e.Must(c.Task.Resume(e.Ctx), "resume")
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
	id := x.Process.ID()
	want := []string{"create", "start", "exec-added " + id, "exec-started " + id, "exit " + id, "paused", "resumed", "exit", "delete"}
	if peer() {
		// runc's shim may end before its last event is out.
		want = want[:len(want)-1]
	}
	e.Eventually("the last event", func() bool { return len(r.of(c.ID())) >= len(want) })
	if got := r.of(c.ID()); !slices.Equal(got[:len(want)], want) {
		t.Errorf("events are %q, want %q", got, want)
	}
	if got := r.exit[c.ID()+" "+id]; got != 6 {
		t.Errorf("the exec's exit event says %d, want 6", got)
	}
	if got := r.exit[c.ID()]; got != 137 {
		t.Errorf("the container's exit event says %d, want 137", got)
	}
}

func TestEventsOfProcessesThatEndAtOnceAreInOrder(t *testing.T) {
	e := start(t)
	r := record(e)
	c := e.Container(harness.Sleep()).Run()
	var want []string
	want = append(want, "create", "start")
	for range 10 {
		x := c.Exec(nil, c.Process([]string{"true"})).StartExec()
		x.WaitExec()
		id := x.Process.ID()
		want = append(want, "exec-added "+id, "exec-started "+id, "exit "+id)
	}
	e.Eventually("the last event", func() bool { return len(r.of(c.ID())) >= len(want) })
	if got := r.of(c.ID()); !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}
