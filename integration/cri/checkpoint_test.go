package cri

import (
	"archive/tar"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

// What the kubelet's checkpoint API has: an archive of a container's memory, changed files and log, which goes on. It is read here by checkpointctl itself.
func TestAContainerIsCheckpointedForForensics(t *testing.T) {
	if daemon.Old() {
		t.Skip("containerd 1.7's CRI has no CheckpointContainer")
	}
	path, err := daemon.LookPath("criu")
	if err != nil {
		t.Skip("no criu: hack/setup criu gets it")
	}
	if out, err := exec.Command(path, "check").CombinedOutput(); err != nil {
		t.Skipf("criu check: %v: %s", err, out)
	}
	p := start(t).Run()
	c := p.Container(harness.Sh("echo secret >/changed; i=0", "while :; do i=$((i+1)); echo $i; sleep 0.1; done")...)
	p.Eventually("it counts", func() bool { return strings.Contains(c.Output("stdout"), "5\n") })
	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	_, err = c.CRI.CheckpointContainer(c.Ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: c.ID, Location: archive})
	c.Must(err, "checkpoint")
	n := strings.Count(c.Output("stdout"), "\n")
	p.Eventually("it goes on", func() bool { return strings.Count(c.Output("stdout"), "\n") > n+3 })
	if st := c.Status(); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("it is %v", st.State)
	}

	dir := t.TempDir()
	unpack(t, archive, dir)
	for _, file := range []string{"checkpoint/inventory.img", "checkpoint/pages-1.img", "checkpoint/descriptors.json", "rootfs-diff.tar", "config.dump", "spec.dump", "status.dump", "container.log"} {
		if st, err := os.Stat(filepath.Join(dir, file)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
	ctl := checkpointctl(t)
	run := func(args ...string) string {
		out, err := exec.CommandContext(context.Background(), ctl, append(args, archive)...).CombinedOutput()
		if err != nil {
			t.Errorf("checkpointctl %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	if out := run("show"); !strings.Contains(out, harness.Runtime()) || !strings.Contains(out, c.Config.Metadata.Name) {
		t.Errorf("checkpointctl show: %s", out)
	}
	var inspected []struct {
		ID, Runtime string
		Tree        struct {
			Command string
			Cmdline string
		} `json:"process_tree"`
		Files []struct {
			Open []struct{ FD, Path string } `json:"open_files"`
		} `json:"file_descriptors"`
	}
	out := run("inspect", "--format", "json", "--ps-tree", "--ps-tree-cmd", "--files", "--mounts", "--metadata")
	err = json.Unmarshal([]byte(out), &inspected)
	if err != nil || len(inspected) != 1 || inspected[0].Runtime != harness.Runtime() || !strings.HasPrefix(c.ID, inspected[0].ID) ||
		inspected[0].Tree.Command != "sh" || len(inspected[0].Files) == 0 || len(inspected[0].Files[0].Open) < 3 {
		t.Errorf("checkpointctl inspect: %v in %s", err, out)
	}
	if out := run("memparse", "--pid", "1", "--search", "secret"); !strings.Contains(out, "secret") {
		t.Errorf("checkpointctl memparse: %s", out)
	}
	c.Stop(0)
}

func checkpointctl(t *testing.T) string {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(harness.Cache(), "checkpointctl-*", "bin", "checkpointctl"))
	if len(found) == 0 {
		t.Skip("the archive was not read by checkpointctl: hack/setup checkpointctl gets it")
	}
	return found[len(found)-1]
}

func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if h.FileInfo().IsDir() {
			err = os.MkdirAll(path, 0o700)
		} else {
			data, readErr := io.ReadAll(r)
			if err = readErr; err == nil {
				err = os.WriteFile(path, data, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
