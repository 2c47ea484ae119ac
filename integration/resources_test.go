package integration

//lint:file-ignore SA1019 deprecated fields are fields too

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
	"golang.org/x/sys/unix"
)

func ptr[T any](v T) *T { return &v }

func resources(r specs.LinuxResources) oci.SpecOpts {
	return change(func(s *oci.Spec) {
		r.Devices = append(s.Linux.Resources.Devices, r.Devices...)
		s.Linux.Resources = &r
	})
}

func memory(m specs.LinuxMemory) specs.LinuxResources { return specs.LinuxResources{Memory: &m} }
func cpu(c specs.LinuxCPU) specs.LinuxResources       { return specs.LinuxResources{CPU: &c} }
func blockIO(b specs.LinuxBlockIO) specs.LinuxResources {
	return specs.LinuxResources{BlockIO: &b}
}

// cgroupV1 is the directory of a container's cgroup in a controller's hierarchy; "" for one that is not mounted.
func cgroupV1(e *harness.Env, controller, id string) string {
	e.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	e.Must(err, "mountinfo")
	for line := range strings.Lines(string(data)) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(after)
		if len(f) > 2 && f[0] == "cgroup" && slices.Contains(strings.Split(f[2], ","), controller) {
			return filepath.Join(strings.Fields(before)[4], e.Cgroup(id))
		}
	}
	return ""
}

// limitFile is the path of a file of a container's cgroup, "" if its controller is not there. The controller is what is before
// the first dot; "cpuset.cpus" is in cpuset.
func limitFile(e *harness.Env, id, file string) string {
	e.Helper()
	if onV2() {
		return filepath.Join("/sys/fs/cgroup", e.Cgroup(id), file)
	}
	controller, _, _ := strings.Cut(file, ".")
	dir := cgroupV1(e, controller, id)
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, file)
}

// missing tells which file of a new cgroup beside the containers' this kernel does not have.
func missing(e *harness.Env, want files) string {
	e.Helper()
	const probe = "probe"
	for file := range want {
		path := limitFile(e, probe, file)
		if path == "" {
			return file
		}
		dir := filepath.Dir(path)
		e.Must(os.MkdirAll(dir, 0o755), "make a cgroup to look at")
		if onV2() {
			// As a runtime does: what a cgroup has is what its parents hand down.
			for _, from := range []string{"/sys/fs/cgroup", filepath.Dir(dir)} {
				controllers, err := os.ReadFile(from + "/cgroup.controllers")
				e.Must(err, "controllers")
				for c := range strings.FieldsSeq(string(controllers)) {
					_ = os.WriteFile(from+"/cgroup.subtree_control", []byte("+"+c), 0)
				}
			}
		}
		_, err := os.Stat(path)
		e.Must(os.Remove(dir), "remove it")
		if err != nil {
			return file
		}
	}
	return ""
}

// A resource is what a config may ask for of the cgroup, and what the kernel then has in its files. A field that a version of cgroups
// has no file for has none here, and is without effect there, as in runc.
type resource struct {
	field string // the end of it, after linux.resources.
	set   specs.LinuxResources
	v1    files
	v2    files
}

const unlimited = "9223372036854771712" // the largest multiple of a page

