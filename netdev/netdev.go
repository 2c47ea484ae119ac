// Package netdev moves network devices from one network namespace to another.
//
// It speaks rtnetlink(7) on sockets that the caller has opened: a socket belongs to the namespace that it was opened
// in, whoever uses it. So nobody has to enter a namespace, and no thread of this process does.
package netdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Socket opens a socket for [Move] in this process's network namespace.
func Socket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

// Find says whether the namespace of a socket has a device of a name; if not, the error is ENODEV.
func Find(in *os.File, name string) error {
	c, err := newConn(in)
	if err == nil {
		_, err = c.linkByName(name)
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	return nil
}

// Move moves the device name from the namespace of socket from into netns, of which to is a socket, and calls it newName
// there, which may have a "%d" for the kernel to fill in; its own name if newName is "". What it has of permanent addresses
// of global scope it keeps, and it is up: config-linux.md of the runtime specification, "Network Devices".
func Move(from, to, netns *os.File, name, newName string) error {
	if newName == "" {
		newName = name
	}
	src, err := newConn(from)
	if err != nil {
		return err
	}
	dst, err := newConn(to)
	if err != nil {
		return err
	}
	dev, err := src.linkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	// Before it is down: the kernel forgets IPv6 addresses of what is.
	addresses, err := src.addresses(dev.index)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", name, err)
	}
	before, err := dst.links()
	if err != nil {
		return fmt.Errorf("devices of the container: %w", err)
	}
	for _, l := range before {
		if l.name == newName {
			return fmt.Errorf("the container has a device %s: %w", newName, unix.EEXIST)
		}
	}
	if err := src.setUp(dev.index, false); err != nil {
		return fmt.Errorf("set %s down: %w", name, err)
	}
	if err := src.move(dev.index, netns, newName); err != nil {
		err = fmt.Errorf("move %s: %w", name, err)
		if _, gone := src.linkByName(name); gone == nil && dev.up {
			err = errors.Join(err, src.setUp(dev.index, true))
		}
		return err
	}
	after, err := dst.links()
	if err != nil {
		return fmt.Errorf("devices of the container: %w", err)
	}
	index := newcomer(before, after)
	if index == 0 {
		return fmt.Errorf("%s is not in the container after its move", name)
	}
	for _, a := range addresses {
		if err := dst.addAddress(index, a); err != nil {
			return fmt.Errorf("address %s of %s: %w", a, name, err)
		}
	}
	if err := dst.setUp(index, true); err != nil {
		return fmt.Errorf("set %s up: %w", newName, err)
	}
	return nil
}

func newcomer(before, after []link) uint32 {
	known := make(map[uint32]bool, len(before))
	for _, l := range before {
		known[l.index] = true
	}
	for _, l := range after {
		if !known[l.index] {
			return l.index
		}
	}
	return 0
}

type link struct {
	index uint32
	name  string
	up    bool
}

// An address is an RTM_NEWADDR message's: a family, the length of the prefix, and attributes.
type address struct {
	family, prefix byte
	attrs          []attr // IFA_LOCAL, IFA_ADDRESS, IFA_BROADCAST
}

func (a address) String() string {
	for _, at := range a.attrs {
		if at.kind == unix.IFA_ADDRESS || at.kind == unix.IFA_LOCAL {
			return fmt.Sprintf("%x/%d", at.data, a.prefix)
		}
	}
	return "?"
}

func (c *conn) linkByName(name string) (link, error) {
	msgs, err := c.ask(unix.RTM_GETLINK, 0, ifinfo(0, 0, 0), attr{unix.IFLA_IFNAME, append([]byte(name), 0)})
	if err != nil {
		return link{}, err
	}
	for _, m := range msgs {
		if l, ok := parseLink(m); ok {
			return l, nil
		}
	}
	return link{}, unix.ENODEV
}

func (c *conn) links() (list []link, err error) {
	msgs, err := c.ask(unix.RTM_GETLINK, unix.NLM_F_DUMP, ifinfo(0, 0, 0))
	for _, m := range msgs {
		if l, ok := parseLink(m); ok {
			list = append(list, l)
		}
	}
	return list, err
}

func parseLink(m message) (l link, ok bool) {
	if m.kind != unix.RTM_NEWLINK || len(m.data) < unix.SizeofIfInfomsg {
		return l, false
	}
	l.index = binary.NativeEndian.Uint32(m.data[4:])
	l.up = binary.NativeEndian.Uint32(m.data[8:])&unix.IFF_UP != 0
	for _, a := range parseAttrs(m.data[unix.SizeofIfInfomsg:]) {
		if a.kind == unix.IFLA_IFNAME {
			l.name = string(bytes.TrimRight(a.data, "\x00"))
		}
	}
	return l, true
}

// addresses are those that the device keeps: permanent ones, of global scope.
func (c *conn) addresses(index uint32) (list []address, err error) {
	msgs, err := c.ask(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg))
	for _, m := range msgs {
		if m.kind != unix.RTM_NEWADDR || len(m.data) < unix.SizeofIfAddrmsg || binary.NativeEndian.Uint32(m.data[4:]) != index {
			continue
		}
		a := address{family: m.data[0], prefix: m.data[1]}
		flags, scope := uint32(m.data[2]), m.data[3]
		for _, at := range parseAttrs(m.data[unix.SizeofIfAddrmsg:]) {
			switch at.kind {
			case unix.IFA_FLAGS:
				if len(at.data) >= 4 {
					flags = binary.NativeEndian.Uint32(at.data)
				}
			case unix.IFA_LOCAL, unix.IFA_ADDRESS, unix.IFA_BROADCAST:
				a.attrs = append(a.attrs, at)
			}
		}
		if flags&unix.IFA_F_PERMANENT != 0 && scope == unix.RT_SCOPE_UNIVERSE {
			list = append(list, a)
		}
	}
	return list, err
}

func (c *conn) addAddress(index uint32, a address) error {
	b := []byte{a.family, a.prefix, 0, unix.RT_SCOPE_UNIVERSE, 0, 0, 0, 0}
	binary.NativeEndian.PutUint32(b[4:], index)
	_, err := c.ask(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, b, a.attrs...)
	return err
}

func (c *conn) setUp(index uint32, up bool) error {
	flags := uint32(0)
	if up {
		flags = unix.IFF_UP
	}
	_, err := c.ask(unix.RTM_NEWLINK, unix.NLM_F_ACK, ifinfo(index, flags, unix.IFF_UP))
	return err
}

func (c *conn) move(index uint32, netns *os.File, name string) error {
	var err error
	raw, rawErr := netns.SyscallConn()
	if rawErr != nil {
		return rawErr
	}
	raw.Control(func(fd uintptr) {
		_, err = c.ask(unix.RTM_NEWLINK, unix.NLM_F_ACK, ifinfo(index, 0, 0),
			attr{unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(fd))},
			attr{unix.IFLA_IFNAME, append([]byte(name), 0)})
	})
	return err
}

// ifinfo is a struct ifinfomsg.
func ifinfo(index, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}
