package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/containerd/v2/core/streaming/proxy"
	transfer "github.com/containerd/containerd/v2/core/transfer/streaming"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/ttrpc"

	"github.com/rsys-io/rsys/integration/harness"
)

// streamIO is a process's streams as CRI makes them for a runtime with io_type "streaming": opened at the shim, by ID.
type streamIO struct {
	cfg     cio.Config
	address string
	pause   time.Duration // of the reader, before it takes more

	mu      sync.Mutex
	clients []*ttrpc.Client
	copies  sync.WaitGroup
	in      io.WriteCloser
	stdout  harness.Buffer
	stderr  harness.Buffer
	errs    []error
}

// shimAddress is the socket of the shim that a container has.
func shimAddress(e *harness.Env, id string) string {
	e.Helper()
	data, err := os.ReadFile(filepath.Join(e.Daemon.Bundle(id), "bootstrap.json"))
	if os.IsNotExist(err) { // containerd 1.7
		data, err = os.ReadFile(filepath.Join(e.Daemon.Bundle(id), "address"))
		e.Must(err, "the shim's address")
		return strings.TrimPrefix(string(data), "unix://")
	}
	e.Must(err, "the shim's address")
	var b struct{ Address string }
	e.Must(json.Unmarshal(data, &b), "bootstrap.json")
	return strings.TrimPrefix(b.Address, "unix://")
}

func newStreamIO(address, id string, stdin, terminal bool) *streamIO {
	url := func(name string) string {
		return fmt.Sprintf("ttrpc+unix://%s?streaming_id=%s-%s", address, id, name)
	}
	s := &streamIO{address: address, cfg: cio.Config{Terminal: terminal, Stdout: url("stdout")}}
	if !terminal {
		s.cfg.Stderr = url("stderr")
	}
	if stdin {
		s.cfg.Stdin = url("stdin")
	}
	return s
}

func (s *streamIO) open(ctx context.Context, url string) (streaming.Stream, error) {
	conn, err := net.Dial("unix", s.address)
	if err != nil {
		return nil, err
	}
	c := ttrpc.NewClient(conn)
	s.mu.Lock()
	s.clients = append(s.clients, c)
	s.mu.Unlock()
	return proxy.NewStreamCreator(c).Create(ctx, url[strings.IndexByte(url, '=')+1:])
}

// slowly is a writer that takes its time.
type slowly struct {
	io.Writer
	time.Duration
}

func (w slowly) Write(p []byte) (int, error) {
	time.Sleep(w.Duration)
	return w.Writer.Write(p)
}

// connect opens all streams, the first time or again.
func (s *streamIO) connect(ctx context.Context) error {
	for url, buf := range map[string]*harness.Buffer{s.cfg.Stdout: &s.stdout, s.cfg.Stderr: &s.stderr} {
		if url == "" {
			continue
		}
		st, err := s.open(ctx, url)
		if err != nil {
			return err
		}
		s.copies.Go(func() {
			r := transfer.ReadByteStream(ctx, st)
			defer r.Close()
			if _, err := io.Copy(slowly{buf, s.pause}, r); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.errs = append(s.errs, err)
			}
		})
	}
	if s.cfg.Stdin != "" {
		st, err := s.open(ctx, s.cfg.Stdin)
		if err != nil {
			return err
		}
		s.in = transfer.WriteByteStream(ctx, st)
	}
	return nil
}

// hangUp is what the death of a client does.
func (s *streamIO) hangUp() {
	s.mu.Lock()
	clients := s.clients
	s.clients = nil
	s.mu.Unlock()
	for _, c := range clients {
		c.Close()
	}
	s.copies.Wait()
}

func (s *streamIO) creator() cio.Creator {
	return func(string) (cio.IO, error) { return s, nil }
}

func (s *streamIO) Config() cio.Config { return s.cfg }
func (s *streamIO) Cancel()            {}
func (s *streamIO) Wait()              {}
func (s *streamIO) Close() error       { return nil }

// startStreams begins a test with a container whose shim serves others of its group, and their streams.
func startStreams(t *testing.T) (e *harness.Env, first *harness.Container, group oci.SpecOpts) {
	t.Helper()
	if peer() {
		t.Skip("runc's shim has no streaming service")
	}
	e = start(t)
	group = oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "streams"})
	return e, e.Container(harness.Sleep(), group).Run(), group
}

func TestStreamsOfTheShimCarryInputAndOutput(t *testing.T) {
	e, first, group := startStreams(t)
	address := shimAddress(e, first.ID())
	c := e.Container([]string{"sh", "-c", "echo to stderr >&2; wc -c; head -c 3000000 /dev/zero; exit 7"}, group)
	s := newStreamIO(address, c.ID(), true, false)
	e.Must(s.connect(e.Ctx), "open the streams")
	c.IO.Creator = s.creator()
	c.Run()
	if _, err := s.in.Write(bytes.Repeat([]byte("x"), 300000)); err != nil {
		t.Fatal(err)
	}
	e.Must(s.in.Close(), "close stdin")
	if exit := c.Wait(); exit.Code != 7 {
		t.Errorf("exit code %d", exit.Code)
	}
	want := "300000\n" + strings.Repeat("\x00", 3000000)
	if got := s.stdout.String(); got != want {
		t.Errorf("%d bytes of output, %d wanted; it begins with %q", len(got), len(want), got[:min(len(got), 10)])
	}
	if got := s.stderr.String(); got != "to stderr\n" {
		t.Errorf("stderr is %q", got)
	}
	s.hangUp()
	for _, err := range s.errs {
		t.Error(err)
	}
}

