package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/oci"
)

// agentTime is how long a seccomp agent may take to accept what it is sent.
const agentTime = 10 * time.Second

// sendListener does a SendListener step: it fetches the listener of the child's filter, and sends it with the container
// process state to the agent. The descriptor goes with the first byte, as the specification wants.
func (c *Container) sendListener(ctx context.Context, r *run, s *oci.Step, status specs.ContainerState) error {
	listener, err := r.task.Child.Fetch(int(r.steps.Result(int(s.Args[0].Step)).Value))
	if errors.Is(err, unix.EPERM) {
		// The process can't send it by itself: the filter that it is the listener of may not let it.
		if scope, _ := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); strings.TrimSpace(string(scope)) == "3" {
			return fmt.Errorf("fetch the listener: %w: kernel.yama.ptrace_scope is 3, which forbids it", err)
		}
	}
	if err != nil {
		return fmt.Errorf("fetch the listener: %w", err)
	}
	defer listener.Close()
	pid := r.task.Pid()
	state := specs.State{Version: c.spec.Version, ID: c.id, Status: status, Pid: pid, Bundle: c.bundle, Annotations: c.spec.Annotations}
	if status == specs.StateRunning {
		state.Pid = c.Init.child.Pid() // not Pid, whose lock a hook's caller has
	}
	return sendToAgent(ctx, argString(s.Args[1]), specs.ContainerProcessState{
		Version: specs.Version, Fds: []string{specs.SeccompFdName}, Pid: pid, Metadata: argString(s.Args[2]), State: state,
	}, listener)
}

func sendToAgent(ctx context.Context, path string, state specs.ContainerProcessState, listener *os.File) error {
	data, err := json.Marshal(&state)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("connect to the seccomp agent: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	raw, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var sendErr error
	err = raw.Control(func(fd uintptr) {
		n, _, sendErr = conn.(*net.UnixConn).WriteMsgUnix(data, unix.UnixRights(int(fd)), nil)
	})
	if err == nil {
		err = sendErr
	}
	if err == nil && n < len(data) {
		_, err = conn.Write(data[n:])
	}
	if err != nil {
		return fmt.Errorf("send to the seccomp agent: %w", err)
	}
	return nil
}
