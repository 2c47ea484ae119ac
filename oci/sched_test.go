package oci

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// stepsOf are the Plan's steps that a field asks for, printed.
func stepsOf(p *Plan, why string) string {
	var list []string
	for i := range p.Steps {
		if p.Steps[i].Why == why {
			list = append(list, p.Steps[i].Call.String())
		}
	}
	return strings.Join(list, "; ")
}

func TestSchedulingIsCompiled(t *testing.T) {
	for _, c := range []struct{ patch, why, want string }{
		{`{"process": {"scheduler": {"policy": "SCHED_FIFO", "priority": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_KEEP_PARAMS"]}}}`,
			"process.scheduler", "sched_setattr(0, {SCHED_FIFO, RESET_ON_FORK|KEEP_PARAMS, priority 7}, 0)"},
		{`{"process": {"scheduler": {"policy": "SCHED_OTHER", "nice": -3}}}`, "process.scheduler", "sched_setattr(0, {SCHED_OTHER, nice -3}, 0)"},
		{`{"process": {"scheduler": {"policy": "SCHED_DEADLINE", "runtime": 1024, "deadline": 2000, "period": 3000}}}`,
			"process.scheduler", "sched_setattr(0, {SCHED_DEADLINE, runtime 1024, deadline 2000, period 3000}, 0)"},
		{`{"process": {"ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 7}}}`, "process.ioPriority", "ioprio_set(IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE:7)"},
		{`{"linux": {"personality": {"domain": "LINUX32"}}}`, "linux.personality", "personality(PER_LINUX32)"},
		{`{"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": ",0-1,,3 ,", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_NUMA_BALANCING"]}}}`,
			"linux.memoryPolicy", "set_mempolicy(MPOL_BIND|MPOL_F_NUMA_BALANCING|MPOL_F_STATIC_NODES, {0-1,3}, 65)"},
		{`{"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "64"}}}`, "linux.memoryPolicy", "set_mempolicy(MPOL_BIND, {64}, 129)"},
		{`{"linux": {"memoryPolicy": {"mode": "MPOL_DEFAULT", "nodes": ""}}}`, "linux.memoryPolicy", "set_mempolicy(MPOL_DEFAULT, 0, 0)"},
		{`{}`, "linux.resources.cpu.cpus", "sched_setaffinity(0, 1024, {0-8191})"},
		{`{"process": {"apparmorProfile": "cri-containerd.apparmor.d"}}`, "process.apparmorProfile", `attr("apparmor/exec", "exec cri-containerd.apparmor.d")`},
		{`{"process": {"selinuxLabel": "u:r:t:s0:c1,c2"}}`, "process.selinuxLabel", `attr("keycreate", "u:r:t:s0:c1,c2"); attr("exec", "u:r:t:s0:c1,c2")`},
	} {
		p, err := compileBytes(edit(t, c.patch))
		if err != nil {
			t.Errorf("%s: %v", c.patch, err)
			continue
		}
		check(t, p)
		if got := stepsOf(p, c.why); got != c.want {
			t.Errorf("%s: got %s, want %s", c.patch, got, c.want)
		}
	}
}

