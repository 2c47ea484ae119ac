package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/cgroup"
	"github.com/rsys-io/rsys/oci"
)

func (c *Container) killAll(sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return c.cgroup.Kill()
	}
	pids, err := c.cgroup.Pids()
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			errs = append(errs, fmt.Errorf("kill %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

func (c *Container) pids() ([]int, error)             { return c.cgroup.Pids() }
func (c *Container) pause(ctx context.Context) error  { return c.cgroup.Freeze(ctx) }
func (c *Container) resume(ctx context.Context) error { return c.cgroup.Thaw(ctx) }
func (c *Container) stats() (any, error)              { return c.cgroup.Stats() }

func (c *Container) update(res *specs.LinuxResources) error { return c.cgroup.Update(res) }

func (c *Container) oom(ctx context.Context) (<-chan struct{}, error) { return c.cgroup.OOM(ctx) }

func (c *Container) sharesPID() bool {
	for _, ns := range c.spec.Linux.Namespaces {
		if ns.Type == specs.PIDNamespace {
			return ns.Path != ""
		}
	}
	return true
}

func (c *Container) delete(ctx context.Context) error {
	if err := c.Init.Close(); err != nil {
		return err
	}
	c.dropJoiner()
	if err := c.removeCgroup(); err != nil {
		return err
	}
	c.runPoststop(ctx)
	return nil
}

func (c *Container) removeCgroup() error {
	return errors.Join(c.cgroup.Kill(), c.cgroup.Delete())
}

// cleanup works from config.json: what a container has beyond its processes, its
// cgroup, can be told from there. Processes that had not become the container's die with the shim.
func cleanup(ctx context.Context, id, bundle string, systemd bool) (Exit, error) {
	exit := Exit{Status: 128 + uint32(unix.SIGKILL), At: time.Now()}
	config, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if errors.Is(err, os.ErrNotExist) {
		return exit, nil
	}
	if err != nil {
		return exit, err
	}
	spec, err := oci.Parse(config)
	if err != nil {
		return exit, nil // it was refused, so nothing was made
	}
	cg, err := cgroup.Load(cgroupConfig(id, spec, systemd))
	if errors.Is(err, fs.ErrNotExist) {
		return exit, nil
	}
	if err != nil {
		return exit, err
	}
	err = errors.Join(cg.Kill(), cg.Delete())
	cleanupPoststop(ctx, id, bundle, spec)
	return exit, err
}
