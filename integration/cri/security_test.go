package cri

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestSeccompProfiles(t *testing.T) {
	p := start(t).Run()
	profile := filepath.Join(t.TempDir(), "no-mkdir.json")
	data, err := json.Marshal(specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}}})
	p.Must(err, "profile")
	p.Must(os.WriteFile(profile, data, 0o644), "profile")
	for _, test := range []struct {
		name    string
		profile *runtimeapi.SecurityProfile
		want    string // mode, whether mkdir and unshare work
	}{
		{"the runtime's", &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, "2 mkdir"},
		{"one of the node", &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile}, "2 unshare"},
		{"none", &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, "0 mkdir unshare"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := p.NewContainer(harness.Sleep()...)
			c.Config.Linux.SecurityContext.Seccomp = test.profile
			c.Run()
			// In an exec, and in the container's own process.
			got := c.Sh("sed -n 's/^Seccomp:.//p' /proc/self/status", "mkdir /tmp/d 2>/dev/null && echo mkdir",
				"unshare -U true 2>/dev/null && echo unshare; true")
			if got := strings.Join(strings.Fields(got), " "); got != test.want {
				t.Errorf("an exec: %q, want %q", got, test.want)
			}
			status, err := os.ReadFile("/proc/" + itoa(c.Pid()) + "/status")
			p.Must(err, "read")
			if got := line(string(status), "Seccomp:"); got != test.want[:1] {
				t.Errorf("the container's process has mode %s", got)
			}
		})
	}
	c := p.NewContainer(harness.Sleep()...)
	c.Config.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile + ".none"}
	if err := c.TryCreate(); err == nil {
		t.Error("a profile that is not there is taken")
	}
}

func TestAppArmorProfiles(t *testing.T) {
	enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	has := strings.HasPrefix(string(enabled), "Y")
	p := start(t).Run()
	c := p.NewContainer(harness.Sleep()...)
	c.Config.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	c.Run()
	if got := c.Sh("cat /proc/self/attr/current 2>/dev/null || echo unconfined"); got != "unconfined" {
		t.Errorf("the profile is %q", got)
	}
	if has {
		appArmorConfines(p)
		return
	}
	// One that was asked for is refused, by CRI, rather than left out.
	for _, profile := range []*runtimeapi.SecurityProfile{
		{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, {ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "no-such-profile"},
	} {
		c := p.NewContainer(harness.Sleep()...)
		c.Config.Linux.SecurityContext.Apparmor = profile
		if err := c.TryCreate(); err == nil || !strings.Contains(strings.ToLower(err.Error()), "apparmor") {
			t.Errorf("%v: the error is %v", profile, err)
		}
	}
}

// appArmorConfines looks at what a profile of the node's does, and at the runtime's own, which CRI loads.
func appArmorConfines(p *harness.Pod) {
	p.Helper()
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		p.Skip("no apparmor_parser to load a profile with; hack/vm-test runs this where it is")
	}
	file := filepath.Join(p.TempDir(), "profile")
	p.Must(os.WriteFile(file, []byte("profile rsys-cri flags=(attach_disconnected,mediate_deleted) {\n  file,\n  capability,\n  network,\n  signal,\n  ptrace,\n  deny /etc/passwd r,\n}\n"), 0o600), "write")
	load := func(do string) {
		out, err := exec.Command(parser, "--skip-cache", do, file).CombinedOutput()
		p.Must(err, "apparmor_parser %s: %s", do, out)
	}
	load("-r")
	p.Cleanup(func() { load("-R") })
	for _, test := range []struct {
		profile *runtimeapi.SecurityProfile
		want    string
	}{
		{&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "rsys-cri"}, "rsys-cri (enforce)\nno passwd"},
		{&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, "cri-containerd.apparmor.d (enforce)\npasswd"},
	} {
		script := "cat /proc/self/attr/current; cat /etc/passwd >/dev/null 2>&1 && echo passwd || echo no passwd"
		c := p.NewContainer(harness.Sh(script, "sleep 3600")...)
		c.Config.Linux.SecurityContext.Apparmor = test.profile
		c.Run()
		p.Eventually("it tells", func() bool { return strings.HasSuffix(c.Output("stdout"), "passwd\n") })
		if got := strings.TrimSpace(c.Output("stdout")); got != test.want {
			p.Errorf("%v: %q, want %q", test.profile, got, test.want)
		}
		if got := c.Sh(script); got != test.want {
			p.Errorf("%v, an exec: %q, want %q", test.profile, got, test.want)
		}
		c.Stop(0)
		c.Remove()
	}
	c := p.NewContainer(harness.Sleep()...)
	c.Config.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "rsys-no-such-profile"}
	err = c.TryCreate()
	if err == nil {
		err = c.TryStart()
	}
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), "apparmor") {
		p.Errorf("a profile that is not loaded: %v", err)
	}
}

