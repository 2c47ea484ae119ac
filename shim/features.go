package shim

import (
	"encoding/json"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/rsys-io/rsys/container"
	"github.com/rsys-io/rsys/oci"
)

// featuresAny is what the runtime can do here, as containerd and Kubernetes read it.
func featuresAny() (*anypb.Any, error) {
	data, err := json.Marshal(oci.Features(container.Host()))
	if err != nil {
		return nil, err
	}
	// The URL is the one under which containerd has registered the type.
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/features/Features", Value: data}, nil
}
