package shim

import (
	"bytes"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// countFDs is for leak checks.
func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func noLeak(t *testing.T) {
	t.Helper()
	// The first open of a kind makes Go's poller.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	before := countFDs(t)
	t.Cleanup(func() {
		limit := time.Now().Add(5 * time.Second)
		for countFDs(t) > before && time.Now().Before(limit) {
			time.Sleep(5 * time.Millisecond)
		}
		if n := countFDs(t); n > before {
			t.Errorf("%d descriptors more than before", n-before)
		}
	})
}

func mkfifo(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := unix.Mkfifo(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// readFifo opens a fifo as containerd's clients do: before anybody writes.
func readFifo(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func open(t *testing.T, paths stdioPaths) *processIO {
	t.Helper()
	pio, err := openIO(testContext(t), paths, ioOptions{id: "c", namespace: "ns"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pio.handedOver()
		pio.close()
	})
	return pio
}

// run gives the streams to a process as package container does.
func run(t *testing.T, pio *processIO, script string) *exec.Cmd {
	t.Helper()
	if err := pio.stdin.keep(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", script)
	// Typed nils would be files to exec.
	if f := pio.stdio.Stdin; f != nil {
		cmd.Stdin = f
	}
	if f := pio.stdio.Stdout; f != nil {
		cmd.Stdout = f
	}
	if f := pio.stdio.Stderr; f != nil {
		cmd.Stderr = f
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pio.handedOver()
	return cmd
}

func wantRead(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != want {
		t.Errorf("read %q, %v; want %q", got, err, want)
	}
}

func nonblocking(t *testing.T, f *os.File) bool {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags int
	conn.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.O_NONBLOCK != 0
}

func TestFifos(t *testing.T) {
	noLeak(t)
	dir := t.TempDir()
	in, out, errs := mkfifo(t, dir, "in"), mkfifo(t, dir, "out"), mkfifo(t, dir, "err")
	outR, errR := readFifo(t, out), readFifo(t, errs)
	pio := open(t, stdioPaths{Stdin: in, Stdout: out, Stderr: errs})
	for _, f := range []*os.File{pio.stdio.Stdin, pio.stdio.Stdout, pio.stdio.Stderr} {
		if nonblocking(t, f) {
			t.Errorf("%s is non-blocking", f.Name())
		}
	}
	cmd := run(t, pio, "cat; echo done; echo oops >&2")
	// Clients of stdin come and go, and the end comes with CloseIO.
	for _, part := range []string{"one\n", "two\n"} {
		w, err := os.OpenFile(in, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.WriteString(part)
		w.Close()
	}
	pio.closeStdin()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	pio.exited()
	wantRead(t, outR, "one\ntwo\ndone\n")
	wantRead(t, errR, "oops\n")
	pio.close()
	outR.Close()
	errR.Close()
}

// The reader sees the end when the last writer is gone, not when the process is, and not only on Delete.
func TestFifoEndIsTheWriters(t *testing.T) {
	noLeak(t)
	out := mkfifo(t, t.TempDir(), "out")
	r := readFifo(t, out)
	pio := open(t, stdioPaths{Stdout: out})
	cmd := run(t, pio, "exec >&- 2>&-; sleep 60")
	wantRead(t, r, "")
	cmd.Process.Kill()
	cmd.Wait()
	pio.exited()
	pio.close()
	r.Close()
}

func TestFifoReaderRestarts(t *testing.T) {
	noLeak(t)
	dir := t.TempDir()
	out, in := mkfifo(t, dir, "out"), mkfifo(t, dir, "in")
	r := readFifo(t, out)
	pio := open(t, stdioPaths{Stdin: in, Stdout: out})
	cmd := run(t, pio, "echo one; read x; echo two; read x; echo three")
	buf := make([]byte, 100)
	n, err := r.Read(buf)
	if err != nil || string(buf[:n]) != "one\n" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	r.Close() // nobody reads now
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.WriteString("\n\n")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("writing without a reader: %v", err)
	}
	pio.exited()
	time.Sleep(20 * time.Millisecond)
	// The next one finds what was written meanwhile, and its end.
	r = nil
	eventually(t, "a reader's open", func() bool {
		r, err = os.OpenFile(out, os.O_RDONLY, 0)
		return err == nil
	})
	wantRead(t, r, "two\nthree\n")
	r.Close()
	pio.close()
	w.Close()
}

// A client that ends after the process and before it has read everything leaves the rest to the next one.
func TestFifoReaderRestartsAfterTheExit(t *testing.T) {
	noLeak(t)
	out := mkfifo(t, t.TempDir(), "out")
	r := readFifo(t, out)
	pio := open(t, stdioPaths{Stdout: out})
	cmd := run(t, pio, "echo one; echo two")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	pio.exited()
	buf := make([]byte, 4)
	if _, err := io.ReadFull(r, buf); err != nil || string(buf) != "one\n" {
		t.Fatalf("%q, %v", buf, err)
	}
	r.Close()
	time.Sleep(50 * time.Millisecond)
	// Until the deletion each sees the end, also when there is nothing any more.
	for _, want := range []string{"two\n", ""} {
		got := make(chan string, 1)
		go func() {
			data, err := os.ReadFile(out) // its open waits for a writer
			if err != nil {
				data = []byte(err.Error())
			}
			got <- string(data)
		}()
		select {
		case s := <-got:
			if s != want {
				t.Errorf("read %q, want %q", s, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a reader waits")
		}
	}
	pio.close()
}

// What a process leaves behind may write when its init has ended and no client reads: until it is gone it has a reader, the shim.
func TestWhatAProcessLeavesBehindCanWriteWhileNobodyReads(t *testing.T) {
	noLeak(t)
	path := mkfifo(t, t.TempDir(), "out")
	r := readFifo(t, path)
	out, left, err := openOutput(testContext(t), path, false)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	out.mu.Lock()
	stop, written := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			// One that is full has a reader as well.
			if _, err := unix.Write(int(left.Fd()), []byte("x")); err != nil && err != unix.EAGAIN {
				written <- err
				return
			}
			select {
			case <-stop:
				written <- nil
				return
			default:
			}
		}
	}()
	if err := unix.SetNonblock(int(left.Fd()), true); err != nil {
		t.Fatal(err)
	}
	for range 20000 {
		out.look()
	}
	close(stop)
	if err := <-written; err != nil {
		t.Errorf("write: %v", err)
	}
	if out.writer >= 0 {
		t.Error("the shim is a writer though there is one")
	}
	left.Close()
	if out.look(); out.writer < 0 {
		t.Error("a reader that comes would find no writer")
	}
	r = readFifo(t, path)
	if out.look(); out.writer >= 0 {
		t.Error("the reader finds no end")
	}
	out.mu.Unlock()
	if data, err := io.ReadAll(r); err != nil || len(data) == 0 || strings.Trim(string(data), "x") != "" {
		t.Errorf("read %d bytes, %v", len(data), err)
	}
	r.Close()
	out.close()
}

func TestFifoWithoutReader(t *testing.T) {
	noLeak(t)
	out := mkfifo(t, t.TempDir(), "out")
	pio := open(t, stdioPaths{Stdout: out})
	cmd := run(t, pio, "echo kept")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	pio.exited()
	r, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	wantRead(t, r, "kept\n")
	r.Close()
	pio.close()
}

// A reader that opens in another thread, a little later than the request, is waited for.
func TestFifoLateReader(t *testing.T) {
	noLeak(t)
	out := mkfifo(t, t.TempDir(), "out")
	got := make(chan string)
	go func() {
		time.Sleep(50 * time.Millisecond)
		f, err := os.Open(out)
		if err != nil {
			got <- err.Error()
			return
		}
		defer f.Close()
		data, _ := io.ReadAll(f)
		got <- string(data)
	}()
	pio := open(t, stdioPaths{Stdout: out})
	cmd := run(t, pio, "echo quick")
	cmd.Wait()
	pio.exited()
	pio.close()
	if s := <-got; s != "quick\n" {
		t.Errorf("%q", s)
	}
}

func TestNullAndErrors(t *testing.T) {
	noLeak(t)
	pio := open(t, stdioPaths{})
	if pio.stdio.Stdin != nil || pio.stdio.Stdout != nil || pio.stdio.Stderr != nil {
		t.Error("files for no paths")
	}
	dir := t.TempDir()
	out := mkfifo(t, dir, "out")
	r := readFifo(t, out)
	for _, paths := range []stdioPaths{
		{Stdin: dir + "/nosuch"},
		{Stdout: out, Stderr: dir + "/nosuch"},
		{Stdin: out, Stdout: "x://y"},
		{Stdout: "binary:///nosuch"},
		{Stdout: "file:///proc/nosuch/x"},
	} {
		if _, err := openIO(testContext(t), paths, ioOptions{}); err == nil {
			t.Errorf("%+v was opened", paths)
		}
	}
	r.Close()
}

func TestFile(t *testing.T) {
	noLeak(t)
	path := filepath.Join(t.TempDir(), "a", "b", "log")
	for range 2 {
		pio := open(t, stdioPaths{Stdout: "file://" + path, Stderr: "file://" + path})
		cmd := run(t, pio, "echo one; echo two >&2; echo three")
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		pio.exited()
		pio.close()
	}
	data, err := os.ReadFile(path)
	if want := strings.Repeat("one\ntwo\nthree\n", 2); err != nil || string(data) != want {
		t.Errorf("%q, %v", data, err)
	}
}

func loggerURI(scheme, script string) string {
	return scheme + ":///bin/sh?-c=" + url.QueryEscape(script)
}

func TestLogger(t *testing.T) {
	noLeak(t)
	for _, scheme := range []string{"binary", "binary-v2"} {
		path := filepath.Join(t.TempDir(), "log")
		script := `exec >` + path + `; printf x >&5; exec 5>&-; echo $CONTAINER_ID $CONTAINER_NAMESPACE; cat <&3; echo --; cat <&4`
		pio := open(t, stdioPaths{Stdout: loggerURI(scheme, script), Stderr: "ignored"})
		cmd := run(t, pio, "echo one; echo two >&2")
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		pio.exited()
		pio.close()
		data, err := os.ReadFile(path)
		if err != nil || string(data) != "c ns\none\n--\ntwo\n" {
			t.Errorf("%s: %q, %v", scheme, data, err)
		}
	}
}

func TestLoggerNotReady(t *testing.T) {
	noLeak(t)
	// A crash before the sign is noticed only in the second version.
	if _, err := openIO(testContext(t), stdioPaths{Stdout: loggerURI("binary-v2", "exit 1")}, ioOptions{}); err == nil {
		t.Error("a logger that is no more was taken")
	}
	begun := time.Now()
	ctx, cancel := contextWithTimeout(t, 200*time.Millisecond)
	defer cancel()
	_, err := openIO(ctx, stdioPaths{Stdout: loggerURI("binary", "sleep 60")}, ioOptions{})
	if err == nil || time.Since(begun) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
}

func TestLoggerArgs(t *testing.T) {
	got := loggerArgs("b=1&a=x%20y&b=2&flag")
	if want := []string{"b", "1", "a", "x y", "flag", ""}; strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%q", got)
	}
}

// pty makes a pseudoterminal, the master in Go's poller as package container has it.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { master.Close() })
	conn, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	conn.Control(func(m uintptr) {
		if err = unix.IoctlSetPointerInt(int(m), unix.TIOCSPTLCK, 0); err != nil {
			return
		}
		// By the peer's descriptor: the path may be of another devpts.
		r, _, e := unix.Syscall(unix.SYS_IOCTL, m, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if fd = int(r); e != 0 {
			err = e
		}
	})
	if err != nil {
		t.Skip(err)
	}
	return master, os.NewFile(uintptr(fd), "slave")
}

func startOnTerminal(t *testing.T, slave *os.File, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	t.Cleanup(func() { cmd.Process.Kill() })
	return cmd
}

func TestTerminal(t *testing.T) {
	noLeak(t)
	dir := t.TempDir()
	in, out := mkfifo(t, dir, "in"), mkfifo(t, dir, "out")
	r := readFifo(t, out)
	pio := open(t, stdioPaths{Stdin: in, Stdout: out, Terminal: true})
	master, slave := pty(t)
	p := &process{p: &fakeProcess{term: master}, stdio: stdioPaths{Terminal: true}, size: &unix.Winsize{Col: 91, Row: 33}}
	if err := p.applySize(); err != nil {
		t.Fatal(err)
	}
	if err := pio.attach(master); err != nil {
		t.Fatal(err)
	}
	cmd := startOnTerminal(t, slave, "stty -echo -onlcr; stty size; cat; yes | head -n 20000; echo bye")
	got := make(chan string, 1)
	go func() {
		data, _ := io.ReadAll(r)
		got <- string(data)
	}()
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // stty flushes
	w.WriteString("typed\n")
	w.Close()
	pio.closeStdin() // ends cat as ^D does
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	pio.exited()
	if !pio.drain(10 * time.Second) {
		t.Fatal("not drained")
	}
	if s, want := <-got, "33 91\ntyped\n"+strings.Repeat("y\n", 20000)+"bye\n"; s != want {
		t.Errorf("%d bytes, want %d: %.60q", len(s), len(want), s)
	}
	pio.close()
	master.Close()
	r.Close()
}

// Whoever is left behind with the terminal open does not hold up the exit.
func TestTerminalLeftOpen(t *testing.T) {
	noLeak(t)
	out := mkfifo(t, t.TempDir(), "out")
	r := readFifo(t, out)
	pio := open(t, stdioPaths{Stdout: out, Terminal: true})
	master, slave := pty(t)
	if err := pio.attach(master); err != nil {
		t.Fatal(err)
	}
	left, err := unix.FcntlInt(slave.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(left)
	cmd := startOnTerminal(t, slave, "stty -onlcr; echo last")
	cmd.Wait()
	begun := time.Now()
	pio.exited()
	if !pio.drain(5*time.Second) || time.Since(begun) > 3*time.Second {
		t.Fatalf("not drained in %v", time.Since(begun))
	}
	wantRead(t, r, "last\n")
	pio.close()
	master.Close()
	unix.Close(left)
	r.Close()
}

// A reader that does not read holds up the exit for so long only.
func TestTerminalSlowReader(t *testing.T) {
	noLeak(t)
	out := mkfifo(t, t.TempDir(), "out")
	r := readFifo(t, out)
	pio := open(t, stdioPaths{Stdout: out, Terminal: true})
	master, slave := pty(t)
	if err := pio.attach(master); err != nil {
		t.Fatal(err)
	}
	cmd := startOnTerminal(t, slave, "head -c 200000 /dev/zero")
	last := 0
	eventually(t, "a full pipe", func() bool {
		n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
		full := err == nil && n == last && n > 16000
		last = n
		time.Sleep(100 * time.Millisecond)
		return full
	})
	cmd.Process.Kill()
	cmd.Wait()
	pio.exited()
	if pio.drain(300 * time.Millisecond) {
		t.Error("drained without a reader")
	}
	pio.close()
	master.Close()
	data, err := io.ReadAll(r)
	if err != nil && !errors.Is(err, io.EOF) || len(bytes.Trim(data, "\x00")) != 0 || len(data) == 0 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	r.Close()
}

func TestAClientThatWasGoneBeforeTheContainerWasThereHasEndedItsInput(t *testing.T) {
	for _, c := range []struct {
		name  string
		gone  bool // before keep
		comes bool // after keep
		ended bool
	}{
		{"it came, wrote and went", true, false, true},
		{"it has not come yet", false, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "stdin")
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			write := func() {
				w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				if _, err := w.WriteString("input"); err != nil {
					t.Fatal(err)
				}
			}
			in, f, err := openInput(path, false)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			defer in.close()
			if c.gone {
				write()
			}
			if err := in.keep(); err != nil {
				t.Fatal(err)
			}
			if c.comes {
				write()
			}
			if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64)
			if n, err := unix.Read(int(f.Fd()), buf); string(buf[:max(n, 0)]) != "input" {
				t.Errorf("read %q, %v", buf[:max(n, 0)], err)
			}
			n, err := unix.Read(int(f.Fd()), buf)
			if ended := n == 0 && err == nil; ended != c.ended {
				t.Errorf("then read %d, %v", n, err)
			}
		})
	}
}
