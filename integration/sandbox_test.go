package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	cg1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cg2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod is a sandbox of the shim's, used as CRI uses it.
type pod struct {
	*harness.Env
	id   string
	ctrl sandbox.Controller
	pid  uint32
}

// startSandboxes begins a test of the sandbox service. containerd 1.7 asks the shim for it in another way.
func startSandboxes(t *testing.T) *harness.Env {
	t.Helper()
	if peer() {
		t.Skip("only rsys has sandboxes without a pause container")
	}
	e := start(t)
	v, err := e.Client.Version(e.Ctx)
	e.Must(err, "version of containerd")
	if strings.HasPrefix(strings.TrimPrefix(v.Version, "v"), "1.") {
		t.Skipf("containerd %s: sandboxes are for 2.x", v.Version)
	}
	return e
}

// newPod creates a sandbox and, with start, starts it.
func newPod(e *harness.Env, config *runtimeapi.PodSandboxConfig, netns string) *pod {
	e.Helper()
	p := &pod{Env: e, id: fmt.Sprintf("pod%d-%d", os.Getpid()%1000, time.Now().UnixNano()), ctrl: e.Client.SandboxController("shim")}
	info := sandbox.Sandbox{ID: p.id, Sandboxer: "shim", Runtime: sandbox.RuntimeOpts{Name: harness.Runtime()}}
	_, err := e.Client.SandboxStore().Create(e.Ctx, info)
	e.Must(err, "store the sandbox")
	e.Cleanup(p.remove)
	opts := []sandbox.CreateOpt{sandbox.WithNetNSPath(netns)}
	if config != nil {
		opts = append(opts, sandbox.WithOptions(config))
	}
	e.Must(p.ctrl.Create(e.Ctx, info, opts...), "create the sandbox")
	return p
}

func (p *pod) start() *pod {
	p.Helper()
	inst, err := p.ctrl.Start(p.Ctx, p.id)
	p.Must(err, "start the sandbox")
	if inst.Pid == 0 || time.Since(inst.CreatedAt) > time.Minute {
		p.Errorf("an instance without a pid or a time: %+v", inst)
	}
	p.pid = inst.Pid
	return p
}

// remove is what the end of a test does.
func (p *pod) remove() {
	ctx, cancel := context.WithTimeout(p.Background(), 2*harness.Patience)
	defer cancel()
	ctrl := p.Client.SandboxController("shim")
	_ = ctrl.Shutdown(ctx, p.id)
	_ = p.Client.SandboxStore().Delete(ctx, p.id)
}

// ns is the namespaces that CRI gives a container of a pod.
func (p *pod) ns(shared ...specs.LinuxNamespaceType) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		for _, t := range shared {
			file := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
				specs.PIDNamespace: "pid", specs.UserNamespace: "user"}[t]
			_ = oci.WithLinuxNamespace(specs.LinuxNamespace{Type: t, Path: fmt.Sprintf("/proc/%d/ns/%s", p.pid, file)})(nil, nil, nil, s)
		}
		s.Hostname = ""
		return nil
	}
}

// container makes a container of the pod.
func (p *pod) container(args []string, shared []specs.LinuxNamespaceType, opts ...oci.SpecOpts) *harness.Container {
	p.Helper()
	opts = append(opts, p.ns(shared...), oci.WithAnnotations(map[string]string{
		"io.kubernetes.cri.sandbox-id": p.id, "io.kubernetes.cri.container-type": "container",
	}))
	c := p.Env.Container(args, opts...)
	p.Must(c.Update(p.Ctx, client.UpdateContainerOpts(client.WithSandbox(p.id))), "say that the container is the sandbox's")
	return c
}

var (
	usual     = []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace}
	sharedPID = append([]specs.LinuxNamespaceType{specs.PIDNamespace}, usual...)
)

