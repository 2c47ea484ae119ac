package call

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// SchedAttr is what [SchedSetattr] sets: sched_setattr(2).
type SchedAttr struct {
	Policy                    uint32
	Flags                     uint64
	Nice                      int32
	Priority                  uint32
	Runtime, Deadline, Period uint64
}

// SchedSetattr sets the scheduling policy and attributes of the caller.
func SchedSetattr(a SchedAttr) Call {
	b := make([]byte, 56) // SCHED_ATTR_SIZE_VER1, Linux 5.3
	binary.NativeEndian.PutUint32(b[0:], uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], a.Policy)
	binary.NativeEndian.PutUint64(b[8:], a.Flags)
	binary.NativeEndian.PutUint32(b[16:], uint32(a.Nice))
	binary.NativeEndian.PutUint32(b[20:], a.Priority)
	binary.NativeEndian.PutUint64(b[24:], a.Runtime)
	binary.NativeEndian.PutUint64(b[32:], a.Deadline)
	binary.NativeEndian.PutUint64(b[40:], a.Period)
	return sys("sched_setattr", unix.SYS_SCHED_SETATTR, Int(0), Bytes(b).as(FormSchedAttr), Int(0))
}

// SchedSetaffinity restricts the caller to the CPUs whose bits are set in mask.
func SchedSetaffinity(mask []byte) Call {
	return sys("sched_setaffinity", unix.SYS_SCHED_SETAFFINITY, Int(0), Int(len(mask)), Bytes(mask).as(FormBits))
}

// IoprioSet sets the caller's I/O priority: ioprio_set(2) with IOPRIO_WHO_PROCESS.
func IoprioSet(class, priority int) Call {
	return sys("ioprio_set", unix.SYS_IOPRIO_SET, flags(1, FormIoprioWho), Int(0), flags(class<<13|priority, FormIoprio))
}

// Personality sets the caller's execution domain.
func Personality(domain uint) Call {
	return sys("personality", unix.SYS_PERSONALITY, flags(domain, FormPersonality))
}

// SetMempolicy sets the caller's NUMA memory policy. The kernel takes one bit less than it is told of.
func SetMempolicy(mode int, nodes []byte) Call {
	if len(nodes) == 0 {
		return sys("set_mempolicy", unix.SYS_SET_MEMPOLICY, flags(mode, FormMempolicy), Null, Int(0))
	}
	return sys("set_mempolicy", unix.SYS_SET_MEMPOLICY, flags(mode, FormMempolicy), Bytes(nodes).as(FormBits), Int(8*len(nodes)+1))
}

var (
	schedPolicies  = []name{{"SCHED_OTHER", 0}, {"SCHED_FIFO", 1}, {"SCHED_RR", 2}, {"SCHED_BATCH", 3}, {"SCHED_ISO", 4}, {"SCHED_IDLE", 5}, {"SCHED_DEADLINE", 6}}
	schedFlags     = []name{{"RESET_ON_FORK", 1}, {"RECLAIM", 2}, {"DL_OVERRUN", 4}, {"KEEP_POLICY", 8}, {"KEEP_PARAMS", 16}, {"UTIL_CLAMP_MIN", 32}, {"UTIL_CLAMP_MAX", 64}}
	ioprioClasses  = []name{{"IOPRIO_CLASS_NONE", 0}, {"IOPRIO_CLASS_RT", 1}, {"IOPRIO_CLASS_BE", 2}, {"IOPRIO_CLASS_IDLE", 3}}
	mempolicyModes = []name{{"MPOL_DEFAULT", 0}, {"MPOL_PREFERRED", 1}, {"MPOL_BIND", 2}, {"MPOL_INTERLEAVE", 3}, {"MPOL_LOCAL", 4}, {"MPOL_PREFERRED_MANY", 5}, {"MPOL_WEIGHTED_INTERLEAVE", 6}}
	mempolicyFlags = []name{{"MPOL_F_NUMA_BALANCING", 1 << 13}, {"MPOL_F_RELATIVE_NODES", 1 << 14}, {"MPOL_F_STATIC_NODES", 1 << 15}}
)

func formatName(b *strings.Builder, v uint64, names []name) {
	for _, n := range names {
		if n.bits == v {
			b.WriteString(n.name)
			return
		}
	}
	fmt.Fprint(b, v)
}

// formatSplit prints what is two things in one number.
func formatSplit(b *strings.Builder, f Form, v uint64) {
	if f == FormIoprio {
		formatName(b, v>>13, ioprioClasses)
		fmt.Fprintf(b, ":%d", v&(1<<13-1))
		return
	}
	formatName(b, v&(1<<13-1), mempolicyModes)
	if v &^= 1<<13 - 1; v != 0 {
		b.WriteByte('|')
		formatFlags(b, v, mempolicyFlags)
	}
}

// formatBits prints a mask as a list of the bits that are set, as the kernel does.
func formatBits(b *strings.Builder, mask []byte) {
	has := func(i int) bool { return i < 8*len(mask) && mask[i/8]&(1<<(i%8)) != 0 }
	b.WriteByte('{')
	sep := ""
	for i := 0; i < 8*len(mask); i++ {
		if !has(i) {
			continue
		}
		first := i
		for has(i + 1) {
			i++
		}
		fmt.Fprintf(b, "%s%d", sep, first)
		if i > first {
			fmt.Fprintf(b, "-%d", i)
		}
		sep = ","
	}
	b.WriteByte('}')
}

func formatSchedAttr(b *strings.Builder, d []byte) {
	word := func(off int) uint64 { return binary.NativeEndian.Uint64(d[off:]) }
	half := func(off int) uint32 { return binary.NativeEndian.Uint32(d[off:]) }
	b.WriteByte('{')
	formatName(b, uint64(half(4)), schedPolicies)
	if f := word(8); f != 0 {
		b.WriteString(", ")
		formatFlags(b, f, schedFlags)
	}
	if n := int32(half(16)); n != 0 {
		fmt.Fprintf(b, ", nice %d", n)
	}
	if p := half(20); p != 0 {
		fmt.Fprintf(b, ", priority %d", p)
	}
	if word(24)|word(32)|word(40) != 0 {
		fmt.Fprintf(b, ", runtime %d, deadline %d, period %d", word(24), word(32), word(40))
	}
	b.WriteByte('}')
}
