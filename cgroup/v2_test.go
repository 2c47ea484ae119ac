package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	libcgroups "github.com/opencontainers/cgroups"
	libfs2 "github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
)

// These need a host with v2 alone, controllers and all: hack/vm is one.
func pureV2(t testing.TB) {
	t.Helper()
	needRoot(t)
	l, err := host()
	if err != nil {
		t.Fatal(err)
	}
	if !l.v2 {
		t.Skip("this host has cgroup v1")
	}
}

func TestAV2CgroupHasItsLimits(t *testing.T) {
	pureV2(t)
	p := parent(t)
	c := create(t, Config{Path: p + "/a", ID: "a", Resources: everything()})
	for file, want := range map[string]string{
		"memory.max": "67108864", "memory.swap.max": "67108864", "memory.low": "33554432",
		"cpu.weight": "59", "cpu.max": "50000 100000", "cpu.max.burst": "1000", "cpuset.cpus": "0", "cpuset.mems": "0", "pids.max": "20",
	} {
		if got, err := read(c.dirs[0], file); err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s is %q (%v), want %s", file, got, err, want)
		}
	}
}

// The same resources set by us and by runc's library give the same files.
func TestWhatWeSetOnV2IsWhatRuncsLibrarySets(t *testing.T) {
	pureV2(t)
	_, _ = libcgroups.ReadFile("/sys/fs/cgroup", "cgroup.controllers") // the library keeps an fd
	p := parent(t)
	for name, r := range map[string]struct {
		ours *specs.LinuxResources
		lib  *libcgroups.Resources
	}{
		// The spec's number of CPU shares is a weight already in the library's.
		"everything": {everything(), &libcgroups.Resources{
			Memory: 64 << 20, MemorySwap: 128 << 20, MemoryReservation: 32 << 20,
			CpuWeight: libcgroups.ConvertCPUSharesToCgroupV2Value(512), CpuQuota: 50000, CpuPeriod: 100000, CpuBurst: ptr[uint64](1000),
			CpusetCpus: "0", CpusetMems: "0", PidsLimit: ptr[int64](20)}},
		"nothing": {nil, &libcgroups.Resources{}},
		"no limits": {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](-1)}, Pids: &specs.LinuxPids{Limit: ptr[int64](-1)}, CPU: &specs.LinuxCPU{Quota: ptr[int64](-1)}},
			&libcgroups.Resources{Memory: -1, PidsLimit: ptr[int64](-1), CpuQuota: -1}},
		"no pids":     {&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](0)}}, &libcgroups.Resources{PidsLimit: ptr[int64](0)}},
		"long period": {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](5000), Period: ptr[uint64](1000000)}}, &libcgroups.Resources{CpuQuota: 5000, CpuPeriod: 1000000}},
		"idle":        {&specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr[int64](1)}}, &libcgroups.Resources{CPUIdle: ptr[int64](1)}},
		"huge pages":  {&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}}, &libcgroups.Resources{HugetlbLimit: []*libcgroups.HugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}}},
		"unified":     {&specs.LinuxResources{Unified: map[string]string{"memory.high": "8388608", "pids.max": "7"}}, &libcgroups.Resources{Unified: map[string]string{"memory.high": "8388608", "pids.max": "7"}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := create(t, Config{Path: p + "/ours", ID: "ours", Resources: r.ours})
			lib := "/sys/fs/cgroup" + p + "/lib"
			// Without it the library adds a device program that allows nothing.
			r.lib.SkipDevices = true
			m, err := libfs2.NewManager(&libcgroups.Cgroup{Path: p + "/lib", Resources: r.lib}, lib)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := m.Destroy(); err != nil {
					t.Error(err)
				}
			}()
			if err := m.Apply(-1); err != nil {
				t.Fatal(err)
			}
			if err := m.Set(r.lib); err != nil {
				t.Fatal(err)
			}
			es, err := os.ReadDir(c.dirs[0])
			if err != nil {
				t.Fatal(err)
			}
			compared := 0
			for _, e := range es {
				n := e.Name()
				if strings.Contains(n, "stat") || strings.Contains(n, "pressure") || strings.HasSuffix(n, ".current") || strings.HasSuffix(n, ".peak") {
					continue
				}
				got, err1 := read(c.dirs[0], n)
				want, err2 := read(lib, n)
				if got != want || (err1 == nil) != (err2 == nil) {
					t.Errorf("%s: we have %q, the library %q", n, got, want)
				}
				compared++
			}
			if compared < 40 {
				t.Errorf("only %d files were there to compare", compared)
			}
		})
	}
}

