package shim

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
)

func TestWhetherAShimAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if answers(path) {
		t.Error("there is no socket")
	}
	listen := func(path string) *net.UnixListener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}

	dying := listen(path)
	dying.SetUnlinkOnClose(false)
	time.AfterFunc(50*time.Millisecond, func() { dying.Close() })
	if answers(path) {
		t.Error("it was killed, and its socket took a connection at first")
	}
	if answers(path) {
		t.Error("it is dead")
	}

	l := listen(path + "2")
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(seen{ttrpc.UnixSocketRequireSameUser()}))
	if err != nil {
		t.Fatal(err)
	}
	go serveConnections(context.Background(), server, l)
	defer server.Close()
	for range 3 {
		if !answers(path + "2") {
			t.Error("it serves, and does not answer")
		}
	}
}
