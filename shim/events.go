package shim

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Topics of containerd's task events.
const (
	topicCreate       = "/tasks/create"
	topicStart        = "/tasks/start"
	topicOOM          = "/tasks/oom"
	topicExit         = "/tasks/exit"
	topicDelete       = "/tasks/delete"
	topicExecAdded    = "/tasks/exec-added"
	topicExecStarted  = "/tasks/exec-started"
	topicPaused       = "/tasks/paused"
	topicResumed      = "/tasks/resumed"
	topicCheckpointed = "/tasks/checkpointed"
)

const (
	// maxQueue events are kept while containerd is away: some megabytes, hours of a busy pod.
	maxQueue = 16 << 10
	// maxRefused is how often an event is sent that containerd answers with an error,
	// before it makes way for those behind it.
	maxRefused     = 5
	forwardTimeout = 5 * time.Second
	minBackoff     = 50 * time.Millisecond
	maxBackoff     = 2 * time.Second
)

// A publisher forwards events to containerd in the order in which it was given them. It is one
// goroutine and one queue; what can't be sent stays at the head of it. An event whose answer is
// lost with containerd is sent again: better twice than never.
type publisher struct {
	address, namespace string

	mu      sync.Mutex
	queue   []*types.Envelope
	dropped int
	wake    chan struct{} // capacity 1
	closing chan struct{}
	done    chan struct{}
	stop    context.CancelFunc
	once    sync.Once
}

func newPublisher(address, namespace string) *publisher {
	ctx, stop := context.WithCancel(context.Background())
	p := &publisher{
		address:   strings.TrimPrefix(address, "unix://"),
		namespace: namespace,
		wake:      make(chan struct{}, 1),
		closing:   make(chan struct{}),
		done:      make(chan struct{}),
		stop:      stop,
	}
	go p.run(ctx)
	return p
}

// send queues an event. It never blocks.
func (p *publisher) send(topic string, event proto.Message) {
	body, err := toAny(event)
	if err != nil {
		log.L.WithError(err).Errorf("encode event %s", topic)
		return
	}
	e := &types.Envelope{Timestamp: timestamppb.Now(), Namespace: p.namespace, Topic: topic, Event: body}
	p.mu.Lock()
	if len(p.queue) >= maxQueue {
		// The head may be on its way.
		p.queue = append(p.queue[:1], p.queue[2:]...)
		if p.dropped++; p.dropped == 1 {
			log.L.Errorf("containerd takes no events; more than %d wait, the oldest are dropped", maxQueue)
		}
	}
	p.queue = append(p.queue, e)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// close sends what is queued, as far as that can be done in the given time.
func (p *publisher) close(limit time.Duration) {
	p.once.Do(func() { close(p.closing) })
	select {
	case <-p.done:
	case <-time.After(limit):
		p.stop()
		<-p.done
	}
	p.stop()
}

func (p *publisher) head() *types.Envelope {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		p.queue = nil // let go of a long queue's memory
		return nil
	}
	return p.queue[0]
}

func (p *publisher) pop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue[0] = nil
	p.queue = p.queue[1:]
}

func (p *publisher) run(ctx context.Context) {
	defer close(p.done)
	var client *ttrpc.Client
	defer func() {
		if client != nil {
			client.Close()
		}
	}()
	refused, backoff := 0, minBackoff
	for {
		e := p.head()
		if e == nil {
			select {
			case <-p.wake:
				continue
			case <-p.closing:
				if p.head() == nil {
					return
				}
				continue
			case <-ctx.Done():
				return
			}
		}
		var err error
		if client == nil {
			client, err = p.dial(ctx)
		}
		if err == nil {
			fctx, cancel := context.WithTimeout(ctx, forwardTimeout)
			err = client.Call(fctx, "containerd.services.events.ttrpc.v1.Events", "Forward",
				&eventsapi.ForwardRequest{Envelope: e}, new(emptypb.Empty))
			cancel()
		}
		if err == nil {
			p.pop()
			refused, backoff = 0, minBackoff
			continue
		}
		if answered(err) {
			if refused++; refused >= maxRefused {
				log.L.WithError(err).Errorf("containerd refuses event %s", e.Topic)
				p.pop()
				refused = 0
				continue
			}
		} else if client != nil {
			client.Close()
			client = nil
		}
		log.L.WithError(err).Debugf("forward event %s, again in %v", e.Topic, backoff)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

func (p *publisher) dial(ctx context.Context) (*ttrpc.Client, error) {
	dctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(dctx, "unix", p.address)
	if err != nil {
		return nil, err
	}
	return ttrpc.NewClient(conn), nil
}

// answered tells an error that containerd's events service has made from a failure to reach it.
func answered(err error) bool {
	if errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return false
	}
	st, ok := status.FromError(err)
	if !ok {
		return false
	}
	switch st.Code() {
	// Unimplemented is what a containerd says that has not registered its services yet.
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unimplemented:
		return false
	}
	return true
}

// toAny is what typeurl.MarshalAny makes of a protobuf message, whose name needs no registration.
func toAny(m proto.Message) (*anypb.Any, error) {
	value, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}, nil
}
