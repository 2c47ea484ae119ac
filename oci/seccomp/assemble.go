package seccomp

// Opcodes of classic BPF (include/uapi/linux/bpf_common.h): class, size or operation, source.
const (
	opLoad = 0x20 // ld [k]
	opAnd  = 0x54 // and #k
	opJump = 0x05 // ja +k
	opJeq  = 0x15
	opJgt  = 0x25
	opJge  = 0x35
	opRet  = 0x06
)

// maxSkip is how far a conditional jump reaches.
const maxSkip = 255

// A label is a place in the program to jump to: an instruction, or any that returns ret.
type label struct {
	pos   int // index in assembler.rev
	ret   uint32
	isRet bool
}

func retLabel(ret uint32) label { return label{ret: ret, isRet: true} }

// An assembler writes a program from its end to its beginning, since jumps go forward only: so each jump's target is
// known when the jump is written, and what is out of its reach gets a stepping stone nearby.
type assembler struct {
	rev  []Instruction
	rets []retPlace
	full bool
}

// A retPlace is the last written instruction that returns ret.
type retPlace struct {
	ret uint32
	pos int
}

// emit writes an instruction before all others. Once the program is too long it writes no more.
func (a *assembler) emit(i Instruction) label {
	if len(a.rev) >= MaxInstructions {
		a.full = true
	} else {
		a.rev = append(a.rev, i)
	}
	return label{pos: len(a.rev) - 1}
}

// near is where to jump to in order to get to l, from an instruction that is written after slack others.
func (a *assembler) near(l label, slack int) int {
	inReach := func(pos int) bool { return len(a.rev)+slack-pos-1 <= maxSkip }
	if !l.isRet {
		if inReach(l.pos) {
			return l.pos
		}
		return a.emit(Instruction{Code: opJump, K: uint32(len(a.rev) - l.pos - 1)}).pos
	}
	place := -1
	for i := range a.rets {
		if a.rets[i].ret == l.ret {
			place = i
		}
	}
	if place >= 0 && inReach(a.rets[place].pos) {
		return a.rets[place].pos
	}
	if place < 0 {
		a.rets = append(a.rets, retPlace{ret: l.ret})
		place = len(a.rets) - 1
	}
	a.rets[place].pos = a.emit(Instruction{Code: opRet, K: l.ret}).pos
	return a.rets[place].pos
}

// branch writes a comparison of the accumulator with k.
func (a *assembler) branch(code uint16, k uint32, yes, no label) label {
	// The stepping stone for yes is written in between.
	f := a.near(no, 1)
	t := a.near(yes, 0)
	if a.full {
		return label{}
	}
	n := len(a.rev) - 1
	return a.emit(Instruction{Code: code, Jt: uint8(n - t), Jf: uint8(n - f), K: k})
}

// load puts the word at an offset of struct seccomp_data in the accumulator, then goes on with what was written last.
func (a *assembler) load(offset uint32) label {
	return a.emit(Instruction{Code: opLoad, K: offset})
}
