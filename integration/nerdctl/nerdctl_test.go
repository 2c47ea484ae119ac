package nerdctl

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestOutputInputAndExitCodeComeThrough(t *testing.T) {
	e := start(t)
	r := e.run(nil, "sh", "-c", "echo hello; echo error >&2; exit 7")
	e.is(r, 7, "hello\n")
	if !strings.Contains(r.Stderr, "error\n") {
		t.Error(r)
	}
	e.is(nerdctl(strings.NewReader("line\n"), args(e.name(), []string{"--rm", "-i"}, "sh", "-c", "cat; echo end")...), 0, "line\nend\n")
	if r := e.run(nil, "nonesuch"); r.Code == 0 || !strings.Contains(r.Stderr, "executable file not found in $PATH") {
		t.Error(r)
	}
}

func TestATerminalIsOneAndHasTheClientsSize(t *testing.T) {
	e := start(t)
	script := "for i in $(seq 100); do [ \"$(stty size)\" = '33 99' ] && break; sleep 0.1; done; stty size; tty; read line; echo got $line; exit 5"
	check := func(want int, shown string, code int) {
		t.Helper()
		for _, want := range []string{"33 99\r\n", "/dev/pts/", "got typed\r\n"} {
			if !strings.Contains(shown, want) {
				t.Errorf("not shown: %q in %q", want, shown)
			}
		}
		if code != want {
			t.Errorf("exit code %d, not %d", code, want)
		}
	}
	shown, code := e.Typed(command(args(e.name(), []string{"--rm", "-it"}, "sh", "-c", script)...), "typed\r")
	check(5, shown, code)
	name := e.detached(nil, harness.Sleep()...)
	shown, code = e.Typed(command("exec", "-it", name, "sh", "-c", script), "typed\r")
	check(1, shown, code) // as any exec that fails
}

func TestADetachedContainerIsLookedAfter(t *testing.T) {
	e := start(t)
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	e.Must(os.WriteFile(in, []byte("copied\n"), 0o644), "write")
	name := e.detached([]string{"--memory", "64m", "--env", "A=b"}, harness.Sh("trap 'echo three; exit 4' TERM", "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null",
		"echo one", "echo two >&2", "while :; do sleep 1000 & wait $!; done")...)
	e.Eventually("the first lines are logged", func() bool { return strings.Contains(nerdctl(nil, "logs", name).Stderr, "two\n") })
	t.Run("exec", func(t *testing.T) {
		// nerdctl itself exits with 1, whatever the runtime, and says with what the process did.
		r := nerdctl(nil, "exec", name, "sh", "-c", "echo $A; exit 4")
		e.is(r, 1, "b\n")
		if !strings.Contains(r.Stderr, "exit code 4") {
			t.Error(r)
		}
		e.is(nerdctl(nil, "exec", "--user", "app", "--workdir", "/home", name, "sh", "-c", "id -un; pwd"), 0, "app\n/home\n")
		e.is(nerdctl(strings.NewReader("a\nb\n"), "exec", "-i", name, "wc", "-l"), 0, "2\n")
	})
	t.Run("cp", func(t *testing.T) {
		e.must("cp", in, name+":/tmp/there")
		e.is(nerdctl(nil, "exec", name, "cat", "/tmp/there"), 0, "copied\n")
		e.must("cp", name+":/tmp/there", out)
		if data, err := os.ReadFile(out); err != nil || string(data) != "copied\n" {
			t.Errorf("%q, %v", data, err)
		}
	})
	t.Run("stats", func(t *testing.T) {
		var st struct{ MemUsage, PIDs string }
		e.Must(json.Unmarshal([]byte(e.must("stats", "--no-stream", "--format", "{{json .}}", name)), &st), "stats")
		var used float64
		_, _ = fmt.Sscanf(st.MemUsage, "%fMiB / 64MiB", &used)
		if used < 20 || used > 64 || st.PIDs != "2" {
			t.Errorf("%+v", st)
		}
	})
	t.Run("ps, top and inspect", func(t *testing.T) {
		if ps := e.must("ps", "--format", "{{.Names}} {{.Status}}"); !strings.Contains(ps, name+" Up") {
			t.Error(ps)
		}
		pid := e.must("inspect", "--format", "{{.State.Pid}}", name)
		if top := e.must("top", name); !strings.Contains(top, pid) {
			t.Errorf("no %s in %s", pid, top)
		}
	})
	t.Run("pause, unpause, update", func(t *testing.T) {
		e.must("pause", name)
		if st := e.must("inspect", "--format", "{{.State.Status}}", name); st != "paused" {
			t.Error(st)
		}
		e.must("unpause", name)
		e.must("update", "--memory", "96m", "--memory-swap", "96m", name)
		limit := "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"
		e.is(nerdctl(nil, "exec", name, "sh", "-c", limit), 0, fmt.Sprintln(96<<20))
	})
	t.Run("stop, logs, wait, start, kill", func(t *testing.T) {
		e.must("stop", name)
		e.Eventually("the last line is logged", func() bool { return strings.Contains(nerdctl(nil, "logs", name).Stdout, "three\n") })
		r := nerdctl(nil, "logs", name)
		if r.Stdout != "one\nthree\n" || !strings.Contains(r.Stderr, "two\n") {
			t.Error(r)
		}
		if code := e.must("inspect", "--format", "{{.State.ExitCode}}", name); code != "4" {
			t.Errorf("exit code %s", code)
		}
		e.must("start", name)
		e.must("kill", "--signal", "KILL", name)
		if code := e.must("wait", name); code != "137" {
			t.Errorf("exit code %s", code)
		}
		e.must("rm", name)
	})
}

