package oci

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
)

func validateRdt(r *specs.LinuxIntelRdt) error {
	if r == nil {
		return nil
	}
	const field = "linux.intelRdt."
	if r.ClosID != "/" && (r.ClosID == "." || r.ClosID == ".." || len(r.ClosID) > 255 || strings.ContainsAny(r.ClosID, "/\x00")) {
		return invalid(field+"closID", "%q is not the name of a class", r.ClosID)
	}
	if r.MemBwSchema != "" && !strings.HasPrefix(r.MemBwSchema, "MB:") {
		return invalid(field+"memBwSchema", "%q does not begin with MB:", r.MemBwSchema)
	}
	for _, f := range [...][2]string{{"l3CacheSchema", r.L3CacheSchema}, {"memBwSchema", r.MemBwSchema}, {"schemata", strings.Join(r.Schemata, "")}} {
		if strings.ContainsAny(f[1], "\n\x00") {
			return invalid(field+f[0], "with a line break in it")
		}
	}
	return nil
}

func (c *compiler) checkRdt() error {
	if c.spec.Linux.IntelRdt != nil && !c.host.Resctrl {
		return fmt.Errorf("linux.intelRdt: no resctrl file system is mounted on /sys/fs/resctrl: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// RdtClass is the container's class of service, and its directory in the resctrl file system; ours says that it ends with the
// container. config-linux.md of the runtime specification, "IntelRdt".
func RdtClass(r *specs.LinuxIntelRdt, id string) (class string, ours bool) {
	switch r.ClosID {
	case "":
		return id, true
	case "/":
		return "", false
	}
	return r.ClosID, false
}

// rdt puts the child into its class, and its monitoring group. Who is cloned of the child is in there too.
func (c *compiler) rdt() {
	r := c.spec.Linux.IntelRdt
	if r == nil {
		return
	}
	class, ours := RdtClass(r, c.req.ID)
	c.at("linux.intelRdt", class)
	monitor := ""
	if r.EnableMonitoring {
		monitor = c.req.ID
	}
	if !c.exec {
		var schemata strings.Builder
		for _, s := range append([]string{r.L3CacheSchema, r.MemBwSchema}, r.Schemata...) {
			if s != "" {
				schemata.WriteString(s + "\n")
			}
		}
		// A class with nothing to be set must be there already.
		create := 0
		if ours || schemata.Len() > 0 {
			create = 1
		}
		c.shim(RdtCreate, call.String(class), call.Int(create), call.String(schemata.String()), call.String(monitor))
	}
	c.shim(RdtJoin, call.String(class), call.String(monitor))
}
