package oci

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys/call"
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

func TestAFileIsMountedByTheLoopDeviceThatWasSetUpForIt(t *testing.T) {
	for _, test := range []struct {
		options []string
		flags   int64
		set     []string
	}{
		{[]string{"loop"}, unix.LO_FLAGS_AUTOCLEAR, nil},
		{[]string{"ro", "loop"}, unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_READ_ONLY, []string{"ro"}},
		{[]string{"direct-io", "loop", "noload"}, unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO, []string{"noload"}},
	} {
		p := compile(t, func(_ *specs.Spec, r *Request) {
			r.Rootfs = []Mount{{Type: "ext4", Source: "/img", Options: test.options}, {Type: "ext4", Source: "/other", Target: "/x", Options: test.options}}
		})
		if len(p.Loops) != 2 {
			t.Fatalf("%v: %v", test.options, p.Loops)
		}
		for _, l := range p.Loops {
			attach, source := &p.Steps[l.Attach], &p.Steps[l.Source]
			if attach.Name != LoopAttach || attach.Args[1].Int != test.flags {
				t.Errorf("%v: %v", test.options, attach.Call)
			}
			if want := fmt.Sprintf(`"source", "/dev/loop$%d"`, l.Attach); source.Who != Parent || !strings.Contains(source.Call.String(), want) {
				t.Errorf("%v: %v by %s, want %s", test.options, source.Call, source.Who, want)
			}
			var set []string
			for _, s := range p.Steps[l.Source+1:] {
				if s.Name != "fsconfig" || s.Args[2].Kind != call.KindIn {
					break
				}
				set = append(set, strings.Trim(s.Args[2].Data, "\x00"))
			}
			if !slices.Equal(set, test.set) {
				t.Errorf("%v: the options are %q, want %q", test.options, set, test.set)
			}
		}
		p.SetLoop(p.Loops[1].Attach, "/dev/loop7")
		if got := []string{p.Steps[p.Loops[0].Source].Args[3].Data[:10], p.Steps[p.Loops[1].Source].Args[3].Data}; got[0] != "/dev/loop$" || got[1] != "/dev/loop7\x00" {
			t.Errorf("then the devices are %q", got)
		}
	}
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
