package stub

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// description is what a stub would send: its words, and the strings.
func description(words [10]uint64, stringList ...string) []byte {
	var b []byte
	for _, w := range words {
		b = binary.NativeEndian.AppendUint64(b, w)
	}
	for _, s := range stringList {
		b = binary.NativeEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

// goodWords describe process 7 with descriptors 3 to 6, two arguments and a variable.
var goodWords = [10]uint64{magic, 7, 3, 4, 5, 6, 0x12, 2, 1, 0x400000}

func with(i int, v uint64) [10]uint64 {
	w := goodWords
	w[i] = v
	return w
}

// badDescriptions are descriptions that are refused, and what the error must say.
var badDescriptions = []struct {
	name, want string
	data       []byte
}{
	{"nothing", "EOF", nil},
	{"a part of a word", "unexpected EOF", description(goodWords)[:5]},
	{"all but a byte", "unexpected EOF", description(goodWords)[:79]},
	{"no magic", "magic", description(with(0, magic+1))},
	{"zeroes", "magic", make([]byte, 80)},
	{"ones", "magic", bytes.Repeat([]byte{0xff}, 80)},
	{"pid 0", "pid", description(with(1, 0))},
	{"a negative pid", "pid is -1", description(with(1, ^uint64(0)))},
	{"a negative syscall_fd", "syscall_fd is -9", description(with(2, ^uint64(8)))},
	{"syscall_fd 0", "distinct", description(with(2, 0))},
	{"a huge data_fd", "data_fd", description(with(3, 1<<31))},
	{"a negative memfd", "memfd is -1", description(with(4, ^uint64(0)))},
	{"a huge connection_fd", "connection_fd", description(with(5, 1<<62))},
	{"a descriptor twice", "distinct", description(with(3, 3))},
	{"all descriptors the same", "distinct", description([10]uint64{magic, 7, 3, 3, 3, 3, 0, 0, 0, 1})},
	{"a huge argc", "argc", description(with(7, 1<<60))},
	{"an argc of all bits", "argc", description(with(7, ^uint64(0)))},
	{"a huge envc", "envc", description(with(8, 1<<40), "a", "b")},
	{"no strings", "argc", description(goodWords)},
	{"a string too few", "envc", description(goodWords, "a", "b")},
	{"a huge string", "argc: a string of", binary.NativeEndian.AppendUint64(description(goodWords), 1<<50)},
	{"a string of all bits", "argc: a string of", binary.NativeEndian.AppendUint64(description(goodWords), ^uint64(0))},
	{"a string cut off", "argc", binary.NativeEndian.AppendUint64(description(goodWords), 100)},
	{"too much in all", "envc: a string of", description(goodWords, strings.Repeat("a", 2<<20), strings.Repeat("b", 2<<20), "c")},
}

func TestBadDescriptionsAreRefused(t *testing.T) {
	for _, tt := range badDescriptions {
		d, err := readDescription(bytes.NewReader(tt.data))
		if d != nil || !errors.Is(err, errDescription) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v; want %q", tt.name, d, err, tt.want)
		}
	}
}

func TestADescriptionMayComeByteByByte(t *testing.T) {
	d, err := readDescription(iotest.OneByteReader(bytes.NewReader(description(goodWords, "a", "", "c=d"))))
	if err != nil || d.Pid != 7 || d.ConnectionFD != 6 || d.Entry != 0x400000 || d.Sigmask != 0x12 ||
		strings.Join(d.Args, "|") != "a|" || strings.Join(d.Env, "|") != "c=d" {
		t.Errorf("%+v %v", d, err)
	}
}

// Whatever is read, the result is sane, and nothing is read beyond it.
func FuzzDescription(f *testing.F) {
	f.Add(description(goodWords, "a", "", "c=d"))
	for _, bad := range badDescriptions {
		if len(bad.data) < 1<<16 {
			f.Add(bad.data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		d, err := readDescription(r)
		if err != nil {
			if d != nil || !errors.Is(err, errDescription) {
				t.Fatalf("%v %v", d, err)
			}
			return
		}
		size := descriptionSize
		for _, s := range append(d.Args, d.Env...) {
			size += 8 + len(s)
		}
		rest, _ := io.ReadAll(r)
		if size+len(rest) != len(data) {
			t.Fatalf("%d bytes of strings and %d left of %d", size, len(rest), len(data))
		}
		fds := map[int]bool{}
		for _, fd := range []int{d.SyscallFD, d.DataFD, d.MemFD, d.ConnectionFD} {
			if fd <= 0 || fd > maxFD || fds[fd] {
				t.Fatalf("descriptor %d in %+v", fd, d)
			}
			fds[fd] = true
		}
		if d.Pid <= 0 {
			t.Fatalf("pid %d", d.Pid)
		}
	})
}