func TestLogsAreFollowedToTheEnd(t *testing.T) {
	e := start(t)
	name := e.detached(nil, harness.Sh("for i in 1 2 3 4 5; do echo $i; sleep 0.3; done")...)
	e.is(nerdctl(nil, "logs", "--follow", name), 0, "1\n2\n3\n4\n5\n")
}

// containerd itself starts it again, within ten seconds.
func TestAContainerThatIsToRunAlwaysIsStartedAgain(t *testing.T) {
	e := start(t)
	name := e.detached([]string{"--restart", "always"}, harness.Sleep()...)
	pid := e.must("inspect", "--format", "{{.State.Pid}}", name)
	n, err := strconv.Atoi(pid)
	e.Must(err, "pid")
	e.Must(unix.Kill(n, unix.SIGKILL), "kill") // with nerdctl kill it would stay stopped
	e.Eventually("there is another init", func() bool {
		now := nerdctl(nil, "inspect", "--format", "{{.State.Pid}} {{.State.Status}}", name).Stdout
		return strings.HasSuffix(now, " running\n") && !strings.HasPrefix(now, pid+" ")
	})
	e.must("stop", name)
}

func TestWhatRunIsToldIsSeenInside(t *testing.T) {
	e := start(t)
	dir := t.TempDir()
	e.Must(os.WriteFile(filepath.Join(dir, "file"), []byte("of the host\n"), 0o644), "write")
	for _, c := range []struct {
		name   string
		flags  []string
		script string
		stdout string
	}{
		{"nothing", nil, "grep CapEff /proc/self/status; grep '^Seccomp:' /proc/self/status; ls /sys/class/net", "CapEff:\t00000000a80425fb\nSeccomp:\t2\neth0\nlo\n"},
		{"user, groups, directory, environment, host name", []string{"--user", "app", "--group-add", "daemon", "--workdir", "/home", "--env", "A=b c", "--hostname", "box"},
			"id -un; id -G; pwd; echo $A; hostname; cat /etc/hostname", "app\n1000 1 50\n/home\nb c\nbox\nbox\n"},
		{"read-only, tmpfs, binds, volumes", []string{"--read-only", "--tmpfs", "/small:size=64k", "-v", dir + ":/fixed:ro", "-v", dir + ":/there", "-v", "/anonymous"},
			"touch /x 2>/dev/null || echo refused; touch /small/x && cat /fixed/file; echo x 2>/dev/null >/fixed/y || echo refused; echo x >/there/y && cat /fixed/y; touch /anonymous/x && echo written",
			"refused\nof the host\nrefused\nx\nwritten\n"},
		{"init", []string{"--init", "--init-binary", harness.Cache() + "/docker/bin/docker-init"}, "echo $PPID; tr '\\0' ' ' </proc/1/cmdline | cut -c1-16", "1\n/sbin/docker-ini\n"},
		{"no network, capabilities, no seccomp, limits", []string{"--network", "none", "--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--security-opt", "seccomp=unconfined", "--ulimit", "nofile=77:88", "--sysctl", "net.ipv4.ip_forward=1", "--shm-size", "1m"},
			"ls /sys/class/net; grep CapEff /proc/self/status; grep '^Seccomp:' /proc/self/status; ulimit -n; cat /proc/sys/net/ipv4/ip_forward; df -k /dev/shm | awk 'NR==2{print $2}'", "lo\nCapEff:\t0000000000001000\nSeccomp:\t0\n77\n1\n1024\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			part := *e.Env
			part.TB = t
			e := env{&part}
			e.is(e.run(c.flags, "sh", "-c", c.script), 0, c.stdout)
		})
	}
	for _, ns := range []string{"net", "pid", "ipc", "uts"} {
		if _, err := os.Stat("/dev/mqueue"); err != nil && ns == "ipc" {
			t.Log("not tried: --ipc host, for which nerdctl binds the host's /dev/mqueue, which is not there")
			continue
		}
		host, err := os.Readlink("/proc/self/ns/" + ns)
		e.Must(err, "namespace")
		flag := map[string]string{"net": "network"}[ns]
		if flag == "" {
			flag = ns
		}
		e.is(e.run([]string{"--" + flag, "host"}, "readlink", "/proc/self/ns/"+ns), 0, host+"\n")
	}
}

func TestABridgedContainerIsReachedByItsPublishedPort(t *testing.T) {
	e := start(t)
	name := e.detached([]string{"-p", "18082:80"}, "sh", "-c", "mkdir /www; echo page >/www/index.html; exec httpd -f -p 80 -h /www")
	ip := e.must("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
	e.is(e.run(nil, "sh", "-c", "printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 5 "+ip+" 80 | tail -1"), 0, "page\n")
	var addresses []string
	list, err := net.InterfaceAddrs()
	e.Must(err, "addresses")
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			addresses = append(addresses, n.IP.String()+":18082")
		}
	}
	for _, address := range append(addresses, ip+":80") {
		conn, err := net.DialTimeout("tcp", address, harness.Patience)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		fmt.Fprint(conn, "GET /index.html HTTP/1.0\r\n\r\n")
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if !strings.HasSuffix(string(answer), "page\n") {
			t.Errorf("%s answers %q", address, answer)
		}
	}
}
