package cri

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

// shims are the processes of the runtime under test.
func shims() []harness.Proc {
	var found []harness.Proc
	for _, p := range harness.Descendants() {
		if strings.HasPrefix(harness.ExeOf(p.Pid), "containerd-shim-") {
			found = append(found, p)
		}
	}
	return found
}

func TestAPodsContainersShareOneShimAndThePodsNamespaces(t *testing.T) {
	p := start(t).Run()
	one, two := p.Container(harness.Sleep()...), p.Container(harness.Sleep()...)
	if got := shims(); len(got) != 1 {
		t.Errorf("a pod with two containers has %d shims: %v", len(got), got)
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		pod := namespace(p, p.Pid(), kind)
		for _, c := range []*harness.PodContainer{one, two} {
			if got := namespace(p, c.Pid(), kind); got != pod {
				t.Errorf("%s: a container is in %s, the pod in %s", kind, got, pod)
			}
		}
		if node := namespace(p, os.Getpid(), kind); node == pod {
			t.Errorf("%s: the pod is in the node's", kind)
		}
	}
	for _, kind := range []string{"pid", "mnt"} {
		if a, b := namespace(p, one.Pid(), kind), namespace(p, two.Pid(), kind); a == b {
			t.Errorf("%s: both containers are in %s", kind, a)
		}
	}
	for _, c := range []*harness.PodContainer{one, two} {
		if got := c.Sh("hostname; cat /proc/1/comm; grep -c . /etc/hosts >/dev/null; echo $?"); !strings.HasPrefix(got, p.Config.Hostname+"\nsh\n") {
			t.Errorf("a container sees %q", got)
		}
		procs, err := os.ReadFile(harness.CgroupRoot("memory") + c.Cgroup() + "/cgroup.procs")
		if err != nil || !strings.Contains(string(procs), fmt.Sprintf("%d\n", c.Pid())) {
			t.Errorf("the container's process %d is not in its cgroup below the pod's: %q, %v", c.Pid(), procs, err)
		}
	}
	// One container's end is not the pod's.
	one.Stop(0)
	one.Remove()
	if got := two.Sh("echo still there"); got != "still there" {
		t.Errorf("the other container says %q", got)
	}
	if st := p.Status().State; st != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %v", st)
	}
}

func TestInitContainersRunOneAfterAnotherBeforeTheRest(t *testing.T) {
	p := start(t).Run()
	volume := t.TempDir()
	with := func(script string) *harness.PodContainer {
		c := p.NewContainer(harness.Sh(script)...)
		c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", HostPath: volume}}
		return c.Run()
	}
	for i := range 3 {
		c := with(fmt.Sprintf("cat /volume/* 2>/dev/null | wc -l; echo %d > /volume/%d", i, i))
		if st := c.Wait(); st.ExitCode != 0 || st.Reason != "Completed" {
			t.Errorf("init container %d: %v", i, st)
		}
		if got := strings.TrimSpace(c.Output("stdout")); got != fmt.Sprint(i) {
			t.Errorf("init container %d sees %q files", i, got)
		}
	}
	// A sidecar: started before, and running on.
	sidecar := with("trap 'exit 0' TERM; while :; do sleep 0.1; done")
	if got := with("cat /volume/*").Wait(); got.ExitCode != 0 {
		t.Errorf("the pod's own container: %v", got)
	}
	if got := shims(); len(got) != 1 {
		t.Errorf("%d shims", len(got))
	}
	sidecar.Stop(10 * time.Second)
	if st := sidecar.Status(); st.ExitCode != 0 {
		t.Errorf("the sidecar: %v", st)
	}
}

