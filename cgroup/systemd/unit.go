// Package systemd asks systemd for the scope that a container's cgroup is, where systemd manages the cgroups of a host.
//
// It speaks D-Bus to the manager's private socket or, where there is none, over the system bus. A connection lives as long as
// what it is opened for: a shim that waits for its containers holds none, and no restart of systemd or of the bus breaks one
// that is idle. docs/decisions/cgroup.md has what the D-Bus library costs.
package systemd

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	defaultSlice  = "system.slice"
	defaultPrefix = "rsys"
	// maxName is the longest name of a unit (systemd's UNIT_NAME_MAX without the NUL).
	maxName = 255
)

// A Unit is a container's scope, and the slice that it is in.
type Unit struct {
	Slice string // kubepods-burstable.slice
	Name  string // cri-containerd-ID.scope
}

// ParsePath reads a linux.cgroupsPath as it is written for systemd, SLICE:PREFIX:NAME. An empty path is a scope named
// for the ID in system.slice, and so is an empty slice.
func ParsePath(p, id string) (Unit, error) {
	slice, prefix, name := defaultSlice, defaultPrefix, id
	if p != "" {
		parts := strings.Split(p, ":")
		if len(parts) != 3 {
			return Unit{}, fmt.Errorf("%q is not of the form SLICE:PREFIX:NAME, which the systemd cgroup driver takes: %w", p, errdefs.ErrInvalidArgument)
		}
		if parts[0] != "" {
			slice = parts[0]
		}
		prefix, name = parts[1], parts[2]
	}
	if strings.HasSuffix(name, ".slice") {
		return Unit{}, fmt.Errorf("%q names a slice: a container is a scope: %w", p, errdefs.ErrInvalidArgument)
	}
	u := Unit{Slice: slice, Name: prefix + "-" + name + ".scope"}
	if _, err := expandSlice(slice); err != nil {
		return Unit{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if name == "" || !validName(u.Name) {
		return Unit{}, fmt.Errorf("%q can't be the name of a unit: %w", u.Name, errdefs.ErrInvalidArgument)
	}
	return u, nil
}

// Path is where the unit's cgroup is below each hierarchy.
func (u Unit) Path() string {
	slice, err := expandSlice(u.Slice)
	if err != nil {
		panic(err) // ParsePath has refused it
	}
	return path.Join(slice, escape(u.Name))
}

// expandSlice is a slice's path: systemd takes a dash in its name for a step down.
func expandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || !validName(slice) {
		return "", fmt.Errorf("%q is not the name of a slice", slice)
	}
	if name == "-" {
		return "/", nil
	}
	p, prefix := "/", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("%q is not the name of a slice: it has an empty part", slice)
		}
		p = path.Join(p, escape(prefix+part+".slice"))
		prefix += part + "-"
	}
	return p, nil
}

func validName(s string) bool {
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', strings.ContainsRune(`:-_.\@`, c):
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// controllers are those whose name, before a dot, systemd keeps clear of.
var controllers = []string{"cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids"}

// escape is the name of a unit's directory: systemd puts a _ before what could be taken for a file of the kernel's.
func escape(name string) string {
	clash := name[0] == '_' || name[0] == '.' || strings.HasPrefix(name, "cgroup.")
	for _, c := range controllers {
		clash = clash || strings.HasPrefix(name, c+".")
	}
	if clash {
		return "_" + name
	}
	return name
}
