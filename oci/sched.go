package oci

import (
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// include/uapi/linux/sched.h
var schedPolicies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3,
	specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: schedDeadline,
}

var schedFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: schedResetOnFork, specs.SchedFlagReclaim: 0x02, specs.SchedFlagDLOverrun: 0x04,
	specs.SchedFlagKeepPolicy: 0x08, specs.SchedFlagKeepParams: 0x10,
	specs.SchedFlagUtilClampMin: 0x20, specs.SchedFlagUtilClampMax: 0x40,
}

const (
	schedDeadline    = 6
	schedResetOnFork = 0x01

	maxPriority = 99   // MAX_RT_PRIO - 1
	minRuntime  = 1024 // 1 << DL_SCALE
)

// include/uapi/linux/ioprio.h
var ioprioClasses = map[specs.IOPriorityClass]int{
	specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3,
}

// include/uapi/linux/personality.h
var personalities = map[specs.LinuxPersonalityDomain]uint{specs.PerLinux: 0, specs.PerLinux32: 8}

// include/uapi/linux/mempolicy.h
var (
	mempolicyModes = map[specs.MemoryPolicyModeType]int{
		specs.MpolDefault: 0, specs.MpolPreferred: 1, specs.MpolBind: 2, specs.MpolInterleave: 3,
		specs.MpolLocal: 4, specs.MpolPreferredMany: 5, specs.MpolWeightedInterleave: 6,
	}
	mempolicyFlags = map[specs.MemoryPolicyFlagType]int{
		specs.MpolFNumaBalancing: 1 << 13, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFStaticNodes: 1 << 15,
	}
)

const (
	maxCPUs  = 8192 // CONFIG_NR_CPUS at its largest
	maxNodes = 1024 // MAX_NUMNODES at its largest
)

// bitList reads a list such as "0-3,7", as cpuset(7) has it under "List format", into a mask of whole words; nil if it is empty.
func bitList(list string, limit int) ([]byte, bool) {
	if list == "" {
		return nil, true
	}
	var mask []byte
	for r := range strings.SplitSeq(list, ",") {
		// Between two commas, and before or after one, there may be nothing, as in runc.
		if r = strings.TrimSpace(r); r == "" {
			continue
		}
		from, to, isRange := strings.Cut(r, "-")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || last < first || last >= uint64(limit) {
			return nil, false
		}
		if need := (int(last)/64 + 1) * 8; need > len(mask) {
			mask = append(mask, make([]byte, need-len(mask))...)
		}
		for i := first; i <= last; i++ {
			mask[i/8] |= 1 << (i % 8)
		}
	}
	return mask, mask != nil
}

// validateScheduling checks what the process's share of the machine depends on, with what runc refuses refused.
func validateScheduling(p *specs.Process) error {
	if s := p.Scheduler; s != nil {
		if err := validateScheduler(s); err != nil {
			return err
		}
	}
	if o := p.IOPriority; o != nil {
		if _, ok := ioprioClasses[o.Class]; !ok {
			return invalid("process.ioPriority.class", "%q is not a class", o.Class)
		}
		if o.Priority < 0 || o.Priority > 7 {
			return invalid("process.ioPriority.priority", "%d is not in [0, 7]", o.Priority)
		}
	}
	if a := p.ExecCPUAffinity; a != nil {
		for _, f := range [...][2]string{{"initial", a.Initial}, {"final", a.Final}} {
			if _, ok := bitList(f[1], maxCPUs); !ok {
				return invalid("process.execCPUAffinity."+f[0], "%q is not a list of CPUs", f[1])
			}
		}
	}
	return nil
}

