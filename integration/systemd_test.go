package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

func TestSystemdsCgroupDriverIsRefusedWhereSystemdIsNotTheInit(t *testing.T) {
	if harness.HasSystemd() {
		t.Skip("systemd is the init of this host")
	}
	e := start(t)
	c := e.Container(harness.Sleep(), oci.WithCgroup(e.ScopePath("x")))
	err := c.TryCreate(harness.WithSystemdCgroup)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "SystemdCgroup: systemd is not the init of this host") {
		t.Errorf("got %v", err)
	}
	// Without the option it is a directory's name.
	c.Create()
	if _, err := os.Stat("/sys/fs/cgroup/pids/" + e.ScopePath("x")); err != nil && !onV2() {
		t.Error(err)
	}
}

func TestAPathForSystemdIsAScopeWithoutTheOption(t *testing.T) {
	if peer() {
		t.Skip("to runc it is a directory's name then")
	}
	e := withSystemd(t)
	for _, end := range []func(c *harness.Container){
		func(c *harness.Container) {
			c.Kill(syscall.SIGKILL)
			c.Wait()
			c.Delete()
		},
		func(c *harness.Container) { // what the delete verb knows is the bundle
			for _, pid := range shims(e) {
				e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill the shim")
			}
			c.DeleteOfDeadShim()
		},
	} {
		c := scope(e, "unsaid", harness.Sleep())
		c.Run()
		if got := systemctl(e, "is-active", "rsys-unsaid.scope"); got != "active" {
			t.Errorf("the scope is %s", got)
		}
		end(c)
	}
}

// withSystemd begins a test that needs systemd.
func withSystemd(t *testing.T) *harness.Env {
	t.Helper()
	if !harness.HasSystemd() {
		t.Skip("systemd is not the init of this host; hack/vm-test runs this where it is")
	}
	return start(t)
}

// scope makes a container that is a scope of this name.
func scope(e *harness.Env, name string, args []string, opts ...oci.SpecOpts) *harness.Container {
	return e.Container(args, append(opts, oci.WithCgroup(e.ScopePath(name)))...)
}

// runScope creates and starts it.
func runScope(c *harness.Container) *harness.Container {
	c.Helper()
	c.Create(harness.WithSystemdCgroup)
	c.Start()
	return c
}

func systemctl(e *harness.Env, args ...string) string {
	e.Helper()
	out, err := exec.CommandContext(e.Ctx, "systemctl", args...).CombinedOutput()
	e.Must(err, "systemctl %v: %s", args, out)
	return strings.TrimSpace(string(out))
}

// property is one of a unit's, as systemctl shows it.
func property(e *harness.Env, unit, name string) string {
	e.Helper()
	return systemctl(e, "show", "-p", name, "--value", unit)
}

// scopeFile reads a file of a scope's cgroup, by its controller and name on v1.
func scopeFile(e *harness.Env, unit, v2, v1 string) string {
	controller, name, _ := strings.Cut(v1, "/")
	path := filepath.Join("/sys/fs/cgroup", controller, e.SliceDir(), unit, name)
	if onV2() {
		path = filepath.Join("/sys/fs/cgroup", e.SliceDir(), unit, v2)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(data))
}

func onV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// files are those of a scope by their names on v2, or with their controllers on v1.
type files map[string]string

func (want files) check(e *harness.Env, when, unit string) {
	e.Helper()
	for name, value := range want {
		if got := scopeFile(e, unit, name, name); got != value {
			e.Errorf("%s: %s is %q, want %q", when, name, got, value)
		}
	}
}

// limited are limits of every kind that systemd has a property for, and some that it has none for.
func limited() oci.SpecOpts {
	return change(func(s *oci.Spec) {
		limit, low, swap, pids := int64(64<<20), int64(8<<20), int64(64<<20), int64(40)
		shares, quota, period := uint64(512), int64(12345), uint64(50000)
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Reservation: &low, Swap: &swap}
		s.Linux.Resources.CPU = &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period, Cpus: "1", Mems: "0"}
		s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
		if onV2() {
			s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}
			s.Linux.Resources.Unified = map[string]string{"memory.high": "50331648"}
		}
	})
}

