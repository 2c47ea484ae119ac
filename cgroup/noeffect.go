package cgroup

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// NoEffect tells which of the resources asked for have no effect on this host, and why: fields that this version of
// cgroups has no file for. runc passes over them without a word.
func (c *Cgroup) NoEffect() []string { return noEffect(c.layout.v2, c.resources) }

func noEffect(v2 bool, r *specs.LinuxResources) (list []string) {
	if r == nil {
		return nil
	}
	add := func(asked bool, field, why string) {
		if asked {
			list = append(list, "linux.resources."+field+" has no effect: "+why)
		}
	}
	const onlyV1 = "cgroup v2 has no such limit"
	if m := r.Memory; m != nil {
		const gone = "it is deprecated, and ignored as in runc"
		//lint:ignore SA1019 that it is deprecated is what is told
		add(val(m.Kernel) != 0, "memory.kernel", gone)
		add(val(m.KernelTCP) != 0, "memory.kernelTCP", gone)
		add(v2 && m.Swappiness != nil && int64(*m.Swappiness) != -1, "memory.swappiness", onlyV1)
		add(v2 && val(m.DisableOOMKiller), "memory.disableOOMKiller", onlyV1)
	}
	if !v2 {
		return list
	}
	if p := r.CPU; p != nil {
		add(val(p.RealtimeRuntime) != 0, "cpu.realtimeRuntime", onlyV1)
		add(val(p.RealtimePeriod) != 0, "cpu.realtimePeriod", onlyV1)
	}
	if b := r.BlockIO; b != nil {
		add(val(b.LeafWeight) != 0, "blockIO.leafWeight", onlyV1)
		for i, d := range b.WeightDevice {
			add(val(d.LeafWeight) != 0, fmt.Sprintf("blockIO.weightDevice[%d].leafWeight", i), onlyV1)
		}
	}
	if n := r.Network; n != nil {
		add(val(n.ClassID) != 0, "network.classID", onlyV1)
		add(len(n.Priorities) > 0, "network.priorities", onlyV1)
	}
	return list
}
