package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rsys-io/rsys/oci"
)

// A resctrl is a mounted resctrl file system: Documentation/filesystems/resctrl.rst of the kernel.
type resctrl string

const hostResctrl resctrl = "/sys/fs/resctrl"

func (r resctrl) monitor(class, name string) string {
	return filepath.Join(string(r), class, "mon_groups", name)
}

// create makes a class, with its schemata, and a monitoring group in it.
func (r resctrl) create(class string, may bool, schemata, monitor string) error {
	dir := filepath.Join(string(r), class)
	if may {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	} else if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("a class without schemata must be there already: %w", err)
	}
	if schemata != "" {
		if err := os.WriteFile(filepath.Join(dir, "schemata"), []byte(schemata), 0o600); err != nil {
			return r.status(err)
		}
	}
	if monitor != "" {
		if err := os.Mkdir(r.monitor(class, monitor), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return r.status(err)
		}
	}
	return nil
}

func (r resctrl) join(class, monitor string, pid int) error {
	dirs := []string{filepath.Join(string(r), class)}
	if monitor != "" {
		dirs = append(dirs, r.monitor(class, monitor))
	}
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
			return r.status(err)
		}
	}
	return nil
}

// status adds what the kernel has to say of an error.
func (r resctrl) status(err error) error {
	text, readErr := os.ReadFile(filepath.Join(string(r), "info", "last_cmd_status"))
	if readErr != nil || len(text) < 2 || string(text) == "ok\n" {
		return err
	}
	return fmt.Errorf("%w (%s)", err, text[:len(text)-1])
}

// remove removes what the container has of its own: what is in the class goes to the root of it all.
func (r resctrl) remove(spec *specs.Spec, id string) error {
	if spec.Linux == nil || spec.Linux.IntelRdt == nil {
		return nil
	}
	class, ours := oci.RdtClass(spec.Linux.IntelRdt, id)
	dir := ""
	switch {
	case ours:
		dir = filepath.Join(string(r), class)
	case spec.Linux.IntelRdt.EnableMonitoring:
		dir = r.monitor(class, id)
	default:
		return nil
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("linux.intelRdt: %w", err)
	}
	return nil
}
