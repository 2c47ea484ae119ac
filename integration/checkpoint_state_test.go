package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

var keeper = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "keeper-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/rsys-keeper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return filepath.Join(dir, "rsys-keeper"), nil
})

// keep makes a container whose program is command rsys-keeper.
func keep(e *harness.Env, what []string, opts ...oci.SpecOpts) *harness.Container {
	e.Helper()
	path, err := keeper()
	e.Must(err, "rsys-keeper")
	opts = append(opts, oci.WithMounts([]specs.Mount{{Destination: "/keeper", Type: "bind", Source: path, Options: []string{"bind", "ro"}}}))
	return e.Container(append([]string{"/keeper"}, what...), opts...)
}

func lines(c *harness.Container) int { return strings.Count(c.IO.Stdout.String(), "\n") }

// goesOn waits for more output.
func goesOn(c *harness.Container, what string) {
	c.Helper()
	n := lines(c)
	c.Eventually(what+" goes on: "+c.IO.Stderr.String(), func() bool { return lines(c) > n+2 })
}

func end(c *harness.Container) {
	c.Helper()
	c.Kill(syscall.SIGKILL)
	if exit := c.Wait(); exit.Code != 137 {
		c.Errorf("exit code %d, want 137; %s", exit.Code, exit.Stderr)
	}
	c.Delete()
}

// What criu dumps only if it is told that it may is refused without the option, by name, and restored with it.
func TestWhatACheckpointMustAllow(t *testing.T) {
	needCriu(t)
	for _, tc := range []struct {
		name, keeps string
		allow       func(*options.CheckpointOptions)
		says        string
	}{
		{"a TCP connection", "tcp", func(o *options.CheckpointOptions) { o.OpenTcp = true }, "--tcp-established"},
		{"a unix socket's peer outside", "unix:", func(o *options.CheckpointOptions) { o.ExternalUnixSockets = true }, "--ext-unix-sk"},
		{"a lock", "lock:/run/lock", func(o *options.CheckpointOptions) { o.FileLocks = true }, "--file-locks"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := start(t)
			dir := t.TempDir()
			peer, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unixgram"})
			e.Must(err, "socket")
			defer peer.Close()
			// criu sees only sockets of the network namespace that the container is in.
			in := oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace})
			if tc.keeps == "unix:" {
				in, tc.keeps = oci.WithHostNamespace(specs.NetworkNamespace), "unix:"+filepath.Join(dir, "socket")
			}
			c := keep(e, []string{tc.keeps}, in, oci.WithMounts([]specs.Mount{{Destination: dir, Type: "bind", Source: dir, Options: []string{"bind"}}}))
			c.Run()
			goesOn(c, "it")
			_, err = checkpoint(c, &options.CheckpointOptions{})
			if err != nil && strings.Contains(err.Error(), "Can't get 1:16 opt") {
				t.Skipf("criu can't dump a TCP socket on this kernel: %v", err)
			}
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("without the option: %v", err)
			}
			goesOn(c, "after the refusal it")
			opts := new(options.CheckpointOptions)
			tc.allow(opts)
			r := moved(e, c, opts)
			r.Start()
			goesOn(r, "the restored one")
			end(r)
		})
	}
}

