// Package cgroup makes, limits, watches and removes the cgroup of one container, on cgroup v1, v2, and hybrid hosts.
//
// What a config asks for is compiled to data, [Settings] and [DeviceRules], before anything is done; what is done is as near to
// the bare system calls as it gets. The package has no package state that is set up at start, because a shim
// process is started twice for each container. docs/decisions/cgroup.md has the numbers, and why it does not stand on
// a library, against which the tests hold it.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/cgroup/systemd"
)

// Config is what a container's config says of its cgroup.
type Config struct {
	Path        string // linux.cgroupsPath as given; "" is "/" and the ID
	ID          string
	Systemd     bool // the runtime option SystemdCgroup: Path is SLICE:PREFIX:NAME; "" is system.slice:rsys:ID. Where systemd is the init such a path is enough
	Resources   *specs.LinuxResources
	Annotations map[string]string // properties of the scope, with Systemd
}

// A Cgroup is the cgroup of one container: a directory in each hierarchy of the host. Its methods may be called at the
// same time, Create and Delete excepted.
type Cgroup struct {
	layout    *layout
	dirs      []string // one for each hierarchy of the layout
	resources *specs.LinuxResources
	settings  []Setting
	devices   *DeviceList
	watches   *watches
	scope     *scope // nil if it is not systemd that makes it
}

// New checks a config against this host. It creates nothing.
func New(cfg Config) (*Cgroup, error) {
	if cfg.Systemd {
		if err := systemd.Running(); err != nil {
			return nil, fmt.Errorf("runtime option SystemdCgroup: %w", err)
		}
	}
	return onHost(cfg)
}

func onHost(cfg Config) (*Cgroup, error) {
	cfg.Systemd = cfg.Systemd || systemdPath(cfg.Path) && systemd.Running() == nil
	l, err := host()
	if err != nil {
		return nil, err
	}
	return newCgroup(cfg, l)
}

// Load is a cgroup that exists, made by an earlier process. The error is fs.ErrNotExist if there is nothing of it.
// The resources do not matter for it.
func Load(cfg Config) (*Cgroup, error) {
	cfg.Resources = nil
	c, err := onHost(cfg)
	if err != nil {
		return nil, err
	}
	for _, dir := range c.dirs {
		if _, err := os.Lstat(dir); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("cgroup: %s: %w", c.dirs[0], fs.ErrNotExist)
}

func newCgroup(cfg Config, l *layout) (*Cgroup, error) {
	if err := Validate(cfg); err != nil {
		return nil, err
	}
	if !l.v2 && cfg.Resources != nil && len(cfg.Resources.Unified) > 0 {
		return nil, &FieldError{"linux.resources.unified", "this host has cgroup v1"}
	}
	c := &Cgroup{layout: l, resources: cfg.Resources, watches: &watches{}}
	var err error
	if c.settings, err = Settings(l.v2, cfg.Resources); err != nil {
		return nil, err
	}
	if c.devices, err = DeviceRules(cfg.Resources); err != nil {
		return nil, err
	}
	path := clean(cfg)
	if cfg.Systemd {
		if c.scope, err = newScope(cfg); err != nil {
			return nil, err
		}
		path = c.scope.unit.Path()
		roundQuotas(c.settings)
	}
	for i := range l.hierarchies {
		c.dirs = append(c.dirs, l.hierarchies[i].resolve(path))
	}
	return c, nil
}

// clean is the path without anything that leads out of the hierarchies.
func clean(cfg Config) string {
	if cfg.Path == "" {
		return "/" + cfg.ID
	}
	if filepath.IsAbs(cfg.Path) {
		return filepath.Clean(cfg.Path)
	}
	return filepath.Clean(filepath.Clean("/" + cfg.Path)[1:])
}

// Create makes the directories and sets the limits. If it fails, what it made is gone, parents included. A cgroup that
// exists is used if nothing is in it. Parents that it made stay after Delete, as runc's do: the first cpuset below
// the root makes the kernel patch its code, the last one undoes that, and either costs all CPUs up to 20 ms.
//
// If the cgroup [Cgroup.NeedsHolder], that is a process which is in it until one of the container's is: a scope of systemd's
// can't be empty. Otherwise it does not matter.
func (c *Cgroup) Create(ctx context.Context, holder int) (err error) {
	var made []string
	if c.scope == nil {
		holder = 0
	} else if err := c.start(ctx, holder); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if c.scope != nil {
				// It kills the holder with what it stops.
				_, stopErr := c.stop()
				err = errors.Join(err, stopErr)
			}
			for i := len(made) - 1; i >= 0; i-- {
				_ = unix.Rmdir(made[i]) // a parent that someone else has come to use stays
			}
		}
	}()
	existed := false
	for i, dir := range c.dirs {
		h, before := &c.layout.hierarchies[i], len(made)
		if c.layout.v2 {
			err = makeUnified(h.dir, dir, &made)
		} else {
			err = makeDir(h.dir, dir, &made)
		}
		if err != nil {
			return fmt.Errorf("linux.cgroupsPath: %w", err)
		}
		if len(made) == before || made[len(made)-1] != dir {
			existed = true
		}
		if h.has("cpuset") {
			cpus, mems := "", ""
			if c.resources != nil && c.resources.CPU != nil {
				cpus, mems = c.resources.CPU.Cpus, c.resources.CPU.Mems
			}
			if err := inheritCpuset(h.dir, dir, cpus, mems); err != nil {
				return err
			}
		}
	}
	if existed {
		if err := c.usable(holder); err != nil {
			return err
		}
	}
	if err := c.apply(c.settings, nil); err != nil {
		return err
	}
	for i, dir := range c.dirs {
		h := &c.layout.hierarchies[i]
		switch {
		case c.layout.v2:
			return c.devices.attach(dir)
		case h.has("devices"):
			return c.devices.set(dir)
		}
	}
	return nil
}

