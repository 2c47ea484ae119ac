package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// needCriu skips a test where criu itself says that it can't work here.
func needCriu(t *testing.T) {
	t.Helper()
	path, err := daemon.LookPath("criu")
	if err != nil {
		t.Skip("no criu: hack/setup criu gets it")
	}
	if out, err := exec.Command(path, "check").CombinedOutput(); err != nil {
		t.Skipf("criu check: %v: %s", err, out)
	}
}

// checkpoint has containerd's client checkpoint a container into an image, by options of runc's. It is removed at the end.
func checkpoint(c *harness.Container, opts *options.CheckpointOptions) (client.Image, error) {
	img, err := c.Task.Checkpoint(c.Ctx, func(i *client.CheckpointTaskInfo) error {
		if opts != nil {
			i.Options = opts
		}
		return nil
	})
	if err == nil {
		c.Cleanup(func() {
			if err := c.Client.ImageService().Delete(c.Background(), img.Name()); err != nil {
				c.Error(err)
			}
		})
	}
	return img, err
}

// layer is a part of a checkpoint's image.
func layer(c *harness.Container, img client.Image, mediaType string) []byte {
	c.Helper()
	data, err := content.ReadBlob(c.Ctx, c.Client.ContentStore(), img.Target())
	c.Must(err, "read the checkpoint's index")
	var index ocispec.Index
	c.Must(json.Unmarshal(data, &index), "the checkpoint's index")
	for _, d := range index.Manifests {
		if d.MediaType == mediaType {
			data, err := content.ReadBlob(c.Ctx, c.Client.ContentStore(), d)
			c.Must(err, "read %s", mediaType)
			return data
		}
	}
	c.Fatalf("the checkpoint has no %s: %s", mediaType, data)
	return nil
}

// criuFiles are the images that criu has written, with runc's file.
func criuFiles(c *harness.Container, img client.Image) map[string][]byte {
	c.Helper()
	files := make(map[string][]byte)
	for r := tar.NewReader(bytes.NewReader(layer(c, img, images.MediaTypeContainerd1Checkpoint))); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		c.Must(err, "the checkpoint's images")
		files[h.Name], err = io.ReadAll(r)
		c.Must(err, "%s", h.Name)
	}
}

// counter is a program that counts in memory, and says how far it is.
func counter() []string {
	return harness.Sh("i=0", "while :; do i=$((i+1)); echo $i; sleep 0.1; done")
}

func TestACheckpointLeavesTheContainerRunning(t *testing.T) {
	needCriu(t)
	e := start(t)
	c := e.Container(counter())
	c.Run()
	e.Eventually("it counts", func() bool { return strings.Contains(c.IO.Stdout.String(), "3\n") })
	img, err := checkpoint(c, &options.CheckpointOptions{})
	e.Must(err, "checkpoint")
	files := criuFiles(c, img)
	for _, name := range []string{"inventory.img", "pstree.img", "pages-1.img", "descriptors.json"} {
		if len(files[name]) == 0 {
			t.Errorf("there is no %s", name)
		}
	}
	var fds []string
	e.Must(json.Unmarshal(files["descriptors.json"], &fds), "descriptors.json")
	if len(fds) != 3 {
		t.Errorf("descriptors.json has %q, want 3 names", fds)
	}
	if s := c.Status(); s != client.Running {
		t.Errorf("after the checkpoint the task is %s", s)
	}
	n := strings.Count(c.IO.Stdout.String(), "\n")
	e.Eventually("it goes on", func() bool { return strings.Count(c.IO.Stdout.String(), "\n") > n+3 })
	if out := c.RunExec("echo", "still"); out.Stdout != "still\n" {
		t.Errorf("exec after the checkpoint: %+v", out)
	}
	c.Kill(syscall.SIGKILL)
	if exit := c.Wait(); exit.Code != 137 {
		t.Errorf("exit code %d, want 137", exit.Code)
	}
	if _, err := os.Stat(filepath.Join(e.Bundle(c.ID()), "criu-work")); err == nil {
		t.Error("criu's work directory was left in the bundle")
	}
	c.Delete()

}

func TestACheckpointWithExitEndsTheContainer(t *testing.T) {
	needCriu(t)
	e := start(t)
	c := e.Container(counter())
	c.Run()
	e.Eventually("it counts", func() bool { return strings.Contains(c.IO.Stdout.String(), "3\n") })
	_, err := checkpoint(c, &options.CheckpointOptions{Exit: true})
	e.Must(err, "checkpoint")
	if exit := c.Wait(); exit.Code != 137 {
		t.Errorf("exit code %d, want 137: criu kills what it has dumped", exit.Code)
	}
	c.Delete()
}

