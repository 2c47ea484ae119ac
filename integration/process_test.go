package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
	"golang.org/x/sys/unix"
)

func scheduler(s *specs.Scheduler) oci.SpecOpts {
	return change(func(spec *oci.Spec) { spec.Process.Scheduler = s })
}

// scheduling is a process's policy, real-time priority and nice value, as proc_pid_stat(5) has them.
func scheduling(e *harness.Env, pid uint32) (policy, priority, nice int) {
	e.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	e.Must(err, "stat")
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest) // from field 3 on
	num := func(field int) int {
		n, err := strconv.Atoi(f[field-3])
		e.Must(err, "field %d", field)
		return n
	}
	return num(41), num(40), num(19)
}

func TestTheSchedulerIsSet(t *testing.T) {
	for _, test := range []struct {
		s                      specs.Scheduler
		policy, priority, nice int
	}{
		{specs.Scheduler{Policy: specs.SchedOther, Nice: 6}, 0, 0, 6},
		{specs.Scheduler{Policy: specs.SchedBatch, Nice: -4}, 3, 0, -4},
		{specs.Scheduler{Policy: specs.SchedIdle}, 5, 0, 0},
		{specs.Scheduler{Policy: specs.SchedFIFO, Priority: 3}, 1, 3, 0},
		{specs.Scheduler{Policy: specs.SchedRR, Priority: 2, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}, 2 /* the flag is not in stat */, 2, 0},
	} {
		t.Run(string(test.s.Policy), func(t *testing.T) {
			e := start(t)
			c := e.Container([]string{"sleep", "3600"}, scheduler(&test.s))
			c.Create()
			if err := c.Task.Start(e.Ctx); err != nil {
				if _, statErr := os.Stat("/sys/fs/cgroup/cpu/cpu.rt_runtime_us"); statErr == nil && test.priority > 0 && strings.Contains(err.Error(), "process.scheduler (") {
					t.Skipf("this kernel gives a cgroup no real time unless asked: %v", err)
				}
				t.Fatal(err)
			}
			check := func(name string, pid uint32) {
				if p, prio, nice := scheduling(e, pid); p != test.policy || prio != test.priority || nice != test.nice {
					t.Errorf("%s: policy %d, priority %d, nice %d; want %+v", name, p, prio, nice, test)
				}
			}
			check("the container", c.Task.Pid())
			x := c.Exec(nil, c.Process([]string{"sleep", "3600"})).StartExec()
			check("an exec", x.Process.Pid())
			c.Kill(syscall.SIGKILL)
			c.Wait()
			x.WaitExec()
			c.Delete()
		})
	}
}

func TestTheIOPriorityIsSet(t *testing.T) {
	e := start(t)
	c := e.Container([]string{"sleep", "3600"}, change(func(s *oci.Spec) {
		s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	})).Run()
	x := c.Exec(nil, c.Process([]string{"sleep", "3600"}, func(p *specs.Process) {
		p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE, Priority: 0}
	})).StartExec()
	for pid, want := range map[uint32]uintptr{c.Task.Pid(): 2<<13 | 6, x.Process.Pid(): 3 << 13} {
		got, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(pid), 0)
		if errno != 0 || got != want {
			t.Errorf("I/O priority %#x, %v, want %#x", got, errno, want)
		}
	}
}