func TestSchedulingIsChecked(t *testing.T) {
	for patch, field := range map[string]string{
		`{"process": {"scheduler": {}}}`:                                                                                              "process.scheduler.policy",
		`{"process": {"scheduler": {"policy": "SCHED_FUN"}}}`:                                                                         "process.scheduler.policy",
		`{"process": {"scheduler": {"policy": "SCHED_OTHER", "nice": 20}}}`:                                                           "process.scheduler.nice",
		`{"process": {"scheduler": {"policy": "SCHED_OTHER", "priority": 1}}}`:                                                        "process.scheduler.priority",
		`{"process": {"scheduler": {"policy": "SCHED_FIFO", "priority": -1}}}`:                                                        "process.scheduler.priority",
		`{"process": {"scheduler": {"policy": "SCHED_RR", "priority": 1, "runtime": 1}}}`:                                             "process.scheduler.runtime",
		`{"process": {"scheduler": {"policy": "SCHED_RR", "flags": ["x"]}}}`:                                                          "process.scheduler.flags[0]",
		`{"process": {"scheduler": {"policy": "SCHED_RR"}}}`:                                                                          "process.scheduler.priority",
		`{"process": {"scheduler": {"policy": "SCHED_FIFO", "priority": 100}}}`:                                                       "process.scheduler.priority",
		`{"process": {"scheduler": {"policy": "SCHED_ISO"}}}`:                                                                         "process.scheduler.policy",
		`{"process": {"scheduler": {"policy": "SCHED_DEADLINE"}}}`:                                                                    "process.scheduler.deadline",
		`{"process": {"scheduler": {"policy": "SCHED_DEADLINE", "deadline": 10000}}}`:                                                 "process.scheduler.runtime",
		`{"process": {"scheduler": {"policy": "SCHED_DEADLINE", "runtime": 20000, "deadline": 10000}}}`:                               "process.scheduler.runtime",
		`{"process": {"scheduler": {"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 10000, "period": 9999}}}`:                "process.scheduler.period",
		`{"process": {"scheduler": {"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 18446744073709551615}}}`:                 "process.scheduler.deadline",
		`{"process": {"execCPUAffinity": {"final": ","}}}`:                                                                            "process.execCPUAffinity.final",
		`{"process": {"execCPUAffinity": {"initial": " "}}}`:                                                                          "process.execCPUAffinity.initial",
		`{"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}}}`: "linux.memoryPolicy.flags",
		`{"linux": {"memoryPolicy": {"mode": "MPOL_PREFERRED", "flags": ["MPOL_F_STATIC_NODES"]}}}`:                                   "linux.memoryPolicy.flags",
		`{"linux": {"memoryPolicy": {"mode": "MPOL_LOCAL", "flags": ["MPOL_F_RELATIVE_NODES"]}}}`:                                     "linux.memoryPolicy.flags",
		`{"linux": {"memoryPolicy": {"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}}}`:                  "linux.memoryPolicy.flags",
		`{"process": {"ioPriority": {"class": "IOPRIO_CLASS_FUN", "priority": 1}}}`:                                                   "process.ioPriority.class",
		`{"process": {"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}}`:                                                    "process.ioPriority.priority",
		`{"process": {"execCPUAffinity": {"initial": "1-"}}}`:                                                                         "process.execCPUAffinity.initial",
		`{"process": {"execCPUAffinity": {"final": "9000"}}}`:                                                                         "process.execCPUAffinity.final",
		`{"process": {"execCPUAffinity": {"final": "3-1"}}}`:                                                                          "process.execCPUAffinity.final",
		`{"linux": {"personality": {"domain": "BSD"}}}`:                                                                               "linux.personality.domain",
		`{"linux": {"memoryPolicy": {"mode": "MPOL_X", "nodes": ""}}}`:                                                                "linux.memoryPolicy.mode",
		`{"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": ""}}}`:                                                             "linux.memoryPolicy.nodes",
		`{"linux": {"memoryPolicy": {"mode": "MPOL_LOCAL", "nodes": "0"}}}`:                                                           "linux.memoryPolicy.nodes",
		`{"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "a"}}}`:                                                            "linux.memoryPolicy.nodes",
		`{"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_X"]}}}`:                                     "linux.memoryPolicy.flags[0]",
		`{"process": {"apparmorProfile": "a\nb"}}`:                                                                                    "process.apparmorProfile",
		`{"linux": {"mountLabel": "a\u0000"}}`:                                                                                        "linux.mountLabel",
	} {
		if _, err := compileBytes(edit(t, patch)); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), field+":") {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestLabelsNeedTheirModule(t *testing.T) {
	for patch, field := range map[string]string{
		`{"process": {"apparmorProfile": "p"}}`: "process.apparmorProfile: AppArmor is not enabled on this host",
		`{"process": {"selinuxLabel": "l"}}`:    "process.selinuxLabel: SELinux is not enabled on this host",
		`{"linux": {"mountLabel": "l"}}`:        "linux.mountLabel: SELinux is not enabled on this host",
	} {
		spec, err := Parse(edit(t, patch))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Compile(spec, request(), hostV2); !errdefs.IsFailedPrecondition(err) || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("got %v", err)
		}
		if _, err := CompileExec(spec, spec.Process, request(), hostV2); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("exec: got %v", err)
		}
	}
}

