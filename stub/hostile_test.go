package stub

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A fake is this process in the part of a caller: what it does with the descriptors that it is sent.
// Being a caller, it is not to be killed for it; that would end the test.
type fake struct {
	syscalls, data, memfd, connection *os.File

	maps int // requests until its memory is there
}

// words describe the fake truly.
func (f *fake) words() [10]uint64 {
	fd := func(f *os.File) uint64 { return uint64(f.Fd()) }
	return [10]uint64{magic, uint64(os.Getpid()), fd(f.syscalls), fd(f.data), fd(f.memfd), fd(f.connection), 0, 0, 0, 0x400000}
}

// answer sends results, one for each request.
func (f *fake) answer(results ...int64) {
	f.syscalls.Write(make([]byte, 8)) // the hello
	for _, r := range results {
		var request [56]byte
		if _, err := io.ReadFull(f.syscalls, request[:]); err != nil {
			return
		}
		f.syscalls.Write(binary.NativeEndian.AppendUint64(nil, uint64(r)))
	}
}

func (f *fake) close() {
	for _, x := range []*os.File{f.syscalls, f.data, f.memfd, f.connection} {
		x.Close()
	}
}

// receive takes the descriptors that a server sends.
func receive(conn *net.UnixConn) (*fake, error) {
	oob := make([]byte, 64)
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("%d messages, %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 4 {
		return nil, fmt.Errorf("%d descriptors, %v", len(fds), err)
	}
	file := func(i int) *os.File { return os.NewFile(uintptr(fds[i]), "fake") }
	return &fake{file(0), file(1), file(2), file(3), 0}, nil
}

// hostile is what a hostile caller does, and what the error must say.
type hostile struct {
	name, want string
	do         func(f *fake, wait func())
}

func hostiles() []hostile {
	list := []hostile{
		{"closes all", "description", func(*fake, func()) {}},
		{"waits", "deadline", func(_ *fake, wait func()) { wait() }},
		{"describes itself and waits", "hello: context deadline", func(f *fake, wait func()) {
			f.data.Write(description(f.words()))
			wait()
		}},
		{"describes another descriptor as its channel", "identity", func(f *fake, _ func()) {
			w := f.words()
			w[2], w[3] = w[3], w[2]
			f.data.Write(description(w))
		}},
		{"describes a descriptor that is not open", "identity", func(f *fake, _ func()) {
			w := f.words()
			w[2] = 1 << 20
			f.data.Write(description(w))
		}},
		{"greets with an error", "hello: set_robust_list", func(f *fake, wait func()) {
			f.data.Write(description(f.words()))
			f.syscalls.Write(binary.NativeEndian.AppendUint64(nil, ^uint64(0)))
			wait()
		}},
		{"has no memory", "shared memory: mmap: ENOMEM", func(f *fake, wait func()) {
			f.data.Write(description(f.words()))
			f.answer(-int64(unix.ENOMEM))
			wait()
		}},
		{"shuts its channel down and lives on", "hello", func(f *fake, wait func()) {
			f.data.Write(description(f.words()))
			unix.Shutdown(int(f.syscalls.Fd()), unix.SHUT_RDWR)
			wait()
		}},
		{"stops with its memory there", "futex: context deadline", func(f *fake, wait func()) {
			f.data.Write(description(f.words()))
			f.answer(answers(f.maps)...)
			wait()
		}},
		{"has left more steps than there are", "futex: ", func(f *fake, wait func()) {
			f.data.Write(description(f.words()))
			f.answer(answers(f.maps, 1<<40, 1<<40, 1<<40, 1<<40)...)
			wait()
		}},
	}
	for _, bad := range badDescriptions {
		list = append(list, hostile{"describes itself as " + bad.name, bad.want, func(f *fake, _ func()) { f.data.Write(bad.data) }})
	}
	// Ends after each byte of the description, each of the greeting, and each request.
	size := len(description(goodWords, "a", "b", "c=d"))
	for n := range size {
		list = append(list, hostile{fmt.Sprintf("ends after %d bytes", n), "description", func(f *fake, _ func()) {
			w := f.words()
			w[7], w[8] = 2, 1
			f.data.Write(description(w, "a", "b", "c=d")[:n])
		}})
	}
	for n := range 8 {
		list = append(list, hostile{fmt.Sprintf("ends after %d bytes of its greeting", n), "hello", func(f *fake, wait func()) {
			f.data.Write(description(f.words()))
			f.syscalls.Write(make([]byte, n))
			unix.Shutdown(int(f.syscalls.Fd()), unix.SHUT_RDWR)
			wait()
		}})
	}
	for n := range 2 {
		list = append(list, hostile{fmt.Sprintf("ends after %d answers", n), "context deadline", func(f *fake, wait func()) {
			f.data.Write(description(f.words()))
			f.answer(answers(n)...)
			unix.Shutdown(int(f.syscalls.Fd()), unix.SHUT_RDWR)
			wait()
		}})
	}
	return list
}

