package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

// busy has used some processor time, and holds some memory.
func busy() []string {
	return harness.Sh("trap 'exit 0' TERM", "x=$(head -c 4000000 /dev/zero | tr '\\0' x)", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done",
		"echo done", "while :; do sleep 0.1; done")
}

func TestStatsAreWhatTheCgroupHas(t *testing.T) {
	p := start(t).Run()
	c := p.Container(busy()...)
	p.Eventually("it has worked", func() bool { return strings.Contains(c.Output("stdout"), "done") })

	check := func(t *testing.T, from string, cpu *runtimeapi.CpuUsage, memory *runtimeapi.MemoryUsage) {
		t.Helper()
		if got := cpu.GetUsageCoreNanoSeconds().GetValue(); got < uint64(50*time.Millisecond) {
			t.Errorf("%s: %d ns of processor time", from, got)
		}
		if got := memory.GetWorkingSetBytes().GetValue(); got < 4_000_000 || got > 500_000_000 {
			t.Errorf("%s: a working set of %d bytes", from, got)
		}
		if memory.GetRssBytes().GetValue() < 4_000_000 || memory.GetUsageBytes().GetValue() < memory.GetWorkingSetBytes().GetValue() {
			t.Errorf("%s: memory %v", from, memory)
		}
	}
	one, err := p.CRI.ContainerStats(p.Ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c.ID})
	p.Must(err, "stats")
	check(t, "ContainerStats", one.Stats.Cpu, one.Stats.Memory)
	if one.Stats.Memory.GetPageFaults().GetValue() == 0 {
		t.Errorf("no page faults: %v", one.Stats.Memory)
	}
	all, err := p.CRI.ListContainerStats(p.Ctx, &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{PodSandboxId: p.ID}})
	p.Must(err, "list stats")
	if len(all.Stats) != 1 || all.Stats[0].Attributes.Id != c.ID {
		t.Fatalf("stats of %v", all.Stats)
	}
	check(t, "ListContainerStats", all.Stats[0].Cpu, all.Stats[0].Memory)
	pod, err := p.CRI.PodSandboxStats(p.Ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.ID})
	p.Must(err, "stats of the pod")
	linux := pod.Stats.GetLinux()
	check(t, "PodSandboxStats", linux.GetCpu(), linux.GetMemory())
	if got := linux.GetNetwork().GetDefaultInterface(); got.GetName() != "eth0" || got.GetRxBytes().GetValue()+got.GetTxBytes().GetValue() == 0 {
		t.Errorf("network: %v", got)
	}
	if len(linux.GetContainers()) != 1 || linux.GetContainers()[0].GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("the pod's containers: %v", linux.GetContainers())
	}
	// The rate, which CRI makes of two readings, and tells in the list alone.
	c.Sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
	p.Eventually("there is a rate", func() bool {
		st, err := p.CRI.ListContainerStats(p.Ctx, &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{Id: c.ID}})
		return err == nil && len(st.Stats) == 1 && st.Stats[0].Cpu.GetUsageNanoCores().GetValue() > 0
	})
}

func TestAPodsProcessesAreCounted(t *testing.T) {
	p := start(t).Run()
	for _, script := range []string{"sleep 3596 & sleep 3596 & exec sleep 3596", "exec sleep 3596"} {
		p.Container(harness.Sh(script)...)
	}
	// Those of the containers; the pause container is none of CRI's.
	count := uint64(0)
	for deadline := time.Now().Add(harness.Patience); count != 4 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		st, err := p.CRI.PodSandboxStats(p.Ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.ID})
		p.Must(err, "stats of the pod")
		count = st.Stats.GetLinux().GetProcess().GetProcessCount().GetValue()
	}
	if count != 4 {
		t.Errorf("the pod has %d processes, 4 are there", count)
	}
}

