package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// needRunc skips a test that is of runc too.
func needRunc(t *testing.T) {
	t.Helper()
	for _, name := range []string{"runc", "containerd-shim-runc-v2"} {
		if _, err := daemon.LookPath(name); err != nil {
			t.Skipf("no %s: hack/setup runc gets it", name)
		}
	}
}

// What one runtime has dumped the other restores: with standard files that are the client's fifos here and runc's pipes there, a bind mount,
// cgroups mounted, masked files, and what is in memory.
func TestImagesAreInterchangedWithRunc(t *testing.T) {
	needCriu(t)
	needRunc(t)
	runtimes := map[string]string{"runc": "io.containerd.runc.v2", "rsys": "io.containerd.rsys.v1"}
	for _, tc := range []struct{ from, to string }{{"runc", "rsys"}, {"rsys", "runc"}} {
		t.Run("from "+tc.from+" to "+tc.to, func(t *testing.T) {
			e := start(t)
			dir := t.TempDir()
			e.Runtime = runtimes[tc.from]
			c := e.Container(counter(), oci.WithMounts([]specs.Mount{
				{Destination: "/data", Type: "bind", Source: dir, Options: []string{"rbind", "rw"}},
				{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			}))
			c.Run()
			e.Eventually("it counts", func() bool { return strings.Contains(c.IO.Stdout.String(), "5\n") })
			img, err := checkpoint(c, &options.CheckpointOptions{Exit: true})
			e.Must(err, "checkpoint")
			counted := strings.Count(c.Wait().Stdout, "\n")
			c.Delete()

			e.Runtime = runtimes[tc.to]
			r := restore(e, c, img)
			r.Start()
			e.Eventually("it goes on counting", func() bool { return strings.Count(r.IO.Stdout.String(), "\n") > 3 })
			var first int
			fmt.Sscan(r.IO.Stdout.String(), &first)
			if first < counted || first > counted+2 {
				t.Errorf("the first number of the restored container is %d, the last one of the dumped was %d", first, counted)
			}
			look := r.RunExec("sh", "-c", "echo x >/data/file && cat /proc/kcore | wc -c && ls /sys/fs/cgroup && cat /proc/1/comm")
			if look.Code != 0 || !strings.HasPrefix(look.Stdout, "0\n") || !strings.HasSuffix(look.Stdout, "sh\n") {
				t.Errorf("in the restored container: %+v", look)
			}
			if files, _ := filepath.Glob(filepath.Join(dir, "file")); len(files) != 1 {
				t.Error("what was written to the bind mount is not outside")
			}
			if s := r.Status(); s != client.Running {
				t.Errorf("it is %s", s)
			}
			r.Kill(syscall.SIGKILL)
			r.Wait()
			r.Delete()
		})
	}
}