// answers are n good ones to the requests of a bootstrap, then more.
func answers(n int, more ...int64) []int64 {
	all := []int64{0x7000_0000_0000, 0x7100_0000_0000}
	for len(all) < n {
		all = append(all, 1)
	}
	return append(all[:n:n], more...)
}

func TestHostileCallers(t *testing.T) {
	for name, transport := range map[string]Transport{"arena": SharedArena, "socket": DataSocket} {
		server, _ := testServer(t, Config{Transport: transport})
		fds, maps := openFDs(t), arenas(t)
		goroutines := runtime.NumGoroutine()
		for _, h := range hostiles() {
			t.Run(name+": one that "+h.name, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(context.Background())
				defer cancel(nil)
				accepted, done := make(chan struct{}), make(chan error, 1)
				wait := func() { // the server's patience ends when it has come to where the fake is
					time.AfterFunc(200*time.Millisecond, func() { cancel(context.DeadlineExceeded) })
					<-accepted
				}
				go func() {
					conn, err := net.Dial("unix", server.Addr())
					if err == nil {
						var f *fake
						if f, err = receive(conn.(*net.UnixConn)); err == nil {
							f.maps = 1 + int(transport)
							h.do(f, wait)
							f.close()
						}
						conn.Close()
					}
					done <- err
				}()
				start := time.Now()
				s, err := server.Accept(ctx)
				if s != nil || err == nil || !strings.Contains(err.Error(), h.want) {
					t.Errorf("got %v; want %q", err, h.want)
				}
				if d := time.Since(start); d > bootstrapTime/2 {
					t.Errorf("it took %v", d)
				}
				close(accepted)
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		}
		settled(t, goroutines, fds)
		if n := arenas(t); n != maps {
			t.Errorf("%d arenas are mapped, were %d", n, maps)
		}
	}
}

func TestACallerThatHangsUpAtOnce(t *testing.T) {
	server, program := testServer(t, Config{})
	conn, err := net.Dial("unix", server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := server.Accept(context.Background()); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d: send descriptors", os.Getpid())) {
		t.Errorf("got %v", err)
	}
	// The next one is served.
	cmd := exec.Command(program)
	if err := caught(t, server, cmd).Exit(context.Background(), 0); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// A caller that has another process serve in its place is not who it is taken for.
func TestACallerThatPassesItsConnectionOn(t *testing.T) {
	server, program := testServer(t, Config{})
	conn, err := net.Dial("unix", server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(program)
	cmd.Env, cmd.ExtraFiles = []string{}, []*os.File{f} // as its descriptor 3
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Accept(context.Background()); err == nil || !strings.Contains(err.Error(), "identity") {
		t.Errorf("got %v", err)
	}
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 125 && cmd.ProcessState.String() != "signal: broken pipe" {
		t.Errorf("it ended %v", cmd.ProcessState)
	}
}

// arenas is the number of arenas that are mapped.
func arenas(t testing.TB) int {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "rsys-arena")
}

// spawnProgram is a spawn of another program than the stub's.
func spawnProgram(pid *int, name string, args ...string) func(_, bootstrap *os.File) (int, error) {
	return func(_, bootstrap *os.File) (int, error) {
		cmd := exec.Command(name, args...)
		cmd.ExtraFiles = []*os.File{bootstrap}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		*pid = cmd.Process.Pid
		cmd.Process.Release()
		return *pid, nil
	}
}

func gone(t testing.TB, pid int) {
	t.Helper()
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("process %d is left: %v", pid, err)
		unix.Kill(pid, unix.SIGKILL)
	}
}

func TestWhatIsStartedIsNotAStub(t *testing.T) {
	onSpawner(func() {}) // which stays
	fds, maps, goroutines := openFDs(t), arenas(t), runtime.NumGoroutine()
	for _, tt := range []struct{ name, want, script string }{
		{"it ends", "", "exit 0"},
		{"it closes the socket and stays", "", "exec 3<&-; exec sleep 100"},
		{"it never answers", "deadline", "exec sleep 100"},
		{"it is killed", "", "kill -9 $$"},
		{"it writes to the socket", "", "echo hello >&3; exec sleep 100"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pid := 0
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			s, err := Config{}.start(ctx, spawnProgram(&pid, "/bin/sh", "-c", tt.script))
			if s != nil || err == nil || !strings.Contains(err.Error(), "descri") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
			gone(t, pid)
		})
	}
	if _, err := (Config{}).start(context.Background(), spawnProgram(new(int), "/nosuch")); err == nil || !strings.HasPrefix(err.Error(), "start: ") {
		t.Errorf("no program: %v", err)
	}
	settled(t, goroutines, fds)
	if n := arenas(t); n != maps {
		t.Errorf("%d arenas are mapped, were %d", n, maps)
	}
}

