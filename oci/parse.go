package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// MaxConfig is the size of the largest config.json that is read. The largest of real ones, a
// pod's with a hundred volumes, has some hundred kB.
const MaxConfig = 10 << 20

// Parse reads a config.json. Properties that the specification does not know are ignored, as it asks for.
func Parse(config []byte) (*specs.Spec, error) {
	if len(config) > MaxConfig {
		return nil, invalid("config.json", "%d bytes are more than %d", len(config), MaxConfig)
	}
	if len(bytes.TrimSpace(config)) == 0 {
		return nil, invalid("config.json", "empty")
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(config, spec); err != nil {
		var wrong *json.UnmarshalTypeError
		var syntax *json.SyntaxError
		switch {
		case errors.As(err, &wrong) && wrong.Field != "":
			return nil, invalid(wrong.Field, "a JSON %s where %s is wanted, at byte %d", wrong.Value, kindName(wrong), wrong.Offset)
		case errors.As(err, &wrong):
			return nil, invalid("config.json", "a JSON %s where an object is wanted", wrong.Value)
		case errors.As(err, &syntax):
			return nil, invalid("config.json", "%v, at byte %d of %d", err, syntax.Offset, len(config))
		}
		return nil, fmt.Errorf("config.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return spec, nil
}

func kindName(e *json.UnmarshalTypeError) string {
	switch k := e.Type.Kind().String(); k {
	case "struct", "map":
		return "an object"
	case "slice":
		return "an array"
	case "bool":
		return "true or false"
	default:
		return e.Type.Kind().String()
	}
}
