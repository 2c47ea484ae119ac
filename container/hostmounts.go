package container

import (
	"errors"
	"fmt"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/oci"
)

// unmountHostMounts unmounts the root file system of a container in the host's mount namespace, and all that is mounted in
// it. Other containers' went with their namespace.
func unmountHostMounts(spec *specs.Spec, bundle string) error {
	bundle, err := filepath.Abs(bundle)
	if err != nil {
		return err
	}
	dir, ok := oci.HostMounts(spec, bundle)
	if !ok {
		return nil
	}
	for {
		switch err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case err == nil:
			continue // with what was below it
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			return fmt.Errorf("umount2 %s: %w", dir, err)
		}
	}
}
