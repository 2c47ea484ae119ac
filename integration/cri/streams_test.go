package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	clientexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

// dial goes to a URL of CRI's streaming server as an API server does.
type dial func(e *harness.Env, address string) remotecommand.Executor

func bySPDY(e *harness.Env, address string) remotecommand.Executor {
	e.Helper()
	at, err := url.Parse(address)
	e.Must(err, "URL of a stream")
	x, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, at)
	e.Must(err, "stream")
	return x
}

// websocketProtocol is the newest that every containerd has, and the newest at all for ports. kubectl speaks v5 to the API server, which
// translates; client-go offers nothing else by itself, and a server that has not what is offered answers 403.
const websocketProtocol = "v4.channel.k8s.io"

func byWebsocket(e *harness.Env, address string) remotecommand.Executor {
	e.Helper()
	x, err := remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, address, websocketProtocol)
	e.Must(err, "stream")
	return x
}

// eachDial runs a test with each kind of stream.
func eachDial(t *testing.T, test func(*testing.T, dial)) {
	t.Run("SPDY", func(t *testing.T) { test(t, bySPDY) })
	t.Run("websocket", func(t *testing.T) { test(t, byWebsocket) })
}

func execURL(c *harness.PodContainer, r *runtimeapi.ExecRequest) string {
	c.Helper()
	r.ContainerId = c.ID
	resp, err := c.CRI.Exec(c.Ctx, r)
	c.Must(err, "exec")
	return resp.Url
}

func TestExecStreams(t *testing.T) {
	eachDial(t, func(t *testing.T, dial dial) { execStreams(t, start(t).Run(), dial) })
}

func execStreams(t *testing.T, p *harness.Pod, dial dial) {
	c := p.Container(harness.Sleep()...)
	ctx, cancel := context.WithTimeout(p.Ctx, harness.Patience)
	defer cancel()
	var out, errs bytes.Buffer
	in := strings.Repeat("some input\n", 10000)
	// v4 of websockets can't tell the end of the input.
	script := fmt.Sprintf("head -c %d; echo err >&2; exit 9", len(in))
	x := dial(p.Env, execURL(c, &runtimeapi.ExecRequest{Cmd: harness.Sh(script), Stdin: true, Stdout: true, Stderr: true}))
	err := x.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errs})
	var exit clientexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 9 {
		t.Errorf("it ended with %v", err)
	}
	if out.String() != in || errs.String() != "err\n" {
		t.Errorf("%d bytes of %d came back; stderr %q", out.Len(), len(in), errs.String())
	}
}

func TestTheEndOfAnExecsInputIsToldBySPDY(t *testing.T) {
	p := start(t).Run()
	endOfInput(t, p, p.Container(harness.Sleep()...))
}

func endOfInput(t *testing.T, p *harness.Pod, c *harness.PodContainer) {
	ctx, cancel := context.WithTimeout(p.Ctx, harness.Patience)
	defer cancel()
	var out bytes.Buffer
	in := strings.Repeat("some input\n", 100000)
	x := bySPDY(p.Env, execURL(c, &runtimeapi.ExecRequest{Cmd: harness.Sh("cat; echo end"), Stdin: true, Stdout: true}))
	err := x.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &out})
	if err != nil || out.String() != in+"end\n" {
		t.Errorf("%d bytes of %d came back, %v", out.Len(), len(in), err)
	}
}

// sizes is a terminal's size, told once.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	if size, ok := <-s; ok {
		return &size
	}
	return nil
}

// streams begins a client's streams, which end with what comes from ended.
func streams(ctx context.Context, x remotecommand.Executor, opts remotecommand.StreamOptions) (ended <-chan error) {
	end := make(chan error, 1)
	go func() { end <- x.StreamWithContext(ctx, opts) }()
	return end
}

// A terminal is a client's end of one.
type terminal struct {
	typed *io.PipeWriter
	out   harness.Buffer
	ended <-chan error
}

