package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/oci"
)

// bundle is a directory with a root file system of busybox.
func bundle(t testing.TB) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("no busybox: install busybox-static")
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "true", "sleep", "cat", "echo", "id"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// defaultSpec is containerd's default spec with its seccomp profile.
func defaultSpec(t testing.TB, args ...string) *specs.Spec {
	t.Helper()
	data, err := os.ReadFile("../oci/testdata/ctr-2.4.2.json")
	if err != nil {
		t.Fatal(err)
	}
	var c struct{ Spec json.RawMessage }
	if json.Unmarshal(data, &c); c.Spec == nil {
		c.Spec = data
	}
	spec, err := oci.Parse(c.Spec)
	if err != nil {
		t.Fatal(err)
	}
	spec.Process.Args, spec.Process.Env = args, []string{"PATH=/bin"}
	spec.Process.Terminal = false
	spec.Root.Path = "rootfs"
	spec.Linux.CgroupsPath = "/rsys-test/" + strings.ReplaceAll(t.Name(), "/", "-")
	return spec
}

func testRuntime(t testing.TB) *Runtime {
	r := New()
	t.Cleanup(func() {
		s, err := r.ground(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		// What a task had that was killed while it was made is let go of when it is gone, which nobody waits for.
		for end := time.Now().Add(5 * time.Second); s.InUse() != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%d bytes of the arena are still allocated", s.InUse())
				break
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

type output struct {
	w    *os.File
	done chan string
}

func capture(t testing.TB) *output {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o := &output{w, make(chan string, 1)}
	go func() {
		var b bytes.Buffer
		io.Copy(&b, r)
		r.Close()
		o.done <- b.String()
	}()
	return o
}

func (o *output) text() string {
	o.w.Close()
	return <-o.done
}

func wait(t testing.TB, p *Process) uint32 {
	t.Helper()
	select {
	case <-p.Exited():
		return p.Exit().Status
	case <-time.After(10 * time.Second):
		t.Fatal("no exit")
		return 0
	}
}

func TestContainerRunsExecsAndIsDeleted(t *testing.T) {
	ctx := context.Background()
	r, dir := testRuntime(t), bundle(t)
	out := capture(t)
	c, err := r.Create(ctx, Config{ID: "x", Bundle: dir, Spec: defaultSpec(t, "sh", "-c", "echo $$ $HOME; read x"), Stdio: Stdio{Stdout: out.w}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory/rsys-test/TestContainerRunsExecsAndIsDeleted"); err != nil && !thisHost().CgroupV2 {
		t.Error(err)
	}
	in, inw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	inw.Close()
	if err := c.Init.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Init.Start(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if got, code := out.text(), wait(t, c.Init); got != "1 /root\n" || code != 1 { // read sees the end of /dev/null
		t.Errorf("%q, exit %d", got, code)
	}
	if err := c.Init.Signal(unix.SIGTERM); !errdefs.IsNotFound(err) {
		t.Errorf("signal to an exited process: %v", err)
	}
	if err := c.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory/rsys-test/TestContainerRunsExecsAndIsDeleted"); err == nil {
		t.Error("the cgroup is still there")
	}
}

func sleeping(t testing.TB, r *Runtime, dir string) *Container {
	t.Helper()
	c, err := r.Create(context.Background(), Config{ID: "x", Bundle: dir, Spec: defaultSpec(t, "sleep", "1000")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := c.Init.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestExecsAreInTheContainer(t *testing.T) {
	ctx := context.Background()
	c := sleeping(t, testRuntime(t), bundle(t))
	for _, tt := range []struct {
		name string
		args []string
		uid  uint32
		out  string
		code uint32
		err  string
	}{
		{"one prints", []string{"echo", "hello"}, 0, "hello\n", 0, ""},
		{"one fails", []string{"sh", "-c", "exit 7"}, 0, "", 7, ""},
		{"one is another user, with its home", []string{"sh", "-c", "id -u; echo $HOME"}, 1000, "1000\n/home/u\n", 0, ""},
		{"one is not found", []string{"nosuch"}, 0, "", 0, `exec: "nosuch": executable file not found in $PATH`},
		{"one is no program", []string{"/etc/passwd"}, 0, "", 0, `permission denied`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := *c.spec.Process
			p.Args, p.User.UID, p.User.GID = tt.args, tt.uid, tt.uid
			out := capture(t)
			ex, err := c.Exec(ctx, &p, Stdio{Stdout: out.w})
			if err != nil {
				t.Fatal(err)
			}
			defer ex.Close()
			err = ex.Start(ctx)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v", err)
				}
				out.text()
				wait(t, ex)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, code := out.text(), wait(t, ex); got != tt.out || code != tt.code {
				t.Errorf("%q, exit %d", got, code)
			}
		})
	}
}

func TestAContextThatEndsUndoesACreation(t *testing.T) {
	r, dir := testRuntime(t), bundle(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Who opens it waits for an answer of ours, which does not come.
	watch, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY)
	if err == nil {
		defer unix.Close(watch)
		err = unix.FanotifyMark(watch, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM, unix.AT_FDCWD, file)
	}
	if err != nil {
		t.Skip("this kernel does not ask before a file is opened: ", err)
	}
	spec := defaultSpec(t, "true")
	for i := range spec.Linux.Namespaces {
		if spec.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			spec.Linux.Namespaces[i].Path = file
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err = r.Create(ctx, Config{ID: "x", Bundle: dir, Spec: spec})
	if err == nil || !strings.Contains(err.Error(), "linux.namespaces[") || !strings.Contains(err.Error(), "in openat") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory" + spec.Linux.CgroupsPath); err == nil {
		t.Error("the cgroup is still there")
	}
}

// overSilently is a context that is over, of which no call takes notice: as one that ends just when the answer to the last call is there.
type overSilently struct{ context.Context }

func (overSilently) Done() <-chan struct{} { return nil }
func (overSilently) Err() error            { return context.Canceled }

func TestACreationWhoseContextEndsWithItsLastCallIsUndone(t *testing.T) {
	r := testRuntime(t)
	dir, spec := bundle(t), defaultSpec(t, "true")
	c, err := r.Create(overSilently{context.Background()}, Config{ID: "c", Bundle: dir, Spec: spec})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if c != nil {
		c.Init.Close()
		c.Delete(context.Background())
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*" + spec.Linux.CgroupsPath)
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func BenchmarkLifecycle(b *testing.B) {
	ctx := context.Background()
	r, dir := testRuntime(b), bundle(b)
	spec := defaultSpec(b, "true")
	var create, start, exit, del time.Duration
	n := 0
	for b.Loop() {
		n++
		t0 := time.Now()
		c, err := r.Create(ctx, Config{ID: "x", Bundle: dir, Spec: spec})
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := c.Init.Start(ctx); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		wait(b, c.Init)
		t3 := time.Now()
		if err := c.Delete(ctx); err != nil {
			b.Fatal(err)
		}
		create, start, exit, del = create+t1.Sub(t0), start+t2.Sub(t1), exit+t3.Sub(t2), del+time.Since(t3)
	}
	for name, d := range map[string]time.Duration{"create": create, "start": start, "exit": exit, "delete": del} {
		b.ReportMetric(float64(d.Microseconds())/float64(n), name+"-us/op")
	}
}

func BenchmarkExec(b *testing.B) {
	ctx := context.Background()
	c := sleeping(b, testRuntime(b), bundle(b))
	p := *c.spec.Process
	p.Args = []string{"true"}
	for b.Loop() {
		ex, err := c.Exec(ctx, &p, Stdio{})
		if err != nil {
			b.Fatal(err)
		}
		if err := ex.Start(ctx); err != nil {
			b.Fatal(err)
		}
		wait(b, ex)
		if err := ex.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAnInitInAJoinedPIDNamespaceIsBornThere(t *testing.T) {
	if !procTakesPIDNS() {
		t.Skip("procfs has no option pidns: the init is cloned into the namespace with its privileges")
	}
	ctx := context.Background()
	r, dir := testRuntime(t), bundle(t)
	first := sleeping(t, r, dir)
	spec := defaultSpec(t, "sh", "-c", "echo $$; cat /proc/1/comm; cat /proc/self/status | grep -c CapEff:.00000000a80425fb; id -u")
	for i := range spec.Linux.Namespaces {
		if ns := &spec.Linux.Namespaces[i]; ns.Type == specs.PIDNamespace {
			ns.Path = fmt.Sprintf("/proc/%d/ns/pid", first.Init.Pid())
		}
	}
	spec.Linux.CgroupsPath += "-second"
	if err := os.Symlink("busybox", filepath.Join(dir, "rootfs/bin/grep")); err != nil {
		t.Fatal(err)
	}
	out := capture(t)
	c, err := r.Create(ctx, Config{ID: "y", Bundle: dir, Spec: spec, Stdio: Stdio{Stdout: out.w}})
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Init.Pid()))
	if err != nil || !bytes.Contains(status, []byte("CapPrm:\t00000000a80425fb")) || !bytes.Contains(status, []byte("Seccomp:\t2")) {
		t.Errorf("the created process, %v:\n%s", err, status)
	}
	time.Sleep(20 * time.Millisecond)
	select {
	case <-c.Init.Exited():
		t.Fatal("it did not wait for the start")
	default:
	}
	if err := c.Init.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if got, code := out.text(), wait(t, c.Init); got != "2\nsleep\n1\n0\n" || code != 0 {
		t.Errorf("%q, exit %d", got, code)
	}
	if err := c.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	// One that is never started goes as well.
	c, err = r.Create(ctx, Config{ID: "y", Bundle: dir, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx); err != nil {
		t.Fatal(err)
	}
}
