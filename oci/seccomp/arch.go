package seccomp

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// x32Bit marks the number of an x32 call (__X32_SYSCALL_BIT in arch/x86's asm/unistd.h).
const x32Bit = 0x40000000

// An arch is one that a profile can list.
type arch struct {
	name specs.Arch
	// audit is what the kernel reports in seccomp_data.arch (include/uapi/linux/audit.h): x32 calls come as x86_64.
	audit     uint32
	abi       abi
	bits64    bool
	bigEndian bool
	// mux says that the ABI has socketcall(2) and ipc(2).
	mux bool
}

const (
	audit64 = 0x80000000
	auditLE = 0x40000000
	auditN  = 0x20000000 // MIPS: the n32 convention

	auditX8664 = 62 | audit64 | auditLE
)

var arches = [...]arch{
	{name: specs.ArchX86_64, audit: auditX8664, abi: abiX8664, bits64: true},
	{name: specs.ArchX86, audit: 3 | auditLE, abi: abiX86, mux: true},
	{name: specs.ArchX32, audit: auditX8664, abi: abiX32},
	{name: specs.ArchAARCH64, audit: 183 | audit64 | auditLE, abi: abiARM64, bits64: true},
	{name: specs.ArchARM, audit: 40 | auditLE, abi: abiARM},
	{name: specs.ArchRISCV64, audit: 243 | audit64 | auditLE, abi: abiRISCV64, bits64: true},
	{name: specs.ArchLOONGARCH64, audit: 258 | audit64 | auditLE, abi: abiLoong64, bits64: true},
	{name: specs.ArchPPC64LE, audit: 21 | audit64 | auditLE, abi: abiPPC64, bits64: true, mux: true},
	{name: specs.ArchPPC64, audit: 21 | audit64, abi: abiPPC64, bits64: true, bigEndian: true, mux: true},
	{name: specs.ArchPPC, audit: 20, abi: abiPPC, bigEndian: true, mux: true},
	{name: specs.ArchS390X, audit: 22 | audit64, abi: abiS390X, bits64: true, bigEndian: true, mux: true},
	{name: specs.ArchS390, audit: 22, abi: abiS390, bigEndian: true, mux: true},
	{name: specs.ArchMIPS, audit: 8, abi: abiMIPSO32, bigEndian: true, mux: true},
	{name: specs.ArchMIPSEL, audit: 8 | auditLE, abi: abiMIPSO32, mux: true},
	{name: specs.ArchMIPS64, audit: 8 | audit64, abi: abiMIPSN64, bits64: true, bigEndian: true},
	{name: specs.ArchMIPSEL64, audit: 8 | audit64 | auditLE, abi: abiMIPSN64, bits64: true},
	{name: specs.ArchMIPS64N32, audit: 8 | audit64 | auditN, abi: abiMIPSN32, bigEndian: true},
	{name: specs.ArchMIPSEL64N32, audit: 8 | audit64 | auditLE | auditN, abi: abiMIPSN32},
}

// nativeName is the profile's name for a GOARCH.
func nativeName(goarch string) specs.Arch {
	switch goarch {
	case "amd64":
		return specs.ArchX86_64
	case "386":
		return specs.ArchX86
	case "arm64":
		return specs.ArchAARCH64
	case "arm":
		return specs.ArchARM
	case "riscv64":
		return specs.ArchRISCV64
	case "loong64":
		return specs.ArchLOONGARCH64
	case "ppc64le":
		return specs.ArchPPC64LE
	case "ppc64":
		return specs.ArchPPC64
	case "s390x":
		return specs.ArchS390X
	case "mips":
		return specs.ArchMIPS
	case "mipsle":
		return specs.ArchMIPSEL
	case "mips64":
		return specs.ArchMIPS64
	case "mips64le":
		return specs.ArchMIPSEL64
	}
	return ""
}

func findArch(name specs.Arch) *arch {
	for i := range arches {
		if arches[i].name == name {
			return &arches[i]
		}
	}
	return nil
}

// parseArches is the native architecture and those listed, each once. They are of one byte order, since a filter reads
// arguments in halves and the kernel runs it in its own (libseccomp refuses a mix too).
func parseArches(list []specs.Arch, goarch string) ([]*arch, error) {
	native := findArch(nativeName(goarch))
	if native == nil {
		return nil, fmt.Errorf("linux.seccomp: no system call table for GOARCH %q", goarch)
	}
	found := make([]*arch, 1, len(arches))
	found[0] = native
next:
	for i, name := range list {
		a := findArch(name)
		if a == nil {
			return nil, fmt.Errorf("linux.seccomp.architectures[%d]: unknown architecture %q", i, name)
		}
		if a.bigEndian != native.bigEndian {
			return nil, fmt.Errorf("linux.seccomp.architectures[%d]: %s has another byte order than this machine (%s)", i, name, native.name)
		}
		for _, f := range found {
			if f == a {
				continue next
			}
		}
		found = append(found, a)
	}
	return found, nil
}

// retENOSYS is ERRNO with ENOSYS, which has another number on a MIPS machine.
func (a *arch) retENOSYS() uint32 {
	switch a.abi {
	case abiMIPSO32, abiMIPSN64, abiMIPSN32:
		return retErrno | 89
	}
	return retErrno | enosys
}
