package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	cg1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cg2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// cgroupFile reads a file of a container's cgroup, by its name in cgroup v1
// (controller/file) or in v2.
func cgroupFile(e *harness.Env, id, v1, v2 string) string {
	e.Helper()
	controller, file, _ := strings.Cut(v1, "/")
	path := filepath.Join("/sys/fs/cgroup", controller, e.Cgroup(id), file)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		path = filepath.Join("/sys/fs/cgroup", e.Cgroup(id), v2)
	}
	data, err := os.ReadFile(path)
	e.Must(err, "read a file of the cgroup")
	return strings.TrimSpace(string(data))
}

func TestKillAllReachesEveryProcess(t *testing.T) {
	e := start(t)
	// The others are not children of the first, but in its PID namespace.
	c := e.Container(harness.Sleep()).Run()
	var execs []*harness.Exec
	for range 3 {
		execs = append(execs, c.Exec(nil, c.Process([]string{"sleep", "3600"})).StartExec())
	}
	c.Kill(syscall.SIGKILL, client.WithKillAll)
	for _, x := range execs {
		if got := x.WaitExec(); got.Code != 137 {
			t.Errorf("an exec's exit code is %d, want 137", got.Code)
		}
	}
	if got := c.Wait(); got.Code != 137 {
		t.Errorf("exit code %d, want 137", got.Code)
	}
	c.Delete()
}

func TestKillAllReachesProcessesInTheHostsPIDNamespace(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("sleep 3601 & sleep 3602 & echo up; wait"), oci.WithHostNamespace(specs.PIDNamespace)).Run()
	e.Eventually("it is up", func() bool { return c.IO.Stdout.String() == "up\n" })
	c.Kill(syscall.SIGKILL, client.WithKillAll)
	if got := c.Wait(); got.Code != 137 {
		t.Errorf("exit code %d, want 137", got.Code)
	}
	c.Delete()
}

func TestChildrenInTheHostsPIDNamespaceDoNotOutliveTheContainer(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("sleep 3603 >/dev/null 2>&1 & exit 4"), oci.WithHostNamespace(specs.PIDNamespace))
	if got := c.Finish(); got.Code != 4 {
		t.Errorf("got %+v", got)
	}
	// What is left is found by the check at the end.
}

func TestAPausedContainerStandsStillAndGoesOn(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done")).Run()
	e.Eventually("it counts", func() bool { return len(c.IO.Stdout.String()) > 0 })
	e.Must(c.Task.Pause(e.Ctx), "pause")
	if got := c.Status(); got != client.Paused {
		t.Errorf("state is %q, want paused", got)
	}
	time.Sleep(50 * time.Millisecond) // what is in the pipe
	before := c.IO.Stdout.String()
	time.Sleep(200 * time.Millisecond)
	if after := c.IO.Stdout.String(); after != before {
		t.Errorf("it went on while paused: %q", after[len(before):])
	}
	e.Must(c.Task.Resume(e.Ctx), "resume")
	if got := c.Status(); got != client.Running {
		t.Errorf("state is %q, want running", got)
	}
	e.Eventually("it counts again", func() bool { return len(c.IO.Stdout.String()) > len(before) })
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
}

func TestAPausedContainerIsKilled(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep()).Run()
	e.Must(c.Task.Pause(e.Ctx), "pause")
	c.Kill(syscall.SIGKILL)
	if peer() {
		// runc thaws on kill since 1.1; some versions need it said.
		_ = c.Task.Resume(e.Ctx)
	}
	if got := c.Wait(); got.Code != 137 {
		t.Errorf("exit code %d, want 137", got.Code)
	}
	c.Delete()
}

func TestUpdatedLimitsAreSeenInTheCgroup(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep(), oci.WithMemoryLimit(64<<20), oci.WithCPUShares(512), oci.WithPidsLimit(50)).Run()
	check := func(mem, shares, pids string) {
		t.Helper()
		if got := cgroupFile(e, c.ID(), "memory/memory.limit_in_bytes", "memory.max"); got != mem {
			t.Errorf("the memory limit is %s, want %s", got, mem)
		}
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
			if got := cgroupFile(e, c.ID(), "cpu/cpu.shares", ""); got != shares {
				t.Errorf("cpu shares are %s, want %s", got, shares)
			}
		}
		if got := cgroupFile(e, c.ID(), "pids/pids.max", "pids.max"); got != pids {
			t.Errorf("the pids limit is %s, want %s", got, pids)
		}
	}
	check("67108864", "512", "50")
	limit, shares, pids := int64(32<<20), uint64(256), int64(20)
	e.Must(c.Task.Update(e.Ctx, client.WithResources(&specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Shares: &shares}, Pids: &specs.LinuxPids{Limit: &pids},
	})), "update")
	check("33554432", "256", "20")
}

