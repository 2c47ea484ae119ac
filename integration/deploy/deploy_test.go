// Package deploy tests what puts the shim on a node: the installer, the manifests, the Debian package.
package deploy

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/rsys-io/rsys/integration/harness"
)

const repository = "../.."

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// install runs the installer for a node of ours.
func install(t *testing.T, root string, args ...string) string {
	t.Helper()
	return run(t, repository+"/deploy/install.sh", append([]string{"--root", root, "--shim", "/bin/true"}, args...)...)
}

// tree is everything below a directory: files with their mode and contents.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		data := []byte(nil)
		if info.Mode().IsRegular() {
			if data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		files[name] = info.Mode().String() + " " + string(data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sameTree(t *testing.T, what string, before, after map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if was, ok := before[name]; !ok {
			t.Errorf("%s: %s is left", what, name)
		} else if was != after[name] {
			t.Errorf("%s: %s was\n%s\nand is\n%s", what, name, was, after[name])
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			t.Errorf("%s: %s is gone", what, name)
		}
	}
}

// containerds are those that hack/setup has built, by version.
func containerds(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, version := range []string{"2.4", "1.7"} {
		t.Setenv("RSYS_CONTAINERD", version)
		cfg, err := harness.FromEnv()
		if err != nil {
			t.Fatal(err)
		}
		found[version] = filepath.Join(cfg.Containerd, "containerd")
	}
	return found
}

// tables are the tables of what containerd says that it understands of its configuration: their keys, by the last parts of their names.
func tables(t *testing.T, containerd, config string) map[string]map[string]string {
	t.Helper()
	cmd := exec.Command(containerd, "--config", config, "config", "dump")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%s: %v\n%s", containerd, err, exit.Stderr)
		}
		t.Fatal(err)
	}
	found := map[string]map[string]string{}
	var table map[string]string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok {
			_, name, _ = strings.Cut(strings.TrimSuffix(name, "]"), "containerd.runtimes.")
			table = map[string]string{}
			found[name] = table
		} else if key, value, ok := strings.Cut(line, " = "); ok && table != nil {
			table[key] = strings.Trim(value, `'"`)
		}
	}
	return found
}

const (
	ofV2 = `version = 2
root = "/var/lib/containerd"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "x"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
`
	ofV3 = `version = 3

[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'runc'
`
)

func TestTheInstallerAddsTheRuntimeAndTakesItAway(t *testing.T) {
	all := containerds(t)
	for _, test := range []struct {
		name, config string
		versions     []string // of containerd that read such a file
	}{
		{"no configuration", "", []string{"2.4", "1.7"}},
		{"an empty one", "version = 2\ndisabled_plugins = []\n", []string{"2.4", "1.7"}},
		{"version 2 with systemd's cgroups", ofV2, []string{"2.4", "1.7"}},
		{"version 3", ofV3, []string{"2.4"}},
		{"version 3 without an end of line", strings.TrimSuffix(ofV3, "\n"), []string{"2.4"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			config := filepath.Join(root, "etc/containerd/config.toml")
			if test.config != "" {
				if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(config, []byte(test.config), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			// The directories are anybody's; what is in them counts.
			for _, dir := range []string{"etc/containerd", "usr/local/bin"} {
				if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			before := tree(t, root)
			if out := install(t, root); !strings.Contains(out, "restart containerd") {
				t.Errorf("it says nothing of a restart: %s", out)
			}
			for _, version := range test.versions {
				found := tables(t, all[version], config)
				if got := found["rsys"]["runtime_type"]; got != "io.containerd.rsys.v1" {
					t.Errorf("containerd %s has the runtimes %v", version, slices.Sorted(maps.Keys(found)))
				}
				// With any, containerd starts no container in a user namespace.
				if got := found["rsys.options"]; len(got) != 0 {
					t.Errorf("containerd %s: it has options: %v", version, got)
				}
				if got := found["runc"]["runtime_type"]; got != "io.containerd.runc.v2" {
					t.Errorf("containerd %s has lost runc: %q", version, got)
				}
			}
			if st, err := os.Stat(filepath.Join(root, "usr/local/bin/containerd-shim-rsys-v1")); err != nil || st.Mode() != 0o755 {
				t.Errorf("the shim: %v, %v", st, err)
			}
			installed := tree(t, root)
			if out := install(t, root); !strings.Contains(out, "as it was") {
				t.Errorf("a second run: %s", out)
			}
			sameTree(t, "a second run", installed, tree(t, root))
			install(t, root, "--uninstall")
			if !strings.HasSuffix(test.config, "\n") && test.config != "" {
				before["etc/containerd/config.toml"] += "\n"
			}
			sameTree(t, "uninstall", before, tree(t, root))
		})
	}
}

func TestTheInstallerPutsADirectoryInContainerdsPath(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc/containerd", "etc/systemd/system"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, root)
	install(t, root, "--bindir", "/opt/rsys/bin")
	data, err := os.ReadFile(filepath.Join(root, "etc/systemd/system/containerd.service.d/50-rsys.conf"))
	if err != nil || !strings.Contains(string(data), "\n[Service]\nEnvironment=PATH=/opt/rsys/bin:/usr/local/sbin:") {
		t.Errorf("the drop-in is %q, %v", data, err)
	}
	install(t, root, "--bindir", "/opt/rsys/bin", "--uninstall")
	sameTree(t, "uninstall", before, tree(t, root))
}

func TestTheInstallerLeavesWhatItDoesNotUnderstand(t *testing.T) {
	for name, test := range map[string]struct{ config, says string }{
		"a runtime rsys": {ofV2 + "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.rsys]\n  runtime_type = \"/x\"\n", "left as it is"},
		"version 1":      {"[plugins.cri]\n", "version is ''"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			config := filepath.Join(root, "config.toml")
			if err := os.WriteFile(config, []byte(test.config), 0o600); err != nil {
				t.Fatal(err)
			}
			out, _ := exec.Command(repository+"/deploy/install.sh", "--root", root, "--config", "/config.toml", "--no-binary").CombinedOutput()
			if !strings.Contains(string(out), test.says) {
				t.Errorf("it says %s", out)
			}
			if data, _ := os.ReadFile(config); string(data) != test.config {
				t.Errorf("the file is\n%s", data)
			}
		})
	}
	for _, args := range [][]string{{"--no-such"}, {"--root"}, {"--root", "/no/such/root"}} {
		if out, err := exec.Command(repository+"/deploy/install.sh", args...).CombinedOutput(); err == nil {
			t.Errorf("%v is taken: %s", args, out)
		}
	}
}

func TestTheInstallerRunsInBusybox(t *testing.T) {
	// As in its image: no other program than busybox's.
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err, ": hack/setup installs it")
	}
	bin, root := t.TempDir(), t.TempDir()
	for _, applet := range strings.Fields(run(t, busybox, "--list")) {
		if err := os.Symlink(busybox, filepath.Join(bin, applet)); err != nil {
			t.Fatal(err)
		}
	}
	for _, more := range [][]string{nil, {"--uninstall"}} {
		script, err := filepath.Abs(repository + "/deploy/install.sh")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(bin, "sh"), append([]string{script, "--root", root, "--shim", busybox}, more...)...)
		cmd.Env = []string{"PATH=" + bin}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		_, err = os.Stat(filepath.Join(root, "etc/containerd/config.toml"))
		if installed := err == nil; installed != (more == nil) {
			t.Errorf("%v: %v", more, err)
		}
	}
}

