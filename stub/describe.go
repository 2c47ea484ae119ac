package stub

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/rsys-io/rsys/rsys"
)

// A Description is what a stub says of itself when it has received its descriptors.
type Description struct {
	Pid          int // in its own PID namespace
	SyscallFD    int
	DataFD       int
	MemFD        int
	ConnectionFD int
	Sigmask      rsys.Sigset // the signals that it blocks
	Entry        uint64      // the address of the server
	Args, Env    []string
}

const (
	descriptionSize = 80
	magic           = 0x6275747373797372 // "rsysstub"
	maxStrings      = 1 << 16
	maxStringsBytes = 4 << 20
	maxFD           = 1 << 30
)

var errDescription = errors.New("bad description")

// readDescription reads a description from a stub's data socket. The other
// end need not be a stub of ours, so nothing in it is believed: counts and
// lengths are bounded before memory is taken for them.
func readDescription(r io.Reader) (*Description, error) {
	var b [descriptionSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, fmt.Errorf("%w: %w", errDescription, err)
	}
	word := func(i int) uint64 { return binary.NativeEndian.Uint64(b[8*i:]) }
	if word(0) != magic {
		return nil, fmt.Errorf("%w: no magic number", errDescription)
	}
	for i, name := range []string{"pid", "syscall_fd", "data_fd", "memfd", "connection_fd"} {
		if word(1+i) > maxFD {
			return nil, fmt.Errorf("%w: %s is %d", errDescription, name, int64(word(1+i)))
		}
	}
	d := &Description{
		Pid: int(word(1)), SyscallFD: int(word(2)), DataFD: int(word(3)), MemFD: int(word(4)),
		ConnectionFD: int(word(5)), Sigmask: rsys.Sigset(word(6)), Entry: word(9),
	}
	if d.Pid == 0 {
		return nil, fmt.Errorf("%w: pid is 0", errDescription)
	}
	fds := map[int]bool{d.SyscallFD: true, d.DataFD: true, d.MemFD: true, d.ConnectionFD: true}
	if len(fds) != 4 || fds[0] {
		return nil, fmt.Errorf("%w: descriptors are not distinct", errDescription)
	}
	left := maxStringsBytes
	var err error
	if d.Args, left, err = readStrings(r, "argc", word(7), left); err != nil {
		return nil, err
	}
	if d.Env, _, err = readStrings(r, "envc", word(8), left); err != nil {
		return nil, err
	}
	return d, nil
}

func readStrings(r io.Reader, name string, n uint64, left int) ([]string, int, error) {
	if n > maxStrings {
		return nil, 0, fmt.Errorf("%w: %s is %d", errDescription, name, n)
	}
	var list []string
	for range n {
		var b [8]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, 0, fmt.Errorf("%w: %s: %w", errDescription, name, err)
		}
		size := binary.NativeEndian.Uint64(b[:])
		if size > uint64(left) {
			return nil, 0, fmt.Errorf("%w: %s: a string of %d bytes", errDescription, name, size)
		}
		left -= int(size)
		s := make([]byte, size)
		if _, err := io.ReadFull(r, s); err != nil {
			return nil, 0, fmt.Errorf("%w: %s: %w", errDescription, name, err)
		}
		list = append(list, string(s))
	}
	return list, left, nil
}
