package harness

import (
	"context"
	"os"
	"os/exec"
	"path"
	"path/filepath"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// Systemd says that all containers are to be scopes of systemd's, but those whose test
// says where they are: RSYS_SYSTEMD_CGROUP.
func Systemd() bool { return os.Getenv("RSYS_SYSTEMD_CGROUP") != "" }

// HasSystemd says whether systemd is this host's init.
func HasSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// WithSystemdCgroup is runc's option SystemdCgroup.
func WithSystemdCgroup(_ context.Context, _ *client.Client, info *client.TaskInfo) error {
	opts, _ := info.Options.(*runcoptions.Options)
	if opts == nil {
		opts = new(runcoptions.Options)
		info.Options = opts
	}
	opts.SystemdCgroup = true
	return nil
}

// Slice is the one that the scopes of containers are in.
func (d *Daemon) Slice() string { return d.CgroupName() + ".slice" }

// ScopePath is a linux.cgroupsPath for a scope of this name.
func (d *Daemon) ScopePath(name string) string { return d.Slice() + ":rsys:" + name }

// SliceDir is where the slice is below a hierarchy: the namespace has two dashes.
func (d *Daemon) SliceDir() string { return "/rsys.slice/rsys-it.slice/" + d.Slice() }

// podSlices are a pod's slice, named as a kubelet that uses systemd's driver names it, and those that it is in, below our own.
func (d *Daemon) podSlices(pod string) []string {
	kubepods := d.CgroupName() + "-kubepods"
	return []string{kubepods + ".slice", kubepods + "-burstable.slice", kubepods + "-burstable-" + pod + ".slice"}
}

// removeSlices has systemd stop those in which there is nothing more, the last first.
func (d *Daemon) removeSlices(slices []string) {
	for i := len(slices) - 1; i >= 0; i-- {
		dir := path.Join(append([]string{CgroupRoot("memory"), d.SliceDir()}, slices[:i+1]...)...)
		if below, _ := filepath.Glob(dir + "/*/cgroup.procs"); len(below) == 0 {
			_ = exec.Command("systemctl", "stop", slices[i]).Run()
		}
		// On cgroup v1 there are hierarchies that systemd leaves alone; a kubelet removes its own in these.
		for _, root := range controllers() {
			_ = os.Remove(path.Join(append([]string{root, d.SliceDir()}, slices[:i+1]...)...))
		}
	}
}

// CgroupRoot is where a controller's hierarchy is on cgroup v1, or the only one of v2.
func CgroupRoot(controller string) string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "/sys/fs/cgroup"
	}
	return "/sys/fs/cgroup/" + controller
}

// Cgroup is the path of a container's cgroup below each hierarchy, if its test says nothing of it.
func (d *Daemon) Cgroup(id string) string {
	if Systemd() {
		return path.Join(d.SliceDir(), "rsys-"+id+".scope")
	}
	return path.Join("/", d.Namespace, id)
}

// inScope puts a container whose test says nothing of its cgroup into a scope.
func (e *Env) inScope(_ context.Context, _ oci.Client, c *containers.Container, s *oci.Spec) error {
	if s.Linux != nil && s.Linux.CgroupsPath == path.Join("/", e.Namespace, c.ID) {
		s.Linux.CgroupsPath = e.ScopePath(c.ID)
	}
	return nil
}