// podConfig is that of an ordinary pod, with its PID namespaces per container.
func podConfig(e *harness.Env) *runtimeapi.PodSandboxConfig {
	// The kubelet makes the pod's cgroup, and removes it.
	e.Cleanup(func() {
		parents, _ := filepath.Glob("/sys/fs/cgroup/*/" + e.Namespace)
		for _, dir := range append(parents, "/sys/fs/cgroup/"+e.Namespace) {
			e.Eventually("the pod's cgroup is empty", func() bool {
				err := os.Remove(filepath.Join(dir, "pod1"))
				return err == nil || os.IsNotExist(err)
			})
		}
	})
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Uid: "1234", Namespace: "default"},
		Hostname: "the-pod",
		DnsConfig: &runtimeapi.DNSConfig{
			Servers: []string{"10.1.2.3", "10.1.2.4"}, Searches: []string{"default.svc", "svc"}, Options: []string{"ndots:5"},
		},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/" + e.Namespace + "/pod1",
			Sysctls:      map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_forward": "1"},
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
}

// netns makes a network namespace as CRI does: a file.
func netns(e *harness.Env) string {
	e.Helper()
	path := filepath.Join(e.TempDir(), "netns")
	e.Must(os.WriteFile(path, nil, 0o600), "netns file")
	done := make(chan error)
	go func() {
		// The thread gets its own back: it may be the first one, which does not end with the goroutine and is what
		// /proc/self shows.
		runtime.LockOSThread()
		own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(own)
			err = unix.Unshare(unix.CLONE_NEWNET)
		}
		if err == nil {
			err = errors.Join(unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""), unix.Setns(own, unix.CLONE_NEWNET))
		}
		if err == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	e.Must(<-done, "network namespace")
	e.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func nsOf(e *harness.Env, path string) string {
	e.Helper()
	var st unix.Stat_t
	e.Must(unix.Stat(path, &st), "stat %s", path)
	return strconv.FormatUint(st.Ino, 10)
}

func TestAPodsContainersShareTheNamespacesThatTheShimHolds(t *testing.T) {
	e := startSandboxes(t)
	net := netns(e)
	p := newPod(e, podConfig(e), net).start()
	if n := len(shims(e)); n != 1 {
		t.Errorf("%d shims", n)
	}
	if got := nsOf(e, fmt.Sprintf("/proc/%d/ns/net", p.pid)); got != nsOf(e, net) {
		t.Errorf("the holder is in network namespace %s, not in CRI's", got)
	}
	a := p.container(harness.Sleep(), usual).Run()
	b := p.container(harness.Sleep(), usual).Run()
	if pids := shims(e); len(pids) != 1 {
		t.Errorf("there are %d shims for a pod of two containers", len(pids))
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		if x, y, z := inode(e, p.pid, kind), inode(e, a.Task.Pid(), kind), inode(e, b.Task.Pid(), kind); x != y || y != z {
			t.Errorf("%s: holder %s, containers %s and %s", kind, x, y, z)
		}
	}
	if x, y := inode(e, a.Task.Pid(), "pid"), inode(e, b.Task.Pid(), "pid"); x == y || x == inode(e, p.pid, "pid") {
		t.Errorf("containers share a PID namespace nobody wanted them to share: %s, %s", x, y)
	}
	for want, script := range map[string]string{
		"the-pod\n":           "hostname",
		"the-pod\nhostname\n": "cat /etc/hostname; echo hostname",
		"1 1 0\n":             "echo $(cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ip_unprivileged_port_start)",
		"0 2147483647\n":      "echo $(cat /proc/sys/net/ipv4/ping_group_range)",
		"search default.svc svc\nnameserver 10.1.2.3\nnameserver 10.1.2.4\noptions ndots:5\n": "cat /etc/resolv.conf",
		"tmpfs 65536k 1777\n": "echo $(grep ' /dev/shm ' /proc/mounts | sed 's/^[^ ]* [^ ]* \\([^ ]*\\) .*\\(size=\\)\\([0-9]*k\\).*/\\1 \\3/') $(stat -c %a /dev/shm)",
	} {
		if got := a.RunExec("sh", "-c", script); got.Stdout != want {
			t.Errorf("%s: %q, want %q (%s)", script, got.Stdout, want, got.Stderr)
		}
	}
	if got := a.RunExec("sh", "-c", "echo shared > /dev/shm/x"); got.Code != 0 {
		t.Errorf("write into /dev/shm: %+v", got)
	}
	if got := b.RunExec("cat", "/dev/shm/x"); got.Stdout != "shared\n" {
		t.Errorf("/dev/shm is not the pod's: %+v", got)
	}
	hosts, err := os.ReadFile("/etc/hosts")
	e.Must(err, "host's hosts")
	if got := b.RunExec("cat", "/etc/hosts"); got.Stdout != string(hosts) {
		t.Errorf("/etc/hosts: %+v", got)
	}

	// The shim stays when the last container has gone, and takes another.
	for _, c := range []*harness.Container{a, b} {
		c.Kill(unix.SIGKILL)
		c.Wait()
		c.Delete()
	}
	if got := p.container([]string{"hostname"}, usual).Finish(); got.Stdout != "the-pod\n" {
		t.Errorf("a container after the others: %+v", got)
	}
	st, err := p.ctrl.Status(e.Ctx, p.id, true)
	e.Must(err, "status")
	if st.State != "SANDBOX_READY" || st.Pid != p.pid || !strings.Contains(st.Info["info"], `"/pause"`) {
		t.Errorf("status %+v", st)
	}
}

