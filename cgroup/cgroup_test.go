package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	libcgroups "github.com/opencontainers/cgroups"
	libfs "github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func ptr[T any](v T) *T { return &v }

// A helper process of the tests: it spins, sleeps or eats memory. The test binary itself, so that the tests need no other.
func TestMain(m *testing.M) {
	switch os.Getenv("CGROUP_TEST_HELPER") {
	case "sleep":
		time.Sleep(time.Hour) // without cgo, Go takes an empty select for a deadlock
		os.Exit(1)
	case "work", "ready to work":
		if kind := os.Getenv("CGROUP_TEST_HELPER"); kind != "work" {
			_, _ = os.NewFile(3, "ready").Write([]byte{1})
		}
		for {
			time.Sleep(time.Millisecond)
		}
	case "fork":
		// Has children, faster than a reader can list them.
		_, _ = os.NewFile(3, "begin").Read(make([]byte, 1))
		for {
			_ = exec.Command("/bin/sleep", "100").Start()
		}
	case "eat":
		_, _ = os.Stdin.Read(make([]byte, 1))
		for b := [][]byte{}; ; {
			c := make([]byte, 1<<20)
			for i := range c {
				c[i] = 1
			}
			b = append(b, c)
			_ = b
		}
	case "self":
		// One thread joins by itself: the files are fds 3 and up.
		runtime.LockOSThread()
		for fd := 3; ; fd++ {
			if _, err := unix.Write(fd, []byte("0")); err == unix.EBADF {
				break
			} else if err != nil {
				fmt.Println(fd, err)
			}
		}
		b, _ := os.ReadFile("/proc/thread-self/cgroup")
		fmt.Printf("%s", b)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

var counter atomic.Int32

// parent is a cgroup path of this test's own; at its end nothing may be left below it, nor any fd.
func parent(t testing.TB) string {
	t.Helper()
	needRoot(t)
	p := fmt.Sprintf("/rsys-test-%d-%d", os.Getpid(), counter.Add(1))
	before := fds(t)
	t.Cleanup(func() {
		l, err := host()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range l.hierarchies {
			left := 0
			_ = children(unix.AT_FDCWD, h.dir+p, func(int, string) { left++ })
			if left > 0 {
				t.Errorf("%s: %d cgroups are left", h.dir+p, left)
			}
			if err := removeTree(h.dir+p, time.Now().Add(time.Second)); err != nil {
				t.Error(err)
			}
		}
		for i := 0; fds(t) > before; i++ {
			if i == 100 {
				t.Errorf("%d file descriptors are open, %d were before", fds(t), before)
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	return p
}

func fds(t testing.TB) int {
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func helper(t testing.TB, kind string, attr *syscall.SysProcAttr, files ...*os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CGROUP_TEST_HELPER="+kind, "GOMAXPROCS=1")
	cmd.SysProcAttr, cmd.ExtraFiles = attr, files
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func create(t testing.TB, cfg Config) *Cgroup {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
		if err := c.Delete(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// hybridV2 is the v2 side of this hybrid host taken for a v2 host: without controllers, but everything else works.
func hybridV2(t testing.TB) *layout {
	l, err := host()
	if err != nil {
		t.Fatal(err)
	}
	if l.v2 {
		return l
	}
	h := l.hierarchies[len(l.hierarchies)-1]
	if !h.v2 {
		t.Skip("no v2 hierarchy on this host")
	}
	return &layout{v2: true, hierarchies: []hierarchy{h}}
}

func v1(t testing.TB) {
	l, err := host()
	if err != nil {
		t.Fatal(err)
	}
	if l.v2 {
		t.Skip("no v1 on this host")
	}
}

// everything is one of each setting that this machine's controllers have.
func everything() *specs.LinuxResources {
	return &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr[int64](64 << 20), Swap: ptr[int64](128 << 20), Reservation: ptr[int64](32 << 20), Swappiness: ptr[uint64](10)},
		CPU:    &specs.LinuxCPU{Shares: ptr[uint64](512), Quota: ptr[int64](50000), Period: ptr[uint64](100000), Burst: ptr[uint64](1000), Cpus: "0", Mems: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr[int64](20)},
	}
}

func TestACreatedCgroupIsInEveryHierarchyWithItsLimits(t *testing.T) {
	v1(t)
	p := parent(t)
	c := create(t, Config{Path: p + "/a", ID: "a", Resources: everything()})
	for _, x := range []struct{ controller, file, want string }{
		{"memory", "memory.limit_in_bytes", "67108864"}, {"memory", "memory.memsw.limit_in_bytes", "134217728"},
		{"memory", "memory.soft_limit_in_bytes", "33554432"}, {"memory", "memory.swappiness", "10"},
		{"cpu", "cpu.shares", "512"}, {"cpu", "cpu.cfs_quota_us", "50000"}, {"cpu", "cpu.cfs_burst_us", "1000"},
		{"cpuset", "cpuset.cpus", "0"}, {"cpuset", "cpuset.mems", "0"}, {"pids", "pids.max", "20"},
	} {
		if got, err := read(c.dir(x.controller), x.file); err != nil || strings.TrimSpace(got) != x.want {
			t.Errorf("%s is %q (%v), want %s", x.file, got, err, x.want)
		}
	}
	got, _ := read(c.dir("devices"), "devices.list")
	want := "c *:* m\nb *:* m\nc 1:3 rwm\nc 1:8 rwm\nc 1:7 rwm\nc 5:0 rwm\nc 1:5 rwm\nc 1:9 rwm\nc 136:* rwm\nc 5:2 rwm\nc 10:200 rwm\n"
	if got != want {
		t.Errorf("devices.list is\n%swant\n%s", got, want)
	}
	cmd := helper(t, "sleep", nil)
	if err := c.Join(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	own, err := ownCgroups(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	l, err := host()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range own {
		// What is mounted nowhere stays known to the kernel while a cgroup in it is dying.
		mounted := slices.ContainsFunc(l.hierarchies, func(m hierarchy) bool { return m.v2 == h.v2 && slices.Equal(m.controllers, h.controllers) })
		if mounted && h.own != p+"/a" {
			t.Errorf("in %v it is in %s", h.controllers, h.own)
		}
	}
	if pids, err := c.Pids(); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("Pids: %v, %v", pids, err)
	}
	if _, err := Load(Config{Path: p + "/a", ID: "a"}); err != nil {
		t.Error(err)
	}
	if _, err := Load(Config{Path: p + "/b", ID: "b"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of nothing: %v", err)
	}
	if err := c.Delete(); err == nil || !strings.Contains(err.Error(), strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("Delete while a process runs: %v, want its pid in it", err)
	}
}

// The same resources set by us and by runc's library give the same files.
func TestWhatWeSetIsWhatRuncsLibrarySets(t *testing.T) {
	v1(t)
	_, _ = libcgroups.ReadFile("/sys/fs/cgroup/cpu", "cpu.shares") // the library keeps an fd
	p := parent(t)
	for name, r := range map[string]struct {
		ours *specs.LinuxResources
		lib  *libcgroups.Resources
	}{
		"everything": {everything(), &libcgroups.Resources{
			Memory: 64 << 20, MemorySwap: 128 << 20, MemoryReservation: 32 << 20, MemorySwappiness: ptr[uint64](10),
			CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, CpuBurst: ptr[uint64](1000), CpusetCpus: "0", CpusetMems: "0", PidsLimit: ptr[int64](20)}},
		"nothing":       {nil, &libcgroups.Resources{}},
		"no limits":     {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](-1)}, Pids: &specs.LinuxPids{Limit: ptr[int64](-1)}, CPU: &specs.LinuxCPU{Quota: ptr[int64](-1)}}, &libcgroups.Resources{Memory: -1, PidsLimit: ptr[int64](-1), CpuQuota: -1}},
		"no pids":       {&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](0)}}, &libcgroups.Resources{PidsLimit: ptr[int64](0)}},
		"long period":   {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](5000), Period: ptr[uint64](1000000)}}, &libcgroups.Resources{CpuQuota: 5000, CpuPeriod: 1000000}},
		"idle":          {&specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr[int64](1)}}, &libcgroups.Resources{CPUIdle: ptr[int64](1)}},
		"oom kill off":  {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](1 << 24), DisableOOMKiller: ptr(true)}}, &libcgroups.Resources{Memory: 1 << 24, OomKillDisable: true}},
		"burst, no max": {&specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: ptr[uint64](0)}}, &libcgroups.Resources{CpuBurst: ptr[uint64](0)}},
	} {
		t.Run(name, func(t *testing.T) {
			c := create(t, Config{Path: p + "/ours", ID: "ours", Resources: r.ours})
			m, err := libfs.NewManager(&libcgroups.Cgroup{Path: p + "/lib", Resources: r.lib}, nil)
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
			compared := 0
			for _, dir := range c.dirs {
				es, err := os.ReadDir(dir)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range es {
					n := e.Name()
					if e.IsDir() || strings.HasPrefix(n, "devices.") || strings.Contains(n, "usage") || strings.Contains(n, "stat") {
						continue
					}
					got, err1 := read(dir, n)
					want, err2 := read(strings.Replace(dir, p+"/ours", p+"/lib", 1), n)
					if got != want || (err1 == nil) != (err2 == nil) {
						t.Errorf("%s/%s: we have %q, the library %q", dir, n, got, want)
					}
					compared++
				}
			}
			if compared < 50 {
				t.Errorf("only %d files were there to compare", compared)
			}
		})
	}
}

