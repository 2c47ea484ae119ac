package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

var built struct {
	sync.Once
	dir, path string
	err       error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// shimBinary builds the shim as it is released.
func shimBinary(t *testing.T) string {
	t.Helper()
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "rsys-shim-test-"); built.err != nil {
			return
		}
		built.path = filepath.Join(built.dir, "containerd-shim-rsys-v1")
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=v0-test", "-o", built.path, "../cmd/containerd-shim-rsys-v1")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// A started is what the start verb has answered for one bundle.
type started struct {
	bundle string
	out    []byte
}

func (s started) pid(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.bundle, "shim.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func newBundle(t *testing.T, config string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start calls the binary as containerd does.
func start(t *testing.T, bundle, id, containerd string, input []byte, env ...string) started {
	t.Helper()
	cmd := exec.Command(shimBinary(t), "-namespace", "test", "-address", containerd, "-publish-binary", "/bin/containerd", "-id", id, "start")
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "TTRPC_ADDRESS="+containerd+".ttrpc", "GRPC_ADDRESS="+containerd, "NAMESPACE=test")
	cmd.Env = append(cmd.Env, env...)
	if input != nil {
		cmd.Stdin = bytes.NewReader(input)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("start: %v: %s", err, out)
	}
	s := started{bundle, out}
	if pidData, err := os.ReadFile(filepath.Join(bundle, "shim.pid")); err == nil {
		pid, _ := strconv.Atoi(string(pidData))
		t.Cleanup(func() { unix.Kill(pid, unix.SIGKILL) })
	}
	return s
}

func addressFile(t *testing.T, bundle string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(bundle, "address"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(strings.TrimPrefix(string(data), "unix://")) })
	return string(data)
}

func connect(t *testing.T, address string) *ttrpc.Client {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { c.Close() })
	return c
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("not yet: " + what)
		}
	}
}

func bootParams(t *testing.T, id, dir string) []byte {
	t.Helper()
	p := &bootapi.BootstrapParams{InstanceID: id, Namespace: "test", ContainerdVersion: "2.4.2"}
	if dir != "" {
		p.SocketDir = &dir
	}
	data, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func gone(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(rest, "Z")
}

func TestStartProtocols(t *testing.T) {
	containerd := filepath.Join(t.TempDir(), "containerd.sock")
	for _, tt := range []struct {
		name   string
		input  []byte
		env    []string
		decode func([]byte) (string, error)
	}{
		{"1.6", nil, nil, func(b []byte) (string, error) { return string(b), nil }},
		{"1.7", nil, []string{"MAX_SHIM_VERSION=2"}, decodeJSON},
		{"2.3", bootParams(t, "2.3", ""), []string{"MAX_SHIM_VERSION=2"}, func(b []byte) (string, error) {
			var r bootapi.BootstrapResult
			if err := proto.Unmarshal(b, &r); err != nil {
				return "", err
			}
			if r.Version != 3 || r.Protocol != "ttrpc" {
				return "", fmt.Errorf("answer %v", &r)
			}
			return r.Address, nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, newBundle(t, `{"ociVersion":"1.2.0"}`), tt.name, containerd, tt.input, tt.env...)
			address, err := tt.decode(s.out)
			if err != nil {
				t.Fatalf("%v: %q", err, s.out)
			}
			if f := addressFile(t, s.bundle); f != address {
				t.Errorf("the file says %s, the answer %s", f, address)
			}
			socket := strings.TrimPrefix(address, "unix://")
			if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("socket: %v, %v", st, err)
			}
			pid := s.pid(t)
			if sid, err := unix.Getsid(pid); err != nil || sid != pid {
				t.Errorf("session %d of %d: %v", sid, pid, err)
			}
			if wd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); wd != s.bundle {
				t.Errorf("working directory %s", wd)
			}
			client := connect(t, address)
			var conn taskapi.ConnectResponse
			for _, service := range []string{"containerd.task.v2.Task", "containerd.task.v3.Task"} {
				if err := client.Call(testContext(t), service, "Connect", &taskapi.ConnectRequest{ID: tt.name}, &conn); err != nil {
					t.Fatalf("%s: %v", service, err)
				}
			}
			if int(conn.ShimPid) != pid {
				t.Errorf("shim pid %d, want %d", conn.ShimPid, pid)
			}
			// One that has containers ignores SIGTERM; this has none, and is asked properly.
			if err := client.Call(testContext(t), "containerd.task.v3.Task", "Shutdown", &taskapi.ShutdownRequest{ID: tt.name}, new(emptypb.Empty)); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(socket); !os.IsNotExist(err) {
				t.Errorf("the socket is still there: %v", err)
			}
			eventually(t, "the shim's end", func() bool { return gone(pid) })
		})
	}
}

