package harness

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
)

// Runtime is the runtime under test: RSYS_RUNTIME, or ours.
func Runtime() string {
	if rt := os.Getenv("RSYS_RUNTIME"); rt != "" {
		return rt
	}
	return "io.containerd.rsys.v1"
}

// Patience is how long anything may take that should happen at once. It is a
// bound for a machine under load, not a statement on speed.
var Patience = 30 * time.Second * slow()

// slow is how many times longer than elsewhere things may take: RSYS_SLOW, a whole number, for a machine whose processors are emulated.
func slow() time.Duration {
	n, err := strconv.Atoi(os.Getenv("RSYS_SLOW"))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
}

// Env is what one test works with.
type Env struct {
	testing.TB
	*Daemon
	Ctx context.Context
	// RuntimeOptions are those of the containers made from here on, a message of a runtime's options type.
	RuntimeOptions any
	// NoSnapshot says that containers made from here on have no snapshot in the end: who creates the task gives it a root file system.
	NoSnapshot bool
	// Runtime is that of the containers made from here on.
	Runtime string
	before  Snapshot
	logged  int
	may     []string
}

// New begins a test: at its end, everything that was not there now is a leak,
// and fails it.
func New(t testing.TB, d *Daemon) *Env {
	t.Helper()
	ctx, cancel := context.WithTimeout(d.Background(), 5*time.Minute*slow())
	e := &Env{TB: t, Daemon: d, Ctx: ctx, Runtime: Runtime(), before: d.Snapshot(), logged: d.logged()}
	t.Cleanup(func() {
		cancel()
		leaks := d.Leaks(e.before, 10*time.Second*slow(), e.may...)
		if len(leaks) > 0 {
			t.Errorf("left behind:\n  %s", strings.Join(leaks, "\n  "))
		}
		if t.Failed() {
			t.Logf("what containerd and the shims logged:\n%s", d.LogFrom(e.logged, 4000))
		}
		if len(leaks) > 0 || len(e.may) > 0 {
			d.clean(e.before)
		}
	})
	return e
}

// MayLeave tells of what a peer is known to leave behind: things whose lines
// begin so are removed at the end, and not held against it.
func (e *Env) MayLeave(prefix string) { e.may = append(e.may, prefix) }

// clean removes what a failed test left, so that the next is not blamed.
func (d *Daemon) clean(before Snapshot) {
	for _, p := range Descendants() {
		if !d.stays(p.Pid) {
			thaw(p.Cgroup)
			_ = killPid(p.Pid)
		}
	}
	time.Sleep(200 * time.Millisecond)
	ctx, cancel := context.WithTimeout(d.Background(), 10*time.Second)
	defer cancel()
	d.cleanPods(ctx)
	containers, _ := d.Client.Containers(ctx)
	for _, c := range containers {
		if task, err := c.Task(ctx, nil); err == nil {
			_, _ = task.Delete(ctx, client.WithProcessKill)
		}
		_ = c.Delete(ctx, client.WithSnapshotCleanup)
	}
	for _, thing := range d.Snapshot().More(before) {
		if f := strings.Fields(thing); f[0] == "mount" && len(f) > 5 {
			_ = unmount(f[5])
		}
	}
	for _, thing := range d.Snapshot().More(before) {
		switch f := strings.Fields(thing); f[0] {
		case "cgroup":
			_ = os.Remove(f[1])
		case "socket", "fifo", "file", "directory", "link":
			_ = os.RemoveAll(f[1])
		}
	}
}

// Must ends the test on an error.
func (e *Env) Must(err error, what string, args ...any) {
	e.Helper()
	if err != nil {
		e.Fatalf("%s: %v", fmt.Sprintf(what, args...), err)
	}
}

// Eventually waits until what is so.
func (e *Env) Eventually(what string, so func() bool) {
	e.Helper()
	for deadline := time.Now().Add(Patience); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			e.Fatalf("still not so after %v: %s", Patience, what)
		}
	}
}

// Container adds a container to containerd: the image, containerd's default
// spec with its default seccomp profile, the args, and what opts change.
// It is removed at the end of the test, with its task if that is still there.
func (e *Env) Container(args []string, opts ...oci.SpecOpts) *Container {
	e.Helper()
	c, err := e.TryContainer(fmt.Sprintf("c%d-%d", os.Getpid()%1000, e.serial()), args, opts...)
	e.Must(err, "new container")
	return c
}

var serial atomic.Int64

func (e *Env) serial() int64 { return serial.Add(1) }

// TryContainer is Container with an id, and with an error.
func (e *Env) TryContainer(id string, args []string, opts ...oci.SpecOpts) (*Container, error) {
	img, err := e.Client.GetImage(e.Ctx, ImageName)
	if err != nil {
		return nil, err
	}
	all := append([]oci.SpecOpts{oci.WithImageConfigArgs(img, args), seccomp.WithDefaultProfile()}, opts...)
	// The profile is made to fit the capabilities, which opts may change.
	all = append(all, refitSeccomp)
	if Systemd() {
		all = append(all, e.inScope)
	}
	record, err := e.Client.NewContainer(e.Ctx, id,
		client.WithImage(img), client.WithSnapshotter("overlayfs"), client.WithNewSnapshot(id, img),
		client.WithRuntime(e.Runtime, e.RuntimeOptions), client.WithNewSpec(all...))
	if err != nil {
		return nil, err
	}
	c := &Container{Env: e, Container: record}
	e.Cleanup(c.remove)
	if e.NoSnapshot {
		// The snapshot was needed for the spec: users are looked up in it.
		err = record.Update(e.Ctx, func(_ context.Context, _ *client.Client, r *containers.Container) error {
			r.SnapshotKey = ""
			return nil
		})
		if err == nil {
			err = e.Client.SnapshotService("overlayfs").Remove(e.Ctx, id)
		}
		if errdefs.IsNotFound(err) { // containerd's garbage collector was faster
			err = nil
		}
	}
	return c, err
}
