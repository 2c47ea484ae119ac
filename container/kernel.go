package container

import (
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// checkKernel refuses a kernel that is too old, instead of failing at some step with ENOSYS or EINVAL. 5.14 has the
// last thing that every container needs, MOUNT_ATTR_NOSYMFOLLOW in mount_setattr; what is
// newer is done without where it is not there (docs/design.md).
func checkKernel() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	return checkRelease(unix.ByteSliceToString(u.Release[:]))
}

func checkRelease(release string) error {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return nil // named by somebody else's rules; the steps will tell
	}
	if major < 5 || major == 5 && minor < 14 {
		return fmt.Errorf("kernel %s: rsys needs Linux 5.14 or later, for mount_setattr's MOUNT_ATTR_NOSYMFOLLOW: %w", release, errdefs.ErrNotImplemented)
	}
	return nil
}