func validateScheduler(s *specs.Scheduler) error {
	const field = "process.scheduler."
	if _, ok := schedPolicies[s.Policy]; !ok {
		return invalid(field+"policy", "%q is not a policy", s.Policy)
	}
	for i, f := range s.Flags {
		if _, ok := schedFlags[f]; !ok {
			return invalid(item(field+"flags", i), "%q is not a flag", f)
		}
	}
	realtime := s.Policy == specs.SchedFIFO || s.Policy == specs.SchedRR
	switch {
	case s.Policy == specs.SchedISO:
		return invalid(field+"policy", "%s is a name that Linux has no policy for", s.Policy)
	case s.Nice < -20 || s.Nice > 19:
		return invalid(field+"nice", "%d is not in [-20, 19]", s.Nice)
	case s.Priority < 0 || s.Priority != 0 && !realtime:
		return invalid(field+"priority", "%d for %s", s.Priority, s.Policy)
	case realtime && (s.Priority < 1 || s.Priority > maxPriority):
		return invalid(field+"priority", "%d is not in [1, %d], for %s", s.Priority, maxPriority, s.Policy)
	case s.Policy != specs.SchedDeadline && s.Runtime|s.Deadline|s.Period != 0:
		return invalid(field+"runtime", "with deadline and period only for %s", specs.SchedDeadline)
	case s.Policy == specs.SchedDeadline:
		return validateDeadline(s)
	}
	return nil
}

// validateDeadline refuses what __checkparam_dl of the kernel's kernel/sched/deadline.c does whatever the host's limits of the period are.
func validateDeadline(s *specs.Scheduler) error {
	const field = "process.scheduler."
	period := s.Period
	if period == 0 {
		period = s.Deadline
	}
	switch {
	case s.Deadline == 0 || s.Deadline > math.MaxInt64:
		return invalid(field+"deadline", "%d ns, for %s", s.Deadline, s.Policy)
	case s.Runtime < minRuntime || s.Runtime > s.Deadline:
		return invalid(field+"runtime", "%d ns is not in [%d, deadline %d]", s.Runtime, minRuntime, s.Deadline)
	case period < s.Deadline || period > math.MaxInt64:
		return invalid(field+"period", "%d ns is less than the deadline, %d", period, s.Deadline)
	}
	return nil
}

func validatePersonality(p *specs.LinuxPersonality) error {
	if p == nil {
		return nil
	}
	if _, ok := personalities[p.Domain]; !ok {
		return invalid("linux.personality.domain", "%q is not a domain", p.Domain)
	}
	return nil
}

func validateMemoryPolicy(m *specs.LinuxMemoryPolicy) error {
	if m == nil {
		return nil
	}
	const field = "linux.memoryPolicy."
	if _, ok := mempolicyModes[m.Mode]; !ok {
		return invalid(field+"mode", "%q is not a mode", m.Mode)
	}
	for i, f := range m.Flags {
		if _, ok := mempolicyFlags[f]; !ok {
			return invalid(item(field+"flags", i), "%q is not a flag", f)
		}
	}
	nodes, ok := bitList(m.Nodes, maxNodes)
	if !ok {
		return invalid(field+"nodes", "%q is not a list of nodes", m.Nodes)
	}
	switch m.Mode {
	case specs.MpolDefault, specs.MpolLocal:
		if nodes != nil {
			return invalid(field+"nodes", "not for %s", m.Mode)
		}
	case specs.MpolPreferred:
	default:
		if nodes == nil {
			return invalid(field+"nodes", "missing, for %s", m.Mode)
		}
	}
	return validateMemoryPolicyFlags(m, nodes == nil)
}

// validateMemoryPolicyFlags refuses what sanitize_mpol_flags and mpol_new of the kernel's mm/mempolicy.c do.
func validateMemoryPolicyFlags(m *specs.LinuxMemoryPolicy, noNodes bool) error {
	has := func(f specs.MemoryPolicyFlagType) bool { return slices.Contains(m.Flags, f) }
	relative, static := has(specs.MpolFRelativeNodes), has(specs.MpolFStaticNodes)
	const field = "linux.memoryPolicy.flags"
	switch {
	case relative && static:
		return invalid(field, "%s and %s exclude each other", specs.MpolFRelativeNodes, specs.MpolFStaticNodes)
	case (relative || static) && (m.Mode == specs.MpolLocal || m.Mode == specs.MpolPreferred && noNodes):
		return invalid(field, "%v for %s without nodes", m.Flags, m.Mode)
	case has(specs.MpolFNumaBalancing) && m.Mode != specs.MpolBind && m.Mode != specs.MpolPreferredMany:
		return invalid(field, "%s for %s", specs.MpolFNumaBalancing, m.Mode)
	}
	return nil
}