// limits are limited as the kernel and as systemd have it. The quota is 24.69 % of a processor, of which systemd keeps whole percents.
func limits() (inFiles, inUnit files) {
	inUnit = files{"TasksMax": "40", "CPUQuotaPerSecUSec": "250ms", "CPUQuotaPeriodUSec": "50ms", "AllowedCPUs": "1", "AllowedMemoryNodes": "0", "DevicePolicy": "strict"}
	if !onV2() {
		inUnit["MemoryLimit"], inUnit["CPUShares"], inUnit["BlockIOAccounting"] = "67108864", "512", "yes"
		return files{
			"memory/memory.limit_in_bytes": "67108864", "memory/memory.memsw.limit_in_bytes": "67108864", "memory/memory.soft_limit_in_bytes": "8388608",
			"pids/pids.max": "40", "cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "12500", "cpu/cpu.cfs_period_us": "50000",
			"cpuset/cpuset.cpus": "1", "cpuset/cpuset.mems": "0",
		}, inUnit
	}
	for name, value := range (files{"MemoryMax": "67108864", "MemoryLow": "8388608", "MemorySwapMax": "0", "MemoryHigh": "50331648", "CPUWeight": "59", "IOAccounting": "yes"}) {
		inUnit[name] = value
	}
	return files{
		"memory.max": "67108864", "memory.low": "8388608", "memory.swap.max": "0", "memory.high": "50331648", "pids.max": "40",
		"cpu.weight": "59", "cpu.max": "12500 50000", "cpuset.cpus": "1", "cpuset.mems": "0", "hugetlb.2MB.max": "4194304",
	}, inUnit
}

func TestAScopeHasWhatTheConfigSays(t *testing.T) {
	e := withSystemd(t)
	const unit = "rsys-what.scope"
	c := runScope(scope(e, "what", harness.Sh("cat /proc/self/cgroup", "sleep 3600"), limited(), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace})))
	e.Eventually("it tells", func() bool { return c.IO.Stdout.String() != "" })
	in := func(cgroups string) map[string]bool {
		paths := map[string]bool{}
		for line := range strings.Lines(cgroups) {
			paths[strings.SplitN(strings.TrimSpace(line), ":", 3)[2]] = true
		}
		return paths
	}
	if got := in(c.IO.Stdout.String()); len(got) != 1 || !got["/"] {
		t.Errorf("inside, its cgroups are %v: its namespace was not made in its cgroup", got)
	}
	cgroup, err := os.ReadFile("/proc/" + strconv.Itoa(int(c.Task.Pid())) + "/cgroup")
	e.Must(err, "read its cgroup")
	if got := in(string(cgroup)); len(got) != 1 || !got[e.SliceDir()+"/"+unit] {
		t.Errorf("it is in %v, want %s/%s in all hierarchies", got, e.SliceDir(), unit)
	}
	inFiles, inUnit := limits()
	inFiles.check(e, "at first", unit)
	for name, value := range (files{
		"ActiveState": "active", "Slice": e.Slice(), "Delegate": "yes", "DefaultDependencies": "no", "CollectMode": "inactive-or-failed", "Transient": "yes",
		"MemoryAccounting": "yes", "CPUAccounting": "yes", "TasksAccounting": "yes",
	}) {
		inUnit[name] = value
	}
	for name, want := range inUnit {
		if got := property(e, unit, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := scopeFile(e, unit, "cgroup.procs", "systemd/cgroup.procs"); got != strconv.Itoa(int(c.Task.Pid())) {
		t.Errorf("in the cgroup are %q, want the container's process %d alone", got, c.Task.Pid())
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
	if got := property(e, unit, "LoadState"); got != "not-found" {
		t.Errorf("after its delete the unit is %q", got)
	}
}

// TestAScopeKeepsItsLimits has systemd write all that it knows to all cgroups again.
func TestAScopeKeepsItsLimits(t *testing.T) {
	const unit = "rsys-keeps.scope"
	device := "dd if=/dev/zero of=/dev/null bs=1 count=1 2>/dev/null && echo -n zero; mknod /tmp/kmsg c 1 11; dd if=/tmp/kmsg of=/dev/null count=1 2>/dev/null || echo -n ,nothing"
	for _, again := range []string{"daemon-reload", "daemon-reexec"} {
		t.Run(again, func(t *testing.T) {
			e := withSystemd(t)
			c := runScope(scope(e, "keeps", harness.Sleep(), limited(), oci.WithAddedCapabilities([]string{"CAP_MKNOD"})))
			devices := func(when string) {
				t.Helper()
				if got := c.RunExec("sh", "-c", device+"; rm /tmp/kmsg"); got.Stdout != "zero,nothing" {
					t.Errorf("%s: of devices it can use %+v", when, got)
				}
			}
			devices("at first")
			systemctl(e, again)
			inFiles, _ := limits()
			inFiles.check(e, "after "+again, unit)
			devices("after " + again)
			if got := property(e, unit, "ActiveState"); got != "active" {
				t.Errorf("it is %s", got)
			}
			limit, pids, weight := int64(48<<20), int64(30), uint64(1024)
			e.Must(c.Task.Update(e.Ctx, client.WithResources(&specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}, Pids: &specs.LinuxPids{Limit: &pids}, CPU: &specs.LinuxCPU{Shares: &weight},
			})), "update")
			updated, props := inFiles, files{"MemoryMax": "50331648", "TasksMax": "30", "CPUWeight": "100"}
			changed := files{"memory.max": "50331648", "pids.max": "30", "cpu.weight": "100"}
			if !onV2() {
				changed = files{"memory/memory.limit_in_bytes": "50331648", "memory/memory.memsw.limit_in_bytes": "50331648", "pids/pids.max": "30", "cpu/cpu.shares": "1024"}
				props = files{"MemoryLimit": "50331648", "TasksMax": "30", "CPUShares": "1024"}
			}
			for name, value := range changed {
				updated[name] = value
			}
			updated.check(e, "after an update", unit)
			systemctl(e, again)
			updated.check(e, "after an update and "+again, unit)
			for name, want := range props {
				if got := property(e, unit, name); got != want {
					t.Errorf("%s is %s, want %s", name, got, want)
				}
			}
			devices("after an update")
			e.Must(c.Task.Pause(e.Ctx), "pause")
			for _, when := range []string{"paused", again} {
				if got := scopeFile(e, unit, "cgroup.freeze", "freezer/freezer.self_freezing"); got != "1" {
					t.Errorf("after it is %s, it is frozen: %s", when, got)
				}
				if when == "paused" {
					systemctl(e, again)
				}
			}
			e.Must(c.Task.Resume(e.Ctx), "resume")
		})
	}
}

