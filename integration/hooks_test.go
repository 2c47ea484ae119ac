//lint:file-ignore SA1019 Hooks.Prestart is deprecated, and has to work all the same.

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// script writes a program for the host. "$OUT" in it is a directory for what it wants to tell.
func script(t *testing.T, dir, name string, lines ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	text := "#!/bin/sh\nOUT=" + dir + "\n" + strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func withHooks(f func(*specs.Hooks)) oci.SpecOpts {
	return change(func(s *oci.Spec) {
		if s.Hooks == nil {
			s.Hooks = new(specs.Hooks)
		}
		f(s.Hooks)
	})
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

func TestHooksRunInTheSpecificationsOrderEachInItsNamespaces(t *testing.T) {
	e, dir := start(t), t.TempDir()
	e.Must(os.Chmod(dir, 0o777), "chmod")
	// Each tells its name, its state, its namespaces, and where it is.
	const tell = `cat > $OUT/$1.state; { readlink /proc/self/ns/mnt; readlink /proc/self/ns/net; } > $OUT/$1.ns; pwd > $OUT/$1.cwd; echo "$HOOK" > $OUT/$1.env; echo $1 >> $OUT/order`
	host := script(t, dir, "hook", tell)
	hook := func(name string) []specs.Hook {
		return []specs.Hook{{Path: host, Args: []string{"hook", name}, Env: []string{"HOOK=" + name, "PATH=/bin:/usr/bin"}}}
	}
	c := e.Container([]string{"sh", "-c", "echo program >> /out/order; sleep 3600"},
		withMount(dir, "/out", "bind", "rbind", "rw"),
		oci.WithAnnotations(map[string]string{"color": "blue"}),
		withHooks(func(h *specs.Hooks) {
			h.Prestart, h.CreateRuntime, h.CreateContainer = hook("prestart"), hook("createRuntime"), hook("createContainer") //nolint:staticcheck
			h.Poststart, h.Poststop = hook("poststart"), hook("poststop")
			h.StartContainer = []specs.Hook{{Path: "/bin/sh", Env: []string{"PATH=/bin", "HOOK=startContainer"}, Args: []string{"sh", "-c",
				"OUT=/out; set -- startContainer; " + tell}}}
		}))
	c.Create()
	pid := int(c.Task.Pid())
	if got := read(t, dir+"/order"); got != "prestart\ncreateRuntime\ncreateContainer\n" {
		t.Errorf("created: %q", got)
	}
	inside := ""
	for _, ns := range []string{"mnt", "net"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		e.Must(err, "readlink")
		inside += link + "\n"
	}
	outside := ""
	for _, ns := range []string{"mnt", "net"} {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		e.Must(err, "readlink")
		outside += link + "\n"
	}
	c.Start()
	e.Eventually("the program runs", func() bool { return strings.Contains(read(t, dir+"/order"), "program") })
	c.Kill(syscall.SIGKILL)
	c.Wait()
	if strings.Contains(read(t, dir+"/order"), "poststop") {
		t.Error("poststop ran before the deletion")
	}
	c.Delete()
	order := strings.Fields(read(t, dir+"/order"))
	// The program and the poststart hook run at the same time.
	if len(order) == 7 && order[4] == "poststart" {
		order[4], order[5] = order[5], order[4]
	}
	if got := strings.Join(order, " "); got != "prestart createRuntime createContainer startContainer program poststart poststop" {
		t.Errorf("order: %s", got)
	}
	bundle := ""
	for _, test := range []struct {
		name, ns string
		status   specs.ContainerState
		pid      int
	}{
		{"prestart", outside, "creating", pid},
		{"createRuntime", outside, "creating", pid},
		{"createContainer", inside, "creating", 1},
		{"startContainer", inside, "created", 1},
		{"poststart", outside, "running", pid},
		{"poststop", outside, "stopped", 0},
	} {
		if got := read(t, dir+"/"+test.name+".ns"); got != test.ns {
			t.Errorf("%s ran in\n%swant\n%s", test.name, got, test.ns)
		}
		if got := read(t, dir+"/"+test.name+".env"); got != test.name+"\n" {
			t.Errorf("%s has HOOK=%q", test.name, got)
		}
		var s specs.State
		if err := json.Unmarshal([]byte(read(t, dir+"/"+test.name+".state")), &s); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if s.Status != test.status || s.Pid != test.pid || s.ID != c.ID() || s.Annotations["color"] != "blue" || s.Version == "" || !filepath.IsAbs(s.Bundle) {
			t.Errorf("%s: state %+v", test.name, s)
		}
		bundle = s.Bundle
	}
	if peer() {
		return
	}
	for name, want := range map[string]string{"createRuntime": bundle, "createContainer": bundle + "/rootfs", "startContainer": "/"} {
		if got := read(t, dir+"/"+name+".cwd"); got != want+"\n" {
			t.Errorf("%s: working directory %q, want %q", name, got, want)
		}
	}
}

func TestACreateRuntimeHookCanGiveTheContainerANetwork(t *testing.T) {
	e, dir := start(t), t.TempDir()
	// What nerdctl's hook does: it finds the network namespace by the pid of the state.
	path := script(t, dir, "hook", `pid=$(sed 's/.*"pid":\([0-9]*\).*/\1/')`,
		`nsenter -t $pid -n ip link add hooked type veth peer name hooked2 2>$OUT/err || nsenter -t $pid -n /bin/sh -c 'ip link' 2>>$OUT/err`)
	c := e.Container(harness.Sh("ls /sys/class/net"), withHooks(func(h *specs.Hooks) { h.CreateRuntime = []specs.Hook{{Path: path}} }))
	if _, err := os.Stat("/usr/bin/nsenter"); err != nil {
		t.Skip("no nsenter")
	}
	if _, err := os.Stat("/sbin/ip"); err != nil {
		t.Skip("no ip")
	}
	if got := c.Finish(); !strings.Contains(got.Stdout, "hooked") {
		t.Errorf("got %+v, hook: %s", got, read(t, dir+"/err"))
	}
}

func TestACreateContainerHookSeesTheRootFileSystemAndTheHost(t *testing.T) {
	e, dir := start(t), t.TempDir()
	path := script(t, dir, "hook", "echo made > etc/by-hook", "mkdir -p mnt/x && busybox mount -t tmpfs hook mnt/x && echo m > mnt/x/m", "test -e $OUT/hook")
	c := e.Container(harness.Sh("cat /etc/by-hook /mnt/x/m; ls /proc/self/fd | wc -l"),
		withHooks(func(h *specs.Hooks) {
			h.CreateContainer = []specs.Hook{{Path: path, Env: []string{"PATH=/bin:/usr/bin:/sbin"}}}
		}))
	if got := c.Finish(); got.Stdout != "made\nm\n4\n" {
		t.Errorf("got %+v", got)
	}
}

func TestHooksOfAUserNamespaceAreItsRoot(t *testing.T) {
	e, dir := start(t), t.TempDir()
	e.Must(os.Chmod(dir, 0o777), "chmod")
	e.Must(os.Chmod(filepath.Dir(dir), 0o755), "chmod")
	path := script(t, dir, "hook", "id -u > etc/by-hook", "cat /proc/self/uid_map >> etc/by-hook")
	c := userContainer(e, harness.Sh("tr -s ' ' < /etc/by-hook; stat -c %u /etc/by-hook; cat /tmp/start"),
		withMount("tmpfs", "/tmp", "tmpfs", "mode=1777"),
		withHooks(func(h *specs.Hooks) {
			h.CreateRuntime = []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "id -u > " + dir + "/runtime"}, Env: []string{"PATH=/bin:/usr/bin"}}}
			h.CreateContainer = []specs.Hook{{Path: path, Env: []string{"PATH=/bin:/usr/bin"}}}
			h.StartContainer = []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "id -u > /tmp/start"}, Env: []string{"PATH=/bin"}}}
		}))
	if got := c.Finish(); got.Stdout != "0\n 0 100000 5000\n 5000 300000 60000\n0\n0\n" {
		t.Errorf("got %+v", got)
	}
	if got := read(t, dir+"/runtime"); got != "0\n" {
		t.Errorf("createRuntime: user %q", got)
	}
}

