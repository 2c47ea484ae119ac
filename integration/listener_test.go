package integration

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
	"golang.org/x/sys/unix"
)

// An agent is what decides on system calls: it fails each that it is asked about with ENOSPC.
type agent struct {
	path   string
	states chan specs.ContainerProcessState
}

func startAgent(t *testing.T) *agent {
	a := &agent{path: filepath.Join(t.TempDir(), "agent.sock"), states: make(chan specs.ContainerProcessState, 10)}
	l, err := net.Listen("unix", a.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go a.serve(t, conn.(*net.UnixConn))
		}
	}()
	return a
}

func (a *agent) serve(t *testing.T, conn *net.UnixConn) {
	defer conn.Close()
	data, oob := make([]byte, 4096), make([]byte, 64)
	n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		t.Error(err)
		return
	}
	rest, _ := io.ReadAll(conn)
	var state specs.ContainerProcessState
	if err := json.Unmarshal(append(data[:n:n], rest...), &state); err != nil {
		t.Errorf("%v: %q", err, data[:n])
		return
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Errorf("%d control messages, %v", len(messages), err)
		return
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Errorf("descriptors %v, %v", fds, err)
		return
	}
	a.states <- state
	defer unix.Close(fds[0])
	for {
		// struct seccomp_notif and seccomp_notif_resp of linux/seccomp.h.
		var ask [80]byte
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), 0xc0502100, uintptr(unsafe.Pointer(&ask))); e != 0 {
			if e == unix.EINTR {
				continue
			}
			return // there is nobody left to ask
		}
		var answer struct {
			id    uint64
			val   int64
			errno int32
			flags uint32
		}
		answer.id = *(*uint64)(unsafe.Pointer(&ask))
		answer.errno = -int32(unix.ENOSPC)
		unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), 0xc0182101, uintptr(unsafe.Pointer(&answer)))
	}
}

func notify(path string, names ...string) oci.SpecOpts {
	return change(func(s *oci.Spec) {
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: path, ListenerMetadata: "meta data",
			Syscalls: []specs.LinuxSyscall{{Names: names, Action: specs.ActNotify}}}
	})
}

func TestAnAgentIsAskedAboutSystemCalls(t *testing.T) {
	for _, newPrivs := range []bool{true, false} {
		e, a := start(t), startAgent(t)
		mkdir := harness.Sh("mkdir /tmp/d 2>&1; ls /proc/self/fd | wc -l")
		c := e.Container(append(mkdir[:2:2], mkdir[2]+"; sleep 3600"), notify(a.path, "mkdir", "mkdirat"), oci.WithAnnotations(map[string]string{"k": "v"}),
			change(func(s *oci.Spec) { s.Process.NoNewPrivileges = !newPrivs })).Run()
		const want = "mkdir: can't create directory '/tmp/d': No space left on device\n4\n"
		e.Eventually("the container tells", func() bool { return strings.Count(c.IO.Stdout.String(), "\n") == 2 })
		if got := c.IO.Stdout.String(); got != want {
			t.Errorf("got %q", got)
		}
		s := <-a.states
		if pid := int(c.Task.Pid()); s.Pid != pid || s.State.Pid != pid || s.State.ID != c.ID() || s.Metadata != "meta data" || len(s.Fds) != 1 ||
			s.Fds[0] != specs.SeccompFdName || s.State.Annotations["k"] != "v" || s.Version == "" || !peer() && s.State.Status != specs.StateCreated {
			t.Errorf("state %+v of %d", s, pid)
		}
		x := c.Exec(nil, c.Process(mkdir)).StartExec()
		pid := int(x.Process.Pid())
		if got := x.WaitExec(); got.Stdout != want {
			t.Errorf("exec: got %+v", got)
		}
		if s := <-a.states; s.Pid != pid || s.State.Pid != int(c.Task.Pid()) || s.State.Status != specs.StateRunning {
			t.Errorf("exec: state %+v", s)
		}
		c.Kill(syscall.SIGKILL)
		c.Wait()
		c.Delete()
	}
}

func TestWithoutItsAgentAContainerDoesNotStart(t *testing.T) {
	e := start(t)
	path := filepath.Join(t.TempDir(), "none.sock")
	c := e.Container([]string{"true"}, notify(path, "mkdir"))
	err := c.TryCreate()
	if err == nil {
		err = c.Task.Start(e.Ctx)
		if c.Wait().Code == 0 {
			t.Error("it ran")
		}
		c.Delete()
	}
	if err == nil || !peer() && !strings.Contains(err.Error(), "linux.seccomp.listenerPath ("+path+"): listener: connect to the seccomp agent: ") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("somebody made the socket")
	}
}