// What goes wrong is said in criu's own words, with the path of its log, and the container goes on.
func TestACheckpointThatFails(t *testing.T) {
	for name, tc := range map[string]struct {
		criu   string // "": none
		real   bool
		args   []string
		opts   *options.CheckpointOptions
		says   []string
		hasLog bool
	}{
		"says that there is no criu":   {criu: "/nonexistent/criu", args: counter(), says: []string{"criu", "/nonexistent/criu"}},
		"says what criu wrote":         {criu: "#!/bin/sh\necho 'no vDSO for you' >&2\nexit 1\n", args: counter(), says: []string{"criu:", "no vDSO for you"}},
		"says that a mode is unknown":  {criu: "#!/bin/sh\nexit 1\n", args: counter(), opts: &options.CheckpointOptions{CgroupsMode: "odd"}, says: []string{"CgroupsMode", `"odd"`}},
		"says that a namespace is odd": {criu: "#!/bin/sh\nexit 1\n", args: counter(), opts: &options.CheckpointOptions{EmptyNamespaces: []string{"odd"}}, says: []string{"EmptyNamespaces", `"odd"`}},
		"says what criu's log says": {
			real: true, args: harness.Sh("exec 9>/f; head -c 2000000 /dev/zero >&9; rm /f; i=0", "while :; do i=$((i+1)); echo $i; sleep 0.1; done"),
			says: []string{"criu: dump failed", "ghost file", "criu-dump.log"}, hasLog: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.real {
				needCriu(t)
			}
			e := start(t)
			if !tc.real {
				path := tc.criu
				if strings.HasPrefix(path, "#!") {
					path = filepath.Join(t.TempDir(), "criu")
					e.Must(os.WriteFile(path, []byte(tc.criu), 0o755), "criu")
				}
				e.RuntimeOptions = toml(fmt.Sprintf("CriuPath = %q", path))
			}
			c := e.Container(tc.args)
			c.Run()
			e.Eventually("it counts", func() bool { return strings.Contains(c.IO.Stdout.String(), "3\n") })
			_, err := checkpoint(c, tc.opts)
			if err == nil {
				t.Fatal("no error")
			}
			for _, s := range tc.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error %q does not say %q", err, s)
				}
			}
			t.Log(err)
			log := filepath.Join(e.Bundle(c.ID()), "criu-dump.log")
			if _, err := os.Stat(log); (err == nil) != tc.hasLog {
				t.Errorf("%s: %v", log, err)
			}
			if _, err := os.Stat(filepath.Join(e.Bundle(c.ID()), "criu-work")); err == nil {
				t.Error("criu's work directory was left in the bundle")
			}
			n := strings.Count(c.IO.Stdout.String(), "\n")
			e.Eventually("it goes on", func() bool { return strings.Count(c.IO.Stdout.String(), "\n") > n+3 })
			c.Kill(syscall.SIGKILL)
			c.Wait()
			c.Delete()
		})
	}
}

// restore makes a new container of a checkpointed one's config and image, and its task of the checkpoint, as `ctr containers restore
// --live` does, but without the writable layer.
func restore(e *harness.Env, from *harness.Container, img client.Image, change ...func(*oci.Spec)) *harness.Container {
	e.Helper()
	spec, err := from.Spec(e.Ctx)
	e.Must(err, "spec")
	// containerd unpacks the checkpoint, and leaves that there.
	for _, kind := range []string{"directory", "file"} {
		e.MayLeave(kind + " " + e.Temp() + "/ctrd-checkpoint")
	}
	c := e.Container(nil, func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		*s = *spec
		for _, f := range change {
			f(s)
		}
		return nil
	})
	c.IO.Terminal = spec.Process.Terminal
	e.Must(c.TryCreate(client.WithTaskCheckpoint(img)), "create of a checkpoint")
	return c
}

// moved ends a container with a checkpoint, and makes a new one of that, which is to be started.
func moved(e *harness.Env, c *harness.Container, opts *options.CheckpointOptions) *harness.Container {
	e.Helper()
	opts.Exit = true
	img, err := checkpoint(c, opts)
	e.Must(err, "checkpoint")
	c.Wait()
	c.Delete()
	return restore(e, c, img)
}

