package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// edge is how many creations at either end are compared.
const edge = 20

// scale runs many containers at once, and tells whether the last creations take longer than the first: with a
// shim each, and with one for all of them.
func (b *bench) scale() error {
	fmt.Printf("%-28s %9s %9s %9s %9s %9s %9s %9s\n", fmt.Sprintf("%d containers at once, ms", b.many), "first", "middle", "last", "again", "last:first", "mounts", "with them")
	for _, name := range b.names {
		for _, kind := range []string{"a shim each", "one shim"} {
			var opts []oci.SpecOpts
			if kind == "one shim" {
				opts = append(opts, oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "scale-" + name}))
			}
			if err := b.scaleOf(name, kind, opts...); err != nil {
				return fmt.Errorf("%s, %s: %w", name, kind, err)
			}
		}
	}
	fmt.Printf("(create, medians of the first %d, of those in the middle, of the last, and of the first again when the others are gone; last to\n"+
		"both of the first; lines of the daemon's mount table)\n", edge)
	return nil
}

func (b *bench) scaleOf(name, kind string, opts ...oci.SpecOpts) (err error) {
	ctx, cancel := b.timeout(20 * time.Minute)
	defer cancel()
	if err := b.quiet(ctx); err != nil {
		return err
	}
	before, err := b.mountTable()
	if err != nil {
		return err
	}
	var herd herd
	defer func() {
		if rerr := herd.remove(context.WithoutCancel(ctx)); err == nil {
			err = rerr
		}
	}()
	var took []float64
	for range b.many {
		lap, err := herd.add(ctx, b, name, opts)
		if err != nil {
			return err
		}
		took = append(took, lap)
	}
	with, err := b.mountTable()
	if err != nil {
		return err
	}
	// The machine may have become busier or less so: the first are made once more, without the others.
	if err := herd.remove(ctx); err != nil {
		return err
	}
	if err := b.quiet(ctx); err != nil {
		return err
	}
	n := min(edge, len(took)/2)
	var again []float64
	for range n {
		lap, err := herd.add(ctx, b, name, opts)
		if err != nil {
			return err
		}
		again = append(again, lap)
	}
	half := (len(took) - n) / 2
	last := took[len(took)-n:]
	ratio := median(last) / median(append(slices.Clone(took[:n]), again...))
	fmt.Printf("%-28s %9.2f %9.2f %9.2f %9.2f %9.3f %9d %9d\n", name+", "+kind,
		median(took[:n]), median(took[half:half+n]), median(last), median(again), ratio, before, with)
	return nil
}

// A herd is the containers that run at once.
type herd struct {
	containers []client.Container
	tasks      []client.Task
}

// add runs one more, and tells how many ms its creation took.
func (h *herd) add(ctx context.Context, b *bench, name string, opts []oci.SpecOpts) (float64, error) {
	c, err := b.container(ctx, name, []string{"sleep", "3600"}, opts...)
	if err != nil {
		return 0, err
	}
	h.containers, h.tasks = append(h.containers, c), append(h.tasks, nil)
	begin := time.Now()
	task, err := c.NewTask(ctx, b.io())
	if err != nil {
		return 0, fmt.Errorf("create: %w", err)
	}
	took := ms(time.Since(begin))
	h.tasks[len(h.tasks)-1] = task
	if err := task.Start(ctx); err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	return took, nil
}

func (h *herd) remove(ctx context.Context) (err error) {
	for i, c := range h.containers {
		if rerr := remove(ctx, c, h.tasks[i]); err == nil {
			err = rerr
		}
	}
	h.containers, h.tasks = nil, nil
	return err
}

// mountTable is how many mounts there are where the daemon is.
func (b *bench) mountTable() (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", b.d.Pid()))
	return strings.Count(string(data), "\n"), err
}