func TestMetricsOfPodsAreTold(t *testing.T) {
	if daemon.Old() {
		t.Skip("containerd 1.7 has no metrics of pods")
	}
	p := start(t).Run()
	c := p.Container(busy()...)
	p.Eventually("it has worked", func() bool { return strings.Contains(c.Output("stdout"), "done") })
	known, err := p.CRI.ListMetricDescriptors(p.Ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	p.Must(err, "descriptors")
	described := map[string]bool{}
	for _, d := range known.Descriptors {
		described[d.Name] = true
	}
	all, err := p.CRI.ListPodSandboxMetrics(p.Ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	p.Must(err, "metrics")
	if len(all.PodMetrics) != 1 || all.PodMetrics[0].PodSandboxId != p.ID || len(all.PodMetrics[0].ContainerMetrics) != 1 || all.PodMetrics[0].ContainerMetrics[0].ContainerId != c.ID {
		t.Fatalf("metrics of %v", all.PodMetrics)
	}
	got := map[string]uint64{}
	for _, m := range all.PodMetrics[0].ContainerMetrics[0].Metrics {
		if !described[m.Name] {
			t.Errorf("%s has no descriptor", m.Name)
		}
		got[m.Name] += m.Value.GetValue()
	}
	for name, least := range map[string]uint64{"container_memory_usage_bytes": 4_000_000, "container_memory_rss": 4_000_000, "container_processes": 1} {
		if got[name] < least || got[name] > 500_000_000 {
			t.Errorf("%s is %d", name, got[name])
		}
	}
}

// onV2 says that there is cgroup v2 alone.
func onV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// limits are the container's in its cgroup, by the names of files.
func limits(c *harness.PodContainer) string {
	c.Helper()
	got := map[string]string{}
	files := []string{"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "memory.limit_in_bytes"}
	if onV2() {
		files = []string{"cpu.weight", "cpu.max", "memory.max"}
	}
	for _, file := range files {
		controller, _, _ := strings.Cut(file, ".")
		data, err := os.ReadFile(filepath.Join(harness.CgroupRoot(controller), c.Cgroup(), file))
		c.Must(err, "read a limit")
		got[file] = strings.TrimSpace(string(data))
	}
	return fmt.Sprint(got)
}

// limitsOf are those limits as limits tells them. The weight is runc's of the shares.
func limitsOf(quota, shares, weight, memory int64) string {
	if onV2() {
		return fmt.Sprintf("map[cpu.max:%d 100000 cpu.weight:%d memory.max:%d]", quota, weight, memory)
	}
	return fmt.Sprintf("map[cpu.cfs_period_us:100000 cpu.cfs_quota_us:%d cpu.shares:%d memory.limit_in_bytes:%d]", quota, shares, memory)
}

func TestResourcesAreChangedInPlace(t *testing.T) {
	p := start(t).Run()
	c := p.NewContainer(harness.Sleep()...)
	c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900}
	c.Run()
	pid, before := c.Pid(), limits(c)
	if want := limitsOf(50000, 512, 59, 64<<20); before != want {
		t.Errorf("at first %s, want %s", before, want)
	}
	if got := c.Sh("cat /proc/1/oom_score_adj"); got != "900" {
		t.Errorf("oom_score_adj %s", got)
	}
	for _, memory := range []int64{128 << 20, 32 << 20} {
		_, err := p.CRI.UpdateContainerResources(p.Ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: &runtimeapi.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 70000, CpuShares: 700, MemoryLimitInBytes: memory}})
		p.Must(err, "update")
		if got, want := limits(c), limitsOf(70000, 700, 75, memory); got != want {
			t.Errorf("after the update %s, want %s", got, want)
		}
	}
	if got := c.Status().GetResources().GetLinux().GetCpuQuota(); got != 70000 {
		t.Errorf("CRI tells a quota of %d", got)
	}
	if c.Pid() != pid || c.Sh("echo $PPID") == "" {
		t.Error("it is another process")
	}
	if onV2() {
		return // the kernel takes any limit there; with this one the container was not running any more
	}
	// What runs can't have less than it holds. It goes on, with what it had.
	_, err := p.CRI.UpdateContainerResources(p.Ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4096}})
	if err == nil {
		t.Error("a limit of one page is taken")
	} else if !strings.Contains(err.Error(), "memory") {
		t.Errorf("the error does not name the field: %v", err)
	}
	if got := c.Sh("echo lives"); got != "lives" {
		t.Errorf("it says %q", got)
	}
}

func TestProcessorsAndMemoryNodesAreChangedInPlace(t *testing.T) {
	p := start(t).Run()
	c := p.NewContainer(harness.Sleep()...)
	allowed := func() string {
		return strings.Join(strings.Fields(c.Sh("sed -n 's/^\\(Cpus\\|Mems\\)_allowed_list:.//p' /proc/1/status")), " ")
	}
	own, err := os.ReadFile("/proc/self/status")
	p.Must(err, "read")
	first, _, _ := strings.Cut(strings.ReplaceAll(line(string(own), "Cpus_allowed_list:"), "-", ","), ",")
	c.Run()
	if want := line(string(own), "Cpus_allowed_list:") + " " + line(string(own), "Mems_allowed_list:"); allowed() != want {
		t.Errorf("at first %q, the node has %q", allowed(), want)
	}
	for range 2 { // the second changes nothing
		_, err := p.CRI.UpdateContainerResources(p.Ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: &runtimeapi.LinuxContainerResources{
			CpusetCpus: first, CpusetMems: "0"}})
		p.Must(err, "update")
		if got := allowed(); got != first+" 0" {
			t.Errorf("after the update %q, want %q", got, first+" 0")
		}
	}
	_, err = p.CRI.UpdateContainerResources(p.Ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: &runtimeapi.LinuxContainerResources{CpusetCpus: "4095"}})
	if err == nil || !strings.Contains(err.Error(), "cpus") {
		t.Errorf("a processor that is not there: %v", err)
	}
}
