package stub

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"runtime"

	"github.com/rsys-io/rsys/rsys"
)

// image is the stub's program.
func image() []byte { return program(rsys.ServerCode()) }

// Pause is a program that sleeps until it is killed, for the init of a PID namespace and for who holds other
// namespaces: orphans that it inherits are reaped at once, by the kernel. It needs nothing of a root
// file system, opens nothing and reads neither arguments nor environment.
func Pause() []byte { return program(rsys.PauseCode()) }

// program is a static ELF of one loadable segment, which is the headers and
// the machine code, readable and executable. It has no data and no section; its
// stack is not executable.
func program(code []byte) []byte {
	const (
		base    = 0x400000
		headers = 64 + 2*56
		entry   = (headers + 15) &^ 15
	)
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Entry: base + entry, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2,
	}
	size := uint64(entry + len(code))
	load := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 4096,
	}
	stack := elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W), Align: 16}
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, h)
	binary.Write(&b, binary.LittleEndian, load)
	binary.Write(&b, binary.LittleEndian, stack)
	b.Write(make([]byte, entry-b.Len()))
	b.Write(code)
	return b.Bytes()
}
