package integration

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// inode names the namespace of a process.
func inode(e *harness.Env, pid uint32, kind string) string {
	e.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	e.Must(err, "read a namespace")
	return link
}

func TestAGroupsContainersShareOneShim(t *testing.T) {
	for _, annotation := range []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"} {
		t.Run(annotation, func(t *testing.T) {
			e := startGroup(t)
			var members []*harness.Container
			group := oci.WithAnnotations(map[string]string{annotation: "the-group"})
			for range 3 {
				members = append(members, e.Container(harness.Sleep(), group).Run())
			}
			alone := e.Container(harness.Sleep()).Run()
			if pids := shims(e); len(pids) != 2 {
				t.Errorf("there are %d shims for a group of 3 and one alone: %v", len(pids), pids)
			}
			for i, c := range append(members, alone) {
				if got := c.RunExec("echo", "I am", fmt.Sprint(i)); got.Stdout != fmt.Sprintf("I am %d\n", i) {
					t.Errorf("an exec in %d: %+v", i, got)
				}
			}
			// The first one is the one that started the shim; it goes first.
			for i, c := range members {
				c.Kill(syscall.SIGKILL)
				if got := c.Wait(); got.Code != 137 {
					t.Errorf("member %d: exit code %d", i, got.Code)
				}
				c.Delete()
				for j, other := range members[i+1:] {
					if got := other.RunExec("true"); got.Code != 0 {
						t.Errorf("an exec in %d after %d was deleted: %+v", i+1+j, i, got)
					}
				}
			}
			e.Eventually("the group's shim has ended", func() bool { return len(shims(e)) == 1 })
		})
	}
}

func TestAGroupThatIsEmptyAndFilledAgainWorks(t *testing.T) {
	e := startGroup(t)
	group := oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "again"})
	for range 3 {
		if got := e.Container([]string{"echo", "ok"}, group).Finish(); got.Stdout != "ok\n" {
			t.Fatalf("got %+v", got)
		}
	}
}

func TestTheKilledShimOfAGroupLeavesNothing(t *testing.T) {
	e := startToKill(t)
	group := oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "doomed"})
	var members []*harness.Container
	for range 3 {
		members = append(members, e.Container(harness.Sleep(), group).Run())
	}
	for _, pid := range shims(e) {
		e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill the shim")
	}
	for _, c := range members {
		c.DeleteOfDeadShim()
	}
}

func TestNamespacesOfAnotherContainerAreJoinedByPath(t *testing.T) {
	for _, test := range []struct {
		kind specs.LinuxNamespaceType
		file string
	}{
		{specs.NetworkNamespace, "net"}, {specs.PIDNamespace, "pid"}, {specs.IPCNamespace, "ipc"}, {specs.UTSNamespace, "uts"},
	} {
		t.Run(string(test.kind), func(t *testing.T) {
			e := start(t)
			one := e.Container(harness.Sleep()).Run()
			opts := []oci.SpecOpts{joining(test.kind, fmt.Sprintf("/proc/%d/ns/%s", one.Task.Pid(), test.file))}
			if test.kind == specs.UTSNamespace {
				opts = append(opts, change(func(s *oci.Spec) { s.Hostname = "" }))
			}
			two := e.Container(harness.Sleep(), opts...).Run()
			if a, b := inode(e, one.Task.Pid(), test.file), inode(e, two.Task.Pid(), test.file); a != b {
				t.Errorf("the one is in %s, the other in %s", a, b)
			}
			for _, other := range []string{"net", "pid", "ipc", "uts", "mnt"} {
				if a, b := inode(e, one.Task.Pid(), other), inode(e, two.Task.Pid(), other); other != test.file && a == b {
					t.Errorf("they are both in %s too", a)
				}
			}
			x := two.Exec(nil, two.Process([]string{"sleep", "3600"})).StartExec()
			if a, b := inode(e, one.Task.Pid(), test.file), inode(e, x.Process.Pid(), test.file); a != b {
				t.Errorf("the one is in %s, an exec of the other in %s", a, b)
			}
			if a, b := inode(e, two.Task.Pid(), "mnt"), inode(e, x.Process.Pid(), "mnt"); a != b {
				t.Errorf("the container is in %s, its exec in %s", a, b)
			}
			e.Must(x.Process.Kill(e.Ctx, syscall.SIGKILL), "kill the exec")
			x.WaitExec()
			two.Kill(syscall.SIGKILL)
			two.Wait()
			two.Delete()
		})
	}
}

func TestAPodsContainersSeeEachOther(t *testing.T) {
	e := startGroup(t)
	group := oci.WithAnnotations(map[string]string{"io.kubernetes.cri.sandbox-id": "pod"})
	one := e.Container(harness.Sleep(), group).Run()
	at := func(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", one.Task.Pid(), kind) }
	two := e.Container(harness.Sh("trap 'exit 0' TERM; while :; do sleep 0.1; done"), group,
		joining(specs.PIDNamespace, at("pid")), joining(specs.IPCNamespace, at("ipc")), joining(specs.NetworkNamespace, at("net"))).Run()
	if got := two.RunExec(harness.Sh("cat /proc/1/comm; test $$ -gt 1 && echo not the first")...); got.Stdout != "sh\nnot the first\n" {
		t.Errorf("two sees %+v", got)
	}
	// The first process of a PID namespace takes all others with it.
	one.Kill(syscall.SIGKILL)
	one.Wait()
	if got := two.Wait(); got.Code != 137 {
		t.Errorf("two ended with %d, want 137", got.Code)
	}
	two.Delete()
	one.Delete()
}

// startGroup begins a test with groups.
func startGroup(t *testing.T) *harness.Env {
	t.Helper()
	e := start(t)
	if peer() {
		e.MayLeave("socket /run/containerd/s/") // runc's shim forgets that of a group
	}
	return e
}