// A container of several processes and threads, with pipes, a fifo, a file that is open and deleted, a volume and files in a tmpfs, checkpointed while it is paused, is restored
// twice; both go on by themselves.
func TestARestoredContainerHasAllThatItHad(t *testing.T) {
	needCriu(t)
	e := start(t)
	dir := t.TempDir()
	c := keep(e, nil, oci.WithMounts([]specs.Mount{
		{Destination: "/volume", Type: "bind", Source: dir, Options: []string{"rbind", "rw"}},
		{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777"}},
	}), oci.WithProcessArgs(harness.Sh(
		"echo in memory >/scratch/file; cd /scratch",
		"/keeper pipe fifo:/scratch/fifo deleted:/scratch/gone >/scratch/log 2>&1 &",
		"(while :; do echo child; sleep 0.2; done) | while read x; do echo $x >>/volume/out; done &",
		"i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")...))
	c.Run()
	goesOn(c, "it")
	look := []string{"sh", "-c", "cat /scratch/file; readlink /proc/1/cwd; ps -o pid,ppid,pgid,sid,args | grep '/keeper pip[e] fifo:/scratch/fifo deleted:/scratch/gone$' | grep -v sh; ls /proc/$(pidof keeper)/task | wc -l; ls -l /proc/$(pidof keeper)/fd | grep gone;" +
		"cat /proc/1/mountinfo | cut -d' ' -f5- | sed 's/upperdir[^ ]*//;s/lowerdir[^ ]*//' | grep -v overlay | sort"}
	before := c.RunExec(look...)
	e.Must(c.Task.Pause(e.Ctx), "pause")
	img, err := checkpoint(c, &options.CheckpointOptions{})
	e.Must(err, "checkpoint")
	if s := c.Status(); s != client.Paused {
		t.Errorf("after the checkpoint of a paused container it is %s", s)
	}
	n := lines(c)
	e.Must(c.Task.Resume(e.Ctx), "resume")
	goesOn(c, "the dumped one")
	end(c)
	for i := range 2 {
		r := restore(e, c, img)
		r.Start()
		goesOn(r, "the restored one")
		var first int
		fmt.Sscan(r.IO.Stdout.String(), &first)
		if first < n || first > n+2 {
			t.Errorf("%d: the first number is %d, the last before the pause was %d", i, first, n)
		}
		if after := r.RunExec(look...); withoutNumbers(after.Stdout) != withoutNumbers(before.Stdout) {
			t.Errorf("%d: before:\n%s\nafter:\n%s%s", i, before.Stdout, after.Stdout, after.Stderr)
		}
		e.Must(os.WriteFile(filepath.Join(dir, "out"), nil, 0o644), "truncate")
		e.Eventually("the child writes to the volume", func() bool {
			data, _ := os.ReadFile(filepath.Join(dir, "out"))
			return strings.Contains(string(data), "child\n")
		})
		clock := r.RunExec("sh", "-c", "readlink /proc/1/ns/time; readlink /proc/self/ns/time; wc -l </scratch/log; sleep 0.5; wc -l </scratch/log; tail -1 /scratch/log")
		f := strings.Fields(clock.Stdout)
		if len(f) < 5 || f[0] != f[1] || f[2] == f[3] {
			t.Errorf("%d: an exec has another clock, or the keeper does not go on: %q", i, clock.Stdout)
		}
		end(r)
	}
}

// withoutNumbers drops what differs from one look to the next: PIDs of the execs that look, sizes and times of links.
func withoutNumbers(s string) string {
	var out []string
	for line := range strings.Lines(s) {
		if strings.Contains(line, "->") {
			_, line, _ = strings.Cut(line, "->")
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

func TestAContainerInAUserNamespaceIsRestored(t *testing.T) {
	needCriu(t)
	e := start(t)
	m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	c := e.Container(counter(), oci.WithUserNamespace(m, m))
	c.Run()
	goesOn(c, "it")
	look := []string{"sh", "-c", "id; cat /proc/self/uid_map; ls -ln /dev/null; stat -L -c %u /dev/pts/ptmx /proc/1/fd/1; echo >/proc/1/fd/1; grep Cap /proc/1/status"}
	before := c.RunExec(look...)
	r := moved(e, c, new(options.CheckpointOptions))
	r.Start()
	goesOn(r, "the restored one")
	if after := r.RunExec(look...); withoutNumbers(after.Stdout) != withoutNumbers(before.Stdout) {
		t.Errorf("before:\n%s\nafter:\n%s%s", before.Stdout, after.Stdout, after.Stderr)
	}
	end(r)
}

// An empty network namespace is dumped as that, and a directory of the client's choice has the images and the logs: of both the checkpoint and the restore.
func TestImagesAndLogsAreWhereTheyWereAskedFor(t *testing.T) {
	needCriu(t)
	for _, mode := range []string{"ignore", "soft", "full", "strict"} {
		t.Run("cgroups_mode "+mode, func(t *testing.T) {
			e := start(t)
			dir := t.TempDir()
			images, work := filepath.Join(dir, "images"), filepath.Join(dir, "work")
			c := e.Container(counter())
			c.Run()
			goesOn(c, "it")
			opts := &options.CheckpointOptions{Exit: true, ImagePath: images, WorkPath: work, CgroupsMode: mode, EmptyNamespaces: []string{"network"}}
			_, err := checkpoint(c, opts)
			e.Must(err, "checkpoint")
			c.Wait()
			c.Delete()
			for file, there := range map[string]bool{
				"images/inventory.img": true, "images/descriptors.json": true, "images/dump.log": false, "work/dump.log": true, "work/stats-dump": true,
			} {
				if _, err := os.Stat(filepath.Join(dir, file)); (err == nil) != there {
					t.Errorf("%s: %v", file, err)
				}
			}
			if files, _ := filepath.Glob(filepath.Join(images, "netdev-*")); len(files) > 0 {
				t.Errorf("of a network namespace that is to be empty there is %q", files)
			}
			spec, err := c.Spec(e.Ctx)
			e.Must(err, "spec")
			r := e.Container(nil, func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
				*s = *spec
				return nil
			})
			e.Must(r.TryCreate(client.WithRestoreImagePath(images), client.WithRestoreWorkPath(work)), "create")
			r.Start()
			goesOn(r, "the restored one")
			for _, file := range []string{"restore.log", "stats-restore"} {
				if _, err := os.Stat(filepath.Join(work, file)); err != nil {
					t.Error(err)
				}
			}
			if devices := r.RunExec("sh", "-c", "ip -o link; cat /proc/self/cgroup"); devices.Code != 0 || strings.Count(devices.Stdout, "lo:") != 1 || !strings.Contains(devices.Stdout, c.ID()) {
				t.Errorf("in the restored container: %+v", devices)
			}
			pids, err := r.Task.Pids(e.Ctx)
			if err != nil || !slices.ContainsFunc(pids, func(p client.ProcessInfo) bool { return p.Pid == r.Task.Pid() }) {
				t.Errorf("its cgroup has %v, %v", pids, err)
			}
			end(r)
		})
	}
}