func TestAStartContainerHookHasTheRightsOfTheProcess(t *testing.T) {
	e := start(t)
	hook := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "{ id -u; grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status; ls /proc/self/fd | wc -l; echo $A; } > /tmp/hook"}}
	c := e.Container(harness.Sh("cat /tmp/hook; ls -ln /tmp/hook | awk '{print $3}'"), oci.WithUIDGID(1000, 1000), oci.WithEnv([]string{"A=of the process"}),
		withMount("tmpfs", "/tmp", "tmpfs", "mode=1777"),
		withHooks(func(h *specs.Hooks) { h.StartContainer = []specs.Hook{hook} }))
	want := "1000\nNoNewPrivs:\t1\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nSeccomp:\t2\n4\nof the process\n1000\n"
	got := c.Finish()
	sorted := strings.Replace(got.Stdout, "CapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\n", "NoNewPrivs:\t1\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n", 1)
	if sorted != want {
		t.Errorf("got %+v, want %q", got, want)
	}
}

func TestAHookThatFailsEndsTheContainer(t *testing.T) {
	if peer() {
		t.Skip("runc runs poststart hooks at create, and waits for what a killed hook has started")
	}
	for _, test := range []struct {
		kind   string
		set    func(*specs.Hooks, []specs.Hook)
		start  bool // fails at start
		inside bool
	}{
		{"prestart", func(h *specs.Hooks, l []specs.Hook) { h.Prestart = l }, false, false}, //nolint:staticcheck
		{"createRuntime", func(h *specs.Hooks, l []specs.Hook) { h.CreateRuntime = l }, false, false},
		{"createContainer", func(h *specs.Hooks, l []specs.Hook) { h.CreateContainer = l }, false, false},
		{"startContainer", func(h *specs.Hooks, l []specs.Hook) { h.StartContainer = l }, true, true},
		{"poststart", func(h *specs.Hooks, l []specs.Hook) { h.Poststart = l }, true, false},
	} {
		one := 1
		for _, how := range []struct {
			name string
			hook specs.Hook
			want string
		}{
			{"status", specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo first >&2; echo the reason >&2; echo out; exit 3"}}, "exited with status 3: the reason"},
			{"signal", specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "kill -9 $$"}}, "killed by SIGKILL"},
			{"timeout", specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo slow; sleep 3600"}, Timeout: &one}, "killed after its timeout of 1s: slow"},
			{"missing", specs.Hook{Path: "/no/such/program"}, "no such file or directory"},
		} {
			t.Run(test.kind+" "+how.name, func(t *testing.T) {
				e, dir := start(t), t.TempDir()
				stop := script(t, dir, "stop", "echo x >> $OUT/stopped")
				c := e.Container(harness.Sh("echo ran; sleep 3600"), withHooks(func(h *specs.Hooks) {
					ok := specs.Hook{Path: "/bin/true"}
					test.set(h, []specs.Hook{ok, how.hook})
					h.Poststop = []specs.Hook{{Path: stop}}
				}))
				began := time.Now()
				err := c.TryCreate()
				if test.start {
					e.Must(err, "create")
					err = c.Task.Start(e.Ctx)
				}
				if err == nil {
					t.Fatal("no error")
				}
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("took %v", took)
				}
				t.Log(err)
				if msg := err.Error(); !strings.Contains(msg, "hooks."+test.kind+"[1] ("+how.hook.Path+"): hook: ") || !strings.Contains(msg, how.want) {
					t.Errorf("error: %v", err)
				}
				if c.Task != nil {
					if got := c.Wait(); got.Code == 0 || got.Stdout != "" && test.kind != "poststart" {
						t.Errorf("the program ran: %+v", got)
					}
					c.Delete()
				}
				if got := read(t, dir+"/stopped"); got != "x\n" {
					t.Errorf("poststop: %q", got)
				}
			})
		}
	}
}