func openTerminal(ctx context.Context, x remotecommand.Executor, width, height uint16) *terminal {
	in, typed := io.Pipe()
	size := make(sizes, 1)
	size <- remotecommand.TerminalSize{Width: width, Height: height}
	close(size)
	t := &terminal{typed: typed}
	t.ended = streams(ctx, x, remotecommand.StreamOptions{Stdin: in, Stdout: &t.out, Tty: true, TerminalSizeQueue: size})
	return t
}

func TestExecWithATerminal(t *testing.T) {
	eachDial(t, func(t *testing.T, dial dial) { execWithATerminal(t, start(t).Run(), dial) })
}

func execWithATerminal(t *testing.T, p *harness.Pod, dial dial) {
	c := p.Container(harness.Sleep()...)
	ctx, cancel := context.WithTimeout(p.Ctx, harness.Patience)
	defer cancel()
	tty := openTerminal(ctx, dial(p.Env, execURL(c, &runtimeapi.ExecRequest{Cmd: []string{"sh"}, Tty: true, Stdin: true, Stdout: true})), 91, 23)
	defer tty.typed.Close()
	sees := func(what, want string) {
		t.Helper()
		p.Eventually(what, func() bool { return strings.Contains(tty.out.String(), want) })
	}
	sees("a prompt", "# ")
	fmt.Fprint(tty.typed, "tty; stty size\n")
	sees("a terminal", "/dev/pts/0")
	sees("its size", "23 91")
	fmt.Fprint(tty.typed, "sleep 3592\n")
	p.Eventually("the program runs", func() bool { return strings.Contains(c.Sh("ps -o args"), "sleep 3592") })
	fmt.Fprint(tty.typed, "\x03")
	fmt.Fprint(tty.typed, "echo interrupted $?; exit 4\n")
	sees("the ^C", "interrupted 130")
	select {
	case err := <-tty.ended:
		var exit clientexec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 4 {
			t.Errorf("it ended with %v", err)
		}
	case <-ctx.Done():
		t.Fatalf("it does not end; output %q", tty.out.String())
	}
}

// typed is what a shell shows at a terminal for some input.
func typed(c *harness.PodContainer, input string) string {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Ctx, harness.Patience)
	defer cancel()
	var out harness.Buffer
	// CRI ends a terminal's output with its input, so that stays open.
	in, end := io.Pipe()
	defer end.Close()
	go func() { _, _ = io.WriteString(end, input) }()
	err := bySPDY(c.Env, execURL(c, &runtimeapi.ExecRequest{Cmd: []string{"sh"}, Tty: true, Stdin: true, Stdout: true})).
		StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true})
	c.Must(err, "exec with a terminal")
	return out.String()
}

func TestAnExecWhoseClientGoesIsNotTheContainersEnd(t *testing.T) {
	p := start(t).Run()
	c := p.Container(harness.Sleep()...)
	ctx, cancel := context.WithCancel(p.Ctx)
	var out harness.Buffer
	x := bySPDY(p.Env, execURL(c, &runtimeapi.ExecRequest{Cmd: harness.Sh("echo started; cat"), Stdin: true, Stdout: true}))
	in, typed := io.Pipe()
	defer typed.Close()
	ended := streams(ctx, x, remotecommand.StreamOptions{Stdin: in, Stdout: &out})
	p.Eventually("it has started", func() bool { return out.String() == "started\n" })
	cancel()
	<-ended
	// Its input has ended, so does cat.
	p.Eventually("its process has gone", func() bool { return !strings.Contains(c.Sh("ps -o args"), "started; ca") })
}

func TestAttach(t *testing.T) {
	attach(t, start(t).Run())
}

