package cri

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

// Handlers whose pods have no pause container, and whose streams are the shim's.
const pauseless, streamed = "pauseless", "streamed"

// startPauseless begins a test with a pod that has no pause container, not yet run.
func startPauseless(t *testing.T) *harness.Pod {
	t.Helper()
	if harness.Runtime() != "io.containerd.rsys.v1" {
		t.Skip("only rsys has pods without a pause container")
	}
	if daemon.Old() {
		t.Skip("the CRI of containerd 1.7 mounts files of the pod that only its own sandbox controller makes")
	}
	p := start(t)
	p.Handler = pauseless
	return p
}

// holder is the process that holds a pod's namespaces.
func holder(p *harness.Pod) int {
	p.Helper()
	st, err := p.Client.SandboxController("shim").Status(p.Ctx, p.ID, false)
	p.Must(err, "status of the sandbox")
	if st.Pid == 0 {
		p.Fatal("nobody holds the namespaces")
	}
	return int(st.Pid)
}

func namespace(p *harness.Pod, pid int, kind string) string {
	p.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	p.Must(err, "read a namespace")
	return link
}

func TestAPodWithoutAPauseContainer(t *testing.T) {
	p := startPauseless(t)
	p.Config.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.1.2.3"}, Searches: []string{"svc"}, Options: []string{"ndots:5"}}
	p.Config.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}
	p.Run()
	h := holder(p)
	if all, err := p.Client.Containers(p.Ctx); err != nil || len(all) != 0 {
		t.Errorf("containerd has containers: %v, %v", all, err)
	}
	a := p.Container(harness.Sleep()...)
	b := p.Container(harness.Sleep()...)
	for _, kind := range []string{"net", "ipc", "uts"} {
		if x, y, z := namespace(p, h, kind), namespace(p, a.Pid(), kind), namespace(p, b.Pid(), kind); x != y || y != z {
			t.Errorf("%s: holder %s, containers %s and %s", kind, x, y, z)
		}
	}
	if x, y := namespace(p, a.Pid(), "pid"), namespace(p, b.Pid(), "pid"); x == y {
		t.Error("the containers share a PID namespace")
	}
	ip := p.Status().Network.GetIp()
	if ip == "" {
		t.Error("the pod has no address")
	}
	for script, want := range map[string]string{
		"hostname; cat /etc/hostname": p.Config.Hostname + "\n" + p.Config.Hostname,
		"cat /etc/resolv.conf":        "search svc\nnameserver 10.1.2.3\noptions ndots:5",
		"cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start": "1\n1\n0",
		"ip -4 -o addr show eth0 | grep -c ' " + ip + "/'":                                                                 "1",
		"echo shared > /dev/shm/x": "",
	} {
		if got := a.Sh(script); strings.TrimSpace(got) != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if got := strings.TrimSpace(b.Sh("cat /dev/shm/x; grep -c ' /dev/shm tmpfs .*size=65536k' /proc/mounts")); got != "shared\n1" {
		t.Errorf("the other's /dev/shm: %q", got)
	}
	if out, err := a.Exec(time.Second*5, "cat", "/etc/hosts"); err != nil || !strings.Contains(out.Stdout, "localhost") {
		t.Errorf("/etc/hosts: %+v, %v", out, err)
	}
	stats, err := p.CRI.PodSandboxStats(p.Ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.ID})
	p.Must(err, "stats of the pod")
	if linux := stats.GetStats().GetLinux(); linux.GetMemory().GetUsageBytes().GetValue() == 0 || linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 ||
		linux.GetNetwork().GetDefaultInterface().GetName() != "eth0" {
		t.Errorf("stats: %v", stats)
	}
	a.Stop(time.Second)
	if st := b.Status(); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("one's stop stopped the other: %v", st)
	}
	p.Stop()
	if st := p.Status(); st.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the stopped pod is %v", st.State)
	}
	if st := b.Status(); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("the stopped pod's container is %v", st.State)
	}
}

func TestAPauselessPodWithASharedPIDNamespace(t *testing.T) {
	p := startPauseless(t)
	p.Config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	p.Run()
	shared := func(c *harness.PodContainer) *harness.PodContainer {
		c.Config.Linux.SecurityContext.NamespaceOptions = p.Config.Linux.SecurityContext.NamespaceOptions
		return c.Run()
	}
	a := shared(p.NewContainer("sh", "-c", "sleep 1111 & exec sleep 2222"))
	b := shared(p.NewContainer(harness.Sleep()...))
	out := b.Sh("ps -o pid,args")
	for _, want := range []string{" 1 /pause", "sleep 1111", "sleep 2222"} {
		if !strings.Contains(out, want) {
			t.Errorf("ps does not show %q:\n%s", want, out)
		}
	}
	a.Stop(0)
	for _, sig := range []string{"KILL", "TERM", "STOP"} {
		b.Sh("kill -" + sig + " 1")
	}
	p.Eventually("what was orphaned is gone", func() bool {
		return b.Sh("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; true") == ""
	})
	if h := holder(p); unix.Kill(h, 0) != nil {
		t.Error("the holder was killed from inside")
	}
	if st := p.Status(); st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %v", st.State)
	}
}

