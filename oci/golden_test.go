package oci

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the Plans in testdata anew")

var (
	hostV1 = Host{Kcore: true, AppArmor: true, SELinux: true, Resctrl: true, LastCap: 40, CgroupV1: []Hierarchy{
		{"/sys/fs/cgroup/cpu,cpuacct", []string{"cpu", "cpuacct"}},
		{"/sys/fs/cgroup/memory", []string{"memory"}},
		{"/sys/fs/cgroup/systemd", []string{"name=systemd"}},
	}}
	hostV2 = Host{Kcore: true, LastCap: 40, CgroupV2: true}

	hostPIDNS = Host{Kcore: true, LastCap: 40, CgroupV2: true, ProcPIDNS: true}
)

func born(_ *specs.Spec, r *Request) { r.Born = true }

// The configs of Docker were taken from bundles of dockerd 28.5.2 and 20.10.24, with the paths that Docker has on a host; the one for
// systemd is of "docker run --cgroupns private --tmpfs /run --tmpfs /run/lock --tmpfs /tmp --cap-add SYS_ADMIN
// --security-opt seccomp=unconfined --security-opt writable-cgroups=true --stop-signal SIGRTMIN+3".
//
// dockers is how Docker asks: it mounts the root file system itself, and root.path says where.
func dockers(_ *specs.Spec, r *Request) { r.Rootfs = nil }

func overlay() []Mount {
	return []Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"index=off", "workdir=/snapshots/8/work", "upperdir=/snapshots/8/fs", "lowerdir=/snapshots/7/fs:/snapshots/6/fs"}}}
}

func request() Request {
	return Request{ID: "c1", Bundle: "/run/containerd/io.containerd.runtime.v2.task/default/c1", Rootfs: overlay(), Fifos: [3]bool{true, true, true}}
}

func readSpec(t testing.TB, name string) *specs.Spec {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

var golden = []struct {
	plan, spec string
	host       Host
	change     func(*specs.Spec, *Request)
	exec       func(*specs.Process)
}{
	{plan: "ctr-2.4.2", host: hostV1},
	{plan: "ctr-1.7.35", host: hostV1},
	{plan: "ctr-tty", host: hostV1},
	{plan: "ctr-privileged", host: hostV1},
	{plan: "ctr-host-network", host: hostV1},
	{plan: "cri-pause", host: hostV1},
	{plan: "cri-container", host: hostV2},
	{plan: "cri-container-v1", spec: "cri-container", host: hostV1},
	{plan: "cri-shared-pid-bidirectional", host: hostV1},
	{plan: "cri-many-mounts", host: hostV2},
	{plan: "docker", host: hostV1, change: dockers},
	{plan: "docker-20.10", host: hostV1, change: dockers},
	{plan: "docker-systemd", host: hostV1, change: dockers},
	{plan: "docker-systemd-v2", spec: "docker-systemd", host: hostV2, change: dockers},
	{plan: "nerdctl", host: hostV1},
	{plan: "nerdctl-v2", spec: "nerdctl", host: hostV2},
	{plan: "nerdctl-hooks", spec: "nerdctl", host: hostV1, change: func(s *specs.Spec, _ *Request) { s.Hooks = allHooks() }},
	{plan: "bind-rootfs", spec: "ctr-host-network", host: hostV1, change: func(_ *specs.Spec, r *Request) {
		r.Rootfs = []Mount{{Type: "bind", Source: "/snapshots/8/fs", Options: []string{"rbind", "ro"}}}
	}},
	{plan: "no-pivot", spec: "ctr-host-network", host: hostV1, change: func(s *specs.Spec, r *Request) {
		r.Rootfs, r.NoPivotRoot = nil, true
		s.Root.Path = "/srv/rootfs"
	}},
	{plan: "mounts", spec: "ctr-host-network", host: hostV2, change: func(s *specs.Spec, _ *Request) {
		s.Linux.Seccomp = nil
		s.Mounts = []specs.Mount{
			{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup", "ro"}},
			{Destination: "relative/../dir", Type: "bind", Source: "volume", Options: []string{"bind", "noexec"}},
			{Destination: "/dir", Options: []string{"bind", "remount", "ro", "rnosuid", "rprivate"}},
			{Destination: "/mapped", Type: "bind", Source: "/v", Options: []string{"rbind", "ridmap"},
				UIDMappings: []specs.LinuxIDMapping{{HostID: 5, Size: 9}}, GIDMappings: []specs.LinuxIDMapping{{HostID: 6, Size: 9}}},
			{Destination: "/overlay", Type: "overlay", Source: "o", Options: []string{"lowerdir=" + strings.Repeat("/lower:", 40) + "/l", "ro"}},
		}
	}},
	{plan: "user-namespace", spec: "ctr-2.4.2", host: hostV1, change: func(s *specs.Spec, r *Request) {
		withUserNS(s)
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"rbind", "idmap"}})
		r.Rootfs[0].Options = append(r.Rootfs[0].Options, "uidmap=0:100000:65536", "gidmap=0:100000:65536")
	}},
	{plan: "cri-user-namespace", spec: "cri-container", host: hostV2, change: func(s *specs.Spec, _ *Request) {
		withUserNS(s)
		s.Linux.Namespaces[len(s.Linux.Namespaces)-1].Path = "/proc/4242/ns/user"
	}},
	{plan: "time-namespace", spec: "ctr-host-network", host: hostV1, change: func(s *specs.Spec, r *Request) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: -3}, "boottime": {Secs: 86400, Nanosecs: 7}}
	}},
	{plan: "exec-user-namespace", spec: "cri-container", host: hostV1, change: func(s *specs.Spec, _ *Request) { withUserNS(s) },
		exec: func(p *specs.Process) {
			p.Args, p.Rlimits = []string{"true"}, []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1, Hard: 2}}
		}},
	{plan: "exec", spec: "cri-container", host: hostV1, exec: func(p *specs.Process) {
		p.Args = []string{"cat", "/tmp/ready"}
	}},
	{plan: "exec-tty", spec: "ctr-2.4.2", host: hostV1, exec: func(p *specs.Process) {
		p.Args, p.Terminal = []string{"sh"}, true
	}},
	{plan: "exec-born", spec: "cri-container", host: hostV1, change: born, exec: func(p *specs.Process) {
		p.Args = []string{"cat", "/tmp/ready"}
	}},
	{plan: "exec-born-tty", spec: "ctr-2.4.2", host: hostV1, change: born, exec: func(p *specs.Process) {
		p.Args, p.Terminal = []string{"sh"}, true
	}},
	{plan: "exec-born-strict-filter", spec: "ctr-2.4.2", host: hostV1, change: func(s *specs.Spec, r *Request) {
		born(s, r)
		s.Process.NoNewPrivileges = true
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"execve", "exit_group"}, Action: specs.ActAllow}}}
	}, exec: func(p *specs.Process) {
		p.Args = []string{"true"}
	}},
	{plan: "shared-pid-born", spec: "cri-shared-pid-bidirectional", host: hostPIDNS, change: born},
	{plan: "shared-pid-born-hooks", spec: "cri-shared-pid-bidirectional", host: hostPIDNS, change: func(s *specs.Spec, r *Request) {
		born(s, r)
		s.Hooks = allHooks()
	}},
}

