package shim

import (
	"net"
	"testing"
)

func TestAClientsEndOfAStreamIsSeenHoweverItsFramesArrive(t *testing.T) {
	frame := func(typ, flags byte, payload string) string {
		return string([]byte{0, 0, 0, byte(len(payload)), 0, 0, 0, 1, typ, flags}) + payload
	}
	end := frame(frameData, frameRemoteClosed|4, "")
	for _, test := range []struct {
		name, sent string
		ended      bool
	}{
		{"no frame", "", false},
		{"a request that is all of its call", frame(1, frameRemoteClosed, "abc"), false},
		{"data", frame(frameData, 0, "some data"), false},
		{"data that looks like an end", frame(frameData, 0, end), false},
		{"an end cut short", end[:frameHeader-1], false},
		{"an end", end, true},
		{"an end after a request and data", frame(1, 2, "init") + frame(frameData, 0, "\x03\x01") + end, true},
	} {
		for size := 1; size <= max(1, len(test.sent)); size++ {
			c := &connection{hungUp: make(chan struct{})}
			for rest := []byte(test.sent); len(rest) > 0; rest = rest[min(size, len(rest)):] {
				c.see(rest[:min(size, len(rest))])
			}
			if got := isClosed(c.hungUp); got != test.ended {
				t.Errorf("%s, %d bytes at a time: ended is %v", test.name, size, got)
			}
		}
	}
}

func TestAConnectionThatBreaksHasHungUp(t *testing.T) {
	ours, theirs := net.Pipe()
	c := &connection{Conn: ours, hungUp: make(chan struct{})}
	theirs.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || !isClosed(c.hungUp) {
		t.Errorf("read: %v, hung up: %v", err, isClosed(c.hungUp))
	}
	c.Close()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
