package seccomp

import "fmt"

// A call is a struct seccomp_data as a filter sees it.
type call struct {
	nr, audit uint32
	args      [maxArgs]uint64
}

// word is what a load from an offset gives. The instruction pointer is of no interest.
func (c *call) word(offset uint32, bigEndian bool) uint32 {
	switch {
	case offset == offsetNr:
		return c.nr
	case offset == offsetArch:
		return c.audit
	case offset < offsetArgs:
		return 0
	}
	arg := c.args[(offset-offsetArgs)/8]
	if (offset%8 == 0) == bigEndian {
		return uint32(arg >> 32)
	}
	return uint32(arg)
}

// run interprets a program that is valid, and says whether it looked at an argument.
func run(prog []Instruction, c *call, bigEndian bool) (ret uint32, looked bool) {
	acc := uint32(0)
	jump := func(pc int, i Instruction, yes bool) int {
		if yes {
			return pc + int(i.Jt)
		}
		return pc + int(i.Jf)
	}
	for pc := 0; ; pc++ {
		i := prog[pc]
		switch i.Code {
		case opLoad:
			acc = c.word(i.K, bigEndian)
			looked = looked || i.K >= offsetArgs
		case opAnd:
			acc &= i.K
		case opJump:
			pc += int(i.K)
		case opJeq:
			pc = jump(pc, i, acc == i.K)
		case opJgt:
			pc = jump(pc, i, acc > i.K)
		case opJge:
			pc = jump(pc, i, acc >= i.K)
		case opRet:
			return i.K, looked
		default:
			panic(fmt.Sprintf("instruction %d: opcode %#x", pc, i.Code))
		}
	}
}

// Allows reports whether the filter lets a system call of the native architecture pass. A call that is
// logged, traced or notified of is not one that surely passes.
func (f *Filter) Allows(goarch string, nr int64, args ...uint64) bool {
	a := findArch(nativeName(goarch))
	if a == nil {
		return false
	}
	c := call{nr: uint32(nr), audit: a.audit}
	copy(c.args[:], args)
	ret, _ := run(f.Instructions, &c, a.bigEndian)
	return ret&retActionMask == retAllow
}
