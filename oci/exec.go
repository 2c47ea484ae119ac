package oci

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// CompileExec makes the Plan of a process in a container that runs. The child of it is in the container's
// namespaces already, its root and working directory are the container's root; with [Request.Born] it is outside
// the PID namespace that its children are born into.
func CompileExec(spec *specs.Spec, proc *specs.Process, req Request, host Host) (*Plan, error) {
	if spec == nil || proc == nil {
		return nil, invalid("process", "missing")
	}
	if err := validateEnv(proc.Env); err != nil {
		return nil, err
	}
	return compileExec(spec, proc, req, host, false)
}

func compileExec(spec *specs.Spec, proc *specs.Process, req Request, host Host, ownEnv bool) (*Plan, error) {
	proc = processOf(spec, proc)
	if err := checkID(req.ID); err != nil {
		return nil, err
	}
	if err := validateProcess(proc); err != nil {
		return nil, err
	}
	spec = withLinux(spec)
	if err := validateMapped(spec, proc); err != nil {
		return nil, err
	}
	c := &compiler{builder: newBuilder(128), spec: spec, proc: proc, req: req, host: host, exec: true}
	c.OwnEnv = ownEnv
	if err := c.filter(); err != nil {
		return nil, err
	}
	if err := c.checkLabels(); err != nil {
		return nil, err
	}
	if err := c.checkRdt(); err != nil {
		return nil, err
	}
	c.place = c.placeOfBirth(c.Seccomp)
	if err := c.birth(); err != nil {
		return nil, err
	}
	c.affinityAfter()
	c.at("process", "")
	c.session()
	if proc.Terminal {
		c.terminal()
	}
	c.ownNull()
	c.readPasswd()
	c.lookup()
	if err := c.start(); err != nil {
		return nil, err
	}
	return c.Plan, nil
}
