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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	clientexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestAnExecProbe(t *testing.T) {
	p := start(t).Run()
	c := p.Container(harness.Sleep()...)
	for _, test := range []struct {
		script string
		want   harness.Exit
	}{
		{"echo out; echo err >&2", harness.Exit{Code: 0, Stdout: "out\n", Stderr: "err\n"}},
		{"exit 3", harness.Exit{Code: 3}},
		{"kill -KILL $$", harness.Exit{Code: 137}},
		{"head -c 100000 /dev/zero | tr '\\0' x", harness.Exit{Stdout: strings.Repeat("x", 100000)}},
	} {
		if got, err := c.Exec(10*time.Second, harness.Sh(test.script)...); err != nil || got != test.want {
			t.Errorf("%s: %.200q, %v", test.script, fmt.Sprint(got), err)
		}
	}
	_, err := c.Exec(10*time.Second, "no-such-program")
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a program that is not there: %v", err)
	}
	c.Stop(0)
	if _, err := c.Exec(10*time.Second, "true"); err == nil {
		t.Error("an exec in a container that has ended")
	}
}

func TestAnExecProbesTimeoutKillsItsProcess(t *testing.T) {
	for name, script := range map[string]string{
		"one that sleeps":         "exec sleep 3591",
		"one that ignores a TERM": "trap '' TERM; while :; do : 3591; done",
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t).Run()
			c := p.Container(harness.Sleep()...)
			began := time.Now()
			_, err := c.Exec(time.Second, harness.Sh(script)...)
			if status.Code(err) != codes.DeadlineExceeded && (err == nil || !strings.Contains(err.Error(), "timeout")) {
				t.Errorf("the error is %v", err)
			}
			if took := time.Since(began); took < time.Second || took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
			if got := c.Sh("ps -o args | grep -v grep | grep 3591; true"); got != "" {
				t.Errorf("it still runs: %q", got)
			}
			if got := c.Sh("echo lives"); got != "lives" {
				t.Errorf("the container: %q", got)
			}
		})
	}
}

// dial goes to a URL of CRI's streaming server as an API server does, by SPDY.
func dial(e *harness.Env, address string) remotecommand.Executor {
	e.Helper()
	at, err := url.Parse(address)
	e.Must(err, "URL of a stream")
	x, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, at)
	e.Must(err, "stream")
	return x
}

func execURL(c *harness.PodContainer, r *runtimeapi.ExecRequest) string {
	c.Helper()
	r.ContainerId = c.ID
	resp, err := c.CRI.Exec(c.Ctx, r)
	c.Must(err, "exec")
	return resp.Url
}

func TestExecStreams(t *testing.T) {
	p := start(t).Run()
	c := p.Container(harness.Sleep()...)
	ctx, cancel := context.WithTimeout(p.Ctx, harness.Patience)
	defer cancel()
	var out, errs bytes.Buffer
	in := strings.Repeat("some input\n", 10000)
	x := dial(p.Env, execURL(c, &runtimeapi.ExecRequest{Cmd: harness.Sh("cat; echo err >&2; exit 9"), Stdin: true, Stdout: true, Stderr: true}))
	err := x.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errs})
	var exit clientexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 9 {
		t.Errorf("it ended with %v", err)
	}
	if out.String() != in || errs.String() != "err\n" {
		t.Errorf("%d bytes of %d came back; stderr %q", out.Len(), len(in), errs.String())
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

func TestExecWithATerminal(t *testing.T) {
	p := start(t).Run()
	c := p.Container(harness.Sleep()...)
	ctx, cancel := context.WithTimeout(p.Ctx, harness.Patience)
	defer cancel()
	in, typed := io.Pipe()
	defer typed.Close()
	var out harness.Buffer
	size := make(sizes, 1)
	size <- remotecommand.TerminalSize{Width: 91, Height: 23}
	defer close(size)
	ended := make(chan error, 1)
	x := dial(p.Env, execURL(c, &runtimeapi.ExecRequest{Cmd: []string{"sh"}, Tty: true, Stdin: true, Stdout: true}))
	go func() {
		ended <- x.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: size})
	}()
	sees := func(what, want string) {
		t.Helper()
		p.Eventually(what, func() bool { return strings.Contains(out.String(), want) })
	}
	sees("a prompt", "# ")
	fmt.Fprint(typed, "tty; stty size\n")
	sees("a terminal", "/dev/pts/0")
	sees("its size", "23 91")
	fmt.Fprint(typed, "sleep 3592\n")
	p.Eventually("the program runs", func() bool { return strings.Contains(c.Sh("ps -o args"), "sleep 3592") })
	fmt.Fprint(typed, "\x03")
	fmt.Fprint(typed, "echo interrupted $?; exit 4\n")
	sees("the ^C", "interrupted 130")
	select {
	case err := <-ended:
		var exit clientexec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 4 {
			t.Errorf("it ended with %v", err)
		}
	case <-ctx.Done():
		t.Fatalf("it does not end; output %q", out.String())
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
	err := dial(c.Env, execURL(c, &runtimeapi.ExecRequest{Cmd: []string{"sh"}, Tty: true, Stdin: true, Stdout: true})).
		StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true})
	c.Must(err, "exec with a terminal")
	return out.String()
}

