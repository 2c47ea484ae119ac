package cgroup

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/rsys-io/rsys/cgroup/systemd"
)

// properties are what systemd is to know of settings. It writes to the files of a scope itself, when the scope
// is made, when a property of it or of a neighbour changes, and on daemon-reload, and would put
// back what it has not been told of. What it has no property for it leaves alone. The names are runc's.
func (c *Cgroup) properties(list []Setting) (props []systemd.Property, err error) {
	var quota, period string // v1 has a file for each
	for _, s := range list {
		var p []systemd.Property
		value := strings.TrimSpace(s.Value)
		switch s.File {
		case "memory.limit_in_bytes":
			p, err = numberProp("MemoryLimit", value)
		case "memory.max", "memory.low", "memory.min", "memory.high", "memory.swap.max":
			p, err = numberProp(map[string]string{"memory.max": "MemoryMax", "memory.low": "MemoryLow", "memory.min": "MemoryMin",
				"memory.high": "MemoryHigh", "memory.swap.max": "MemorySwapMax"}[s.File], value)
		case "pids.max":
			if value == "0" {
				value = "1" // systemd takes no 0
			}
			p, err = numberProp("TasksMax", value)
		case "cpu.shares":
			p, err = numberProp("CPUShares", value)
		case "cpu.weight":
			if !c.scope.idle || !slices.ContainsFunc(list, isIdle) {
				p, err = numberProp("CPUWeight", value)
			}
		case "cpu.idle":
			if isIdle(s) && c.layout.v2 && c.scope.idle {
				p = []systemd.Property{systemd.Prop("CPUWeight", uint64(0))} // systemd 252: idle
			}
		case "cpu.max":
			q, per, _ := strings.Cut(value, " ")
			p, err = cpuQuota(q, strings.TrimSpace(per))
		case "cpu.cfs_quota_us":
			quota = value
		case "cpu.cfs_period_us":
			period = value
		case "cpuset.cpus":
			p, err = bits("AllowedCPUs", value)
		case "cpuset.mems":
			p, err = bits("AllowedMemoryNodes", value)
		case "blkio.weight":
			p, err = numberProp("BlockIOWeight", value)
		case "io.bfq.weight", "io.weight":
			weight := s.Value
			if s.Else != nil {
				weight = s.Else.Value
			}
			if _, notOne := strconv.ParseUint(weight, 10, 64); notOne == nil { // else it is a device's
				p, err = numberProp("IOWeight", weight)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Field, err)
		}
		props = append(props, p...)
	}
	if quota != "" || period != "" {
		if quota == "" {
			quota, _ = read(c.dir("cpu"), "cpu.cfs_quota_us")
		}
		if period == "" {
			period, _ = read(c.dir("cpu"), "cpu.cfs_period_us")
		}
		p, err := cpuQuota(strings.TrimSpace(quota), strings.TrimSpace(period))
		if err != nil {
			return nil, fmt.Errorf("linux.resources.cpu.quota: %w", err)
		}
		props = append(props, p...)
	}
	return props, nil
}

func isIdle(s Setting) bool { return s.File == "cpu.idle" && strings.TrimSpace(s.Value) == "1" }

