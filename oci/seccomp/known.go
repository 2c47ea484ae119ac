package seccomp

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Actions are those that a profile may have, by name.
func Actions() []string {
	return sorted(specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace,
		specs.ActAllow, specs.ActLog, specs.ActNotify)
}

// Operators are those that a profile may have, by name.
func Operators() []string {
	return sorted(specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual)
}

// Architectures are those that a profile may have on a machine of architecture goarch, by name.
func Architectures(goarch string) []string {
	var list []string
	native, err := parseArches(nil, goarch)
	if err != nil {
		return nil
	}
	for i := range arches {
		if arches[i].bigEndian == native[0].bigEndian {
			list = append(list, string(arches[i].name))
		}
	}
	slices.Sort(list)
	return list
}

// Flags are those that a profile may have, by name.
func Flags() []string {
	return sorted(ociFlagTsync, specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv)
}

func sorted[T ~string](list ...T) []string {
	var names []string
	for _, s := range list {
		names = append(names, string(s))
	}
	slices.Sort(names)
	return names
}