func TestAContainersSecurityContext(t *testing.T) {
	p := start(t)
	p.Config.Linux.Sysctls = map[string]string{"net.ipv4.tcp_syncookies": "0", "kernel.shm_rmid_forced": "1", "kernel.msgmax": "8193"}
	p.Run()
	device := filepath.Join(t.TempDir(), "device")
	p.Must(unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(240, 7))), "mknod")
	type config = runtimeapi.ContainerConfig
	for _, test := range []struct {
		name   string
		change func(*config)
		script string
		want   string
	}{
		{"the pod's sysctls", func(*config) {}, "cat /proc/sys/net/ipv4/tcp_syncookies /proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/msgmax", "0 1 8193"},
		{"ports and ping for all", func(*config) {}, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range", "0 0 2147483647"},
		{"a read-only root", func(c *config) { c.Linux.SecurityContext.ReadonlyRootfs = true },
			"touch /x 2>/dev/null || echo no; touch /tmp/x 2>/dev/null || echo no; touch /dev/shm/x && echo shm", "no no shm"},
		{"masked and read-only paths", func(*config) {},
			"wc -c < /proc/timer_list; ls /sys/firmware | wc -l; echo 1 2>/dev/null > /proc/sys/kernel/domainname || echo ro", "0 0 ro"},
		{"procMount: Unmasked", func(c *config) {
			c.Linux.SecurityContext.MaskedPaths, c.Linux.SecurityContext.ReadonlyPaths = nil, nil
		}, "test $(wc -c < /proc/timer_list) != 0 && echo seen; grep -c ' /proc/' /proc/self/mounts", "seen 0"},
		{"a user, a group and further groups", func(c *config) {
			sc := c.Linux.SecurityContext
			sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 3000}
			sc.SupplementalGroups = []int64{4000, 5000}
		}, "id -u; id -g; id -G", "1000 3000 3000 50 4000 5000"},
		{"no groups of the image's", func(c *config) {
			sc := c.Linux.SecurityContext
			sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 3000}
			sc.SupplementalGroups, sc.SupplementalGroupsPolicy = []int64{4000}, runtimeapi.SupplementalGroupsPolicy_Strict
		}, "id -G", "3000 4000"},
		{"a user by name", func(c *config) { c.Linux.SecurityContext.RunAsUsername = "app" }, "id -un; id -gn; echo $HOME", "app app /home/app"},
		{"capabilities", func(c *config) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
		}, "sed -n 's/^Cap[EPB].*:.//p' /proc/self/status", "0000000000000400 0000000000000400 0000000000000400"},
		{"no new privileges", func(c *config) { c.Linux.SecurityContext.NoNewPrivs = true }, "sed -n 's/^NoNewPrivs:.//p' /proc/self/status", "1"},
		{"a device", func(c *config) {
			c.Devices = []*runtimeapi.Device{{HostPath: device, ContainerPath: "/dev/mine", Permissions: "r"}}
			// Nothing has this number: the cgroup's refusal comes before that is seen.
		}, "stat -c %t:%T /dev/mine; head -c 1 /dev/mine 2>&1 | grep -o 'No such device'; { echo >/dev/mine; } 2>&1 | grep -o 'not permitted'", "f0:7 No such device not permitted"},
		{"environment and directory", func(c *config) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "SOME", Value: []byte("thing")}}
			c.WorkingDir = "/usr/bin"
		}, "echo $SOME; pwd", "thing /usr/bin"},
		{"a working directory that is not there", func(c *config) { c.WorkingDir = "/new/dir" }, "pwd", "/new/dir"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if strings.HasPrefix(test.name, "no groups") && daemon.Old() {
				t.Skip("containerd 1.7 has no such field")
			}
			c := p.NewContainer(harness.Sh(test.script)...)
			test.change(c.Config)
			c.Run().Wait()
			if got := strings.Join(strings.Fields(c.Output("stdout")), " "); got != test.want {
				t.Errorf("got %q, want %q; stderr %q", got, test.want, c.Output("stderr"))
			}
		})
	}
}