func TestMetricsTellWhatTheContainerUses(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 3600"), oci.WithMemoryLimit(128<<20)).Run()
	e.Eventually("it has done some work", func() bool { return c.IO.Stdout.String() == "done\n" })
	m, err := c.Task.Metrics(e.Ctx)
	e.Must(err, "metrics")
	v, err := typeurl.UnmarshalAny(m.Data)
	e.Must(err, "unmarshal metrics")
	switch s := v.(type) {
	case *cg1.Metrics:
		if s.CPU.Usage.Total == 0 || s.Memory.Usage.Usage == 0 || s.Memory.Usage.Limit != 128<<20 || s.Pids.Current == 0 {
			t.Errorf("metrics are %+v", s)
		}
	case *cg2.Metrics:
		if s.CPU.UsageUsec == 0 || s.Memory.Usage == 0 || s.Memory.UsageLimit != 128<<20 || s.Pids.Current == 0 {
			t.Errorf("metrics are %+v", s)
		}
	default:
		t.Errorf("metrics of type %T", v)
	}
}

func TestPidsAreThoseOfTheContainersProcesses(t *testing.T) {
	e := start(t)
	c := e.Container([]string{"sleep", "3600"}).Run()
	x := c.Exec(nil, c.Process([]string{"sleep", "3600"})).StartExec()
	infos, err := c.Task.Pids(e.Ctx)
	e.Must(err, "pids")
	var got []int
	for _, i := range infos {
		got = append(got, int(i.Pid))
	}
	want := []int{int(c.Task.Pid()), int(x.Process.Pid())}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("pids are %v, want %v", got, want)
	}
	for _, pid := range got {
		e.Eventually(fmt.Sprintf("process %d is sleep", pid), func() bool {
			p, ok := harness.ReadProc(pid)
			return ok && strings.HasSuffix(p.Cmdline, "sleep 3600")
		})
	}
}

func TestAPidsLimitOfOneRunsAProgram(t *testing.T) {
	if peer() {
		t.Skip("runc's init is several threads and can't start with a pids limit of 1")
	}
	e := start(t)
	c := e.Container([]string{"true"}, oci.WithPidsLimit(1))
	if got := c.Finish(); got.Code != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestAPidsLimitHolds(t *testing.T) {
	c := start(t).Container(harness.Sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; echo all"), oci.WithPidsLimit(10))
	if got := c.Finish(); !strings.Contains(got.Stderr, "can't fork") || got.Code == 0 {
		t.Errorf("got %+v", got)
	}
}

func TestOneThatEatsTooMuchMemoryIsKilledAndSaysOOM(t *testing.T) {
	e := start(t)
	events := record(e)
	c := e.Container(harness.Sh("tail /dev/zero"), oci.WithMemoryLimit(16<<20), oci.WithMemorySwap(16<<20))
	if got := c.Finish(); got.Code != 137 {
		t.Errorf("got %+v, want exit code 137", got)
	}
	events.eventually("an oom event", func(seen []string) bool { return slices.Contains(seen, "oom "+c.ID()) })
}

func TestTheOOMOfAnExecSparesTheShim(t *testing.T) {
	e := start(t)
	c := e.Container([]string{"sleep", "3600"}, oci.WithMemoryLimit(16<<20), oci.WithMemorySwap(16<<20)).Run()
	if got := c.RunExec("tail", "/dev/zero"); got.Code != 137 {
		t.Errorf("got %+v, want exit code 137", got)
	}
	if st, err := c.Task.Status(e.Ctx); err != nil {
		t.Errorf("the shim does not answer after that: %v", err)
	} else if st.Status == client.Running {
		if got := c.RunExec("echo", "alive"); got.Stdout != "alive\n" {
			t.Errorf("an exec after that: %+v", got)
		}
	}
}

func TestAContainersCgroupIsWhereTheSpecSays(t *testing.T) {
	if harness.Systemd() {
		t.Skip("with RSYS_SYSTEMD_CGROUP the path is a scope's: TestAScopeHasWhatTheConfigSays")
	}
	e := start(t)
	path := fmt.Sprintf("/%s/below/it", e.Namespace)
	c := e.Container([]string{"sleep", "3600"}, oci.WithCgroup(path)).Run()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(int(c.Task.Pid())) + "/cgroup")
	e.Must(err, "read its cgroups")
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		_, unified := os.Stat("/sys/fs/cgroup/cgroup.controllers")
		if f[0] == "0" && unified != nil {
			continue // the v2 side of a hybrid host
		}
		if f[2] != path {
			t.Errorf("in hierarchy %q it is in %s, want %s", f[1], f[2], path)
		}
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
	_, err = c.Container.Task(e.Ctx, nil)
	if !errdefs.IsNotFound(err) {
		t.Errorf("the task after its delete: %v", err)
	}
	// Parents that the runtime made on the way are not its to remove.
	removeCgroups(e.Namespace + "/below")
}

// removeCgroups removes the cgroups of a path in all hierarchies.
func removeCgroups(path string) {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + path)
	for _, dir := range append(dirs, "/sys/fs/cgroup/"+path) {
		_ = os.Remove(dir)
	}
}
