package call

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// String prints the call as strace does, with the names of flags. "$12" is
// what step 12 returned and "$12[1]+28" stands for the word at offset 28 of the
// output that is its argument 1.
func (c Call) String() string {
	var b strings.Builder
	if c.Nr == NrExpect && len(c.Args) == 4 {
		c.formatExpect(&b)
		return b.String()
	}
	b.WriteString(c.Name)
	b.WriteByte('(')
	n := 0
	for i, a := range c.Args {
		if a.Form == FormHidden || c.hides(i) {
			continue
		}
		if n > 0 {
			b.WriteString(", ")
		}
		n++
		a.format(&b)
	}
	b.WriteByte(')')
	return b.String()
}

// formatExpect prints the condition as one.
func (c Call) formatExpect(b *strings.Builder) {
	b.WriteString("expect(")
	c.Args[0].format(b)
	if mask := c.Args[1]; mask.Int != -1 {
		b.WriteString(" & ")
		mask.format(b)
	}
	b.WriteString(" == ")
	c.Args[2].format(b)
	b.WriteString(", ")
	c.Args[3].format(b)
	b.WriteByte(')')
}

// hides says that argument i tells nothing that the one before doesn't.
func (c Call) hides(i int) bool {
	if i == 0 || c.Args[i].Kind != KindInt {
		return false
	}
	before := &c.Args[i-1]
	switch before.Kind {
	case KindIn:
		// The size of a structure or text that has been printed whole.
		return (before.Form == FormOpenHow || before.Form == FormMountSetattr || before.Form == FormText) &&
			c.Args[i].Int == int64(len(before.Data))
	case KindOut:
		return c.Args[i].Int == before.Int
	}
	return false
}

func (a Arg) format(b *strings.Builder) {
	switch a.Kind {
	case KindResult:
		fmt.Fprintf(b, "$%d", a.Step)
	case KindWord:
		fmt.Fprintf(b, "$%d[%d]+%d", a.Step, a.Index, a.Off)
	case KindInt32:
		fmt.Fprintf(b, "$%d[%d]+%d:32", a.Step, a.Index, a.Off)
	case KindOutPtr:
		fmt.Fprintf(b, "&$%d[%d]+%d", a.Step, a.Index, a.Off)
	case KindOut:
		fmt.Fprintf(b, "out[%d]", a.Int)
	case KindIn:
		a.formatData(b)
	default:
		a.formatInt(b)
	}
}

func (a Arg) formatInt(b *strings.Builder) {
	v := uint64(a.Int)
	switch a.Form {
	case FormFD:
		if a.Int == unix.AT_FDCWD {
			b.WriteString("AT_FDCWD")
			return
		}
	case FormHex:
		fmt.Fprintf(b, "%#x", v)
		return
	case FormOctal:
		fmt.Fprintf(b, "%#o", v)
		return
	case FormErrno:
		if n := unix.ErrnoName(unix.Errno(v)); n != "" {
			b.WriteString(n)
			return
		}
	case FormNamed:
		b.WriteString(a.Data)
		return
	case FormMode:
		formatMode(b, uint32(v))
		return
	case FormDev:
		fmt.Fprintf(b, "%d:%d", unix.Major(v), unix.Minor(v))
		return
	case FormOpen:
		formatOpen(b, v)
		return
	case FormIoprio, FormMempolicy:
		formatSplit(b, a.Form, v)
		return
	case FormCap:
		if v < uint64(len(capNames)) {
			b.WriteString("CAP_" + capNames[v])
			return
		}
	}
	if names := valueNames[a.Form]; names != nil {
		for _, n := range names {
			if n.bits == v {
				b.WriteString(n.name)
				return
			}
		}
	} else if names := flagNames[a.Form]; names != nil {
		formatFlags(b, v, names)
		return
	}
	b.WriteString(strconv.FormatInt(a.Int, 10))
}

