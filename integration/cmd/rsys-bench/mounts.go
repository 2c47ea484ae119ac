package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// bindMounts are how many more mounts than containerd's default ones the containers have.
var bindMounts = [...]int{0, 100, 200, 300}

// mounts measures the create of containers with many volumes, as a pod may have them: bind mounts of directories, every other
// read-only, on directories that the image does not have.
//
// Their file systems are kept to the end. ext4 does not use an inode again for minutes after it was deleted, and passes by all such
// with each that it allocates: what one round deletes, the directories of the next, whoever's, would pay for.
func (b *bench) mounts() (err error) {
	dir, err := os.MkdirTemp("", "rsys-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var all []specs.Mount
	for i := range bindMounts[len(bindMounts)-1] {
		source := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(source, 0o755); err != nil {
			return err
		}
		all = append(all, specs.Mount{Type: "bind", Source: source, Destination: fmt.Sprintf("/volumes/%d", i),
			Options: []string{"rbind", "rprivate", [2]string{"rw", "ro"}[i%2]}})
	}
	var rows []string
	samples := map[string]map[string][]float64{}
	for _, n := range bindMounts {
		rows = append(rows, fmt.Sprintf("create, %d mounts", n))
	}
	var made []client.Container
	defer func() {
		for _, c := range made {
			err = errors.Join(err, c.Delete(b.d.Background(), client.WithSnapshotCleanup))
		}
	}()
	err = b.each(func(name string, counts bool) error {
		for i, n := range bindMounts {
			c, took, err := b.createWith(name, oci.WithMounts(all[:n]))
			if c != nil {
				made = append(made, c)
			}
			if err != nil {
				return err
			}
			if samples[name] == nil {
				samples[name] = map[string][]float64{}
			}
			if counts {
				samples[name][rows[i]] = append(samples[name][rows[i]], ms(took))
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

// createWith measures a create. The container that it returns has no task any more.
func (b *bench) createWith(name string, opt oci.SpecOpts) (client.Container, time.Duration, error) {
	ctx, cancel := b.timeout(time.Minute)
	defer cancel()
	c, err := b.container(ctx, name, []string{"true"}, opt)
	if err != nil {
		return nil, 0, err
	}
	begin := time.Now()
	task, err := c.NewTask(ctx, b.io())
	if err != nil {
		return c, 0, fmt.Errorf("create: %w", err)
	}
	took := time.Since(begin)
	_, err = task.Delete(context.WithoutCancel(ctx), client.WithProcessKill)
	return c, took, err
}
