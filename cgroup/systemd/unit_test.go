package systemd

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestAPathNamesASliceAndAScope(t *testing.T) {
	for _, x := range []struct{ path, slice, name, cgroup string }{
		{"", "system.slice", "rsys-id.scope", "/system.slice/rsys-id.scope"},
		{":cri:x", "system.slice", "cri-x.scope", "/system.slice/cri-x.scope"},
		{"-.slice:cri:x", "-.slice", "cri-x.scope", "/cri-x.scope"},
		{"a.slice::x", "a.slice", "-x.scope", "/a.slice/-x.scope"},
		{"kubepods-burstable-pod1_2.slice:cri-containerd:x", "kubepods-burstable-pod1_2.slice", "cri-containerd-x.scope",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-x.scope"},
		{"_a.slice:cpu.b:x", "_a.slice", "cpu.b-x.scope", "/__a.slice/_cpu.b-x.scope"},
		{"cgroup.slice:memory:x", "cgroup.slice", "memory-x.scope", "/_cgroup.slice/memory-x.scope"},
	} {
		u, err := ParsePath(x.path, "id")
		if err != nil || u.Slice != x.slice || u.Name != x.name || u.Path() != x.cgroup {
			t.Errorf("%q: %+v at %s, %v; want %s in %s at %s", x.path, u, u.Path(), err, x.name, x.slice, x.cgroup)
		}
	}
	for name, path := range map[string]string{
		"a path of cgroupfs": "/default/x", "two parts": "a.slice:b", "four parts": "a.slice:b:c:d", "no slice": "a:b:c", "a slash": "a/b.slice:c:d",
		"an empty part of a slice": "a--b.slice:c:d", "a slice of nothing": ".slice:c:d", "a dash in front": "-a.slice:c:d", "a space": "a.slice:b:c d",
		"no name": "a.slice:b:", "a slice as a container": "a.slice:b:c.slice", "a long name": "a.slice:b:" + strings.Repeat("c", 250), "a step up": "..:b:c",
	} {
		if u, err := ParsePath(path, "id"); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s, %q: %+v, %v", name, path, u, err)
		}
	}
}

func TestAnnotationsAreReadAsGVariants(t *testing.T) {
	props, err := Annotations(map[string]string{
		"other": "x", "org.systemd.property.TimeoutStopSec": "2", "org.systemd.property.CollectMode": "'inactive'",
		"org.systemd.property.Sec": "1", "org.systemd.property.RuntimeMaxSec": "1.5", "org.systemd.property.Wants": "['a.service','b.service']",
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range props {
		got = append(got, p.Name+"="+p.Value.Signature().String()+":"+p.Value.String())
	}
	want := `CollectMode=s:"inactive" RuntimeMaxUSec=t:@t 1500000 Sec=i:1 TimeoutStopUSec=t:@t 2000000 Wants=as:["a.service", "b.service"]`
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
	for name, value := range map[string]string{"TimeoutStopSec": "'x'", "A": "1", "Timeout-Stop": "1", "TasksMax": ""} {
		_, err := Annotations(map[string]string{annotation + name: value})
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "annotations["+annotation+name+"]") {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

func TestVersionsAreRead(t *testing.T) {
	for s, want := range map[string]int{"252.38-1~deb12u1": 252, "v245.4-1.fc32": 245, "257~rc1": 257, "249": 249} {
		if got, err := parseVersion(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	if v, err := parseVersion("devel"); err == nil {
		t.Errorf("devel: %d", v)
	}
}
