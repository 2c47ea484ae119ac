package cgroup

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// A FieldError is a config that no host could accept.
type FieldError struct {
	Field  string // linux.resources.memory.limit
	Reason string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// Unwrap says of what kind the error is.
func (e *FieldError) Unwrap() error { return errdefs.ErrInvalidArgument }

// A HostError is a config that this host can't do, or not now.
type HostError struct {
	err  error
	kind error // of errdefs
}

func (e *HostError) Error() string { return e.err.Error() }

// Unwrap gives what happened, and of what kind that is.
func (e *HostError) Unwrap() []error { return []error{e.err, e.kind} }

// Validate finds what is wrong with a config whatever the host: what the host lacks is an error of New or Create. It
// asks the host nothing. What runc accepts it accepts, unless the kernel would refuse it later with a bare EINVAL.
func Validate(cfg Config) error {
	if cfg.Systemd {
		if _, err := newScope(cfg); err != nil {
			return err
		}
		return validateResources(cfg.Resources)
	}
	if cfg.Path == "" && (cfg.ID == "" || cfg.ID == "." || cfg.ID == ".." || strings.ContainsAny(cfg.ID, "/\x00\n")) {
		return &FieldError{"id", fmt.Sprintf("%q can't be the name of a cgroup", cfg.ID)}
	}
	if strings.ContainsAny(cfg.Path, "\x00\n") {
		return &FieldError{"linux.cgroupsPath", fmt.Sprintf("%q contains a character that no cgroup's path can", cfg.Path)}
	}
	if p := clean(cfg); p == "/" || p == "." {
		return &FieldError{"linux.cgroupsPath", fmt.Sprintf("%q is the root of the hierarchies, not a container's cgroup", cfg.Path)}
	}
	for e := range strings.SplitSeq(cfg.Path, "/") {
		if len(e) > 255 {
			return &FieldError{"linux.cgroupsPath", "has an element longer than 255 bytes"}
		}
	}
	return validateResources(cfg.Resources)
}

// systemdPath says that a cgroupsPath has the form slice:prefix:name, which who uses systemd's cgroup driver gives. As a directory's name,
// which it is to runc without the option, it would be outside of everything that limits the pod.
func systemdPath(path string) bool {
	slice, rest, _ := strings.Cut(path, ":")
	return (slice == "" || strings.HasSuffix(slice, ".slice")) && strings.Count(rest, ":") == 1 && !strings.Contains(path, "/")
}

func validateResources(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	bad := func(field, reason string, args ...any) error {
		return &FieldError{"linux.resources." + field, fmt.Sprintf(reason, args...)}
	}
	if m := r.Memory; m != nil {
		for _, x := range []struct {
			field string
			v     *int64
		}{{"limit", m.Limit}, {"reservation", m.Reservation}, {"swap", m.Swap}} {
			if val(x.v) < -1 {
				return bad("memory."+x.field, "%d is negative (only -1, no limit, may be)", *x.v)
			}
		}
		if l, s := val(m.Limit), val(m.Swap); l > 0 && s > 0 && s < l {
			return bad("memory.swap", "%d is memory and swap together, and less than memory.limit %d", s, l)
		}
		if m.Swappiness != nil && int64(*m.Swappiness) != -1 && *m.Swappiness > 100 {
			return bad("memory.swappiness", "%d is not in 0 to 100", *m.Swappiness)
		}
	}
	if c := r.CPU; c != nil {
		if q := val(c.Quota); q > 0 && q < 1000 {
			return bad("cpu.quota", "%d: must be at least 1000 us, or negative for no limit", q)
		}
		if p := val(c.Period); p != 0 && (p < 1000 || p > 1000000) {
			return bad("cpu.period", "%d us is not in 1000 to 1000000", p)
		}
		if c.Idle != nil && *c.Idle != 0 && *c.Idle != 1 {
			return bad("cpu.idle", "%d is neither 0 nor 1", *c.Idle)
		}
		if rt := val(c.RealtimeRuntime); rt < -1 {
			return bad("cpu.realtimeRuntime", "%d is negative", rt)
		}
		for field, list := range map[string]string{"cpu.cpus": c.Cpus, "cpu.mems": c.Mems} {
			if i := strings.IndexFunc(list, func(c rune) bool { return !strings.ContainsRune("0123456789,-:/^ \n", c) }); i >= 0 && list != "all" {
				return bad(field, "%q is not a list like 0-3,8", list)
			}
		}
	}
	if b := r.BlockIO; b != nil {
		if w := val(b.Weight); w != 0 && (w < 10 || w > 1000) {
			return bad("blockIO.weight", "%d is not in 10 to 1000", w)
		}
		if w := val(b.LeafWeight); w != 0 && (w < 10 || w > 1000) {
			return bad("blockIO.leafWeight", "%d is not in 10 to 1000", w)
		}
		if err := validateBlockDevices(b); err != nil {
			return err
		}
		for i, d := range b.WeightDevice {
			for _, w := range []uint16{val(d.Weight), val(d.LeafWeight)} {
				if w != 0 && (w < 10 || w > 1000) {
					return bad(fmt.Sprintf("blockIO.weightDevice[%d]", i), "weight %d is not in 10 to 1000", w)
				}
			}
		}
	}
	for i, h := range r.HugepageLimits {
		n := strings.TrimRight(h.Pagesize, "KMGB")
		if _, err := strconv.ParseUint(n, 10, 32); err != nil || !slices.Contains([]string{"KB", "MB", "GB"}, h.Pagesize[len(n):]) {
			return bad(fmt.Sprintf("hugepageLimits[%d].pageSize", i), "%q is not a size like 2MB", h.Pagesize)
		}
	}
	if n := r.Network; n != nil {
		for i, p := range n.Priorities {
			if p.Name == "" || strings.ContainsAny(p.Name, " \t\n\x00/") {
				return bad(fmt.Sprintf("network.priorities[%d].name", i), "%q can't be an interface", p.Name)
			}
		}
	}
	for dev := range r.Rdma {
		if dev == "" || strings.ContainsAny(dev, " \t\n\x00/") {
			return bad("rdma", "%q can't be a device", dev)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(r.Unified)) {
		if strings.ContainsAny(k, "/\x00") || !strings.Contains(k, ".") {
			return bad("unified", "%q is not of the form CONTROLLER.PARAMETER", k)
		}
		if strings.HasPrefix(k, "cgroup.") {
			// cgroup.procs, cgroup.kill, cgroup.type...: not limits, and ours.
			if k != "cgroup.max.depth" && k != "cgroup.max.descendants" {
				return bad("unified", "%q is not a resource", k)
			}
		}
	}
	_, err := DeviceRules(r)
	return err
}

// validateBlockDevices refuses numbers that no device has. The kernel takes the lower 32 bits of each, which may be another device's.
func validateBlockDevices(b *specs.LinuxBlockIO) (err error) {
	check := func(field string, major, minor int64) {
		if err == nil && (major < 0 || major > 4095 || minor < 0 || minor > 1<<20-1) {
			err = &FieldError{"linux.resources." + field, fmt.Sprintf("%d:%d is not the number of a device", major, minor)}
		}
	}
	for i, d := range b.WeightDevice {
		check(fmt.Sprintf("blockIO.weightDevice[%d]", i), d.Major, d.Minor)
	}
	throttle(b, func(field, _, _ string, d specs.LinuxThrottleDevice) { check(field, d.Major, d.Minor) })
	return err
}