func TestAPodSharesItsPIDNamespace(t *testing.T) {
	p := start(t)
	p.Config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	p.Run()
	one, two := p.Container(harness.Sh("trap 'exit 0' TERM; while :; do sleep 0.1; done")...), p.Container(harness.Sleep()...)
	if got := two.Sh("cat /proc/1/comm"); got != "pause" {
		t.Errorf("process 1 is %q", got)
	}
	if got := two.Sh("ps -o args | grep -c '[s]leep 0.1; done'"); got != "1" {
		t.Errorf("the other container's process is seen %s times", got)
	}
	// What is left to the first process does not stay a zombie.
	two.Sh("sh -c '(sleep 0.2; :) & exec true'; sleep 0.5; ! ps -o stat,comm | grep -v PID | grep Z")
	if got := two.Sh("readlink /proc/self/ns/pid"); got != namespace(p, p.Pid(), "pid") {
		t.Errorf("an exec is in %s", got)
	}
	two.Stop(5 * time.Second)
	if st := two.Status(); st.ExitCode != 0 {
		t.Errorf("the container ended with %v", st)
	}
	if got := one.Sh("echo lives"); got != "lives" {
		t.Errorf("the other: %q", got)
	}
}

func TestAContainerOfAPodTargetsAnothersPIDNamespace(t *testing.T) {
	p := start(t).Run()
	app := p.Container(harness.Sleep()...)
	// kubectl debug --target
	debug := p.NewContainer(harness.Sleep()...)
	debug.Config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: app.ID}
	debug.Run()
	if a, b := namespace(p, app.Pid(), "pid"), namespace(p, debug.Pid(), "pid"); a != b {
		t.Errorf("the app is in %s, the debugger in %s", a, b)
	}
	if got := debug.Sh("tr '\\0' ' ' < /proc/1/cmdline; test $$ != 1"); !strings.Contains(got, "sleep 3600") {
		t.Errorf("process 1 is %q", got)
	}
	debug.Stop(5 * time.Second)
	debug.Remove()
	if got := app.Sh("echo lives"); got != "lives" {
		t.Errorf("the app: %q", got)
	}
}

func TestAPodSharesTheNodesNamespaces(t *testing.T) {
	p := start(t)
	p.Config.Hostname = ""
	p.Config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
		Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
	p.Run()
	c := p.Container(harness.Sleep()...)
	for _, kind := range []string{"net", "pid", "ipc", "uts"} {
		if got, node := c.Sh("readlink /proc/self/ns/"+kind), namespace(p, os.Getpid(), kind); got != node {
			t.Errorf("%s: %s, the node's is %s", kind, got, node)
		}
	}
	if got := namespace(p, c.Pid(), "mnt"); got == namespace(p, os.Getpid(), "mnt") {
		t.Error("it is in the node's mount namespace")
	}
	if got := c.Sh(fmt.Sprintf("cat /proc/%d/comm", daemon.Pid())); got != "containerd" {
		t.Errorf("the daemon's process is %q", got)
	}
	// What it leaves behind does not end by itself, in the node's PID namespace.
	c.Sh("setsid sleep 3599 >/dev/null 2>&1 &")
	c.Stop(5 * time.Second)
	p.Eventually("what it left has ended", func() bool {
		for _, proc := range harness.Descendants() {
			if strings.HasPrefix(proc.Cmdline, "sleep 3599") {
				return false
			}
		}
		return true
	})
}

func TestAPrivilegedContainerHasTheNodesDevicesAndAllCapabilities(t *testing.T) {
	p := start(t)
	p.Config.Linux.SecurityContext.Privileged = true
	p.Run()
	c := p.NewContainer(harness.Sleep()...)
	c.Config.Linux.SecurityContext.Seccomp = nil
	c.Config.Linux.SecurityContext.MaskedPaths, c.Config.Linux.SecurityContext.ReadonlyPaths = nil, nil
	c.Run()
	own, err := os.ReadFile("/proc/self/status")
	p.Must(err, "read")
	want := line(string(own), "CapEff:")
	if got := line(c.Sh("cat /proc/self/status"), "CapEff:"); got != want {
		t.Errorf("capabilities %q, the node's root has %q", got, want)
	}
	c.Sh("test -c /dev/kmsg", "mkdir /tmp/m", "mount -t tmpfs none /tmp/m", "test -w /proc/sys/kernel/hostname",
		"! grep ' /sys ro' /proc/self/mounts", "mkdir -p /tmp/dev && mknod /tmp/dev/null c 1 3 && echo x > /tmp/dev/null",
		"grep -q 'Seccomp:.0' /proc/self/status")

	ordinary := p.NewContainer(harness.Sleep()...)
	ordinary.Config.Linux.SecurityContext.Privileged = false
	ordinary.Run()
	ordinary.Sh("! test -e /dev/kmsg", "! mount -t tmpfs none /tmp 2>/dev/null", "grep -q ' /sys sysfs ro' /proc/self/mounts")
}