func TestAFailedCreateLeavesNothingOnV2(t *testing.T) {
	pureV2(t)
	for name, x := range map[string]struct {
		r    *specs.LinuxResources
		want string
	}{
		"a page size that is not there":    {&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 1}}}, "linux.resources.hugepageLimits[0]: open "},
		"a CPU that is not there":          {&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4000"}}, "linux.resources.cpu.cpus: write "},
		"a node that is not there":         {&specs.LinuxResources{CPU: &specs.LinuxCPU{Mems: "900"}}, "linux.resources.cpu.mems: write "},
		"a block device that is not there": {&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 4000, Minor: 1}, Rate: 1}}}}, "linux.resources.blockIO.throttleReadBpsDevice[0]: write "},
		"a file that is not there":         {&specs.LinuxResources{Unified: map[string]string{"memory.nosuch": "1"}}, "linux.resources.unified[memory.nosuch]: open "},
	} {
		t.Run(name, func(t *testing.T) {
			p := parent(t)
			c, err := New(Config{Path: p + "/x/y/z", ID: "z", Resources: x.r})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Create(context.Background(), 0); err == nil || !strings.HasPrefix(err.Error(), x.want) {
				t.Errorf("Create: %v, want %s", err, x.want)
			}
			if _, err := os.Lstat(c.layout.hierarchies[0].dir + p); err == nil {
				t.Errorf("%s is left", p)
			}
		})
	}
}

func TestUpdateOnV2ChangesLimitsBothWaysAndPutsThemBackOnFailure(t *testing.T) {
	pureV2(t)
	p := parent(t)
	c := create(t, Config{Path: p + "/a", ID: "a", Resources: everything()})
	memory := func(limit, swap int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}}
	}
	for _, x := range []struct {
		r          *specs.LinuxResources
		file, want string
	}{
		{memory(512<<20, 1<<30), "memory.max", fmt.Sprint(512 << 20)},
		{memory(32<<20, 40<<20), "memory.swap.max", fmt.Sprint(8 << 20)},
		{memory(-1, -1), "memory.max", "max"},
		{memory(32<<20, 40<<20), "memory.max", fmt.Sprint(32 << 20)},
		{&specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr[int64](48 << 20)}}, "memory.swap.max", fmt.Sprint(16 << 20)},
		{&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](2000), Period: ptr[uint64](2000)}}, "cpu.max", "2000 2000"},
		{&specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr[uint64](4000)}}, "cpu.max", "2000 4000"},
		{&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](3000)}}, "cpu.max", "3000 4000"},
		{&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](-1)}}, "cpu.max", "max 4000"},
		{&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](-1)}}, "pids.max", "max"},
	} {
		if err := c.Update(x.r); err != nil {
			t.Error(err)
		}
		if got, err := read(c.dirs[0], x.file); err != nil || strings.TrimSpace(got) != x.want {
			t.Errorf("%s is %q (%v), want %s", x.file, got, err, x.want)
		}
	}
	err := c.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](16 << 20)}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB"}}})
	if err == nil || !strings.HasPrefix(err.Error(), "linux.resources.hugepageLimits[0]") {
		t.Errorf("Update: %v", err)
	}
	if got, _ := read(c.dirs[0], "memory.max"); got != fmt.Sprintln(32<<20) {
		t.Errorf("the memory limit was not put back: %q", got)
	}
}

