package oci

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// netDevices has devices of the host moved into the container's network namespace, as config-linux.md of the runtime specification
// has it under "Network Devices". It must come when the child is in that.
func (c *compiler) netDevices() {
	for _, name := range slices.Sorted(maps.Keys(c.spec.Linux.NetDevices)) {
		d := c.spec.Linux.NetDevices[name]
		c.at("linux.netDevices["+name+"]", d.Name)
		c.shim(MoveNetDevice, call.String(name), call.String(d.Name))
	}
}

func validateNetDevices(l *specs.Linux, ns *namespaces) error {
	if len(l.NetDevices) == 0 {
		return nil
	}
	if !ns.has(specs.NetworkNamespace) {
		return invalid("linux.netDevices", "not without a network namespace")
	}
	taken := map[string]string{"lo": "which every network namespace has"}
	for _, name := range slices.Sorted(maps.Keys(l.NetDevices)) {
		field := "linux.netDevices[" + name + "]"
		if !isDeviceName(name) || strings.Contains(name, "%") {
			return invalid(field, "%q is not a name of a network device", name)
		}
		if n := l.NetDevices[name].Name; n != "" && (!isDeviceName(n) || strings.Contains(strings.Replace(n, "%d", "", 1), "%")) {
			return invalid(field+".name", "%q is not a name of a network device", n)
		}
		as := cmp.Or(l.NetDevices[name].Name, name)
		if name == "lo" {
			return invalid(field, "a loopback device can't be moved")
		}
		if who := taken[as]; who != "" {
			return invalid(field+".name", "%s, %s", as, who)
		}
		if !strings.Contains(as, "%") { // of which the kernel finds a name that is free
			taken[as] = "as which " + name + " is there"
		}
	}
	return nil
}

// ChangesNetwork is the first field that changes the network namespace that a container joins, and the path of that; "" if there is none.
func ChangesNetwork(spec *specs.Spec) (field, path string) {
	ns := namespacesOf(spec)
	if path = ns[nsIndex(specs.NetworkNamespace)].path; path == "" {
		return "", ""
	}
	if len(spec.Linux.NetDevices) > 0 {
		return "linux.netDevices", path
	}
	for _, k := range slices.Sorted(maps.Keys(spec.Linux.Sysctl)) {
		if strings.HasPrefix(sysctlPath(k), "net/") {
			return "linux.sysctl[" + k + "]", path
		}
	}
	return "", path
}

// isDeviceName says whether the kernel takes a name for a device: dev_valid_name in its net/core/dev.c.
func isDeviceName(s string) bool {
	return s != "" && len(s) < unix.IFNAMSIZ && s != "." && s != ".." && !strings.ContainsAny(s, "/:\x00 \t\n\v\f\r")
}