func TestThePauseProgramIsInitOfAPodThatSharesItsPIDNamespace(t *testing.T) {
	e := startSandboxes(t)
	config := podConfig(e)
	config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	p := newPod(e, config, netns(e)).start()
	a := p.container([]string{"sh", "-c", "sleep 1111 & exec sleep 2222"}, sharedPID).Run()
	b := p.container(harness.Sleep(), sharedPID, oci.WithAddedCapabilities([]string{"CAP_SYS_PTRACE", "CAP_KILL"})).Run()

	out := b.RunExec("ps", "-o", "pid,user,args").Stdout
	for _, want := range []string{" 1 65535    /pause", "sleep 1111", "sleep 2222"} {
		if !strings.Contains(strings.ReplaceAll(out, "    1 ", " 1 "), want) {
			t.Errorf("ps does not show %q:\n%s", want, out)
		}
	}
	// What a container's death orphans goes to PID 1, and is gone when it has exited.
	a.Kill(unix.SIGKILL)
	a.Wait()
	a.Delete()
	zombies := func() string {
		return b.RunExec("sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; true").Stdout
	}
	if got := b.RunExec("sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.0$i & ) ; done; sleep 0.3; ps -o args | grep -c '^sleep 0.0'"); got.Stdout != "0\n" {
		t.Errorf("orphans are still there: %+v", got)
	}
	e.Eventually("no zombie is left", func() bool { return zombies() == "" })

	// Whoever is root in the namespace can't end its init, and finds nothing in it.
	for _, sig := range []string{"KILL", "TERM", "INT", "HUP", "STOP", "CHLD", "USR1"} {
		if got := b.RunExec("kill", "-"+sig, "1"); got.Code != 0 {
			t.Errorf("kill -%s 1: %+v", sig, got)
		}
	}
	if got := b.RunExec("sh", "-c", "kill -KILL -1; true"); got.Code != 0 && got.Code != 137 {
		t.Errorf("kill -1: %+v", got)
	}
	for _, line := range []string{"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000",
		"CapInh:\t0000000000000000", "NoNewPrivs:\t1", "Uid:\t65535\t65535\t65535\t65535", "SigIgn:\t0000000000010000"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
		e.Must(err, "status of the holder")
		if !strings.Contains(string(data), line) {
			t.Errorf("the holder has not %q:\n%s", line, data)
		}
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/", p.pid))
	e.Must(err, "root of the holder")
	var names []string
	for _, f := range entries {
		names = append(names, f.Name())
	}
	if got := strings.Join(names, " "); got != "dev pause" {
		t.Errorf("in the holder's root: %s", got)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	e.Must(err, "descriptors of the holder")
	for _, f := range fds {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", p.pid, f.Name())); to != "/dev/null" {
			t.Errorf("the holder has descriptor %s: %s", f.Name(), to)
		}
	}
	st, err := p.ctrl.Status(e.Ctx, p.id, false)
	e.Must(err, "status")
	if st.State != "SANDBOX_READY" || st.Pid != p.pid {
		t.Errorf("after all that: %+v", st)
	}
}

func TestAStoppedSandboxTakesItsContainersAlong(t *testing.T) {
	e := startSandboxes(t)
	p := newPod(e, podConfig(e), netns(e)).start()
	c := p.container(harness.Sleep(), usual).Run()
	type result struct {
		exit sandbox.ExitStatus
		err  error
	}
	waited := make(chan result, 2)
	wait := func() {
		exit, err := p.ctrl.Wait(e.Ctx, p.id)
		waited <- result{exit, err}
	}
	go wait()
	before := time.Now()
	e.Must(p.ctrl.Stop(e.Ctx, p.id, sandbox.WithTimeout(10*time.Second)), "stop")
	if got := c.Wait(); got.Code != 137 {
		t.Errorf("the container's exit code is %d", got.Code)
	}
	go wait() // of one that has ended
	for range 2 {
		select {
		case r := <-waited:
			if r.err != nil || r.exit.ExitStatus != 137 || r.exit.ExitedAt.Before(before) {
				t.Errorf("wait: %+v", r)
			}
		case <-time.After(harness.Patience):
			t.Fatal("wait does not end")
		}
	}
	st, err := p.ctrl.Status(e.Ctx, p.id, false)
	e.Must(err, "status")
	if st.State != "SANDBOX_NOTREADY" || st.Pid != 0 || st.ExitedAt.Before(before) {
		t.Errorf("status after the stop: %+v", st)
	}
	e.Must(p.ctrl.Stop(e.Ctx, p.id), "stop again")
	if _, err := p.ctrl.Start(e.Ctx, p.id); err == nil {
		t.Error("a stopped sandbox was started again")
	}
}

func TestAShutDownSandboxLeavesNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		with func(*pod)
	}{
		{"before its start", func(*pod) {}},
		{"running", func(p *pod) { p.start() }},
		{"stopped", func(p *pod) { p.start(); p.Must(p.ctrl.Stop(p.Ctx, p.id), "stop") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := startSandboxes(t)
			p := newPod(e, podConfig(e), netns(e))
			c.with(p)
			e.Must(p.ctrl.Shutdown(e.Ctx, p.id), "shutdown")
			e.Eventually("the shim has gone", func() bool { return len(shims(e)) == 0 })
			if dirs, _ := filepath.Glob(filepath.Join(e.State, "state/io.containerd.sandbox.controller.v1.shim", e.Namespace, "*")); len(dirs) != 0 {
				t.Errorf("bundles are left: %v", dirs)
			}
		})
	}
}

