package docker

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestTheInstallersImageIsBuiltAndInstalls(t *testing.T) {
	e := start(t)
	const image = "rsys.io/installer:test"
	// Our busybox in the place of the one of Docker's registry.
	e.must("tag", harness.ImageName, "busybox:stable-musl")
	t.Cleanup(func() { engine.docker("rmi", "--force", image, "busybox:stable-musl") })
	// What deploy/Dockerfile.dockerignore leaves of the repository.
	context := t.TempDir()
	e.Must(os.CopyFS(filepath.Join(context, "deploy"), os.DirFS("../../deploy")), "copy deploy")
	var shim []byte
	err := os.ErrNotExist
	for _, dir := range daemon.Path {
		if shim, err = os.ReadFile(filepath.Join(dir, "containerd-shim-rsys-v1")); err == nil {
			break
		}
	}
	e.Must(err, "read the shim")
	e.Must(os.Mkdir(filepath.Join(context, "bin"), 0o755), "make bin")
	e.Must(os.WriteFile(filepath.Join(context, "bin/containerd-shim-rsys-v1"), shim, 0o755), "write the shim")
	build := engine.command("build", "--quiet", "--file", filepath.Join(context, "deploy/Dockerfile"), "--tag", image, context)
	build.Env = append(build.Env, "DOCKER_BUILDKIT=0") // whose client plug-in Debian's docker.io has not
	out, err := build.CombinedOutput()
	e.Must(err, "build: %s", out)

	node := t.TempDir()
	install := []string{"run", "--rm", "--runtime", engine.runtime, "--name", e.name(), "--volume", node + ":/host", image, "--root", "/host", "--bindir", "/opt/rsys/bin"}
	e.must(install...)
	for _, file := range []string{"opt/rsys/bin/containerd-shim-rsys-v1", "etc/containerd/config.toml", "etc/systemd/system/containerd.service.d/50-rsys.conf"} {
		if _, err := os.Stat(filepath.Join(node, file)); err != nil {
			t.Error(err)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(node, "opt/rsys/bin/containerd-shim-rsys-v1")); string(got) != string(shim) {
		t.Errorf("the shim has %d bytes, that of the image %d", len(got), len(shim))
	}
	install[5] = e.name()
	e.must(append(install, "--uninstall")...)
	if _, err := os.Stat(filepath.Join(node, "opt")); err == nil {
		t.Error("/opt/rsys/bin is left")
	}
}
