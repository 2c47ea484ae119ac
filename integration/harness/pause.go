package harness

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
)

// PauseImageName is the name of the image that [WritePauseImage] makes.
const PauseImageName = "rsys.io/pause:latest"

// pauseProgram is what a pod's first container does: it waits, reaps what the
// pod's containers leave to it where they share its PID namespace, and ends on
// SIGTERM and SIGINT. Signals are blocked and waited for, as those without a
// handler do not reach the first process of a PID namespace.
var pauseProgram = []byte{
	// rt_sigprocmask(SIG_BLOCK, &set, NULL, 8)
	0xb8, 0x0e, 0, 0, 0, 0x31, 0xff, 0x48, 0x8d, 0x35, 0x50, 0, 0, 0, 0x31, 0xd2, 0x41, 0xba, 0x08, 0, 0, 0, 0x0f, 0x05,
	// again: if wait4(-1, NULL, WNOHANG, NULL) > 0, again
	0xb8, 0x3d, 0, 0, 0, 0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff, 0x31, 0xf6, 0xba, 0x01, 0, 0, 0, 0x45, 0x31, 0xd2, 0x0f, 0x05,
	0x85, 0xc0, 0x7f, 0xe4,
	// rt_sigtimedwait(&set, NULL, NULL, 8); if it failed or is SIGCHLD, again
	0xb8, 0x80, 0, 0, 0, 0x48, 0x8d, 0x3d, 0x1e, 0, 0, 0, 0x31, 0xf6, 0x31, 0xd2, 0x41, 0xba, 0x08, 0, 0, 0, 0x0f, 0x05,
	0x85, 0xc0, 0x78, 0xc8, 0x83, 0xf8, 0x11, 0x74, 0xc3,
	// exit_group(0)
	0xb8, 0xe7, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05,
	// set: SIGTERM, SIGINT, SIGCHLD
	0x02, 0x40, 0x01, 0, 0, 0, 0, 0,
}

// WritePauseImage writes the image of a pod's first container: one static
// program of some two hundred bytes.
func WritePauseImage(w io.Writer) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("make the pause image: no program for %s", runtime.GOARCH)
	}
	const address, headers = 0x400000, 64 + 56
	var program bytes.Buffer
	write := func(v any) { _ = binary.Write(&program, binary.LittleEndian, v) } // a buffer takes all
	write(elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: address + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	})
	size := uint64(headers + len(pauseProgram))
	write(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: address, Paddr: address, Filesz: size, Memsz: size, Align: 0x1000})
	write(pauseProgram)

	var layer bytes.Buffer
	out := tar.NewWriter(&layer)
	if err := out.WriteHeader(&tar.Header{Name: "pause", Mode: 0o755, Typeflag: tar.TypeReg, Size: int64(program.Len())}); err != nil {
		return err
	}
	if _, err := out.Write(program.Bytes()); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return writeImage(w, PauseImageName, []string{"/pause"}, layer.Bytes())
}