func TestAFailedCreateLeavesNothing(t *testing.T) {
	v1(t)
	for name, x := range map[string]struct {
		r    *specs.LinuxResources
		want string
	}{
		"a controller that is not mounted":   {&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}}, "linux.resources.hugepageLimits[0]: the hugetlb controller is not mounted"},
		"a CPU that is not there":            {&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4000"}}, "linux.resources.cpu.cpus: write "},
		"a node that is not there":           {&specs.LinuxResources{CPU: &specs.LinuxCPU{Mems: "900"}}, "linux.resources.cpu.mems: write "},
		"a block device that is not there":   {&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 4000, Minor: 1}, Rate: 1}}}}, "linux.resources.blockIO.throttleReadBpsDevice[0]: write "},
		"swap less than what the parent has": {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](1000), Period: ptr[uint64](1000), Burst: ptr[uint64](1 << 60)}}, "linux.resources.cpu.burst: write "},
	} {
		t.Run(name, func(t *testing.T) {
			p := parent(t)
			c, err := New(Config{Path: p + "/x/y/z", ID: "z", Resources: x.r})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Create(context.Background(), 0); err == nil || !strings.HasPrefix(err.Error(), x.want) {
				t.Errorf("Create: %v, want %s", err, x.want)
			} else if mounted := !strings.Contains(err.Error(), "not mounted"); errdefs.IsInvalidArgument(err) != mounted || errdefs.IsFailedPrecondition(err) == mounted {
				t.Errorf("of another kind: %v", err)
			}
			for _, h := range c.layout.hierarchies {
				if _, err := os.Lstat(h.dir + p); err == nil {
					t.Errorf("%s is left", h.dir+p)
				}
			}
		})
	}
}