// line is the rest of the line that begins so.
func line(text, prefix string) string {
	for l := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(l, prefix); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func TestAPodInAUserNamespace(t *testing.T) {
	const base, size = 3_000_000, 65536
	p := start(t)
	ids := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: base, Length: size}}
	p.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
		Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	p.Run()
	volume := t.TempDir()
	p.Must(os.Chmod(volume, 0o755), "chmod")
	p.Must(os.WriteFile(volume+"/root", []byte("x"), 0o600), "write")
	one := p.NewContainer(harness.Sleep()...)
	if !daemon.Old() { // 1.7: "idmap mounts not yet supported"
		one.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", HostPath: volume, UidMappings: ids, GidMappings: ids}}
	}
	one.Run()
	two := p.Container(harness.Sleep()...)
	for _, c := range []*harness.PodContainer{one, two} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Pid()))
		p.Must(err, "read")
		if got := strings.Fields(line(string(status), "Uid:")); len(got) == 0 || got[0] != fmt.Sprint(base) {
			t.Errorf("root of the container is user %v of the node", got)
		}
		if got := strings.Join(strings.Fields(c.Sh("id -u; stat -c %u /bin/busybox /proc/1 /dev/null; cat /proc/self/uid_map")), " "); got != fmt.Sprintf("0 0 0 65534 0 %d %d", base, size) && got != fmt.Sprintf("0 0 0 0 0 %d %d", base, size) {
			t.Errorf("inside: %q", got)
		}
		if a, b := namespace(p, c.Pid(), "user"), namespace(p, p.Pid(), "user"); a != b {
			t.Errorf("the container is in %s, the pod in %s", a, b)
		}
		c.Sh("ip addr show eth0 | grep -q 'inet 10.88'", "echo hello > /file", "test $(stat -c %u:%g /file) = 0:0")
	}
	if daemon.Old() {
		return
	}
	if got := one.Sh("stat -c %u:%g /volume/root", "cat /volume/root; echo mine > /volume/new"); got != "0:0\nx" {
		t.Errorf("the volume's file is %q", got)
	}
	st, err := os.Stat(volume + "/new")
	p.Must(err, "stat")
	if got := owner(st); got != 0 {
		t.Errorf("the new file of the volume is user %d's on the node", got)
	}
}

func TestAPodInAUserNamespaceSharesItsPIDNamespaceAndTakesStreams(t *testing.T) {
	const base, size = 3_100_000, 65536
	p := start(t)
	ids := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: base, Length: size}}
	options := p.Config.Linux.SecurityContext.NamespaceOptions
	options.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	options.Pid = runtimeapi.NamespaceMode_POD
	p.Run()
	c := p.NewContainer(harness.Sleep()...)
	c.Config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	c.Run()
	if got := c.Sh("cat /proc/1/comm; id -u; id -G"); got != "pause\n1000\n1000 50" && got != "pause\n1000\n0 50" {
		t.Errorf("inside: %q", got)
	}
	st, err := os.Stat(fmt.Sprintf("/proc/%d", c.Pid()))
	p.Must(err, "stat")
	if got := owner(st); got != base+1000 {
		t.Errorf("user 1000 of the container is user %d of the node", got)
	}
	if got := typed(c, "tty; stty size >/dev/null && echo a terminal; exit 0\n"); !strings.Contains(got, "/dev/pts/0") || !strings.Contains(got, "a terminal\r\n") {
		t.Errorf("a terminal: %q", got)
	}
	c.Stop(10 * time.Second)
	if st := c.Wait(); st.ExitCode != 0 {
		t.Errorf("it ended with %v", st)
	}
}
