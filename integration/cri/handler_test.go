package cri

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestTheRuntimesFeaturesAreSeen(t *testing.T) {
	if daemon.Old() {
		t.Skip("containerd 1.7 tells no features of a runtime")
	}
	p := start(t)
	st, err := p.CRI.Status(p.Ctx, &runtimeapi.StatusRequest{})
	p.Must(err, "status")
	seen := map[string]*runtimeapi.RuntimeHandlerFeatures{}
	for _, h := range st.RuntimeHandlers {
		seen[h.Name] = h.Features
	}
	for _, name := range []string{"", "rsys", "annotated"} {
		f := seen[name]
		if !f.GetUserNamespaces() || !f.GetRecursiveReadOnlyMounts() {
			t.Errorf("handler %q: %v", name, f)
		}
	}
	if !st.Features.GetSupplementalGroupsPolicy() {
		t.Errorf("features: %v", st.Features)
	}
}

// spec is the config that containerd has given to the shim.
func spec(p *harness.Pod, id string) *specs.Spec {
	p.Helper()
	data, err := os.ReadFile(filepath.Join(daemon.Bundle(id), "config.json"))
	p.Must(err, "read config.json")
	s := new(specs.Spec)
	p.Must(json.Unmarshal(data, s), "config.json")
	return s
}

func TestARuntimeClass(t *testing.T) {
	p := start(t)
	p.Handler = "annotated"
	p.Config.Annotations = map[string]string{"io.rsys.isolation": "always", "other": "thing"}
	// What a pod's spec.overhead comes to.
	p.Config.Linux.Overhead = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, CpuPeriod: 100000, CpuQuota: 10000, CpuShares: 102}
	p.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 512}
	p.Run()
	c := p.Container(harness.Sleep()...)
	annotations := spec(p, p.ID).Annotations
	for key, want := range map[string]string{
		"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-memory": itoa(128 << 20), "io.kubernetes.cri.sandbox-cpu-shares": "512",
		"io.rsys.isolation": "always", "other": "",
	} {
		if got := annotations[key]; got != want {
			t.Errorf("the pod's annotation %s is %q, want %q", key, got, want)
		}
	}
	// Neither is a limit of the pause container, nor set on the pod's cgroup: that is the kubelet's, which adds the overhead to it. containerd
	// keeps the overhead for itself, and hands it to NRI.
	if r := spec(p, p.ID).Linux.Resources; r.Memory != nil && r.Memory.Limit != nil || r.CPU == nil || r.CPU.Shares == nil || *r.CPU.Shares != 2 {
		t.Errorf("the pause container's resources: %+v", r)
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err == nil {
		limit, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/memory", p.Config.Linux.CgroupParent, "memory.limit_in_bytes"))
		p.Must(err, "the pod's limit")
		if n, err := strconv.ParseInt(strings.TrimSpace(string(limit)), 10, 64); err != nil || n < 1<<60 {
			t.Errorf("the pod's cgroup, to which nobody has set a limit, has %s", limit)
		}
	}
	if got := spec(p, c.ID).Annotations["io.rsys.isolation"]; got != "always" {
		t.Errorf("the container's annotation is %q", got)
	}
	if got := c.Sh("echo works"); got != "works" {
		t.Errorf("an exec says %q", got)
	}
	if got := p.Status().RuntimeHandler; got != "annotated" {
		t.Errorf("the pod's handler is %q", got)
	}
	other := p.Env.NewPod()
	other.Handler = "no-such-class"
	if err := other.TryRun(); err == nil || !strings.Contains(err.Error(), "no-such-class") {
		t.Errorf("a handler that is not there: %v", err)
	}
}

func TestThePodsLimitHoldsAllItsContainers(t *testing.T) {
	p := start(t)
	// The kubelet puts the pod's limits, with the overhead, on the cgroup that it makes.
	p.LimitMemory(48 << 20)
	p.Run()
	neighbour := p.Container(harness.Sleep()...)
	c := p.Container(harness.Sh("exec tail /dev/zero")...) // no limit of its own
	if st := c.Wait(); st.ExitCode != 137 {
		t.Errorf("exit code %d, reason %s", st.ExitCode, st.Reason)
	}
	if got := neighbour.Sh("echo lives"); got != "lives" {
		t.Errorf("the neighbour: %q", got)
	}
}

func TestAPodsResourcesAndOverheadAreUpdated(t *testing.T) {
	if daemon.Old() {
		t.Skip("containerd 1.7 has no such request")
	}
	for name, start := range map[string]func(*testing.T) *harness.Pod{"with a pause container": start, "without one": startPauseless} {
		t.Run(name, func(t *testing.T) {
			p := start(t).Run()
			_, err := p.CRI.UpdatePodSandboxResources(p.Ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: p.ID,
				Overhead: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 17 << 20}, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 333}})
			p.Must(err, "update")
			st, err := p.CRI.PodSandboxStatus(p.Ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
			p.Must(err, "status")
			var info struct {
				Pid                 int
				Overhead, Resources struct {
					Linux runtimeapi.LinuxContainerResources
				}
			}
			p.Must(json.Unmarshal([]byte(st.Info["info"]), &info), "info %s", st.Info)
			if info.Pid == 0 || info.Overhead.Linux.MemoryLimitInBytes != 17<<20 || info.Resources.Linux.CpuShares != 333 {
				t.Errorf("CRI tells %s", st.Info["info"])
			}
			if got := p.Container("echo", "next").Wait(); got.ExitCode != 0 {
				t.Errorf("a container after it: %v", got)
			}
		})
	}
}

// The kubelet takes its driver of cgroups from here. Of a runtime whose options are not of runc's type containerd does not know it, and looks
// whether systemd runs.
func TestTheNodesDriverOfCgroupsIsTold(t *testing.T) {
	if daemon.Old() {
		t.Skip("containerd 1.7 does not tell it")
	}
	p := start(t)
	got, err := p.CRI.RuntimeConfig(p.Ctx, &runtimeapi.RuntimeConfigRequest{})
	p.Must(err, "runtime config")
	want := runtimeapi.CgroupDriver_CGROUPFS
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		want = runtimeapi.CgroupDriver_SYSTEMD
	}
	if got.GetLinux().GetCgroupDriver() != want {
		t.Errorf("it is %v, want %v", got, want)
	}
}