func TestAnExecRunsOnTheCPUsOfItsAffinity(t *testing.T) {
	e := start(t)
	var cpus unix.CPUSet
	e.Must(unix.SchedGetaffinity(0, &cpus), "sched_getaffinity")
	all := harness.Sh("sed -n 's/^Cpus_allowed_list:\t//p' /proc/self/status")
	c := e.Container(harness.Sleep(), change(func(s *oci.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "0"} })).Run()
	if got := c.RunExec(all...); got.Stdout != "0\n" {
		t.Errorf("the container's affinity: %+v", got)
	}
	if !onV2() {
		// On v2 it is born in the cgroup, out of whose CPUs it can't go.
		x := c.Exec(nil, c.Process(all, func(p *specs.Process) { p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "8000"} }))
		if err := x.Process.Start(e.Ctx); err == nil || !peer() && !strings.Contains(err.Error(), "process.execCPUAffinity.initial (8000): sched_setaffinity: EINVAL") {
			t.Errorf("a CPU that is not there: %v", err)
		}
		_, err := x.Process.Delete(e.Ctx)
		e.Must(err, "delete")
	}
	if cpus.Count() > 1 && cpus.IsSet(1) {
		x := c.Exec(nil, c.Process(all, func(p *specs.Process) { p.ExecCPUAffinity = &specs.CPUAffinity{Final: "1"} })).StartExec()
		if got := x.WaitExec(); got.Stdout != "1\n" {
			t.Errorf("its own: %+v", got)
		}
		var init unix.CPUSet
		e.Must(unix.SchedGetaffinity(int(c.Task.Pid()), &init), "sched_getaffinity")
		if init != cpus {
			t.Errorf("the container itself is bound to %v", init)
		}
	}
}

func TestThePersonalityAndTheMemoryPolicyAreSet(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("cat /proc/self/personality", "awk '{print $2; exit}' /proc/self/numa_maps", "sleep 3600"), change(func(s *oci.Spec) {
		s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
	})).Run()
	const want = "00000008\nbind=static:0\n"
	e.Eventually("it tells", func() bool { return strings.Count(c.IO.Stdout.String(), "\n") == 2 })
	if got := c.IO.Stdout.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := c.RunExec(harness.Sh("cat /proc/self/personality", "awk '{print $2; exit}' /proc/self/numa_maps")...); got.Stdout != want {
		t.Errorf("an exec: got %+v, want %q", got, want)
	}
}

