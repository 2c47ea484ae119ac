package shim

import (
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// printPlan is the plan verb: plan BUNDLE [--json].
func printPlan(args []string, out io.Writer) error {
	return fmt.Errorf("plan: %w", errdefs.ErrNotImplemented)
}
