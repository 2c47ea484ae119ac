package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	libcgroups "github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rsys-io/rsys/cgroup/systemd"
)

func TestValidateNamesTheField(t *testing.T) {
	res := func(r specs.LinuxResources) Config { return Config{ID: "a", Resources: &r} }
	dev := func(d ...specs.LinuxDeviceCgroup) Config { return res(specs.LinuxResources{Devices: d}) }
	for _, x := range []struct {
		name  string
		cfg   Config
		field string
	}{
		{"an empty id", Config{}, "id"},
		{"an id with a slash", Config{ID: "a/b"}, "id"},
		{"the root", Config{ID: "a", Path: "/"}, "linux.cgroupsPath"},
		{"the root in disguise", Config{ID: "a", Path: "/x/../../.."}, "linux.cgroupsPath"},
		{"this process's own cgroup", Config{ID: "a", Path: "../.."}, "linux.cgroupsPath"},
		{"a NUL", Config{ID: "a", Path: "/a\x00"}, "linux.cgroupsPath"},
		{"a long name", Config{ID: "a", Path: "/" + strings.Repeat("x", 300)}, "linux.cgroupsPath"},
		{"a negative memory limit", res(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](-2)}}), "linux.resources.memory.limit"},
		{"less swap than memory", res(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](2), Swap: ptr[int64](1)}}), "linux.resources.memory.swap"},
		{"swappiness over 100", res(specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: ptr[uint64](101)}}), "linux.resources.memory.swappiness"},
		{"a quota too small", res(specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](10)}}), "linux.resources.cpu.quota"},
		{"a period too long", res(specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr[uint64](1 << 40)}}), "linux.resources.cpu.period"},
		{"CPUs that are no list", res(specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "many"}}), "linux.resources.cpu.cpus"},
		{"a weight out of range", res(specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr[uint16](5)}}), "linux.resources.blockIO.weight"},
		{"a device with too large a number", res(specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{
			LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 1<<32 + 8}, Rate: 1}}}}), "linux.resources.blockIO.throttleReadBpsDevice[0]"},
		{"a device with a negative number", res(specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{{
			LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8, Minor: -1}}}}}), "linux.resources.blockIO.weightDevice[0]"},
		{"a page size", res(specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../x"}}}), "linux.resources.hugepageLimits[0].pageSize"},
		{"a unified path", res(specs.LinuxResources{Unified: map[string]string{"../cgroup.procs": "1"}}), "linux.resources.unified"},
		{"a unified file that is no resource", res(specs.LinuxResources{Unified: map[string]string{"cgroup.kill": "1"}}), "linux.resources.unified"},
		{"a device without access", dev(specs.LinuxDeviceCgroup{Type: "c"}), "linux.resources.devices[0].access"},
		{"a device of no type", dev(specs.LinuxDeviceCgroup{Type: "p", Access: "r"}), "linux.resources.devices[0].type"},
		{"a hole in a wildcard", dev(specs.LinuxDeviceCgroup{Access: "rwm"}, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr[int64](7), Access: "rwm"},
			specs.LinuxDeviceCgroup{Type: "c", Major: ptr[int64](7), Minor: ptr[int64](1), Access: "w"}), "linux.resources.devices[2]"},
	} {
		t.Run(x.name, func(t *testing.T) {
			var e *FieldError
			if err := Validate(x.cfg); !errors.As(err, &e) || e.Field != x.field {
				t.Errorf("%v, want one of %s", err, x.field)
			}
		})
	}
	for _, cfg := range []Config{{ID: "a"}, {ID: "a", Path: "/default/a"}, {ID: "a", Path: "x"}, res(*everything()),
		res(specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr[uint64](2), Quota: ptr[int64](-2)}, Pids: &specs.LinuxPids{Limit: ptr[int64](-1)}})} {
		if err := Validate(cfg); err != nil {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestPathsStayInsideTheHierarchy(t *testing.T) {
	h := hierarchy{dir: "/sys/fs/cgroup/cpu", own: "/user/me"}
	v2 := hierarchy{dir: "/sys/fs/cgroup", own: "/user/me", v2: true}
	for path, want := range map[string][2]string{
		"/default/a":    {"/sys/fs/cgroup/cpu/default/a", "/sys/fs/cgroup/default/a"},
		"/../../etc":    {"/sys/fs/cgroup/cpu/etc", "/sys/fs/cgroup/etc"},
		"x":             {"/sys/fs/cgroup/cpu/user/me/x", "/sys/fs/cgroup/user/x"},
		"../../../../x": {"/sys/fs/cgroup/cpu/user/me/x", "/sys/fs/cgroup/user/x"},
		"":              {"/sys/fs/cgroup/cpu/id", "/sys/fs/cgroup/id"},
	} {
		p := clean(Config{Path: path, ID: "id"})
		if got := [2]string{h.resolve(p), v2.resolve(p)}; got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
}

func TestSettingsForV2FollowRunc(t *testing.T) {
	r := everything()
	r.CPU.Idle = ptr[int64](0)
	r.BlockIO = &specs.LinuxBlockIO{Weight: ptr[uint16](500), ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8}, Rate: 9}}}
	r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "1GB", Limit: 0}}
	r.Rdma = map[string]specs.LinuxRdma{"mlx0": {HcaHandles: ptr[uint32](3)}}
	r.Unified = map[string]string{"memory.high": "5", "io.max": "8:0 rbps=1\n8:1 rbps=2\n"}
	list, err := Settings(true, r)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprintf("%s=%s", s.File, strings.TrimSpace(s.Value)))
	}
	want := "pids.max=20 memory.swap.max=67108864 memory.max=67108864 memory.low=33554432 io.bfq.weight=500 io.max=8:0 wiops=9 cpu.idle=0 cpu.weight=59 cpu.max.burst=1000 " +
		"cpu.max=50000 100000 cpuset.cpus=0 cpuset.mems=0 hugetlb.1GB.max=0 hugetlb.1GB.rsvd.max=0 rdma.max=mlx0 hca_handle=3 io.max=8:0 rbps=1 io.max=8:1 rbps=2 memory.high=5"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("\n%s\nwant\n%s", s, want)
	}
	for shares := uint64(0); shares < 1<<19; shares += 1 + shares/50 {
		if shares > 0 && weight(shares) != libcgroups.ConvertCPUSharesToCgroupV2Value(shares) {
			t.Fatalf("weight(%d) is %d", shares, weight(shares))
		}
	}
	for _, limit := range []int64{-1, 0, 5, 10} {
		for _, swap := range []int64{-1, 0, 5, 10, 20} {
			list, err := Settings(true, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}})
			want, wantErr := libcgroups.ConvertMemorySwapToCgroupV2Value(swap, limit)
			if (err != nil) != (wantErr != nil) {
				t.Errorf("limit %d, swap %d: %v, the library says %v", limit, swap, err, wantErr)
			}
			got := ""
			for _, s := range list {
				if s.File == "memory.swap.max" {
					got = s.Value
				}
			}
			expect := map[bool]string{true: fmt.Sprint(want), false: ""}[want > 0 || (want == 0 && swap > 0)]
			if want == -1 {
				expect = "max"
			}
			if wantErr == nil && got != expect {
				t.Errorf("limit %d, swap %d: %q, want %q", limit, swap, got, expect)
			}
		}
	}
}

