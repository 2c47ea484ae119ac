package docker

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestExec(t *testing.T) {
	e := start(t)
	name := e.detached([]string{"--env", "A=b"}, sleep...)
	for _, c := range []struct {
		name    string
		flags   []string
		command []string
		code    int
		stdout  string
	}{
		{"exit code and output", nil, harness.Sh("echo $A; exit 4"), 4, "b\n"},
		{"user, directory, environment", []string{"--user", "app", "--workdir", "/home", "--env", "C=d"}, harness.Sh("id -un; pwd; echo $A $C"), 0, "app\n/home\nb d\n"},
		{"default capabilities", nil, []string{"grep", "CapEff", "/proc/self/status"}, 0, "CapEff:\t00000000a80425fb\n"},
		{"killed", nil, harness.Sh("kill -KILL $$"), 137, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := e.in(t)
			e.is(engine.docker(append(append(append([]string{"exec"}, c.flags...), name), c.command...)...), c.code, c.stdout)
		})
	}
	t.Run("privileged", func(t *testing.T) {
		needPrivileged(t)
		e := e.in(t)
		// The container's seccomp profile stays, by which there is no mount, with runc as well.
		e.is(engine.docker("exec", "--privileged", name, "grep", "CapEff", "/proc/self/status"), 0, boundingSet(t))
	})
	t.Run("of what is not there", func(t *testing.T) {
		// Docker 20.10 has 126 for both, and the error on the standard output.
		for program, says := range map[string]string{"nonesuch": "executable file not found in $PATH", "/etc/passwd": "permission denied"} {
			r := engine.docker("exec", name, program)
			if r.Code != 126 && (r.Code != 127 || program != "nonesuch") || !strings.Contains(r.Stdout+r.Stderr, says) {
				t.Errorf("want 126 or 127, and %q; %v", says, r)
			}
		}
	})
	t.Run("input", func(t *testing.T) {
		e := e.in(t)
		e.is(engine.run(strings.NewReader("a\nb\n"), "exec", "-i", name, "wc", "-l"), 0, "2\n")
	})
	t.Run("detached", func(t *testing.T) {
		e := e.in(t)
		e.must("exec", "--detach", name, "sh", "-c", "echo x >/tmp/made")
		e.Eventually("the detached exec has written", func() bool { return engine.docker("exec", name, "cat", "/tmp/made").Stdout == "x\n" })
	})
}

func TestLogs(t *testing.T) {
	e := start(t)
	name := e.detached(nil, harness.Sh("echo one; echo two >&2; trap 'echo three; exit 0' TERM; while :; do sleep 1000 & wait $!; done")...)
	e.Eventually("the first lines are logged", func() bool { return strings.Contains(engine.docker("logs", name).Stderr, "two\n") })
	e.must("stop", name)
	r := engine.docker("logs", name)
	if r.Code != 0 || r.Stdout != "one\nthree\n" || r.Stderr != "two\n" {
		t.Error(r)
	}
	if got := e.must("logs", "--tail", "1", name); got != "three" {
		t.Errorf("tail: %q", got)
	}
}

func TestLogsAreFollowedToTheEnd(t *testing.T) {
	e := start(t)
	name := e.detached(nil, harness.Sh("for i in 1 2 3 4 5; do echo $i; sleep 0.3; done; echo end >&2")...)
	if r := engine.docker("logs", "--follow", name); r.Code != 0 || r.Stdout != "1\n2\n3\n4\n5\n" || r.Stderr != "end\n" {
		t.Error(r)
	}
}

func TestAClientAttaches(t *testing.T) {
	e := start(t)
	script := harness.Sh("read line; echo got $line; echo error >&2; exit 5")
	name := e.name()
	e.must(args("create", name, []string{"-i"}, script...)...)
	r := engine.run(strings.NewReader("typed\n"), "start", "--attach", "--interactive", name)
	e.is(r, 5, "got typed\n")
	if r.Stderr != "error\n" {
		t.Error(r)
	}
	// It is told to go on when somebody is there to see it.
	name = e.detached(nil, harness.Sh("until test -e /tmp/go; do sleep 0.1; done; i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo $i; sleep 0.1; done; exit 6")...)
	go func() {
		time.Sleep(time.Second)
		engine.docker("exec", name, "touch", "/tmp/go")
	}()
	if r := engine.docker("attach", "--no-stdin", name); r.Code != 6 || !strings.HasSuffix(r.Stdout, "18\n19\n20\n") {
		t.Error(r)
	}
}

