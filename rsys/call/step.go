package call

import "golang.org/x/sys/unix"

// A Step is a [Call] in a program: the call and what becomes of the program
// after it.
//
// After a success the program goes on behind the next SkipOK steps; after
// an error that OnError tolerates, behind the next SkipErr steps; any other
// error ends the program. A program can only go forward.
type Step struct {
	Call
	OnError Policy
	SkipOK  int32
	SkipErr int32
}

// A Policy says which errors of a step let the program go on. It is a list
// of up to eight errno values, a byte each, lowest first, as the server reads it.
type Policy uint64

const (
	Stop   Policy = 0    // any error ends the program
	Ignore Policy = 0xff // no error does
)

// Tolerate goes on after the given errors and stops at any other. It takes
// at most eight; more is a mistake of the programmer and panics.
func Tolerate(errnos ...unix.Errno) Policy {
	if len(errnos) > 8 {
		panic("call: a policy holds at most eight errnos")
	}
	var p Policy
	for i, e := range errnos {
		p |= Policy(e&0xff) << (8 * i)
	}
	return p
}

// Tolerates reports whether a program goes on after errno.
func (p Policy) Tolerates(errno unix.Errno) bool {
	for ; p != 0; p >>= 8 {
		if b := p & 0xff; b == Ignore || unix.Errno(b) == errno {
			return true
		}
	}
	return false
}

// Or tolerates what p or q does.
func (p Policy) Or(q Policy) Policy {
	for ; q != 0; q >>= 8 {
		if e := unix.Errno(q & 0xff); !p.Tolerates(e) {
			if p>>56 != 0 {
				panic("call: a policy holds at most eight errnos")
			}
			shift := 0
			for p>>shift != 0 {
				shift += 8
			}
			p |= Policy(e) << shift
		}
	}
	return p
}
