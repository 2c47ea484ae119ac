package cgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rsys-io/rsys/cgroup/systemd"
)

const (
	// startTime bounds what systemd takes to make a scope; a host that boots may need long.
	startTime = 30 * time.Second
	// stopTime leaves the delete verb, which has less than five seconds, time to remove what systemd does not.
	stopTime = 2500 * time.Millisecond
)

// A scope is a cgroup that systemd makes.
type scope struct {
	unit  systemd.Unit
	asked []systemd.Property // by annotations
	late  []Setting          // what can't be set while a holder is in it
	idle  bool               // systemd knows of cpu.idle
}

func newScope(cfg Config) (*scope, error) {
	unit, err := systemd.ParsePath(cfg.Path, cfg.ID)
	if err != nil {
		return nil, fmt.Errorf("linux.cgroupsPath: %w", err)
	}
	asked, err := systemd.Annotations(cfg.Annotations)
	if err != nil {
		return nil, err
	}
	return &scope{unit: unit, asked: asked}, nil
}

// NeedsHolder says that systemd makes this cgroup, and that Create is to be given a process.
func (c *Cgroup) NeedsHolder() bool { return c.scope != nil }

// start has systemd make the scope with its limits and this process in it: there is no scope without one, and one
// that becomes empty ends.
func (c *Cgroup) start(ctx context.Context, holder int) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, errors.New("the scope was not made in time"))
	defer cancel()
	for i, s := range c.settings {
		// With the holder one process more is in it, and the container's is born into it on v2.
		if s.File == "pids.max" && (s.Value == "1" || strings.TrimSpace(s.Value) == "0") {
			c.scope.late = append(c.scope.late, s)
			c.settings[i].Value = "2"
		}
	}
	io := "IOAccounting"
	if !c.layout.v2 {
		io = "BlockIOAccounting"
	}
	u := c.scope.unit
	props := []systemd.Property{
		systemd.Prop("Description", "container "+u.Name),
		systemd.Prop("Slice", u.Slice),
		systemd.Prop("Delegate", true),
		systemd.Prop("PIDs", []uint32{uint32(holder)}),
		systemd.Prop("MemoryAccounting", true), systemd.Prop("CPUAccounting", true), systemd.Prop(io, true), systemd.Prop("TasksAccounting", true),
		systemd.Prop("DefaultDependencies", false),
		// When its last process is gone nothing of it stays, whatever became of that and of us.
		systemd.Prop("CollectMode", "inactive-or-failed"),
	}
	props = append(props, c.scope.asked...)
	props = append(props, c.devices.properties(c.layout.v2)...)
	if err := c.scope.learn(ctx, c.settings); err != nil {
		return err
	}
	limits, err := c.properties(c.settings)
	if err != nil {
		return err
	}
	props = append(props, limits...)
	policy, err := oomPolicy(ctx, c.resources)
	if err != nil {
		return err
	}
	if err := u.Start(ctx, append(props, policy...)); err != nil {
		// Nothing is stopped: what is there may be another's. Ours would end with the holder.
		return fmt.Errorf("linux.cgroupsPath: start %s in %s: %w", u.Name, u.Slice, err)
	}
	if err := c.holds(holder); err != nil {
		_, stopErr := c.stop()
		return errors.Join(err, stopErr)
	}
	return nil
}

// learn asks what must be known of systemd for these settings.
func (s *scope) learn(ctx context.Context, list []Setting) error {
	if s.idle || !slices.ContainsFunc(list, isIdle) {
		return nil
	}
	v, err := systemd.Version(ctx)
	s.idle = v >= 252
	return err
}

// oomPolicy is memory.oom.group as systemd sees it from version 253 on: it can only be said when a scope is made.
func oomPolicy(ctx context.Context, r *specs.LinuxResources) ([]systemd.Property, error) {
	if r == nil {
		return nil, nil
	}
	policy := map[string]string{"0": "continue", "1": "kill"}[strings.TrimSpace(r.Unified["memory.oom.group"])]
	if policy == "" {
		return nil, nil
	}
	if v, err := systemd.Version(ctx); err != nil || v < 253 {
		return nil, err
	}
	return []systemd.Property{systemd.Prop("OOMPolicy", policy)}, nil
}

