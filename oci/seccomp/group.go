package seccomp

// group writes the code that looks at a system call's arguments, and returns where it is.
func (g *generator) group(gr *group) int {
	next := retLabel(g.vs.p.fallback)
	for end := len(gr.alts); end > 0 && !g.full; {
		start := end - 1
		for start > 0 && gr.together(&gr.alts[start-1], &gr.alts[start]) {
			start--
		}
		if run := gr.alts[start:end]; len(run) > 1 {
			next = g.values(gr, run, next)
		} else {
			yes := retLabel(run[0].ret)
			for i := len(run[0].conds) - 1; i >= 0; i-- {
				yes = g.cond(gr, run[0].conds[i], yes, next)
			}
			next = yes
		}
		end = start
	}
	return next.pos
}

// together says that two alternatives compare the same argument with a value each, and that the values have the same
// upper half: then both halves are loaded once.
func (gr *group) together(a, b *alternative) bool {
	if len(a.conds) != 1 || len(b.conds) != 1 {
		return false
	}
	x, y := a.conds[0], b.conds[0]
	return x.op == opEqual && y.op == opEqual && x.arg == y.arg && x.value>>32 == y.value>>32 && gr.whole(x) && gr.whole(y)
}

// whole says that no bit of the argument is masked.
func (gr *group) whole(c cond) bool {
	if gr.bits64 {
		return c.mask == ^uint64(0)
	}
	return uint32(c.mask) == ^uint32(0)
}

// values is a run of alternatives that go together.
func (g *generator) values(gr *group, run []alternative, no label) label {
	arg := run[0].conds[0].arg
	l := no
	for i := len(run) - 1; i >= 0; i-- {
		l = g.branch(opJeq, uint32(run[i].conds[0].value), retLabel(run[i].ret), l)
	}
	l = g.load(gr.low(arg))
	if gr.bits64 {
		g.branch(opJeq, uint32(run[0].conds[0].value>>32), l, no)
		l = g.load(gr.high(arg))
	}
	return l
}

// cond goes to yes if the condition holds.
func (g *generator) cond(gr *group, c cond, yes, no label) label {
	switch c.op {
	case opNotEqual:
		c.op = opEqual
		yes, no = no, yes
	case opLess:
		c.op = opGreaterEqual
		yes, no = no, yes
	case opLessEqual:
		c.op = opGreater
		yes, no = no, yes
	}
	if c.op == opEqual {
		return g.equal(gr, c, yes, no)
	}

	code := uint16(opJge)
	if c.op == opGreater {
		code = opJgt
	}
	g.branch(code, uint32(c.value), yes, no)
	l := g.load(gr.low(c.arg))
	if !gr.bits64 {
		return l
	}
	high := uint32(c.value >> 32)
	if high == 0 {
		// What is not 0 is greater.
		g.branch(opJeq, 0, l, yes)
	} else {
		l = g.branch(opJeq, high, l, no)
		g.branch(opJgt, high, yes, l)
	}
	return g.load(gr.high(c.arg))
}

func (g *generator) equal(gr *group, c cond, yes, no label) label {
	l := yes
	if mask := uint32(c.mask); mask != 0 {
		l = g.masked(gr.low(c.arg), mask, uint32(c.value), l, no)
	}
	if mask := uint32(c.mask >> 32); mask != 0 && gr.bits64 {
		l = g.masked(gr.high(c.arg), mask, uint32(c.value>>32), l, no)
	}
	return l
}

func (g *generator) masked(offset, mask, value uint32, yes, no label) label {
	g.branch(opJeq, value, yes, no)
	if mask != ^uint32(0) {
		g.emit(Instruction{Code: opAnd, K: mask})
	}
	return g.load(offset)
}

func (gr *group) low(arg uint8) uint32 {
	if gr.bigEndian {
		return offsetArgs + 8*uint32(arg) + 4
	}
	return offsetArgs + 8*uint32(arg)
}

func (gr *group) high(arg uint8) uint32 {
	if gr.bigEndian {
		return offsetArgs + 8*uint32(arg)
	}
	return offsetArgs + 8*uint32(arg) + 4
}
