package seccomp

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A profile is a checked specs.LinuxSeccomp.
type profile struct {
	arches []*arch // the native one first
	flags  uint32
	notify bool
	// fallback is what is returned for a call that no rule matches.
	fallback uint32
	rules    []rule
	uses     []use
}

// A rule returns ret for calls that meet all its conditions.
type rule struct {
	ret   uint32
	conds []cond
	block int // index in linux.seccomp.syscalls
}

// A use is one name with one rule, in the profile's order.
type use struct {
	name int32 // index in the tables
	rule int32 // or redundant
}

// redundant marks a name whose rule was dropped for having the default action. Such a name still counts as known to the
// profile when it is decided which calls are too new for it.
const redundant = -1

func parse(s *specs.LinuxSeccomp, goarch string) (*profile, error) {
	p := &profile{}
	var aerr *actionError
	p.fallback, aerr = returnValue(s.DefaultAction, s.DefaultErrnoRet)
	switch {
	case aerr != nil && aerr.errno:
		return nil, fmt.Errorf("linux.seccomp.defaultErrnoRet: %s", aerr.what)
	case aerr != nil:
		return nil, fmt.Errorf("linux.seccomp.defaultAction: %s", aerr.what)
	case p.fallback == retNotify:
		return nil, fmt.Errorf("linux.seccomp.defaultAction: %s can't be the default action", specs.ActNotify)
	}
	var err error
	if p.arches, err = parseArches(s.Architectures, goarch); err != nil {
		return nil, err
	}
	names, args := 0, 0
	for i := range s.Syscalls {
		names += len(s.Syscalls[i].Names)
		args += len(s.Syscalls[i].Args)
	}
	p.uses = make([]use, 0, names)
	p.rules = make([]rule, 0, len(s.Syscalls)+args)
	conds := make([]cond, 0, args)
	for i := range s.Syscalls {
		if conds, err = p.addBlock(i, &s.Syscalls[i], conds); err != nil {
			return nil, err
		}
	}
	p.flags, err = parseFlags(s.Flags, p.notify)
	return p, err
}

// addBlock adds one element of linux.seccomp.syscalls. It appends to conds, which has room, and returns it.
func (p *profile) addBlock(i int, b *specs.LinuxSyscall, conds []cond) ([]cond, error) {
	ret, aerr := returnValue(b.Action, b.ErrnoRet)
	if aerr != nil {
		field := "action"
		if aerr.errno {
			field = "errnoRet"
		}
		return nil, fmt.Errorf("linux.seccomp.syscalls[%d].%s: %s", i, field, aerr.what)
	}
	first := len(conds)
	perArg, repeated := [maxArgs]bool{}, false
	for j := range b.Args {
		c, err := parseCond(&b.Args[j])
		if err != nil {
			return nil, fmt.Errorf("linux.seccomp.syscalls[%d].args[%d].%w", i, j, err)
		}
		repeated = repeated || perArg[c.arg]
		perArg[c.arg] = true
		conds = append(conds, c)
	}
	added := conds[first:]

	// Only names make a rule; a block without any is looked at for its errors.
	lo := len(p.rules)
	switch {
	case len(b.Names) == 0 || ret == p.fallback:
	case repeated:
		for j := range added {
			p.rules = append(p.rules, rule{ret: ret, conds: added[j : j+1], block: i})
		}
	default:
		// Like libseccomp's chains; also what makes the order of rules a comparison of equal places.
		sortConds(added)
		p.rules = append(p.rules, rule{ret: ret, conds: added, block: i})
	}
	for j, name := range b.Names {
		if name == "" {
			return nil, fmt.Errorf("linux.seccomp.syscalls[%d].names[%d]: empty", i, j)
		}
		if ret == retNotify {
			// The listener has to be handed over after the filter is in place: runc refuses what could block that.
			if name == "write" {
				return nil, fmt.Errorf("linux.seccomp.syscalls[%d].names[%d]: %s can't be used for write", i, j, specs.ActNotify)
			}
			p.notify = true
		}
		index, ok := lookup(name)
		if !ok {
			continue
		}
		if lo == len(p.rules) {
			p.uses = append(p.uses, use{int32(index), redundant})
		}
		for r := lo; r < len(p.rules); r++ {
			p.uses = append(p.uses, use{int32(index), int32(r)})
		}
	}
	return conds, nil
}
