package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
	"google.golang.org/protobuf/types/known/anypb"
)

// putSpec changes the config of a container as plain JSON.
func putSpec(e *harness.Env, c *harness.Container, change func([]byte) []byte) {
	e.Helper()
	info, err := c.Info(e.Ctx)
	e.Must(err, "info")
	info.Spec = &anypb.Any{TypeUrl: info.Spec.GetTypeUrl(), Value: change(bytes.Clone(info.Spec.GetValue()))}
	_, err = e.Client.ContainerService().Update(e.Ctx, info, "spec")
	e.Must(err, "put the spec")
}

func TestTheVersionOfTheSpecificationIsLookedAt(t *testing.T) {
	for version, ok := range map[string]bool{
		"1.0.0": true, "1.0.2-dev": true, "1.2.1": true, "1.99.0": true, "2.0.0": false, "": false, "one": false, "1": false,
	} {
		t.Run(version, func(t *testing.T) {
			e := start(t)
			c := e.Container(harness.Sh("echo ran"))
			putSpec(e, c, edit(func(spec, _, _ map[string]any) { spec["ociVersion"] = version }))
			err := c.TryCreate()
			if ok {
				e.Must(err, "create")
				c.Start()
				if got := c.Wait(); got.Stdout != "ran\n" {
					t.Errorf("got %+v", got)
				}
				c.Delete()
				return
			}
			if err == nil {
				t.Fatal("it was created")
			}
			if byContainerd := strings.Contains(err.Error(), "failed to validate OCI runtime features"); !peer() && !byContainerd && !strings.Contains(err.Error(), "ociVersion: ") {
				t.Errorf("the error does not name ociVersion: %v", err)
			}
		})
	}
}

// createBare has containerd create a task without a root file system of its own: that is where root.path says.
func createBare(e *harness.Env, id string) error {
	_, err := e.Client.TaskService().Create(e.Ctx, &tasks.CreateTaskRequest{ContainerID: id})
	return err
}

func TestTheRootIsWhereRootPathSays(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("ls /; cat /marker; sleep 3600"))
	root := rootOf(e, c)
	defer unmountRoot(root)
	e.Must(os.WriteFile(root+"/marker", []byte("here\n"), 0o644), "write")
	e.Must(os.Symlink(root, filepath.Dir(root)+"/link"), "symlink")
	set := func(path string) {
		putSpec(e, c, edit(func(spec, process, _ map[string]any) {
			spec["root"] = map[string]any{"path": path}
			process["args"] = harness.Sh("cat /marker > /answer; exec sleep 3600")
		}))
	}
	for _, bad := range []string{"/no/such/root", root + "/marker", filepath.Dir(root) + "/link", "..", "."} {
		set(bad)
		if err := createBare(e, c.ID()); err == nil {
			t.Errorf("%s: it was created", bad)
			_ = deleteRaw(e, c.ID())
		} else if !peer() && !strings.Contains(err.Error(), "root.path") {
			t.Errorf("%s: the error does not name root.path: %v", bad, err)
		}
	}
	set(root)
	e.Must(createBare(e, c.ID()), "create")
	e.Must(startRaw(e, c.ID()), "start")
	e.Eventually("it answers", func() bool {
		answer, _ := os.ReadFile(root + "/answer")
		return string(answer) == "here\n"
	})
	task, err := c.Container.Task(e.Ctx, nil)
	e.Must(err, "the task")
	exit, err := task.Wait(e.Ctx)
	e.Must(err, "wait")
	e.Must(task.Kill(e.Ctx, syscall.SIGKILL), "kill")
	<-exit
	e.Must(deleteRaw(e, c.ID()), "delete")
}