// CRI stops reading when it is told that a container or an exec has ended.
func TestAnExitIsToldWhenTheReaderOfAStreamHasAllOfIt(t *testing.T) {
	e, first, group := startStreams(t)
	c := e.Container(harness.Sh("for i in 1 2 3 4 5 6; do echo $i; sleep 0.01; done; echo to stderr >&2"), group)
	s := newStreamIO(shimAddress(e, first.ID()), c.ID(), false, false)
	s.pause = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(e.Ctx)
	e.Must(s.connect(ctx), "open the streams")
	c.IO.Creator = s.creator()
	c.Run()
	c.Wait()
	cancel()
	s.copies.Wait()
	if out, err := s.stdout.String(), s.stderr.String(); out != "1\n2\n3\n4\n5\n6\n" || err != "to stderr\n" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
	s.hangUp()
}

func TestCloseIOIsTheEndOfAStreamsInputAndLosesNoneOfIt(t *testing.T) {
	e, first, group := startStreams(t)
	for _, ends := range []bool{true, false} {
		c := e.Container([]string{"sh", "-c", "sleep 2; wc -c"}, group)
		s := newStreamIO(shimAddress(e, first.ID()), c.ID(), true, false)
		e.Must(s.connect(e.Ctx), "open the streams")
		c.IO.Creator = s.creator()
		c.Run()
		go func() { // more than a pipe and a window have room for
			s.in.Write(bytes.Repeat([]byte("x"), 300000))
			if ends {
				s.in.Close()
			}
		}()
		time.Sleep(100 * time.Millisecond)
		e.Must(c.Task.CloseIO(e.Ctx, client.WithStdinCloser), "CloseIO")
		c.Wait()
		s.copies.Wait()
		if got := s.stdout.String(); got != "300000\n" {
			t.Errorf("with the stream ended %v: %q", ends, got)
		}
		s.hangUp()
		c.Delete()
	}
}

func TestATerminalIsStreamed(t *testing.T) {
	e, first, _ := startStreams(t)
	address := shimAddress(e, first.ID())
	s := newStreamIO(address, "x", true, true)
	e.Must(s.connect(e.Ctx), "open the streams")
	spec, err := first.Spec(e.Ctx)
	e.Must(err, "spec")
	p := *spec.Process
	p.Terminal, p.Args = true, []string{"sh", "-c", "test -t 0 && read x && echo got $x"}
	process, err := first.Task.Exec(e.Ctx, "x", &p, s.creator())
	e.Must(err, "exec")
	exit, err := process.Wait(e.Ctx)
	e.Must(err, "wait")
	e.Must(process.Start(e.Ctx), "start")
	if _, err := io.WriteString(s.in, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if st := <-exit; st.ExitCode() != 0 {
		t.Errorf("exit code %d", st.ExitCode())
	}
	s.copies.Wait()
	if got := s.stdout.String(); got != "hello\r\ngot hello\r\n" {
		t.Errorf("output %q", got)
	}
	s.hangUp()
	if _, err := process.Delete(e.Ctx); err != nil {
		t.Error(err)
	}
}

func TestAStreamsClientMayGoAndComeAgain(t *testing.T) {
	e, first, group := startStreams(t)
	address := shimAddress(e, first.ID())
	c := e.Container([]string{"sh", "-c", "echo one; read x; echo two; head -c 200000 /dev/zero | tr '\\0' y; read x; exit 3"}, group)
	s := newStreamIO(address, c.ID(), true, false)
	e.Must(s.connect(e.Ctx), "open the streams")
	c.IO.Creator = s.creator()
	c.Run()
	e.Eventually("the first line", func() bool { return s.stdout.String() == "one\n" })
	s.hangUp()

	// The client is back, with the same IDs.
	e.Must(s.connect(e.Ctx), "open the streams again")
	_, err := io.WriteString(s.in, "go on\n")
	e.Must(err, "write to stdin")
	want := "one\ntwo\n" + strings.Repeat("y", 200000)
	e.Eventually("the rest", func() bool { return len(s.stdout.String()) >= len(want) })
	s.hangUp()
	e.Must(s.connect(e.Ctx), "open the streams again")
	e.Must(s.in.Close(), "close stdin")
	if exit := c.Wait(); exit.Code != 3 {
		t.Errorf("exit code %d", exit.Code)
	}
	if got := s.stdout.String(); got != want {
		t.Errorf("%d bytes of output, %d wanted", len(got), len(want))
	}
	s.hangUp()
}

func TestAProcessWhoseStreamsNobodyOpensEnds(t *testing.T) {
	e, first, group := startStreams(t)
	c := e.Container([]string{"sh", "-c", "echo lost; exit 4"}, group)
	s := newStreamIO(shimAddress(e, first.ID()), c.ID(), false, false)
	c.IO.Creator = s.creator()
	begin := time.Now()
	c.Run()
	if exit := c.Wait(); exit.Code != 4 {
		t.Errorf("exit code %d", exit.Code)
	}
	c.Delete()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}