// usable says whether a cgroup that was there before may become a container's.
func (c *Cgroup) usable(holder int) error {
	pids, err := c.Pids()
	if err != nil {
		return err
	}
	pids = slices.DeleteFunc(pids, func(pid int) bool { return pid == holder })
	if len(pids) > 0 {
		return fmt.Errorf("linux.cgroupsPath: %s is in use by processes %v", c.dirs[0], pids)
	}
	frozen, err := c.Frozen()
	if err == nil && frozen {
		return fmt.Errorf("linux.cgroupsPath: %s exists and is frozen", c.dirs[0])
	}
	return err
}

// inheritCpuset gives a v1 cpuset what it needs before a process can be in it: CPUs and memory nodes, its own or the
// parent's. A parent that has none is given them too.
func inheritCpuset(root, dir, cpus, mems string) error {
	for _, x := range []struct{ file, given, field string }{
		{"cpuset.cpus", cpus, "linux.resources.cpu.cpus"}, {"cpuset.mems", mems, "linux.resources.cpu.mems"},
	} {
		if x.given != "" && dir != root {
			// A setting of the container's writes it. Its parent must have some all the same.
			if _, err := cpusetOf(root, filepath.Dir(dir), x.file); err != nil {
				return fmt.Errorf("%s: %w", x.field, err)
			}
			continue
		}
		if _, err := cpusetOf(root, dir, x.file); err != nil {
			return fmt.Errorf("%s: %w", x.field, err)
		}
	}
	return nil
}

func cpusetOf(root, dir, file string) (string, error) {
	v, err := read(dir, file)
	if err != nil || strings.TrimSpace(v) != "" || dir == root {
		return v, err
	}
	if v, err = cpusetOf(root, filepath.Dir(dir), file); err != nil {
		return "", err
	}
	return v, write(dir, file, v)
}

// makeUnified makes a v2 directory, and on the way down gives each parent's controllers to its children. Those that can't be had
// show when a limit needs them. As in makeDir an empty parent may be removed by another; one that is made again must be
// given its controllers again, so it goes down from the root again.
func makeUnified(root, dir string, made *[]string) error {
	rel, err := filepath.Rel(root, dir)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		err := makeUnifiedOnce(root, rel, made)
		if i == 20 || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
}

