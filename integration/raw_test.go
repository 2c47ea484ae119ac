package integration

import (
	"context"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// deleteRaw asks containerd's service itself, without what the client checks
// before.
func deleteRaw(e *harness.Env, id string) error {
	_, err := e.Client.TaskService().Delete(e.Ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	return errgrpc.ToNative(err)
}

// withTerminal is oci.WithTTY without its TERM.
func withTerminal(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	s.Process.Terminal = true
	return nil
}

// change is a change of the spec that needs no client.
func change(f func(*oci.Spec)) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		f(s)
		return nil
	}
}

func nullIO(id string) (cio.IO, error) { return cio.NullIO(id) }

func withMount(source, dest, fstype string, options ...string) oci.SpecOpts {
	return oci.WithMounts([]specs.Mount{{Source: source, Destination: dest, Type: fstype, Options: options}})
}

// joining has the container join a namespace instead of having its own.
func joining(kind specs.LinuxNamespaceType, path string) oci.SpecOpts {
	return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: kind, Path: path})
}

func withSysctl(name, value string) oci.SpecOpts {
	return change(func(s *oci.Spec) {
		if s.Linux.Sysctl == nil {
			s.Linux.Sysctl = map[string]string{}
		}
		s.Linux.Sysctl[name] = value
	})
}

// rootOf mounts a container's root file system, to change it before it runs.
func rootOf(e *harness.Env, c *harness.Container) string {
	e.Helper()
	mounts, err := e.Client.SnapshotService("overlayfs").Mounts(e.Ctx, c.ID())
	e.Must(err, "mounts of the snapshot")
	dir := e.TempDir()
	e.Must(mount.All(mounts, dir), "mount the root file system")
	return dir
}

func unmountRoot(dir string) error { return mount.UnmountAll(dir, 0) }

// createRaw has containerd create a task of a container. The client would
// look at the spec itself before that.
func createRaw(e *harness.Env, id string) error {
	mounts, err := e.Client.SnapshotService("overlayfs").Mounts(e.Ctx, id)
	e.Must(err, "mounts of the snapshot")
	_, err = e.Client.TaskService().Create(e.Ctx, &tasks.CreateTaskRequest{ContainerID: id, Rootfs: mount.ToProto(mounts)})
	return errgrpc.ToNative(err)
}

func startRaw(e *harness.Env, id string) error {
	_, err := e.Client.TaskService().Start(e.Ctx, &tasks.StartRequest{ContainerID: id})
	return errgrpc.ToNative(err)
}
