package cgroup

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// complete adds to an update what the v2 files need and the update leaves as it is: v2 has quota and period in one
// file, and swap without memory where the spec counts both.
func (c *Cgroup) complete(r *specs.LinuxResources) (*specs.LinuxResources, error) {
	dir, out := c.dirs[0], *r
	if r.CPU != nil && (val(r.CPU.Quota) == 0) != (val(r.CPU.Period) == 0) {
		old, err := read(dir, "cpu.max")
		if err != nil {
			return nil, fmt.Errorf("linux.resources.cpu.quota: %w", err)
		}
		cpu := *r.CPU
		quota, period, _ := strings.Cut(strings.TrimSpace(old), " ")
		if val(cpu.Quota) == 0 {
			q := int64(-1)
			if quota != "max" {
				q, _ = strconv.ParseInt(quota, 10, 64)
			}
			cpu.Quota = &q
		} else {
			p, _ := strconv.ParseUint(period, 10, 64)
			cpu.Period = &p
		}
		out.CPU = &cpu
	}
	if m := r.Memory; m != nil {
		if val(m.Swap) > 0 && val(m.Limit) == 0 {
			old, err := read(dir, "memory.max")
			if err != nil {
				return nil, fmt.Errorf("linux.resources.memory.swap: %w", err)
			}
			l := int64(-1)
			if old = strings.TrimSpace(old); old != "max" {
				l, _ = strconv.ParseInt(old, 10, 64)
			}
			memory := *m
			memory.Limit = &l
			out.Memory = &memory
		}
		if val(m.CheckBeforeUpdate) {
			if s, err := read(dir, "memory.current"); err == nil {
				used, _ := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
				for field, v := range map[string]int64{"swap": val(m.Swap), "limit": val(m.Limit)} {
					if v > 0 && v <= used {
						return nil, &FieldError{"linux.resources.memory." + field, fmt.Sprintf("%d is less than the %d in use (checkBeforeUpdate)", v, used)}
					}
				}
			}
		}
	}
	return &out, nil
}
