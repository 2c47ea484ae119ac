package cgroup

//lint:file-ignore SA1019 deprecated fields are fields too

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestWhatHasNoEffectIsTold(t *testing.T) {
	r := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Kernel: ptr[int64](1), KernelTCP: ptr[int64](1), Swappiness: ptr[uint64](3), DisableOOMKiller: ptr(true)},
		CPU:    &specs.LinuxCPU{RealtimeRuntime: ptr[int64](5), RealtimePeriod: ptr[uint64](6)},
		BlockIO: &specs.LinuxBlockIO{LeafWeight: ptr[uint16](10), WeightDevice: []specs.LinuxWeightDevice{
			{Weight: ptr[uint16](10)}, {LeafWeight: ptr[uint16](10)}}},
		Network: &specs.LinuxNetwork{ClassID: ptr[uint32](1), Priorities: []specs.LinuxInterfacePriority{{Name: "lo"}}},
	}
	fields := func(v2 bool, r *specs.LinuxResources) string {
		var names []string
		for _, s := range noEffect(v2, r) {
			f, _, ok := strings.Cut(strings.TrimPrefix(s, "linux.resources."), " has no effect: ")
			if !ok {
				t.Errorf("%q gives no reason", s)
			}
			names = append(names, f)
		}
		return strings.Join(names, " ")
	}
	if got, want := fields(true, r), "memory.kernel memory.kernelTCP memory.swappiness memory.disableOOMKiller cpu.realtimeRuntime cpu.realtimePeriod "+
		"blockIO.leafWeight blockIO.weightDevice[1].leafWeight network.classID network.priorities"; got != want {
		t.Errorf("v2: %s\nwant %s", got, want)
	}
	if got, want := fields(false, r), "memory.kernel memory.kernelTCP"; got != want {
		t.Errorf("v1: %s", got)
	}
	// What clients write when nothing is asked for.
	none := &specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: ptr(^uint64(0)), DisableOOMKiller: ptr(false), Kernel: ptr[int64](0)},
		CPU: &specs.LinuxCPU{RealtimeRuntime: ptr[int64](0)}, BlockIO: &specs.LinuxBlockIO{}, Network: &specs.LinuxNetwork{}}
	for _, r := range []*specs.LinuxResources{nil, {}, none} {
		if got := fields(true, r); got != "" {
			t.Errorf("%+v: %s", r, got)
		}
	}
}