func makeUnifiedOnce(root, rel string, made *[]string) error {
	cur := root
	for e := range strings.SplitSeq(rel, "/") {
		have, err := read(cur, "cgroup.controllers")
		if err != nil {
			return err
		}
		on, err := read(cur, "cgroup.subtree_control")
		if err != nil {
			return err
		}
		enabled := " " + strings.TrimSpace(on) + " "
		var missing []string
		for ctl := range strings.FieldsSeq(have) {
			if !strings.Contains(enabled, " "+ctl+" ") {
				missing = append(missing, "+"+ctl)
			}
		}
		if len(missing) > 0 && write(cur, "cgroup.subtree_control", strings.Join(missing, " ")) != nil {
			for _, ctl := range missing {
				_ = write(cur, "cgroup.subtree_control", ctl)
			}
		}
		cur += "/" + e
		if err := unix.Mkdir(cur, 0o755); err == nil {
			*made = append(*made, cur)
		} else if err != unix.EEXIST {
			return &os.PathError{Op: "mkdir", Path: cur, Err: err}
		}
	}
	if t, err := read(cur, "cgroup.type"); err == nil && strings.TrimSpace(t) == "domain invalid" {
		return fmt.Errorf("%s: a cgroup below a threaded one can't hold a container", cur)
	}
	return nil
}

// apply writes settings. Each that it replaces is noted in undo, if given.
func (c *Cgroup) apply(list []Setting, undo *[]Setting) error {
	var later []Setting
	for i := 0; i < len(list); i++ {
		err := c.set(list[i], undo)
		if errors.Is(err, unix.EINVAL) && i < len(list)-1 {
			later = append(later, list[i])
			continue
		}
		if err != nil {
			return err
		}
	}
	for _, s := range later {
		if err := c.set(s, undo); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cgroup) set(s Setting, undo *[]Setting) error {
	dir := c.dir(s.Controller)
	if dir == "" {
		if s.Optional {
			return nil
		}
		return &HostError{fmt.Errorf("%s: the %s controller is not mounted on this host (cgroup v1)", s.Field, s.Controller), errdefs.ErrFailedPrecondition}
	}
	var old string
	if undo != nil {
		old, _ = read(dir, s.File)
	}
	err := write(dir, s.File, s.Value)
	switch {
	case err == nil:
		if old = strings.TrimSuffix(old, "\n"); undo != nil && old != "" && !strings.Contains(old, "\n") {
			s.Value = old
			*undo = append(*undo, s)
		}
		return nil
	case errors.Is(err, unix.ENOENT) && s.Else != nil:
		return c.set(*s.Else, undo)
	case errors.Is(err, unix.ENOENT) && s.Optional:
		return nil
	case errors.Is(err, unix.ENOENT) && c.layout.v2:
		have, _ := read(dir, "cgroup.controllers")
		return &HostError{fmt.Errorf("%s: %w (controllers of this cgroup: %q)", s.Field, err, strings.TrimSpace(have)), errdefs.ErrFailedPrecondition}
	case errors.Is(err, unix.EBUSY) && s.File == "memory.limit_in_bytes":
		now, _ := read(dir, "memory.usage_in_bytes")
		peak, _ := read(dir, "memory.max_usage_in_bytes")
		return &HostError{fmt.Errorf("%s: %w (in use: %s, at most: %s)", s.Field, err, strings.TrimSpace(now), strings.TrimSpace(peak)), errdefs.ErrFailedPrecondition}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EBUSY):
		return &HostError{fmt.Errorf("%s: %w", s.Field, err), errdefs.ErrFailedPrecondition}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENODEV):
		return &HostError{fmt.Errorf("%s: %w", s.Field, err), errdefs.ErrInvalidArgument}
	}
	return fmt.Errorf("%s: %w", s.Field, err)
}

// dir is the directory that has a controller's files, or "".
func (c *Cgroup) dir(controller string) string {
	for i, dir := range c.dirs {
		if c.layout.v2 || c.layout.hierarchies[i].has(controller) {
			return dir
		}
	}
	return ""
}

