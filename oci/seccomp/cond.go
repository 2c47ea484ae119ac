package seccomp

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A system call has at most six arguments.
const maxArgs = 6

type operator uint8

const (
	opEqual operator = iota // under a mask
	opNotEqual
	opLess
	opLessEqual
	opGreater
	opGreaterEqual
)

// A cond compares an argument with a value.
type cond struct {
	arg         uint8
	op          operator
	value, mask uint64 // the mask is all ones but for SCMP_CMP_MASKED_EQ
}

// parseCond's errors begin with the field of the argument that they are about.
func parseCond(a *specs.LinuxSeccompArg) (cond, error) {
	if a.Index >= maxArgs {
		return cond{}, fmt.Errorf("index: %d, but a system call has %d arguments", a.Index, maxArgs)
	}
	c := cond{arg: uint8(a.Index), value: a.Value, mask: ^uint64(0)}
	switch a.Op {
	case specs.OpEqualTo:
		c.op = opEqual
	case specs.OpNotEqual:
		c.op = opNotEqual
	case specs.OpLessThan:
		c.op = opLess
	case specs.OpLessEqual:
		c.op = opLessEqual
	case specs.OpGreaterThan:
		c.op = opGreater
	case specs.OpGreaterEqual:
		c.op = opGreaterEqual
	case specs.OpMaskedEqual:
		// The profile's value is the mask. libseccomp lets bits of the other value outside of the mask go.
		c.op, c.mask, c.value = opEqual, a.Value, a.ValueTwo&a.Value
	default:
		return cond{}, fmt.Errorf("op: unknown operator %q", a.Op)
	}
	return c, nil
}

// narrow is the condition as a 32-bit architecture sees it.
func (c cond) narrow() cond {
	c.value &= 0xffffffff
	c.mask &= 0xffffffff
	return c
}

// always says that every value meets the condition.
func (c cond) always() bool { return c.op == opEqual && c.mask == 0 }

func sortConds(c []cond) {
	slices.SortFunc(c, func(a, b cond) int { return int(a.arg) - int(b.arg) })
}

// class is the rank of an operator in libseccomp's order of search.
func (o operator) class() int {
	switch o {
	case opEqual, opNotEqual:
		return 2
	case opLess, opLessEqual:
		return 1
	}
	return 0
}

// searchOrder compares two conditions by which libseccomp's tree would try first (its db.c, _db_chain_lt). Conditions of
// which neither comes first are equal here.
func searchOrder(a, b cond) int {
	if a.arg != b.arg {
		return int(b.arg) - int(a.arg)
	}
	if d := b.op.class() - a.op.class(); d != 0 {
		return d
	}
	if a.value == b.value {
		return 0
	}
	if (a.value > b.value) != (a.op.class() == opLess.class()) {
		return -1
	}
	return 1
}
