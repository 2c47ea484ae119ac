package stub

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// program has run called with the stub's program as a file to be executed, which it may leave
// when it returns: a sealed memfd, or where such can't be executed (vm.memfd_noexec=2, a security module) a
// file without a name.
func (c Config) program(run func(exe *os.File) error) error {
	var errs []error
	try := func(exe *os.File, err error) (done bool) {
		if err == nil {
			err = run(exe)
			exe.Close()
		}
		errs = append(errs, err)
		return err == nil
	}
	if try(sealedMemfd()) {
		return nil
	}
	if !refused(errs[0]) {
		return errs[0]
	}
	for _, dir := range c.dirs() {
		if try(unnamedFile(dir)) {
			return nil
		}
	}
	return errors.Join(errs...)
}

// refused reports whether err says that this file can't be executed here, but another perhaps can.
func refused(err error) bool { return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) }

// dirs are where to make a file; /run is often mounted noexec, and so is /tmp on some hosts.
func (c Config) dirs() []string {
	dirs := []string{".", os.TempDir(), "/var/tmp", "/dev/shm", "/var/lib", "/run"}
	if c.Dir != "" {
		dirs = slices.Insert(dirs, 0, c.Dir)
	}
	return dirs
}

// sealedMemfd is the stub's program in a memfd that can't be changed any more.
func sealedMemfd() (*os.File, error) {
	fd, err := unix.MemfdCreate("rsys-stub", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("rsys-stub", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "rsys-stub")
	if _, err := f.Write(image()); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return f, nil
}

// unnamedFile is the stub's program in a file of dir, mode 0500, that has no name: nothing is
// left however this process ends. Where the file system has no O_TMPFILE it has one, empty, for a moment.
func unnamedFile(dir string) (*os.File, error) {
	// A fork while it is open for writing would have execve fail with ETXTBSY.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_EXCL, 0o500)
	if err == unix.EOPNOTSUPP || err == unix.EISDIR || err == unix.EINVAL {
		name := filepath.Join(dir, ".rsys-stub-"+rand.Text())
		if fd, err = unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o500); err == nil {
			unix.Unlink(name)
		}
	}
	if err != nil {
		return nil, &os.PathError{Op: "make a file in", Path: dir, Err: err}
	}
	w := os.NewFile(uintptr(fd), dir)
	defer w.Close()
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) == nil && fs.Flags&unix.ST_NOEXEC != 0 {
		return nil, fmt.Errorf("%s is mounted noexec", dir)
	}
	if err := w.Chmod(0o500); err != nil { // whatever the umask
		return nil, err
	}
	if _, err := w.Write(image()); err != nil {
		return nil, err
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY, 0)
}

// WriteProgram writes the stub's program to a new file, to be executed by whoever is
// to become a task of a [Server].
func WriteProgram(path string) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return fmt.Errorf("stub: %w", err)
	}
	_, err = f.Write(image())
	if err = errors.Join(err, f.Chmod(0o755), f.Close()); err != nil {
		return fmt.Errorf("stub: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}