func attach(t *testing.T, p *harness.Pod) {
	c := p.NewContainer(harness.Sh("while read x; do echo \"got $x\"; done; echo end of input; exit 6")...)
	c.Config.Stdin, c.Config.StdinOnce = true, true
	c.Run()
	resp, err := p.CRI.Attach(p.Ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: true})
	p.Must(err, "attach")
	ctx, cancel := context.WithTimeout(p.Ctx, harness.Patience)
	defer cancel()
	in, typed := io.Pipe()
	var out, errs harness.Buffer
	ended := streams(ctx, bySPDY(p.Env, resp.Url), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &errs})
	fmt.Fprintln(typed, "one")
	p.Eventually("its answer", func() bool { return strings.Contains(out.String(), "got one\n") })
	// A second one sees what comes from now on.
	resp, err = p.CRI.Attach(p.Ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdout: true, Stderr: true})
	p.Must(err, "attach")
	var second, none harness.Buffer
	ended2 := streams(ctx, bySPDY(p.Env, resp.Url), remotecommand.StreamOptions{Stdout: &second, Stderr: &none})
	p.Eventually("the second one sees it too", func() bool {
		fmt.Fprintln(typed, "two")
		return strings.Contains(second.String(), "got two\n")
	})
	typed.Close()
	if st := c.Wait(); st.ExitCode != 6 {
		t.Errorf("after the end of its input it ended with %v", st)
	}
	for _, e := range []<-chan error{ended, ended2} {
		select {
		case err := <-e:
			if err != nil {
				t.Errorf("a stream ended with %v", err)
			}
		case <-ctx.Done():
			t.Fatal("the stream does not end with the container")
		}
	}
	if !strings.HasSuffix(out.String(), "end of input\n") {
		t.Errorf("output %q", out.String())
	}
	if log := c.Output("stdout"); !strings.Contains(log, "got one\n") || !strings.Contains(log, "end of input") {
		t.Errorf("the log has %q", log)
	}
}

func TestAttachByWebsocket(t *testing.T) {
	p := start(t).Run()
	c := p.NewContainer(harness.Sh("read x; echo \"got $x\"; echo err >&2; exit 6")...)
	c.Config.Stdin = true
	c.Run()
	resp, err := p.CRI.Attach(p.Ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: true})
	p.Must(err, "attach")
	ctx, cancel := context.WithTimeout(p.Ctx, harness.Patience)
	defer cancel()
	in, typed := io.Pipe()
	defer typed.Close()
	var out, errs harness.Buffer
	ended := streams(ctx, byWebsocket(p.Env, resp.Url), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &errs})
	go fmt.Fprintln(typed, "one")
	if st := c.Wait(); st.ExitCode != 6 {
		t.Errorf("it ended with %v", st)
	}
	if err := <-ended; err != nil || out.String() != "got one\n" || errs.String() != "err\n" {
		t.Errorf("output %q, %q, %v", out.String(), errs.String(), err)
	}
}

func TestAttachToATerminal(t *testing.T) {
	eachDial(t, func(t *testing.T, dial dial) { attachToATerminal(t, start(t).Run(), dial) })
}

func attachToATerminal(t *testing.T, p *harness.Pod, dial dial) {
	c := p.NewContainer("sh")
	c.Config.Stdin, c.Config.Tty = true, true
	c.Run()
	resp, err := p.CRI.Attach(p.Ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Tty: true})
	p.Must(err, "attach")
	ctx, cancel := context.WithTimeout(p.Ctx, harness.Patience)
	defer cancel()
	tty := openTerminal(ctx, dial(p.Env, resp.Url), 77, 19)
	defer tty.typed.Close()
	p.Eventually("the terminal's size", func() bool {
		fmt.Fprint(tty.typed, "stty size\n")
		time.Sleep(50 * time.Millisecond)
		return strings.Contains(tty.out.String(), "19 77")
	})
	fmt.Fprint(tty.typed, "exit 8\n")
	if st := c.Wait(); st.ExitCode != 8 {
		t.Errorf("it ended with %v", st)
	}
	<-tty.ended
	if log := c.Output("stdout"); !strings.Contains(log, "19 77") {
		t.Errorf("the log has %q", log)
	}
}
