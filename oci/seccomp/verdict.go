package seccomp

import (
	"fmt"
	"slices"
)

// A verdict is what happens to a system call of one number: a return value, or a decision by its arguments.
type verdict struct {
	ret   uint32
	group int32 // index in verdicts.groups, or plain
}

const plain = -1

func returns(ret uint32) verdict { return verdict{ret: ret, group: plain} }

// A segment is the range of numbers from start to the next segment's start, or to the last number.
type segment struct {
	start uint32
	v     verdict
}

// A group is what the rules for one number ask of its arguments: the first alternative that holds decides, and if none
// does, the profile's default action.
type group struct {
	bits64, bigEndian bool
	alts              []alternative
}

type alternative struct {
	ret   uint32
	conds []cond // at least one; as this width of arguments sees them
	block int
}

// verdicts collects what the architectures of a profile make of it.
type verdicts struct {
	p      *profile
	keys   []uint64
	groups []group
}

// A span is a range of numbers that the rules have a say in, or that has a verdict whatever they say.
type span struct {
	start uint32
	ruled bool
	ret   uint32
}

// segments maps every number to a verdict, for architectures that share an audit value: one, or x86_64 and x32.
func (vs *verdicts) segments(members []*arch) ([]segment, error) {
	spans := vs.spans(members)
	segs := make([]segment, 0, 256)
	add := func(start uint32, v verdict) {
		if n := len(segs); n > 0 && segs[n-1].v == v {
			return
		} else if n > 0 && segs[n-1].start == start {
			segs = segs[:n-1]
			if n > 1 && segs[n-2].v == v {
				return
			}
		}
		segs = append(segs, segment{start, v})
	}
	fallback := returns(vs.p.fallback)
	next := 0 // span
	// advance opens the spans up to the one that nr is in, and says whether that is ruled.
	advance := func(nr uint32) bool {
		for next < len(spans) && spans[next].start <= nr {
			s := spans[next]
			next++
			if s.ruled {
				add(s.start, fallback)
			} else {
				add(s.start, returns(s.ret))
			}
		}
		return spans[next-1].ruled
	}
	for _, a := range members {
		keys := vs.collect(a)
		for i := 0; i < len(keys); {
			nr := uint32(keys[i] >> 32)
			j := i + 1
			for j < len(keys) && uint32(keys[j]>>32) == nr {
				j++
			}
			if advance(nr) {
				v, err := vs.decide(a, keys[i:j])
				if err != nil {
					return nil, err
				}
				add(nr, v)
				if nr != ^uint32(0) {
					add(nr+1, fallback)
				}
			}
			i = j
		}
	}
	advance(^uint32(0))
	return segs, nil
}