func TestAnUpdateThatTheKernelRefusesIsTakenBackFromSystemdToo(t *testing.T) {
	e := withSystemd(t)
	const unit = "rsys-back.scope"
	c := runScope(scope(e, "back", harness.Sleep(), limited()))
	pids := int64(20)
	err := c.Task.Update(e.Ctx, client.WithResources(&specs.LinuxResources{
		Pids: &specs.LinuxPids{Limit: &pids}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 1}},
	}))
	if err == nil || !strings.Contains(err.Error(), "linux.resources.hugepageLimits[0]") {
		t.Fatalf("got %v", err)
	}
	inFiles, _ := limits()
	inFiles.check(e, "after it", unit)
	systemctl(e, "daemon-reload")
	inFiles.check(e, "after daemon-reload", unit)
	if got := property(e, unit, "TasksMax"); got != "40" {
		t.Errorf("TasksMax is %s", got)
	}
}

func TestAScopeWithoutAPathIsInSystemSlice(t *testing.T) {
	e := withSystemd(t)
	c := e.Container(harness.Sleep(), oci.WithCgroup(""))
	runScope(c)
	unit := "rsys-" + c.ID() + ".scope"
	if got := property(e, unit, "ControlGroup"); got != "/system.slice/"+unit {
		t.Errorf("it is %q", got)
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(int(c.Task.Pid())) + "/cgroup")
	if err != nil || !strings.Contains(string(data), "/system.slice/"+unit+"\n") {
		t.Errorf("it is in %q, %v", data, err)
	}
}

func TestAScopeIsBornWithAPidsLimitOfOne(t *testing.T) {
	e := withSystemd(t)
	c := scope(e, "one", []string{"sleep", "3600"}, oci.WithPidsLimit(1))
	c.Create(harness.WithSystemdCgroup)
	for _, when := range []string{"created", "running"} {
		for name, want := range (files{"pids.max": "1", "pids.current": "1"}) {
			if got := scopeFile(e, "rsys-one.scope", name, "pids/"+name); got != want {
				t.Errorf("%s: %s is %s, want %s", when, name, got, want)
			}
		}
		if got := property(e, "rsys-one.scope", "TasksMax"); got != "1" {
			t.Errorf("%s: TasksMax is %s", when, got)
		}
		if when == "created" {
			c.Start()
		}
	}
}

