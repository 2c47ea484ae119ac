package shim

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// streamingService is containerd's: who wants a stream calls it and says its ID, and each side then sends data
// as far as the other's window updates allow. CRI does so for the standard streams of a runtime with io_type = "streaming",
// under its sandbox's address, which is ours.
//
// Its Go package links all of grpc, and the types' package registers much else, so the three small messages are here.
const streamingService = "containerd.services.streaming.v1.Streaming"

// streams are those that clients have opened, by ID. A client may come before the process that the stream is
// for, go, and come again.
type streams struct {
	mu     sync.Mutex
	open   map[string]*stream
	change chan struct{} // closed when one is opened
}

func newStreams() *streams {
	return &streams{open: make(map[string]*stream), change: make(chan struct{})}
}

func (ss *streams) desc() *ttrpc.ServiceDesc {
	return &ttrpc.ServiceDesc{Streams: map[string]ttrpc.Stream{"Stream": {
		Handler: func(ctx context.Context, server ttrpc.StreamServer) (any, error) {
			if err := ss.serve(ctx, server); err != nil {
				return nil, wireError(err)
			}
			return nil, nil // a message would be taken for data
		},
		StreamingClient: true,
		StreamingServer: true,
	}}}
}

// serve has a stream open until either side ends it.
func (ss *streams) serve(ctx context.Context, server ttrpc.StreamServer) error {
	init := new(anypb.Any)
	if err := server.RecvMsg(init); err != nil {
		return err
	}
	name, _, err := streamMessage(init, initType)
	if err != nil {
		return err
	}
	if len(name) == 0 {
		return invalid("stream: no ID")
	}
	id := string(name)
	s := &stream{server: server, gone: ctx.Done(), ended: make(chan struct{})}
	if c := connectionOf(ctx); c != nil {
		s.hungUp = c.hungUp
	}
	ss.mu.Lock()
	ss.open[id] = s // in place of one whose client is gone, and perhaps not yet known to be
	close(ss.change)
	ss.change = make(chan struct{})
	ss.mu.Unlock()
	defer func() {
		ss.mu.Lock()
		defer ss.mu.Unlock()
		if ss.open[id] == s {
			delete(ss.open, id)
		}
	}()
	ack, err := toAny(new(emptypb.Empty))
	if err == nil {
		err = server.SendMsg(ack)
	}
	if err != nil {
		return err
	}
	select {
	case <-s.gone:
	case <-s.ended:
	}
	return nil
}

// wait is the stream of an ID as soon as there is one, other than the last, which has broken.
func (ss *streams) wait(ctx context.Context, id string, last *stream) (*stream, error) {
	for {
		ss.mu.Lock()
		s, change := ss.open[id], ss.change
		ss.mu.Unlock()
		if s != nil && s != last {
			return s, nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// has says whether a client has a stream open.
func (ss *streams) has(id string) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.open[id] != nil
}

// A stream is a client's side of one.
type stream struct {
	server ttrpc.StreamServer
	gone   <-chan struct{} // closed with the connection
	hungUp <-chan struct{} // closed when the client has ended its side, or with the connection
	ended  chan struct{}
	once   sync.Once
}

var errStreamGone = errors.New("the stream's client is gone")

// end lets the client see the end of the stream.
func (s *stream) end() { s.once.Do(func() { close(s.ended) }) }

func (s *stream) broken() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

func (s *stream) sendData(p []byte) error {
	return s.send(dataType, protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), p))
}

// sendUpdate allows the client so many bytes more.
func (s *stream) sendUpdate(n int) error {
	return s.send(updateType, protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(n)))
}

func (s *stream) send(typ string, value []byte) error {
	if s.broken() {
		return errStreamGone
	}
	return s.server.SendMsg(&anypb.Any{TypeUrl: typ, Value: value})
}

// receiveData is the next data, io.EOF when the client has said that there is none.
func (s *stream) receiveData() ([]byte, error) {
	data, _, err := s.receive(dataType)
	return data, err
}

func (s *stream) receive(typ string) (bytes []byte, number uint64, err error) {
	a := new(anypb.Any)
	err = s.server.RecvMsg(a)
	// Once the connection has ended, ttrpc chooses at random between that and what came before. A client may send its last and close.
	for try := 0; err != nil && !errors.Is(err, io.EOF) && s.broken() && try < 64; try++ {
		err = s.server.RecvMsg(a)
	}
	if err != nil {
		if errors.Is(err, io.EOF) && s.broken() {
			err = errStreamGone
		}
		return nil, 0, err
	}
	return streamMessage(a, typ)
}

// credits tells of the client's window updates, until the stream ends.
func (s *stream) credits() <-chan int {
	c := make(chan int)
	go func() {
		defer close(c)
		for {
			_, n, err := s.receive(updateType)
			if err != nil {
				return
			}
			select {
			case c <- int(min(n, streamWindowLimit)):
			case <-s.ended:
				return
			case <-s.gone:
				return
			}
		}
	}()
	return c
}

// The messages of the protocol, of which each has a single field, number 1.
const (
	initType   = "containerd.services.streaming.v1.StreamInit"
	dataType   = "containerd.types.transfer.Data"
	updateType = "containerd.types.transfer.WindowUpdate"
)

// streamWindowLimit bounds what a client can have us believe of its window.
const streamWindowLimit = 1 << 30

// streamMessage reads a message that is to be of a type: its field as bytes or as a number.
func streamMessage(a *anypb.Any, typ string) (bytes []byte, number uint64, err error) {
	if name := a.TypeUrl[strings.LastIndexByte(a.TypeUrl, '/')+1:]; name != typ {
		return nil, 0, invalid("stream: a message %q where %s is expected", a.TypeUrl, typ)
	}
	err = eachField(a.Value, func(num protowire.Number, n uint64, data []byte) error {
		if num == 1 {
			bytes, number = data, n
		}
		return nil
	})
	if err != nil {
		return nil, 0, invalid("stream: %s: %v", typ, err)
	}
	return bytes, number, nil
}