func numberProp(name, value string) ([]systemd.Property, error) {
	n, err := uint64(math.MaxUint64), error(nil)
	if value != "max" && value != "-1" {
		n, err = strconv.ParseUint(value, 10, 64)
	}
	if err != nil {
		return nil, invalid("%q is not a number", value)
	}
	return []systemd.Property{systemd.Prop(name, n)}, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// defaultPeriod is the kernel's, in microseconds.
const defaultPeriod = 100000

// cpuQuota is systemd's form of a quota: microseconds a second, of which it keeps whole hundredths of a processor.
func cpuQuota(quota, period string) ([]systemd.Property, error) {
	per, perSecond := uint64(defaultPeriod), uint64(math.MaxUint64)
	var err error
	if period != "" && period != "0" {
		if per, err = strconv.ParseUint(period, 10, 64); err != nil || per == 0 {
			return nil, invalid("a period of %q", period)
		}
	}
	if quota != "" && quota != "max" && quota != "-1" && quota != "0" {
		q, err := strconv.ParseUint(quota, 10, 63)
		if err != nil || q > math.MaxUint64/1000000 {
			return nil, invalid("a quota of %q", quota)
		}
		perSecond = wholePercent(q * 1000000 / per)
	}
	return []systemd.Property{systemd.Prop("CPUQuotaPeriodUSec", per), systemd.Prop("CPUQuotaPerSecUSec", perSecond)}, nil
}

func wholePercent(perSecond uint64) uint64 { return (perSecond + 9999) / 10000 * 10000 }

// roundQuotas makes quotas those that systemd can keep, rounded up as runc does it: a file that said
// something else would change with the next daemon-reload.
func roundQuotas(list []Setting) {
	period := ""
	for _, s := range list {
		if s.File == "cpu.cfs_period_us" {
			period = s.Value
		}
	}
	for i, s := range list {
		q := s.Value
		switch s.File {
		case "cpu.max":
			q, period, _ = strings.Cut(s.Value, " ")
		case "cpu.cfs_quota_us":
		default:
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(q), 10, 43)
		if err != nil || n == 0 {
			continue // none
		}
		per := uint64(defaultPeriod)
		if p, err := strconv.ParseUint(strings.TrimSpace(period), 10, 32); err == nil && p > 0 {
			per = p
		}
		v := strconv.FormatUint(wholePercent(n*1000000/per)*per/1000000, 10)
		if s.File == "cpu.max" {
			v += " " + strconv.FormatUint(per, 10)
		}
		list[i].Value = v
	}
}

// bits is a list like 0-3,8 as systemd wants it: a bit for each, the first in the first byte's lowest.
func bits(name, list string) ([]systemd.Property, error) {
	if list == "" {
		return nil, nil
	}
	set := new(big.Int)
	for r := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(r), "-")
		if first == "" && !isRange {
			continue
		}
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || a > b {
			return nil, invalid("%q: systemd takes a list like 0-3,8", list)
		}
		for i := a; i <= b; i++ {
			set.SetBit(set, int(i), 1)
		}
	}
	b := set.Bytes()
	if len(b) == 0 {
		return nil, invalid("%q names none", list)
	}
	slices.Reverse(b)
	return []systemd.Property{systemd.Prop(name, b)}, nil
}

// properties are systemd's of a device list. It can say neither "everything but" nor "any major, minor n". On v2, where our
// own program is attached too and both must agree, it is told nothing then. On v1 there are the same files for both, and
// it writes "everything" to them if it is told nothing: so it is told to allow what it can say, and we write the rest.
func (l *DeviceList) properties(v2 bool) []systemd.Property {
	allow, whole := []systemd.Device{}, !l.AllowAll
	if l.AllowAll && len(l.Exceptions) == 0 {
		return []systemd.Property{systemd.Prop("DeviceAllow", allow), systemd.Prop("DevicePolicy", "auto")}
	}
	for _, e := range l.Exceptions {
		if l.AllowAll {
			break
		}
		kind, dev := "char", systemd.Device{Access: e.Access}
		if e.Type == 'b' {
			kind = "block"
		}
		switch {
		case e.Major == -1 && e.Minor == -1:
			dev.Path = kind + "-*"
		case e.Major == -1:
			whole = false
			continue
		case e.Minor == -1:
			dev.Path = fmt.Sprintf("%s-%d", kind, e.Major)
		default:
			dev.Path = fmt.Sprintf("/dev/%s/%d:%d", kind, e.Major, e.Minor)
		}
		allow = append(allow, dev)
	}
	if v2 && !whole {
		return nil
	}
	return []systemd.Property{
		// The first empties the list.
		systemd.Prop("DeviceAllow", []systemd.Device{}), systemd.Prop("DevicePolicy", "strict"), systemd.Prop("DeviceAllow", allow),
	}
}