func TestARestartedContainerdFindsTheSandbox(t *testing.T) {
	e := startSandboxes(t)
	p := newPod(e, podConfig(e), netns(e)).start()
	a := p.container(harness.Sleep(), usual).Run()
	id := a.ID()
	e.Daemon.Kill()
	e.Must(e.Daemon.Run(), "containerd again")
	p.ctrl = e.Client.SandboxController("shim")
	st, err := p.ctrl.Status(e.Ctx, p.id, false)
	e.Must(err, "status")
	if st.State != "SANDBOX_READY" || st.Pid != p.pid || st.CreatedAt.IsZero() {
		t.Errorf("status after the restart: %+v", st)
	}
	if n := len(shims(e)); n != 1 {
		t.Errorf("%d shims", n)
	}
	record, err := e.Client.LoadContainer(e.Ctx, id)
	e.Must(err, "load the container")
	task, err := record.Task(e.Ctx, nil)
	e.Must(err, "load the task")
	if got, err := task.Status(e.Ctx); err != nil || got.Status != client.Running {
		t.Errorf("the container's task is %+v, %v", got, err)
	}
	if got := p.container([]string{"hostname"}, usual).Finish(); got.Stdout != "the-pod\n" {
		t.Errorf("a container after the restart: %+v", got)
	}
}

