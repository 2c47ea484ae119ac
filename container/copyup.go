package container

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// Bounds of what is copied into a tmpfs; its size bounds the rest.
const (
	maxCopies = 1 << 20
	maxLevels = 128
)

// A copier copies a tree by the system calls of a task, with its rights and in its namespaces: what lies in an image is
// opened by nobody else. Each name is looked up below the directory that it was read from, and no link is followed.
type copier struct {
	task  *rsys.Task
	count int
}

// copyTree copies what is in the directory from, and its owner, to the directory to. Extended attributes, times and
// sockets are left behind.
func copyTree(ctx context.Context, task *rsys.Task, from, to call.Arg) error {
	c := &copier{task: task}
	return c.dir(ctx, from, to, 0)
}

func (c *copier) do(ctx context.Context, calls ...call.Call) error {
	_, err := c.out(ctx, 0, 0, calls...)
	return err
}

// out makes calls and returns the output of the argument arg of the step-th.
func (c *copier) out(ctx context.Context, step, arg int, calls ...call.Call) ([]byte, error) {
	run := c.task.NewRun()
	defer run.Close()
	steps := make([]call.Step, len(calls))
	for i := range calls {
		steps[i].Call = calls[i]
	}
	if err := run.Do(ctx, steps...); err != nil {
		return nil, err
	}
	return run.Out(step, arg), nil
}

// below is how a name in a directory is opened.
const below = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS

func (c *copier) dir(ctx context.Context, from, to call.Arg, level int) error {
	if level > maxLevels {
		return fmt.Errorf("more than %d directories in one another: %w", maxLevels, unix.ENAMETOOLONG)
	}
	list, err := c.task.Open(ctx, call.Openat(from, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0))
	if err != nil {
		return err
	}
	defer list.Close(ctx, c.task)
	dst, err := c.task.Open(ctx, call.Openat(to, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0))
	if err != nil {
		return err
	}
	defer dst.Close(ctx, c.task)
	st, err := c.stat(ctx, call.Statx(list.Arg(), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS))
	if err != nil {
		return err
	}
	for {
		names, err := c.names(ctx, list.Arg())
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return c.do(ctx, call.Fchown(dst.Arg(), st.uid, st.gid), call.Fchmod(dst.Arg(), st.mode&0o7777))
		}
		for _, name := range names {
			if c.count++; c.count > maxCopies {
				return fmt.Errorf("more than %d files: %w", maxCopies, unix.E2BIG)
			}
			if err := c.entry(ctx, list.Arg(), dst.Arg(), name, level); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
}

// names are some of a directory's, none if there are no more.
func (c *copier) names(ctx context.Context, dir call.Arg) (names []string, err error) {
	for {
		run := c.task.NewRun()
		err := run.Do(ctx, call.Step{Call: call.Getdents64(dir, 32<<10)})
		if err != nil {
			run.Close()
			return nil, err
		}
		b := run.Out(0, 1)[:run.Result(0).Value]
		run.Close()
		if len(b) == 0 {
			return nil, nil
		}
		for len(b) >= 19 { // struct linux_dirent64: inode, offset, length, type, name
			n := int(binary.NativeEndian.Uint16(b[16:]))
			if n < 20 || n > len(b) {
				return nil, unix.EBADMSG
			}
			name, _, _ := bytes.Cut(b[19:n], []byte{0})
			if s := string(name); s != "." && s != ".." {
				names = append(names, s)
			}
			b = b[n:]
		}
		if len(names) > 0 {
			return names, nil
		}
	}
}

type fileStat struct {
	mode     uint32
	uid, gid int
	rdev     uint64
}

func (c *copier) stat(ctx context.Context, statx call.Call) (fileStat, error) {
	b, err := c.out(ctx, 0, 4, statx)
	if err != nil {
		return fileStat{}, err
	}
	u32 := func(off int) uint32 { return binary.NativeEndian.Uint32(b[off:]) }
	return fileStat{
		mode: uint32(binary.NativeEndian.Uint16(b[call.StatxModeOff:])), uid: int(u32(20)), gid: int(u32(24)),
		rdev: unix.Mkdev(u32(call.StatxRdevOff), u32(call.StatxRdevOff+4)),
	}, nil
}

func (c *copier) entry(ctx context.Context, from, to call.Arg, name string, level int) error {
	st, err := c.stat(ctx, call.Statx(from, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS))
	if err != nil {
		return err
	}
	own := call.Fchownat(to, name, st.uid, st.gid, unix.AT_SYMLINK_NOFOLLOW)
	switch st.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := c.do(ctx, call.Mkdirat(to, name, 0o700)); err != nil {
			return err
		}
		return c.both(ctx, from, to, name, unix.O_PATH|unix.O_DIRECTORY, unix.O_PATH|unix.O_DIRECTORY, func(src, dst call.Arg) error {
			return c.dir(ctx, src, dst, level+1)
		})
	case unix.S_IFREG:
		if err := c.do(ctx, call.Mknodat(to, name, unix.S_IFREG|0o600, 0)); err != nil {
			return err
		}
		return c.both(ctx, from, to, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, unix.O_WRONLY, func(src, dst call.Arg) error {
			return c.file(ctx, src, dst)
		})
	case unix.S_IFLNK:
		b, err := c.out(ctx, 0, 2, call.Readlinkat(from, name, unix.PathMax))
		if err != nil {
			return err
		}
		return c.do(ctx, call.Symlinkat(string(bytes.TrimRight(b, "\x00")), to, name), own)
	case unix.S_IFSOCK:
		return nil
	default:
		return c.do(ctx, call.Mknodat(to, name, st.mode, st.rdev), own)
	}
}

// both opens a name in both directories.
func (c *copier) both(ctx context.Context, from, to call.Arg, name string, fromFlags, toFlags int, do func(src, dst call.Arg) error) error {
	src, err := c.task.Open(ctx, call.Openat2(from, name, fromFlags|unix.O_CLOEXEC, 0, below))
	if err != nil {
		return err
	}
	defer src.Close(ctx, c.task)
	dst, err := c.task.Open(ctx, call.Openat2(to, name, toFlags|unix.O_CLOEXEC, 0, below))
	if err != nil {
		return err
	}
	defer dst.Close(ctx, c.task)
	return do(src.Arg(), dst.Arg())
}

// file copies a file's content, and then its owner and mode: a change of owner takes set-user-ID bits.
func (c *copier) file(ctx context.Context, src, dst call.Arg) error {
	st, err := c.stat(ctx, call.Statx(src, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS))
	if err != nil {
		return err
	}
	if st.mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("was another file when it was looked at")
	}
	for {
		n, err := c.task.Call(ctx, call.Sendfile(dst, src, 1<<24))
		if err != nil {
			return err
		}
		if n == 0 {
			return c.do(ctx, call.Fchown(dst, st.uid, st.gid), call.Fchmod(dst, st.mode&0o7777))
		}
	}
}
