package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/rsys-io/rsys/integration/harness"
)

// object and list are JSON's, to be changed as no type of the specification can be.
type (
	object = map[string]any
	list   = []any
)

// setNamespace gives the container a namespace in place of the one that it has, new if path is "".
func setNamespace(linux object, kind, path string) {
	n := object{"type": kind}
	if path != "" {
		n["path"] = path
	}
	kept := list{n}
	for _, other := range linux["namespaces"].(list) {
		if other.(object)["type"] != kind {
			kept = append(kept, other)
		}
	}
	linux["namespaces"] = kept
}

func addMount(spec, mount object) { spec["mounts"] = append(spec["mounts"].(list), mount) }

func ranges(numbers ...uint32) (l list) {
	for i := 0; i < len(numbers); i += 3 {
		l = append(l, object{"containerID": numbers[i], "hostID": numbers[i+1], "size": numbers[i+2]})
	}
	return l
}

// What no kernel takes, or what would be another thing than what is said, is refused at create, by the field's name, and nothing is left. So it
// is by runc 1.5 but where it says so; RSYS_RUNTIME=io.containerd.runc.v2 shows it.
func TestOddValuesAreRefusedByTheFieldsName(t *testing.T) {
	process := func(field string, value any) func(*harness.Env, object, object) {
		return func(_ *harness.Env, spec, _ object) { spec["process"].(object)[field] = value }
	}
	linux := func(field string, value any) func(*harness.Env, object, object) {
		return func(_ *harness.Env, _, linux object) { linux[field] = value }
	}
	resource := func(field string, value any) func(*harness.Env, object, object) {
		return func(_ *harness.Env, _, linux object) { linux["resources"].(object)[field] = value }
	}
	errno := func(number int) func(*harness.Env, object, object) {
		return linux("seccomp", object{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": list{
			object{"names": list{"mkdir"}, "action": "SCMP_ACT_ERRNO", "errnoRet": number}}})
	}
	offset := func(clock string, secs int64) func(*harness.Env, object, object) {
		return func(_ *harness.Env, _, linux object) {
			setNamespace(linux, "time", "")
			linux["timeOffsets"] = object{clock: object{"secs": secs}}
		}
	}
	bind := func(uids, gids any) func(*harness.Env, object, object) {
		return func(e *harness.Env, spec, _ object) {
			addMount(spec, object{"destination": "/m", "type": "bind", "source": e.TempDir(), "options": list{"bind"}, "uidMappings": uids, "gidMappings": gids})
		}
	}
	const ttlFile = "/proc/sys/net/ipv4/ip_default_ttl"
	before := read(t, ttlFile)
	t.Cleanup(func() {
		if after := read(t, ttlFile); after != before {
			t.Errorf("the host's sysctl was changed from %q to %q", before, after)
			if err := os.WriteFile(ttlFile, []byte(before), 0); err != nil {
				t.Error(err)
			}
		}
	})
	ourNetwork := fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	for name, test := range map[string]struct {
		set   func(e *harness.Env, spec, linux object)
		field string
		takes bool // runc does
	}{
		"a real-time policy without a priority":      {process("scheduler", object{"policy": "SCHED_FIFO"}), "process.scheduler.priority", false},
		"a priority beyond the highest":              {process("scheduler", object{"policy": "SCHED_RR", "priority": 100}), "process.scheduler.priority", false},
		"a policy that Linux has not":                {process("scheduler", object{"policy": "SCHED_ISO"}), "process.scheduler.policy", false},
		"a deadline without a runtime":               {process("scheduler", object{"policy": "SCHED_DEADLINE", "deadline": 10000000, "period": 10000000}), "process.scheduler.runtime", false},
		"a runtime longer than the deadline":         {process("scheduler", object{"policy": "SCHED_DEADLINE", "runtime": 20000000, "deadline": 10000000}), "process.scheduler.runtime", false},
		"a limit that is there twice":                {process("rlimits", list{object{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}, object{"type": "RLIMIT_CORE", "soft": 2, "hard": 2}}), "process.rlimits[1].type", true},
		"a list of CPUs with nothing but a comma":    {process("execCPUAffinity", object{"initial": ","}), "process.execCPUAffinity.initial", false},
		"nodes both static and relative":             {linux("memoryPolicy", object{"mode": "MPOL_BIND", "nodes": "0", "flags": list{"MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"}}), "linux.memoryPolicy.flags", false},
		"a flag of a memory policy of another mode":  {linux("memoryPolicy", object{"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": list{"MPOL_F_NUMA_BALANCING"}}), "linux.memoryPolicy.flags", false},
		"static nodes where there are none":          {linux("memoryPolicy", object{"mode": "MPOL_PREFERRED", "flags": list{"MPOL_F_STATIC_NODES"}}), "linux.memoryPolicy.flags", false},
		"an errno that is too large for one":         {errno(4095), "linux.seccomp.syscalls[0].errnoRet", false},
		"an errno that would be another, cut off":    {errno(65538), "linux.seccomp.syscalls[0].errnoRet", true},
		"a clock that would be before its beginning": {offset("monotonic", -1000000000), "linux.timeOffsets", false},
		"a clock that would run over":                {offset("boottime", 1<<63-1), "linux.timeOffsets", false},
		"a clock by its number":                      {offset("7", 1), "linux.timeOffsets[7]", true},
		"a clock of two lines":                       {offset("boottime 5 0\nmonotonic", 1), "linux.timeOffsets[boottime 5 0", true},
		"a mount of maps that are empty":             {bind(list{}, list{}), ".uidMappings", false},
		"a mount of ranges that overlap":             {bind(ranges(0, 100, 100, 50, 300, 100), ranges(0, 100, 100)), ".uidMappings[1]", false},
		"a mount of a range of nobody":               {bind(ranges(0, 100, 0), ranges(0, 100, 100)), ".uidMappings[0].size", false},
		"maps without a user namespace":              {linux("uidMappings", ranges(0, 100, 100)), "linux.uidMappings", true},
		"a device whose number is cut to another's":  {resource("blockIO", object{"throttleReadBpsDevice": list{object{"major": 1<<32 + 1, "minor": 0, "rate": 1}}}), "linux.resources.blockIO.throttleReadBpsDevice[0]", true},
		"a device of the host for the host's own network": {func(e *harness.Env, _, linux object) {
			ip(e, "link", "add", "rsysd", "type", "veth", "peer", "name", "rsysdp")
			e.Cleanup(func() { _ = exec.Command("ip", "link", "del", "rsysdp").Run() })
			setNamespace(linux, "network", ourNetwork)
			linux["netDevices"] = object{"rsysd": object{"name": "rsyse"}}
		}, "linux.netDevices: not in the host's network namespace, which " + ourNetwork + " is", true},
		"a sysctl of the host's network, joined by a path": {func(_ *harness.Env, _, linux object) {
			setNamespace(linux, "network", ourNetwork)
			linux["sysctl"] = object{"net.ipv4.ip_default_ttl": "77"}
		}, "linux.sysctl[net.ipv4.ip_default_ttl]: not in the host's network namespace", false},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			c := e.Container(harness.Sh("echo ran"))
			putSpec(e, c, edit(func(spec, _, linux object) { test.set(e, spec, linux) }))
			err := c.TryCreate()
			if peer() && test.takes {
				return
			}
			if err == nil {
				t.Fatal("it was created")
			}
			t.Log(err)
			if !peer() && (!strings.Contains(err.Error(), test.field) || !errdefs.IsInvalidArgument(err)) {
				t.Errorf("the error is not an invalid argument that names %s: %v", test.field, err)
			}
		})
	}
}