func TestAnnotationsAreProperties(t *testing.T) {
	e := withSystemd(t)
	annotated := func(name, value string) oci.SpecOpts {
		return oci.WithAnnotations(map[string]string{"org.systemd.property." + name: value})
	}
	runScope(scope(e, "ann", harness.Sleep(), annotated("TimeoutStopSec", "123"), annotated("CollectMode", "'inactive'"), annotated("MemoryMin", "uint64 4194304")))
	for name, want := range map[string]string{"TimeoutStopUSec": "2min 3s", "CollectMode": "inactive", "MemoryMin": "4194304"} {
		if got := property(e, "rsys-ann.scope", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for name, bad := range map[string]oci.SpecOpts{
		"no value":              annotated("TimeoutStopSec", ""),
		"not a number":          annotated("TimeoutStopSec", "'x'"),
		"not a name":            annotated("Timeout-Stop", "1"),
		"systemd knows it not":  annotated("NoSuchThing", "1"),
		"systemd won't have it": annotated("TasksMax", "'many'"),
	} {
		err := scope(e, "bad", harness.Sleep(), bad).TryCreate(harness.WithSystemdCgroup)
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
		if got := property(e, "rsys-bad.scope", "LoadState"); got != "not-found" {
			t.Errorf("%s: the unit is %q", name, got)
		}
	}
}

func TestAPathThatIsNotAScopesIsRefused(t *testing.T) {
	e := withSystemd(t)
	for _, path := range []string{"/default/x", "a:b", "a.slice:b:c:d", "a:b:c", "a/b.slice:c:d", "a--b.slice:c:d", "a.slice:b:c d", "a.slice:b:c.slice", "a.slice:b:"} {
		err := e.Container(harness.Sleep(), oci.WithCgroup(path)).TryCreate(harness.WithSystemdCgroup)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "linux.cgroupsPath: ") {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestAScopeThatExistsIsNotTakenNorHarmed(t *testing.T) {
	e := withSystemd(t)
	first := runScope(scope(e, "twice", harness.Sleep()))
	err := scope(e, "twice", harness.Sleep()).TryCreate(harness.WithSystemdCgroup)
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("got %v", err)
	}
	if got := first.RunExec("echo", "alive"); got.Stdout != "alive\n" {
		t.Errorf("the first one then: %+v", got)
	}
	if got := property(e, "rsys-twice.scope", "ActiveState"); got != "active" {
		t.Errorf("the first one's unit is %s", got)
	}
}

func TestAScopeIsGoneAfterItsShimWasKilled(t *testing.T) {
	for _, state := range []string{"created", "running", "paused"} {
		t.Run(state, func(t *testing.T) {
			if !harness.HasSystemd() {
				t.Skip("systemd is not the init of this host; hack/vm-test runs this where it is")
			}
			e := startToKill(t)
			c := scope(e, "killed", harness.Sleep())
			c.Create(harness.WithSystemdCgroup)
			if state != "created" {
				c.Start()
			}
			if state == "paused" {
				e.Must(c.Task.Pause(e.Ctx), "pause")
			}
			e.Must(syscall.Kill(shims(e)[0], syscall.SIGKILL), "kill the shim")
			e.Eventually("the unit is gone", func() bool { return property(e, "rsys-killed.scope", "LoadState") == "not-found" })
			e.Eventually("the task can be deleted", func() bool {
				task, err := c.Container.Task(e.Ctx, nil)
				if err == nil {
					_, err = task.Delete(e.Ctx)
				}
				return err == nil || errdefs.IsNotFound(err)
			})
			c.Task.IO().Cancel()
			c.Task.IO().Close()
			c.Task = nil
		})
	}
}

func TestAScopeEndsWithItsLastProcess(t *testing.T) {
	e := withSystemd(t)
	events := record(e)
	c := runScope(scope(e, "ends", harness.Sh("tail /dev/zero"), oci.WithMemoryLimit(16<<20), oci.WithMemorySwap(16<<20)))
	if got := c.Wait(); got.Code != 137 {
		t.Errorf("got %+v", got)
	}
	events.eventually("an oom event", func(seen []string) bool { return slices.Contains(seen, "oom "+c.ID()) })
	// Nobody has deleted the task.
	e.Eventually("the unit is gone", func() bool { return property(e, "rsys-ends.scope", "LoadState") == "not-found" })
	c.Delete()
}

func TestScopesComeAndGoWhileSystemdIsExecutedAnew(t *testing.T) {
	e := withSystemd(t)
	const lives = "rsys-lives.scope"
	one := runScope(scope(e, "lives", harness.Sleep(), limited()))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		took := time.Duration(0)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			// Half of the time, on a machine where it takes seconds: systemd is to have some for what it is asked, too.
			case <-time.After(max(100*time.Millisecond, took)):
				began := time.Now()
				// With the first every connection to it breaks.
				again := []string{"daemon-reexec", "daemon-reload"}[i%2]
				if out, err := exec.CommandContext(e.Ctx, "systemctl", again).CombinedOutput(); err != nil {
					t.Logf("%s: %v: %s", again, err, out)
				}
				took = time.Since(began)
			}
		}
	}()
	defer func() {
		close(stop)
		<-stopped
	}()
	pids := int64(20)
	for i := range 5 {
		name := "anew" + strconv.Itoa(i)
		c := runScope(scope(e, name, harness.Sleep(), oci.WithPidsLimit(10)))
		e.Must(c.Task.Update(e.Ctx, client.WithResources(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}})), "update")
		if got := scopeFile(e, "rsys-"+name+".scope", "pids.max", "pids/pids.max"); got != "20" {
			t.Errorf("the pids limit is %s", got)
		}
		// One that lives is not touched by any of it.
		if got := one.RunExec("echo", name); got.Stdout != name+"\n" {
			t.Errorf("an exec in the one that lives: %+v", got)
		}
		inFiles, _ := limits()
		inFiles.check(e, "with "+name, lives)
		c.Kill(syscall.SIGKILL)
		c.Wait()
		c.Delete()
		// At once, or if systemd had no time for the delete, when it has.
		e.Eventually("the cgroup of "+name+" is gone after its delete", func() bool {
			_, err := os.Stat("/sys/fs/cgroup/" + map[bool]string{true: "", false: "systemd"}[onV2()] + e.SliceDir() + "/rsys-" + name + ".scope")
			return os.IsNotExist(err)
		})
	}
}

