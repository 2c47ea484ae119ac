package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/rsys-io/rsys/container"
	"github.com/rsys-io/rsys/shim/bootstrap"
)

const (
	// listenFD is where the start verb puts the socket.
	listenFD = 3
	// flushLimit bounds how long a shim that was told to go tries to get rid of its events.
	flushLimit = 5 * time.Second
	answerTime = 100 * time.Millisecond
	// settleTime is how long after the last change the heap is given back to the kernel.
	settleTime = 300 * time.Millisecond
	// settledGC keeps the heap of a shim small that only serves what is there. Until then the start verb's
	// setting holds.
	settledGC = 40
)

// serve is the server: it runs until containerd asks it to shut down.
func serve(flags *bootstrap.Flags) error {
	openLog(flags)
	if log.GetLevel() >= log.DebugLevel {
		logCalls()
	}
	listener, err := inheritedListener(flags.Socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	if l := debugListener(flags.DebugSocket); l != nil {
		defer l.Close()
		defer removeSocket(l)
		go serveDebug(l)
	}

	done := make(chan struct{})
	events := newPublisher(os.Getenv("TTRPC_ADDRESS"), flags.Namespace)
	rt := container.New()
	svc := newService(flags.Namespace, realRuntime{rt}, events, sync.OnceFunc(func() {
		// First of all, so that no start verb finds a socket that is about to go.
		removeSocket(listener)
		close(done)
	}), newSettler().touch)
	spans, err := newSpanExporter(os.Getenv)
	if err != nil {
		log.L.WithError(err).Warn("no spans are exported")
	}
	server, err := newServer(svc, spans)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- serveConnections(context.Background(), server, listener) }()
	go handleSignals(svc)
	if bundle, err := os.Getwd(); err == nil {
		go goIfForgotten(svc, bundle, forgottenTime)
	}

	select {
	case <-done:
	case err := <-served:
		removeSocket(listener)
		return fmt.Errorf("serve ttrpc: %w", err)
	}
	events.close(flushLimit)
	// The answer to the shutdown request is still to be written, and ttrpc does not always
	// know of a connection that it has a request to answer. containerd does not wait for this.
	time.Sleep(answerTime)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	server.Shutdown(ctx)
	if err := rt.Close(); err != nil {
		log.L.WithError(err).Warn("close the runtime")
	}
	if spans != nil {
		spans.flush(time.Second)
	}
	return nil
}

// newServer makes a ttrpc server with both versions of the task service, and the sandbox service.
func newServer(svc *service, spans *spanExporter) (*ttrpc.Server, error) {
	opts := []ttrpc.ServerOpt{ttrpc.WithServerHandshaker(seen{ttrpc.UnixSocketRequireSameUser()})}
	if spans != nil {
		opts = append(opts, ttrpc.WithUnaryServerInterceptor(traceRequests(spans)))
	}
	server, err := ttrpc.NewServer(opts...)
	if err != nil {
		return nil, err
	}
	methods := map[string]ttrpc.Method{
		"State": method(svc.State), "Create": method(svc.Create), "Start": method(through(svc.Start)),
		"Delete": method(through(svc.Delete)), "Pids": method(svc.Pids), "Pause": method(through(svc.Pause)),
		"Resume": method(through(svc.Resume)), "Checkpoint": method(svc.Checkpoint), "Kill": method(through(svc.Kill)),
		"Exec": method(through(svc.Exec)), "ResizePty": method(svc.ResizePty), "CloseIO": method(svc.CloseIO),
		"Update": method(svc.Update), "Wait": method(svc.Wait), "Stats": method(svc.Stats),
		"Connect": method(svc.Connect), "Shutdown": method(svc.Shutdown),
	}
	for _, name := range []string{"containerd.task.v2.Task", "containerd.task.v3.Task"} {
		server.RegisterService(name, &ttrpc.ServiceDesc{Methods: methods})
	}
	server.RegisterService(streamingService, svc.streams.desc())
	server.RegisterService(sandboxAPI, &ttrpc.ServiceDesc{Methods: sandboxMethods(svc.sandboxes)})
	return server, nil
}

