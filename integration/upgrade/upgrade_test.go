// Package upgrade has what is replaced under running containers: containerd by
// a later release, and the shim's binary by another build. Each test has a
// containerd of its own.
package upgrade

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestMain(m *testing.M) {
	harness.Isolate()
	os.Exit(m.Run())
}

// start runs a containerd, with shims from a directory.
func start(t *testing.T, version, shims string) *harness.Env {
	t.Helper()
	cfg, err := harness.FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	if version != "" {
		if cfg.Containerd, err = harness.Release(version); err != nil {
			t.Fatal(err)
		}
	}
	if shims != "" {
		cfg.Path = append([]string{shims}, cfg.Path...)
	}
	d, err := harness.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Stop)
	return harness.New(t, d)
}

// serving is a container that says so, runs execs and ends by SIGTERM with a status of its own.
func serving(e *harness.Env, log string, status int, opts ...oci.SpecOpts) *harness.Container {
	e.Helper()
	c := e.Container(harness.Sh(fmt.Sprintf("trap 'echo bye; exit %d' TERM", status), "echo up", "while :; do sleep 0.1; done"), opts...)
	c.IO.Creator = cio.LogFile(log)
	c.Run()
	e.Eventually("it is up", func() bool { data, _ := os.ReadFile(log); return string(data) == "up\n" })
	return c
}

// reload gets a container's task again, from another containerd.
func reload(e *harness.Env, c *harness.Container) {
	e.Helper()
	pid := c.Task.Pid()
	record, err := e.Client.LoadContainer(e.Ctx, c.ID())
	e.Must(err, "load %s", c.ID())
	task, err := record.Task(e.Ctx, nil)
	e.Must(err, "the task of %s", c.ID())
	if task.Pid() != pid {
		e.Errorf("the pid of %s is %d, was %d", c.ID(), task.Pid(), pid)
	}
	c.Container, c.Task = record, task
}

// finish has a container serve once more, end, and be deleted.
func finish(e *harness.Env, c *harness.Container, log string, status uint32) {
	e.Helper()
	if got := c.RunExec(harness.Sh("echo in $(hostname)", "exit 9")...); got.Code != 9 || !strings.HasPrefix(got.Stdout, "in ") {
		e.Errorf("an exec in %s: %+v", c.ID(), got)
	}
	exit, err := c.Task.Wait(e.Ctx)
	e.Must(err, "wait for %s", c.ID())
	c.Kill(syscall.SIGTERM)
	expect(e, exit, c.ID(), status)
	if st := c.Delete(); st.ExitCode() != status {
		e.Errorf("delete of %s answers %d, want %d", c.ID(), st.ExitCode(), status)
	}
	if data, _ := os.ReadFile(log); string(data) != "up\nbye\n" {
		e.Errorf("the log of %s has %q", c.ID(), data)
	}
}

func expect(e *harness.Env, exit <-chan client.ExitStatus, name string, status uint32) {
	e.Helper()
	select {
	case st := <-exit:
		if st.ExitCode() != status || st.Error() != nil {
			e.Errorf("%s ended with %d, %v; want %d", name, st.ExitCode(), st.Error(), status)
		}
	case <-time.After(harness.Patience):
		e.Fatalf("%s does not end", name)
	}
}

