package container

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// No machine of ours has the hardware: a directory stands for the file system.
func TestRdtClassesAreMadeJoinedAndRemoved(t *testing.T) {
	r := resctrl(t.TempDir())
	read := func(path ...string) string {
		data, err := os.ReadFile(filepath.Join(append([]string{string(r)}, path...)...))
		if err != nil {
			t.Error(err)
		}
		return string(data)
	}
	// The kernel makes these with a class.
	if err := os.MkdirAll(filepath.Join(string(r), "c1", "mon_groups"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.create("c1", true, "L3:0=f\nMB:0=20\n", "c1"); err != nil {
		t.Fatal(err)
	}
	if err := r.join("c1", "c1", 42); err != nil {
		t.Fatal(err)
	}
	if got := read("c1", "schemata") + read("c1", "tasks") + read("c1", "mon_groups", "c1", "tasks"); got != "L3:0=f\nMB:0=20\n4242" {
		t.Errorf("got %q", got)
	}
	if err := r.create("none", false, "", ""); err == nil || !strings.Contains(err.Error(), "must be there already") {
		t.Errorf("a class that is not there: %v", err)
	}
	with := func(rdt *specs.LinuxIntelRdt) *specs.Spec { return &specs.Spec{Linux: &specs.Linux{IntelRdt: rdt}} }
	if err := r.remove(with(&specs.LinuxIntelRdt{ClosID: "c1"}), "x"); err != nil {
		t.Error(err)
	}
	os.Remove(filepath.Join(string(r), "c1", "mon_groups", "c1", "tasks"))
	if err := r.remove(with(&specs.LinuxIntelRdt{ClosID: "c1", EnableMonitoring: true}), "c1"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(string(r), "c1", "mon_groups", "c1")); err == nil {
		t.Error("the monitoring group is still there")
	}
	if _, err := os.Stat(filepath.Join(string(r), "c1")); err != nil {
		t.Error("a class that is not ours was removed")
	}
	if err := os.RemoveAll(filepath.Join(string(r), "c1")); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(filepath.Join(string(r), "c2"), 0o755)
	for range 2 {
		if err := r.remove(with(&specs.LinuxIntelRdt{}), "c2"); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(string(r), "c2")); err == nil {
		t.Error("the class is still there")
	}
}

func TestTheKernelsReasonIsTold(t *testing.T) {
	r := resctrl(t.TempDir())
	os.Mkdir(filepath.Join(string(r), "info"), 0o755)
	os.WriteFile(filepath.Join(string(r), "info", "last_cmd_status"), []byte("Mask out of range\n"), 0o644)
	if err := r.join("none", "", 1); err == nil || !strings.HasSuffix(err.Error(), "(Mask out of range)") {
		t.Errorf("got %v", err)
	}
}