func TestACgroupInUseIsNotTakenOver(t *testing.T) {
	p := parent(t)
	c := create(t, Config{Path: p + "/a", ID: "a"})
	again, err := New(Config{Path: p + "/a", ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Create(context.Background(), 0); err != nil {
		t.Errorf("an empty one is taken: %v", err)
	}
	if err := c.Freeze(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := again.Create(context.Background(), 0); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("a frozen one: %v", err)
	}
	if err := c.Thaw(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := c.Join(helper(t, "sleep", nil).Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := again.Create(context.Background(), 0); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("one with a process: %v", err)
	}
	if _, err := os.Lstat(c.dirs[0]); err != nil {
		t.Errorf("the one in use is gone: %v", err)
	}
}

func TestDeleteRemovesWhatTheContainerMadeHoweverDeep(t *testing.T) {
	p := parent(t)
	c := create(t, Config{Path: p + "/a", ID: "a"})
	deep := strings.Repeat("d", 250)
	fd, err := unix.Open(c.dirs[len(c.dirs)-1], unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 30 { // 7500 bytes: no path can name it
		if err := unix.Mkdirat(fd, deep, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, deep, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	for _, dir := range c.dirs {
		if err := os.MkdirAll(dir+"/x/y", 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.Mkdir(dir+"/z", 0o755)
	}
	if err := c.Delete(); err != nil {
		t.Error(err)
	}
	for _, dir := range c.dirs {
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
	if err := c.Delete(); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestUpdateChangesLimitsBothWaysAndPutsThemBackOnFailure(t *testing.T) {
	v1(t)
	p := parent(t)
	c := create(t, Config{Path: p + "/a", ID: "a", Resources: everything()})
	memory := func(limit, swap int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}}
	}
	for _, r := range []*specs.LinuxResources{
		memory(512<<20, 1<<30), memory(32<<20, 40<<20), memory(-1, -1), memory(32<<20, 40<<20),
		{CPU: &specs.LinuxCPU{Quota: ptr[int64](2000), Period: ptr[uint64](2000)}},
		{CPU: &specs.LinuxCPU{Quota: ptr[int64](900000), Period: ptr[uint64](1000000)}},
		{Pids: &specs.LinuxPids{Limit: ptr[int64](-1)}},
	} {
		if err := c.Update(r); err != nil {
			t.Error(err)
		}
	}
	if got, _ := read(c.dir("pids"), "pids.max"); got != "max\n" {
		t.Errorf("pids.max is %q", got)
	}
	err := c.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](16 << 20)}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}})
	if err == nil || !strings.HasPrefix(err.Error(), "linux.resources.hugepageLimits[0]") {
		t.Errorf("Update: %v", err)
	}
	if got, _ := read(c.dir("memory"), "memory.limit_in_bytes"); got != fmt.Sprintln(32<<20) {
		t.Errorf("the memory limit was not put back: %q", got)
	}
}

// A single thread that writes "0" to the files is in the cgroup.
func TestAThreadJoinsByItself(t *testing.T) {
	p := parent(t)
	c := create(t, Config{Path: p + "/a", ID: "a"})
	files, err := c.JoinFiles(true)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CGROUP_TEST_HELPER=self")
	cmd.ExtraFiles, cmd.Stderr = files, os.Stderr
	out, err := cmd.Output()
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(out), ":"+p+"/a\n"); n != len(c.dirs) {
		t.Errorf("it is in %d of %d hierarchies:\n%s", n, len(c.dirs), out)
	}
}

func TestManyAtOnceShareAParentThatComesAndGoes(t *testing.T) {
	p := parent(t)
	stop := make(chan struct{})
	var wg, rm sync.WaitGroup
	l, err := host()
	if err != nil {
		t.Fatal(err)
	}
	rm.Go(func() { // an administrator who tidies up
		for {
			select {
			case <-stop:
				return
			default:
				for _, h := range l.hierarchies {
					_ = unix.Rmdir(h.dir + p)
				}
				time.Sleep(100 * time.Microsecond)
			}
		}
	})
	for w := range 4 {
		wg.Go(func() {
			for i := range 10 {
				c, err := New(Config{Path: fmt.Sprintf("%s/%d-%d", p, w, i), ID: "x"})
				if err != nil {
					t.Error(err)
					return
				}
				if err := c.Create(context.Background(), 0); err != nil {
					t.Error(err)
				}
				if err := c.Delete(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	rm.Wait()
}
