package cgroup

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A Setting is one write to one cgroup file, and the field of the config that asks for it.
type Setting struct {
	Controller string // v1: the hierarchy it is in
	File       string
	Value      string
	Field      string // linux.resources.memory.limit

	// Optional settings are left out where the file does not exist.
	Optional bool
	// Else is written instead where the file does not exist.
	Else *Setting
}

// Settings compiles resources to the writes that set them. It asks the host nothing. Devices are not among them:
// their rules are DeviceRules. The order counts, except that a write that fails with EINVAL is to be tried again after
// the others: some values are only valid together (quota and period, memory and swap), and which has to come first
// depends on what is there.
func Settings(v2 bool, r *specs.LinuxResources) ([]Setting, error) {
	if r == nil {
		return nil, nil
	}
	s := &settings{}
	if v2 {
		if err := s.unified(r); err != nil {
			return nil, err
		}
	} else {
		if err := s.legacy(r); err != nil {
			return nil, err
		}
	}
	return s.list, nil
}

type settings struct{ list []Setting }

func (s *settings) add(field, file, value string) *Setting {
	controller, _, _ := strings.Cut(file, ".")
	s.list = append(s.list, Setting{Controller: controller, File: file, Value: value, Field: "linux.resources." + field})
	return &s.list[len(s.list)-1]
}

// num adds a setting if the field is there and not 0: runc takes 0 for "leave it".
func num[T int64 | uint64 | uint16 | uint32](s *settings, field, file string, v *T) {
	if v != nil && *v != 0 {
		s.add(field, file, fmt.Sprint(*v))
	}
}

func text(s *settings, field, file, v string) {
	if v != "" {
		s.add(field, file, v)
	}
}

func pids(s *settings, r *specs.LinuxResources) {
	if r.Pids == nil || r.Pids.Limit == nil {
		return
	}
	v := "max"
	if l := *r.Pids.Limit; l >= 0 {
		v = strconv.FormatInt(max(l, 1), 10) // 0 means 1: systemd can't say 0
	}
	s.add("pids.limit", "pids.max", v)
}

func rdma(s *settings, r *specs.LinuxResources) {
	for _, dev := range slices.Sorted(maps.Keys(r.Rdma)) {
		l, v := r.Rdma[dev], dev
		if l.HcaHandles != nil {
			v += " hca_handle=" + strconv.FormatUint(uint64(*l.HcaHandles), 10)
		}
		if l.HcaObjects != nil {
			v += " hca_object=" + strconv.FormatUint(uint64(*l.HcaObjects), 10)
		}
		if v != dev {
			s.add("rdma["+dev+"]", "rdma.max", v)
		}
	}
}