func TestAPauselessPodOfTheNodesNetwork(t *testing.T) {
	p := startPauseless(t)
	p.Config.Hostname = ""
	p.Config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	p.Run()
	c := p.NewContainer(harness.Sleep()...)
	c.Config.Linux.SecurityContext.NamespaceOptions = p.Config.Linux.SecurityContext.NamespaceOptions
	c.Run()
	for _, kind := range []string{"net", "uts"} {
		if ours, its := namespace(p, p.Daemon.Pid(), kind), namespace(p, c.Pid(), kind); ours != its {
			t.Errorf("%s: %s, the node's is %s", kind, its, ours)
		}
	}
	name, err := os.Hostname()
	p.Must(err, "hostname")
	if got := c.Sh("cat /etc/hostname"); strings.TrimSpace(got) != name {
		t.Errorf("/etc/hostname: %q", got)
	}
}

func TestAPauselessPodOutlivesContainerd(t *testing.T) {
	p := startPauseless(t).Run()
	a := p.Container(harness.Sleep()...)
	h, pid := holder(p), a.Pid()
	p.Daemon.Kill()
	p.Must(p.Daemon.Run(), "containerd again")
	p.CRI.Close()
	var err error
	p.CRI, err = p.DialCRI()
	p.Must(err, "connect to CRI again")
	p.Eventually("CRI answers", func() bool {
		_, err := p.CRI.PodSandboxStatus(p.Ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
		return err == nil
	})
	if st := p.Status(); st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %v after the restart", st.State)
	}
	if got := holder(p); got != h {
		t.Errorf("holder %d, before %d", got, h)
	}
	if st := a.Status(); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || a.Pid() != pid {
		t.Errorf("the container is %v", st)
	}
	if got := a.Sh("hostname"); strings.TrimSpace(got) != p.Config.Hostname {
		t.Errorf("an exec: %q", got)
	}
	b := p.Container(harness.Sleep()...)
	if got := b.Sh("hostname; cat /etc/hostname; wc -l < /etc/resolv.conf"); !strings.HasPrefix(got, p.Config.Hostname+"\n"+p.Config.Hostname) {
		t.Errorf("a container made after the restart: %q", got)
	}
	p.Stop()
	if st := p.Status(); st.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the stopped pod is %v", st.State)
	}
}

func TestAPauselessPodWithAUserNamespace(t *testing.T) {
	p := startPauseless(t)
	ids := []*runtimeapi.IDMapping{{HostId: 700000, ContainerId: 0, Length: 65536}}
	p.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	p.Run()
	c := p.NewContainer(harness.Sleep()...)
	c.Config.Linux.SecurityContext.NamespaceOptions = p.Config.Linux.SecurityContext.NamespaceOptions
	c.Run()
	if x, y := namespace(p, holder(p), "user"), namespace(p, c.Pid(), "user"); x != y || x == namespace(p, p.Daemon.Pid(), "user") {
		t.Errorf("user namespaces: holder %s, container %s", x, y)
	}
	if got := strings.TrimSpace(c.Sh("cat /etc/hostname; stat -c %u /etc/hostname; echo ok > /dev/shm/x && cat /dev/shm/x; ip link set lo up && echo root of the network")); got !=
		p.Config.Hostname+"\n0\nok\nroot of the network" {
		t.Errorf("inside: %q", got)
	}
}

func TestAPauselessPodWhoseShimIsKilledCanBeRemoved(t *testing.T) {
	p := startPauseless(t).Run()
	c := p.Container(harness.Sleep()...)
	h := holder(p)
	proc, ok := harness.ReadProc(h)
	if !ok {
		t.Fatal("no holder")
	}
	p.Must(unix.Kill(proc.Parent, unix.SIGKILL), "kill the shim")
	p.Eventually("the container's end is known", func() bool {
		return c.Status().State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	p.Eventually("the pod is not ready", func() bool { return p.Status().State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY })
	p.Eventually("the holder has gone", func() bool { return unix.Kill(h, 0) == unix.ESRCH })
}

func TestAPauselessPodOfTheNodesNetworkWithAUserNamespace(t *testing.T) {
	p := startPauseless(t)
	ids := []*runtimeapi.IDMapping{{HostId: 700000, ContainerId: 0, Length: 65536}}
	p.Config.Hostname = ""
	p.Config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	p.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	p.Run()
	c := p.NewContainer(harness.Sleep()...)
	c.Config.Linux.SecurityContext.NamespaceOptions = p.Config.Linux.SecurityContext.NamespaceOptions
	c.Run()
	if x, y := namespace(p, holder(p), "user"), namespace(p, c.Pid(), "user"); x != y || x == namespace(p, p.Daemon.Pid(), "user") {
		t.Errorf("user namespaces: holder %s, container %s", x, y)
	}
}
