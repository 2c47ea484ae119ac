// Package integration has the tests of the shim under a real containerd.
//
// hack/test runs them against each containerd that is supported. To run some
// by hand, or against another runtime:
//
//	RSYS_CONTAINERD=1.7 RSYS_RUNTIME=io.containerd.runc.v2 go test -run Exec ./...
//
// Every test is checked for what it leaves behind, by package harness.
package integration

import (
	"fmt"
	"os"
	"testing"

	"github.com/rsys-io/rsys/integration/harness"
)

var daemon *harness.Daemon

func TestMain(m *testing.M) {
	harness.Isolate()
	cfg, err := harness.FromEnv()
	if err == nil {
		daemon, err = harness.Start(cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		os.Exit(1)
	}
	fmt.Printf("# runtime %s, containerd in %s\n", harness.Runtime(), cfg.Containerd)
	code := m.Run()
	daemon.Stop()
	os.Exit(code)
}

// start begins a test.
func start(t *testing.T) *harness.Env {
	t.Helper()
	return harness.New(t, daemon)
}

// peer tells that the runtime under test is not ours: a few tests say more of
// ours than others keep.
func peer() bool { return harness.Runtime() != "io.containerd.rsys.v1" }
