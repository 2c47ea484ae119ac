package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/rsys-io/rsys/integration/harness"
)

var serial atomic.Int64

// container adds a container: containerd's default spec and seccomp profile.
func (b *bench) container(ctx context.Context, name string, args []string, opts ...oci.SpecOpts) (client.Container, error) {
	img, err := b.d.Client.GetImage(ctx, harness.ImageName)
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%s-%d", name, serial.Add(1))
	opts = append([]oci.SpecOpts{oci.WithImageConfigArgs(img, args), seccomp.WithDefaultProfile()}, opts...)
	return b.d.Client.NewContainer(ctx, id, client.WithImage(img), client.WithSnapshotter("overlayfs"),
		client.WithNewSnapshot(id, img), client.WithRuntime(runtimes[name], nil), client.WithNewSpec(opts...))
}

// running adds a container and runs it.
func (b *bench) running(ctx context.Context, name string, args []string, opts ...oci.SpecOpts) (client.Container, client.Task, error) {
	c, err := b.container(ctx, name, args, opts...)
	if err != nil {
		return nil, nil, err
	}
	task, err := c.NewTask(ctx, b.io())
	if err != nil {
		return nil, nil, fmt.Errorf("create: %w", err)
	}
	if err := task.Start(ctx); err != nil {
		return nil, nil, fmt.Errorf("start: %w", err)
	}
	return c, task, nil
}

// io has a process write to fifos that somebody reads, as most have.
func (b *bench) io() cio.Creator {
	return cio.NewCreator(cio.WithStreams(nil, io.Discard, io.Discard), cio.WithFIFODir(b.d.FIFOs()))
}

// remove ends all.
func remove(ctx context.Context, c client.Container, task client.Task) error {
	if task != nil {
		if _, err := task.Delete(ctx, client.WithProcessKill); err != nil {
			return fmt.Errorf("delete task: %w", err)
		}
	}
	return c.Delete(ctx, client.WithSnapshotCleanup)
}

func (b *bench) timeout(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.d.Background(), d)
}

// exec runs a command in a container, and tells how long its start took and
// how long it was from adding it to its exit.
func (b *bench) exec(ctx context.Context, c client.Container, task client.Task, args ...string) (start, whole time.Duration, err error) {
	spec, err := c.Spec(ctx)
	if err != nil {
		return 0, 0, err
	}
	p := *spec.Process
	p.Args = args
	begin := time.Now()
	process, err := task.Exec(ctx, fmt.Sprintf("x%d", serial.Add(1)), &p, b.io())
	if err != nil {
		return 0, 0, fmt.Errorf("exec: %w", err)
	}
	exit, err := process.Wait(ctx)
	if err != nil {
		return 0, 0, err
	}
	at := time.Now()
	if err := process.Start(ctx); err != nil {
		return 0, 0, fmt.Errorf("start exec: %w", err)
	}
	start = time.Since(at)
	st := <-exit
	whole = time.Since(begin)
	if st.Error() != nil || st.ExitCode() != 0 {
		return 0, 0, fmt.Errorf("exec of %q: exit code %d, %v", args, st.ExitCode(), st.Error())
	}
	_, err = process.Delete(ctx)
	return start, whole, err
}

// laterExecs are the medians of five execs.
func (b *bench) laterExecs(ctx context.Context, c client.Container, task client.Task) (start, whole time.Duration, err error) {
	var starts, wholes []time.Duration
	for range 5 {
		start, whole, err := b.exec(ctx, c, task, "true")
		if err != nil {
			return 0, 0, err
		}
		starts, wholes = append(starts, start), append(wholes, whole)
	}
	slices.Sort(starts)
	slices.Sort(wholes)
	return starts[2], wholes[2], nil
}

// times measures each step of a container's life.
func (b *bench) times() error {
	rows := []string{"create", "start", "create+start", "first exec: start", "first exec: to exit", "exec: start", "exec: to exit", "kill to exit event", "delete", "whole lifecycle"}
	samples := map[string]map[string][]float64{}
	err := b.each(func(name string, counts bool) error {
		s, err := b.life(name)
		if err != nil {
			return err
		}
		if samples[name] == nil {
			samples[name] = map[string][]float64{}
		}
		for i, row := range rows {
			if counts {
				samples[name][row] = append(samples[name][row], ms(s[i]))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.table(fmt.Sprintf("ms, medians of %d rounds", b.rounds), rows, samples)
	return nil
}

func (b *bench) life(name string) (s [10]time.Duration, err error) {
	ctx, cancel := b.timeout(time.Minute)
	defer cancel()
	c, err := b.container(ctx, name, []string{"sleep", "3600"})
	if err != nil {
		return s, err
	}
	events, errs := b.d.Client.Subscribe(ctx, fmt.Sprintf(`topic=="/tasks/exit",event.container_id==%q`, c.ID()))
	begin := time.Now()
	lap := func(i int) {
		s[i] = time.Since(begin)
		begin = time.Now()
	}
	task, err := c.NewTask(ctx, b.io())
	if err != nil {
		return s, fmt.Errorf("create: %w", err)
	}
	lap(0)
	if err := task.Start(ctx); err != nil {
		return s, fmt.Errorf("start: %w", err)
	}
	lap(1)
	s[2] = s[0] + s[1]
	// The first exec in a container pays for what the later ones find: it is told apart from
	// what an exec probe costs, which is the median of those.
	if s[3], s[4], err = b.exec(ctx, c, task, "true"); err != nil {
		return s, err
	}
	if s[5], s[6], err = b.laterExecs(ctx, c, task); err != nil {
		return s, err
	}
	exit, err := task.Wait(ctx)
	if err != nil {
		return s, err
	}
	begin = time.Now()
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		return s, fmt.Errorf("kill: %w", err)
	}
	if err := exited(ctx, events, errs, c.ID()); err != nil {
		return s, err
	}
	lap(7)
	<-exit
	begin = time.Now()
	if _, err := task.Delete(ctx); err != nil {
		return s, fmt.Errorf("delete: %w", err)
	}
	lap(8)
	s[9] = s[2] + s[4] + s[7] + s[8]
	return s, c.Delete(ctx, client.WithSnapshotCleanup)
}
