package container

import (
	"context"
	"fmt"
	"sync"

	"github.com/rsys-io/rsys/stub"
)

// arenaSize is the size of the memory shared with the stub, most of which is never
// touched: a container's set-up takes some 30 kB of it, and 300 mounts some 400.
const arenaSize = 16 << 20

type runtimeState struct {
	mu      sync.Mutex
	stub    *stub.Stub
	started chan struct{} // closed when the first start has succeeded or failed
	closed  bool
}

func newRuntime() *Runtime {
	r := &Runtime{runtimeState{started: make(chan struct{})}}
	go func() {
		defer close(r.started)
		r.live(context.Background())
	}()
	return r
}

// ground is a stub to clone from: the one there is, or if that died, a new one.
func (r *Runtime) ground(ctx context.Context) (*stub.Stub, error) {
	<-r.started
	return r.live(ctx)
}

func (r *Runtime) live(ctx context.Context) (*stub.Stub, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("runtime is closed")
	}
	if r.stub != nil {
		select {
		case <-r.stub.Task.Child.Exited():
			// Its arena may still be in use by tasks that were cloned from it.
			r.stub = nil
		default:
			return r.stub, nil
		}
	}
	if err := checkKernel(); err != nil {
		return nil, err
	}
	s, err := stub.Start(ctx, arenaSize)
	if err != nil {
		return nil, err
	}
	r.stub = s
	return s, nil
}

func (r *Runtime) close() error {
	<-r.started
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.stub == nil {
		return nil
	}
	return r.stub.Close()
}
