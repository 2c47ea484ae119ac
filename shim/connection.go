package shim

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/containerd/ttrpc"
)

// A connection sees what ttrpc's server passes over: that the client of a stream has ended its side after the server has ended
// its own. A reader of output does so when it has read all, and by nothing else does one know that.
//
// A frame of ttrpc has a header of ten bytes: the length of what follows, the stream's number, its type and its flags.
type connection struct {
	net.Conn
	hungUp chan struct{} // closed when the client has ended a stream, or is gone
	once   sync.Once

	header [frameHeader]byte // of these so many are there
	have   int
	skip   int64 // bytes of the frame's payload that are still to come
}

const (
	frameHeader       = 10
	frameData         = 3
	frameRemoteClosed = 1
)

func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.see(p[:n])
	if err != nil {
		c.hangUp()
	}
	return n, err
}

func (c *connection) Close() error {
	c.hangUp()
	return c.Conn.Close()
}

func (c *connection) hangUp() { c.once.Do(func() { close(c.hungUp) }) }

func (c *connection) see(p []byte) {
	for len(p) > 0 {
		if c.skip > 0 {
			n := min(c.skip, int64(len(p)))
			c.skip -= n
			p = p[n:]
			continue
		}
		n := copy(c.header[c.have:], p)
		c.have += n
		p = p[n:]
		if c.have < frameHeader {
			return
		}
		c.have, c.skip = 0, int64(binary.BigEndian.Uint32(c.header[:]))
		if c.header[8] == frameData && c.header[9]&frameRemoteClosed != 0 {
			c.hangUp()
		}
	}
}

type connectionKey struct{}

// connectionOf is the connection that a request came by, nil if it did not come by serveConnections.
func connectionOf(ctx context.Context) *connection {
	c, _ := ctx.Value(connectionKey{}).(*connection)
	return c
}

// serveConnections is the server's Serve, with each connection in the context of the requests that come by it.
func serveConnections(ctx context.Context, server *ttrpc.Server, listener net.Listener) error {
	for {
		c := &connection{hungUp: make(chan struct{})}
		err := server.Serve(context.WithValue(ctx, connectionKey{}, c), &acceptOnce{Listener: listener})
		if !errors.Is(err, errAccepted) {
			return err
		}
	}
}

// seen is a handshake after which the connection of the context stands for the one that was accepted.
type seen struct{ ttrpc.Handshaker }

func (h seen) Handshake(ctx context.Context, conn net.Conn) (net.Conn, any, error) {
	conn, info, err := h.Handshaker.Handshake(ctx, conn)
	if c := connectionOf(ctx); c != nil && err == nil {
		c.Conn, conn = conn, c
	}
	return conn, info, err
}

// An acceptOnce is a listener until it has a connection.
type acceptOnce struct {
	net.Listener
	accepted atomic.Bool
}

var errAccepted = errors.New("a connection was accepted")

func (l *acceptOnce) Accept() (net.Conn, error) {
	if l.accepted.Load() {
		return nil, errAccepted
	}
	conn, err := l.Listener.Accept()
	l.accepted.Store(err == nil)
	return conn, err
}

// Close closes the listener, if it is not for the next to accept from.
func (l *acceptOnce) Close() error {
	if l.accepted.Load() {
		return nil
	}
	return l.Listener.Close()
}
