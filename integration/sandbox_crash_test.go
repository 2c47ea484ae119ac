package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/rsys-io/rsys/integration/harness"
)

// containerd is killed at some moment of a sandbox's creation, start and stop. When it is back, either it knows the
// sandbox, and its shutdown works, or there is nothing of it.
func TestContainerdIsKilledWhileASandboxIsMade(t *testing.T) {
	e := startSandboxes(t)
	config, net := podConfig(e), netns(e)
	known := 0
	for i := range 10 {
		id := fmt.Sprintf("crash%d-%d", i, time.Now().UnixNano())
		info := sandbox.Sandbox{ID: id, Sandboxer: "shim", Runtime: sandbox.RuntimeOpts{Name: harness.Runtime()}}
		_, err := e.Client.SandboxStore().Create(e.Ctx, info)
		e.Must(err, "store the sandbox")
		done := make(chan error, 1)
		go func(ctrl sandbox.Controller) {
			err := ctrl.Create(e.Ctx, info, sandbox.WithOptions(config), sandbox.WithNetNSPath(net))
			if err == nil {
				_, err = ctrl.Start(e.Ctx, id)
			}
			if err == nil {
				err = ctrl.Stop(e.Ctx, id)
			}
			done <- err
		}(e.Client.SandboxController("shim"))
		time.Sleep(time.Duration(10+20*i) * time.Millisecond)
		e.Daemon.Kill()
		<-done
		e.Must(e.Daemon.Run(), "containerd again")
		ctrl := e.Client.SandboxController("shim")
		if st, err := ctrl.Status(e.Ctx, id, false); err == nil && st.State != "" {
			known++
		}
		_ = ctrl.Shutdown(e.Ctx, id) // an error if there is no shim
		e.Must(e.Client.SandboxStore().Delete(e.Ctx, id), "forget the sandbox")
		e.Eventually(fmt.Sprintf("no shim is left after %d ms", 10+20*i), func() bool { return len(shims(e)) == 0 })
	}
	// A containerd that is killed while it removes a bundle, which it has renamed for that, never comes back to it.
	bundles, _ := filepath.Glob(filepath.Join(e.State, "state/io.containerd.sandbox.controller.v1.shim", e.Namespace, ".crash*"))
	for _, dir := range bundles {
		if _, err := os.Lstat(filepath.Join(dir, "pod")); err == nil {
			t.Errorf("the shim has left its files in %s", dir)
		}
		e.Must(os.RemoveAll(dir), "remove what containerd left")
	}
	t.Logf("%d of 10 sandboxes were known after the restart", known)
}
