package main

import (
	"context"
	"fmt"
	"os"
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
	fmt.Printf("%-28s %9s %9s %9s %9s %9s %9s\n", fmt.Sprintf("%d containers at once, ms", b.many), "first", "middle", "last", "last:first", "mounts", "with them")
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
	fmt.Printf("(create, medians of the first %d, of those in the middle and of the last; lines of the daemon's mount table)\n", edge)
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
	var containers []client.Container
	var tasks []client.Task
	defer func() {
		for i, c := range containers {
			if rerr := remove(context.WithoutCancel(ctx), c, tasks[i]); err == nil {
				err = rerr
			}
		}
	}()
	var took []float64
	for range b.many {
		c, err := b.container(ctx, name, []string{"sleep", "3600"}, opts...)
		if err != nil {
			return err
		}
		containers, tasks = append(containers, c), append(tasks, nil)
		begin := time.Now()
		task, err := c.NewTask(ctx, b.io())
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		took = append(took, ms(time.Since(begin)))
		tasks[len(tasks)-1] = task
		if err := task.Start(ctx); err != nil {
			return fmt.Errorf("start: %w", err)
		}
	}
	with, err := b.mountTable()
	if err != nil {
		return err
	}
	n := min(edge, len(took)/2)
	half := (len(took) - n) / 2
	first, middle, last := median(took[:n]), median(took[half:half+n]), median(took[len(took)-n:])
	fmt.Printf("%-28s %9.2f %9.2f %9.2f %9.3f %9d %9d\n", name+", "+kind, first, middle, last, last/first, before, with)
	return nil
}

// mountTable is how many mounts there are where the daemon is.
func (b *bench) mountTable() (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", b.d.Pid()))
	return strings.Count(string(data), "\n"), err
}
