package harness

import (
	"context"
	"os"
	"path"

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
func (d *Daemon) Slice() string { return d.Namespace + ".slice" }

// ScopePath is a linux.cgroupsPath for a scope of this name.
func (d *Daemon) ScopePath(name string) string { return d.Slice() + ":rsys:" + name }

// SliceDir is where the slice is below a hierarchy: the namespace has two dashes.
func (d *Daemon) SliceDir() string { return "/rsys.slice/rsys-it.slice/" + d.Slice() }

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