func TestARuntimeHasANameInTheDaemonsConfiguration(t *testing.T) {
	if engine.named == "" {
		t.Skip("Docker 20.10 knows no runtimeType")
	}
	e := start(t)
	name := e.name()
	e.must("run", "--detach", "--runtime", engine.named, "--name", name, harness.ImageName, "sleep", "1000")
	if got := e.inspect(name, "{{.HostConfig.Runtime}}"); got != engine.named {
		t.Errorf("its runtime is %s", got)
	}
	p, _ := harness.ReadProc(e.state(name).Pid)
	want := "containerd-shim-rsys-v1"
	if peer() {
		want = "containerd-shim-runc-v2"
	}
	if exe := harness.ExeOf(p.Parent); exe != want {
		t.Errorf("its shim is %s", exe)
	}
}

func TestCpToAndFromRunningAndStopped(t *testing.T) {
	e := start(t)
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	e.Must(os.WriteFile(in, []byte("copied\n"), 0o640), "write")
	name := e.detached(nil, sleep...)
	back := func(from string) {
		t.Helper()
		e.must("cp", name+":"+from, out)
		if data, err := os.ReadFile(out); err != nil || string(data) != "copied\n" {
			t.Errorf("%s: %q, %v", from, data, err)
		}
		os.Remove(out)
	}
	e.must("cp", in, name+":/tmp/running")
	e.is(engine.docker("exec", name, "cat", "/tmp/running"), 0, "copied\n")
	e.must("exec", name, "cp", "/tmp/running", "/tmp/inside")
	e.ready(name)
	back("/tmp/inside")
	e.must("stop", name)
	e.must("cp", in, name+":/tmp/stopped")
	back("/tmp/stopped")
	if diff := e.must("diff", name); !strings.Contains(diff, "A /tmp/running") {
		t.Errorf("docker diff: %s", diff)
	}
	e.must("start", name)
	e.is(engine.docker("exec", name, "cat", "/tmp/stopped"), 0, "copied\n")
}

func TestStatsAreOfTheContainersCgroup(t *testing.T) {
	e := start(t)
	name := e.detached([]string{"--memory", "64m"}, harness.Sh("dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; sleep 1000 & sleep 1000 & while :; do :; done")...)
	var st struct{ Name, MemUsage, CPUPerc, PIDs, NetIO string }
	e.Eventually("stats show 20 MB, three processes and a busy processor", func() bool {
		if err := json.Unmarshal([]byte(e.must("stats", "--no-stream", "--format", "{{json .}}", name)), &st); err != nil {
			t.Fatal(err)
		}
		var used, cpu float64
		_, _ = fmt.Sscanf(st.MemUsage, "%fMiB / 64MiB", &used)
		_, _ = fmt.Sscanf(st.CPUPerc, "%f%%", &cpu)
		return st.Name == name && used > 20 && used < 64 && cpu > 5 && st.PIDs == "3"
	})
	t.Logf("%+v", st)
}

func TestUpdateChangesTheLimitsOfARunningContainer(t *testing.T) {
	e := start(t)
	name := e.detached([]string{"--memory", "64m", "--pids-limit", "100"}, sleep...)
	e.must("update", "--memory", "128m", "--memory-swap", "128m", "--pids-limit", "50", "--cpus", "0.5", "--cpu-shares", "512", "--cpuset-cpus", "0", name)
	inside := func(v1, v2 string) string {
		return e.must("exec", name, "sh", "-c", fmt.Sprintf("cat /sys/fs/cgroup/%s 2>/dev/null || cat /sys/fs/cgroup/%s", v1, v2))
	}
	for _, c := range []struct{ v1, v2, want1, want2 string }{
		{"memory/memory.limit_in_bytes", "memory.max", "134217728", "134217728"},
		{"pids/pids.max", "pids.max", "50", "50"},
		{"cpu/cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000"},
		{"cpuset/cpuset.cpus", "cpuset.cpus", "0", "0"},
	} {
		if got := inside(c.v1, c.v2); got != c.want1 && got != c.want2 {
			t.Errorf("%s: %q", c.v1, got)
		}
	}
	if st := e.state(name); !st.Running {
		t.Errorf("%+v", st)
	}
}

func TestPauseAndUnpause(t *testing.T) {
	e := start(t)
	name := e.detached(nil, harness.Sh("while :; do echo tick; sleep 0.05; done")...)
	ticks := func() int { return strings.Count(engine.docker("logs", name).Stdout, "tick") }
	e.must("pause", name)
	if st := e.state(name); !st.Paused {
		t.Errorf("%+v", st)
	}
	if r := engine.docker("exec", name, "true"); r.Code == 0 {
		t.Errorf("an exec in a paused container: %v", r)
	}
	time.Sleep(200 * time.Millisecond)
	before := ticks()
	time.Sleep(500 * time.Millisecond)
	if after := ticks(); after != before {
		t.Errorf("%d ticks while paused", after-before)
	}
	e.must("unpause", name)
	e.Eventually("it ticks again", func() bool { return ticks() > before })
	e.must("pause", name)
	e.must("rm", "--force", name)
}

