package integration

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// A node is a containerd that is killed and started again while clients are at
// work. What it does to them it does at once to all.
type node struct {
	*harness.Env
	mu      sync.RWMutex // held for writing while containerd is away
	kills   int
	away    time.Duration
	readers sync.Map // of *fifoReader
}

// client is how to reach containerd, as soon as that is there, and which one it is.
func (n *node) client() (*client.Client, int) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.Client, n.kills
}

// restart kills containerd, and with it what reads fifos: the client that a
// node has in containerd itself, as Kubernetes' nodes do.
func (n *node) restart(pause func() time.Duration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.kills++
	begin := time.Now()
	defer func() { n.away += time.Since(begin) }()
	n.Kill()
	n.readers.Range(func(r, _ any) bool {
		r.(*fifoReader).interrupt(pause())
		return true
	})
	return n.Run()
}

// retry does something until it is done, and again after a restart that cut it.
func (n *node) retry(ctx context.Context, do func(context.Context, *client.Client) error) (cuts []error, err error) {
	for {
		c, kills := n.client()
		actx, cancel := context.WithTimeout(ctx, 2*harness.Patience)
		err := do(actx, c)
		cancel()
		if err == nil {
			return cuts, nil
		}
		if _, now := n.client(); now == kills {
			return cuts, err
		}
		cuts = append(cuts, err)
	}
}

// A fifoReader reads a container's output, and stops at times for a while.
type fifoReader struct {
	path  string
	final func() bool // says whether an end of file is that of the container
	pause atomic.Int64
	done  chan struct{}

	mu  sync.Mutex
	f   *os.File
	got []byte
}

// interrupt ends the reading; another reader comes after the pause.
func (r *fifoReader) interrupt(pause time.Duration) {
	r.pause.Store(int64(pause))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f != nil {
		_ = r.f.SetReadDeadline(time.Unix(1, 0))
	}
}

func (r *fifoReader) run() {
	defer close(r.done)
	for {
		f, err := os.Open(r.path) // waits for a writer
		if err != nil {
			return
		}
		r.mu.Lock()
		r.f = f
		r.mu.Unlock()
		for buf := make([]byte, 4096); err == nil; {
			var n int
			n, err = f.Read(buf)
			r.mu.Lock()
			r.got = append(r.got, buf[:n]...)
			r.mu.Unlock()
		}
		r.mu.Lock()
		r.f = nil
		r.mu.Unlock()
		f.Close()
		if err == io.EOF && r.final() {
			return
		}
		time.Sleep(time.Duration(r.pause.Swap(0)))
	}
}

// A life is one container's, from its record to its deletion, as a client leads it
// that knows nothing but what containerd tells it.
type life struct {
	n        *node
	id       string
	code     uint32
	output   string // what it writes
	exec     bool   // whether it waits for an exec
	brief    bool   // whether it ends as soon as it can, so that much of its life is its creation and its deletion
	creator  cio.Creator
	reader   *fifoReader
	logged   string // the file that the output comes to, without a reader
	made     atomic.Bool
	deleting bool
	exits    []client.ExitStatus
	execExit []client.ExitStatus
	resumed  int
	cuts     []error // what it was told when containerd was killed
}

const bursts, perBurst = 3, 2000

func newLife(n *node, dir string, i int) *life {
	l := &life{n: n, id: fmt.Sprintf("life-%d-%d", os.Getpid()%1000, i), code: uint32(i%250 + 1), exec: i%4 == 1, brief: i%2 == 0}
	for b := range bursts {
		l.output += strings.Repeat(fmt.Sprintf("%s burst %d\n", l.id, b), perBurst)
	}
	l.logged = filepath.Join(dir, l.id)
	switch i % 3 {
	case 0:
		l.creator = cio.LogFile(l.logged)
	case 1:
		l.creator = cio.BinaryIO(dir+"/logger", map[string]string{"to": l.logged})
	case 2:
		l.logged += ".fifo"
		n.Must(syscall.Mkfifo(l.logged, 0o700), "make a fifo")
		l.creator = func(string) (cio.IO, error) { return keptIO{cio.Config{Stdout: l.logged}}, nil }
		l.reader = &fifoReader{path: l.logged, final: l.made.Load, done: make(chan struct{})}
		n.readers.Store(l.reader, nil)
		go l.reader.run()
	}
	return l
}