func TestContainersAndExecsLiveThroughAnUpgradeOfContainerd(t *testing.T) {
	e, dir := start(t, "1.7", ""), t.TempDir()
	group := oci.WithAnnotations(map[string]string{"io.kubernetes.cri.sandbox-id": "pod"})
	log := func(name string) string { return filepath.Join(dir, name) }
	alone := serving(e, log("alone"), 11)
	one, two := serving(e, log("one"), 12, group), serving(e, log("two"), 13, group)
	created := e.Container([]string{"echo", "first words"})
	created.IO.Creator = cio.LogFile(log("created"))
	created.Create()
	ended := e.Container(harness.Sh("exit 14"))
	ended.IO.Creator = cio.NullIO
	ended.Run()
	ended.Wait()
	running := alone.Exec(&harness.Exec{IO: harness.IO{Creator: cio.NullIO}}, alone.Process(harness.Sh("until [ -e /go ]; do sleep 0.1; done", "exit 15"))).StartExec()

	// What the later release keeps of its own, and the earlier one has not.
	for _, plugin := range []string{"io.containerd.mount-manager.v1.bolt", "io.containerd.sandbox.controller.v1.shim"} {
		for _, kind := range []string{"directory ", "file "} {
			e.MayLeave(kind + filepath.Join(e.State, "state", plugin))
		}
	}
	var err error
	e.Daemon.Kill()
	e.Daemon.Containerd, err = harness.Release("2.4")
	e.Must(err, "containerd 2.4")
	e.Must(e.Daemon.Run(), "start containerd 2.4 where 1.7 was")
	version, err := e.Client.Version(e.Ctx)
	e.Must(err, "ask for the version")
	if !strings.HasPrefix(strings.TrimPrefix(version.Version, "v"), "2.4") {
		t.Fatalf("it is containerd %s", version.Version)
	}
	for _, c := range []*harness.Container{alone, one, two, created, ended} {
		reload(e, c)
	}

	x, err := alone.Task.LoadProcess(e.Ctx, running.Process.ID(), nil)
	e.Must(err, "load the exec")
	exit, err := x.Wait(e.Ctx)
	e.Must(err, "wait for the exec")
	alone.RunExec("touch", "/go")
	expect(e, exit, "the exec", 15)
	_, err = x.Delete(e.Ctx)
	e.Must(err, "delete the exec")

	finish(e, alone, log("alone"), 11)
	three := serving(e, log("three"), 16, group) // joins a shim that 1.7 has started
	finish(e, one, log("one"), 12)
	finish(e, two, log("two"), 13)
	finish(e, three, log("three"), 16)

	if exit, err = created.Task.Wait(e.Ctx); err != nil {
		t.Fatal(err)
	}
	created.Start()
	expect(e, exit, "what was created", 0)
	created.Delete()
	if data, _ := os.ReadFile(log("created")); string(data) != "first words\n" {
		t.Errorf("its log has %q", data)
	}
	if st := ended.Delete(); st.ExitCode() != 14 {
		t.Errorf("delete of what had ended answers %d, want 14", st.ExitCode())
	}
}

// build makes a shim that says a version.
func build(t *testing.T, version string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), version)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", out, "./cmd/containerd-shim-rsys-v1")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// install puts a shim where containerd looks, as a package manager does: beside it, and then by rename over what was there.
func install(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = io.Copy(out, in); err == nil {
		err = out.Close()
	}
	if err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// shimOf is the process of a container's shim, and whether its program is the file that is installed now.
func shimOf(e *harness.Env, c *harness.Container, installed string) (pid int, current bool) {
	e.Helper()
	p, ok := harness.ReadProc(int(c.Task.Pid()))
	if !ok {
		e.Fatalf("no process of %s", c.ID())
	}
	exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", p.Parent))
	e.Must(err, "the program of the shim of %s", c.ID())
	file, err := os.Stat(installed)
	e.Must(err, "the installed shim")
	return p.Parent, os.SameFile(exe, file)
}

func TestTheShimsBinaryIsReplacedUnderRunningContainers(t *testing.T) {
	bin, dir := t.TempDir(), t.TempDir()
	installed := filepath.Join(bin, "containerd-shim-rsys-v1")
	install(t, build(t, "one"), installed)
	next := build(t, "two")
	e := start(t, "", bin)
	group := oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "the-group"})
	log := func(name string) string { return filepath.Join(dir, name) }
	alone, member, doomed := serving(e, log("alone"), 21), serving(e, log("member"), 22, group), serving(e, log("doomed"), 23)

	install(t, next, installed)
	out, err := exec.Command(installed, "-v").CombinedOutput()
	e.Must(err, "the new binary's version")
	if !strings.Contains(string(out), "two") {
		t.Fatalf("the new binary says %q", out)
	}
	old, current := shimOf(e, member, installed)
	if current {
		t.Error("a shim that ran before has the new program")
	}
	joined := serving(e, log("joined"), 24, group)
	if pid, _ := shimOf(e, joined, installed); pid != old {
		t.Errorf("a new member of the group has shim %d, the old one %d", pid, old)
	}
	fresh := serving(e, log("fresh"), 25)
	if _, current := shimOf(e, fresh, installed); !current {
		t.Error("a new container's shim has the old program")
	}

	// The delete verb is the new binary's.
	pid, _ := shimOf(e, doomed, installed)
	init := int(doomed.Task.Pid())
	e.Must(syscall.Kill(pid, syscall.SIGKILL), "kill an old shim")
	e.Eventually("its container's process is gone", func() bool {
		p, ok := harness.ReadProc(init)
		return !ok || p.State == "Z"
	})
	doomed.DeleteOfDeadShim()

	// So does a containerd that starts again find the shims of both.
	e.Daemon.Kill()
	e.Must(e.Daemon.Run(), "start containerd again")
	for _, c := range []*harness.Container{alone, member, joined, fresh} {
		reload(e, c)
	}
	finish(e, alone, log("alone"), 21)
	finish(e, member, log("member"), 22)
	finish(e, joined, log("joined"), 24)
	finish(e, fresh, log("fresh"), 25)
}