func TestDeviceListsComeToWhatTheLastEntriesSay(t *testing.T) {
	all := specs.LinuxDeviceCgroup{Access: "rwm"}
	c := func(allow bool, major, minor int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: "c", Major: &major, Minor: &minor, Access: access}
	}
	for _, x := range []struct {
		name    string
		devices []specs.LinuxDeviceCgroup
		all     bool
		want    string // without the defaults
	}{
		{"nothing is the defaults", nil, false, ""},
		{"deny all, allow one", []specs.LinuxDeviceCgroup{all, c(true, 7, 1, "rw")}, false, "c 7:1 rw"},
		{"what is allowed twice adds up", []specs.LinuxDeviceCgroup{all, c(true, 7, 1, "r"), c(true, 7, 1, "m")}, false, "c 7:1 rm"},
		{"what is allowed and denied is not", []specs.LinuxDeviceCgroup{all, c(true, 7, 1, "rw"), c(false, 7, 1, "rw")}, false, ""},
		{"a part taken away", []specs.LinuxDeviceCgroup{all, c(true, 7, 1, "rwm"), c(false, 7, 1, "w")}, false, "c 7:1 rm"},
		{"a later deny of all wins", []specs.LinuxDeviceCgroup{c(true, 7, 1, "rw"), all}, false, ""},
		{"privileged", []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, true, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			l, err := DeviceRules(&specs.LinuxResources{Devices: x.devices})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range l.Exceptions {
				if e.Major == 7 || l.AllowAll {
					got = append(got, e.String())
				}
			}
			if s := strings.Join(got, ", "); l.AllowAll != x.all || s != x.want {
				t.Errorf("%v %q, want %v %q", l.AllowAll, s, x.all, x.want)
			}
		})
	}
}

