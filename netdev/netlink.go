package netdev

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A conn is a socket that is asked one thing at a time: netlink(7).
type conn struct {
	raw interface{ Control(func(uintptr)) error }
	seq uint32
}

type message struct {
	kind uint16
	data []byte
}

type attr struct {
	kind uint16
	data []byte
}

// patience is how long the kernel may take to answer, in seconds. It answers while it is asked.
const patience = 5

func newConn(f *os.File) (*conn, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &conn{raw: raw}
	return c, c.with(func(fd int) error {
		if err := unix.SetNonblock(fd, false); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience})
	})
}

func (c *conn) with(do func(fd int) error) (err error) {
	if e := c.raw.Control(func(fd uintptr) { err = do(int(fd)) }); e != nil {
		return e
	}
	return err
}

func align(n int) int { return (n + 3) &^ 3 }

// ask sends a request and returns what is answered; an error of the kernel's is a unix.Errno.
func (c *conn) ask(kind uint16, flags uint16, body []byte, attrs ...attr) (answer []message, err error) {
	c.seq++
	req := make([]byte, unix.SizeofNlMsghdr, 256)
	req = append(req, body...)
	for _, a := range attrs {
		req = append(req, make([]byte, align(len(req))-len(req))...)
		req = binary.NativeEndian.AppendUint16(req, uint16(unix.SizeofNlAttr+len(a.data)))
		req = binary.NativeEndian.AppendUint16(req, a.kind)
		req = append(req, a.data...)
	}
	req = append(req, make([]byte, align(len(req))-len(req))...)
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], kind)
	binary.NativeEndian.PutUint16(req[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(req[8:], c.seq)
	err = c.with(func(fd int) error {
		if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		answer, err = c.answer(fd, flags)
		return err
	})
	return answer, err
}

// answer reads until the request is answered: by its one message, its acknowledgement, or the end of the dump.
func (c *conn) answer(fd int, flags uint16) (list []message, err error) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return list, fmt.Errorf("receive: %w", err)
		}
		if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
			continue // not of the kernel
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return list, fmt.Errorf("receive: a message of %d bytes in %d", size, len(b))
			}
			m := message{binary.NativeEndian.Uint16(b[4:]), append([]byte(nil), b[unix.SizeofNlMsghdr:size]...)}
			mine := binary.NativeEndian.Uint32(b[8:]) == c.seq
			b = b[min(align(size), len(b)):]
			switch {
			case !mine:
			case m.kind == unix.NLMSG_DONE:
				return list, errno(m.data)
			case m.kind == unix.NLMSG_ERROR:
				return list, errno(m.data)
			default:
				list = append(list, m)
				if flags&(unix.NLM_F_DUMP|unix.NLM_F_ACK) == 0 {
					return list, nil
				}
			}
		}
	}
}

// errno is the error at the start of an acknowledgement.
func errno(data []byte) error {
	if len(data) >= 4 {
		if e := int32(binary.NativeEndian.Uint32(data)); e < 0 {
			return unix.Errno(-e)
		}
	}
	return nil
}

func parseAttrs(b []byte) (list []attr) {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return list
		}
		list = append(list, attr{binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:size]})
		b = b[min(align(size), len(b)):]
	}
	return list
}
