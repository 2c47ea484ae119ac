// Package kubelet has tests of the shim under a kubelet: one that runs by itself, without a cluster, and has its pods from files (static
// pods), as those of a control plane are. containerd's default runtime is ours, with a pause container and then without.
//
// RSYS_RUNTIME=io.containerd.runc.v2 compares with runc.
package kubelet

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/integration/harness"
)

var (
	daemon *harness.Daemon
	node   *kubelet
)

func TestMain(m *testing.M) {
	harness.Isolate(unix.CLONE_NEWNET)
	for _, h := range []harness.Handler{
		{Name: "rsys", Type: harness.Runtime()},
		{Name: "pauseless", Type: harness.Runtime(), TOML: harness.Pauseless},
	} {
		if h.Name == "pauseless" && peer() {
			fmt.Println("# runc's shim has no sandbox service")
			continue
		}
		if code, err := run(m, h); code != 0 {
			fmt.Fprintln(os.Stderr, "kubelet:", h.Name, err)
			os.Exit(code)
		}
	}
}

func peer() bool { return harness.Runtime() != "io.containerd.rsys.v1" }

// run runs the tests with a runtime that all pods have: a RuntimeClass is a cluster's.
func run(m *testing.M, handler harness.Handler) (int, error) {
	cfg, err := harness.FromEnv()
	if err != nil {
		return 1, err
	}
	cfg.CRI = &harness.CRI{Handlers: []harness.Handler{handler}}
	if daemon, err = harness.Start(cfg); err != nil {
		return 1, err
	}
	defer daemon.Stop()
	if node, err = startKubelet(daemon); err != nil {
		return 1, err
	}
	defer node.stop()
	fmt.Printf("# runtime %s, %s, containerd in %s, %s\n", harness.Runtime(), handler.Name, cfg.Containerd, node.version())
	return m.Run(), nil
}