var _ taskapi.TTRPCTaskService = (*service)(nil)

// method makes a ttrpc method of a service's.
func method[Req any, PReq interface {
	*Req
	proto.Message
}, Resp proto.Message](call func(context.Context, PReq) (Resp, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		req := PReq(new(Req))
		if err := unmarshal(req); err != nil {
			return nil, err
		}
		resp, err := call(ctx, req)
		if err != nil {
			return nil, wireError(err)
		}
		return resp, nil
	}
}

// through has a request carried out to its end, or to its deadline, though the one who made it is gone: ttrpc cancels what
// came by a connection that is lost, and a containerd that is killed must not take along the processes whose start it had asked for. Create
// is not of these: what it has made by then is undone, as nobody knows of it.
func through[Req, Resp any](call func(context.Context, Req) (Resp, error)) func(context.Context, Req) (Resp, error) {
	return func(ctx context.Context, req Req) (Resp, error) {
		deadline, ok := ctx.Deadline()
		ctx = context.WithoutCancel(ctx)
		if ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline)
			defer cancel()
		}
		return call(ctx, req)
	}
}

// inheritedListener takes over the start verb's socket. Called by hand, with -socket, the shim makes its own.
func inheritedListener(path string) (*net.UnixListener, error) {
	var st unix.Stat_t
	if err := unix.Fstat(listenFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		if path == "" {
			return nil, errors.New("no socket: a shim is started by containerd, with the start verb")
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return nil, err
		}
		return l, nil
	}
	return listenerOf(listenFD)
}

func listenerOf(fd uintptr) (*net.UnixListener, error) {
	f := os.NewFile(fd, "socket")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over the socket: %w", err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("the inherited socket is a %T", l)
	}
	return ul, nil
}

func removeSocket(l *net.UnixListener) {
	if path := l.Addr().String(); path != "" {
		os.Remove(path)
	}
}

// openLog sends the log, and what the Go runtime may have to say, to the fifo from which containerd copies
// it to its own. Opened for both ways it needs no reader: a full pipe costs lines, no waiting.
func openLog(flags *bootstrap.Flags) {
	log.SetFormat(log.TextFormat)
	level := flags.LogLevel
	if level == "" && flags.Debug {
		level = "debug"
	}
	if level != "" {
		log.SetLevel(level) // one that is unknown is an error of Create
	}
	fd, err := unix.Open("log", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	unix.Dup3(fd, 2, 0)
	unix.Close(fd)
	if log.GetLevel() >= log.DebugLevel {
		unix.FcntlInt(2, unix.F_SETPIPE_SZ, logPipe) // not allowed, it stays as it is
		log.L.Logger.SetOutput(patientLog(2))
	}
}

// handleSignals keeps a shim, and so its containers, alive when it is told to end together with
// containerd. One without containers goes. SIGPIPE is caught, not ignored, as an ignored
// signal would be inherited by containers. SIGUSR1 has the stacks of all goroutines logged.
func handleSignals(svc *service) {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, unix.SIGTERM, unix.SIGINT, unix.SIGPIPE, unix.SIGUSR1)
	for sig := range ch {
		switch {
		case sig == unix.SIGUSR1:
			dumpStacks()
		case sig != unix.SIGPIPE && svc.idle():
			svc.shutdown()
		}
	}
}

// A settler gives the garbage of creations and deletions back to the kernel when they are over: what a
// shim keeps while it idles is what a node pays a container. It is one collection, not more: each
// has a price in the collector's own memory, which is not given back.
type settler struct{ timer *time.Timer }

func newSettler() *settler {
	t := time.AfterFunc(time.Hour, func() {
		debug.SetGCPercent(settledGC)
		debug.FreeOSMemory()
	})
	t.Stop()
	return &settler{t}
}

func (s *settler) touch() { s.timer.Reset(settleTime) }