func TestARestoredContainerGoesOnWhereItWas(t *testing.T) {
	needCriu(t)
	e := start(t)
	c := e.Container(counter())
	c.Run()
	e.Eventually("it counts", func() bool { return strings.Contains(c.IO.Stdout.String(), "5\n") })
	img, err := checkpoint(c, &options.CheckpointOptions{Exit: true})
	e.Must(err, "checkpoint")
	counted := strings.Count(c.Wait().Stdout, "\n")
	c.Delete()

	r := restore(e, c, img)
	r.Start()
	e.Eventually("it goes on counting", func() bool { return strings.Count(r.IO.Stdout.String(), "\n") > 3 })
	var first int
	fmt.Sscan(r.IO.Stdout.String(), &first)
	if first < counted || first > counted+2 {
		t.Errorf("the first number of the restored container is %d, the last one of the dumped was %d", first, counted)
	}
	if out := r.RunExec("sh", "-c", "hostname; cat /proc/1/comm; cat /proc/self/cgroup"); out.Code != 0 || !strings.Contains(out.Stdout, "sh\n") {
		t.Errorf("exec in the restored container: %+v", out)
	}
	pids, err := r.Task.Pids(e.Ctx)
	e.Must(err, "pids")
	if len(pids) == 0 || !slices.ContainsFunc(pids, func(p client.ProcessInfo) bool { return p.Pid == r.Task.Pid() }) {
		t.Errorf("the cgroup of the restored container has %v, its first process is %d", pids, r.Task.Pid())
	}
	r.Kill(syscall.SIGKILL)
	if exit := r.Wait(); exit.Code != 137 {
		t.Errorf("exit code %d, want 137", exit.Code)
	}
	r.Delete()
}

// What a container has from outside is there again: a bind mount, a joined network namespace, its own cgroup; and what it has in memory.
func TestARestoredContainerHasWhatItHadFromOutside(t *testing.T) {
	needCriu(t)
	e := start(t)
	dir := t.TempDir()
	e.Must(os.WriteFile(filepath.Join(dir, "file"), []byte("from outside\n"), 0o644), "file")
	// The namespace is held by another container, as a pod's is.
	pod := e.Container(harness.Sleep())
	pod.Run()
	netns := fmt.Sprintf("/proc/%d/ns/net", pod.Task.Pid())
	c := e.Container(counter(), oci.WithMounts([]specs.Mount{{Destination: "/data", Type: "bind", Source: dir, Options: []string{"rbind", "rw"}}}),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns}))
	c.Run()
	e.Eventually("it counts", func() bool { return strings.Contains(c.IO.Stdout.String(), "3\n") })
	look := []string{"sh", "-c", "cat /data/file; readlink /proc/1/ns/net; cat /proc/1/status | grep -E '^(Cap|Seccomp|NoNewPrivs|Uid)'; ls /dev /proc/scsi; cat /proc/kcore | wc -c; echo x >/sys/x"}
	before := c.RunExec(look...)
	r := moved(e, c, new(options.CheckpointOptions))
	r.Start()
	after := r.RunExec(look...)
	if !strings.Contains(after.Stdout, "from outside") || after.Stdout != before.Stdout || after.Stderr != before.Stderr {
		t.Errorf("before:\n%s%s\nafter:\n%s%s", before.Stdout, before.Stderr, after.Stdout, after.Stderr)
	}
	r.Kill(syscall.SIGKILL)
	r.Wait()
	r.Delete()
	pod.Kill(syscall.SIGKILL)
	pod.Wait()
	pod.Delete()
}

// A restore that fails says why, and leaves nothing: what criu had made in the shim's name is reaped.
func TestARestoreThatFails(t *testing.T) {
	needCriu(t)
	e := start(t)
	dir := t.TempDir()
	c := e.Container(counter(), oci.WithMounts([]specs.Mount{{Destination: "/data", Type: "bind", Source: dir, Options: []string{"rbind"}}}))
	c.Run()
	e.Eventually("it counts", func() bool { return strings.Contains(c.IO.Stdout.String(), "3\n") })
	img, err := checkpoint(c, &options.CheckpointOptions{Exit: true})
	e.Must(err, "checkpoint")
	c.Wait()
	c.Delete()
	r := restore(e, c, img, func(s *oci.Spec) { s.Mounts = s.Mounts[:len(s.Mounts)-1] })
	err = r.Task.Start(e.Ctx)
	if err == nil || !strings.Contains(err.Error(), "criu: restore failed") || !strings.Contains(err.Error(), "criu-restore.log") {
		t.Errorf("the error is %v", err)
	}
	t.Log(err)
	if exit := r.Wait(); exit.Code != 255 {
		t.Errorf("exit code %d, want 255", exit.Code)
	}
	r.Delete()
}

func TestATerminalIsRestored(t *testing.T) {
	needCriu(t)
	e := start(t)
	c := e.Container(counter(), oci.WithTTY)
	c.IO.Terminal = true
	c.Run()
	e.Eventually("it counts", func() bool { return strings.Contains(c.IO.Stdout.String(), "3\r\n") })
	r := moved(e, c, new(options.CheckpointOptions))
	r.Start()
	e.Eventually("it goes on counting", func() bool { return strings.Count(r.IO.Stdout.String(), "\n") > 3 })
	r.Kill(syscall.SIGKILL)
	r.Wait()
	r.Delete()
}
