package container

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// letRead lets root of the container's user namespace into the directory of the images until deny is called. It is as him that criu opens some
// of them, which are readable, in a directory that containerd has made for root alone. In a file system without access control lists criu is left to say so.
func (s *restoring) letRead() (deny func(), err error) {
	deny = func() {}
	for _, m := range s.c.spec.Linux.UIDMappings {
		if m.ContainerID != 0 || m.HostID == 0 {
			continue
		}
		dir, err := os.Open(s.cfg.Images)
		if err != nil {
			return deny, err
		}
		st, err := dir.Stat()
		if err != nil {
			dir.Close()
			return deny, err
		}
		err = unix.Fsetxattr(int(dir.Fd()), "system.posix_acl_access", searchableBy(st.Mode().Perm(), m.HostID), 0)
		if err != nil {
			dir.Close()
			if errors.Is(err, unix.ENOTSUP) {
				err = nil
			}
			return deny, os.NewSyscallError("fsetxattr", err)
		}
		return func() {
			unix.Fremovexattr(int(dir.Fd()), "system.posix_acl_access")
			dir.Chmod(st.Mode().Perm()) // the list's mask has become the group's bits
			dir.Close()
		}, nil
	}
	return deny, nil
}

// searchableBy is an access control list, in the kernel's form (linux/posix_acl_xattr.h): what a mode says, and that a user may search a directory.
func searchableBy(mode os.FileMode, uid uint32) []byte {
	const version, search, none = 2, 1, ^uint32(0)
	acl := binary.LittleEndian.AppendUint32(nil, version)
	for _, e := range []struct {
		tag  uint16
		perm os.FileMode
		id   uint32
	}{{0x01, mode >> 6, none}, {0x02, search, uid}, {0x04, mode >> 3, none}, {0x10, mode>>3 | search, none}, {0x20, mode, none}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, uint16(e.perm&7))
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	return acl
}

// hasOwnClock tells whether a process is in another time namespace than we: criu has the monotonic clock go on where it was.
func hasOwnClock(pid int) bool {
	theirs, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/time")
	ours, _ := os.Readlink("/proc/self/ns/time")
	return err == nil && theirs != ours
}

// hasNetwork tells whether there is in the images what was in a network namespace. It is not if that was dumped as an empty one.
func hasNetwork(images string) bool {
	files, _ := filepath.Glob(filepath.Join(images, "netdev-*.img"))
	return len(files) > 0
}
