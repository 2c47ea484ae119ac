package shim

import (
	"encoding/json"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/types/known/anypb"
)

// featuresAny is what the runtime can do, as Kubernetes reads it. Nothing is listed that has
// not been tried.
func featuresAny() (*anypb.Any, error) {
	yes := true
	f := features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Linux: &features.Linux{
			Namespaces: []string{"cgroup", "ipc", "mount", "network", "pid", "uts"},
			Cgroup:     &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes},
			Seccomp:    &features.Seccomp{Enabled: &yes},
		},
	}
	data, err := json.Marshal(&f)
	if err != nil {
		return nil, err
	}
	// The URL is the one under which containerd has registered the type.
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/features/Features", Value: data}, nil
}
