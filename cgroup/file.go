package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A file is a cgroup file opened without Go's poller, which would add two system calls to each of the dozens of
// opens that a container costs.
type file struct {
	fd   int
	path string
}

func openFile(dir, name string, forWriting bool) (*file, error) {
	flags := unix.O_RDONLY
	if forWriting {
		flags = unix.O_WRONLY
	}
	path := dir + "/" + name
	fd, err := retry(func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0) })
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &file{fd, path}, nil
}

func (f *file) Close() error { return unix.Close(f.fd) }

func (f *file) write(value string) error {
	if value == "" {
		value = "\n" // nothing written is nothing said
	}
	n, err := retry(func() (int, error) { return unix.Write(f.fd, []byte(value)) })
	if err == nil && n != len(value) {
		err = errors.New("short write")
	}
	if err != nil {
		return fmt.Errorf("write %s %q: %w", f.path, value, err)
	}
	return nil
}

func write(dir, name, value string) error {
	f, err := openFile(dir, name, true)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.write(value)
}

func read(dir, name string) (string, error) {
	f, err := openFile(dir, name, false)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var b []byte
	for buf := make([]byte, 4096); ; {
		n, err := retry(func() (int, error) { return unix.Read(f.fd, buf) })
		if err != nil {
			return "", &os.PathError{Op: "read", Path: f.path, Err: err}
		}
		if n == 0 {
			return string(b), nil
		}
		b = append(b, buf[:n]...)
	}
}

func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// join moves a process to a cgroup. A process that is being forked may not be movable yet.
func join(dir string, pid int) error {
	f, err := openFile(dir, "cgroup.procs", true)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := 0; ; i++ {
		err := f.write(strconv.Itoa(pid))
		if i == 5 || !errors.Is(err, unix.EINVAL) {
			return err
		}
		time.Sleep(time.Millisecond << i)
	}
}

// makeDir makes a directory and its parents and says which it made. Another container's end may remove an empty
// parent (administrators do, we don't) between our making it and using it.
func makeDir(root, dir string, made *[]string) error {
	for i := 0; ; i++ {
		err := makeOnce(root, dir, made)
		if i == 20 || !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
}

func makeOnce(root, dir string, made *[]string) error {
	err := unix.Mkdir(dir, 0o755)
	switch {
	case err == nil:
		*made = append(*made, dir)
		return nil
	case err == unix.EEXIST:
		return nil
	case err != unix.ENOENT || dir == root || !strings.HasPrefix(dir, root+"/"):
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	if err := makeOnce(root, filepath.Dir(dir), made); err != nil {
		return err
	}
	if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	} else if err == nil {
		*made = append(*made, dir)
	}
	return nil
}

// removeTree removes a cgroup and those below it. The kernel refuses (EBUSY) while a process that was killed is on its way
// out, so it tries until the deadline.
func removeTree(dir string, deadline time.Time) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err == unix.EBUSY || err == unix.ENOTEMPTY {
			removeChildren(unix.AT_FDCWD, dir)
			if err = unix.Rmdir(dir); err == nil || err == unix.ENOENT {
				return nil
			}
		}
		if (err != unix.EBUSY && err != unix.ENOTEMPTY && err != unix.EINTR) || time.Now().After(deadline) {
			err := &os.PathError{Op: "rmdir", Path: dir, Err: err}
			if pids, e := pidsBelow(dir); e == nil && len(pids) > 0 {
				return fmt.Errorf("%w: processes in it: %v", err, pids)
			}
			return err
		}
		time.Sleep(wait)
	}
}

// emptyTree removes all that is in a cgroup, and not itself.
func emptyTree(dir string, deadline time.Time) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		removeChildren(unix.AT_FDCWD, dir)
		pids, err := pidsBelow(dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return &os.PathError{Op: "empty", Path: dir, Err: fmt.Errorf("%w: processes in it: %v", unix.EBUSY, pids)}
		}
		time.Sleep(wait)
	}
}

// removeChildren goes by file descriptors: a container that can make cgroups can make them deeper than a path can say.
func removeChildren(at int, name string) {
	_ = children(at, name, func(fd int, child string) {
		if unix.Unlinkat(fd, child, unix.AT_REMOVEDIR) != nil {
			removeChildren(fd, child)
			_ = unix.Unlinkat(fd, child, unix.AT_REMOVEDIR)
		}
	})
}

// children calls f for each directory in a directory.
func children(at int, name string, f func(fd int, child string)) error {
	fd, err := retry(func() (int, error) {
		return unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	entries, err := d.ReadDir(-1)
	for _, e := range entries {
		if e.IsDir() {
			f(int(d.Fd()), e.Name())
		}
	}
	return err
}

// pidsBelow lists the processes in a cgroup and those below it.
func pidsBelow(dir string) ([]int, error) {
	var pids []int
	var walk func(at int, name string) error
	walk = func(at int, name string) error {
		return children(at, name, func(fd int, child string) {
			pids = append(pids, procsAt(fd, child)...)
			_ = walk(fd, child) // it may go away at any time
		})
	}
	b, err := read(dir, "cgroup.procs")
	if errors.Is(err, unix.EOPNOTSUPP) { // a threaded cgroup
		b, err = read(dir, "cgroup.threads")
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pids = append(pids, parsePids(b)...)
	if err := walk(unix.AT_FDCWD, dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	return pids, nil
}

func procsAt(fd int, child string) []int {
	for _, name := range []string{"/cgroup.procs", "/cgroup.threads"} {
		f, err := unix.Openat(fd, child+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		g := os.NewFile(uintptr(f), child+name)
		b, err := readAll(g)
		g.Close()
		if err == nil {
			return parsePids(b)
		}
	}
	return nil
}

func readAll(f *os.File) (string, error) {
	var b strings.Builder
	_, err := f.WriteTo(&b)
	return b.String(), err
}

func parsePids(s string) (pids []int) {
	for l := range strings.Lines(s) {
		// 0 is a process outside of our pid namespace: nothing that we could name.
		if pid, err := strconv.Atoi(strings.TrimSpace(l)); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}