// manifest decodes one as the API server does that is asked to be strict: a field that is not of the type, or there twice, is an error.
func manifest[T any](t *testing.T, name string) *T {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(repository, "deploy/kubernetes", name))
	if err != nil {
		t.Fatal(err)
	}
	object := new(T)
	if err := yaml.UnmarshalStrict(data, object); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return object
}

func TestTheRuntimeClassNamesTheRuntime(t *testing.T) {
	class := manifest[nodev1.RuntimeClass](t, "runtimeclass.yaml")
	if class.TypeMeta != (metav1.TypeMeta{APIVersion: "node.k8s.io/v1", Kind: "RuntimeClass"}) || class.Name == "" {
		t.Errorf("it is %+v", class)
	}
	for _, file := range []string{"config-v2.toml", "config-v3.toml"} {
		data, err := os.ReadFile(repository + "/deploy/containerd/" + file)
		if err != nil || !strings.Contains(string(data), ".containerd.runtimes."+class.Handler+"]\n") {
			t.Errorf("%s has no runtime %s: %v", file, class.Handler, err)
		}
	}
}

func TestTheKustomizationHasAllManifestsAndTheirImage(t *testing.T) {
	var k struct {
		metav1.TypeMeta `json:",inline"`
		Resources       []string
		Images          []struct{ Name, NewName, NewTag string }
	}
	data, err := os.ReadFile(repository + "/deploy/kubernetes/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(data, &k); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(repository + "/deploy/kubernetes/*.yaml")
	for _, f := range files {
		if f = filepath.Base(f); f != "kustomization.yaml" && !slices.Contains(k.Resources, f) {
			t.Errorf("it has no %s: %v", f, k.Resources)
		}
	}
	for _, name := range []string{"installer.yaml", "uninstaller.yaml"} {
		pod := manifest[appsv1.DaemonSet](t, name).Spec.Template.Spec
		for _, c := range append(pod.InitContainers, pod.Containers...) {
			if image, _, _ := strings.Cut(c.Image, ":"); len(k.Images) != 1 || image != k.Images[0].Name {
				t.Errorf("%s: %s is not among the images %v", name, c.Image, k.Images)
			}
		}
	}
}

// imageFiles are what deploy/Dockerfile has in the image, and where from.
func imageFiles(t *testing.T) map[string]string {
	t.Helper()
	image, err := os.ReadFile(repository + "/deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	copied := map[string]string{}
	for line := range strings.Lines(string(image)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "COPY" {
			copied[f[2]] = f[1]
			if _, err := os.Stat(filepath.Join(repository, f[1])); err != nil && !strings.HasPrefix(f[1], "bin/") {
				t.Errorf("the image has %s: %v", f[1], err)
			}
		}
	}
	return copied
}

// installerCommand is what a DaemonSet runs on a node, with the node's root directory in the place of ours.
func installerCommand(t *testing.T, name, root string) []string {
	t.Helper()
	set := manifest[appsv1.DaemonSet](t, name)
	if set.TypeMeta != (metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"}) {
		t.Errorf("%s is %v", name, set.TypeMeta)
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil || !selector.Matches(labels.Set(set.Spec.Template.Labels)) {
		t.Errorf("%s: %v does not select its pods: %v", name, selector, err)
	}
	pod := set.Spec.Template.Spec
	first := pod.InitContainers[0]
	if !pod.HostPID || first.SecurityContext == nil || first.SecurityContext.Privileged == nil || !*first.SecurityContext.Privileged {
		t.Errorf("%s can't restart containerd", name)
	}
	mount, volume := first.VolumeMounts[0], pod.Volumes[0]
	if mount.Name != volume.Name || volume.HostPath == nil || volume.HostPath.Path != "/" {
		t.Errorf("%s: the volume is another: %v, %v", name, mount, volume)
	}
	source, ok := imageFiles(t)[first.Command[0]]
	if !ok {
		t.Fatalf("%s: %v is not in the image", name, first.Command)
	}
	command := []string{filepath.Join(repository, source)}
	for _, a := range first.Args {
		if a == mount.MountPath {
			a = root
		}
		command = append(command, a)
	}
	return command
}

// usePackaged runs a container by the shim of a directory.
func usePackaged(t *testing.T, dir string) {
	t.Helper()
	cfg, err := harness.FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Path = []string{dir}
	daemon, err := harness.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Stop()
	t.Run("a container", func(t *testing.T) {
		c := harness.New(t, daemon).Container([]string{"echo", "packaged"}).Run()
		if got := c.Wait(); got.Stdout != "packaged\n" {
			t.Errorf("it gave %+v", got)
		}
		c.Delete()
	})
}

func TestTheDebianPackageInstallsAndRemovesCleanly(t *testing.T) {
	out, root := t.TempDir(), t.TempDir()
	deb := strings.TrimSpace(run(t, repository+"/hack/package", "--out", out))
	if i := strings.LastIndexByte(deb, '\n'); i >= 0 {
		deb = deb[i+1:]
	}
	if lintian, err := exec.LookPath("lintian"); err == nil {
		if out, err := exec.Command(lintian, "--allow-root", "--fail-on", "warning", deb).CombinedOutput(); err != nil {
			t.Errorf("lintian: %v\n%s", err, out)
		}
	}
	for field, want := range map[string]string{"Package": "rsys", "Architecture": strings.TrimSpace(run(t, "go", "env", "GOARCH"))} {
		if got := strings.TrimSpace(run(t, "dpkg-deb", "-f", deb, field)); got != want {
			t.Errorf("%s is %q", field, got)
		}
	}
	// apt installs what is recommended: a second containerd, and on Debian 12 one that is too old.
	for _, field := range []string{"Depends", "Recommends"} {
		if got := strings.TrimSpace(run(t, "dpkg-deb", "-f", deb, field)); got != "" {
			t.Errorf("%s is %q", field, got)
		}
	}
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "etc/containerd", "usr/bin", "usr/share/doc", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// dpkg removes a directory that nobody else has anything in.
	for file, text := range map[string]string{"usr/bin/other": "", "usr/share/doc/other": "", "var/lib/dpkg/status": "", "etc/containerd/config.toml": ofV2} {
		if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	notDpkgs := func() map[string]string {
		files := tree(t, root)
		maps.DeleteFunc(files, func(name, _ string) bool { return strings.HasPrefix(name, "var/") })
		return files
	}
	before := notDpkgs()
	dpkg := func(args ...string) {
		t.Helper()
		run(t, "dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--log=/dev/null"}, args...)...)
	}
	dpkg("--install", deb)
	if got := run(t, filepath.Join(root, "usr/bin/containerd-shim-rsys-v1"), "-v"); !strings.Contains(got, "Version:") {
		t.Errorf("the shim says %q", got)
	}
	run(t, filepath.Join(root, "usr/share/rsys/install.sh"), "--root", root, "--no-binary")
	if data, _ := os.ReadFile(filepath.Join(root, "etc/containerd/config.toml")); !strings.Contains(string(data), "runtimes.rsys]") {
		t.Errorf("the configuration is\n%s", data)
	}
	usePackaged(t, filepath.Join(root, "usr/bin"))
	if err := os.MkdirAll(filepath.Join(root, "run/rsys"), 0o700); err != nil { // of a shim at the level debug
		t.Fatal(err)
	}
	dpkg("--install", deb) // again, as an upgrade: nothing is undone
	if data, _ := os.ReadFile(filepath.Join(root, "etc/containerd/config.toml")); !strings.Contains(string(data), "runtimes.rsys]") {
		t.Errorf("after an upgrade the configuration is\n%s", data)
	}
	dpkg("--remove", "rsys")
	dpkg("--purge", "rsys")
	sameTree(t, "remove and purge", before, notDpkgs())
}
