// Package deploy tests what puts the shim on a node: the installer, the manifests, the Debian package.
package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

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
		driver       string
	}{
		{"no configuration", "", []string{"2.4", "1.7"}, "false"},
		{"an empty one", "version = 2\ndisabled_plugins = []\n", []string{"2.4", "1.7"}, "false"},
		{"version 2 with systemd's cgroups", ofV2, []string{"2.4", "1.7"}, "true"},
		{"version 3", ofV3, []string{"2.4"}, "false"},
		{"version 3 without an end of line", strings.TrimSuffix(ofV3, "\n"), []string{"2.4"}, "false"},
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
				if got := found["rsys.options"]["SystemdCgroup"]; got != test.driver {
					t.Errorf("containerd %s: SystemdCgroup is %q", version, got)
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

// documents reads a file of YAML.
func documents(t *testing.T, path string) (docs []map[string]any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc map[string]any
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		docs = append(docs, doc)
	}
}

// at is what is in a document under a path.
func at(t *testing.T, doc any, path ...any) any {
	t.Helper()
	for _, p := range path {
		switch key := p.(type) {
		case string:
			m, _ := doc.(map[string]any)
			doc = m[key]
		case int:
			list, _ := doc.([]any)
			if key >= len(list) {
				t.Fatalf("there is no %v", path)
			}
			doc = list[key]
		}
	}
	if doc == nil {
		t.Fatalf("there is no %v", path)
	}
	return doc
}

func TestTheManifestsNameWhatThereIs(t *testing.T) {
	class := documents(t, repository+"/deploy/kubernetes/runtimeclass.yaml")[0]
	if at(t, class, "kind") != "RuntimeClass" || at(t, class, "apiVersion") != "node.k8s.io/v1" {
		t.Errorf("%v", class)
	}
	handler := at(t, class, "handler").(string)
	for _, file := range []string{"config-v2.toml", "config-v3.toml"} {
		data, err := os.ReadFile(repository + "/deploy/containerd/" + file)
		if err != nil || !strings.Contains(string(data), ".containerd.runtimes."+handler+"]\n") {
			t.Errorf("%s has no runtime %s: %v", file, handler, err)
		}
	}

	set := documents(t, repository+"/deploy/kubernetes/installer.yaml")[0]
	if at(t, set, "kind") != "DaemonSet" || at(t, set, "apiVersion") != "apps/v1" {
		t.Errorf("%v", set)
	}
	if got := at(t, set, "spec", "template", "metadata", "labels"); fmt.Sprint(got) != fmt.Sprint(at(t, set, "spec", "selector", "matchLabels")) {
		t.Errorf("the selector does not select the pods: %v", got)
	}
	pod := at(t, set, "spec", "template", "spec")
	first := at(t, pod, "initContainers", 0)
	if at(t, pod, "hostPID") != true || at(t, first, "securityContext", "privileged") != true {
		t.Error("it can't restart containerd")
	}
	mount := at(t, first, "volumeMounts", 0)
	if at(t, mount, "name") != at(t, pod, "volumes", 0, "name") || at(t, pod, "volumes", 0, "hostPath", "path") != "/" {
		t.Errorf("the volume is another: %v", mount)
	}
	// What it runs is in the image, at this place, and takes these arguments.
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
	command := at(t, first, "command", 0).(string)
	source, ok := copied[command]
	if !ok {
		t.Fatalf("%s is not in the image: %v", command, copied)
	}
	root := t.TempDir()
	args := []string{"--shim", "/bin/true"}
	for _, a := range at(t, first, "args").([]any) {
		switch s := a.(string); s {
		case at(t, mount, "mountPath"):
			args = append(args, root)
		case "--restart": // not this machine's
		default:
			args = append(args, s)
		}
	}
	run(t, filepath.Join(repository, source), args...)
	if _, err := os.Stat(filepath.Join(root, "opt/rsys/bin/containerd-shim-rsys-v1")); err != nil {
		t.Error(err)
	}
}

func TestTheDebianPackageInstallsAndRemovesCleanly(t *testing.T) {
	out, root := t.TempDir(), t.TempDir()
	deb := strings.TrimSpace(run(t, repository+"/hack/package", "--out", out))
	if i := strings.LastIndexByte(deb, '\n'); i >= 0 {
		deb = deb[i+1:]
	}
	for field, want := range map[string]string{"Package": "rsys", "Architecture": strings.TrimSpace(run(t, "go", "env", "GOARCH"))} {
		if got := strings.TrimSpace(run(t, "dpkg-deb", "-f", deb, field)); got != want {
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
