package oci

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestNetworkDevicesAreMoved(t *testing.T) {
	p, err := compileBytes(edit(t, `{"linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/run/netns/x"}], "netDevices": {"eth1": {"name": "e%d"}, "eth0": {}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	var got []string
	for i := range p.Steps {
		if s := &p.Steps[i]; s.Name == MoveNetDevice || s.Name == "setns" {
			got = append(got, s.Why+": "+s.Call.String())
		}
	}
	if want := `linux.namespaces[1]: setns($4, CLONE_NEWNET); linux.netDevices[eth0]: netdev("eth0", ""); linux.netDevices[eth1]: netdev("eth1", "e%d")`; !strings.HasSuffix(strings.Join(got, "; "), want[strings.Index(want, "linux.netDevices"):]) || len(got) != 3 {
		t.Errorf("got %q", got)
	}
}

func TestNetworkDevicesAreChecked(t *testing.T) {
	const ns = `"namespaces": [{"type": "mount"}, {"type": "network"}], `
	for patch, field := range map[string]string{
		`{"linux": {"netDevices": {"eth0": {}}}}`:                                             "linux.netDevices:",
		`{"linux": {` + ns + `"netDevices": {"a/b": {}}}}`:                                    "linux.netDevices[a/b]:",
		`{"linux": {` + ns + `"netDevices": {"a%d": {}}}}`:                                    "linux.netDevices[a%d]:",
		`{"linux": {` + ns + `"netDevices": {"": {}}}}`:                                       "linux.netDevices[]:",
		`{"linux": {` + ns + `"netDevices": {"eth0": {"name": "a b"}}}}`:                      "linux.netDevices[eth0].name:",
		`{"linux": {` + ns + `"netDevices": {"lo": {"name": "a"}}}}`:                          "linux.netDevices[lo]:",
		`{"linux": {` + ns + `"netDevices": {"eth0": {"name": "lo"}}}}`:                       "linux.netDevices[eth0].name: lo, which every network namespace has",
		`{"linux": {` + ns + `"netDevices": {"eth0": {"name": "a"}, "eth1": {"name": "a"}}}}`: "linux.netDevices[eth1].name: a, as which eth0 is there",
		`{"linux": {` + ns + `"netDevices": {"eth0": {"name": "eth1"}, "eth1": {}}}}`:         "linux.netDevices[eth1].name: eth1, as which eth0 is there",
		`{"linux": {` + ns + `"netDevices": {"eth0": {"name": "a%d%d"}}}}`:                    "linux.netDevices[eth0].name:",
		`{"linux": {` + ns + `"netDevices": {"eth0": {"name": "a%s"}}}}`:                      "linux.netDevices[eth0].name:",
		`{"linux": {` + ns + `"netDevices": {"eth0": {"name": "0123456789abcdef"}}}}`:         "linux.netDevices[eth0].name:",
	} {
		if _, err := compileBytes(edit(t, patch)); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
}