func TestAPoststopHookThatFailsIsOnlyLogged(t *testing.T) {
	e, dir := start(t), t.TempDir()
	stop := script(t, dir, "stop", "echo x >> $OUT/stopped")
	c := e.Container([]string{"true"}, withHooks(func(h *specs.Hooks) {
		h.Poststop = []specs.Hook{{Path: "/bin/false"}, {Path: "/no/such"}, {Path: stop}}
	}))
	c.Finish()
	if got := read(t, dir+"/stopped"); got != "x\n" {
		t.Errorf("poststop: %q", got)
	}
}

func TestPoststopHooksRunWhenTheShimWasKilled(t *testing.T) {
	e, dir := startToKill(t), t.TempDir()
	stop := script(t, dir, "stop", "cat > $OUT/state; echo x >> $OUT/stopped")
	e.Container(harness.Sleep(), withHooks(func(h *specs.Hooks) { h.Poststop = []specs.Hook{{Path: stop}} })).Run()
	pids := shims(e)
	e.Must(syscall.Kill(pids[0], syscall.SIGKILL), "kill the shim")
	e.Eventually("the hook has run", func() bool { _, err := os.Stat(dir + "/stopped"); return err == nil })
	if got := read(t, dir+"/state"); !strings.Contains(got, `"status":"stopped"`) {
		t.Errorf("state: %s", got)
	}
}