// killer kills a process at its n-th stop: before and behind each system call, as its tracer.
type killer struct {
	at     int
	killed bool
	done   chan error
}

// trace starts tracing pid and returns when it does; the process goes on then.
func (k *killer) trace(pid int) error {
	started := make(chan error)
	k.done = make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends, and with it all tracing
		err := errors.Join(unix.PtraceSeize(pid), unix.PtraceInterrupt(pid))
		started <- err
		if err == nil {
			err = k.follow(pid)
		}
		k.done <- err
	}()
	return <-started
}

func (k *killer) follow(pid int) error {
	for stops := 0; ; {
		// Only stops are taken: its end is another's to see.
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WNOHANG, nil)
		switch {
		case err == unix.ECHILD:
			return nil
		case err != nil && err != unix.EINTR:
			return err
		case err != nil || info.Signo == 0:
			time.Sleep(20 * time.Microsecond)
			continue
		}
		if stops++; stops == k.at {
			k.killed = true
			return unix.Kill(pid, unix.SIGKILL)
		}
		if err := unix.PtraceSyscall(pid, 0); err != nil && err != unix.ESRCH {
			return err
		}
	}
}

func TestAStubThatIsKilledAtEachStepOfItsBootstrap(t *testing.T) {
	onSpawner(func() {}) // which stays
	for name, cfg := range map[string]Config{"arena": {}, "socket": {Transport: DataSocket}} {
		t.Run(name, func(t *testing.T) {
			fds, maps, goroutines := openFDs(t), arenas(t), runtime.NumGoroutine()
			steps := map[string]bool{}
			for at := 1; ; at++ {
				if at > 300 {
					t.Fatal("the bootstrap does not end")
				}
				k, pid := &killer{at: at}, 0
				start := time.Now()
				s, err := cfg.start(context.Background(), func(exe, bootstrap *os.File) (int, error) {
					var err error
					if pid, err = spawn(exe, bootstrap); err == nil {
						err = k.trace(pid)
					}
					return pid, err
				})
				if d := time.Since(start); d > 5*time.Second {
					t.Errorf("killed at stop %d: it took %v", at, d)
				}
				if err == nil {
					err = s.Close()
				} else {
					step, _, _ := strings.Cut(err.Error(), ":")
					steps[step] = true
				}
				if traceErr := <-k.done; traceErr != nil {
					t.Fatal(traceErr)
				}
				gone(t, pid)
				if !k.killed {
					if err != nil {
						t.Fatalf("not killed: %v", err)
					}
					t.Logf("%d stops; it failed at: %v", at-1, steps)
					break
				}
			}
			for _, want := range []string{"bad description", "make a task of it", "seclude it"} {
				if !steps[want] {
					t.Errorf("no error of %q", want)
				}
			}
			settled(t, goroutines, fds)
			if n := arenas(t); n != maps {
				t.Errorf("%d arenas are mapped, were %d", n, maps)
			}
		})
	}
}
