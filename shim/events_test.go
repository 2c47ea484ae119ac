package shim

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	forward "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// A fakeContainerd takes events until it is closed.
type fakeContainerd struct {
	server *ttrpc.Server
	mu     sync.Mutex
	got    []string
	// hook may refuse an event, or hang.
	hook func(id string) error
}

func (f *fakeContainerd) Forward(_ context.Context, r *forward.ForwardRequest) (*emptypb.Empty, error) {
	var e eventsapi.TaskExit
	if err := r.Envelope.Event.UnmarshalTo(&e); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if r.Envelope.Namespace != "ns" || r.Envelope.Topic != topicExit || r.Envelope.Timestamp == nil {
		return nil, status.Error(codes.InvalidArgument, r.Envelope.String())
	}
	if f.hook != nil {
		if err := f.hook(e.ID); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got = append(f.got, e.ID)
	return new(emptypb.Empty), nil
}

func (f *fakeContainerd) ids() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.got...)
}

func serveEvents(t *testing.T, path string, f *fakeContainerd) {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	forward.RegisterTTRPCEventsService(server, f)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(context.Background(), l)
	f.server = server
	t.Cleanup(func() { server.Close() })
}

func sendExits(p *publisher, from, to int) {
	for i := from; i < to; i++ {
		p.send(topicExit, &eventsapi.TaskExit{ID: fmt.Sprint(i)})
	}
}

func wantIDs(t *testing.T, got []string, n int) {
	t.Helper()
	for i, id := range got {
		if id != fmt.Sprint(i) {
			t.Fatalf("event %s came as number %d: %q", id, i, got)
		}
	}
	if len(got) != n {
		t.Fatalf("%d events, want %d", len(got), n)
	}
}

func TestEventsOutliveContainerd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.ttrpc")
	p := newPublisher(path, "ns")
	sendExits(p, 0, 5) // before there is a containerd
	first := new(fakeContainerd)
	serveEvents(t, path, first)
	sendExits(p, 5, 10)
	eventually(t, "ten events", func() bool { return len(first.ids()) == 10 })
	wantIDs(t, first.ids(), 10)
	first.server.Close()
	sendExits(p, 10, 200)
	time.Sleep(100 * time.Millisecond)
	second := &fakeContainerd{got: first.ids()}
	serveEvents(t, path, second)
	p.close(10 * time.Second)
	// One whose answer was lost comes twice.
	wantIDs(t, slices.Compact(second.ids()), 200)
}

func TestEventsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.ttrpc")
	tries := 0
	f := &fakeContainerd{hook: func(id string) error {
		if id == "x" {
			tries++
			return status.Error(codes.InvalidArgument, "no")
		}
		return nil
	}}
	serveEvents(t, path, f)
	p := newPublisher("unix://"+path, "ns")
	p.send(topicExit, &eventsapi.TaskExit{ID: "x"})
	sendExits(p, 0, 3)
	p.close(20 * time.Second)
	wantIDs(t, f.ids(), 3)
	if tries != maxRefused {
		t.Errorf("%d tries", tries)
	}
}

func TestCloseIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.ttrpc")
	release := make(chan struct{})
	f := &fakeContainerd{hook: func(string) error { <-release; return nil }}
	serveEvents(t, path, f)
	defer close(release)
	for _, address := range []string{path, path + ".nosuch"} {
		p := newPublisher(address, "ns")
		sendExits(p, 0, 3)
		begun := time.Now()
		p.close(100 * time.Millisecond)
		if d := time.Since(begun); d > 3*time.Second {
			t.Errorf("%s: %v", address, d)
		}
	}
}

func TestEventQueueIsBounded(t *testing.T) {
	p := newPublisher(filepath.Join(t.TempDir(), "nosuch"), "ns")
	defer p.close(0)
	sendExits(p, 0, maxQueue+100)
	p.mu.Lock()
	defer p.mu.Unlock()
	var last eventsapi.TaskExit
	if err := p.queue[len(p.queue)-1].Event.UnmarshalTo(&last); err != nil || last.ID != fmt.Sprint(maxQueue+99) {
		t.Errorf("last is %s: %v", last.ID, err)
	}
	if len(p.queue) != maxQueue || p.dropped != 100 {
		t.Errorf("%d queued, %d dropped", len(p.queue), p.dropped)
	}
}
