package oci

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestMapsAreChecked(t *testing.T) {
	for name, list := range map[string][]specs.LinuxIDMapping{
		"f[0].size":        {{ContainerID: 1, HostID: 1}},
		"f[0].containerID": {{ContainerID: 1<<32 - 2, HostID: 0, Size: 3}},
		"f[0].hostID":      {{ContainerID: 0, HostID: 1<<32 - 2, Size: 3}},
		"f[1]: overlaps":   {{ContainerID: 0, HostID: 10, Size: 5}, {ContainerID: 4, HostID: 50, Size: 1}},
		"f[2]: overlaps":   {{ContainerID: 0, HostID: 10, Size: 5}, {ContainerID: 50, HostID: 50, Size: 1}, {ContainerID: 60, HostID: 14, Size: 9}},
		"f: 341 ranges":    make([]specs.LinuxIDMapping, 341),
	} {
		if err := validateMaps("f", list); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for _, list := range [][]specs.LinuxIDMapping{
		nil, {{ContainerID: 0, HostID: 0, Size: 1<<32 - 1}}, {{ContainerID: 5, HostID: 10, Size: 5}, {ContainerID: 0, HostID: 15, Size: 5}},
	} {
		if err := validateMaps("f", list); err != nil {
			t.Error(err)
		}
	}
}

func TestContainerdsMapsAreParsed(t *testing.T) {
	list, ok := parseMapOption("0:100:5,5:300:60")
	if !ok || mapText(list) != "0 100 5\n5 300 60\n" {
		t.Errorf("%v, %v", list, ok)
	}
	for _, s := range []string{"", "0:1", "0:1:2:3", "0:1:2,", "a:1:2", "-1:0:1", "0:1:4294967296", "0:1:2 "} {
		if _, ok := parseMapOption(s); ok {
			t.Errorf("%q", s)
		}
	}
}

// A time namespace's clocks are set while nobody is in it, and with a user namespace nothing of the host is opened
// by the child.
func TestTheParentDoesWhatTheChildHasNoRightTo(t *testing.T) {
	spec := readSpec(t, "nerdctl")
	withUserNS(spec)
	p, err := Compile(spec, request(), hostV1)
	if err != nil {
		t.Fatal(err)
	}
	cloned := false
	for i := range p.Steps {
		s := &p.Steps[i]
		cloned = cloned || s.Name == CloneChild
		if (s.Who == Parent) == cloned && s.Who != Shim {
			t.Errorf("step %d is of the %s", i, s.Who)
		}
		if s.Who != Child {
			continue
		}
		switch text := s.Call.String(); {
		case s.Name == "mknodat" && !strings.Contains(text, "S_IFREG"), strings.HasPrefix(text, "open_tree(AT_FDCWD"):
			t.Errorf("step %d: %s", i, text)
		}
	}
}