func TestControllersThatShareAMountAreOneHierarchy(t *testing.T) {
	f := filepath.Join(t.TempDir(), "cgroup")
	if err := os.WriteFile(f, []byte("0::/a\n12:cpu,cpuacct:/b\n3:name=systemd:/c:d\n2:devices:/\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hs, err := ownCgroups(f)
	if err != nil || len(hs) != 4 || !hs[0].has("cpu") || !hs[0].has("cpuacct") || hs[1].own != "/c:d" || !hs[3].v2 || hs[3].own != "/a" {
		t.Errorf("%+v, %v", hs, err)
	}
	c := &Cgroup{layout: &layout{hierarchies: hs}, dirs: []string{"shared", "named", "devices", "v2"}}
	if c.dir("cpu") != "shared" || c.dir("cpuacct") != "shared" || c.dir("devices") != "devices" || c.dir("memory") != "" {
		t.Error("a controller is taken for another's")
	}
	if err := os.WriteFile(f, []byte("31 30 0:28 / /sys/fs/cgroup/cpu rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n40 30 0:37 / /v2 rw - cgroup2 none rw\n1 1 0:1 / / rw - ext4 x rw,cpu\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ms, err := readMounts(f)
	if err != nil || len(ms) != 2 || findMount(ms, "cpuacct") != "/sys/fs/cgroup/cpu" || findMount(ms, "memory") != "" {
		t.Errorf("%+v, %v", ms, err)
	}
}

func TestAPathForSystemdIsNoDirectorysNameWhereSystemdIs(t *testing.T) {
	for path, form := range map[string]bool{
		"kubepods-burstable-pod1.slice:cri-containerd:abc": true, "system.slice:docker:abc": true, ":docker:abc": true,
		"/default/a:b:c": false, "a:b:c": false, "x.slice/a:b:c": false, "x.slice:a": false, "/kubepods.slice/a": false,
	} {
		_, err := Load(Config{ID: "x", Path: path})
		scope := form && systemd.Running() == nil
		if systemdPath(path) != form || !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), ".scope: ") != scope {
			t.Errorf("%s: %v, %v", path, systemdPath(path), err)
		}
	}
}

func TestSharesThatTheKernelHasNotAreRefusedOnV1(t *testing.T) {
	for shares, ok := range map[uint64]bool{0: true, 1: false, 2: true, 262144: true, 262145: false, 1 << 50: false} {
		r := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}
		var e *FieldError
		if _, err := Settings(false, r); (err == nil) != ok || !ok && (!errors.As(err, &e) || e.Field != "linux.resources.cpu.shares") {
			t.Errorf("%d: %v", shares, err)
		}
		if _, err := Settings(true, r); err != nil {
			t.Errorf("%d, v2: %v", shares, err)
		}
	}
}