func TestTheKilledShimOfASandboxLeavesNothing(t *testing.T) {
	e := startSandboxes(t)
	p := newPod(e, podConfig(e), netns(e)).start()
	c := p.container(harness.Sleep(), usual).Run()
	for _, pid := range shims(e) {
		e.Must(unix.Kill(pid, unix.SIGKILL), "kill the shim")
	}
	e.Eventually("the task can be deleted", func() bool {
		task, err := c.Container.Task(e.Ctx, nil)
		if err != nil {
			return errdefs.IsNotFound(err)
		}
		_, err = task.Delete(e.Ctx, client.WithProcessKill)
		return err == nil || errdefs.IsNotFound(err)
	})
	e.Eventually("the holder has gone", func() bool { return unix.Kill(int(p.pid), 0) == unix.ESRCH })
	e.Eventually("containerd knows the sandbox no more", func() bool {
		st, err := p.ctrl.Status(e.Ctx, p.id, false)
		return err != nil || st.State == ""
	})
}

func TestAHostNetworkPodHasTheHostsNetworkAndName(t *testing.T) {
	e := startSandboxes(t)
	config := podConfig(e)
	config.Linux.Sysctls = nil
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	p := newPod(e, config, "").start()
	for _, kind := range []string{"net", "uts"} {
		if ours, its := inode(e, uint32(e.Pid()), kind), inode(e, p.pid, kind); ours != its {
			t.Errorf("%s: the holder has %s, the host %s", kind, its, ours)
		}
	}
	if ours, its := inode(e, uint32(e.Pid()), "ipc"), inode(e, p.pid, "ipc"); ours == its {
		t.Error("the pod has the host's ipc namespace")
	}
	name, err := os.Hostname()
	e.Must(err, "hostname")
	if got := p.container([]string{"hostname"}, []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace}).Finish(); got.Stdout != name+"\n" {
		t.Errorf("got %+v, want %q", got, name)
	}
}

func TestASandboxThatCannotBeMadeLeavesNothing(t *testing.T) {
	for _, c := range []struct {
		name, want, netns string
		change            func(*runtimeapi.PodSandboxConfig)
	}{
		{"a sysctl that is not there", "linux.sysctl[net.no.such]", "", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.no.such": "1"}
		}},
		{"a sysctl of the host", "linux.sysctl[kernel.panic]", "", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"kernel.panic": "1"}
		}},
		{"a network namespace that is not there", "/no/such/netns", "/no/such/netns", func(*runtimeapi.PodSandboxConfig) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := startSandboxes(t)
			config := podConfig(e)
			c.change(config)
			net := c.netns
			if net == "" {
				net = netns(e)
			}
			id := fmt.Sprintf("bad%d", time.Now().UnixNano())
			info := sandbox.Sandbox{ID: id, Sandboxer: "shim", Runtime: sandbox.RuntimeOpts{Name: harness.Runtime()}}
			_, err := e.Client.SandboxStore().Create(e.Ctx, info)
			e.Must(err, "store the sandbox")
			defer func() { e.Must(e.Client.SandboxStore().Delete(e.Ctx, id), "forget the sandbox") }()
			err = e.Client.SandboxController("shim").Create(e.Ctx, info, sandbox.WithOptions(config), sandbox.WithNetNSPath(net))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			e.Eventually("the shim has gone", func() bool { return len(shims(e)) == 0 })
		})
	}
}

func TestASandboxsMetricsAreThoseOfThePodsCgroup(t *testing.T) {
	if harness.Systemd() {
		t.Skip("this pod's cgroup is no slice of systemd's; integration/cri has the stats of one that is")
	}
	e := startSandboxes(t)
	p := newPod(e, podConfig(e), netns(e)).start()
	memory := func() uint64 {
		m, err := p.ctrl.Metrics(e.Ctx, p.id)
		e.Must(err, "metrics")
		if m.ID != p.id || m.Timestamp == nil {
			t.Errorf("metrics %v", m)
		}
		data, err := typeurl.UnmarshalAny(m.Data)
		e.Must(err, "decode the metrics")
		switch m := data.(type) {
		case *cg1.Metrics:
			return m.Memory.Usage.Usage
		case *cg2.Metrics:
			return m.Memory.Usage
		}
		t.Fatalf("metrics of type %T", data)
		return 0
	}
	// The kernel charges a cgroup ahead, up to 64 pages of each processor.
	ahead := uint64(64 * os.Getpagesize() * runtime.NumCPU())
	n := memory()
	if t.Logf("%d bytes before there is a container", n); n > ahead+512<<10 {
		t.Errorf("%d bytes before there is a container, of which %d may be charged ahead", n, ahead)
	}
	// What a container writes to its tmpfs is charged to it, and so to the pod.
	p.container(harness.Sh("head -c 16000000 /dev/zero > /dev/shm/file", "exec sleep 1000"), usual, oci.WithCgroup("/"+e.Namespace+"/pod1/c")).Run()
	e.Eventually("the pod's memory has grown by what a container of it uses", func() bool { return memory() >= 16000000 })
}

