package oci

import (
	"encoding/binary"

	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// terminal makes a pseudoterminal of the container's own devpts, so that it exists there, and makes it
// the session's. The root has been entered.
func (c *compiler) terminal() {
	c.at("process.terminal", "/dev/pts/ptmx")
	ptmx := c.do(call.Openat2(call.CWD, "/dev/pts/ptmx",
		unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0, unix.RESOLVE_NO_MAGICLINKS))
	c.Terminal = ptmx
	master := call.ResultOf(ptmx)
	// An image can have a file of this name. A devpts' has this inode number.
	fs := c.do(call.Fstatfs(master))
	c.do(call.Expect(call.WordOf(fs, 1, 0), ^uint64(0), unix.DEVPTS_SUPER_MAGIC, unix.ENODEV))
	st := c.do(call.Statx(master, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS))
	c.do(call.Expect(call.WordOf(st, 4, call.StatxInoOff), ^uint64(0), 2, unix.ENODEV))
	c.expectRdev(st, 5, 2)

	c.do(call.Ioctl(master, "TIOCSPTLCK", unix.TIOCSPTLCK, call.Bytes(make([]byte, 4))))
	if s := c.proc.ConsoleSize; s != nil && s.Height != 0 && s.Width != 0 {
		c.at("process.consoleSize", "")
		size := make([]byte, 8) // struct winsize
		binary.NativeEndian.PutUint16(size[0:], uint16(s.Height))
		binary.NativeEndian.PutUint16(size[2:], uint16(s.Width))
		c.do(call.Ioctl(master, "TIOCSWINSZ", unix.TIOCSWINSZ, call.Bytes(size)))
	}
	c.at("process.terminal", "")
	peer := call.ResultOf(c.do(call.Ioctl(master, "TIOCGPTPEER", unix.TIOCGPTPEER,
		call.Arg{Int: unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC, Form: call.FormOpen})))
	for fd := range 3 {
		c.do(call.Dup3(peer, fd, 0))
	}
	if uid := c.proc.User.UID; uid != 0 {
		c.at("process.user", "")
		c.try(call.Fchown(peer, int(uid), -1), mayNotChown)
		c.at("process.terminal", "")
	}
	if c.place == notBorn {
		c.do(call.Ioctl(peer, "TIOCSCTTY", unix.TIOCSCTTY, call.Int(0)))
	}
	if !c.exec {
		c.console(peer)
	}
	c.close(peer)
}

// console puts the terminal on /dev/console, which must be in /dev itself: a symbolic link that an image has
// there would lead the mount elsewhere (CVE-2025-52565).
func (c *compiler) console(peer call.Arg) {
	c.about("/dev/console")
	dev := call.ResultOf(c.do(call.Openat2(call.CWD, "/dev", oDir, 0, unix.RESOLVE_NO_MAGICLINKS)))
	c.try(call.Mknodat(dev, "console", unix.S_IFREG|0o600, 0), mayExist)
	at := call.ResultOf(c.do(call.Openat2(dev, "console", oPath, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)))
	tree := call.ResultOf(c.do(call.OpenTree(peer, "", treeCloneFD)))
	c.moveMount(tree, at)
	c.close(tree)
	c.close(at)
	c.close(dev)
}

// mayNotChown are the errors of a file that can't be given to a user; it is then used as it is.
var mayNotChown = call.Tolerate(unix.EPERM, unix.EROFS, unix.EINVAL)
