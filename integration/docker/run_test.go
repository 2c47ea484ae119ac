package docker

import (
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

func TestOutputErrorOutputInputAndExitCodeComeThrough(t *testing.T) {
	e := start(t)
	r := e.run(nil, "sh", "-c", "echo hello; echo error >&2; exit 7")
	e.is(r, 7, "hello\n")
	if r.Stderr != "error\n" {
		t.Error(r)
	}
	name := e.name()
	e.is(engine.run(strings.NewReader("line\n"), args("run", name, []string{"--rm", "-i"}, "sh", "-c", "cat; echo end")...), 0, "line\nend\n")
	big := e.run(nil, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x | fold -w 999")
	if n := strings.Count(big.Stdout, "x"); n != 3000000 {
		t.Errorf("%d bytes of 3000000", n)
	}
}

func TestAProgramThatIsNotThereHasDockersOwnExitCode(t *testing.T) {
	e := start(t)
	for _, c := range []struct {
		name    string
		command string
		code    int
		says    string
	}{
		{"not found", "nonesuch", 127, "executable file not found in $PATH"},
		{"no program", "/etc/passwd", 126, "permission denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := e.run(nil, c.command)
			if r.Code != c.code || !strings.Contains(r.Stderr, c.says) {
				t.Errorf("want %d and %q; %v", c.code, c.says, r)
			}
		})
	}
}

func TestADetachedContainerIsStoppedKilledAndWaitedFor(t *testing.T) {
	e := start(t)
	stopped := e.detached(nil, sleep...)
	killed := e.detached(nil, "sleep", "1000")
	if ps := e.must("ps", "--format", "{{.Names}} {{.State}}"); !strings.Contains(ps, stopped+" running") {
		t.Errorf("docker ps: %s", ps)
	}
	pid := e.state(stopped).Pid
	if exe := harness.ExeOf(pid); exe != "busybox" {
		t.Errorf("process %d is %q", pid, exe)
	}
	if top := e.must("top", stopped, "-o", "pid,args"); !strings.Contains(top, fmt.Sprint(pid)) {
		t.Errorf("docker top does not show process %d: %s", pid, top)
	}
	e.ready(stopped)
	e.must("stop", stopped)
	if got := e.must("wait", stopped); got != "0" {
		t.Errorf("stop: exit code %s", got)
	}
	e.must("kill", "--signal", "KILL", killed)
	if got := e.must("wait", killed); got != "137" {
		t.Errorf("kill: exit code %s", got)
	}
	// An init that does not handle SIGTERM does not see it.
	stubborn := e.detached(nil, "sleep", "1000")
	e.must("stop", "--time", "1", stubborn)
	if got := e.must("wait", stubborn); got != "137" {
		t.Errorf("stop of what ignores it: exit code %s", got)
	}
	e.must("start", stopped)
	if st := e.state(stopped); !st.Running || st.Pid == pid {
		t.Errorf("after a second start: %+v", st)
	}
	e.ready(stopped)
	e.must("restart", stopped)
	if st := e.state(stopped); !st.Running {
		t.Errorf("after restart: %+v", st)
	}
	e.must("rm", "--force", stopped)
}

func TestATerminalIsOneAndHasTheClientsSize(t *testing.T) {
	e := start(t)
	script := "stty size; test -t 0 && test -t 1 && test -t 2 && tty; read line; echo got $line; exit 5\n"
	check := func(t *testing.T, shown string, code int) {
		t.Helper()
		for _, want := range []string{"33 99\r\n", "/dev/pts/0\r\n", "got typed\r\n"} {
			if !strings.Contains(shown, want) {
				t.Errorf("not shown: %q in %q", want, shown)
			}
		}
		if code != 5 {
			t.Errorf("exit code %d", code)
		}
	}
	// The size comes in a request of its own, after the start.
	script = "for i in $(seq 100); do [ \"$(stty size)\" = '33 99' ] && break; sleep 0.1; done; " + script
	t.Run("run", func(t *testing.T) {
		shown, code := e.Typed(engine.command(args("run", e.name(), []string{"--rm", "-it"}, "sh", "-c", script)...), "typed\r")
		check(t, shown, code)
	})
	t.Run("exec", func(t *testing.T) {
		script := strings.Replace(script, "/dev/pts/0", "/dev/pts/[01]", 1)
		name := e.detached(nil, sleep...)
		shown, code := e.Typed(engine.command("exec", "-it", name, "sh", "-c", script), "typed\r")
		check(t, shown, code)
	})
}

func TestInitIsDockersAndReaps(t *testing.T) {
	e := start(t)
	e.is(e.run([]string{"--init"}, "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline; echo; echo $PPID; exit 3"), 3,
		"/sbin/docker-init -- sh -c tr '\\0' ' ' </proc/1/cmdline; echo; echo $PPID; exit 3 \n1\n")
}

func TestWhatRunIsToldIsSeenInside(t *testing.T) {
	e := start(t)
	dir := t.TempDir()
	e.Must(os.WriteFile(filepath.Join(dir, "file"), []byte("of the host\n"), 0o644), "write")
	profile := filepath.Join(dir, "profile.json")
	e.Must(os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 74}]}`), 0o644), "write")
	for _, c := range []struct {
		name   string
		flags  []string
		script string
		code   int
		stdout string
	}{
		{"nothing", nil,
			"id -u; grep CapEff /proc/self/status; grep '^Seccomp:' /proc/self/status; unshare -U true 2>/dev/null || echo refused; " +
				"wc -c </proc/keys; echo 1 2>/dev/null >/proc/sys/vm/swappiness || echo refused; ls -A /sys/firmware", 0,
			"0\nCapEff:\t00000000a80425fb\nSeccomp:\t2\nrefused\n0\nrefused\n"},
		{"user and group by number", []string{"--user", "1000:50"}, "id -u; id -g; echo x >/etc/x 2>/dev/null || echo refused", 0, "1000\n50\nrefused\n"},
		{"user by name, more groups, directory, environment, host name", []string{"--user", "app", "--group-add", "50", "--group-add", "daemon", "--workdir", "/made/here", "--env", "A=b c", "--hostname", "box", "--domainname", "example.org"},
			"id -un; echo $(id -G | tr ' ' '\\n' | uniq); echo $HOME; pwd; echo $A; hostname; cat /proc/sys/kernel/domainname /etc/hostname", 0,
			"app\n1000 1 50\n/home/app\n/made/here\nb c\nbox\nexample.org\nbox\n"},
		{"read-only, tmpfs with and without options", []string{"--read-only", "--tmpfs", "/plain", "--tmpfs", "/small:size=64k,mode=700,noexec"},
			"touch /x 2>/dev/null || echo refused; touch /plain/x && echo written; stat -c %a /small; dd if=/dev/zero of=/small/x bs=1k count=100 2>/dev/null; stat -c %s /small/x; grep -c ' /small tmpfs .*noexec' /proc/mounts", 0,
			"refused\nwritten\n700\n65536\n1\n"},
		{"binds and volumes", []string{"-v", dir + ":/there", "-v", dir + ":/fixed:ro", "--mount", "type=bind,source=" + filepath.Join(dir, "file") + ",target=/etc/deep/file", "-v", "/home/app"},
			"cat /there/file /fixed/file /etc/deep/file; echo changed >/there/new; echo changed 2>/dev/null >/fixed/new || echo refused; stat -c %u /home/app; grep -c ' /home/app ' /proc/mounts", 0,
			"of the host\nof the host\nof the host\nrefused\n1000\n1\n"},
		{"capabilities dropped and added, no new privileges", []string{"--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--security-opt", "no-new-privileges"},
			"grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status; touch /x; chown app /x 2>/dev/null || echo refused", 0,
			"CapEff:\t0000000000001000\nCapBnd:\t0000000000001000\nNoNewPrivs:\t1\nrefused\n"},
		{"no network, no seccomp profile", []string{"--network", "none", "--security-opt", "seccomp=unconfined"},
			"grep ' lo:\\|eth' /proc/net/dev | cut -d: -f1; grep '^Seccomp:' /proc/self/status; unshare -U true && echo made", 0, "    lo\nSeccomp:\t0\nmade\n"},
		{"a seccomp profile", []string{"--security-opt", "seccomp=" + profile}, "mkdir /x 2>&1; echo $?; touch /y && echo written", 0,
			"mkdir: can't create directory '/x': Bad message\n1\nwritten\n"},
		{"ulimits, sysctls, shm, oom score, devices, processors",
			[]string{"--ulimit", "nofile=77:88", "--ulimit", "core=0", "--sysctl", "net.ipv4.ip_forward=1", "--sysctl", "kernel.shmmax=12345", "--shm-size", "1m",
				"--oom-score-adj", "300", "--device", "/dev/null:/dev/other:rw", "--cpuset-cpus", "1"},
			"ulimit -Sn; ulimit -Hn; ulimit -c; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax; df -k /dev/shm | awk 'NR==2{print $2}'; cat /proc/self/oom_score_adj; " +
				"echo x >/dev/other && stat -c %t,%T /dev/other; grep Cpus_allowed_list /proc/self/status", 0,
			"77\n88\n0\n1\n12345\n1024\n300\n1,3\nCpus_allowed_list:\t1\n"},
		{"pids-limit", []string{"--pids-limit", "5"}, "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done 2>/dev/null; echo not reached", 2, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := e.in(t)
			e.is(e.run(c.flags, "sh", "-c", c.script), c.code, c.stdout)
			if data, _ := os.ReadFile(filepath.Join(dir, "new")); c.name == "binds and volumes" && string(data) != "changed\n" {
				t.Errorf("what was written to the bind mount: %q", data)
			}
		})
	}
}

// needPrivileged skips a test where root lacks a capability, and Docker is 20.10: its privileged containers get
// all that the kernel has, which is an error then, with runc as well. Later ones get what the daemon has.
func needPrivileged(t *testing.T) {
	t.Helper()
	if c, ok := missingCapability(t); ok && engine.named == "" {
		t.Skipf("this machine gives us no capability %d", c)
	}
}

func missingCapability(t *testing.T) (int, bool) {
	t.Helper()
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(last)))
	for c := range n + 1 {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err != nil || has != 1 {
			return c, true
		}
	}
	return 0, false
}

func TestAPrivilegedContainerIsRefusedWhereRootLacksACapability(t *testing.T) {
	if _, ok := missingCapability(t); !ok || engine.named != "" {
		t.Skip("root has all capabilities here, or Docker asks for no others than it has")
	}
	e := start(t)
	if r := e.run([]string{"--privileged"}, "true"); r.Code != 125 && r.Code != 126 || !strings.Contains(r.Stderr, "operation not permitted") {
		t.Error(r)
	} else {
		t.Log(r.Stderr)
	}
}

// boundingSet is the line of /proc/PID/status of one who has all capabilities that we may have.
func boundingSet(t *testing.T) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "CapBnd:") {
			return strings.Replace(line, "CapBnd", "CapEff", 1)
		}
	}
	t.Fatal("no CapBnd")
	return ""
}

func TestAPrivilegedContainerHasTheHostsDevicesAndAllCapabilities(t *testing.T) {
	needPrivileged(t)
	e := start(t)
	want := boundingSet(t)
	e.is(e.run([]string{"--privileged"}, "sh", "-c", "grep CapEff /proc/self/status; grep '^Seccomp:' /proc/self/status; mount -t tmpfs x /mnt && echo mounted; test -c /dev/kmsg && echo device; "+
		"grep -c '^sysfs /sys sysfs rw' /proc/mounts"), 0, want+"Seccomp:\t0\nmounted\ndevice\n1\n")
}

func TestTheHostsNamespacesAreShared(t *testing.T) {
	e := start(t)
	for _, ns := range []string{"pid", "net", "ipc", "uts"} {
		t.Run(ns, func(t *testing.T) {
			e := e.in(t)
			host, err := os.Readlink("/proc/self/ns/" + ns)
			e.Must(err, "namespace")
			flag := map[string]string{"net": "network"}[ns]
			if flag == "" {
				flag = ns
			}
			e.is(e.run([]string{"--" + flag, "host"}, "readlink", "/proc/self/ns/"+ns), 0, host+"\n")
		})
	}
	user, err := os.Readlink("/proc/self/ns/user")
	e.Must(err, "namespace")
	e.is(e.run([]string{"--userns", "host"}, "readlink", "/proc/self/ns/user"), 0, user+"\n")
	one := e.detached([]string{"--ipc", "shareable"}, "sleep", "1000") // that of the IPC namespace is not the default
	for _, ns := range []string{"pid", "net", "ipc"} {
		flag := map[string]string{"net": "network"}[ns]
		if flag == "" {
			flag = ns
		}
		host, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", e.state(one).Pid, ns))
		e.Must(err, "namespace")
		e.is(e.run([]string{"--" + flag, "container:" + one}, "readlink", "/proc/self/ns/"+ns), 0, host+"\n")
	}
}

func TestABridgedContainerIsReachedByItsPublishedPort(t *testing.T) {
	e := start(t)
	name := e.detached([]string{"-p", "127.0.0.1:18080:80", "-p", "18081:80"}, "sh", "-c", "mkdir /www; echo page >/www/index.html; exec httpd -f -p 80 -h /www")
	ip := e.inspect(name, "{{.NetworkSettings.IPAddress}}")
	e.is(e.run(nil, "sh", "-c", "printf 'GET /index.html HTTP/1.0\r\n\r\n' | nc -w 5 "+ip+" 80 | tail -1"), 0, "page\n")
	for _, address := range []string{ip + ":80", "127.0.0.1:18080", "127.0.0.1:18081"} {
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
