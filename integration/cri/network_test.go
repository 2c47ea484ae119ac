package cri

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

func owner(st os.FileInfo) uint32 { return st.Sys().(*syscall.Stat_t).Uid }

// server answers each connection to a port with its host's name.
func server(port int) []string {
	return harness.Sh("trap 'exit 0' TERM", fmt.Sprintf("nc -ll -p %d -e hostname & wait", port))
}

func TestAPodHasAnAddressAndReachesAnother(t *testing.T) {
	p := start(t).Run()
	ip := p.Status().Network.GetIp()
	if !strings.HasPrefix(ip, "10.88.") {
		t.Fatalf("the pod's address is %q", ip)
	}
	p.Container(server(8000)...)
	other := p.Env.NewPod().Run()
	client := other.Container(harness.Sleep()...)
	if got := client.Sh("ip -4 addr show eth0"); !strings.Contains(got, "inet "+other.Status().Network.GetIp()+"/16") {
		t.Errorf("the other pod's interface: %q", got)
	}
	p.Eventually("the other pod reaches the server", func() bool {
		got, err := client.Exec(5*time.Second, "nc", "-w", "2", ip, "8000")
		return err == nil && got.Stdout == p.Config.Hostname+"\n"
	})
	client.Sh("ping -c 1 -W 2 "+ip, "ping -c 1 127.0.0.1")
	// A container that is restarted finds the same network.
	again := other.Container(harness.Sh("ip -4 addr show eth0 | grep -o 'inet [0-9.]*'")...)
	again.Wait()
	if got := strings.TrimSpace(again.Output("stdout")); got != "inet "+other.Status().Network.GetIp() {
		t.Errorf("a further container has %q", got)
	}
	// With the pod's end its address is free, its namespace gone.
	lease := filepath.Join(daemon.Dir, "cni/leases/rsys-it", other.Status().Network.GetIp())
	if _, err := os.Stat(lease); err != nil {
		t.Errorf("the address is not taken: %v", err)
	}
	other.Stop()
	if _, err := os.Stat(lease); err == nil {
		t.Error("the address is still taken")
	}
	if left, _ := os.ReadDir("/run/netns"); len(left) != 1 {
		t.Errorf("%d network namespaces for one pod", len(left))
	}
}

func TestAPortOfTheNodeLeadsToThePod(t *testing.T) {
	p := start(t)
	p.Config.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 8000, HostPort: 18000}}
	p.Run()
	p.Container(server(8000)...)
	addrs, err := net.InterfaceByName("rsys-it")
	p.Must(err, "the bridge")
	list, err := addrs.Addrs()
	p.Must(err, "its addresses")
	var gateway string
	for _, a := range list {
		if ip, _, err := net.ParseCIDR(a.String()); err == nil && ip.To4() != nil {
			gateway = ip.String()
		}
	}
	p.Eventually("the node's port answers", func() bool {
		out, err := exec.Command("busybox", "nc", "-w", "2", gateway, "18000").Output()
		return err == nil && string(out) == p.Config.Hostname+"\n"
	})
	rules, err := exec.Command("iptables-save", "-t", "nat").Output()
	p.Must(err, "rules")
	if !strings.Contains(string(rules), "--dport 18000") {
		t.Errorf("no rule for the port: %s", rules)
	}
	p.Stop()
	if rules, _ := exec.Command("iptables-save", "-t", "nat").Output(); strings.Contains(string(rules), "18000") {
		t.Errorf("a stopped pod's rules: %s", rules)
	}
}

func TestDNSAndHostsAreThePods(t *testing.T) {
	p := start(t)
	p.Config.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local"}, Options: []string{"ndots:5"}}
	p.Run()
	c := p.Container(harness.Sleep()...)
	want := "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5"
	if got := c.Sh("cat /etc/resolv.conf"); got != want {
		t.Errorf("resolv.conf: %q", got)
	}
	if got := c.Sh("cat /etc/hostname"); got != p.Config.Hostname {
		t.Errorf("/etc/hostname: %q", got)
	}
}

// ask connects to a local port, and reads what is said there.
func ask(port int) string {
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	said, _ := io.ReadAll(conn)
	return string(said)
}

func TestWhatANetworkLeavesBehindIsSeen(t *testing.T) {
	p := start(t).Run()
	p.Stop() // the bridge and the leases' directory are there
	before := daemon.Snapshot()
	lease, netns := filepath.Join(daemon.Dir, "cni/leases/rsys-it/10.88.255.1"), "/run/netns/left"
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	for _, file := range []string{lease, netns} {
		p.Must(os.WriteFile(file, nil, 0o644), "write")
		defer os.Remove(file)
	}
	run("ip", "link", "add", "left", "type", "veth", "peer", "name", "left2")
	defer run("ip", "link", "del", "left")
	rule := []string{"POSTROUTING", "-s", "10.88.255.1", "-j", "MASQUERADE"}
	run(append([]string{"iptables", "-t", "nat", "-A"}, rule...)...)
	defer run(append([]string{"iptables", "-t", "nat", "-D"}, rule...)...)
	got := strings.Join(daemon.Snapshot().More(before), "\n")
	for _, want := range []string{"file " + lease, "file " + netns, ": left\n", ": left2\n", "nat rule -A POSTROUTING -s 10.88.255.1"} {
		if !strings.Contains(got+"\n", want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}
