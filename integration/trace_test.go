package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rsys-io/rsys/integration/harness"
)

// shimCommand runs a verb of the shim's for people.
func shimCommand(e *harness.Env, args ...string) (string, error) {
	e.Helper()
	for _, dir := range e.Path {
		if path := filepath.Join(dir, "containerd-shim-rsys-v1"); exists(path) {
			out, err := exec.Command(path, args...).CombinedOutput()
			return string(out), err
		}
	}
	e.Fatal("there is no shim")
	return "", nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// startTraced begins a test of shims that log everything.
func startTraced(t *testing.T) *harness.Env {
	t.Helper()
	e := startWith(t, toml("LogLevel = 'debug'"))
	t.Cleanup(func() { os.RemoveAll("/run/rsys") }) // the last trace is meant to stay
	return e
}

func TestTheSetUpOfAContainerIsTraced(t *testing.T) {
	e := startTraced(t)
	c := e.Container(harness.Sleep()).Run()
	bundle := e.Bundle(c.ID())
	table, err := shimCommand(e, "trace", bundle)
	e.Must(err, "trace: %s", table)
	// The kernel's own results, and the shim's steps between them.
	for _, want := range []string{
		`(?m)^create:$`, `(?m)^start:$`, `(?m)^  mounts\[0\] \(/proc\)$`,
		`(?m)^ +\d+ shim +\d+\.\d  0 +clone3\(`, `(?m)^ +\d+ child +\d+\.\d  \d+ +fsopen\("proc", FSOPEN_CLOEXEC\)$`,
		`(?m)^ +\d+ child +\d+\.\d  0 +pivot_root\("\.", "\."\)$`, `(?m)^ +\d+ child +\d+\.\d  ok +execve\("/bin/sh", .*\[\d+ variables\]\)$`,
		`(?m)^\d+ steps; shim \d+\.\d us; child \d+\.\d us$`,
	} {
		if !regexp.MustCompile(want).MatchString(table) {
			t.Errorf("%s is not in the table", want)
		}
	}
	if strings.Contains(table, "PATH=") {
		t.Error("the environment is in the table")
	}
	if t.Failed() {
		t.Logf("%s", table)
	}
	last, err := shimCommand(e, "trace")
	e.Must(err, "trace: %s", last)
	if last != table {
		t.Errorf("the last container's is another:\n%s", last)
	}
	checkChrome(e, c, bundle)
	checkLog(e, c)
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
	// It outlives the container.
	if again, err := shimCommand(e, "trace"); err != nil || again != table {
		t.Errorf("after the deletion: %v\n%s", err, again)
	}
}

// checkChrome checks what chrome://tracing and Perfetto ask of a trace: the Trace Event Format.
func checkChrome(e *harness.Env, c *harness.Container, bundle string) {
	e.Helper()
	out, err := shimCommand(e, "trace", bundle, "--chrome")
	e.Must(err, "trace --chrome: %s", out)
	var doc struct {
		Unit   string `json:"displayTimeUnit"`
		Events []struct {
			Name, Cat, Ph string
			Ts, Dur       *float64
			Pid, Tid      *int
			Args          map[string]any
		} `json:"traceEvents"`
	}
	e.Must(json.Unmarshal([]byte(out), &doc), "parse it")
	if doc.Unit != "ns" && doc.Unit != "ms" {
		e.Errorf("displayTimeUnit is %q", doc.Unit)
	}
	type span struct{ from, to float64 }
	open := map[int][]span{} // by thread: events of one must nest
	names, threads := map[string]int{}, map[int]bool{}
	for _, ev := range doc.Events {
		if ev.Name == "" || ev.Pid == nil || ev.Tid == nil || ev.Ts == nil {
			e.Fatalf("an event without a name, a process or a time: %+v", ev)
		}
		names[ev.Name]++
		switch ev.Ph {
		case "M":
			if ev.Name == "thread_name" {
				threads[*ev.Tid] = true
			}
			if _, ok := ev.Args["name"].(string); !ok {
				e.Errorf("metadata without a name: %+v", ev)
			}
		case "X":
			if ev.Dur == nil || *ev.Dur < 0 || *ev.Ts <= 0 || !threads[*ev.Tid] {
				e.Errorf("a complete event without a duration or a thread: %+v", ev)
				continue
			}
			const rounding = 0.5 // microseconds: a double has no more of the time since 1970
			s, stack := span{*ev.Ts, *ev.Ts + *ev.Dur}, open[*ev.Tid]
			for len(stack) > 0 && stack[len(stack)-1].to <= s.from+rounding {
				stack = stack[:len(stack)-1]
			}
			if len(stack) > 0 && s.to > stack[len(stack)-1].to+rounding {
				e.Errorf("%s does not nest: %v in %v", ev.Name, s, stack[len(stack)-1])
			}
			open[*ev.Tid] = append(stack, s)
		default:
			e.Errorf("an event of type %q", ev.Ph)
		}
	}
	if names["pivot_root"] != 1 || names["fsopen"] == 0 || names["mounts[0] (/proc)"] != 1 || names["process_name"] != 1 || !threads[int(c.Task.Pid())] {
		e.Errorf("the events are %v, of threads %v", names, threads)
	}
}

// checkLog checks that each call of a set-up is a line of containerd's log, and none is lost.
func checkLog(e *harness.Env, c *harness.Container) {
	e.Helper()
	line := regexp.MustCompile(`level=debug msg="remote call" call="?(.*?)"? nr=(-?\d+) number=(\d+) result=(\S+) task=(\d+) us=([\d.]+)`)
	steps, err := shimCommand(e, "trace", e.Bundle(c.ID()), "--json")
	e.Must(err, "trace --json")
	var doc struct{ Steps []struct{ Who, Call string } }
	e.Must(json.Unmarshal([]byte(steps), &doc), "parse it")
	last := 0
	var lines [][]string
	e.Eventually("the log has all calls", func() bool {
		lines = line.FindAllStringSubmatch(e.Daemon.Log(1<<30), -1)
		return len(lines) > 0 && strings.Contains(lines[len(lines)-1][1], "execve(")
	})
	mine := 0
	for _, m := range lines {
		n, _ := strconv.Atoi(m[3])
		if n == 1 {
			last, mine = 0, 0 // another shim's before
		}
		if n != last+1 && !daemon.Debug { // then other shims' lines are between
			e.Errorf("call %d comes after %d", n, last)
		}
		last = n
		if m[5] == strconv.Itoa(int(c.Task.Pid())) {
			mine++
		}
	}
	children := 0
	for _, s := range doc.Steps {
		if s.Who == "child" {
			children++
		}
	}
	// The child's own calls are more than its steps: those that give it descriptors.
	if mine < children || children < 100 {
		e.Errorf("the log has %d calls of the container's process, the trace %d", mine, children)
	}
}

func TestAFailedSetUpIsTraced(t *testing.T) {
	e := startTraced(t)
	c := e.Container([]string{"true"}, withMount("/no/such/source", "/data", "bind", "rbind"))
	if err := c.TryCreate(); err == nil {
		t.Fatal("there is no such source")
	}
	table, err := shimCommand(e, "trace")
	e.Must(err, "trace: %s", table)
	if !regexp.MustCompile(`(?m)^  mounts\[\d+\] \(/data\)\n +\d+ child +[\d.]+  ENOENT +open_tree\(.*<- failed$`).MatchString(table) {
		t.Errorf("the failure is not in the table:\n%s", table)
	}
}

func TestNothingIsTracedAtOtherLevels(t *testing.T) {
	if daemon.Debug {
		t.Skip("containerd's own level is debug")
	}
	e := startWith(t, nil)
	c := e.Container(harness.Sleep()).Run()
	if out, err := shimCommand(e, "trace", e.Bundle(c.ID())); err == nil || !strings.Contains(out, "log level debug") {
		t.Errorf("%v: %s", err, out)
	}
	if exists("/run/rsys") {
		t.Error("there is /run/rsys")
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
}
