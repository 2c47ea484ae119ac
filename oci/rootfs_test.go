package oci

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// shown are who clones the root file system for the host, and the steps that put it there.
func shown(p *Plan) (by Who, steps int) {
	for i := range p.Steps {
		if s := &p.Steps[i]; s.Who == Shim && s.Name == HostRootfs {
			by = p.Steps[s.Args[0].Step].Who
			steps++
		}
	}
	return by, steps
}

func TestTheRootFileSystemIsShownOnTheHostByWhoHasMountedIt(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*specs.Spec, *Request)
		by     Who
		steps  int
	}{
		{"not asked for", func(*specs.Spec, *Request) {}, Child, 0},
		{"by the child", func(_ *specs.Spec, r *Request) { r.HostRootfs = true }, Child, 1},
		{"by the parent, which has the rights over it", func(s *specs.Spec, r *Request) {
			r.HostRootfs = true
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 1000, Size: 10}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		}, Parent, 1},
		{"not in the host's mount namespace, where it is", func(s *specs.Spec, r *Request) {
			r.HostRootfs = true
			s.Linux.Namespaces, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
		}, Child, 0},
		{"not where nothing is mounted: it is the host's already", func(_ *specs.Spec, r *Request) { r.HostRootfs, r.Rootfs = true, nil }, Child, 0},
	} {
		p := compile(t, test.change)
		if by, steps := shown(p); by != test.by || steps != test.steps {
			t.Errorf("%s: %d steps, by %s", test.name, steps, by)
		}
	}
}
