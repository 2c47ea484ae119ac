package oci

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

func TestFeaturesAreWhatIsNotRefused(t *testing.T) {
	f := Features(Host{Kernel: kernel(6, 18), AppArmor: true, SELinux: true, Resctrl: true})
	for _, v := range []string{f.OCIVersionMin, f.OCIVersionMax} {
		if _, err := compileBytes(edit(t, `{"ociVersion": "`+v+`"}`)); err != nil {
			t.Errorf("version %s: %v", v, err)
		}
	}
	for _, name := range f.Hooks {
		if _, err := compileBytes(edit(t, `{"hooks": {"`+name+`": [{"path": "/a"}]}}`)); err != nil {
			t.Errorf("hook %s: %v", name, err)
		}
	}
	for _, name := range f.MountOptions {
		bind := "bind"
		if superOptions[name].ms != 0 {
			bind = "rw"
		}
		_, err := compileBytes(edit(t, `{"mounts": [{"destination": "/a", "source": "/b", "type": "tmpfs", "options": ["`+bind+`", "`+name+`"]}]}`))
		if errdefs.IsNotImplemented(err) {
			t.Errorf("mount option %s: %v", name, err)
		}
	}
	for _, must := range []string{"ro", "rro", "rnoexec", "rbind", "rshared", "nosymfollow"} {
		if !slices.Contains(f.MountOptions, must) {
			t.Errorf("no mount option %s", must)
		}
	}
	for _, name := range f.Linux.Capabilities {
		p, err := compileBytes(edit(t, `{"process": {"capabilities": {"bounding": ["`+name+`"]}}}`))
		if err != nil || len(p.Warnings) > 0 {
			t.Errorf("capability %s: %v, %v", name, err, p.Warnings)
		}
	}
	if f.Linux.Capabilities[0] != "CAP_CHOWN" || len(f.Linux.Capabilities) != 41 {
		t.Errorf("capabilities: %v", f.Linux.Capabilities)
	}
	for _, must := range []string{"cgroup", "ipc", "mount", "network", "pid", "uts"} {
		if !slices.Contains(f.Linux.Namespaces, must) {
			t.Errorf("no namespace %s in %v", must, f.Linux.Namespaces)
		}
	}
	for _, mode := range f.Linux.MemoryPolicy.Modes {
		if _, ok := mempolicyModes[specs.MemoryPolicyModeType(mode)]; !ok {
			t.Errorf("memory policy %s", mode)
		}
	}
}

func TestFeaturesAreTrueForTheKernel(t *testing.T) {
	old := Features(Host{Kernel: kernel(5, 14), NoNamespace: []specs.LinuxNamespaceType{specs.UserNamespace, specs.IPCNamespace}})
	if slices.Contains(old.Linux.Seccomp.SupportedFlags, "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV") ||
		!slices.Contains(old.Linux.Seccomp.KnownFlags, "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV") {
		t.Errorf("flags of Linux 5.14: %v", old.Linux.Seccomp)
	}
	if slices.Contains(old.Linux.Namespaces, "user") || slices.Contains(old.Linux.Namespaces, "ipc") {
		t.Errorf("namespaces: %v", old.Linux.Namespaces)
	}
	if *old.Linux.Apparmor.Enabled || *old.Linux.Selinux.Enabled || *old.Linux.IntelRdt.Enabled {
		t.Error("there is no such module")
	}
}

func TestFeaturesAreReadAsTheyWereWritten(t *testing.T) {
	data, err := json.Marshal(Features(hostV1))
	if err != nil {
		t.Fatal(err)
	}
	var f features.Features
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	if f.Linux == nil || len(f.Hooks) != 6 || f.Linux.MountExtensions.IDMap.Enabled == nil {
		t.Errorf("got %s", data)
	}
}

// fixed is a host that has everything, so that what is told of it changes with the code alone.
var fixed = Host{Kernel: kernel(6, 18), LastCap: 40, AppArmor: true, SELinux: true, Resctrl: true, CgroupV2: true}

func TestTheFeaturesOfAHostAreTheGoldenOnes(t *testing.T) {
	f := Features(fixed)
	f.Linux.Seccomp.Archs = nil // they are another architecture's on another machine
	got, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	const file = "testdata/features.golden.json"
	if *update {
		if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(want) {
		t.Errorf("not as in %s (go test ./oci -update writes it anew):\n%s", file, firstDifference(string(got)+"\n", string(want)))
	}
}

// Each field of the specification's structure is told of, or is here with the reason why not.
func TestEveryFeatureIsTold(t *testing.T) {
	untold := map[string]string{
		"annotations": "none is needed: they are for what the structure has no field for",
	}
	data, err := json.Marshal(Features(fixed))
	if err != nil {
		t.Fatal(err)
	}
	var told map[string]any
	if err := json.Unmarshal(data, &told); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, path := range leaves(reflect.TypeFor[features.Features](), "") {
		seen[path] = true
		var at any = told
		for name := range strings.SplitSeq(path, ".") {
			m, _ := at.(map[string]any)
			at = m[name]
		}
		if there := at != nil; there == (untold[path] != "") {
			t.Errorf("%s: told %v, reason why not %q", path, there, untold[path])
		}
	}
	for path := range untold {
		if !seen[path] {
			t.Errorf("the specification has no %s", path)
		}
	}
	if len(seen) < 25 {
		t.Errorf("only %d fields", len(seen))
	}
}
