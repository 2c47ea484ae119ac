package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/rsys-io/rsys/integration/harness"
)

// With 200 containers the node has what it had before, and of each container what one has: a process of its own, and a shim and
// a stub, or a share of one. What a container takes does not depend on how many there are.
func TestTwoHundredContainersAtOnceTakeNoMoreEachThanOne(t *testing.T) {
	if peer() {
		t.Skip("runc's shim mounts every container's root on the host")
	}
	const many, few = 200, 10
	for _, test := range []struct {
		name string
		opts []oci.SpecOpts
		// processes of ours that there are for n containers
		processes func(n int) int
	}{
		{"a shim each", nil, func(n int) int { return 3 * n }},
		{"one shim for all", []oci.SpecOpts{oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "all"})},
			func(n int) int { return n + 2 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			h := &herd{Env: e, opts: test.opts}
			mounts := mountTable(e, e.Pid())
			h.grow(few)
			e.Eventually(fmt.Sprintf("%d processes", test.processes(few)), func() bool { return len(h.processes()) == test.processes(few) })
			fdsOfFew := h.fds()
			h.grow(many)
			if now := mountTable(e, e.Pid()); !slices.Equal(now, mounts) {
				t.Errorf("the daemon's mount table had %d lines, and has %d:\n%s", len(mounts), len(now), strings.Join(now, "\n"))
			}
			e.Eventually(fmt.Sprintf("%d processes", test.processes(many)), func() bool { return len(h.processes()) == test.processes(many) })
			fds := h.fds()
			t.Logf("%d containers: %d processes; descriptors of shims and stubs: %d for %d containers, %d for %d", many, len(h.processes()), fdsOfFew, few, fds, many)
			// A few come and go with requests and are not of a container.
			if each, at := float64(fds-fdsOfFew)/(many-few), float64(fdsOfFew)/few; each > at+1 {
				t.Errorf("%.1f descriptors for each of the first %d, and %.1f for each further one", at, few, each)
			}
			for i, c := range []int{0, few, many - 1} {
				task := h.tasks[c]
				status, err := task.Status(e.Ctx)
				e.Must(err, "status")
				if status.Status != client.Running {
					t.Errorf("container %d is %q", c, status.Status)
				}
				h.exec(c, uint32(i+3))
			}
			h.shrink()
		})
	}
}

// A herd is many containers that do nothing.
type herd struct {
	*harness.Env
	opts    []oci.SpecOpts
	records []client.Container
	tasks   []client.Task
}

const herders = 4

// grow adds containers until there are n.
func (h *herd) grow(n int) {
	h.Helper()
	img, err := h.Client.GetImage(h.Ctx, harness.ImageName)
	h.Must(err, "image")
	from := len(h.tasks)
	h.records = append(h.records, make([]client.Container, n-from)...)
	h.tasks = append(h.tasks, make([]client.Task, n-from)...)
	h.each(from, n, func(i int) error {
		id := fmt.Sprintf("herd-%d-%d", os.Getpid()%1000, i)
		opts := append([]oci.SpecOpts{oci.WithImageConfigArgs(img, []string{"sleep", "3600"}), seccomp.WithDefaultProfile()}, h.opts...)
		c, err := h.Client.NewContainer(h.Ctx, id, client.WithImage(img), client.WithSnapshotter("overlayfs"), client.WithNewSnapshot(id, img),
			client.WithRuntime(harness.Runtime(), nil), client.WithNewSpec(opts...))
		if err != nil {
			return err
		}
		h.records[i] = c
		if h.tasks[i], err = c.NewTask(h.Ctx, cio.NullIO); err != nil {
			return err
		}
		return h.tasks[i].Start(h.Ctx)
	})
}

// shrink ends them all.
func (h *herd) shrink() {
	h.Helper()
	h.each(0, len(h.tasks), func(i int) error {
		exit, err := h.tasks[i].Delete(h.Ctx, client.WithProcessKill)
		if err != nil {
			return err
		}
		if exit.ExitCode() != 137 {
			return fmt.Errorf("exit code %d, want 137", exit.ExitCode())
		}
		return h.records[i].Delete(h.Ctx, client.WithSnapshotCleanup)
	})
}

func (h *herd) each(from, to int, do func(i int) error) {
	h.Helper()
	next, wg := atomic.Int64{}, sync.WaitGroup{}
	next.Store(int64(from))
	for range herders {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < to; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					h.Errorf("container %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if h.Failed() {
		h.FailNow()
	}
}

// exec runs a command in a container, that ends with a code.
func (h *herd) exec(i int, code uint32) {
	h.Helper()
	spec, err := h.records[i].Spec(h.Ctx)
	h.Must(err, "spec")
	process := *spec.Process
	process.Args = harness.Sh(fmt.Sprintf("exit %d", code))
	x, err := h.tasks[i].Exec(h.Ctx, "x", &process, cio.NullIO)
	h.Must(err, "exec in %d", i)
	exit, err := x.Wait(h.Ctx)
	h.Must(err, "wait")
	h.Must(x.Start(h.Ctx), "start an exec in %d", i)
	select {
	case st := <-exit:
		if st.ExitCode() != code {
			h.Errorf("an exec in %d ended with %d, want %d", i, st.ExitCode(), code)
		}
	case <-time.After(harness.Patience):
		h.Fatalf("an exec in %d does not end", i)
	}
	_, err = x.Delete(h.Ctx)
	h.Must(err, "delete the exec")
}

// processes are those of containers, shims and stubs.
func (h *herd) processes() (procs []harness.Proc) {
	for _, p := range harness.Descendants() {
		if p.Pid != h.Pid() && p.State != "Z" {
			procs = append(procs, p)
		}
	}
	return procs
}

// fds is how many descriptors shims and stubs have open.
func (h *herd) fds() (n int) {
	h.Helper()
	for _, p := range h.processes() {
		if strings.HasPrefix(harness.ExeOf(p.Pid), "containerd-shim") || p.Comm == "rsys-stub" {
			open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.Pid))
			h.Must(err, "descriptors")
			n += len(open)
		}
	}
	return n
}
