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
	if old() {
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
	v1(t)
	p := start(t)
	// The kubelet puts the pod's limits, with the overhead, on the cgroup that it makes.
	file := filepath.Join("/sys/fs/cgroup/memory", p.Config.Linux.CgroupParent, "memory.limit_in_bytes")
	p.Must(os.WriteFile(file, []byte(itoa(48<<20)), 0), "the pod's limit")
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
