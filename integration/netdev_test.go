package integration

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// ip runs ip(8) on the host.
func ip(e *harness.Env, args ...string) {
	e.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		e.Skip("no ip")
	}
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		e.Fatalf("ip %q: %v: %s", args, err, out)
	}
}

func netDevices(m map[string]specs.LinuxNetDevice) oci.SpecOpts {
	return change(func(s *oci.Spec) { s.Linux.NetDevices = m })
}

func TestNetworkDevicesAreMovedWithTheirAddresses(t *testing.T) {
	e := start(t)
	for _, dev := range []string{"rsysa", "rsysb"} {
		ip(e, "link", "add", dev, "type", "veth", "peer", "name", dev+"p")
		t.Cleanup(func() { exec.Command("ip", "link", "del", dev+"p").Run() })
	}
	ip(e, "addr", "add", "10.99.7.2/24", "broadcast", "10.99.7.255", "dev", "rsysa")
	ip(e, "addr", "add", "10.99.8.2/32", "dev", "rsysa", "scope", "link")
	ip(e, "link", "set", "rsysa", "up")
	ip(e, "-6", "addr", "add", "fd00:99::2/64", "dev", "rsysa")
	c := e.Container(harness.Sh("ip -o addr | awk '{print $2,$3,$4}' | grep -v '^lo\\|inet6 fe80'", "cat /sys/class/net/*/flags", "ls /sys/class/net"),
		netDevices(map[string]specs.LinuxNetDevice{"rsysa": {Name: "inside"}, "rsysb": {Name: "eth%d"}}))
	got := c.Finish()
	for _, want := range []string{"inside inet 10.99.7.2/24\n", "inside inet6 fd00:99::2/64\n", "0x1003\n", "eth0\ninside\nlo\n"} {
		if peer() && strings.Contains(want, "inet6") {
			continue
		}
		if !strings.Contains(got.Stdout, want) {
			t.Errorf("no %q in %+v", want, got)
		}
	}
	if strings.Contains(got.Stdout, "10.99.8.2") {
		t.Errorf("an address of the link's scope was moved: %+v", got)
	}
	if out, err := exec.Command("ip", "link", "show", "rsysa").CombinedOutput(); err == nil {
		t.Errorf("it is still here: %s", out)
	}
}

func TestANetworkDeviceThatCanNotBeMovedFailsTheContainer(t *testing.T) {
	for _, test := range []struct {
		name, as, want string
	}{
		{"nonesuch", "", "linux.netDevices[nonesuch]: find nonesuch: no such device"},
		{"rsysc", "lo", "linux.netDevices[rsysc].name: lo, which every network namespace has"},
		{"lo", "loop", "linux.netDevices[lo]: a loopback device can't be moved"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			t.Cleanup(func() { exec.Command("ip", "link", "set", "lo", "up").Run() }) // which runc has taken down by then
			if test.name == "rsysc" {
				ip(e, "link", "add", "rsysc", "type", "veth", "peer", "name", "rsyscp")
				t.Cleanup(func() { exec.Command("ip", "link", "del", "rsysc").Run() })
			}
			err := e.Container([]string{"true"}, netDevices(map[string]specs.LinuxNetDevice{test.name: {Name: test.as}})).TryCreate()
			if err == nil {
				t.Fatal("no error")
			}
			if !peer() && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
			if out, err := exec.Command("ip", "-o", "link", "show", "lo").CombinedOutput(); err != nil || !strings.Contains(string(out), "UP") {
				t.Errorf("the host's lo: %s", out)
			}
		})
	}
}

// All of the devices are looked for before the first is moved: in a network namespace that is joined it would stay.
func TestNoNetworkDeviceIsMovedWhereOneIsMissing(t *testing.T) {
	if peer() {
		t.Skip("runc looks for each when its turn comes")
	}
	e := start(t)
	ip(e, "link", "add", "rsysf", "type", "veth", "peer", "name", "rsysfp")
	t.Cleanup(func() { exec.Command("ip", "link", "del", "rsysfp").Run() })
	owner := e.Container(harness.Sleep()).Run()
	netns := fmt.Sprintf("/proc/%d/ns/net", owner.Task.Pid())
	err := e.Container([]string{"true"}, joining(specs.NetworkNamespace, netns), netDevices(map[string]specs.LinuxNetDevice{"rsysf": {}, "rsysz": {}})).TryCreate()
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "linux.netDevices[rsysz]: find rsysz: no such device") {
		t.Errorf("got %v", err)
	}
	if got := owner.RunExec("ls", "/sys/class/net"); got.Stdout != "lo\n" {
		t.Errorf("in the namespace are %q", got.Stdout)
	}
	// What the namespace has already is found when the device is to be moved, and that stays as it was.
	ip(e, "link", "set", "rsysf", "up")
	ip(e, "link", "add", "rsysg", "type", "veth", "peer", "name", "rsysgp")
	t.Cleanup(func() { exec.Command("ip", "link", "del", "rsysgp").Run() })
	ip(e, "link", "set", "rsysg", "netns", fmt.Sprint(owner.Task.Pid()))
	err = e.Container([]string{"true"}, joining(specs.NetworkNamespace, netns), netDevices(map[string]specs.LinuxNetDevice{"rsysf": {Name: "rsysg"}})).TryCreate()
	if err == nil || !strings.Contains(err.Error(), "linux.netDevices[rsysf] (rsysg): netdev: the container has a device rsysg: file exists") {
		t.Errorf("got %v", err)
	}
	if out, err := exec.Command("ip", "-o", "link", "show", "rsysf").CombinedOutput(); err != nil || !strings.Contains(string(out), ",UP") {
		t.Errorf("the device: %s, %v", out, err)
	}
}