// anyCPU is a mask of all CPUs. The kernel leaves those out that are not there, or not in the cpuset.
var anyCPU = func() []byte {
	mask := make([]byte, maxCPUs/8)
	for i := range mask {
		mask[i] = 0xff
	}
	return mask
}()

// affinityBefore is the affinity of what is executed before it comes into the container's cgroup: execCPUAffinity.initial. A
// process that was born in the cgroup can't leave its CPUs, which is as good: it has never been on others.
func (c *compiler) affinityBefore() {
	if a := c.proc.ExecCPUAffinity; c.exec && a != nil {
		if mask, _ := bitList(a.Initial, maxCPUs); mask != nil {
			c.at("process.execCPUAffinity.initial", a.Initial)
			if set := call.SchedSetaffinity(mask); c.host.CgroupV2 {
				c.try(set, call.Tolerate(unix.EINVAL))
			} else {
				c.do(set)
			}
		}
	}
}

// affinityAfter is the affinity in the cgroup. If nothing is asked for it is the cgroup's CPUs, and not
// those that the shim was given, as with runc.
func (c *compiler) affinityAfter() {
	if a := c.proc.ExecCPUAffinity; c.exec && a != nil && strings.TrimSpace(a.Initial+a.Final) != "" {
		if mask, _ := bitList(a.Final, maxCPUs); mask != nil {
			c.at("process.execCPUAffinity.final", a.Final)
			c.do(call.SchedSetaffinity(mask))
		}
		return
	}
	c.at("linux.resources.cpu.cpus", "")
	c.try(call.SchedSetaffinity(anyCPU), call.Ignore)
}

// scheduling is what takes privileges to be set. What is cloned of the process inherits it.
func (c *compiler) scheduling() {
	if s := c.proc.Scheduler; s != nil {
		c.at("process.scheduler", string(s.Policy))
		a := call.SchedAttr{
			Policy: schedPolicies[s.Policy], Nice: s.Nice, Priority: uint32(s.Priority),
			Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period,
		}
		for _, f := range s.Flags {
			a.Flags |= schedFlags[f]
		}
		c.do(call.SchedSetattr(a))
	}
	if o := c.proc.IOPriority; o != nil {
		c.at("process.ioPriority", string(o.Class))
		c.do(call.IoprioSet(ioprioClasses[o.Class], o.Priority))
	}
	if p := c.spec.Linux.Personality; p != nil {
		c.at("linux.personality", string(p.Domain))
		for _, f := range p.Flags {
			c.Warnings = append(c.Warnings, "linux.personality.flags: "+string(f)+" is not known, and ignored")
		}
		c.do(call.Personality(personalities[p.Domain]))
	}
	if m := c.spec.Linux.MemoryPolicy; m != nil {
		c.at("linux.memoryPolicy", string(m.Mode))
		mode := mempolicyModes[m.Mode]
		for _, f := range m.Flags {
			mode |= mempolicyFlags[f]
		}
		nodes, _ := bitList(m.Nodes, maxNodes)
		c.do(call.SetMempolicy(mode, nodes))
	}
}

// lostAtBirth is what of the scheduling a process would not inherit that is cloned; sched(7), "Resetting scheduling
// policy for child processes" and "SCHED_DEADLINE".
func (c *compiler) lostAtBirth() string {
	s := c.proc.Scheduler
	if s == nil {
		return ""
	}
	if s.Policy == specs.SchedDeadline {
		return string(s.Policy)
	}
	for _, f := range s.Flags {
		if f == specs.SchedFlagResetOnFork {
			return string(f)
		}
	}
	return ""
}
