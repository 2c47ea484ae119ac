package container

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/namespaces"
	"github.com/rsys-io/rsys/oci"
)

// idmap opens a user namespace for idmapped mounts and passes it to whoever is to mount.
func (k *creation) idmap(ctx context.Context, r *run, s *oci.Step) (int64, error) {
	var ns *os.File
	var err error
	if s.Name == oci.IDMapOf {
		ns, err = os.OpenFile(argString(s.Args[0]), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
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

// checkMaps compares the maps that a config has beside the path of a user namespace with those of the namespace, which
// count: pid is in it. The order of the ranges is nothing that the kernel would keep.
func checkMaps(pid int, uids, gids string) error {
	for _, m := range []struct{ file, want string }{{"uid_map", uids}, {"gid_map", gids}} {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + m.file)
		if err != nil {
			return err
		}
		if has := string(data); !slices.Equal(mapRanges(has), mapRanges(m.want)) {
			return fmt.Errorf("%q in the config, but the namespace that is joined has the %s %q: %w",
				strings.Join(mapRanges(m.want), ", "), m.file, strings.Join(mapRanges(has), ", "), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// mapRanges are the lines of a map, in an order of ours, with single spaces.
func mapRanges(text string) (list []string) {
	for line := range strings.Lines(text) {
		list = append(list, strings.Join(strings.Fields(line), " "))
	}
	slices.Sort(list)
	return list
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