func resourceTable(disk string) []resource {
	major, minor := int64(0), int64(0)
	_, _ = fmt.Sscanf(disk, "%d:%d", &major, &minor)
	device := specs.LinuxBlockIODevice{Major: major, Minor: minor}
	throttle := func(rate uint64) []specs.LinuxThrottleDevice {
		return []specs.LinuxThrottleDevice{{LinuxBlockIODevice: device, Rate: rate}}
	}
	const mb = 1 << 20
	return []resource{
		{"memory.limit", memory(specs.LinuxMemory{Limit: ptr[int64](64 * mb)}), files{"memory.limit_in_bytes": "67108864"}, files{"memory.max": "67108864"}},
		{"memory.reservation", memory(specs.LinuxMemory{Reservation: ptr[int64](32 * mb)}), files{"memory.soft_limit_in_bytes": "33554432"}, files{"memory.low": "33554432"}},
		{"memory.swap", memory(specs.LinuxMemory{Limit: ptr[int64](64 * mb), Swap: ptr[int64](96 * mb)}), files{"memory.memsw.limit_in_bytes": "100663296"}, files{"memory.swap.max": "33554432"}},
		{"memory.swap: none", memory(specs.LinuxMemory{Limit: ptr[int64](64 * mb), Swap: ptr[int64](64 * mb)}), files{"memory.memsw.limit_in_bytes": "67108864"}, files{"memory.swap.max": "0"}},
		{"memory.limit: none", memory(specs.LinuxMemory{Limit: ptr[int64](-1)}), files{"memory.limit_in_bytes": unlimited}, files{"memory.max": "max", "memory.swap.max": "max"}},
		{"memory.kernel", memory(specs.LinuxMemory{Kernel: ptr[int64](16 * mb)}), files{"memory.kmem.limit_in_bytes": unlimited}, files{"memory.max": "max"}},
		{"memory.kernelTCP", memory(specs.LinuxMemory{KernelTCP: ptr[int64](16 * mb)}), files{"memory.kmem.tcp.limit_in_bytes": unlimited}, files{"memory.max": "max"}},
		{"memory.swappiness", memory(specs.LinuxMemory{Swappiness: ptr[uint64](33)}), files{"memory.swappiness": "33"}, nil},
		{"memory.disableOOMKiller", memory(specs.LinuxMemory{DisableOOMKiller: ptr(true)}), files{"memory.oom_control": "oom_kill_disable 1"}, nil},
		{"memory.useHierarchy", memory(specs.LinuxMemory{UseHierarchy: ptr(true)}), files{"memory.use_hierarchy": "1"}, files{"memory.max": "max"}},
		{"cpu.shares", cpu(specs.LinuxCPU{Shares: ptr[uint64](2048)}), files{"cpu.shares": "2048"}, files{"cpu.weight": "174"}},
		{"cpu.quota", cpu(specs.LinuxCPU{Quota: ptr[int64](30000)}), files{"cpu.cfs_quota_us": "30000", "cpu.cfs_period_us": "100000"}, files{"cpu.max": "30000 100000"}},
		// Not much less: a container is set up in its cgroup, and has to do with it.
		{"cpu.period", cpu(specs.LinuxCPU{Quota: ptr[int64](500000), Period: ptr[uint64](1000000)}), files{"cpu.cfs_quota_us": "500000", "cpu.cfs_period_us": "1000000"}, files{"cpu.max": "500000 1000000"}},
		{"cpu.period: alone", cpu(specs.LinuxCPU{Period: ptr[uint64](20000)}), files{"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "20000"}, files{"cpu.max": "max 20000"}},
		{"cpu.burst", cpu(specs.LinuxCPU{Quota: ptr[int64](30000), Burst: ptr[uint64](15000)}), files{"cpu.cfs_burst_us": "15000"}, files{"cpu.max.burst": "15000"}},
		{"cpu.idle", cpu(specs.LinuxCPU{Idle: ptr[int64](1)}), files{"cpu.idle": "1", "cpu.shares": "3"}, files{"cpu.idle": "1"}},
		{"cpu.cpus", cpu(specs.LinuxCPU{Cpus: "0"}), files{"cpuset.cpus": "0"}, files{"cpuset.cpus": "0"}},
		{"cpu.mems", cpu(specs.LinuxCPU{Mems: "0"}), files{"cpuset.mems": "0"}, files{"cpuset.mems": "0"}},
		{"pids.limit", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](77)}}, files{"pids.max": "77"}, files{"pids.max": "77"}},
		{"pids.limit: none", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](-1)}}, files{"pids.max": "max"}, files{"pids.max": "max"}},
		{"blockIO.weight", blockIO(specs.LinuxBlockIO{Weight: ptr[uint16](300)}), files{"blkio.bfq.weight": "300"}, files{"io.bfq.weight": "default 300"}},
		{"blockIO.leafWeight", blockIO(specs.LinuxBlockIO{LeafWeight: ptr[uint16](300)}), files{"blkio.leaf_weight": "300"}, nil},
		{"blockIO.weightDevice[0]", blockIO(specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{{LinuxBlockIODevice: device, LeafWeight: ptr[uint16](300)}}}),
			files{"blkio.leaf_weight_device": disk + " 300"}, nil},
		{"blockIO.throttleReadBpsDevice[0]", blockIO(specs.LinuxBlockIO{ThrottleReadBpsDevice: throttle(mb)}), files{"blkio.throttle.read_bps_device": disk + " 1048576"}, files{"io.max": disk + " rbps=1048576 wbps=max riops=max wiops=max"}},
		{"blockIO.throttleWriteBpsDevice[0]", blockIO(specs.LinuxBlockIO{ThrottleWriteBpsDevice: throttle(mb)}), files{"blkio.throttle.write_bps_device": disk + " 1048576"}, files{"io.max": disk + " rbps=max wbps=1048576 riops=max wiops=max"}},
		{"blockIO.throttleReadIOPSDevice[0]", blockIO(specs.LinuxBlockIO{ThrottleReadIOPSDevice: throttle(99)}), files{"blkio.throttle.read_iops_device": disk + " 99"}, files{"io.max": disk + " rbps=max wbps=max riops=99 wiops=max"}},
		{"blockIO.throttleWriteIOPSDevice[0]", blockIO(specs.LinuxBlockIO{ThrottleWriteIOPSDevice: throttle(99)}), files{"blkio.throttle.write_iops_device": disk + " 99"}, files{"io.max": disk + " rbps=max wbps=max riops=max wiops=99"}},
		{"hugepageLimits[0]", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 8 * mb}}},
			files{"hugetlb.2MB.limit_in_bytes": "8388608"}, files{"hugetlb.2MB.max": "8388608", "hugetlb.2MB.rsvd.max": "8388608"}},
		{"hugepageLimits[0]", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 8 * mb}}},
			files{"hugetlb.3MB.limit_in_bytes": "8388608"}, files{"hugetlb.3MB.max": "8388608"}},
		{"rdma[mlx5_1]", specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx5_1": {HcaHandles: ptr[uint32](3), HcaObjects: ptr[uint32](9)}}},
			files{"rdma.max": "mlx5_1 hca_handle=3 hca_object=9"}, files{"rdma.max": "mlx5_1 hca_handle=3 hca_object=9"}},
		{"unified", specs.LinuxResources{Unified: map[string]string{"memory.high": "50331648", "cgroup.max.descendants": "5", "io.max": disk + " rbps=1048576\n" + disk + " wiops=7\n"}}, files{"memory.high": ""},
			files{"memory.high": "50331648", "cgroup.max.descendants": "5", "io.max": disk + " rbps=1048576 wbps=max riops=max wiops=7"}},
		{"unified", specs.LinuxResources{Unified: map[string]string{"nosuch.max": "1"}}, files{"nosuch.max": "1"}, files{"nosuch.max": "1"}},
	}
}

