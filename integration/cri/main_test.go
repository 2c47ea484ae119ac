// Package cri has the tests of the shim under containerd's CRI plugin, as a
// kubelet uses it: pods with a network of CNI's plugins.
//
// As those of package integration they run under each containerd, check what is left
// behind, and heed RSYS_RUNTIME.
package cri

import (
	"fmt"
	"os"
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
		if !cfg.Old() {
			cfg.CRI.Handlers = append(cfg.CRI.Handlers, harness.Handler{
				Name: pauseless, Type: harness.Runtime(), TOML: harness.Pauseless,
			}, harness.Handler{
				Name: streamed, Type: harness.Runtime(), TOML: harness.Streamed,
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

// start begins a test with a pod, not yet run.
func start(t *testing.T) *harness.Pod {
	t.Helper()
	return harness.New(t, daemon).NewPod()
}
