package container

import (
	"context"
	"errors"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var errTODO = errors.New("being written")

type runtimeState struct{}
type containerState struct{}
type processState struct{}

func newRuntime() *Runtime                                            { return &Runtime{} }
func (r *Runtime) close() error                                       { return errTODO }
func (r *Runtime) create(context.Context, Config) (*Container, error) { return nil, errTODO }
func (p *Process) pid() int                                           { return 0 }
func (p *Process) start(context.Context) error                        { return errTODO }
func (p *Process) terminal() *os.File                                 { return nil }
func (p *Process) signal(unix.Signal) error                           { return errTODO }
func (p *Process) exited() <-chan struct{}                            { return nil }
func (p *Process) exit() Exit                                         { return Exit{} }
func (p *Process) close() error                                       { return errTODO }
func (c *Container) exec(context.Context, *specs.Process, Stdio) (*Process, error) {
	return nil, errTODO
}
func (c *Container) killAll(unix.Signal) error                    { return errTODO }
func (c *Container) pids() ([]int, error)                         { return nil, errTODO }
func (c *Container) pause(context.Context) error                  { return errTODO }
func (c *Container) resume(context.Context) error                 { return errTODO }
func (c *Container) update(*specs.LinuxResources) error           { return errTODO }
func (c *Container) stats() (any, error)                          { return nil, errTODO }
func (c *Container) oom(context.Context) (<-chan struct{}, error) { return nil, errTODO }
func (c *Container) sharesPID() bool                              { return false }
func (c *Container) delete(context.Context) error                 { return errTODO }
func cleanup(context.Context, string, string, bool) (Exit, error) { return Exit{}, errTODO }