func TestAMountLabelIsTheContextOfNewFileSystems(t *testing.T) {
	spec := readSpec(t, "ctr-2.4.2")
	spec.Linux.MountLabel = "u:object_r:t:s0:c1,c2"
	p, err := Compile(spec, request(), hostV1)
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	for i, m := range spec.Mounts {
		has := strings.Contains(stepsOf(p, item("mounts", i)), `"context", "u:object_r:t:s0:c1,c2"`)
		if want := m.Type == "tmpfs" || m.Type == "devpts"; has != want {
			t.Errorf("%s of type %s: context %v, want %v", m.Destination, m.Type, has, want)
		}
		if has := strings.Contains(stepsOf(p, item("mounts", i)), `setxattr(".", "security.selinux", `); has != (m.Type == "mqueue") {
			t.Errorf("%s of type %s: labelled by its file %v", m.Destination, m.Type, has)
		}
	}
}

func TestALabelThatThePolicyHasNotIsRefused(t *testing.T) {
	host := hostV1
	host.SELinux, host.KnowsLabel = true, func(label string) bool { return label == "known" }
	for _, test := range []struct{ process, mount, want string }{
		{"known", "known", ""},
		{"", "", ""},
		{"other", "known", "process.selinuxLabel: SELinux's policy has no label other"},
		{"known", "other", "linux.mountLabel: SELinux's policy has no label other"},
	} {
		spec := readSpec(t, "ctr-2.4.2")
		spec.Process.SelinuxLabel, spec.Linux.MountLabel = test.process, test.mount
		_, err := Compile(spec, request(), host)
		_, execErr := CompileExec(spec, spec.Process, request(), host)
		for _, err := range []error{err, execErr} {
			if test.want == "" && err != nil || test.want != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%+v: %v", test, err)
			}
		}
	}
}

func TestExecsHaveAnAffinityOfTheirOwn(t *testing.T) {
	spec := readSpec(t, "ctr-2.4.2")
	spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "1"}
	for _, c := range []struct {
		own            *specs.CPUAffinity
		initial, final string
		any            bool
	}{
		{nil, "{1}", "", false},
		{&specs.CPUAffinity{Initial: "0-1", Final: "2"}, "{0-1}", "{2}", false},
		{&specs.CPUAffinity{Final: "0"}, "", "{0}", false},
		{&specs.CPUAffinity{}, "", "", true},
	} {
		proc := *spec.Process
		proc.ExecCPUAffinity = c.own
		p, err := CompileExec(spec, &proc, request(), hostV1)
		if err != nil {
			t.Fatal(err)
		}
		check(t, p)
		joined := false
		for i := range p.Steps {
			s := &p.Steps[i]
			joined = joined || s.Name == CgroupJoin
			if s.Name == "sched_setaffinity" && joined != (s.Why != "process.execCPUAffinity.initial") {
				t.Errorf("%s at the wrong side of the cgroup", s.Why)
			}
		}
		for why, want := range map[string]string{"initial": c.initial, "final": c.final} {
			if got := stepsOf(p, "process.execCPUAffinity."+why); !strings.HasSuffix(got, want+")") && got+want != "" {
				t.Errorf("%+v: %s: %s, want %s", c.own, why, got, want)
			}
		}
		if got := stepsOf(p, "linux.resources.cpu.cpus") != ""; got != c.any {
			t.Errorf("%+v: any CPU: %v", c.own, got)
		}
	}
	p, err := Compile(spec, request(), hostV1)
	if err != nil {
		t.Fatal(err)
	}
	if got := stepsOf(p, "process.execCPUAffinity.initial"); got != "" {
		t.Errorf("the container itself: %s", got)
	}
}

func TestASchedulerThatIsNotInheritedIsNotGivenToTheParent(t *testing.T) {
	spec := readSpec(t, "ctr-2.4.2")
	req := request()
	req.Born = true
	for policy, born := range map[specs.LinuxSchedulerPolicy]bool{specs.SchedBatch: true, specs.SchedDeadline: false} {
		proc := *spec.Process
		proc.Scheduler = &specs.Scheduler{Policy: policy}
		if policy == specs.SchedDeadline {
			proc.Scheduler.Runtime, proc.Scheduler.Deadline = 5000, 10000
		}
		p, err := CompileExec(spec, &proc, req, hostV1)
		if err != nil {
			t.Fatal(err)
		}
		if (p.Birth >= 0) != born || (len(p.Warnings) == 0) != born {
			t.Errorf("%s: birth %d, warnings %q", policy, p.Birth, p.Warnings)
		}
	}
}
