package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/rsys-io/rsys/container"
	"github.com/rsys-io/rsys/oci"
)

// printPlan is the plan verb: plan BUNDLE [--json]. It shows what a container of the bundle would do
// on this host, and does none of it. What containerd would mount at its root is not in a bundle.
func printPlan(args []string, out io.Writer) error {
	bundle, asJSON := "", false
	for _, arg := range args {
		switch {
		case arg == "--json" || arg == "-json":
			asJSON = true
		case strings.HasPrefix(arg, "-") || bundle != "":
			return errors.New("usage: plan BUNDLE [--json]")
		default:
			bundle = arg
		}
	}
	if bundle == "" {
		return errors.New("usage: plan BUNDLE [--json]")
	}
	bundle, err := filepath.Abs(bundle)
	if err != nil {
		return err
	}
	spec, err := readSpec(bundle)
	if err != nil {
		return err
	}
	req := oci.Request{ID: filepath.Base(bundle), Bundle: bundle}
	for i := range req.Fifos {
		req.Fifos[i] = spec.Process == nil || !spec.Process.Terminal
	}
	plan, err := oci.Compile(spec, req, container.Host())
	if err != nil {
		return err
	}
	if !asJSON {
		return plan.Print(out)
	}
	data, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the plan: %w", err)
	}
	_, err = out.Write(append(data, '\n'))
	return err
}
