package container

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/namespaces"
	"github.com/rsys-io/rsys/oci"
)

// idmap opens a user namespace for idmapped mounts and passes it to whoever is to mount.
func (k *creation) idmap(ctx context.Context, r *run, s *oci.Step) (int64, error) {
	var ns *os.File
	var err error
	if s.Name == oci.IDMapOf {
		ns, err = os.Open(argString(s.Args[0]))
	} else {
		ns, err = namespaces.IDMap(ctx, k.from, argString(s.Args[0]), argString(s.Args[1]))
	}
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	fds, err := r.task.Pass(ctx, ns)
	if err != nil {
		return 0, err
	}
	return fds[0].Arg().Int, nil
}

// raiseRlimit raises a process's hard limit if it is lower than hard. In a user namespace nobody can.
func raiseRlimit(pid, resource int, hard uint64) error {
	var l unix.Rlimit
	if err := unix.Prlimit(pid, resource, nil, &l); err != nil {
		return err
	}
	if l.Max >= hard {
		return nil
	}
	l.Max = hard
	return unix.Prlimit(pid, resource, &l, nil)
}

// chownStdio gives the files to a user of the process's user namespace, which has no rights over what is the
// host's. A file that can't be given is used as it is.
func chownStdio(pid int, user uint32, stdio Stdio) error {
	uid, err := hostID("/proc/"+strconv.Itoa(pid)+"/uid_map", user)
	if err != nil {
		return err
	}
	for _, f := range stdio.files() {
		if f == nil {
			continue
		}
		raw, err := f.SyscallConn()
		if err == nil {
			raw.Control(func(fd uintptr) { err = unix.Fchown(int(fd), uid, -1) })
		}
		if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return nil
}

// hostID is what an ID of a user namespace is in ours, by the namespace's map.
func hostID(file string, id uint32) (int, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var inside, outside, size uint32
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &size); err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		if id >= inside && id-inside < size {
			return int(outside + (id - inside)), nil
		}
	}
	return 0, fmt.Errorf("%s: %d is not mapped", file, id)
}