func TestAnExecWhoseClientGoesIsNotTheContainersEnd(t *testing.T) {
	p := start(t).Run()
	c := p.Container(harness.Sleep()...)
	ctx, cancel := context.WithCancel(p.Ctx)
	var out harness.Buffer
	x := dial(p.Env, execURL(c, &runtimeapi.ExecRequest{Cmd: harness.Sh("echo started; cat"), Stdin: true, Stdout: true}))
	ended := make(chan error, 1)
	in, typed := io.Pipe()
	defer typed.Close()
	go func() { ended <- x.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out}) }()
	p.Eventually("it has started", func() bool { return out.String() == "started\n" })
	cancel()
	<-ended
	// Its input has ended, so does cat.
	p.Eventually("its process has gone", func() bool { return !strings.Contains(c.Sh("ps -o args"), "started; ca") })
}

func TestAttach(t *testing.T) {
	p := start(t).Run()
	c := p.NewContainer(harness.Sh("while read x; do echo \"got $x\"; done; echo end of input; exit 6")...)
	c.Config.Stdin, c.Config.StdinOnce = true, true
	c.Run()
	resp, err := p.CRI.Attach(p.Ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: true})
	p.Must(err, "attach")
	ctx, cancel := context.WithTimeout(p.Ctx, harness.Patience)
	defer cancel()
	in, typed := io.Pipe()
	var out, errs harness.Buffer
	ended := make(chan error, 1)
	go func() {
		ended <- dial(p.Env, resp.Url).StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &errs})
	}()
	fmt.Fprintln(typed, "one")
	p.Eventually("its answer", func() bool { return strings.Contains(out.String(), "got one\n") })
	// A second one sees what comes from now on.
	resp, err = p.CRI.Attach(p.Ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdout: true, Stderr: true})
	p.Must(err, "attach")
	var second, none harness.Buffer
	ended2 := make(chan error, 1)
	go func() {
		ended2 <- dial(p.Env, resp.Url).StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &second, Stderr: &none})
	}()
	p.Eventually("the second one sees it too", func() bool {
		fmt.Fprintln(typed, "two")
		return strings.Contains(second.String(), "got two\n")
	})
	typed.Close()
	if st := c.Wait(); st.ExitCode != 6 {
		t.Errorf("after the end of its input it ended with %v", st)
	}
	for _, e := range []chan error{ended, ended2} {
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

func TestAttachToATerminal(t *testing.T) {
	p := start(t).Run()
	c := p.NewContainer("sh")
	c.Config.Stdin, c.Config.Tty = true, true
	c.Run()
	resp, err := p.CRI.Attach(p.Ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Tty: true})
	p.Must(err, "attach")
	ctx, cancel := context.WithTimeout(p.Ctx, harness.Patience)
	defer cancel()
	in, typed := io.Pipe()
	defer typed.Close()
	var out harness.Buffer
	size := make(sizes, 1)
	size <- remotecommand.TerminalSize{Width: 77, Height: 19}
	defer close(size)
	ended := make(chan error, 1)
	go func() {
		ended <- dial(p.Env, resp.Url).StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: size})
	}()
	p.Eventually("the terminal's size", func() bool {
		fmt.Fprint(typed, "stty size\n")
		time.Sleep(50 * time.Millisecond)
		return strings.Contains(out.String(), "19 77")
	})
	fmt.Fprint(typed, "exit 8\n")
	if st := c.Wait(); st.ExitCode != 8 {
		t.Errorf("it ended with %v", st)
	}
	<-ended
	if log := c.Output("stdout"); !strings.Contains(log, "19 77") {
		t.Errorf("the log has %q", log)
	}
}

func TestAPortIsForwarded(t *testing.T) {
	p := start(t).Run()
	c := p.Container(server(8000)...)
	// A connection that is refused ends a forwarding.
	p.Eventually("the server listens", func() bool {
		got, err := c.Exec(10*time.Second, "nc", "-w", "2", "127.0.0.1", "8000")
		return err == nil && got.Code == 0
	})
	resp, err := p.CRI.PortForward(p.Ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{8000}})
	p.Must(err, "port forward")
	at, err := url.Parse(resp.Url)
	p.Must(err, "URL")
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	p.Must(err, "transport")
	stop, ready := make(chan struct{}), make(chan struct{})
	var out, errs harness.Buffer
	forward, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, at),
		[]string{"127.0.0.1"}, []string{"0:8000"}, stop, ready, &out, &errs)
	p.Must(err, "forward")
	ended := make(chan error, 1)
	go func() { ended <- forward.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("the forwarding ended: %v", err)
	case <-time.After(harness.Patience):
		t.Fatal("the forwarding is not ready")
	}
	ports, err := forward.GetPorts()
	p.Must(err, "ports")
	for range 3 {
		p.Eventually("the forwarded port answers", func() bool { return ask(int(ports[0].Local)) == p.Config.Hostname+"\n" })
	}
	close(stop)
	<-ended
}
