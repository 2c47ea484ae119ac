package docker

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rsys-io/rsys/integration/harness"
)

// env is what a test works with.
type env struct{ *harness.Env }

func start(t *testing.T) env {
	t.Helper()
	if engine.cmd == nil {
		if err := engine.start(); err != nil {
			t.Fatal(err)
		}
	}
	logged := len(engine.logged(1 << 30))
	e := env{harness.New(t, daemon)}
	t.Cleanup(func() {
		if t.Failed() {
			log := engine.logged(1 << 30)[logged:]
			t.Logf("what dockerd logged:\n%s", log[len(log)-min(len(log), 4000):])
		}
	})
	return e
}

// in is the same for a part of the test.
func (e env) in(t *testing.T) env {
	part := *e.Env
	part.TB = t
	return env{&part}
}

var serial atomic.Int64

// name is a container's name that is not taken; the container is removed at the end of the test.
func (e env) name() string {
	name := fmt.Sprintf("d%d-%d", os.Getpid()%1000, serial.Add(1))
	e.Cleanup(func() {
		if r := engine.docker("rm", "--force", "--volumes", name); r.Code != 0 && !strings.Contains(r.Stderr, "No such container") {
			e.Error(r)
		}
	})
	return name
}

// args are those of run or create: our runtime, what follows, and the image before the command.
func args(verb, name string, flags []string, command ...string) []string {
	all := append([]string{verb, "--runtime", engine.runtime, "--name", name}, flags...)
	return append(append(all, harness.ImageName), command...)
}

// run runs a container to its end and removes it.
func (e env) run(flags []string, command ...string) harness.Result {
	e.Helper()
	return engine.docker(args("run", e.name(), append([]string{"--rm"}, flags...), command...)...)
}

// detached runs a container in the background.
func (e env) detached(flags []string, command ...string) (name string) {
	e.Helper()
	name = e.name()
	e.must(args("run", name, append([]string{"--detach"}, flags...), command...)...)
	return name
}

// sleep are the arguments of a process that stays, and ends on SIGTERM once it is ready for it.
var sleep = harness.Sh("trap 'exit 0' TERM", "touch /dev/shm/ready", "while :; do sleep 3600 & wait $!; done")

func (e env) ready(name string) {
	e.Helper()
	path := fmt.Sprintf("/proc/%d/root/dev/shm/ready", e.state(name).Pid)
	e.Eventually(name+" is ready", func() bool { _, err := os.Stat(path); return err == nil })
}

// must is a command that succeeds; its output without the last line's end.
func (e env) must(args ...string) string {
	e.Helper()
	r := engine.docker(args...)
	if r.Code != 0 {
		e.Fatal(r)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// inspect is a field of a container, as a Go template says it.
func (e env) inspect(name, template string) string {
	e.Helper()
	return e.must("inspect", "--format", template, name)
}

// state is a container's state.
func (e env) state(name string) (st struct {
	Status                            string
	Running, Paused, Restarting, Dead bool
	OOMKilled                         bool
	Pid, ExitCode                     int
	Error                             string
	Health                            *struct{ Status string }
}) {
	e.Helper()
	if err := json.Unmarshal([]byte(e.inspect(name, "{{json .State}}")), &st); err != nil {
		e.Fatal(err)
	}
	return st
}

// is checks what a container wrote and how it ended.
func (e env) is(r harness.Result, code int, stdout string) {
	e.Helper()
	if r.Code != code || r.Stdout != stdout {
		e.Errorf("want exit code %d and stdout %q; %v", code, stdout, r)
	}
}