func decodeJSON(b []byte) (string, error) {
	var r bootapi.BootstrapResult
	if err := json.Unmarshal(b, &r); err != nil {
		return "", err
	}
	if r.Version != 2 || r.Protocol != "ttrpc" {
		return "", fmt.Errorf("answer %v", &r)
	}
	return r.Address, nil
}

func TestStartGroups(t *testing.T) {
	containerd := filepath.Join(t.TempDir(), "containerd.sock")
	dir, err := os.MkdirTemp("", "rsys-s-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const config = `{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}`
	first := start(t, newBundle(t, config), "pod", containerd, bootParams(t, "pod", dir))
	second := start(t, newBundle(t, config), "c1", containerd, bootParams(t, "c1", dir))
	other := start(t, newBundle(t, `{}`), "c2", containerd, bootParams(t, "c2", dir))
	a := addressFile(t, first.bundle)
	if b := addressFile(t, second.bundle); a != b || !bytes.Equal(first.out, second.out) {
		t.Errorf("%s and %s", a, b)
	}
	if !strings.HasPrefix(a, "unix://"+dir+"/") {
		t.Errorf("%s is not in %s", a, dir)
	}
	if _, err := os.Stat(second.bundle + "/shim.pid"); !os.IsNotExist(err) {
		t.Errorf("a second shim for the group: %v", err)
	}
	if b := addressFile(t, other.bundle); a == b {
		t.Errorf("a stranger in the group: %s", b)
	}

	// A dead shim's socket is in nobody's way, and the delete verb removes it.
	pid := first.pid(t)
	unix.Kill(pid, unix.SIGKILL)
	// A zombie's threads may have the socket open for a moment more.
	eventually(t, "the shim's death", func() bool {
		conn, err := net.Dial("unix", strings.TrimPrefix(a, "unix://"))
		if err == nil {
			conn.Close()
		}
		return err != nil && gone(pid)
	})
	again := start(t, newBundle(t, config), "pod", containerd, bootParams(t, "pod", dir))
	if b := addressFile(t, again.bundle); a != b || again.pid(t) == pid {
		t.Errorf("%s, process %d", b, again.pid(t))
	}
}

// Many starts of one group at once make one shim.
func TestStartRace(t *testing.T) {
	containerd := filepath.Join(t.TempDir(), "containerd.sock")
	bundles := make([]string, 6)
	for i := range bundles {
		bundles[i] = newBundle(t, `{"annotations":{"io.containerd.runc.v2.group":"g"}}`)
	}
	shimBinary(t)
	var wg sync.WaitGroup
	for i, b := range bundles {
		wg.Add(1)
		go func() {
			defer wg.Done()
			start(t, b, "c"+strconv.Itoa(i), containerd, nil, "MAX_SHIM_VERSION=2")
		}()
	}
	wg.Wait()
	servers := 0
	for _, b := range bundles {
		addressFile(t, b)
		if _, err := os.Stat(b + "/shim.pid"); err == nil {
			servers++
		}
	}
	if servers != 1 {
		t.Errorf("%d shims", servers)
	}
}

// containerd is killed while it waits for the verb: nobody would ever ask for this server.
func TestAStartWhoseAnswerNobodyTakesLeavesNoServer(t *testing.T) {
	containerd := filepath.Join(t.TempDir(), "containerd.sock")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	bundle := newBundle(t, `{}`)
	cmd := exec.Command(shimBinary(t), "-namespace", "test", "-address", containerd, "-id", "unheard", "start")
	cmd.Dir, cmd.Stdout, cmd.Stderr = bundle, w, w
	if err := cmd.Run(); err == nil {
		t.Error("the verb is content")
	}
	pid := started{bundle, nil}.pid(t)
	t.Cleanup(func() { unix.Kill(pid, unix.SIGKILL) })
	eventually(t, "the server's end", func() bool { return gone(pid) })
	if _, err := os.Stat(strings.TrimPrefix(addressFile(t, bundle), "unix://")); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	for _, args := range [][]string{
		{"-id", "x", "start"},
		{"-namespace", "n", "start"},
		{"-namespace", "n", "-id", "x", "-socket", "/" + strings.Repeat("x", 200), "start"},
	} {
		cmd := exec.Command(shimBinary(t), args...)
		cmd.Dir = newBundle(t, `{}`)
		if out, err := cmd.CombinedOutput(); err == nil || len(out) == 0 {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
}

// The start verb must end before the server's packages begin: see package bootstrap/first.
func TestStartInitialisesLittle(t *testing.T) {
	containerd := filepath.Join(t.TempDir(), "containerd.sock")
	bundle := newBundle(t, `{}`)
	cmd := exec.Command(shimBinary(t), "-namespace", "test", "-address", containerd, "-id", "order", "start")
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1", "MAX_SHIM_VERSION=2")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	unix.Kill(started{bundle: bundle}.pid(t), unix.SIGKILL)
	addressFile(t, bundle)
	for line := range strings.Lines(stderr.String()) {
		for _, late := range []string{"os", "fmt", "net", "encoding/json", "google.golang.org/", "github.com/containerd/"} {
			if name := strings.Fields(line + " ? ?")[1]; name == late || strings.HasSuffix(late, "/") && strings.HasPrefix(name, late) {
				t.Errorf("initialised before the start verb: %s", line)
			}
		}
	}
	if !strings.Contains(stderr.String(), "init syscall") {
		t.Errorf("no trace: %s", stderr.String())
	}
}

func TestVersionAndInfo(t *testing.T) {
	out, err := exec.Command(shimBinary(t), "-v").Output()
	if err != nil || !strings.Contains(string(out), "v0-test") {
		t.Errorf("%v: %s", err, out)
	}
	any, err := toAny(&runcoptions.Options{SystemdCgroup: true})
	if err != nil {
		t.Fatal(err)
	}
	input, err := proto.Marshal(any)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(shimBinary(t), "-info")
	cmd.Stdin = bytes.NewReader(input)
	if out, err = cmd.Output(); err != nil {
		t.Fatal(err)
	}
	var info types.RuntimeInfo
	if err := proto.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	if info.Name != RuntimeName || info.Version.Version != "v0-test" || !proto.Equal(info.Options, any) || len(info.Features.GetValue()) == 0 {
		t.Errorf("%v", &info)
	}
}

func contextWithTimeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(testContext(t), d)
}

func TestTheUsageIsPrinted(t *testing.T) {
	for _, flag := range []string{"-h", "--help", "help"} {
		out, err := exec.Command(shimBinary(t), flag).Output()
		if err != nil {
			t.Errorf("%s: %v", flag, err)
		}
		for _, want := range []string{RuntimeName, "plan BUNDLE", "start", "delete", "-namespace"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %q is not in\n%s", flag, want, out)
			}
		}
	}
	var exit *exec.ExitError
	if out, err := exec.Command(shimBinary(t), "--no-such-flag").CombinedOutput(); !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "-h") {
		t.Errorf("a wrong flag: %v\n%s", err, out)
	}
}