func TestRdtIsRefusedWhereTheKernelHasNone(t *testing.T) {
	if _, err := os.Stat("/sys/fs/resctrl/schemata"); err == nil {
		t.Skip("this machine has RDT, and a resctrl is mounted")
	}
	for field, rdt := range map[string]specs.LinuxIntelRdt{
		"closID":           {ClosID: "a-class"},
		"schemata":         {Schemata: []string{"L3:0=f"}},
		"l3CacheSchema":    {L3CacheSchema: "L3:0=f"},
		"memBwSchema":      {MemBwSchema: "MB:0=20"},
		"enableMonitoring": {ClosID: "a-class", EnableMonitoring: true},
	} {
		t.Run(field, func(t *testing.T) {
			e := start(t)
			err := e.Container([]string{"true"}, change(func(s *oci.Spec) { s.Linux.IntelRdt = &rdt })).TryCreate()
			if err == nil || !peer() && !strings.Contains(err.Error(), "linux.intelRdt") {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestFlagsOfAPersonalityAreIgnoredAndTold(t *testing.T) {
	e := start(t)
	c := e.Container([]string{"cat", "/proc/self/personality"}, change(func(s *oci.Spec) {
		s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32, Flags: []specs.LinuxPersonalityFlag{"ADDR_NO_RANDOMIZE"}}
	}))
	if got := c.Finish(); got.Stdout != "00000008\n" {
		t.Errorf("got %+v", got)
	}
	if says := "container " + c.ID() + ": linux.personality.flags: ADDR_NO_RANDOMIZE"; !peer() && !strings.Contains(e.Daemon.Log(1<<20), says) {
		t.Errorf("nobody says %q", says)
	}
}

// What a filter decides by the arguments of a call: chmod is called with the modes 600, 644 and 666, and busybox says which failed.
func TestASeccompRuleIsForTheArgumentsThatItNames(t *testing.T) {
	arg := func(op specs.LinuxSeccompOperator, value, two uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: 1, Value: value, ValueTwo: two, Op: op}
	}
	for name, test := range map[string]struct {
		args []specs.LinuxSeccompArg
		want string // the modes that are let through
	}{
		"equal":              {[]specs.LinuxSeccompArg{arg(specs.OpEqualTo, 0o644, 0)}, "600 666"},
		"not equal":          {[]specs.LinuxSeccompArg{arg(specs.OpNotEqual, 0o644, 0)}, "644"},
		"less":               {[]specs.LinuxSeccompArg{arg(specs.OpLessThan, 0o644, 0)}, "644 666"},
		"less or equal":      {[]specs.LinuxSeccompArg{arg(specs.OpLessEqual, 0o644, 0)}, "666"},
		"greater":            {[]specs.LinuxSeccompArg{arg(specs.OpGreaterThan, 0o644, 0)}, "600 644"},
		"greater or equal":   {[]specs.LinuxSeccompArg{arg(specs.OpGreaterEqual, 0o644, 0)}, "600"},
		"of some bits":       {[]specs.LinuxSeccompArg{arg(specs.OpMaskedEqual, 0o022, 0o022)}, "600 644"},
		"of two conditions":  {[]specs.LinuxSeccompArg{arg(specs.OpGreaterThan, 0o600, 0), {Index: 0, Value: 0, Op: specs.OpNotEqual}}, "600"},
		"of none that holds": {[]specs.LinuxSeccompArg{arg(specs.OpGreaterThan, 0o777, 0)}, "600 644 666"},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			// arm64 has no chmod, but fchmodat, with the mode as its third.
			at := slices.Clone(test.args)
			for i := range at {
				if at[i].Index == 1 {
					at[i].Index = 2
				}
			}
			c := e.Container(harness.Sh("> /tmp/f; for m in 600 644 666; do chmod $m /tmp/f 2>/tmp/err && echo $m; done; cat /tmp/err"), change(func(s *oci.Spec) {
				s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
					{Names: []string{"chmod"}, Action: specs.ActErrno, ErrnoRet: ptr[uint](28), Args: test.args},
					{Names: []string{"fchmodat", "fchmodat2"}, Action: specs.ActErrno, ErrnoRet: ptr[uint](28), Args: at},
				}}
			}))
			got := c.Finish()
			if through := strings.Join(strings.Fields(strings.Split(got.Stdout, "chmod:")[0]), " "); through != test.want {
				t.Errorf("it let %q through, want %q (%+v)", through, test.want, got)
			}
		})
	}
}