func withUserNS(s *specs.Spec) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}, {ContainerID: 70000, HostID: 300000, Size: 10}}
	s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
}

var instructions = regexp.MustCompile(`\{\d+ instructions\}`)

func TestPlansOfRealSpecsAreTheGoldenOnes(t *testing.T) {
	for _, g := range golden {
		t.Run(g.plan, func(t *testing.T) {
			if g.spec == "" {
				g.spec = g.plan
			}
			spec, req := readSpec(t, g.spec), request()
			if g.change != nil {
				g.change(spec, &req)
			}
			var p *Plan
			var err error
			if g.exec != nil {
				proc := *spec.Process
				g.exec(&proc)
				p, err = CompileExec(spec, &proc, req, g.host)
			} else {
				p, err = Compile(spec, req, g.host)
			}
			if err != nil {
				t.Fatal(err)
			}
			check(t, p)
			var b strings.Builder
			if err := p.Print(&b); err != nil {
				t.Fatal(err)
			}
			// How well the filter is compiled is another package's matter.
			got := instructions.ReplaceAllString(b.String(), "{... instructions}")
			file := filepath.Join("testdata", g.plan+".plan")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("not as in %s (go test ./oci -update writes it anew):\n%s", file, firstDifference(got, string(want)))
			}
		})
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			other := "the end"
			if i < len(w) {
				other = w[i]
			}
			return "got  " + g[i] + "\nwant " + other
		}
	}
	return "the Plan ends early"
}

func TestAPlanIsTheSameEachTimeItIsCompiled(t *testing.T) {
	spec := readSpec(t, "nerdctl")
	spec.Linux.Sysctl = map[string]string{"net.a": "1", "net.b": "2", "net.c": "3", "net.d": "4", "kernel.sem": "5"}
	var first []byte
	for range 10 {
		p, err := Compile(spec, request(), hostV1)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		if string(b) != string(first) {
			t.Fatal("two Plans of one config differ")
		}
	}
}

func TestJSONHasEveryStepWithItsReason(t *testing.T) {
	p, err := Compile(readSpec(t, "nerdctl"), request(), hostV1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var j struct {
		Steps []struct {
			Index                 int
			Phase, Who, Call, Why string
			MayFail               []string
			IfOK, IfError         int
		}
		Terminal int
		Program  string
	}
	if err := json.Unmarshal(b, &j); err != nil {
		t.Fatal(err)
	}
	if len(j.Steps) != len(p.Steps) || j.Program != "nginx" || j.Terminal != p.Terminal {
		t.Fatalf("%d steps, program %q, terminal %d", len(j.Steps), j.Program, j.Terminal)
	}
	for i, s := range j.Steps {
		if s.Index != i || s.Why == "" || s.Call == "" || s.Who == "" || s.Phase == "" {
			t.Errorf("step %d: %+v", i, s)
		}
	}
}

func BenchmarkCompileWithoutSeccomp(b *testing.B) {
	spec := readSpec(b, "ctr-2.4.2")
	spec.Linux.Seccomp = nil
	benchmarkCompile(b, spec)
}

func BenchmarkCompile(b *testing.B) { benchmarkCompile(b, readSpec(b, "ctr-2.4.2")) }

func benchmarkCompile(b *testing.B, spec *specs.Spec) {
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		p, err := Compile(spec, request(), hostV1)
		if err != nil {
			b.Fatal(err)
		}
		n = len(p.Steps)
	}
	b.ReportMetric(float64(n), "steps")
}

func BenchmarkCompileExec(b *testing.B) {
	spec := readSpec(b, "ctr-2.4.2")
	spec.Linux.Seccomp = nil
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CompileExec(spec, spec.Process, request(), hostV1); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	config, err := os.ReadFile("testdata/ctr-2.4.2.json")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(config); err != nil {
			b.Fatal(err)
		}
	}
}