// What a config asks for of the cgroup is in the kernel's files, where the kernel has the file. Where it has none the container is
// refused with the name of the field, and nothing is left of it, which is looked for after each test.
func TestResourcesAreSeenInTheCgroupOrRefusedByName(t *testing.T) {
	if harness.Systemd() {
		t.Skip("with RSYS_SYSTEMD_CGROUP the limits are a scope's: TestAScopeHasWhatTheConfigSays")
	}
	for i, r := range resourceTable(aDisk(t)) {
		t.Run(fmt.Sprintf("%s, %d", r.field, i), func(t *testing.T) {
			e := start(t)
			want := r.v1
			if onV2() {
				want = r.v2
			}
			lacks := missing(e, want)
			if lacks == "io.bfq.weight" { // bfq is not loaded: the kernel's own weight, of another scale
				want = files{"io.weight": "default 2930"}
				lacks = missing(e, want)
			}
			c := e.Container(harness.Sleep(), resources(r.set))
			err := c.TryCreate()
			if lacks != "" {
				field, _, _ := strings.Cut(r.field, ": ")
				if err == nil {
					t.Errorf("this kernel has no %s, and the container was created", lacks)
				} else if !peer() && !strings.Contains(err.Error(), "linux.resources."+field) {
					t.Errorf("this kernel has no %s, and the error is %v", lacks, err)
				} else if !peer() && !errdefs.IsFailedPrecondition(err) && !errdefs.IsInvalidArgument(err) {
					t.Errorf("this kernel has no %s, and the error is of another kind: %v", lacks, err)
				}
				return
			}
			if field, _, _ := strings.Cut(r.field, "["); field == "rdma" && err != nil && strings.Contains(err.Error(), "linux.resources.rdma[mlx5_1]: ") {
				return // the controller is there, the device is not
			}
			e.Must(err, "create")
			c.Start()
			for _, file := range slices.Sorted(maps.Keys(want)) {
				data, err := os.ReadFile(limitFile(e, c.ID(), file))
				e.Must(err, "read")
				if lines := strings.Split(strings.TrimSpace(string(data)), "\n"); !slices.Contains(lines, want[file]) {
					t.Errorf("%s has %q, want %q", file, lines, want[file])
				}
			}
			if noFile := len(want) == 0 || strings.HasPrefix(r.field, "memory.kernel"); noFile && !peer() {
				if says := "container " + c.ID() + ": linux.resources." + strings.TrimSuffix(r.field, "[0]"); !strings.Contains(e.Daemon.Log(1<<20), says) {
					t.Errorf("it has no effect, and nobody says %q", says)
				}
			}
			if r.field == "cpu.cpus" {
				if got := c.RunExec(harness.Sh("sed -n 's/^Cpus_allowed_list:\t//p' /proc/self/status")...); got.Stdout != "0\n" {
					t.Errorf("inside: %+v", got)
				}
			}
		})
	}
}