// The maps beside the path of a user namespace are what mounts and owners are reckoned by, so they must be that namespace's own. Their order is
// the kernel's matter; runc refuses another one.
func TestTheMapsOfAUserNamespaceThatIsJoinedMustBeItsOwn(t *testing.T) {
	uids, gids := ranges(0, hostRoot, 5000, 5000, 300000, 60000), ranges(0, hostRoot, 65536)
	for name, test := range map[string]struct {
		uids, gids list
		want       string // what the program says, or what the error has
		refused    bool
	}{
		"the same":               {uids, gids, "0 100000 5000 5000 300000 60000 ", false},
		"the same, turned round": {ranges(5000, 300000, 60000, 0, hostRoot, 5000), gids, "0 100000 5000 5000 300000 60000 ", false},
		"others of the users":    {ranges(0, hostRoot, 65536), gids, `linux.uidMappings: maps: "0 100000 65536" in the config, but the namespace that is joined has the uid_map "0 100000 5000, 5000 300000 60000"`, true},
		"others of the groups":   {uids, ranges(0, hostRoot, 65535), `"0 100000 65535" in the config, but the namespace that is joined has the gid_map "0 100000 65536"`, true},
		"fewer":                  {ranges(0, hostRoot, 5000), gids, "uid_map", true},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			owner := userContainer(e, harness.Sleep()).Run()
			c := userContainer(e, harness.Sh("for n in $(cat /proc/self/uid_map); do echo -n \"$n \"; done"))
			putSpec(e, c, edit(func(_, _, linux object) {
				setNamespace(linux, "user", fmt.Sprintf("/proc/%d/ns/user", owner.Task.Pid()))
				linux["uidMappings"], linux["gidMappings"] = test.uids, test.gids
			}))
			err := c.TryCreate()
			if !test.refused && !peer() {
				e.Must(err, "create")
				c.Start()
				if got := c.Wait(); got.Stdout != test.want {
					t.Errorf("got %+v", got)
				}
				c.Delete()
				return
			}
			if test.refused && (err == nil || !peer() && (!strings.Contains(err.Error(), test.want) || !errdefs.IsInvalidArgument(err))) {
				t.Errorf("got %v", err)
			}
		})
	}
}
