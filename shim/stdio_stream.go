package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// streamBuffer is how much is read and sent at once; streamWindow, what a client may send ahead.
const (
	streamBuffer = 32 << 10
	streamWindow = 2 * streamBuffer
)

// streamName is the ID in a URL of the streaming service: ttrpc+unix:///run/…/socket?streaming_id=ID. The address is
// not looked at, it is where the shim is.
func streamName(stdio string) (id string, ok bool, err error) {
	protocol, _, ok := strings.Cut(stdio, "+")
	if !ok || protocol != "ttrpc" && protocol != "grpc" || !strings.Contains(stdio, "://") {
		return "", false, nil
	}
	if protocol == "grpc" {
		return "", true, fmt.Errorf("streams by grpc: %w", errdefs.ErrNotImplemented)
	}
	u, err := url.Parse(stdio)
	if err != nil {
		return "", true, invalid("%v", err)
	}
	if id = u.Query().Get("streaming_id"); id == "" {
		return "", true, invalid("%s: no streaming_id", stdio)
	}
	return id, true, nil
}

// streamPipe makes a pipe of which one end is the stream's and the other a process's, in blocking mode. With a terminal
// that one is ours too; what is ours waits in Go's poller.
func streamPipe(ours int, terminal bool) (file, process *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	if !terminal {
		if err := unix.SetNonblock(fds[1-ours], false); err != nil {
			unix.Close(fds[0])
			unix.Close(fds[1])
			return nil, nil, err
		}
	}
	return os.NewFile(uintptr(fds[ours]), "stream"), os.NewFile(uintptr(fds[1-ours]), "stream"), nil
}

// An outputStream copies from a pipe to a stream. A client that goes gets what it had no window for when it comes
// again; what was sent is not kept.
type outputStream struct {
	id      string
	streams *streams
	pipe    *os.File
	ctx     context.Context
	cancel  context.CancelFunc
	once    sync.Once
	ending  atomic.Bool   // the client has been told of the end
	drained chan struct{} // all that the process wrote is sent, and read if the client says so
}

func startOutputStream(ss *streams, id string, pipe *os.File) *outputStream {
	o := &outputStream{id: id, streams: ss, pipe: pipe, drained: make(chan struct{})}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	go o.copy()
	return o
}

func (o *outputStream) copy() {
	var s *stream
	defer func() {
		if s != nil {
			o.end(s)
		}
		o.isDrained()
	}()
	var window int
	var credits <-chan int
	buf := make([]byte, streamBuffer)
	for {
		n, err := o.pipe.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			if s == nil || s.broken() {
				var werr error
				if s, werr = o.streams.wait(o.ctx, o.id, s); werr != nil {
					return
				}
				window, credits = 0, s.credits()
			}
			if window == 0 {
				select {
				case n, ok := <-credits:
					if !ok {
						credits = nil // the next round finds it broken, or waits for that
					}
					window += n
				case <-s.gone:
				case <-o.ctx.Done():
					return
				}
				continue
			}
			part := rest[:min(window, len(rest))]
			if serr := s.sendData(part); serr != nil {
				if !s.broken() {
					log.L.WithError(serr).Warnf("stream %s", o.id)
					s.end()
				}
				s = nil
				continue
			}
			window -= len(part)
			rest = rest[len(part):]
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded): // the process has ended; another may yet write
			o.isDrained()
			o.pipe.SetReadDeadline(time.Time{})
		default:
			if s == nil || s.broken() {
				o.isDrained()
				if s, err = o.streams.wait(o.ctx, o.id, s); err != nil {
					return
				}
			}
			return
		}
	}
}

// end ends the stream, and waits until the client has read all that was sent. CRI stops reading when it is told of the exit.
func (o *outputStream) end(s *stream) {
	o.ending.Store(true)
	s.end()
	timer := time.NewTimer(drainAtExit)
	defer timer.Stop()
	select {
	case <-s.hungUp:
	case <-o.ctx.Done():
	case <-timer.C:
	}
}

func (o *outputStream) isDrained() { o.once.Do(func() { close(o.drained) }) }

// exited is called when the process has ended.
func (o *outputStream) exited() { o.pipe.SetReadDeadline(time.Now()) }