// aDisk is the number of a block device to which limits can be set, not a partition.
func aDisk(t *testing.T) string {
	t.Helper()
	found, _ := filepath.Glob("/sys/block/*/dev")
	for _, f := range found {
		if data, err := os.ReadFile(f); err == nil && !strings.Contains(f, "/zram") && !strings.Contains(f, "/ram") {
			return strings.TrimSpace(string(data))
		}
	}
	t.Fatal("this machine has no block device")
	return ""
}

// A weight of a device needs a scheduler that knows weights: a loop device with bfq.
func TestAWeightOfADeviceIsSeenInTheCgroup(t *testing.T) {
	if harness.Systemd() {
		t.Skip("with RSYS_SYSTEMD_CGROUP the limits are a scope's")
	}
	e := start(t)
	file, want := "blkio.bfq.weight_device", "%s 444"
	if onV2() {
		file = "io.bfq.weight"
	}
	device := loopDevice(e)
	if err := os.WriteFile("/sys/block/"+filepath.Base(device)+"/queue/scheduler", []byte("bfq"), 0); err != nil {
		t.Skip("this kernel has no bfq: ", err)
	}
	if lacks := missing(e, files{file: ""}); lacks != "" {
		t.Skip("this kernel has no ", lacks)
	}
	var st unix.Stat_t
	e.Must(unix.Stat(device, &st), "stat")
	d := specs.LinuxBlockIODevice{Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev))}
	number := fmt.Sprintf("%d:%d", d.Major, d.Minor)
	c := e.Container(harness.Sleep(), resources(blockIO(specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{{LinuxBlockIODevice: d, Weight: ptr[uint16](444)}}})))
	c.Run()
	data, err := os.ReadFile(limitFile(e, c.ID(), file))
	e.Must(err, "read")
	if !slices.Contains(strings.Split(strings.TrimSpace(string(data)), "\n"), fmt.Sprintf(want, number)) {
		t.Errorf("%s has %q, want %s 444", file, data, number)
	}
}

// loopDevice makes a loop device of our own, which is removed after the test.
func loopDevice(e *harness.Env) string {
	e.Helper()
	_ = exec.Command("modprobe", "loop").Run() // where it is a module, and not loaded yet
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		e.Skip("no loop devices: ", err)
	}
	number, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.LOOP_CTL_ADD, ^uintptr(0)) // a new one, of any number
	if errno != 0 {
		control.Close()
		e.Fatalf("make a loop device: %v", errno)
	}
	e.Cleanup(func() {
		defer control.Close()
		e.Eventually("the loop device is removed", func() bool {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.LOOP_CTL_REMOVE, number)
			return errno == 0
		})
	})
	device := fmt.Sprintf("/dev/loop%d", number)
	e.Eventually("it has a file", func() bool {
		_, err := os.Stat(device)
		return err == nil
	})
	return device
}

