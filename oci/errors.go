package oci

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// invalid is an error of the config: field is the path of what is wrong.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// notYet is the error for a field that the specification has and we have not.
func notYet(field string) error {
	return fmt.Errorf("%s: not supported by this runtime: %w", field, errdefs.ErrNotImplemented)
}