func (o *outputStream) close() {
	o.cancel()
	o.pipe.Close()
}

// closeIOIdle is how long input may take to come that was sent before a CloseIO, which goes another way than the stream.
const closeIOIdle = time.Second

// An inputStream copies from a stream to a pipe.
type inputStream struct {
	id      string
	streams *streams
	pipe    *os.File
	ctx     context.Context
	cancel  context.CancelFunc

	mu      sync.Mutex
	idle    *time.Timer // ends the input; nil before CloseIO
	writing bool        // it is the process that is waited for, not the client
}

func startInputStream(ss *streams, id string, pipe *os.File) *inputStream {
	in := &inputStream{id: id, streams: ss, pipe: pipe}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	go in.copy()
	return in
}

func (in *inputStream) copy() {
	defer in.pipe.Close()
	var s *stream
	for {
		var err error
		if s, err = in.streams.wait(in.ctx, in.id, s); err != nil {
			return
		}
		if in.from(s) {
			s.end()
			return
		}
	}
}

// from copies what a client sends, and says whether that was the end of the input.
func (in *inputStream) from(s *stream) bool {
	// A receive ends with the connection only; ended, the stream is dropped by its handler and ends with that.
	stop := context.AfterFunc(in.ctx, s.end)
	defer stop()
	window := 0
	for {
		// Not before all has come that the last one allowed. A client that has sent its last closes the connection, and an update
		// that then fails ends ours, with what is still unread in it.
		if window <= 0 {
			if err := s.sendUpdate(streamWindow); err != nil {
				return false
			}
			window = streamWindow
		}
		data, err := s.receiveData()
		switch {
		case errors.Is(err, io.EOF):
			return true
		case err != nil:
			return false
		}
		window -= len(data)
		in.setWriting(true)
		if _, err := in.pipe.Write(data); err != nil {
			return true // the process has closed it
		}
		in.setWriting(false)
	}
}

// closeIO ends the input with the stream, or when nothing comes any more.
func (in *inputStream) closeIO() {
	if in == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.idle == nil {
		in.idle = time.AfterFunc(closeIOIdle, in.close)
		if in.writing {
			in.idle.Stop()
		}
	}
}

// setWriting says whether it is the process that is waited for.
func (in *inputStream) setWriting(w bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.writing = w
	switch {
	case in.idle == nil:
	case w:
		in.idle.Stop()
	default:
		in.idle.Reset(closeIOIdle)
	}
}

func (in *inputStream) close() {
	if in == nil {
		return
	}
	in.cancel()
	in.pipe.Close()
}

// openOutputStreams opens the streams that the paths of stdout and stderr name.
func (pio *processIO) openOutputStreams(paths stdioPaths, opts ioOptions) error {
	for _, out := range []struct {
		name, path string
		to         **os.File
	}{{"stdout", paths.Stdout, &pio.stdio.Stdout}, {"stderr", paths.Stderr, &pio.stdio.Stderr}} {
		if out.path == "" || paths.Terminal && out.name == "stderr" {
			continue
		}
		id, ok, err := streamName(out.path)
		if err == nil && !ok {
			err = invalid("%q is not a stream as stdout is", out.path)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", out.name, err)
		}
		ours, theirs, err := streamPipe(0, paths.Terminal)
		if err != nil {
			return fmt.Errorf("%s: %w", out.name, err)
		}
		pio.outStreams = append(pio.outStreams, startOutputStream(opts.streams, id, ours))
		if paths.Terminal {
			pio.sink = theirs
			continue
		}
		*out.to = theirs
		if err := chown(theirs, opts); err != nil {
			return fmt.Errorf("%s: %w", out.name, err)
		}
	}
	return nil
}

func (pio *processIO) openInputStream(id string, paths stdioPaths, opts ioOptions) error {
	ours, theirs, err := streamPipe(1, paths.Terminal)
	if err != nil {
		return err
	}
	pio.inStream = startInputStream(opts.streams, id, ours)
	if paths.Terminal {
		pio.input = theirs
		return nil
	}
	pio.stdio.Stdin = theirs
	return chown(theirs, opts)
}
