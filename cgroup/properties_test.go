package cgroup

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rsys-io/rsys/cgroup/systemd"
)

func told(props []systemd.Property) string {
	var list []string
	for _, p := range props {
		list = append(list, fmt.Sprintf("%s=%s:%v", p.Name, p.Value.Signature(), p.Value.Value()))
	}
	return strings.Join(list, " ")
}

func TestSystemdIsToldOfWhatItCouldWrite(t *testing.T) {
	const infinity = "18446744073709551615"
	for _, x := range []struct {
		name string
		v2   bool
		r    specs.LinuxResources
		want string
	}{
		{"memory", true, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](64), Swap: ptr[int64](100), Reservation: ptr[int64](32)}},
			"MemorySwapMax=t:36 MemoryMax=t:64 MemoryLow=t:32"},
		{"no limit of memory", true, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](-1)}}, "MemorySwapMax=t:" + infinity + " MemoryMax=t:" + infinity},
		{"memory, v1", false, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](64)}}, "MemoryLimit=t:64"},
		{"no limit of memory, v1", false, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](-1)}}, "MemoryLimit=t:" + infinity},
		{"pids", true, specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](7)}}, "TasksMax=t:7"},
		{"no limit of pids", true, specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](-1)}}, "TasksMax=t:" + infinity},
		{"a quota", true, specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](50000)}}, "CPUQuotaPeriodUSec=t:100000 CPUQuotaPerSecUSec=t:500000"},
		{"a quota that is no whole percent", true, specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](12345), Period: ptr[uint64](50000)}},
			"CPUQuotaPeriodUSec=t:50000 CPUQuotaPerSecUSec=t:250000"},
		{"a quota, v1", false, specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](12345), Period: ptr[uint64](50000)}},
			"CPUQuotaPeriodUSec=t:50000 CPUQuotaPerSecUSec=t:250000"},
		{"no quota", true, specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](-1)}}, "CPUQuotaPeriodUSec=t:100000 CPUQuotaPerSecUSec=t:" + infinity},
		{"shares", true, specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr[uint64](1024)}}, "CPUWeight=t:100"},
		{"shares, v1", false, specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr[uint64](1024)}}, "CPUShares=t:1024"},
		{"idle", true, specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr[uint64](1024), Idle: ptr[int64](1)}}, "CPUWeight=t:0"},
		{"not idle", true, specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr[uint64](1024), Idle: ptr[int64](0)}}, "CPUWeight=t:100"},
		{"processors", true, specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "1,3-4, 9", Mems: "0"}}, "AllowedCPUs=ay:[26 2] AllowedMemoryNodes=ay:[1]"},
		{"block I/O", true, specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr[uint16](100), WeightDevice: []specs.LinuxWeightDevice{func() (d specs.LinuxWeightDevice) {
			d.Major, d.Weight = 8, ptr[uint16](20)
			return d
		}()}}}, "IOWeight=t:910"},
		{"block I/O, v1", false, specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr[uint16](100)}}, "BlockIOWeight=t:100"},
		{"unified", true, specs.LinuxResources{Unified: map[string]string{
			"cpu.max": "max 200000", "cpu.weight": "7", "cpuset.cpus": "0", "memory.high": "max", "memory.min": "5", "pids.max": "0", "hugetlb.2MB.max": "0", "memory.oom.group": "1"}},
			"CPUQuotaPeriodUSec=t:200000 CPUQuotaPerSecUSec=t:" + infinity + " CPUWeight=t:7 AllowedCPUs=ay:[1] MemoryHigh=t:" + infinity + " MemoryMin=t:5 TasksMax=t:1"},
	} {
		t.Run(x.name, func(t *testing.T) {
			list, err := Settings(x.v2, &x.r)
			if err != nil {
				t.Fatal(err)
			}
			roundQuotas(list)
			c := &Cgroup{layout: &layout{v2: x.v2}, scope: &scope{idle: true}}
			props, err := c.properties(list)
			if got := told(props); err != nil || got != x.want {
				t.Errorf("got %s, %v\nwant %s", got, err, x.want)
			}
		})
	}
	for name, r := range map[string]specs.LinuxResources{
		"linux.resources.cpu.cpus":              {CPU: &specs.LinuxCPU{Cpus: "0-6:2/3"}},
		"linux.resources.unified[memory.max]":   {Unified: map[string]string{"memory.max": "1G"}},
		"linux.resources.unified[cpuset.cpus]":  {Unified: map[string]string{"cpuset.cpus": "3-1"}},
		"linux.resources.unified[cpu.max]":      {Unified: map[string]string{"cpu.max": "many"}},
		"linux.resources.unified[memory.low]":   {Unified: map[string]string{"memory.low": "x"}},
		"linux.resources.unified[cpuset.mems]":  {Unified: map[string]string{"cpuset.mems": "a"}},
		"linux.resources.unified[pids.max]":     {Unified: map[string]string{"pids.max": "-5"}},
		"linux.resources.unified[cpu.weight]":   {Unified: map[string]string{"cpu.weight": "heavy"}},
		"linux.resources.unified[memory.high]":  {Unified: map[string]string{"memory.high": "high"}},
		"linux.resources.unified[memory.swap.m": {Unified: map[string]string{"memory.swap.max": ""}},
	} {
		list, err := Settings(true, &r)
		if err != nil {
			t.Fatal(err)
		}
		c := &Cgroup{layout: &layout{v2: true}, scope: &scope{}}
		if p, err := c.properties(list); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, told(p), err)
		}
	}
}

