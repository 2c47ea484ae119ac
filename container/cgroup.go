package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/cgroup"
	"github.com/rsys-io/rsys/criu"
	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys"
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

func (c *Container) pause(ctx context.Context) error  { return c.cgroup.Freeze(ctx) }
func (c *Container) resume(ctx context.Context) error { return c.cgroup.Thaw(ctx) }
func (c *Container) stats() (any, error)              { return c.cgroup.Stats() }

func (c *Container) pids() ([]int, error) {
	pids, err := c.cgroup.Pids()
	if r := c.Init.restoring; err == nil && r != nil && len(pids) == 0 && c.Init.pid() == 0 {
		pids = []int{r.holder}
	}
	return pids, err
}

func (c *Container) update(res *specs.LinuxResources) error { return c.cgroup.Update(res) }

func (c *Container) oom(ctx context.Context) (<-chan struct{}, error) { return c.cgroup.OOM(ctx) }

func (c *Container) sharesPID() bool {
	if c.spec.Linux == nil {
		return true
	}
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
	return errors.Join(c.removeHostRootfs(), unmountHostMounts(c.spec, c.bundle))
}

// outOfMemory says of the death of a process that was yet to be a container's that its memory limit is the reason.
func (c *Container) outOfMemory(err error) error {
	var died *rsys.DiedError
	if !errors.As(err, &died) || died.Cause != nil {
		return err
	}
	if sig, ok := died.Exit.Signaled(); !ok || sig != unix.SIGKILL || c.cgroup.OOMKills() == 0 {
		return err
	}
	limit := "of a cgroup above"
	if r := c.spec.Linux.Resources; r != nil && r.Memory != nil && r.Memory.Limit != nil {
		limit = fmt.Sprintf("of %d bytes", *r.Memory.Limit)
	}
	return fmt.Errorf("linux.resources.memory.limit: the limit %s is too small to set the container up, the kernel killed it for want of memory: %w: %w",
		limit, err, errdefs.ErrResourceExhausted)
}

// cgroupMark is a file in the bundle that says that the container's cgroup is its own. A
// config can name one in which others are: then nothing is made, and nothing may be removed or killed.
const cgroupMark = "rsys-cgroup"

// makeCgroup makes the cgroup. The mark is there before it, so that whatever kills us, cleanup knows.
func (c *Container) makeCgroup(ctx context.Context, holder int) error {
	mark := filepath.Join(c.bundle, cgroupMark)
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return err
	}
	if err := c.cgroup.Create(ctx, holder); err != nil {
		return errors.Join(err, os.Remove(mark))
	}
	c.made = true
	return nil
}

func (c *Container) removeCgroup() error {
	if !c.made {
		return nil
	}
	if err := errors.Join(c.cgroup.Kill(), c.cgroup.Delete(), hostResctrl.remove(c.spec, c.id)); err != nil {
		return err
	}
	c.made = false
	if err := os.Remove(filepath.Join(c.bundle, cgroupMark)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func cleanup(ctx context.Context, id, bundle string, systemd bool) (Exit, error) {
	exit, err := cleanupProcesses(ctx, id, bundle, systemd)
	return exit, errors.Join(err, unmountHostRootfs(bundle))
}

// cleanupProcesses works from config.json: what a container has beyond its processes, its
// cgroup, can be told from there. Processes that had not become the container's die with the shim.
func cleanupProcesses(ctx context.Context, id, bundle string, systemd bool) (Exit, error) {
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
	if _, err := os.Lstat(filepath.Join(bundle, cgroupMark)); err != nil {
		return exit, nil // none was made
	}
	// First, as it may take the cgroup away itself.
	ended := criu.EndNoted(filepath.Join(bundle, criuNote))
	cg, err := cgroup.Load(cgroupConfig(id, spec, systemd))
	if errors.Is(err, fs.ErrNotExist) {
		return exit, errors.Join(ended, unmountHostMounts(spec, bundle))
	}
	if err != nil {
		return exit, errors.Join(ended, err)
	}
	err = errors.Join(ended, cg.Kill(), cg.Delete(), hostResctrl.remove(spec, id))
	cleanupPoststop(ctx, id, bundle, spec)
	err = errors.Join(err, unmountHostMounts(spec, bundle))
	return exit, err
}