func TestALabelWithoutItsModuleIsRefused(t *testing.T) {
	for field, set := range map[string]func(*oci.Spec){
		"process.apparmorProfile": func(s *oci.Spec) { s.Process.ApparmorProfile = "a-profile" },
		"process.selinuxLabel":    func(s *oci.Spec) { s.Process.SelinuxLabel = "system_u:system_r:container_t:s0" },
		"linux.mountLabel":        func(s *oci.Spec) { s.Linux.MountLabel = "system_u:object_r:container_file_t:s0" },
	} {
		t.Run(field, func(t *testing.T) {
			there := "/sys/fs/selinux/enforce"
			if strings.Contains(field, "apparmor") {
				there = "/sys/module/apparmor/parameters/enabled"
			}
			if _, err := os.Stat(there); err == nil {
				t.Skip("this kernel has ", there)
			}
			e := start(t)
			err := e.Container([]string{"true"}, change(set)).TryCreate()
			if err == nil {
				t.Fatal("no error")
			}
			if !peer() && !strings.Contains(err.Error(), field+": ") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestTheConsoleHasTheSizeThatIsAskedFor(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("stty size"), withTerminal, change(func(s *oci.Spec) { s.Process.ConsoleSize = &specs.Box{Height: 41, Width: 123} }))
	c.IO.Terminal = true
	if got := c.Finish(); got.Stdout != "41 123\r\n" {
		t.Errorf("got %+v", got)
	}
}

func TestLimitsAreThoseOfTheConfig(t *testing.T) {
	e := start(t)
	// In the order of the kernel's numbers, with the names that proc_pid_limits(5) has.
	names := [...][2]string{{"CPU", "Max cpu time"}, {"FSIZE", "Max file size"}, {"DATA", "Max data size"}, {"STACK", "Max stack size"},
		{"CORE", "Max core file size"}, {"RSS", "Max resident set"}, {"NPROC", "Max processes"}, {"NOFILE", "Max open files"},
		{"MEMLOCK", "Max locked memory"}, {"AS", "Max address space"}, {"LOCKS", "Max file locks"}, {"SIGPENDING", "Max pending signals"},
		{"MSGQUEUE", "Max msgqueue size"}, {"NICE", "Max nice priority"}, {"RTPRIO", "Max realtime priority"}, {"RTTIME", "Max realtime timeout"}}
	var list []specs.POSIXRlimit
	for i, n := range names {
		// Not more than we have: to raise a limit takes CAP_SYS_RESOURCE, which not every machine's root has.
		var have unix.Rlimit
		e.Must(unix.Prlimit(0, i, nil, &have), "prlimit")
		hard := min(uint64(1<<30+i), have.Max)
		list = append(list, specs.POSIXRlimit{Type: "RLIMIT_" + n[0], Soft: hard - min(hard, 1), Hard: hard})
	}
	got := e.Container([]string{"cat", "/proc/self/limits"}, change(func(s *oci.Spec) { s.Process.Rlimits = list })).Finish()
	for i, n := range names {
		_, rest, ok := strings.Cut(got.Stdout, n[1]+" ")
		f := strings.Fields(rest)
		if want := list[i]; !ok || len(f) < 2 || f[0] != fmt.Sprint(want.Soft) || f[1] != fmt.Sprint(want.Hard) {
			t.Errorf("%s: %q, want %+v", n[1], f[:min(2, len(f))], want)
		}
	}
}

func TestTheAppArmorProfileIsTheOneAskedFor(t *testing.T) {
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || on[0] != 'Y' {
		t.Skip("no AppArmor")
	}
	e := start(t)
	profile := func(name string) oci.SpecOpts {
		return change(func(s *oci.Spec) { s.Process.ApparmorProfile = name })
	}
	// There is one that needs not be loaded. That the kernel was told of it is seen by what it says to another.
	c := e.Container(harness.Sh("cat /proc/self/attr/apparmor/current", "sleep 3600"), profile("unconfined")).Run()
	e.Eventually("it tells", func() bool { return c.IO.Stdout.String() == "unconfined\n" })
	if got := c.RunExec("cat", "/proc/self/attr/apparmor/current"); got.Stdout != "unconfined\n" {
		t.Errorf("exec: got %+v", got)
	}
	err := e.Container([]string{"true"}, profile("rsys-there-is-none")).TryCreate()
	if err == nil {
		t.Fatal("a profile that is not loaded: no error")
	}
	if !peer() && !strings.Contains(err.Error(), "process.apparmorProfile (rsys-there-is-none): attr: write: ENOENT") {
		t.Errorf("a profile that is not loaded: %v", err)
	}
}

// rsysProfile lets a program do what it likes, but for one file.
const rsysProfile = `profile rsys-test flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  network,
  signal,
  ptrace,
  mount,
  deny /etc/passwd r,
}
`

func TestALoadedAppArmorProfileConfinesWhatRunsAndWhatIsExecd(t *testing.T) {
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || on[0] != 'Y' {
		t.Skip("no AppArmor")
	}
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Skip("no apparmor_parser to load a profile with; hack/vm-test runs this where it is")
	}
	file := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(file, []byte(rsysProfile), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, do := range []string{"-r", "-R"} {
		load := func() {
			if out, err := exec.Command(parser, "--skip-cache", do, file).CombinedOutput(); err != nil {
				t.Fatalf("apparmor_parser %s: %v: %s", do, err, out)
			}
		}
		if do == "-R" {
			t.Cleanup(load)
		} else {
			load()
		}
	}
	e := start(t)
	look := harness.Sh("cat /proc/self/attr/apparmor/current", "cat /etc/passwd 2>&1 || echo denied", "sleep 3600")
	for name, opts := range map[string][]oci.SpecOpts{
		"without new privileges": {change(func(s *oci.Spec) { s.Process.NoNewPrivileges = true })},
		"with new privileges":    {change(func(s *oci.Spec) { s.Process.NoNewPrivileges = false })},
	} {
		c := e.Container(look, append(opts, change(func(s *oci.Spec) { s.Process.ApparmorProfile = "rsys-test" }))...).Run()
		const want = "rsys-test (enforce)\ncat: can't open '/etc/passwd': Permission denied\ndenied\n"
		e.Eventually(name+" tells", func() bool { return strings.HasSuffix(c.IO.Stdout.String(), "\ndenied\n") })
		if got := c.IO.Stdout.String(); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		if got := c.RunExec(look[0], look[1], strings.ReplaceAll(look[2], "sleep 3600", "")); got.Stdout != want {
			t.Errorf("%s, an exec: got %+v", name, got)
		}
	}
}
