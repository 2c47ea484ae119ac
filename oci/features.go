package oci

import (
	"errors"
	"maps"
	"runtime"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/rsys-io/rsys/oci/seccomp"
)

// minVersion is the oldest version of the specification whose configs mean here what they meant then.
const minVersion = "1.0.0"

// Features is what this runtime can do on a host: features.md of the runtime specification. That would have what the
// runtime knows, whatever the kernel can; who reads it wants to know what works. So what the host lacks is left out of
// the namespaces and of seccomp's supported flags, and not enabled otherwise.
func Features(host Host) *features.Features {
	yes, no := true, false
	is := func(b bool) *bool {
		if b {
			return &yes
		}
		return &no
	}
	f := &features.Features{
		OCIVersionMin: minVersion,
		OCIVersionMax: specs.Version,
		Hooks:         []string{},
		MountOptions:  knownMountOptions(),
		// A property of a scope can be a command that systemd runs as root.
		PotentiallyUnsafeConfigAnnotations: []string{"org.systemd.property."},
		Linux: &features.Linux{
			Namespaces:   []string{},
			Capabilities: []string{},
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &no, Rdma: &yes},
			Seccomp: &features.Seccomp{
				Enabled: &yes, Actions: seccomp.Actions(), Operators: seccomp.Operators(), Archs: seccomp.Architectures(runtime.GOARCH),
				KnownFlags: seccomp.Flags(), SupportedFlags: slices.DeleteFunc(seccomp.Flags(), func(s string) bool {
					return s == string(specs.LinuxSeccompFlagWaitKillableRecv) && host.Kernel < kernel(5, 19)
				}),
			},
			Apparmor: &features.Apparmor{Enabled: is(host.AppArmor)},
			Selinux:  &features.Selinux{Enabled: is(host.SELinux)},
			MemoryPolicy: &features.MemoryPolicy{
				Modes: names(mempolicyModes), Flags: names(mempolicyFlags),
			},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: is(knows(func(s *specs.Spec) {
				one := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1, Size: 1}}
				s.Mounts = []specs.Mount{{Destination: "/a", Source: "/b", Type: "bind", Options: []string{"bind"}, UIDMappings: one, GIDMappings: one}}
			}))}},
			NetDevices: &features.NetDevices{Enabled: is(knows(func(s *specs.Spec) {
				s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {}}
			}))},
		},
	}
	for _, l := range hookLists(new(specs.Hooks)) {
		f.Hooks = append(f.Hooks, string(l.kind))
	}
	for n := range capNumbers {
		f.Linux.Capabilities = append(f.Linux.Capabilities, "CAP_"+n)
	}
	slices.SortFunc(f.Linux.Capabilities, func(a, b string) int { return int(capNumbers[a[4:]]) - int(capNumbers[b[4:]]) })
	for i := range nsTypes {
		ns := nsTypes[i].name
		if !slices.Contains(host.NoNamespace, ns) && knows(func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == ns })
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: ns})
			if ns == specs.UserNamespace {
				one := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}}
				s.Linux.UIDMappings, s.Linux.GIDMappings = one, one
			}
		}) {
			f.Linux.Namespaces = append(f.Linux.Namespaces, string(ns))
		}
	}
	slices.Sort(f.Linux.Namespaces)
	rdt := host.Resctrl && knows(func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "a"} })
	f.Linux.IntelRdt = &features.IntelRdt{Enabled: is(rdt), Schemata: is(rdt), Monitoring: is(rdt)}
	return f
}

// kernel is a version of Linux as a number that can be compared.
func kernel(major, minor int) int { return major<<16 | minor }

// knows says whether a config is not refused as something that is not supported here. So the features
// are what the compiler does, and not a second list of it.
func knows(change func(*specs.Spec)) bool {
	s := &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"a"}, Cwd: "/"},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.UTSNamespace}}},
	}
	change(s)
	err := Validate(s)
	return !errors.Is(err, errdefs.ErrNotImplemented)
}

// otherMountOptions are the ones that are not in a table; knownMountOptions drops what is refused of them.
var otherMountOptions = []string{"bind", "rbind", "defaults", "silent", "loud", "remount", "tmpcopyup", "idmap", "ridmap"}

// knownMountOptions are those of the specification's table, not those of file systems.
func knownMountOptions() []string {
	list := slices.Clone(otherMountOptions)
	for _, table := range []map[string]attrOption{attrOptions, atimeOptions} {
		for o := range table {
			list = append(list, o, "r"+o)
		}
	}
	list = slices.AppendSeq(list, maps.Keys(superOptions))
	list = slices.AppendSeq(list, maps.Keys(propagationOptions))
	slices.Sort(list)
	return slices.DeleteFunc(list, func(name string) bool {
		o := parseOptions([]string{name})
		return o.loop || len(o.data) > 0
	})
}

func names[K ~string, V any](table map[K]V) []string {
	list := []string{}
	for k := range table {
		list = append(list, string(k))
	}
	slices.Sort(list)
	return list
}