// Controllers that hosts seldom mount, and only cgroup v1 has: we mount them.
func TestTheNetworksClassAndPrioritiesAreSeenInTheCgroup(t *testing.T) {
	if onV2() {
		t.Skip("cgroup v2 has no such controllers")
	}
	if harness.Systemd() {
		t.Skip("with RSYS_SYSTEMD_CGROUP the limits are a scope's")
	}
	e := start(t)
	set := specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: ptr[uint32](0x100001), Priorities: []specs.LinuxInterfacePriority{{Name: "lo", Priority: 7}}}}
	for field, r := range map[string]specs.LinuxResources{
		"network.classID":       {Network: &specs.LinuxNetwork{ClassID: set.Network.ClassID}},
		"network.priorities[0]": {Network: &specs.LinuxNetwork{Priorities: set.Network.Priorities}},
	} {
		controller := map[bool]string{true: "net_cls", false: "net_prio"}[field == "network.classID"]
		if cgroupV1(e, controller, "x") != "" {
			continue // mounted here
		}
		if err := e.Container([]string{"true"}, resources(r)).TryCreate(); err == nil || !peer() && !strings.Contains(err.Error(), "linux.resources."+field+": ") {
			t.Errorf("without the controller: %v", err)
		}
	}
	for _, controller := range []string{"net_cls", "net_prio"} {
		if cgroupV1(e, controller, "x") != "" {
			continue
		}
		dir := t.TempDir()
		if err := unix.Mount("cgroup", dir, "cgroup", 0, controller); err != nil {
			t.Skipf("%s can't be mounted here: %v", controller, err)
		}
		e.Cleanup(func() {
			_ = os.Remove(filepath.Join(dir, e.Namespace))
			e.Must(unix.Unmount(dir, 0), "unmount %s", controller)
		})
	}
	c := e.Container(harness.Sleep(), resources(set)).Run()
	for file, want := range (files{"net_cls.classid": "1048577", "net_prio.ifpriomap": "lo 7"}) {
		data, err := os.ReadFile(limitFile(e, c.ID(), file))
		e.Must(err, "read")
		if !slices.Contains(strings.Split(strings.TrimSpace(string(data)), "\n"), want) {
			t.Errorf("%s has %q, want %q", file, data, want)
		}
	}
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.Task.Pid()))
	e.Must(err, "read its cgroups")
	if !strings.Contains(string(in), ":net_cls:"+e.Cgroup(c.ID())+"\n") {
		t.Errorf("it is in %s", in)
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
}

// A cgroup without its own real time can have no real-time process: where the kernel counts it, the process shows that it was given.
func TestRealTimeIsSeenInTheCgroupAndUsed(t *testing.T) {
	e := start(t)
	const runtime, period = "20000", "500000"
	set := cpu(specs.LinuxCPU{RealtimeRuntime: ptr[int64](20000), RealtimePeriod: ptr[uint64](500000)})
	opts := []oci.SpecOpts{resources(set), scheduler(&specs.Scheduler{Policy: specs.SchedFIFO, Priority: 3})}
	if onV2() || harness.Systemd() {
		t.Skip("real time is divided among cgroups by version 1 of them alone, and not by systemd")
	}
	if lacks := missing(e, files{"cpu.rt_runtime_us": ""}); lacks != "" {
		err := e.Container(harness.Sleep(), opts...).TryCreate()
		if err == nil || !strings.Contains(err.Error(), "linux.resources.cpu.realtimePeriod: ") {
			t.Errorf("this kernel has no %s: %v", lacks, err)
		}
		return
	}
	parent := filepath.Dir(cgroupV1(e, "cpu", "x"))
	e.Must(os.MkdirAll(parent, 0o755), "make the parent")
	if err := e.Container(harness.Sleep(), opts...).TryCreate(); err == nil || !strings.Contains(err.Error(), "linux.resources.cpu.realtimeRuntime: ") && !peer() {
		t.Errorf("more than the parent has: %v", err)
	}
	e.Must(os.WriteFile(parent+"/cpu.rt_runtime_us", []byte("50000"), 0), "give the parent real time")
	e.Cleanup(func() {
		// EINVAL while the kernel still counts the cgroup that was just removed.
		e.Eventually("it is taken back", func() bool { return os.WriteFile(parent+"/cpu.rt_runtime_us", []byte("0"), 0) == nil })
	})
	c := e.Container(harness.Sleep(), opts...).Run()
	for file, want := range (files{"cpu.rt_runtime_us": runtime, "cpu.rt_period_us": period}) {
		data, err := os.ReadFile(limitFile(e, c.ID(), file))
		e.Must(err, "read")
		if got := strings.TrimSpace(string(data)); got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
	}
	if policy, priority, _ := scheduling(e, c.Task.Pid()); policy != 1 || priority != 3 {
		t.Errorf("policy %d, priority %d", policy, priority)
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
}

func TestALimitBelowWhatIsInUseIsNotSetIfThatIsChecked(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("mkdir /m; mount -t tmpfs t /m; head -c 20000000 /dev/zero > /m/f; echo up; sleep 3600"),
		only("CAP_SYS_ADMIN"), oci.WithSeccompUnconfined, oci.WithMemoryLimit(64<<20)).Run()
	e.Eventually("it uses memory", func() bool { return c.IO.Stdout.String() == "up\n" })
	now := func() string { return cgroupFile(e, c.ID(), "memory/memory.limit_in_bytes", "memory.max") }
	for name, m := range map[string]specs.LinuxMemory{
		"memory.limit": {Limit: ptr[int64](8 << 20), CheckBeforeUpdate: ptr(true)},
	} {
		err := c.Task.Update(e.Ctx, client.WithResources(ptr(memory(m))))
		if err == nil || !peer() && !strings.Contains(err.Error(), "linux.resources."+name) {
			t.Errorf("%s below what is in use: %v", name, err)
		}
		if got := now(); got != "67108864" {
			t.Errorf("after it the limit is %s", got)
		}
	}
	e.Must(c.Task.Update(e.Ctx, client.WithResources(ptr(memory(specs.LinuxMemory{Limit: ptr[int64](48 << 20), CheckBeforeUpdate: ptr(true)})))), "a limit above it")
	if got := now(); got != "50331648" {
		t.Errorf("the limit is %s", got)
	}
	if got := c.RunExec("wc", "-c", "/m/f"); got.Stdout != "20000000 /m/f\n" {
		t.Errorf("it does not live on: %+v", got)
	}
}