// What a hook's env has is its environment, whatever it is: of a variable that is there twice the last, and nothing is added, as in runc.
func TestAHooksEnvironmentIsWhatItsEnvSays(t *testing.T) {
	e, dir := start(t), t.TempDir()
	e.Must(os.Chmod(dir, 0o777), "chmod")
	hook := func(kind, out string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/cp", Args: []string{"cp", "/proc/self/environ", out + "/" + kind}, Env: []string{"WORD", "A=1", "HOME=", "A=2"}}}
	}
	c := e.Container([]string{"true"}, withMount(dir, "/out", "bind", "rbind", "rw"), withHooks(func(h *specs.Hooks) {
		h.Prestart, h.CreateRuntime, h.CreateContainer = hook("prestart", dir), hook("createRuntime", dir), hook("createContainer", dir)
		h.StartContainer, h.Poststart, h.Poststop = hook("startContainer", "/out"), hook("poststart", dir), hook("poststop", dir)
	}))
	c.Finish()
	for _, kind := range []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"} {
		if got := read(t, dir+"/"+kind); got != "WORD\x00HOME=\x00A=2\x00" {
			t.Errorf("%s: %q", kind, got)
		}
	}
}

// A hook's end is the hook's own, and not that of a process which it leaves and which has its output; runc waits for that one.
func TestAHookThatLeavesAProcessBehindHasEnded(t *testing.T) {
	if peer() {
		t.Skip("runc waits for the end of the hook's output")
	}
	for kind, set := range map[string]func(*specs.Hooks, []specs.Hook){
		"prestart":        func(h *specs.Hooks, l []specs.Hook) { h.Prestart = l },
		"createRuntime":   func(h *specs.Hooks, l []specs.Hook) { h.CreateRuntime = l },
		"createContainer": func(h *specs.Hooks, l []specs.Hook) { h.CreateContainer = l },
		"startContainer":  func(h *specs.Hooks, l []specs.Hook) { h.StartContainer = l },
		"poststart":       func(h *specs.Hooks, l []specs.Hook) { h.Poststart = l },
	} {
		t.Run(kind, func(t *testing.T) {
			e, dir := start(t), t.TempDir()
			e.Must(os.Chmod(dir, 0o777), "chmod")
			// It lives until the container has ended.
			e.Must(os.WriteFile(dir+"/stay", nil, 0o644), "write")
			script := "{ while test -e %s/stay; do sleep 0.1; done; } & exit 0"
			where := dir
			if kind == "startContainer" {
				where = "/out"
			}
			c := e.Container([]string{"sh", "-c", "echo ran; while test ! -e /out/go; do sleep 0.1; done"}, withMount(dir, "/out", "bind", "rbind", "rw"), withHooks(func(h *specs.Hooks) {
				set(h, []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", fmt.Sprintf(script, where)}, Env: []string{"PATH=/bin:/usr/bin"}}})
			}))
			c.Run()
			e.Must(os.WriteFile(dir+"/go", nil, 0o644), "write")
			if got := c.Wait(); got.Stdout != "ran\n" || got.Code != 0 {
				t.Errorf("got %+v", got)
			}
			e.Must(os.Remove(dir+"/stay"), "remove")
			c.Delete()
		})
	}
}

// The state may be larger than a pipe; who does not read it is not held up, and does not fail.
func TestALargeStateIsGivenWholeToAHookOrNotAtAll(t *testing.T) {
	e, dir := start(t), t.TempDir()
	e.Must(os.Chmod(dir, 0o777), "chmod")
	large := strings.Repeat("x", 300<<10)
	hooks := func(kind, out string) []specs.Hook {
		return []specs.Hook{
			{Path: "/bin/true"},
			{Path: "/bin/sh", Args: []string{"sh", "-c", "exec <&-; exit 0"}},
			{Path: "/bin/cp", Args: []string{"cp", "/proc/self/fd/0", out + "/" + kind}, Env: []string{"PATH=/bin"}},
		}
	}
	c := e.Container([]string{"true"}, withMount(dir, "/out", "bind", "rbind", "rw"), oci.WithAnnotations(map[string]string{"large": large}), withHooks(func(h *specs.Hooks) {
		h.Prestart, h.CreateRuntime, h.CreateContainer = hooks("prestart", dir), hooks("createRuntime", dir), hooks("createContainer", dir)
		h.StartContainer, h.Poststart, h.Poststop = hooks("startContainer", "/out"), hooks("poststart", dir), hooks("poststop", dir)
	}))
	c.Finish()
	for _, kind := range []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"} {
		var s specs.State
		if err := json.Unmarshal([]byte(read(t, dir+"/"+kind)), &s); err != nil || s.Annotations["large"] != large {
			t.Errorf("%s: %v, %d bytes of annotations", kind, err, len(s.Annotations["large"]))
		}
	}
}
