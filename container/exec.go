package container

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/namespaces"
	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys"
)

func (c *Container) exec(ctx context.Context, spec *specs.Process, stdio Stdio) (*Process, error) {
	req := request(stdio)
	req.ID, req.Bundle, req.Seccomp, req.Born = c.id, c.bundle, c.seccomp, bornUnprivileged
	plan, err := oci.CompileExec(c.spec, spec, req, thisHost())
	if err != nil {
		return nil, err
	}
	p := newProcess(c, &run{plan: plan, injection: injection(c.spec, "exec")}, spec)
	p.Warnings = plan.Warnings
	if p.stdio, err = stdio.copy(); err != nil {
		return nil, err
	}
	return p, nil
}

// spawn clones an exec'd process, and takes it to where its program is known to be there.
func (p *processState) spawn(ctx context.Context, r *run) error {
	defer p.stdio.close()
	c := p.container
	r.shim = func(ctx context.Context, r *run, s *oci.Step) error {
		switch s.Name {
		case oci.CloneChild:
			return p.cloneExec(ctx, r)
		case oci.SendListener:
			return c.sendListener(ctx, r, s, specs.StateRunning)
		}
		return commonStep(ctx, r, s, c.cgroup, p.stdio)
	}
	if err := r.through(ctx, r.phase(oci.Start)); err != nil {
		return err
	}
	pty, err := r.terminal(ctx)
	if err != nil {
		return fmt.Errorf("process.terminal: %w", err)
	}
	p.mu.Lock()
	p.pty = pty
	p.mu.Unlock()
	if r.plan.Birth < 0 {
		p.adopt(r.task.Child)
	}
	return nil
}

func (p *processState) cloneExec(ctx context.Context, r *run) (err error) {
	var task *rsys.Task
	if r.plan.Birth < 0 {
		task, err = p.container.fromJoiner(ctx, (*namespaces.Joiner).Insider)
	} else if task = p.ready.take(ctx); task == nil {
		task, err = p.container.outsider(ctx)
	}
	if err != nil {
		return err
	}
	r.cloned(task)
	return nil
}

func (c *Container) outsider(ctx context.Context) (*rsys.Task, error) {
	return c.fromJoiner(ctx, (*namespaces.Joiner).Outsider)
}

func (c *Container) fromJoiner(ctx context.Context, spawn func(*namespaces.Joiner, context.Context, *os.File) (*rsys.Task, error)) (*rsys.Task, error) {
	joiner, err := c.keptJoiner(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := c.cgroupDir()
	if err != nil {
		return nil, err
	}
	if dir != nil {
		defer dir.Close()
	}
	return spawn(joiner, ctx, dir)
}

// keptJoiner is the container's joiner, made at its first exec and again if it was killed.
func (c *Container) keptJoiner(ctx context.Context) (*namespaces.Joiner, error) {
	c.joinerMu.Lock()
	defer c.joinerMu.Unlock()
	if c.ended {
		return nil, fmt.Errorf("container has stopped: %w", errdefs.ErrFailedPrecondition)
	}
	if c.joiner != nil && c.joiner.Alive() {
		return c.joiner, nil
	}
	stub, err := c.runtime.ground(ctx)
	if err != nil {
		return nil, err
	}
	c.joiner, err = namespaces.JoinProcess(ctx, stub.Task, c.Init.child, c.namespaces(), c.isolation)
	return c.joiner, err
}

// dropJoiner ends the joiner and what was cloned from it and never used. They hold the container's namespaces.
func (c *Container) dropJoiner() {
	c.joinerMu.Lock()
	c.ended = true
	c.joinerMu.Unlock()
	c.restJoiner()
}

// restJoiner ends what of ours is in the container's namespaces, until the next exec.
func (c *Container) restJoiner() {
	c.dropping.Lock()
	defer c.dropping.Unlock()
	c.joinerMu.Lock()
	joiner, pending := c.joiner, slices.Collect(maps.Keys(c.pending))
	c.joiner = nil
	c.joinerMu.Unlock()
	for _, r := range pending {
		r.Close()
	}
	if joiner != nil {
		ctx, cancel := context.WithTimeout(context.Background(), undoTime)
		defer cancel()
		joiner.Close(ctx)
	}
}

// namespaces are the flags of those that the container does not have in common with us.
func (c *Container) namespaces() uint64 {
	var flags uint64
	if c.spec.Linux == nil {
		return 0
	}
	for _, ns := range c.spec.Linux.Namespaces {
		flags |= namespaces.Flag(string(ns.Type))
	}
	if c.timed {
		flags |= unix.CLONE_NEWTIME
	}
	return flags
}