// The loop devices and their control file are on every kernel, and do no harm.
func TestDeviceRulesAreObeyed(t *testing.T) {
	rule := func(allow bool, kind string, major, minor *int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access}
	}
	control, minor := ptr[int64](10), ptr[int64](237)
	const make = "mknod /tmp/c c 10 237 || exit; "
	for _, test := range []struct {
		name   string
		rules  []specs.LinuxDeviceCgroup
		script string
		want   string
	}{
		{"one that is not listed", nil, make + "(: < /tmp/c) 2>&1", "sh: can't open /tmp/c: Operation not permitted\n"},
		{"read and not write", []specs.LinuxDeviceCgroup{rule(true, "c", control, minor, "r")}, make + "(: < /tmp/c) && echo read; (: > /tmp/c) 2>&1", "read\nsh: can't create /tmp/c: Operation not permitted\n"},
		{"read and write", []specs.LinuxDeviceCgroup{rule(true, "c", control, minor, "rw")}, make + "(: < /tmp/c) && (: > /tmp/c) && echo both", "both\n"},
		{"all of a major number", []specs.LinuxDeviceCgroup{rule(true, "c", control, nil, "r")}, make + "(: < /tmp/c) && echo read", "read\n"},
		{"another minor number", []specs.LinuxDeviceCgroup{rule(true, "c", control, ptr[int64](236), "rw")}, make + "(: < /tmp/c) 2>&1", "sh: can't open /tmp/c: Operation not permitted\n"},
		{"another type", []specs.LinuxDeviceCgroup{rule(true, "b", control, minor, "rw")}, make + "(: < /tmp/c) 2>&1", "sh: can't open /tmp/c: Operation not permitted\n"},
		{"a right that is taken away again", []specs.LinuxDeviceCgroup{rule(true, "c", control, minor, "rw"), rule(false, "c", control, minor, "w")},
			make + "(: < /tmp/c) && echo read; (: > /tmp/c) 2>&1", "read\nsh: can't create /tmp/c: Operation not permitted\n"},
		{"everything", []specs.LinuxDeviceCgroup{rule(true, "a", nil, nil, "rwm")}, make + "(: < /tmp/c) && (: > /tmp/c) && echo both", "both\n"},
		{"everything denied once more", []specs.LinuxDeviceCgroup{rule(true, "c", control, minor, "rw"), rule(false, "a", nil, nil, "rwm")},
			make + "(: < /tmp/c) 2>&1; echo x > /dev/null && echo null", "sh: can't open /tmp/c: Operation not permitted\nnull\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			if got := e.Container(harness.Sh(test.script), resources(specs.LinuxResources{Devices: test.rules})).Finish(); got.Stdout != test.want {
				t.Errorf("got %+v, want %q", got, test.want)
			}
		})
	}
}
