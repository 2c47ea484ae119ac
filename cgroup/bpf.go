package cgroup

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A v2 cgroup has no files for devices: a BPF program decides. It is given {access<<16 | type, major, minor} and answers 1
// for yes.

type insn struct {
	op   uint8
	regs uint8 // source << 4 | destination
	off  int16
	imm  int32
}

const (
	opLoad32  = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	opMovReg  = unix.BPF_ALU | unix.BPF_MOV | unix.BPF_X
	opMov     = unix.BPF_ALU | unix.BPF_MOV | unix.BPF_K
	opAnd     = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opRsh     = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	opExit    = unix.BPF_JMP | unix.BPF_EXIT
	opJne     = unix.BPF_JMP32 | unix.BPF_JNE | unix.BPF_K
	opJeq     = unix.BPF_JMP32 | unix.BPF_JEQ | unix.BPF_K
	opJneReg  = unix.BPF_JMP32 | unix.BPF_JNE | unix.BPF_X
	devBlock  = 1
	devChar   = 2
	accMknod  = 1
	accRead   = 2
	accWrite  = 4
	progType  = unix.BPF_PROG_TYPE_CGROUP_DEVICE
	attach    = unix.BPF_CGROUP_DEVICE
	loadCmd   = unix.BPF_PROG_LOAD
	attachCmd = unix.BPF_PROG_ATTACH
)

// program is the list as the v1 kernel means it: what is allowed must be allowed by one rule whole; what is denied
// is if any part of it is.
func (l *DeviceList) program() []insn {
	p := []insn{
		{op: opLoad32, regs: 1<<4 | 2},         // r2 = access<<16 | type
		{op: opMovReg, regs: 2<<4 | 3},         // r3 = access
		{op: opRsh, regs: 3, imm: 16},          //
		{op: opAnd, regs: 2, imm: 0xffff},      // r2 = type
		{op: opLoad32, regs: 1<<4 | 4, off: 4}, // r4 = major
		{op: opLoad32, regs: 1<<4 | 5, off: 8}, // r5 = minor
	}
	exception, general := int32(1), int32(0)
	if l.AllowAll {
		exception, general = 0, 1
	}
	for _, e := range l.Exceptions {
		var jumps []int
		unless := func(i insn) { jumps = append(jumps, len(p)); p = append(p, i) }
		kind := int32(devChar)
		if e.Type == 'b' {
			kind = devBlock
		}
		unless(insn{op: opJne, regs: 2, imm: kind})
		mask := int32(0)
		for c, bit := range map[string]int32{"m": accMknod, "r": accRead, "w": accWrite} {
			if strings.Contains(e.Access, c) {
				mask |= bit
			}
		}
		if mask != accMknod|accRead|accWrite {
			p = append(p, insn{op: opMovReg, regs: 3<<4 | 1}, insn{op: opAnd, regs: 1, imm: mask})
			if l.AllowAll {
				unless(insn{op: opJeq, regs: 1, imm: 0})
			} else {
				unless(insn{op: opJneReg, regs: 3<<4 | 1})
			}
		}
		if e.Major != -1 {
			unless(insn{op: opJne, regs: 4, imm: int32(uint32(e.Major))})
		}
		if e.Minor != -1 {
			unless(insn{op: opJne, regs: 5, imm: int32(uint32(e.Minor))})
		}
		p = append(p, insn{op: opMov, regs: 0, imm: exception}, insn{op: opExit})
		for _, j := range jumps {
			p[j].off = int16(len(p) - j - 1)
		}
	}
	return append(p, insn{op: opMov, regs: 0, imm: general}, insn{op: opExit})
}

// attach loads the program and attaches it to a v2 cgroup that has none of ours.
func (l *DeviceList) attach(dir string) error {
	fail := func(call string, err error) error {
		return fmt.Errorf("linux.resources.devices: bpf %s %s: %w", call, dir, err)
	}
	var code bytes.Buffer
	p := l.program()
	if err := binary.Write(&code, binary.NativeEndian, p); err != nil {
		return fail("encode", err)
	}
	insns, license := code.Bytes(), []byte("Apache\x00")
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&insns[0])
	pin.Pin(&license[0])
	load := struct {
		progType, count    uint32
		insns, license     uint64
		logLevel, logSize  uint32
		log                uint64
		kernVersion, flags uint32
	}{progType: progType, count: uint32(len(p)), insns: uint64(uintptr(unsafe.Pointer(&insns[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	prog, err := bpf(loadCmd, unsafe.Pointer(&load), unsafe.Sizeof(load))
	if err != nil {
		return fail("load", err)
	}
	defer unix.Close(prog)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("attach", &os.PathError{Op: "open", Path: dir, Err: err})
	}
	defer unix.Close(fd)
	att := struct{ target, prog, kind, flags, replace uint32 }{uint32(fd), uint32(prog), attach, unix.BPF_F_ALLOW_MULTI, 0}
	if _, err := bpf(attachCmd, unsafe.Pointer(&att), unsafe.Sizeof(att)); err != nil {
		return fail("attach", err)
	}
	return nil
}

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		if errno == unix.EINTR || errno == unix.EAGAIN {
			continue
		}
		if errno != 0 {
			return -1, errno
		}
		return int(n), nil
	}
}
