// Command containerd-shim-null-v1 is the shim that does nothing well.
//
// It answers containerd's shim protocol as any Go shim does that stands on
// containerd's own helper library, and in place of a container it starts a
// bare process: no namespace, no cgroup, no mount, no root file system. What
// containerd takes with this shim is containerd's own share (and that of two
// starts of a Go program); hack/bench subtracts it from what the real ones
// take. It isolates nothing and is good for nothing else.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

const runtimeName = "io.containerd.null.v1"

func main() {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			pub, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			sd, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			return newService(ic.Context, pub.(shim.Publisher), sd.(shutdown.Service)), nil
		},
	})
	// os/exec waits for the processes, so the library must not reap them.
	shim.RunShim(context.Background(), manager{}, func(c *shim.Config) {
		c.NoReaper = true
		c.NoSubreaper = true
	})
}

type manager struct{}

func (manager) Name() string { return runtimeName }

// Start finds or starts the shim of the group, in the way of runc's.
func (manager) Start(ctx context.Context, params *bootapi.BootstrapParams) (_ *bootapi.BootstrapResult, err error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	group, err := groupOf(params.GetInstanceID())
	if err != nil {
		return nil, err
	}
	dir := params.GetSocketDir()
	if dir == "" {
		dir = "/run/containerd/s"
	}
	address, err := shim.CreateSocketAddress(ctx, dir, params.GetContainerdGrpcAddress(), group, false)
	if err != nil {
		return nil, err
	}
	result := &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: address}
	socket, err := shim.NewSocket(address)
	if err != nil {
		if !shim.SocketEaddrinuse(err) {
			return nil, fmt.Errorf("create shim socket: %w", err)
		}
		if shim.CanConnect(address) {
			return result, nil
		}
		if err := shim.RemoveSocket(address); err != nil {
			return nil, fmt.Errorf("remove dead shim's socket: %w", err)
		}
		if socket, err = shim.NewSocket(address); err != nil {
			return nil, fmt.Errorf("create shim socket again: %w", err)
		}
	}
	defer func() {
		if err != nil {
			socket.Close()
			_ = shim.RemoveSocket(address)
		}
	}()
	file, err := socket.File()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-namespace", ns, "-id", params.GetInstanceID(), "-address", params.GetContainerdGrpcAddress())
	cmd.Env = append(os.Environ(), "GOMAXPROCS=4")
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err := shim.AdjustOOMScore(cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
		return nil, err
	}
	return result, nil
}

// groupOf tells which shim serves the bundle in the current directory.
func groupOf(id string) (string, error) {
	data, err := os.ReadFile("config.json")
	if err != nil {
		return "", err
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return "", err
	}
	for _, key := range []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"} {
		if group, ok := spec.Annotations[key]; ok {
			return group, nil
		}
	}
	return id, nil
}

// Stop cleans up after a dead shim. There is nothing on the host to clean.
func (manager) Stop(context.Context, string) (shim.StopStatus, error) {
	return shim.StopStatus{ExitStatus: 128 + int(syscall.SIGKILL), ExitedAt: time.Now()}, nil
}

func (manager) Info(_ context.Context, options io.Reader) (*types.RuntimeInfo, error) {
	if _, err := io.Copy(io.Discard, options); err != nil && !errors.Is(err, os.ErrClosed) {
		return nil, err
	}
	return &types.RuntimeInfo{Name: runtimeName}, nil
}