func TestOOMOnV2IsSeenAndWatchingEndsWithTheCgroup(t *testing.T) {
	pureV2(t)
	c, oom := killedForMemory(t)
	if m := metrics2(t, c); m.MemoryEvents.GetOomKill() != 1 {
		t.Errorf("the metrics count %d kills", m.MemoryEvents.GetOomKill())
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

func metrics2(t *testing.T, c *Cgroup) *stats2.Metrics {
	t.Helper()
	b, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	var m stats2.Metrics
	if err := proto.Unmarshal(b.GetValue(), &m); err != nil {
		t.Fatal(err)
	}
	return &m
}

func TestMetricsOfAV2Cgroup(t *testing.T) {
	pureV2(t)
	p := parent(t)
	c := create(t, Config{Path: p + "/a", ID: "a", Resources: everything()})
	if err := c.Join(helper(t, "work", nil).Process.Pid); err != nil {
		t.Fatal(err)
	}
	m := metrics2(t, c)
	for deadline := time.Now().Add(10 * time.Second); m.CPU.GetUsageUsec() == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		m = metrics2(t, c)
	}
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		t.Error("it has fields that containerd does not know")
	}
	if m.Pids.GetLimit() != 20 || m.Pids.GetCurrent() == 0 || m.Memory.GetUsageLimit() != 64<<20 || m.Memory.GetSwapLimit() != 64<<20 ||
		m.CPU.GetUsageUsec() == 0 || m.Memory.GetUsage() == 0 || len(m.Hugetlb) == 0 {
		t.Errorf("%v", m)
	}
}

func TestV2OnTheUnifiedHierarchy(t *testing.T) {
	p := parent(t)
	l := hybridV2(t)
	c, err := newCgroup(Config{Path: p + "/v2", ID: "x"}, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	dir, ok := c.V2Dir()
	if !ok || dir != l.hierarchies[0].dir+p+"/v2" {
		t.Errorf("V2Dir: %s, %v", dir, ok)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	born := helper(t, "sleep", &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd})
	moved := helper(t, "sleep", nil)
	if err := c.Join(moved.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if pids, err := pidsBelow(dir); err != nil || len(pids) != 2 {
		t.Errorf("processes: %v, %v", pids, err)
	}
	ctx := context.Background()
	for range 3 {
		if err := c.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
		if f, err := c.Frozen(); !f || err != nil {
			t.Errorf("Frozen: %v, %v", f, err)
		}
		if err := c.Thaw(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	// The devices program: nothing but what it allows can be opened there.
	script := `for d in null zero kmsg; do (: < /dev/$d) && echo $d; done 2>&-; (: > /dev/kmsg) 2>&- && echo kmsg-w; exit 0`
	if err := c.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != "null\nzero" {
		t.Errorf("devices that could be opened: %q, %v", out, err)
	}
	if err := c.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(); err != nil {
		t.Error(err)
	}
	_, _ = born.Process.Wait()
	_, _ = moved.Process.Wait()
	if err := c.Delete(); err != nil {
		t.Error(err)
	}
	// A limit needs a controller, which this hierarchy may not have.
	if have, _ := read(l.hierarchies[0].dir, "cgroup.controllers"); strings.TrimSpace(have) == "" {
		c, err := newCgroup(Config{Path: p + "/v2", ID: "x", Resources: everything()}, l)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Create(context.Background(), 0); err == nil || !strings.HasPrefix(err.Error(), "linux.resources.pids.limit: open ") {
			t.Errorf("Create with limits: %v", err)
		}
		if _, err := os.Lstat(c.dirs[0]); err == nil {
			t.Error("it is left")
		}
	}
}

func TestV2DevicesDenyAPartAsV1Does(t *testing.T) {
	p := parent(t)
	l := hybridV2(t)
	c, err := newCgroup(Config{Path: p + "/dev", ID: "x", Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
		{Allow: true, Access: "rwm"}, {Type: "c", Major: ptr[int64](1), Minor: ptr[int64](11), Access: "w"},
	}}}, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(c.dirs[0], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	cmd := exec.Command("/bin/sh", "-c", `(: < /dev/kmsg) && echo r; (: > /dev/kmsg) 2>&- && echo w; (: <> /dev/kmsg) 2>&- && echo rw; exit 0`)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	if out, err := cmd.Output(); err != nil || string(out) != "r\n" {
		t.Errorf("%q, %v", out, err)
	}
	if err := c.Delete(); err != nil {
		t.Error(err)
	}
}