func TestOutOfMemoryIsSeen(t *testing.T) {
	e := start(t)
	name := e.name()
	r := engine.docker(args("run", name, []string{"--memory", "16m", "--memory-swap", "16m"}, "sh", "-c", "x=x; while :; do x=$x$x; done")...)
	if r.Code != 137 {
		t.Error(r)
	}
	if st := e.state(name); !st.OOMKilled || st.ExitCode != 137 {
		t.Errorf("%+v", st)
	}
}

func TestRestartPolicies(t *testing.T) {
	t.Run("on-failure, at most twice", func(t *testing.T) {
		e := start(t)
		name := e.detached([]string{"--restart", "on-failure:2"}, "sh", "-c", "echo run; exit 9")
		e.Eventually("it has been given up", func() bool {
			st := e.state(name)
			return st.Status == "exited" && e.inspect(name, "{{.RestartCount}}") == "2"
		})
		if st := e.state(name); st.ExitCode != 9 {
			t.Errorf("%+v", st)
		}
		if got := e.must("logs", name); got != "run\nrun\nrun" {
			t.Errorf("logs %q", got)
		}
	})
	t.Run("always, after its init was killed", func(t *testing.T) {
		e := start(t)
		name := e.detached([]string{"--restart", "always"}, sleep...)
		pid := e.state(name).Pid
		e.Must(unix.Kill(pid, unix.SIGKILL), "kill")
		e.Eventually("there is another init", func() bool { st := e.state(name); return st.Running && st.Pid != pid && st.Pid != 0 })
		e.ready(name)
		e.must("stop", name)
		if st := e.state(name); st.Status != "exited" {
			t.Errorf("after a stop: %+v", st)
		}
	})
	t.Run("always, after its shim was killed", func(t *testing.T) {
		e := start(t)
		name := e.detached([]string{"--restart", "always"}, sleep...)
		pid := e.state(name).Pid
		p, _ := harness.ReadProc(pid)
		e.Must(unix.Kill(p.Parent, unix.SIGKILL), "kill the shim")
		e.Eventually("there is another init", func() bool { st := e.state(name); return st.Running && st.Pid != pid && st.Pid != 0 })
	})
}

func TestAHealthCheckFollowsItsProbe(t *testing.T) {
	e := start(t)
	name := e.detached([]string{"--health-cmd", "test -e /tmp/healthy", "--health-interval", "300ms", "--health-retries", "2", "--health-timeout", "10s"}, sleep...)
	health := func() string { return e.state(name).Health.Status }
	e.Eventually("it is unhealthy", func() bool { return health() == "unhealthy" })
	e.must("exec", name, "touch", "/tmp/healthy")
	e.Eventually("it is healthy", func() bool { return health() == "healthy" })
	// The probe of a container that ends must not outlive it, nor be left in the daemon's list.
	e.must("stop", name)
	t.Run("a probe that takes too long is killed", func(t *testing.T) {
		e := e.in(t)
		name := e.detached([]string{"--health-cmd", "sleep 1000", "--health-interval", "200ms", "--health-retries", "1", "--health-timeout", "500ms"}, sleep...)
		e.Eventually("it is unhealthy", func() bool { return e.state(name).Health.Status == "unhealthy" })
	})
}

func TestLiveRestore(t *testing.T) {
	for _, c := range []struct {
		name string
		end  syscall.Signal
	}{{"dockerd stopped", unix.SIGTERM}, {"dockerd killed", unix.SIGKILL}} {
		t.Run(c.name, func(t *testing.T) {
			e := start(t)
			runs := e.detached(nil, harness.Sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")...)
			// Ends while there is no dockerd.
			ends := e.detached(nil, harness.Sh("while ! test -e /tmp/end; do sleep 0.1; done; exit 6")...)
			pid := e.state(runs).Pid
			root := fmt.Sprintf("/proc/%d/root", e.state(ends).Pid)
			engine.end(c.end)
			e.Must(os.WriteFile(filepath.Join(root, "tmp/end"), nil, 0o644), "tell it to end")
			time.Sleep(500 * time.Millisecond)
			e.Must(engine.start(), "start dockerd again")
			if st := e.state(runs); !st.Running || st.Pid != pid {
				t.Errorf("the one that runs: %+v", st)
			}
			if st := e.state(ends); st.Running || st.ExitCode != 6 {
				t.Errorf("the one that ended: %+v", st)
			}
			before := e.must("logs", "--tail", "1", runs)
			e.Eventually("its output comes", func() bool { return e.must("logs", "--tail", "1", runs) != before })
			e.is(engine.docker("exec", runs, "echo", "exec"), 0, "exec\n")
			e.must("stop", "--time", "1", runs)
			if got := e.must("wait", runs); got != "137" {
				t.Errorf("exit code %s", got)
			}
		})
	}
}