// keptIO are streams that a client keeps when a request of its is cut.
type keptIO struct{ config cio.Config }

func (io keptIO) Config() cio.Config { return io.config }
func (keptIO) Cancel()               {}
func (keptIO) Wait()                 {}
func (keptIO) Close() error          { return nil }

func (l *life) args() []string {
	pause := "sleep 0.3"
	if l.brief {
		pause = ":"
	}
	script := []string{"n=0", fmt.Sprintf("while [ $n -lt %d ]", bursts), "do",
		fmt.Sprintf(`yes "%s burst $n" | head -n %d`, l.id, perBurst), "n=$((n + 1))", pause, "done", fmt.Sprintf("exit %d", l.code)}
	if l.exec {
		script = append([]string{"until [ -e /go ]; do sleep 0.1; done"}, script...)
	}
	return harness.Sh(script...)
}

// lead brings the container one containerd further: to its end, or to the next kill.
func (l *life) lead(ctx context.Context, c *client.Client) error {
	record, err := c.LoadContainer(ctx, l.id)
	if errdefs.IsNotFound(err) {
		if l.deleting {
			return nil
		}
		record, err = l.add(ctx, c)
	}
	if err != nil {
		return fmt.Errorf("container: %w", err)
	}
	task, err := record.Task(ctx, nil)
	switch {
	case err == nil:
		l.made.Store(true)
		l.resumed++
	case !errdefs.IsNotFound(err):
		return fmt.Errorf("load the task: %w", err)
	case l.deleting:
		return record.Delete(ctx, client.WithSnapshotCleanup)
	case l.made.Load():
		return fmt.Errorf("its task is lost: %w", err)
	default:
		if task, err = record.NewTask(ctx, l.creator); err != nil {
			return fmt.Errorf("create: %w", err)
		}
		l.made.Store(true)
	}
	exit, err := task.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	st, err := task.Status(ctx)
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if st.Status == client.Created {
		if err := task.Start(ctx); err != nil {
			return fmt.Errorf("start: %w", err)
		}
	}
	if l.exec && len(l.execExit) == 0 {
		if err := l.leadExec(ctx, record, task); err != nil {
			return fmt.Errorf("exec: %w", err)
		}
	}
	ended := <-exit
	if err := ended.Error(); err != nil {
		return fmt.Errorf("exit: %w", err)
	}
	l.exits = append(l.exits, ended)
	l.deleting = true
	deleted, err := task.Delete(ctx)
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	l.exits = append(l.exits, *deleted)
	return record.Delete(ctx, client.WithSnapshotCleanup)
}

