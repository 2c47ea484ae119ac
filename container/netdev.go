package container

import (
	"context"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/netdev"
	"github.com/rsys-io/rsys/rsys/call"
)

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