// TestAScopeThatIsDeletedWhileSystemdIsBusyIsGoneInTheEnd: after a reload systemd makes the cgroups of all units that it had before, so one that
// was removed behind its back would come back, and stay.
func TestAScopeThatIsDeletedWhileSystemdIsBusyIsGoneInTheEnd(t *testing.T) {
	e := withSystemd(t)
	const unit, generators = "rsys-busy.scope", "/run/systemd/system-generators"
	dir := t.TempDir()
	begun, end := filepath.Join(dir, "begun"), filepath.Join(dir, "end")
	c := runScope(scope(e, "busy", harness.Sleep()))
	// systemd does nothing else while it waits for a generator.
	e.Must(os.MkdirAll(generators, 0o755), "directory")
	generator := filepath.Join(generators, "rsys-busy")
	e.Must(os.WriteFile(generator, []byte("#!/bin/sh\n: >"+begun+"\nuntil [ -e "+end+" ]; do sleep 0.1; done\n"), 0o755), "generator")
	defer os.Remove(generator)
	reload := exec.Command("systemctl", "daemon-reload")
	e.Must(reload.Start(), "daemon-reload")
	defer func() { _ = reload.Wait() }()
	finish := sync.OnceFunc(func() { e.Must(os.WriteFile(end, nil, 0o600), "end") })
	defer finish()
	e.Eventually("systemd is busy", func() bool { _, err := os.Stat(begun); return err == nil })
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
	e.Must(os.Remove(generator), "remove the generator")
	finish()
	e.Must(reload.Wait(), "daemon-reload")
	e.Eventually("the unit is gone", func() bool { return property(e, unit, "LoadState") == "not-found" })
	e.Eventually("its cgroups are gone", func() bool {
		dirs, err := filepath.Glob("/sys/fs/cgroup/*" + e.SliceDir() + "/" + unit)
		e.Must(err, "glob")
		_, err = os.Lstat("/sys/fs/cgroup" + e.SliceDir() + "/" + unit)
		return len(dirs) == 0 && os.IsNotExist(err)
	})
}