// With a list of what is allowed, all else has the default's errno, and what the list can't know of ENOSYS, as in runc.
func TestTheDefaultOfASeccompProfileHasItsErrno(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sh("mkdir /tmp/d 2>&1", "cat /tmp/none 2>&1", "unshare -U true 2>&1"))
	putSpec(e, c, edit(func(_, _, linux map[string]any) {
		rules := linux["seccomp"].(map[string]any)["syscalls"].([]any)
		for _, r := range rules {
			r := r.(map[string]any)
			r["names"] = slices.DeleteFunc(r["names"].([]any), func(n any) bool { return n == "mkdir" || n == "mkdirat" })
		}
		linux["seccomp"].(map[string]any)["defaultErrnoRet"] = 28
	}))
	const want = "mkdir: can't create directory '/tmp/d': No space left on device\ncat: can't open '/tmp/none': No such file or directory\nunshare: unshare(0x10000000): "
	if got := c.Finish(); !strings.HasPrefix(got.Stdout, want) {
		t.Errorf("got %+v", got)
	}
}

// Odd values, each taken as runc 1.5 takes it but where it says so; RSYS_RUNTIME=io.containerd.runc.v2 shows what that does. Ours
// refuses a path to be masked that goes by a link of /proc's to another root, sets a group that is there twice once, and
// needs no file of its own in the program's process, so that a limit of none works.
func TestOddValuesAreTakenAsRuncTakesThem(t *testing.T) {
	status := func(field string) []string {
		return []string{"sed", "-n", "s/^" + field + ":\t//p", "/proc/self/status"}
	}
	for name, test := range map[string]struct {
		args []string
		set  func(spec, process, linux object)
		want string // what it says; "refused" if it is not created or started
		runc string // what runc makes of it, if that is another thing
	}{
		"a variable without a value":      {harness.Sh("env | grep ^EMPTY"), func(_, p, _ object) { p["env"] = []string{"PATH=/bin", "EMPTY="} }, "EMPTY=\n", ""},
		"a variable with a line break":    {harness.Sh("echo \"$A\""), func(_, p, _ object) { p["env"] = []string{"PATH=/bin", "A=1\n2"} }, "1\n2\n", ""},
		"a variable of an odd name":       {[]string{"cat", "/proc/self/environ"}, func(_, p, _ object) { p["env"] = []string{"PATH=/bin:/usr/bin", "a.b-c=1"} }, "PATH=/bin:/usr/bin\x00a.b-c=1\x00HOME=/root\x00", ""},
		"a variable with two equal signs": {harness.Sh("echo $A"), func(_, p, _ object) { p["env"] = []string{"PATH=/bin", "A=b=c"} }, "b=c\n", ""},
		"no environment":                  {[]string{"/usr/bin/env"}, func(_, p, _ object) { p["env"] = []string{} }, "HOME=/root\n", ""},
		"a PATH with an empty element":    {[]string{"env"}, func(_, p, _ object) { p["env"] = []string{"PATH=:/nowhere", "HOME=/"}; p["cwd"] = "/bin" }, "refused", ""},
		"a cwd with a dot dot":            {[]string{"pwd"}, func(_, p, _ object) { p["cwd"] = "/usr/../etc/." }, "/etc\n", ""},
		"a cwd with a slash at its end":   {[]string{"pwd"}, func(_, p, _ object) { p["cwd"] = "/etc//" }, "/etc\n", ""},
		"a cwd that is a file":            {[]string{"pwd"}, func(_, p, _ object) { p["cwd"] = "/etc/passwd" }, "refused", ""},
		"a umask of zero":                 {harness.Sh("umask"), func(_, p, _ object) { p["user"] = object{"uid": 0, "gid": 0, "umask": 0} }, "0000\n", ""},
		"the same group twice":            {[]string{"id", "-G"}, func(_, p, _ object) { p["user"] = object{"uid": 7, "gid": 7, "additionalGids": []int{9, 9}} }, "7 9\n", "7 9 9\n"},
		"a user of a large number":        {[]string{"id", "-u"}, func(_, p, _ object) { p["user"] = object{"uid": 4294967294, "gid": 4294967294} }, "4294967294\n", ""},
		"an argument that is empty":       {[]string{"sh", "-c", "echo $# ${#1}", "x", ""}, func(_, _, _ object) {}, "1 0\n", ""},
		"a program that is a directory":   {[]string{"/etc"}, func(_, _, _ object) {}, "refused", ""},
		"a program of an empty name":      {[]string{""}, func(_, _, _ object) {}, "refused", ""},
		"a limit of files of zero":        {harness.Sh("ulimit -n"), func(_, p, _ object) { p["rlimits"] = []object{{"type": "RLIMIT_NOFILE", "soft": 0, "hard": 0}} }, "0\n", "refused"},
		"a limit without end": {harness.Sh("ulimit -c"), func(_, p, _ object) {
			p["rlimits"] = []object{{"type": "RLIMIT_CORE", "soft": uint64(1<<64 - 1), "hard": uint64(1<<64 - 1)}}
		}, "unlimited\n", ""},
		"a capability in small letters": {status("CapBnd"), func(_, p, _ object) { p["capabilities"] = object{"bounding": []string{"cap_chown"}} }, "0000000000000000\n", ""},
		"a capability twice":            {status("CapBnd"), func(_, p, _ object) { p["capabilities"] = object{"bounding": []string{"CAP_CHOWN", "CAP_CHOWN"}} }, "0000000000000001\n", ""},
		"ambient without inheritable": {status("CapAmb"), func(_, p, _ object) {
			p["capabilities"] = object{"bounding": []string{"CAP_CHOWN"}, "permitted": []string{"CAP_CHOWN"}, "effective": []string{"CAP_CHOWN"}, "ambient": []string{"CAP_CHOWN"}}
		}, "0000000000000000\n", ""},
		"effective without permitted": {status("CapEff"), func(_, p, _ object) {
			p["capabilities"] = object{"bounding": []string{"CAP_CHOWN"}, "effective": []string{"CAP_CHOWN"}}
		}, "refused", ""},
		"an OOM score of zero":                {[]string{"cat", "/proc/self/oom_score_adj"}, func(_, p, _ object) { p["oomScoreAdj"] = 0 }, "0\n", ""},
		"a hostname of 64 letters":            {[]string{"hostname"}, func(s, _, _ object) { s["hostname"] = strings.Repeat("h", 64) }, strings.Repeat("h", 64) + "\n", ""},
		"a hostname of 65 letters":            {[]string{"hostname"}, func(s, _, _ object) { s["hostname"] = strings.Repeat("h", 65) }, "refused", ""},
		"a masked path below /proc/self/root": {harness.Sh("wc -c < /etc/passwd"), func(_, _, l object) { l["maskedPaths"] = []string{"/proc/self/root/etc/passwd"} }, "refused", "0\n"},
		"a read-only path not there":          {harness.Sh("echo ran"), func(_, _, l object) { l["readonlyPaths"] = []string{"/not/there"} }, "ran\n", ""},
		"a sysctl with an empty value":        {harness.Sh("echo ran"), func(_, _, l object) { l["sysctl"] = object{"net.ipv4.ip_forward": ""} }, "ran\n", ""},
		"a sysctl of two numbers":             {[]string{"cat", "/proc/sys/net/ipv4/ping_group_range"}, func(_, _, l object) { l["sysctl"] = object{"net.ipv4.ping_group_range": "0 7"} }, "0\t7\n", ""},
		"a sysctl that is not there":          {harness.Sh("echo ran"), func(_, _, l object) { l["sysctl"] = object{"net.ipv4.no_such_thing": "1"} }, "refused", ""},
		"a fifo as a device":                  {harness.Sh("stat -c %F /dev/pipe"), func(_, _, l object) { l["devices"] = []object{{"path": "/dev/pipe", "type": "p"}} }, "fifo\n", ""},
		"a device outside of /dev": {harness.Sh("stat -c '%F %t %T' /srv/null"), func(_, _, l object) {
			l["devices"] = []object{{"path": "/srv/null", "type": "c", "major": 1, "minor": 3}}
		}, "character special file 1 3\n", ""},
		"a device with the mode of zero": {harness.Sh("stat -c %a /dev/z"), func(_, _, l object) {
			l["devices"] = []object{{"path": "/dev/z", "type": "c", "major": 1, "minor": 5, "fileMode": 0}}
		}, "0\n", ""},
		"an unbuffered character device": {harness.Sh("stat -c %F /dev/u"), func(_, _, l object) { l["devices"] = []object{{"path": "/dev/u", "type": "u", "major": 1, "minor": 5}} }, "character special file\n", ""},
		"a mount on a mount": {harness.Sh("stat -f -c %T /a; ls /a"), func(s, _, _ object) {
			s["mounts"] = append(s["mounts"].([]any), object{"destination": "/a", "type": "tmpfs", "source": "one"}, object{"destination": "/a", "type": "tmpfs", "source": "two"})
		}, "tmpfs\n", ""},
		"options that contradict": {harness.Sh("touch /a/f && echo written"), func(s, _, _ object) {
			s["mounts"] = append(s["mounts"].([]any), object{"destination": "/a", "type": "tmpfs", "source": "t", "options": []string{"ro", "rw"}})
		}, "written\n", ""},
		"an option that is empty": {harness.Sh("echo ran"), func(s, _, _ object) {
			s["mounts"] = append(s["mounts"].([]any), object{"destination": "/a", "type": "tmpfs", "source": "t", "options": []string{""}})
		}, "ran\n", ""},
		"a type in capitals": {harness.Sh("echo ran"), func(s, _, _ object) {
			s["mounts"] = append(s["mounts"].([]any), object{"destination": "/a", "type": "TMPFS", "source": "t"})
		}, "refused", ""},
		"a field that nobody knows":         {harness.Sh("echo ran"), func(s, _, _ object) { s["fieldOfTomorrow"] = object{"x": 1} }, "ran\n", ""},
		"an I/O priority of no class":       {harness.Sh("echo ran"), func(_, p, _ object) { p["ioPriority"] = object{"class": "", "priority": 0} }, "refused", ""},
		"a priority for an ordinary policy": {harness.Sh("echo ran"), func(_, p, _ object) { p["scheduler"] = object{"policy": "SCHED_OTHER", "priority": 5} }, "refused", ""},
		"a console without a terminal":      {harness.Sh("echo ran"), func(_, p, _ object) { p["consoleSize"] = object{"height": 9, "width": 9} }, "ran\n", ""},
		"CPUs with commas too many":         {harness.Sh("echo ran"), func(_, p, _ object) { p["execCPUAffinity"] = object{"initial": "0,,", "final": " , 0"} }, "ran\n", ""},
		"nodes with commas too many":        {harness.Sh("echo ran"), func(_, _, l object) { l["memoryPolicy"] = object{"mode": "MPOL_BIND", "nodes": ",0,"} }, "ran\n", ""},
		"an environment that is left out":   {[]string{"/usr/bin/env"}, func(_, p, _ object) { delete(p, "env") }, "HOME=/root\n", ""},
		"a HOME and an empty one after it":  {harness.Sh("echo $HOME"), func(_, p, _ object) { p["env"] = []string{"PATH=/bin", "HOME=/tmp", "HOME="} }, "/root\n", ""},
		"one CPU share":                     {harness.Sh("echo ran"), func(_, _, l object) { l["resources"].(object)["cpu"] = object{"shares": 1} }, map[bool]string{false: "refused", true: "ran\n"}[onV2()], ""},
		"a quota of minus two":              {harness.Sh("echo ran"), func(_, _, l object) { l["resources"].(object)["cpu"] = object{"quota": -2} }, "ran\n", ""},
		"no hostname":                       {harness.Sh("test $(hostname) = " + hostName() + " && echo as outside"), func(s, _, _ object) { s["hostname"] = "" }, "as outside\n", ""},
		"a pids limit of zero":              {harness.Sh("echo ran"), func(_, _, l object) { l["resources"].(object)["pids"] = object{"limit": 0} }, "ran\n", ""},
		"memory nodes that are not there":   {harness.Sh("echo ran"), func(_, _, l object) { l["resources"].(object)["cpu"] = object{"mems": "77"} }, "refused", ""},
		"CPUs that are not there":           {harness.Sh("echo ran"), func(_, _, l object) { l["resources"].(object)["cpu"] = object{"cpus": "999"} }, "refused", ""},
		"a quota of zero":                   {harness.Sh("echo ran"), func(_, _, l object) { l["resources"].(object)["cpu"] = object{"quota": 0} }, "ran\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if peer() && test.runc != "" {
				test.want = test.runc
			}
			e := start(t)
			c := e.Container(test.args)
			putSpec(e, c, edit(test.set))
			err := c.TryCreate()
			if err == nil {
				err = c.Task.Start(e.Ctx)
			}
			if err != nil {
				t.Log(err)
			}
			if (err != nil) != (test.want == "refused") {
				t.Fatalf("the error is %v", err)
			}
			if err != nil {
				return
			}
			got := c.Wait()
			c.Delete()
			if got.Stdout != test.want {
				t.Errorf("it says %q, want %q (%+v)", got.Stdout, test.want, got)
			}
		})
	}
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}