// spans says which numbers the rules can reach. Too new a call gets ENOSYS, as runc's patchbpf has it; then come
// libseccomp's checks of the x32 bit, which let -1 through (a tracer's way to skip a call).
func (vs *verdicts) spans(members []*arch) []span {
	first := members[0]
	unknown := span{ret: first.retENOSYS()}
	if first.audit != auditX8664 {
		s := []span{{ruled: true}}
		if max := vs.newest(first); max != 0 {
			if first.abi == abiS390 || first.abi == abiS390X {
				// Calls that the kernel does not know arrive there as number 0.
				s = []span{unknown, {start: 1, ruled: true}}
			}
			unknown.start = max + 1
			s = append(s, unknown)
		}
		return s
	}

	// The x32 bit, and with it what the ENOSYS rule looks at, changes each 2^30 numbers. The highest bit is in no
	// call's number, so the upper half has only what is too new.
	var modes [2]*arch
	for _, a := range members {
		modes[b2i(a.abi == abiX32)] = a
	}
	s := make([]span, 0, 8)
	for quarter := range uint32(4) {
		start := quarter << 30
		mode := modes[quarter&1]
		inFilter := modes[0] != nil && modes[1] != nil || modes[b2i(quarter > 0)] != nil
		if inFilter {
			s = append(s, span{start: start, ruled: true})
		} else {
			s = append(s, span{start: start, ret: retKillThread})
		}
		max := uint32(0)
		if mode != nil {
			max = vs.newest(mode)
		}
		switch {
		case max == 0:
		case quarter > 1:
			s[len(s)-1] = span{start: start, ret: unknown.ret}
		default:
			s = append(s, span{start: max + 1, ret: unknown.ret})
		}
		if quarter == 3 && !inFilter {
			s = append(s, span{start: ^uint32(0), ruled: true})
		}
	}
	return s
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// newest is the greatest number that the profile names, or 0 for no limit. As in runc a profile that names nothing but
// call 0 sets none, and the calls that have a multiplexer do not count where there is one.
func (vs *verdicts) newest(a *arch) uint32 {
	if lenient(vs.p.fallback) {
		return 0
	}
	max := uint32(0)
	for _, u := range vs.p.uses {
		if a.mux && muxCall[u.name] != 0 {
			continue
		}
		if nr := a.abi.number(int(u.name)); nr != noNumber && nr > max {
			max = nr
		}
	}
	return max
}

// collect lists the uses of rules on an architecture by number, then in the profile's order: number, index in
// profile.uses, and whether the rule is there for a multiplexed call, in 32, 31 and 1 bits.
func (vs *verdicts) collect(a *arch) []uint64 {
	keys := vs.keys[:0]
	for i, u := range vs.p.uses {
		if u.rule == redundant {
			continue
		}
		if nr := a.abi.number(int(u.name)); nr != noNumber {
			keys = append(keys, uint64(nr)<<32|uint64(i)<<1)
		}
		if m := muxCall[u.name]; m != 0 && a.mux {
			nr := a.abi.number(muxIndex(m))
			keys = append(keys, uint64(nr)<<32|uint64(i)<<1|1)
		}
	}
	slices.Sort(keys)
	vs.keys = keys
	return keys
}

func muxIndex(m uint8) int {
	name := "socketcall"
	if m&muxIPC != 0 {
		name = "ipc"
	}
	i, _ := lookup(name)
	return i
}

// decide puts together the rules for one number.
func (vs *verdicts) decide(a *arch, keys []uint64) (verdict, error) {
	var alts []alternative
	for _, k := range keys {
		u := vs.p.uses[uint32(k)>>1]
		r := &vs.p.rules[u.rule]
		mux := uint8(0)
		if k&1 != 0 {
			mux = muxCall[u.name]
		}
		if len(r.conds) == 0 && mux == 0 {
			return returns(r.ret), nil
		}
		conds := see(a, r.conds, mux)
		if len(conds) == 0 {
			return returns(r.ret), nil
		}
		alts = append(alts, alternative{ret: r.ret, conds: conds, block: r.block})
	}
	if len(alts) > MaxInstructions {
		return verdict{}, tooLong()
	}
	alts, err := order(alts, a)
	if err != nil {
		return verdict{}, err
	}
	g := group{bits64: a.bits64, bigEndian: a.bigEndian, alts: alts}
	for i := range vs.groups {
		if vs.groups[i].equal(&g) {
			return verdict{group: int32(i)}, nil
		}
	}
	vs.groups = append(vs.groups, g)
	return verdict{group: int32(len(vs.groups) - 1)}, nil
}

// see is a rule's conditions as the architecture sees them, without those that always hold. mux is 0 or the selector
// of the multiplexed call that the rule is for.
func see(a *arch, conds []cond, mux uint8) []cond {
	seen := make([]cond, 0, len(conds)+1)
	if mux != 0 {
		seen = append(seen, cond{op: opEqual, value: uint64(mux &^ muxIPC), mask: ^uint64(0)})
	}
	for _, c := range conds {
		if mux != 0 && c.arg == 0 {
			continue
		}
		seen = append(seen, c)
	}
	kept := seen[:0]
	for _, c := range seen {
		if !a.bits64 {
			c = c.narrow()
		}
		if !c.always() {
			kept = append(kept, c)
		}
	}
	return kept
}

// order sorts alternatives in the order in which libseccomp's tree tries them, shorter before longer, and takes out
// repeated ones. libseccomp refuses rules for the same conditions with different actions, and one that would overrule an
// earlier, more detailed one.
func order(alts []alternative, on *arch) ([]alternative, error) {
	if len(alts) == 1 {
		return alts, nil
	}
	slices.SortStableFunc(alts, func(a, b alternative) int {
		for i := range min(len(a.conds), len(b.conds)) {
			if d := searchOrder(a.conds[i], b.conds[i]); d != 0 {
				return d
			}
		}
		return len(a.conds) - len(b.conds)
	})
	kept := alts[:0]
next:
	for _, b := range alts {
		for _, a := range kept {
			n := len(a.conds)
			if n > len(b.conds) || !slices.Equal(a.conds, b.conds[:n]) {
				continue
			}
			if a.ret != b.ret && (n == len(b.conds) || b.block < a.block) {
				return nil, fmt.Errorf("linux.seccomp.syscalls[%d]: contradicts syscalls[%d]: on %s they are the same condition on the same system call, with different actions",
					max(a.block, b.block), min(a.block, b.block), on.name)
			}
			continue next
		}
		kept = append(kept, b)
	}
	return kept, nil
}

func (g *group) equal(h *group) bool {
	return g.bits64 == h.bits64 && g.bigEndian == h.bigEndian && slices.EqualFunc(g.alts, h.alts, func(a, b alternative) bool {
		return a.ret == b.ret && slices.Equal(a.conds, b.conds)
	})
}
