package integration

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rsys-io/rsys/integration/harness"
)

// containerd's own command: a container's memory and its writable layer, into an image and out of it.
func TestCtrCheckpointsAndRestores(t *testing.T) {
	needCriu(t)
	e := start(t)
	for _, kind := range []string{"directory", "file"} {
		e.MayLeave(kind + " " + e.Temp() + "/ctrd-checkpoint") // containerd unpacks the checkpoint, and leaves that there
	}
	e.MayLeave("fifo /run/containerd/fifo") // ctr has no use for them when it has detached, and leaves them
	e.MayLeave("directory /run/containerd/fifo/")
	ctr := func(args ...string) harness.Result {
		t.Helper()
		cmd := exec.Command(filepath.Join(e.Containerd, "ctr"), append([]string{"--address", e.Address(), "--namespace", e.Namespace}, args...)...)
		r := harness.RunClient(cmd)
		if r.Code != 0 {
			t.Fatal(r)
		}
		return r
	}
	const image = "rsys.io/checkpoint:ctr"
	log := filepath.Join(t.TempDir(), "log")
	ctr("run", "--detach", "--runtime", harness.Runtime(), "--log-uri", "file://"+log, harness.ImageName, "before",
		"sh", "-c", "echo written >/file; mkdir /tmp; i=0; while :; do i=$((i+1)); echo $i >/tmp/i; sleep 0.1; done")
	number := func(task string) string {
		return strings.TrimSpace(ctr("task", "exec", "--exec-id", "x", task, "cat", "/tmp/i").Stdout)
	}
	e.Eventually("it counts", func() bool { return len(number("before")) > 1 })
	ctr("container", "checkpoint", "--rw", "--task", "before", image)
	if state := ctr("task", "list").Stdout; !strings.Contains(state, "RUNNING") {
		t.Errorf("after the checkpoint: %s", state)
	}
	first := number("before")
	e.Eventually("it goes on", func() bool { return number("before") != first })
	ctr("task", "kill", "--signal", "KILL", "before")
	e.Eventually("it is stopped", func() bool { return strings.Contains(ctr("task", "list").Stdout, "STOPPED") })
	ctr("task", "delete", "before")
	ctr("container", "delete", "before")

	ctr("container", "restore", "--rw", "--live", "after", image)
	out := ctr("task", "exec", "--exec-id", "y", "after", "cat", "/file", "/tmp/i").Stdout
	if !strings.HasPrefix(out, "written\n") {
		t.Errorf("the writable layer: %q", out)
	}
	now := number("after")
	e.Eventually("it goes on", func() bool { return number("after") != now })
	ctr("task", "kill", "--signal", "KILL", "after")
	e.Eventually("it is stopped", func() bool { return strings.Contains(ctr("task", "list").Stdout, "STOPPED") })
	ctr("task", "delete", "after")
	ctr("container", "delete", "after")
	ctr("image", "delete", image)
}