func TestASpecOfAClientSaysWhatASandboxIs(t *testing.T) {
	e := startSandboxes(t)
	p := &pod{Env: e, id: fmt.Sprintf("spec%d", time.Now().UnixNano()), ctrl: e.Client.SandboxController("shim")}
	spec := &specs.Spec{
		Version: "1.1.0", Hostname: "by-spec",
		Process: &specs.Process{Args: []string{"/no/such/program"}, Cwd: "/"}, Root: &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{
			CgroupsPath: "/" + e.Namespace + "/" + p.id,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.UTSNamespace}, {Type: specs.PIDNamespace}},
		},
	}
	data, err := typeurl.MarshalAny(spec)
	e.Must(err, "spec")
	info := sandbox.Sandbox{ID: p.id, Sandboxer: "shim", Runtime: sandbox.RuntimeOpts{Name: harness.Runtime()}, Spec: data}
	_, err = e.Client.SandboxStore().Create(e.Ctx, info)
	e.Must(err, "store the sandbox")
	e.Cleanup(p.remove)
	e.Must(p.ctrl.Create(e.Ctx, info), "create the sandbox")
	p.start()
	for kind, own := range map[string]bool{"uts": true, "pid": true, "ipc": false, "net": false} {
		if got := inode(e, p.pid, kind) != inode(e, uint32(e.Pid()), kind); got != own {
			t.Errorf("%s namespace of its own: %v", kind, got)
		}
	}
	if got := p.container([]string{"hostname"}, []specs.LinuxNamespaceType{specs.UTSNamespace}).Finish(); got.Stdout != "by-spec\n" {
		t.Errorf("got %+v", got)
	}
}

func TestASandboxEndsWithTheHolderOfItsNamespaces(t *testing.T) {
	e := startSandboxes(t)
	config := podConfig(e)
	config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	p := newPod(e, config, netns(e)).start()
	c := p.container(harness.Sleep(), sharedPID).Run()
	e.Must(unix.Kill(int(p.pid), unix.SIGKILL), "kill the holder from the host")
	exit, err := p.ctrl.Wait(e.Ctx, p.id)
	if err != nil || exit.ExitStatus != 137 {
		t.Errorf("wait: %+v, %v", exit, err)
	}
	// The kernel kills what is in a PID namespace whose init has ended.
	if got := c.Wait(); got.Code != 137 {
		t.Errorf("the container's exit code is %d", got.Code)
	}
	st, err := p.ctrl.Status(e.Ctx, p.id, false)
	e.Must(err, "status")
	if st.State != "SANDBOX_NOTREADY" || st.Pid != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestAHolderIsSmall(t *testing.T) {
	e := startSandboxes(t)
	p := newPod(e, podConfig(e), netns(e)).start()
	// The start is answered when exec has let go of the old memory, a moment before its end: until then /proc can show the stub's.
	e.Eventually("the exec has ended", func() bool {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.pid))
		return err == nil && string(comm) == "pause\n"
	})
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
	e.Must(err, "memory of the holder")
	var rss int
	for line := range strings.Lines(string(data)) {
		if n, _ := fmt.Sscanf(line, "Rss: %d kB", &rss); n == 1 {
			break
		}
	}
	if rss == 0 || rss > 20 { // 4 to 16 seen: which pages of the stack and the program have been touched
		t.Errorf("the holder has %d kB", rss)
	}
	t.Logf("the holder has %d kB", rss)
}