// holds sees that the process is where we take the scope to be.
func (c *Cgroup) holds(holder int) error {
	in, err := ownCgroups("/proc/" + strconv.Itoa(holder) + "/cgroup")
	if err != nil {
		return fmt.Errorf("linux.cgroupsPath: the process that holds the scope: %w", err)
	}
	want := c.scope.unit.Path()
	for _, h := range in {
		if (h.v2 && c.layout.v2 || h.has("name=systemd")) && h.own != want {
			return fmt.Errorf("linux.cgroupsPath: systemd put %s at %q, not at %q", c.scope.unit.Name, h.own, want)
		}
	}
	return nil
}

// Settle is called when a process of the container's is in the cgroup, and the holder is gone. It sets what could not be set before.
func (c *Cgroup) Settle(ctx context.Context) error {
	if c.scope == nil || len(c.scope.late) == 0 {
		return nil
	}
	late := c.scope.late
	c.scope.late = nil
	if err := c.tell(ctx, late); err != nil {
		return err
	}
	return c.apply(late, nil)
}

// tell has systemd know of settings.
func (c *Cgroup) tell(ctx context.Context, list []Setting) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, errors.New("the properties were not set in time"))
	defer cancel()
	if err := c.scope.learn(ctx, list); err != nil {
		return err
	}
	props, err := c.properties(list)
	if err != nil || len(props) == 0 {
		return err
	}
	set := func() error {
		if err := c.scope.unit.Set(ctx, props); err != nil {
			return fmt.Errorf("set properties of %s: %w", c.scope.unit.Name, err)
		}
		return nil
	}
	if c.layout.v2 {
		return set()
	}
	// On v1 systemd denies all devices for a moment when it writes to a cgroup's files. Nobody may see that.
	frozen, err := c.Frozen()
	if err != nil {
		return err
	}
	if !frozen {
		if err := c.Freeze(ctx); err != nil {
			return err
		}
		defer func() { _ = c.Thaw(context.WithoutCancel(ctx)) }()
	}
	if err := set(); err != nil {
		return err
	}
	return c.devices.set(c.dir("devices")) // what systemd can't say of them
}

// updateScope is Update where systemd makes the cgroup: it is told first, since it writes to the files as well.
func (c *Cgroup) updateScope(list []Setting) error {
	ctx := context.Background()
	roundQuotas(list)
	before := make([]Setting, 0, len(list))
	for _, s := range list {
		old, err := read(c.dir(s.Controller), s.File)
		if old = strings.TrimSpace(old); err == nil && old != "" && !strings.Contains(old, "\n") {
			s.Value = old
			before = append(before, s)
		}
	}
	if err := c.tell(ctx, list); err != nil {
		return err
	}
	if err := c.apply(list, nil); err != nil {
		undo := c.tell(ctx, before)
		for i := len(before) - 1; i >= 0; i-- {
			_ = c.set(before[i], nil)
		}
		return errors.Join(err, undo)
	}
	return nil
}

// stop ends the unit, and says whether it has ended. That nobody is there to be told, or that it takes long, is no error: nothing runs in it
// any more, and a scope without processes ends by itself. It does not if its cgroup is removed while systemd is busy with a reload: after one
// systemd looks which scopes are empty, which it can't see of that, and makes the cgroups of all units again.
func (c *Cgroup) stop() (ended bool, err error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), stopTime, errors.New("the scope was not stopped in time"))
	defer cancel()
	if systemd.Running() != nil {
		return true, nil
	}
	err = c.scope.unit.Stop(ctx)
	if err == nil {
		return true, nil
	}
	if ctx.Err() != nil || errors.Is(err, errdefs.ErrUnavailable) {
		return false, nil
	}
	return false, fmt.Errorf("stop %s: %w", c.scope.unit.Name, err)
}

// watched says that systemd learns from this hierarchy that a scope has become empty.
func (h *hierarchy) watched() bool { return h.v2 || h.has("name=systemd") }
