package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/namespaces"
	"github.com/rsys-io/rsys/oci"
)

// isolation is what the runtime's options and the container's annotation ask for.
func (cfg *Config) isolation() (namespaces.Isolation, error) {
	of, err := namespaces.ParseIsolation(cfg.Isolation)
	if err != nil {
		return 0, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	wanted, err := namespaces.ParseIsolation(cfg.Spec.Annotations[IsolationAnnotation])
	if err != nil {
		return 0, fmt.Errorf("annotations[%s]: %w: %w", IsolationAnnotation, err, errdefs.ErrInvalidArgument)
	}
	// A pod may ask for more than its node has for all, not for less.
	return max(of, wanted), nil
}

func (cfg *Config) hostRootfs() (bool, error) {
	s, ok := cfg.Spec.Annotations[HostRootfsAnnotation]
	if !ok {
		return cfg.HostRootfs, nil
	}
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, fmt.Errorf("annotations[%s]: %q is not true or false: %w", HostRootfsAnnotation, s, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// hostRootfsMark is a file in the bundle that says that its rootfs is mounted on the host. It is there before the mount, so that
// whatever kills us, cleanup knows.
const hostRootfsMark = "rsys-rootfs"

// mountHostRootfs does a HostRootfs step.
func (c *Container) mountHostRootfs(ctx context.Context, r *run, s *oci.Step) error {
	tree, err := r.task.Fetch(ctx, int(r.steps.Result(int(s.Args[0].Step)).Value))
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := os.WriteFile(filepath.Join(c.bundle, hostRootfsMark), nil, 0o600); err != nil {
		return err
	}
	c.shown = true
	raw, err := tree.SyscallConn()
	if err != nil {
		return err
	}
	raw.Control(func(fd uintptr) {
		err = unix.MoveMount(int(fd), "", unix.AT_FDCWD, filepath.Join(c.bundle, "rootfs"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	return os.NewSyscallError("move_mount", err)
}

func (c *Container) removeHostRootfs() error {
	if !c.shown {
		return nil
	}
	if err := unmountHostRootfs(c.bundle); err != nil {
		return err
	}
	c.shown = false
	return nil
}

// unmountHostRootfs takes away what mountHostRootfs has mounted, if it has.
func unmountHostRootfs(bundle string) error {
	mark := filepath.Join(bundle, hostRootfsMark)
	if _, err := os.Lstat(mark); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	path := filepath.Join(bundle, "rootfs")
	// Whoever looks there, as tools do for which it was mounted, is not to hold the container's end up.
	switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
	case nil, unix.EINVAL, unix.ENOENT: // EINVAL: nothing is mounted there
	default:
		return &os.PathError{Op: "umount2", Path: path, Err: err}
	}
	if err := os.Remove(mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