func TestMountsOfVolumes(t *testing.T) {
	p := start(t).Run()
	dir := t.TempDir()
	for _, sub := range []string{"plain", "outer/inner"} {
		p.Must(os.MkdirAll(filepath.Join(dir, sub), 0o755), "mkdir")
	}
	p.Must(unix.Mount("tmpfs", filepath.Join(dir, "outer/inner"), "tmpfs", 0, ""), "mount")
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "outer/inner"), unix.MNT_DETACH) })
	mount := func(m *runtimeapi.Mount, script string) *harness.PodContainer {
		c := p.NewContainer(harness.Sh("trap 'exit 0' TERM", script, "echo ready", "while :; do sleep 0.1; done")...)
		c.Config.Mounts = []*runtimeapi.Mount{m}
		c.Create()
		p.Must(c.TryStart(), "start")
		p.Eventually("it is ready", func() bool { return strings.Contains(c.Output("stdout"), "ready") })
		return c
	}
	outer := filepath.Join(dir, "outer")
	t.Run("read-only, but not what is mounted below", func(t *testing.T) {
		c := mount(&runtimeapi.Mount{ContainerPath: "/v", HostPath: outer, Readonly: true},
			"touch /v/x 2>/dev/null || echo no; touch /v/inner/x && echo inner")
		if got := c.Output("stdout"); got != "no\ninner\nready\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("read-only with all below", func(t *testing.T) {
		if daemon.Old() {
			t.Skip("containerd 1.7 has no such field")
		}
		c := mount(&runtimeapi.Mount{ContainerPath: "/v", HostPath: outer, Readonly: true, RecursiveReadOnly: true},
			"touch /v/x 2>/dev/null || echo no; touch /v/inner/y 2>/dev/null || echo no inner; ls /v/inner")
		if got := c.Output("stdout"); got != "no\nno inner\nx\nready\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a host's later mount is seen with HostToContainer", func(t *testing.T) {
		to := mount(&runtimeapi.Mount{ContainerPath: "/v", HostPath: dir, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, "")
		private := mount(&runtimeapi.Mount{ContainerPath: "/v", HostPath: dir}, "")
		both := p.NewContainer(harness.Sleep()...)
		both.Config.Linux.SecurityContext.Privileged = false
		both.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: dir, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		both.Config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		both.Run()
		plain := filepath.Join(dir, "plain")
		p.Must(unix.Mount("tmpfs", plain, "tmpfs", 0, ""), "mount")
		if got := to.Sh("grep -c ' /v/plain ' /proc/self/mounts || true"); got != "1" {
			t.Errorf("HostToContainer: %s mounts", got)
		}
		if got := private.Sh("grep -c ' /v/plain ' /proc/self/mounts || true"); got != "0" {
			t.Errorf("None: %s mounts", got)
		}
		p.Must(unix.Unmount(plain, 0), "unmount")
		both.Sh("mount -t tmpfs from-inside /v/plain")
		host, err := os.ReadFile("/proc/self/mounts")
		p.Must(err, "read")
		if !strings.Contains(string(host), "from-inside "+plain) {
			t.Error("Bidirectional: the container's mount is not the host's")
		}
		both.Sh("umount /v/plain")
	})
}

func TestAnImageIsAVolume(t *testing.T) {
	if daemon.Old() {
		t.Skip("containerd 1.7 has no image volumes")
	}
	p := start(t).Run()
	c := p.NewContainer(harness.Sleep()...)
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: harness.PauseImageName}, Readonly: true}}
	c.Run()
	if got := c.Sh("ls /image; touch /image/x 2>/dev/null || echo read-only"); got != "pause\nread-only" {
		t.Errorf("the volume has %q", got)
	}
}
