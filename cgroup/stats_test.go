package cgroup

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
)

// killedForMemory is a cgroup in which one process was killed for its limit, and the events of that. A watch whose context has ended has had none.
func killedForMemory(t *testing.T) (c *Cgroup, oom <-chan struct{}) {
	t.Helper()
	p := parent(t)
	c = create(t, Config{Path: p + "/a", ID: "a", Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](16 << 20), Swap: ptr[int64](16 << 20)}}})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended, err := c.OOM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	oom, err = c.OOM(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, ok := next(t, ended); ok {
		t.Error("an event after the context's end")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CGROUP_TEST_HELPER=eat")
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := c.Join(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte("x"))
	if _, ok := next(t, oom); !ok {
		t.Error("the channel closed before the event")
	}
	_ = cmd.Wait()
	return c, oom
}

func TestOOMIsSeenAndWatchingEndsWithTheCgroup(t *testing.T) {
	v1(t)
	c, oom := killedForMemory(t)
	b, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	var m stats1.Metrics
	if err := proto.Unmarshal(b.GetValue(), &m); err != nil || m.MemoryOomControl.GetOomKill() != 1 {
		t.Errorf("the metrics count %d kills (%v)", m.MemoryOomControl.GetOomKill(), err)
	}
	if err := c.Delete(); err != nil {
		t.Error(err)
	}
	for {
		if _, ok := next(t, oom); !ok {
			break
		}
	}
}

func next(t *testing.T, ch <-chan struct{}) (struct{}, bool) {
	t.Helper()
	select {
	case v, ok := <-ch:
		return v, ok
	case <-time.After(10 * time.Second):
		t.Fatal("no event in 10 s")
		return struct{}{}, false
	}
}

func TestMetricsAreWhatContainerdDecodes(t *testing.T) {
	v1(t)
	p := parent(t)
	c := create(t, Config{Path: p + "/a", ID: "a", Resources: everything()})
	if err := c.Join(helper(t, "work", nil).Process.Pid); err != nil {
		t.Fatal(err)
	}
	var m stats1.Metrics
	for deadline := time.Now().Add(10 * time.Second); m.CPU.GetUsage().GetTotal() == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		b, err := c.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if want := string(m.ProtoReflect().Descriptor().FullName()); b.GetTypeUrl() != want {
			t.Fatalf("type %s, want %s", b.GetTypeUrl(), want)
		}
		if err := proto.Unmarshal(b.GetValue(), &m); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		t.Error("it has fields that containerd does not know")
	}
	if m.Pids.GetLimit() != 20 || m.Pids.GetCurrent() == 0 || m.Memory.GetUsage().GetLimit() != 64<<20 || m.Memory.GetSwap().GetLimit() != 128<<20 ||
		m.CPU.GetUsage().GetTotal() == 0 || len(m.CPU.GetUsage().GetPerCPU()) == 0 || m.Memory.GetHierarchicalSwapLimit() != 128<<20 ||
		m.Memory.GetHierarchicalMemoryLimit() != 64<<20 || m.Memory.GetPgFault() != m.Memory.GetTotalPgFault() {
		t.Errorf("%v", &m)
	}
}

func TestV2MetricsAreWhatContainerdDecodes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"pids.current": "3\n", "pids.max": "max\n",
		"cpu.stat":       "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 1\nnr_throttled 2\nthrottled_usec 3\nnr_bursts 7\nburst_usec 8\n",
		"cpu.pressure":   "some avg10=1.50 avg60=0.00 avg300=0.25 total=99\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
		"memory.current": "4096\n", "memory.max": "max\n", "memory.swap.current": "1\n", "memory.swap.max": "2\n", "memory.peak": "5000\n", "memory.swap.peak": "6\n",
		"memory.stat":              "anon 1\nfile 2\npgfault 18\nthp_collapse_alloc 31\nnew_one 5\n",
		"memory.events":            "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
		"io.stat":                  "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n",
		"hugetlb.2MB.current":      "7\n",
		"hugetlb.2MB.max":          "max\n",
		"hugetlb.2MB.rsvd.current": "7\n",
		"hugetlb.2MB.events":       "max 9\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := &Cgroup{layout: &layout{v2: true, hierarchies: []hierarchy{{dir: dir, v2: true}}}, dirs: []string{dir}}
	b, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	var m stats2.Metrics
	if err := proto.Unmarshal(b.GetValue(), &m); err != nil {
		t.Fatal(err)
	}
	max := ^uint64(0)
	psi := &stats2.PSIStats{Some: &stats2.PSIData{Avg10: 1.5, Avg300: 0.25, Total: 99}, Full: &stats2.PSIData{Total: 1}}
	want := &stats2.Metrics{
		Pids:         &stats2.PidsStat{Current: 3, Limit: max},
		CPU:          &stats2.CPUStat{UsageUsec: 10, UserUsec: 6, SystemUsec: 4, NrPeriods: 1, NrThrottled: 2, ThrottledUsec: 3, PSI: psi, NrBursts: 7, BurstUsec: 8},
		Memory:       &stats2.MemoryStat{Anon: 1, File: 2, Pgfault: 18, ThpCollapseAlloc: 31, Usage: 4096, UsageLimit: max, SwapUsage: 1, SwapLimit: 2, MaxUsage: 5000, SwapMaxUsage: 6},
		Io:           &stats2.IOStat{Usage: []*stats2.IOEntry{{Major: 8, Minor: 16, Rbytes: 1, Wbytes: 2, Rios: 3, Wios: 4}}},
		Hugetlb:      []*stats2.HugeTlbStat{{Current: 7, Max: max, Pagesize: "2MB", Failcnt: 9}},
		MemoryEvents: &stats2.MemoryEvents{Low: 1, High: 2, Max: 3, Oom: 4, OomKill: 5, OomGroupKill: 6},
	}
	if !proto.Equal(&m, want) || b.GetTypeUrl() != string(m.ProtoReflect().Descriptor().FullName()) {
		t.Errorf("%s\n%v\nwant\n%v", b.GetTypeUrl(), &m, want)
	}
}
