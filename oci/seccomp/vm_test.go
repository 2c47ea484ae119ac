package seccomp

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// validate checks what the kernel checks (bpf_check_classic in net/core/filter.c, seccomp_check_filter in
// kernel/seccomp.c), for the opcodes that a filter of ours or of libseccomp has.
func validate(prog []Instruction) error {
	n := len(prog)
	if n == 0 || n > MaxInstructions {
		return fmt.Errorf("%d instructions", n)
	}
	for pc, i := range prog {
		switch i.Code {
		case opLoad:
			if i.K%4 != 0 || i.K >= 64 {
				return fmt.Errorf("instruction %d: load from %d", pc, i.K)
			}
		case opJump:
			if uint64(pc)+1+uint64(i.K) >= uint64(n) {
				return fmt.Errorf("instruction %d: jumps out of the program", pc)
			}
		case opJeq, opJgt, opJge:
			if pc+1+int(max(i.Jt, i.Jf)) >= n {
				return fmt.Errorf("instruction %d: jumps out of the program", pc)
			}
		case opAnd, opRet:
		default:
			return fmt.Errorf("instruction %d: opcode %#x", pc, i.Code)
		}
	}
	if prog[n-1].Code != opRet {
		return errors.New("the last instruction does not return")
	}
	return nil
}

// unreachable lists instructions that no path leads to.
func unreachable(prog []Instruction) []int {
	seen := make([]bool, len(prog)+1)
	seen[0] = true
	var dead []int
	for pc, i := range prog {
		if !seen[pc] {
			dead = append(dead, pc)
			continue
		}
		switch i.Code {
		case opRet:
		case opJump:
			seen[pc+1+int(i.K)] = true
		case opJeq, opJgt, opJge:
			seen[pc+1+int(i.Jt)] = true
			seen[pc+1+int(i.Jf)] = true
		default:
			seen[pc+1] = true
		}
	}
	return dead
}

// listing is a program as text, jumps as the instructions they lead to.
func listing(prog []Instruction) string {
	var b strings.Builder
	var targets []int
	for pc, i := range prog {
		switch i.Code {
		case opJump:
			targets = append(targets, pc+1+int(i.K))
		case opJeq, opJgt, opJge:
			targets = append(targets, pc+1+int(i.Jt), pc+1+int(i.Jf))
		}
	}
	for pc, i := range prog {
		mark := ' '
		if slices.Contains(targets, pc) {
			mark = ':'
		}
		fmt.Fprintf(&b, "%4d%c ", pc, mark)
		switch i.Code {
		case opLoad:
			fmt.Fprintf(&b, "ld %s\n", offsetName(i.K))
		case opAnd:
			fmt.Fprintf(&b, "and %#x\n", i.K)
		case opJump:
			fmt.Fprintf(&b, "ja %d\n", pc+1+int(i.K))
		case opRet:
			fmt.Fprintf(&b, "ret %s\n", retName(i.K))
		default:
			op := map[uint16]string{opJeq: "jeq", opJgt: "jgt", opJge: "jge"}[i.Code]
			fmt.Fprintf(&b, "%s %#x, %d, %d\n", op, i.K, pc+1+int(i.Jt), pc+1+int(i.Jf))
		}
	}
	return b.String()
}

func offsetName(offset uint32) string {
	switch {
	case offset == offsetNr:
		return "nr"
	case offset == offsetArch:
		return "arch"
	case offset >= offsetArgs:
		return fmt.Sprintf("args[%d]+%d", (offset-offsetArgs)/8, offset%8)
	}
	return fmt.Sprintf("[%d]", offset)
}

func retName(ret uint32) string {
	name, ok := map[uint32]string{retKillProcess: "KILL_PROCESS", retKillThread: "KILL_THREAD", retTrap: "TRAP", retErrno: "ERRNO",
		retNotify: "NOTIFY", retTrace: "TRACE", retLog: "LOG", retAllow: "ALLOW"}[ret&retActionMask]
	switch {
	case !ok:
		return fmt.Sprintf("%#x", ret)
	case ret&^retActionMask != 0:
		return fmt.Sprintf("%s(%d)", name, ret&^retActionMask)
	}
	return name
}
