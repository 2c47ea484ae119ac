package container

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/netdev"
	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys/call"
)

// keepsOurNetwork refuses a config that would change our own network namespace, where that is the one that it joins by a path.
func keepsOurNetwork(spec *specs.Spec) error {
	field, path := oci.ChangesNetwork(spec)
	if field == "" || path == "" {
		return nil
	}
	var ours, theirs unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &ours); err != nil {
		return os.NewSyscallError("stat /proc/self/ns/net", err)
	}
	// One that can't be looked at can't be joined, which is told with its name.
	if unix.Stat(path, &theirs) == nil && theirs.Dev == ours.Dev && theirs.Ino == ours.Ino {
		return fmt.Errorf("%s: not in the host's network namespace, which %s is: %w", field, path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// hasDevices refuses a config with network devices of the host that are not there, before the first is moved.
func hasDevices(spec *specs.Spec) error {
	if spec.Linux == nil || len(spec.Linux.NetDevices) == 0 {
		return nil
	}
	host, err := netdev.Socket()
	if err != nil {
		return err
	}
	defer host.Close()
	for _, name := range slices.Sorted(maps.Keys(spec.Linux.NetDevices)) {
		if err := netdev.Find(host, name); err != nil {
			return fmt.Errorf("linux.netDevices[%s]: %w: %w", name, err, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// moveDevice moves a device of the host's into the child's network namespace, through a socket that the child
// opens there.
func (r *run) moveDevice(ctx context.Context, name, newName string) error {
	host, err := netdev.Socket()
	if err != nil {
		return err
	}
	defer host.Close()
	fd, err := r.task.Open(ctx, call.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE))
	if err != nil {
		return err
	}
	inside, err := r.task.Fetch(ctx, int(fd.Arg().Int))
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := fd.Close(ctx, r.task); err != nil {
		return err
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(r.task.Pid()) + "/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	return netdev.Move(host, inside, ns, name, newName)
}
