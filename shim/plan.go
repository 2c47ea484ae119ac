package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rsys-io/rsys/cgroup"
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
	plan, err := oci.Compile(spec, req, thisHost())
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

// thisHost is what compiling must know of the host.
func thisHost() oci.Host {
	list, v2 := cgroup.Hierarchies()
	h := oci.Host{CgroupV2: v2}
	if !v2 {
		for _, c := range list {
			h.CgroupV1 = append(h.CgroupV1, oci.Hierarchy{Mountpoint: c.Mountpoint, Controllers: c.Controllers})
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 8); err == nil {
			h.LastCap = uint(n)
		}
	}
	_, err := os.Stat("/proc/kcore")
	h.Kcore = err == nil
	return h
}