func (l *life) add(ctx context.Context, c *client.Client) (client.Container, error) {
	img, err := c.GetImage(ctx, harness.ImageName)
	if err != nil {
		return nil, err
	}
	// One that was cut may have left it.
	if err := c.SnapshotService("overlayfs").Remove(ctx, l.id); err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	for again := 0; ; again++ {
		record, err := c.NewContainer(ctx, l.id, client.WithImage(img), client.WithSnapshotter("overlayfs"), client.WithNewSnapshot(l.id, img),
			client.WithRuntime(harness.Runtime(), nil), client.WithNewSpec(oci.WithImageConfigArgs(img, l.args()), seccomp.WithDefaultProfile()))
		if err == nil || again == 3 || !leftBySnapshotter(err) {
			return record, err
		}
		if err := c.SnapshotService("overlayfs").Remove(ctx, l.id); err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
}

// leftBySnapshotter tells an error that is containerd's own. Its overlay snapshotter, killed before it has noted a new snapshot, leaves that one's
// directory, whose number it gives to the next: then either "file exists", or, if just now it removes what it has no note of (which it does without
// a lock), the new directory is removed for the old.
func leftBySnapshotter(err error) bool {
	s := err.Error()
	return strings.Contains(s, "file exists") || strings.Contains(s, "/snapshots/") && strings.Contains(s, "no such file or directory")
}

const execID = "probe"

func (l *life) leadExec(ctx context.Context, record client.Container, task client.Task) error {
	p, err := task.LoadProcess(ctx, execID, nil)
	if errdefs.IsNotFound(err) {
		spec, err := record.Spec(ctx)
		if err != nil {
			return err
		}
		process := *spec.Process
		process.Args = harness.Sh("touch /go", fmt.Sprintf("exit %d", l.code%7+1))
		if p, err = task.Exec(ctx, execID, &process, cio.NullIO); err != nil {
			return fmt.Errorf("add: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	st, err := p.Status(ctx)
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if st.Status == client.Created {
		if err := p.Start(ctx); err != nil {
			return fmt.Errorf("start: %w", err)
		}
	}
	ended := <-exit
	if err := ended.Error(); err != nil {
		return fmt.Errorf("exit: %w", err)
	}
	l.execExit = append(l.execExit, ended)
	_, err = p.Delete(ctx)
	return err
}

// got is what has arrived of the output, when it is all there or the patience is at its end.
func (l *life) got() string {
	if l.reader == nil {
		var data []byte
		for deadline := time.Now().Add(harness.Patience); ; time.Sleep(20 * time.Millisecond) {
			if data, _ = os.ReadFile(l.logged); len(data) >= len(l.output) || time.Now().After(deadline) {
				return string(data) // a logger may have some to write yet
			}
		}
	}
	select {
	case <-l.reader.done:
	case <-time.After(harness.Patience):
	}
	l.reader.mu.Lock()
	defer l.reader.mu.Unlock()
	return string(l.reader.got)
}

// check tells what is not as the container left it.
func (l *life) check() (wrong []string) {
	for _, exit := range l.exits {
		if exit.ExitCode() != l.code {
			wrong = append(wrong, fmt.Sprintf("exit status %d, want %d", exit.ExitCode(), l.code))
		}
	}
	for _, exit := range l.execExit {
		if want := l.code%7 + 1; exit.ExitCode() != want {
			wrong = append(wrong, fmt.Sprintf("exit status of the exec %d, want %d", exit.ExitCode(), want))
		}
	}
	if len(l.exits) == 0 || l.exec && len(l.execExit) == 0 {
		wrong = append(wrong, "no exit status")
	}
	if got := l.got(); got != l.output {
		at := 0
		for at < min(len(got), len(l.output)) && got[at] == l.output[at] {
			at++
		}
		wrong = append(wrong, fmt.Sprintf("%d bytes of output of %d, the first that is wrong is %d", len(got), len(l.output), at))
	}
	return wrong
}

// containerd is killed again and again while 200 containers live their lives, some two dozen at a time: each exit status and each
// byte of output arrives, and nothing is left.
func TestNothingIsLostWhenContainerdIsKilledDuring200Lifecycles(t *testing.T) {
	if peer() {
		t.Skip("runc's shim forgets a task that has ended while containerd was away")
	}
	const lives, atOnce, maxKills = 200, 24, 10
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("RSYS_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("RSYS_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	n := &node{Env: start(t)}
	dir := t.TempDir()
	logger := "#!/bin/busybox sh\nexec 5>&-\ncat <&3 >>$2\n"
	n.Must(os.WriteFile(dir+"/logger", []byte(logger), 0o755), "write a logger")
	all := make([]*life, lives)
	work := make(chan *life)
	var wg sync.WaitGroup
	var ended atomic.Int64
	for range atOnce {
		wg.Go(func() {
			for l := range work {
				var err error
				if l.cuts, err = n.retry(n.Ctx, l.lead); err != nil {
					t.Errorf("%s: %v", l.id, err)
				}
				ended.Add(1)
			}
		})
	}
	go func() {
		defer close(work)
		for i := range all {
			all[i] = newLife(n, dir, i)
			work <- all[i]
		}
	}()
	over := make(chan struct{})
	go func() { wg.Wait(); close(over) }()
	pause := func() time.Duration { return time.Duration(random.IntN(300)) * time.Millisecond }
	for running := true; running; {
		// Spread over all lives, however quick the machine is; the last ones come to their end undisturbed.
		for enough := int64((n.kills + 1) * lives / (maxKills + 2)); ended.Load() < enough || n.kills == maxKills; {
			select {
			case <-over:
				running = false
			case <-time.After(5 * time.Millisecond):
				continue
			}
			break
		}
		if running {
			time.Sleep(pause())
			n.Must(n.restart(pause), "start containerd again")
		}
	}
	resumed := 0
	for _, l := range all {
		for _, wrong := range l.check() {
			t.Errorf("%s: %s; it was cut by %v", l.id, wrong, l.cuts)
		}
		resumed += l.resumed
		if l.reader != nil {
			select {
			case <-l.reader.done:
			default: // it waits for a writer: that is what the check has said
				if w, err := os.OpenFile(l.logged, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
					w.Close()
				}
			}
		}
	}
	t.Logf("containerd was killed %d times, away for %v in all; %d times a client came back to a task", n.kills, n.away.Round(time.Millisecond), resumed)
	if n.kills < 3 || resumed < 10 {
		t.Errorf("that is too little to show anything")
	}
}

// What a reader left in the pipe when it died is there for the one that comes after the restart, though the container has ended.
func TestOutputThatNobodyHasReadYetIsKeptForTheNextReader(t *testing.T) {
	if peer() {
		t.Skip("runc's shim lets go of the pipe when the process has ended")
	}
	e := start(t)
	path := t.TempDir() + "/fifo"
	e.Must(syscall.Mkfifo(path, 0o700), "make a fifo")
	first, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	e.Must(err, "open the fifo")
	c := e.Container(harness.Sh("yes 0123456789abcde | head -n 2000", "exit 4"))
	c.IO.Creator = func(string) (cio.IO, error) { return keptIO{cio.Config{Stdout: path}}, nil }
	c.Run()
	buf := make([]byte, 16)
	e.Eventually("the first line", func() bool { n, _ := first.Read(buf); return n == len(buf) })
	if exit := c.Wait(); exit.Code != 4 {
		t.Errorf("exit code %d, want 4", exit.Code)
	}
	restart(e, func() { first.Close() })
	got := make(chan string, 1)
	go func() {
		data, err := os.ReadFile(path)
		if err != nil {
			data = []byte(err.Error())
		}
		got <- string(data)
	}()
	select {
	case data := <-got:
		if want := strings.Repeat("0123456789abcde\n", 1999); data != want {
			t.Errorf("%d bytes, want %d", len(data), len(want))
		}
	case <-time.After(harness.Patience):
		t.Error("the next reader waits")
	}
	if st, err := reload(e, c).Delete(e.Ctx); err != nil || st.ExitCode() != 4 {
		t.Errorf("delete answers %v, %v", st, err)
	}
}

// Between a process's end and the word of it there is its last output, here a terminal's that nobody reads for two seconds. A containerd that
// starts again just then takes a shim that names no process for a leftover.
func TestATaskWhoseEndIsStillToBeToldIsFoundAgain(t *testing.T) {
	if peer() {
		t.Skip("runc's shim forgets a task that has ended while containerd was away")
	}
	e := start(t)
	path := t.TempDir() + "/fifo"
	e.Must(syscall.Mkfifo(path, 0o700), "make a fifo")
	reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	e.Must(err, "open the fifo")
	defer reader.Close()
	// More than the pipe holds, and less than that and the terminal do, so that the process can end.
	c := e.Container(harness.Sh("head -c 67000 /dev/zero", "exit 3"), oci.WithTTY)
	c.IO.Terminal = true
	c.IO.Creator = func(string) (cio.IO, error) { return keptIO{cio.Config{Stdout: path, Terminal: true}}, nil }
	c.Run()
	pid := int(c.Task.Pid())
	e.Eventually("the process ends", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
	restart(e, nil)
	task := reload(e, c)
	exit, err := task.Wait(e.Ctx)
	e.Must(err, "wait")
	if st := await(e, exit); st.ExitCode() != 3 {
		t.Errorf("exit code %d, want 3", st.ExitCode())
	}
	go io.Copy(io.Discard, reader) // else the deletion waits for it
	_, err = task.Delete(e.Ctx)
	e.Must(err, "delete")
}

func TestAStartThatContainerdIsKilledInIsCarriedOut(t *testing.T) {
	if peer() {
		t.Skip("runc start is killed with the request that runs it")
	}
	e := start(t)
	log := t.TempDir() + "/log"
	c := e.Container(harness.Sh("echo started", "sleep 1", "exit 7"), withHooks(func(h *specs.Hooks) {
		h.StartContainer = []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo >/hooked; sleep 1"}, Env: []string{"PATH=/bin"}}}
	}))
	c.IO.Creator = cio.LogFile(log)
	c.Create()
	cut := make(chan error, 1)
	go func() { cut <- c.Task.Start(e.Ctx) }()
	hooked := fmt.Sprintf("/proc/%d/root/hooked", c.Task.Pid())
	e.Eventually("the hook runs", func() bool { _, err := os.Stat(hooked); return err == nil })
	restart(e, func() {
		if err := <-cut; err == nil {
			t.Error("the start was answered before the kill: the hook is too quick")
		}
	})
	task := reload(e, c)
	exit, err := task.Wait(e.Ctx)
	e.Must(err, "wait")
	if st := await(e, exit); st.ExitCode() != 7 {
		t.Errorf("exit code %d, want 7", st.ExitCode())
	}
	_, err = task.Delete(e.Ctx)
	e.Must(err, "delete")
	if data, _ := os.ReadFile(log); string(data) != "started\n" {
		t.Errorf("the log has %q", data)
	}
}

func TestACreateThatContainerdIsKilledInIsUndoneAndCanBeRepeated(t *testing.T) {
	e := start(t)
	dir := t.TempDir()
	hook := script(t, dir, "hook", "[ -e $OUT/hooked ] && exit", "echo >$OUT/hooked", "exec sleep 30")
	c := e.Container([]string{"echo", "second"}, withHooks(func(h *specs.Hooks) { h.CreateRuntime = []specs.Hook{{Path: hook}} }))
	c.IO.Creator = cio.NullIO
	cut := make(chan error, 1)
	go func() { cut <- c.TryCreate() }()
	e.Eventually("the hook runs", func() bool { _, err := os.Stat(dir + "/hooked"); return err == nil })
	restart(e, func() {
		if err := <-cut; err == nil {
			t.Error("it was created")
		}
	})
	record, err := e.Client.LoadContainer(e.Ctx, c.ID())
	e.Must(err, "load the container")
	if _, err := record.Task(e.Ctx, nil); !errdefs.IsNotFound(err) {
		t.Errorf("its task: %v, want not found", err)
	}
	e.Eventually("the shim has gone", func() bool { return len(shims(e)) == 0 })
	c.Container, c.IO = record, harness.IO{}
	if got := c.Finish(); got.Stdout != "second\n" || got.Code != 0 {
		t.Errorf("got %+v", got)
	}
}
