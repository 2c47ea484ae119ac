package integration

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
)

// A container whose program is systemd, configured as by docker run --cgroupns private --tmpfs /run --tmpfs /run/lock --tmpfs /tmp
// --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt writable-cgroups=true --stop-signal SIGRTMIN+3.
func TestSystemdRunsInAContainer(t *testing.T) {
	root := filepath.Join(harness.Cache(), "vm-amd64-systemd/root")
	if _, err := os.Stat(root + "/lib/systemd/systemd"); err != nil {
		t.Skip("no root file system with systemd; hack/vm --systemd --get makes it")
	}
	e := start(t)
	dir := t.TempDir()
	for _, d := range []string{"upper/vm", "upper/etc/systemd/system", "work"} {
		e.Must(os.MkdirAll(filepath.Join(dir, d), 0o755), "mkdir")
	}
	// What its default target wants is a service that runs this.
	e.Must(os.WriteFile(dir+"/upper/vm/run", []byte("echo started > /vm/started\nexec sleep 3600\n"), 0o644), "write")
	overlay := []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + root, "upperdir=" + dir + "/upper", "workdir=" + dir + "/work"}}}
	c := e.Container([]string{"/lib/systemd/systemd", "--log-target=console", "--show-status=no"},
		oci.WithEnv([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "container=docker"}),
		oci.WithAddedCapabilities([]string{"CAP_SYS_ADMIN"}), oci.WithSeccompUnconfined, oci.WithNewPrivileges,
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}),
		withMount("cgroup", "/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev"),
		withMount("tmpfs", "/run", "tmpfs", "nosuid", "nodev", "rprivate"), withMount("tmpfs", "/run/lock", "tmpfs", "noexec", "nosuid", "nodev", "rprivate"),
		withMount("tmpfs", "/tmp", "tmpfs", "noexec", "nosuid", "nodev", "rprivate"))
	c.Create(client.WithRootFS(overlay))
	c.Start()
	sh := func(script string) string {
		got := c.RunExec("/bin/sh", "-c", script)
		return strings.TrimSpace(got.Stdout + got.Stderr)
	}
	defer func() {
		if t.Failed() {
			t.Logf("systemd said %q %q", c.IO.Stdout.String(), c.IO.Stderr.String())
		}
	}()
	e.Eventually("its default target is reached", func() bool { return sh("systemctl is-active default.target") == "active" })
	for script, want := range map[string]string{
		"cat /proc/1/comm":                "systemd",
		"cat /vm/started":                 "started",
		"systemctl is-active vm.service":  "active",
		"systemd-detect-virt --container": "docker",
		"grep -qE '^([0-9]+:name=systemd|0:):/init.scope$' /proc/1/cgroup && echo it is": "it is",
		"systemctl show -p ControlGroup init.scope":                                      "ControlGroup=/init.scope",
		"systemctl start nosuch.service 2>&1; true":                                      "Failed to start nosuch.service: Unit nosuch.service not found.",
		"systemctl is-failed vm.service; true":                                           "active",
		"systemctl show -p MainPID --value vm.service | xargs -I P cat /proc/P/comm":     "sleep",
	} {
		if got := sh(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	c.Kill(syscall.Signal(34 + 3)) // SIGRTMIN+3: halt
	if got := c.Wait(); got.Code != 0 && got.Code != 130 {
		t.Errorf("it ended with %d", got.Code)
	}
	c.Delete()
}
