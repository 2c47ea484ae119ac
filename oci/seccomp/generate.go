package seccomp

import (
	"fmt"
	"slices"
)

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h).
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

func tooLong() error {
	return fmt.Errorf("linux.seccomp: the profile needs more than the %d instructions that the kernel accepts", MaxInstructions)
}

// A generator writes the program for a profile.
type generator struct {
	assembler
	vs       verdicts
	groupPos []int // where a group's code is, or -1
}

func generate(p *profile) ([]Instruction, error) {
	g := &generator{vs: verdicts{p: p, keys: make([]uint64, 0, len(p.uses))}}
	g.rev = make([]Instruction, 0, 512)

	// Architectures that the kernel reports by one audit value share a section. Within it, x32's numbers are higher.
	var sections [][]*arch
	for _, a := range p.arches {
		i := slices.IndexFunc(sections, func(s []*arch) bool { return s[0].audit == a.audit })
		switch {
		case i < 0:
			sections = append(sections, []*arch{a})
		case a.abi == abiX32:
			sections[i] = append(sections[i], a)
		default:
			sections[i] = slices.Insert(sections[i], 0, a)
		}
	}
	entries := make([]label, len(sections))
	for i, s := range slices.Backward(sections) {
		segs, err := g.vs.segments(s)
		if err != nil {
			return nil, err
		}
		entries[i] = g.section(segs)
		if g.full {
			return nil, tooLong()
		}
	}
	other := retLabel(retKillThread)
	for i, s := range slices.Backward(sections) {
		other = g.branch(opJeq, s[0].audit, entries[i], other)
	}
	g.load(offsetArch)
	if g.full {
		return nil, tooLong()
	}
	slices.Reverse(g.rev)
	return g.rev, nil
}

// section writes what finds a number's verdict.
func (g *generator) section(segs []segment) label {
	for len(g.groupPos) < len(g.vs.groups) {
		g.groupPos = append(g.groupPos, -1)
	}
	// Code for arguments is written first, out of the way of the search.
	for _, s := range segs {
		if s.v.group != plain && g.groupPos[s.v.group] < 0 && !g.full {
			g.groupPos[s.v.group] = g.group(&g.vs.groups[s.v.group])
		}
	}
	root := g.search(segs)
	if root.isRet || len(segs) == 1 {
		return root
	}
	return g.load(offsetNr)
}

func (g *generator) target(v verdict) label {
	if v.group == plain {
		return retLabel(v.ret)
	}
	return label{pos: g.groupPos[v.group]}
}

// search is a binary search for the segment that the accumulator, a system call's number, is in.
func (g *generator) search(segs []segment) label {
	if g.full {
		return label{}
	}
	n := len(segs)
	if n == 1 {
		return g.target(segs[0].v)
	}
	if islands(segs) {
		l := g.target(segs[0].v)
		for i := n - 2; i > 0; i -= 2 {
			l = g.branch(opJeq, segs[i].start, g.target(segs[i].v), l)
		}
		return l
	}
	mid := n / 2
	right := g.search(segs[mid:])
	left := g.search(segs[:mid])
	return g.branch(opJge, segs[mid].start, right, left)
}

// islands says that a few single numbers stand in a range that is otherwise of one verdict: then comparing with each
// takes half the instructions.
func islands(segs []segment) bool {
	n := len(segs)
	if n%2 == 0 || n > 7 {
		return false
	}
	for i := 2; i < n; i += 2 {
		if segs[i].v != segs[0].v || segs[i].start != segs[i-1].start+1 {
			return false
		}
	}
	return true
}
