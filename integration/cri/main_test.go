// Package cri has the tests of the shim under containerd's CRI plugin, as a
// kubelet uses it: pods with a network of CNI's plugins.
//
// As those of package integration they run under each containerd, check what is left
// behind, and heed RSYS_RUNTIME.
package cri

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/integration/harness"
)

var daemon *harness.Daemon

func TestMain(m *testing.M) {
	// The bridge, its addresses and the firewall's rules are our own.
	harness.Isolate(unix.CLONE_NEWNET)
	cfg, err := harness.FromEnv()
	if err == nil {
		cfg.CRI = &harness.CRI{Handlers: []harness.Handler{
			{Name: "rsys", Type: harness.Runtime()},
			// A RuntimeClass of another name, which lets annotations through.
			{Name: "annotated", Type: harness.Runtime(), TOML: "pod_annotations = ['io.rsys.*']\ncontainer_annotations = ['io.rsys.*']"},
		}}
		if !strings.Contains(cfg.Containerd, "containerd-1.") {
			cfg.CRI.Handlers = append(cfg.CRI.Handlers, harness.Handler{
				Name: pauseless, Type: harness.Runtime(), TOML: "sandboxer = 'shim'\ndisable_pause_image_pull = true",
			}, harness.Handler{
				Name: streamed, Type: harness.Runtime(), TOML: "sandboxer = 'shim'\ndisable_pause_image_pull = true\nio_type = 'streaming'",
			})
		}
		daemon, err = harness.Start(cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
	fmt.Printf("# runtime %s, containerd in %s\n", harness.Runtime(), cfg.Containerd)
	code := m.Run()
	daemon.Stop()
	os.Exit(code)
}

// old says that containerd is 1.7, whose CRI has less.
func old() bool { return strings.Contains(daemon.Containerd, "containerd-1.") }

// start begins a test with a pod, not yet run.
func start(t *testing.T) *harness.Pod {
	t.Helper()
	return harness.New(t, daemon).NewPod()
}