func TestTheQuotaInTheFileIsTheOneThatSystemdKeeps(t *testing.T) {
	for _, x := range []struct{ file, value, period, want string }{
		{"cpu.max", "12345 50000", "", "12500 50000"},
		{"cpu.max", "50000 100000", "", "50000 100000"},
		{"cpu.max", "max 100000", "", "max 100000"},
		{"cpu.max", "1001", "", "2000 100000"},
		{"cpu.cfs_quota_us", "12345", "50000", "12500"},
		{"cpu.cfs_quota_us", "-1", "50000", "-1"},
	} {
		list := []Setting{{File: x.file, Value: x.value}}
		if x.period != "" {
			list = append(list, Setting{File: "cpu.cfs_period_us", Value: x.period})
		}
		if roundQuotas(list); list[0].Value != x.want {
			t.Errorf("%s %s: %s, want %s", x.file, x.value, list[0].Value, x.want)
		}
	}
}

func TestSystemdIsToldOfDevicesWhatItCanSay(t *testing.T) {
	list := func(d ...specs.LinuxDeviceCgroup) *DeviceList {
		l, err := DeviceRules(&specs.LinuxResources{Devices: d})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	usual := told(list().properties(true))
	for _, want := range []string{"DeviceAllow=a(ss):[] DevicePolicy=s:strict DeviceAllow=a(ss):[", "{char-* m}", "{block-* m}", "{/dev/char/1:3 rwm}", "{char-136 rwm}"} {
		if !strings.Contains(usual, want) {
			t.Errorf("by default %s, which is without %s", usual, want)
		}
	}
	if v1 := told(list().properties(false)); v1 != usual {
		t.Errorf("on v1 %s", v1)
	}
	all := specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"}
	if got := told(list(all).properties(true)); got != "DeviceAllow=a(ss):[] DevicePolicy=s:auto" {
		t.Errorf("everything allowed: %s", got)
	}
	minor := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Minor: ptr[int64](5), Access: "r"}
	but := specs.LinuxDeviceCgroup{Type: "b", Major: ptr[int64](8), Minor: ptr[int64](0), Access: "rwm"}
	for name, l := range map[string]*DeviceList{"any major": list(minor), "everything but one": list(all, but)} {
		if got := l.properties(true); got != nil {
			t.Errorf("%s, v2: %s", name, told(got))
		}
		if got := told(l.properties(false)); !strings.Contains(got, "DevicePolicy=s:strict") || strings.Contains(got, "8:0") || strings.Contains(got, "*:5") {
			t.Errorf("%s, v1: %s", name, got)
		}
	}
}
