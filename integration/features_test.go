package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/rsys-io/rsys/integration/harness"
	"google.golang.org/protobuf/proto"
)

// What containerd's CRI reads to tell the kubelet whether pods may have user namespaces and mounts that are
// read-only recursively.
func TestTheFeaturesAreToldAndTrue(t *testing.T) {
	if peer() {
		t.Skip("of our shim")
	}
	e := start(t)
	var info types.RuntimeInfo
	out, err := exec.Command(filepath.Join(e.Path[0], "containerd-shim-rsys-v1"), "-info").Output()
	e.Must(err, "-info")
	e.Must(proto.Unmarshal(out, &info), "decode")
	var f features.Features
	e.Must(json.Unmarshal(info.Features.Value, &f), "decode the features")
	if info.Features.TypeUrl != "types.containerd.io/opencontainers/runtime-spec/1/features/Features" {
		t.Errorf("type %s", info.Features.TypeUrl)
	}
	if !slices.Contains(f.MountOptions, "rro") {
		t.Error("no recursive read-only mounts")
	}
	for _, ns := range f.Linux.Namespaces {
		file := map[string]string{"network": "net", "mount": "mnt"}[ns]
		if file == "" {
			file = ns
		}
		if _, err := os.Stat("/proc/self/ns/" + file); err != nil {
			t.Errorf("namespace %s: %v", ns, err)
		}
	}
	if len(f.Hooks) != 6 {
		t.Errorf("hooks: %v", f.Hooks)
	}
	dir := t.TempDir()
	c := e.Container(harness.Sh("mkdir /m/a 2>&1; grep ' /m' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f1"), withMount(dir, "/m", "bind", "rbind", "rro"))
	if got := c.Finish(); got.Stdout != "mkdir: can't create directory '/m/a': Read-only file system\nro\n" {
		t.Errorf("rro: got %+v", got)
	}
}
