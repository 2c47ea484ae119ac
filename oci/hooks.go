package oci

import (
	"path"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// HookKind is a list of the config's hooks, by its name there.
type HookKind string

const (
	Prestart        HookKind = "prestart"
	CreateRuntime   HookKind = "createRuntime"
	CreateContainer HookKind = "createContainer"
	StartContainer  HookKind = "startContainer"
	Poststart       HookKind = "poststart"
	Poststop        HookKind = "poststop"
)

// A Hook is a program that a [RunHook] step runs, as config.md of the runtime specification has it under
// "POSIX-platform Hooks".
type Hook struct {
	Kind    HookKind
	Path    string
	Args    []string
	Env     []string // nil: the shim's
	OwnEnv  bool     // Env is the config's
	Timeout time.Duration
	Status  specs.ContainerState // what the state on its standard input says

	// Steps are what a task in the container's namespaces does to become a createContainer hook, its standard
	// files being in place. A startContainer hook is a process of the container, executed in it like others: [CompileHook].
	Steps []call.Step
}

// hookLists are the config's hooks, in the order of the lifecycle.
func hookLists(h *specs.Hooks) []hookList {
	if h == nil {
		return nil
	}
	return []hookList{
		//lint:ignore SA1019 deprecated is not gone
		{Prestart, h.Prestart, specs.StateCreating},
		{CreateRuntime, h.CreateRuntime, specs.StateCreating},
		{CreateContainer, h.CreateContainer, specs.StateCreating},
		{StartContainer, h.StartContainer, specs.StateCreated},
		{Poststart, h.Poststart, specs.StateRunning},
		{Poststop, h.Poststop, specs.StateStopped},
	}
}

type hookList struct {
	kind   HookKind
	hooks  []specs.Hook
	status specs.ContainerState
}

func validateHooks(h *specs.Hooks) error {
	for _, l := range hookLists(h) {
		for i := range l.hooks {
			if err := validateHook(&l.hooks[i], item("hooks."+string(l.kind), i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func validateHook(h *specs.Hook, field string) error {
	if !isPath(h.Path) || !path.IsAbs(h.Path) {
		return invalid(field+".path", "%q is not an absolute path", h.Path)
	}
	if h.Timeout != nil && (*h.Timeout <= 0 || *h.Timeout > maxTimeout) {
		return invalid(field+".timeout", "%d is not a number of seconds to wait", *h.Timeout)
	}
	for i, a := range h.Args {
		if strings.IndexByte(a, 0) >= 0 {
			return invalid(item(field+".args", i), "with a zero byte in it")
		}
	}
	for i, e := range h.Env {
		if strings.IndexByte(e, 0) >= 0 {
			return invalid(item(field+".env", i), "with a zero byte in it")
		}
	}
	return nil
}

// maxTimeout is far more than anyone waits and fits a time.Duration.
const maxTimeout = 1 << 31

// hooks has those of the given kinds run.
func (c *compiler) hooks(kinds ...HookKind) {
	for _, kind := range kinds {
		for _, l := range hookLists(c.spec.Hooks) {
			if l.kind != kind {
				continue
			}
			for i := range l.hooks {
				c.hook(&l, i)
			}
		}
	}
}

func (c *compiler) hook(l *hookList, i int) {
	s := &l.hooks[i]
	h := Hook{Kind: l.kind, Path: s.Path, Args: s.Args, Env: s.Env, Status: l.status}
	if len(h.Args) == 0 {
		h.Args = []string{s.Path}
	}
	if s.Timeout != nil {
		h.Timeout = time.Duration(*s.Timeout) * time.Second
	}
	// Where the specification is silent on what an empty environment is, do what runc does: hooks of the runtime
	// get its own, startContainer hooks the process's, and createContainer hooks none.
	env := call.Null
	switch {
	case len(h.Env) > 0:
		h.Env, h.OwnEnv = lastOfEach(h.Env), true
	case l.kind == CreateContainer:
		h.Env = []string{}
	case l.kind == StartContainer:
		h.Env = c.proc.Env
	default:
		h.Env = nil
	}
	if h.Env != nil {
		env = call.Strings(h.Env)
	}
	if l.kind == CreateContainer {
		h.Steps = c.createContainerHook(&h)
	}
	c.Hooks = append(c.Hooks, h)
	c.at(item("hooks."+string(l.kind), i), s.Path)
	index := call.Int(len(c.Hooks) - 1)
	index.Form = call.FormHidden
	c.shim(RunHook, index, call.String(h.Path), call.Strings(h.Args), env, call.Int(int(h.Timeout/time.Second)))
}

// createContainerHook is how a task in the container's namespaces, where the root still is the host's, becomes the
// hook: with the root file system as its working directory, as with runc, and as root of the user namespace.
func (c *compiler) createContainerHook(h *Hook) []call.Step {
	steps := []call.Step{{Call: call.Chdir(c.rootPath())}}
	if c.ns.has(specs.UserNamespace) {
		unmapped := call.Tolerate(unix.EINVAL)
		steps = append(steps,
			call.Step{Call: call.Setresgid(0, 0, 0), OnError: unmapped},
			call.Step{Call: call.Setresuid(0, 0, 0), OnError: unmapped})
	}
	return append(steps,
		call.Step{Call: call.CloseRange(3, ^uint32(0), unix.CLOSE_RANGE_CLOEXEC)},
		call.Step{Call: call.Execve(h.Path, h.Args, h.Env)})
}

// rootPath is the root file system's path on the host, and in the container's mount namespace until it is entered.
func (c *compiler) rootPath() string {
	if root := c.spec.Root.Path; path.IsAbs(root) {
		return root
	}
	return path.Join(c.req.Bundle, c.spec.Root.Path)
}

// CompileHook makes the Plan of a startContainer hook: an exec of its program in the container, with the
// credentials, limits and filter of the container's own process, since its path leads to what the image has there.
func CompileHook(spec *specs.Spec, h *Hook, req Request, host Host) (*Plan, *specs.Process, error) {
	proc := *spec.Process
	proc.Args, proc.Env, proc.Terminal, proc.ConsoleSize = h.Args, h.Env, false, nil
	req.Program = h.Path
	plan, err := compileExec(spec, &proc, req, host, h.OwnEnv)
	return plan, &proc, err
}
