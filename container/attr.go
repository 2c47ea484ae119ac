package container

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
)

// writeAttr has the child write to a file of its own in proc_pid_attr(5): the kernel lets nobody else. The child's
// /proc may be whatever a container or a mount has made of it (CVE-2019-16884 and its kin), so it is given a directory of
// ours, known to be a procfs. That is of our PID namespace, in which every process of ours is itself.
func (r *run) writeAttr(ctx context.Context, file, value string) error {
	proc, err := os.OpenFile("/proc", os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer proc.Close()
	var fs unix.Statfs_t
	raw, err := proc.SyscallConn()
	if err != nil {
		return err
	}
	var statErr error
	if err := raw.Control(func(fd uintptr) { statErr = unix.Fstatfs(int(fd), &fs) }); err != nil || statErr != nil {
		return errors.Join(err, statErr)
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("/proc is not a procfs")
	}
	fds, err := r.task.Pass(ctx, proc)
	if err != nil {
		return err
	}
	dir := fds[0].Arg()
	write := r.task.NewRun()
	defer write.Close()
	// "self" is the only symbolic link on the way, and nothing may be mounted over what is behind it.
	return write.Do(ctx,
		call.Step{Call: call.Openat2(dir, "self/attr/"+file, unix.O_WRONLY|unix.O_CLOEXEC, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_MAGICLINKS)},
		call.Step{Call: call.Write(call.ResultOf(0), value)},
		call.Step{Call: call.Close(call.ResultOf(0))},
		call.Step{Call: call.Close(dir)},
	)
}