func (a Arg) formatData(b *strings.Builder) {
	data := []byte(a.Data)
	word := func(off int) uint64 { return binary.NativeEndian.Uint64(data[off:]) }
	n := len(data)
	switch {
	case a.Form == FormString && n > 0:
		formatText(b, data[:n-1])
	case a.Form == FormText:
		formatText(b, data)
	case a.Form == FormStrings:
		b.WriteByte('[')
		for i, p := range a.Ptrs() {
			if i > 0 {
				b.WriteString(", ")
			}
			p.To.format(b)
		}
		b.WriteByte(']')
	case a.Form == FormBits:
		formatBits(b, data)
	case a.Form == FormSchedAttr && n >= 48:
		formatSchedAttr(b, data)
	case a.Form == FormUint32s:
		b.WriteByte('[')
		for i := 0; i+4 <= n; i += 4 {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprint(b, binary.NativeEndian.Uint32(data[i:]))
		}
		b.WriteByte(']')
	case a.Form == FormOpenHow && n >= 24:
		b.WriteByte('{')
		formatOpen(b, word(0))
		if m := word(8); m != 0 {
			fmt.Fprintf(b, ", %#o", m)
		}
		if r := word(16); r != 0 {
			b.WriteString(", ")
			formatFlags(b, r, resolveNames)
		}
		b.WriteByte('}')
	case a.Form == FormMountSetattr && n >= 24:
		b.WriteByte('{')
		sep := ""
		if s := word(0); s != 0 {
			b.WriteString("set ")
			formatFlags(b, s, flagNames[FormMountAttr])
			sep = ", "
		}
		if s := word(8); s != 0 {
			b.WriteString(sep + "clear ")
			formatFlags(b, s, flagNames[FormMountAttr])
			sep = ", "
		}
		if s := word(16); s != 0 {
			b.WriteString(sep)
			formatFlags(b, s, flagNames[FormMS])
			sep = ", "
		}
		for _, p := range a.Ptrs() {
			b.WriteString(sep + "userns ")
			p.To.format(b)
		}
		b.WriteByte('}')
	case a.Form == FormCaps && n == 24:
		for i, set := range []string{"{effective ", ", permitted ", ", inheritable "} {
			lo, hi := binary.NativeEndian.Uint32(data[4*i:]), binary.NativeEndian.Uint32(data[12+4*i:])
			b.WriteString(set)
			formatCaps(b, uint64(hi)<<32|uint64(lo))
		}
		b.WriteByte('}')
	case a.Form == FormRlimitValue && n == 16:
		b.WriteByte('{')
		formatLimit(b, word(0))
		b.WriteString(", ")
		formatLimit(b, word(8))
		b.WriteByte('}')
	case a.Form == FormSockFprog && n >= 2:
		fmt.Fprintf(b, "{%d instructions}", binary.NativeEndian.Uint16(data))
	case n <= 40:
		fmt.Fprintf(b, "%q", data)
	default:
		fmt.Fprintf(b, "%q...[%d]", data[:32], n)
	}
}

// maxText is how much of a text is printed.
const maxText = 4096

func formatText(b *strings.Builder, text []byte) {
	if len(text) <= maxText {
		b.WriteString(strconv.Quote(string(text)))
		return
	}
	fmt.Fprintf(b, "%q...[%d]", text[:maxText], len(text))
}

func formatLimit(b *strings.Builder, v uint64) {
	if v == ^uint64(0) {
		b.WriteString("RLIM_INFINITY")
	} else {
		b.WriteString(strconv.FormatUint(v, 10))
	}
}

func formatMode(b *strings.Builder, m uint32) {
	for _, t := range []name{{"S_IFREG", unix.S_IFREG}, {"S_IFCHR", unix.S_IFCHR}, {"S_IFBLK", unix.S_IFBLK},
		{"S_IFIFO", unix.S_IFIFO}, {"S_IFDIR", unix.S_IFDIR}, {"S_IFSOCK", unix.S_IFSOCK}} {
		if uint64(m&unix.S_IFMT) == t.bits {
			b.WriteString(t.name + "|")
		}
	}
	fmt.Fprintf(b, "%#o", m&^uint32(unix.S_IFMT))
}

// formatOpen prints open's flags: the access mode, which is a field of two bits, and the others.
func formatOpen(b *strings.Builder, v uint64) {
	if v&unix.O_PATH == 0 {
		b.WriteString([...]string{"O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"}[v&unix.O_ACCMODE])
		if v &^= unix.O_ACCMODE; v == 0 {
			return
		}
		b.WriteByte('|')
	}
	formatFlags(b, v, openNames)
}

func formatFlags(b *strings.Builder, v uint64, names []name) {
	if v == 0 {
		b.WriteByte('0')
		return
	}
	sep := ""
	for _, n := range names {
		if v&n.bits == n.bits {
			b.WriteString(sep + n.name)
			v &^= n.bits
			sep = "|"
		}
	}
	if v != 0 {
		fmt.Fprintf(b, "%s%#x", sep, v)
	}
}

// formatCaps prints a set by what it has, or, if that is shorter, by what it lacks.
func formatCaps(b *strings.Builder, set uint64) {
	all := uint64(1)<<len(capNames) - 1
	switch set {
	case 0:
		b.WriteByte('0')
		return
	case all:
		b.WriteString("all")
		return
	}
	sep, show := "", set
	if n := strings.Count(strconv.FormatUint(set&all, 2), "1"); n > len(capNames)/2+5 && set&^all == 0 {
		b.WriteString("all")
		sep, show = "-", all&^set
	}
	minus := sep == "-"
	for i, n := range capNames {
		if show&(1<<i) != 0 {
			b.WriteString(sep + n)
			if !minus {
				sep = "|"
			}
		}
	}
	if set &^= all; set != 0 {
		fmt.Fprintf(b, "%s%#x", sep, set)
	}
}