// Join moves a process, all its threads, into the cgroup.
func (c *Cgroup) Join(pid int) error {
	for _, dir := range c.dirs {
		if err := join(dir, pid); err != nil {
			return fmt.Errorf("cgroup: joining: %w", err)
		}
	}
	return nil
}

// JoinFiles opens the files by which a process of one thread joins by itself: it writes "0" to each. That is much cheaper than
// Join: v1 moves the calling thread without stopping every fork on the host. They are opened here because the kernel
// judges a migration by who opened the file. Without v2, the v2 hierarchy's is not among them: for a process
// cloned into [Cgroup.V2Dir]. The caller closes them.
func (c *Cgroup) JoinFiles(v2 bool) (files []*os.File, err error) {
	for i, dir := range c.dirs {
		name := "/tasks"
		if c.layout.hierarchies[i].v2 {
			if !v2 {
				continue
			}
			name = "/cgroup.procs"
		}
		fd, err := retry(func() (int, error) { return unix.Open(dir+name, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0) })
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, fmt.Errorf("cgroup: joining: %w", &os.PathError{Op: "open", Path: dir + name, Err: err})
		}
		files = append(files, os.NewFile(uintptr(fd), dir+name))
	}
	return files, nil
}

// V2Dir is the directory for CLONE_INTO_CGROUP: the whole cgroup on a v2 host, its v2 part on a hybrid one.
func (c *Cgroup) V2Dir() (dir string, ok bool) {
	last := len(c.dirs) - 1
	return c.dirs[last], c.layout.hierarchies[last].v2
}

// Dirs are the directories of the cgroup, one for each hierarchy.
func (c *Cgroup) Dirs() []string { return append([]string(nil), c.dirs...) }

// Pids lists the processes in the cgroup and in those below it.
func (c *Cgroup) Pids() ([]int, error) {
	pids, err := pidsBelow(c.dir("devices"))
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return pids, nil
}

// Update changes limits. What is nil or 0 stays as it is, and so do devices, as with runc. If one can't be set, those set
// before it are put back.
func (c *Cgroup) Update(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	if err := validateResources(r); err != nil {
		return err
	}
	if !c.layout.v2 && len(r.Unified) > 0 {
		return &FieldError{"linux.resources.unified", "this host has cgroup v1"}
	}
	if c.layout.v2 {
		var err error
		if r, err = c.complete(r); err != nil {
			return err
		}
	}
	list, err := Settings(c.layout.v2, r)
	if err != nil {
		return err
	}
	if c.scope != nil {
		return c.updateScope(list)
	}
	var undo []Setting
	if err := c.apply(list, &undo); err != nil {
		for i := len(undo) - 1; i >= 0; i-- {
			_ = c.set(undo[i], nil)
		}
		return err
	}
	return nil
}

// Delete removes the cgroup, also what the container made in it. Nothing may run in it any more; processes that are
// just dying are waited for, for two seconds. What does not exist is no error. A scope that systemd has had no time to end is
// left for it to remove.
func (c *Cgroup) Delete() error {
	var errs []error
	ended := true
	if c.scope != nil {
		var err error
		if ended, err = c.stop(); err != nil {
			errs = append(errs, fmt.Errorf("cgroup: %w", err))
		}
	}
	deadline := time.Now().Add(2 * time.Second)
	for i, dir := range c.dirs {
		remove := removeTree
		if !ended && c.layout.hierarchies[i].watched() {
			remove = emptyTree
		}
		if err := remove(dir, deadline); err != nil {
			errs = append(errs, fmt.Errorf("cgroup: %w", err))
		}
	}
	if errs == nil {
		c.watches.endAll()
	}
	return errors.Join(errs...)
}

// wait polls until done says so, quickly at first.
func wait(ctx context.Context, done func(try int) (bool, error)) error {
	for i, d := 0, 50*time.Microsecond; ; i, d = i+1, min(2*d, 10*time.Millisecond) {
		ok, err := done(i)
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
		}
	}
}