func (s *settings) legacy(r *specs.LinuxResources) error {
	if c := r.CPU; c != nil {
		if n := val(c.Shares); n != 0 && (n < minShares || n > maxShares) {
			// The kernel would take the nearest that it has.
			return &FieldError{"linux.resources.cpu.shares", fmt.Sprintf("%d is not in %d to %d", n, minShares, maxShares)}
		}
		text(s, "cpu.cpus", "cpuset.cpus", c.Cpus)
		text(s, "cpu.mems", "cpuset.mems", c.Mems)
		num(s, "cpu.shares", "cpu.shares", c.Shares)
		num(s, "cpu.period", "cpu.cfs_period_us", c.Period)
		num(s, "cpu.quota", "cpu.cfs_quota_us", c.Quota)
		if c.Burst != nil {
			s.add("cpu.burst", "cpu.cfs_burst_us", strconv.FormatUint(*c.Burst, 10)).Optional = true
		}
		if c.Idle != nil {
			s.add("cpu.idle", "cpu.idle", strconv.FormatInt(*c.Idle, 10))
		}
		num(s, "cpu.realtimePeriod", "cpu.rt_period_us", c.RealtimePeriod)
		num(s, "cpu.realtimeRuntime", "cpu.rt_runtime_us", c.RealtimeRuntime)
	}
	if m := r.Memory; m != nil {
		num(s, "memory.limit", "memory.limit_in_bytes", m.Limit)
		num(s, "memory.swap", "memory.memsw.limit_in_bytes", m.Swap)
		if val(m.Limit) == -1 && val(m.Swap) == 0 {
			// No limit on memory and nothing said of swap: none on both.
			s.add("memory.limit", "memory.memsw.limit_in_bytes", "-1").Optional = true
		}
		num(s, "memory.reservation", "memory.soft_limit_in_bytes", m.Reservation)
		if val(m.DisableOOMKiller) {
			s.add("memory.disableOOMKiller", "memory.oom_control", "1")
		}
		if m.Swappiness != nil && int64(*m.Swappiness) != -1 {
			s.add("memory.swappiness", "memory.swappiness", strconv.FormatUint(*m.Swappiness, 10))
		}
	}
	pids(s, r)
	if b := r.BlockIO; b != nil {
		weight := func(field, file, value string) {
			w := s.add(field, "blkio."+file, value)
			other := *w
			other.File = "blkio.bfq." + file
			w.Else = &other
		}
		if val(b.Weight) != 0 {
			weight("blockIO.weight", "weight", fmt.Sprint(*b.Weight))
		}
		num(s, "blockIO.leafWeight", "blkio.leaf_weight", b.LeafWeight)
		for i, d := range b.WeightDevice {
			f := fmt.Sprintf("blockIO.weightDevice[%d]", i)
			if val(d.Weight) != 0 {
				weight(f, "weight_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight))
			}
			if val(d.LeafWeight) != 0 {
				s.add(f, "blkio.leaf_weight_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.LeafWeight))
			}
		}
		throttle(b, func(field, v1, _ string, d specs.LinuxThrottleDevice) {
			s.add(field, v1, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate))
		})
	}
	for i, h := range r.HugepageLimits {
		f, v := fmt.Sprintf("hugepageLimits[%d]", i), strconv.FormatUint(h.Limit, 10)
		s.add(f, "hugetlb."+h.Pagesize+".limit_in_bytes", v)
		s.add(f, "hugetlb."+h.Pagesize+".rsvd.limit_in_bytes", v).Optional = true
	}
	if n := r.Network; n != nil {
		num(s, "network.classID", "net_cls.classid", n.ClassID)
		for i, p := range n.Priorities {
			s.add(fmt.Sprintf("network.priorities[%d]", i), "net_prio.ifpriomap", fmt.Sprintf("%s %d", p.Name, p.Priority))
		}
	}
	rdma(s, r)
	return nil
}

// MIN_SHARES and MAX_SHARES of the kernel's kernel/sched/sched.h.
const (
	minShares = 2
	maxShares = 1 << 18
)

func throttle(b *specs.LinuxBlockIO, f func(field, v1, v2 string, d specs.LinuxThrottleDevice)) {
	for _, k := range []struct {
		field, v1, v2 string
		devices       []specs.LinuxThrottleDevice
	}{
		{"throttleReadBpsDevice", "read_bps", "rbps", b.ThrottleReadBpsDevice},
		{"throttleWriteBpsDevice", "write_bps", "wbps", b.ThrottleWriteBpsDevice},
		{"throttleReadIOPSDevice", "read_iops", "riops", b.ThrottleReadIOPSDevice},
		{"throttleWriteIOPSDevice", "write_iops", "wiops", b.ThrottleWriteIOPSDevice},
	} {
		for i, d := range k.devices {
			f(fmt.Sprintf("blockIO.%s[%d]", k.field, i), "blkio.throttle."+k.v1+"_device", k.v2, d)
		}
	}
}

func (s *settings) unified(r *specs.LinuxResources) error {
	pids(s, r)
	if m := r.Memory; m != nil {
		limit, swap := val(m.Limit), val(m.Swap)
		v := ""
		switch {
		case limit == -1 && swap == 0, swap == -1:
			v = "max"
		case swap == 0:
		case limit == -1:
			v = strconv.FormatInt(swap, 10)
		case limit == 0:
			return &FieldError{"linux.resources.memory.swap", "can't be set without memory.limit"}
		case swap < limit:
			return &FieldError{"linux.resources.memory.swap", "is memory and swap together, and must not be less than memory.limit"}
		default:
			v = strconv.FormatInt(swap-limit, 10)
		}
		if v != "" {
			// On a host without swap "none" and "no limit" need no file.
			s.add("memory.swap", "memory.swap.max", v).Optional = v == "max" || v == "0"
		}
		if limit != 0 {
			s.add("memory.limit", "memory.max", orMax(limit))
		}
		if res := val(m.Reservation); res != 0 {
			s.add("memory.reservation", "memory.low", orMax(res))
		}
	}
	if b := r.BlockIO; b != nil {
		if w := val(b.Weight); w != 0 {
			x := s.add("blockIO.weight", "io.bfq.weight", fmt.Sprint(w))
			other := *x
			other.File, other.Value = "io.weight", strconv.FormatUint(1+(uint64(w)-10)*9999/990, 10)
			x.Else = &other
		}
		for i, d := range b.WeightDevice {
			if val(d.Weight) != 0 {
				s.add(fmt.Sprintf("blockIO.weightDevice[%d]", i), "io.bfq.weight", fmt.Sprintf("%d:%d %d\n", d.Major, d.Minor, *d.Weight)).Optional = true
			}
		}
		throttle(b, func(field, _, v2 string, d specs.LinuxThrottleDevice) {
			s.add(field, "io.max", fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, v2, d.Rate))
		})
	}
	if c := r.CPU; c != nil {
		if c.Idle != nil {
			s.add("cpu.idle", "cpu.idle", strconv.FormatInt(*c.Idle, 10))
		}
		if val(c.Shares) != 0 {
			s.add("cpu.shares", "cpu.weight", strconv.FormatUint(weight(*c.Shares), 10))
		}
		if c.Burst != nil {
			s.add("cpu.burst", "cpu.max.burst", strconv.FormatUint(*c.Burst, 10))
		}
		if quota, period := val(c.Quota), val(c.Period); quota != 0 || period != 0 {
			q := "max"
			if quota > 0 {
				q = strconv.FormatInt(quota, 10)
			}
			field := "cpu.quota"
			if quota == 0 {
				field = "cpu.period"
			}
			s.add(field, "cpu.max", q+" "+strconv.FormatUint(cmp.Or(period, 100000), 10))
		}
		text(s, "cpu.cpus", "cpuset.cpus", c.Cpus)
		text(s, "cpu.mems", "cpuset.mems", c.Mems)
	}
	for i, h := range r.HugepageLimits {
		f, v := fmt.Sprintf("hugepageLimits[%d]", i), strconv.FormatUint(h.Limit, 10)
		s.add(f, "hugetlb."+h.Pagesize+".max", v)
		s.add(f, "hugetlb."+h.Pagesize+".rsvd.max", v).Optional = true
	}
	rdma(s, r)
	for _, k := range slices.Sorted(maps.Keys(r.Unified)) {
		for line := range strings.Lines(r.Unified[k]) {
			s.add("unified["+k+"]", k, line)
		}
		if r.Unified[k] == "" {
			s.add("unified["+k+"]", k, "")
		}
	}
	return nil
}

// weight is cpu.weight for cpu.shares: the curve through (2, 1), (1024, 100) and (262144, 10000) that runc 1.3 came to.
func weight(shares uint64) uint64 {
	switch {
	case shares <= minShares:
		return 1
	case shares >= maxShares:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612.0-7.0/34.0)))
}

func orMax(v int64) string {
	if v == -1 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

func val[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
