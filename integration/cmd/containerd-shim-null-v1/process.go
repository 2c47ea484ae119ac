package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
)

// hostBusybox stands in for what the container's image has: it is what the
// tests' image is made of, and picks its applet by the name it is called by.
const hostBusybox = "/bin/busybox"

type status struct {
	code uint32
	at   time.Time
}

// process is a process of the host, from before its start to after its end.
type process struct {
	bundle                string
	args, env             []string
	stdin, stdout, stderr string
	done                  chan struct{}

	mu  sync.Mutex
	cmd *exec.Cmd
	pid int
	st  *status
}

func (p *process) start(started func(int), exited func(int, status)) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return 0, fmt.Errorf("already started: %w", errdefs.ErrFailedPrecondition)
	}
	if len(p.args) == 0 {
		return 0, fmt.Errorf("no args: %w", errdefs.ErrInvalidArgument)
	}
	cmd := &exec.Cmd{Path: hostBusybox, Args: append([]string{filepath.Base(p.args[0])}, p.args[1:]...), Env: p.env, Dir: "/"}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	// The process gets the fifos themselves. Opened for both directions, the
	// open does not wait for the other end; nor would a read end, though.
	open := func(path string, flag int) (*os.File, error) {
		if path == "" {
			return nil, nil
		}
		f, err := os.OpenFile(path, flag, 0)
		if err == nil {
			files = append(files, f)
		}
		return f, err
	}
	in, err := open(p.stdin, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	out, err := open(p.stdout, os.O_RDWR)
	if err != nil {
		return 0, err
	}
	errs, err := open(p.stderr, os.O_RDWR)
	if err != nil {
		return 0, err
	}
	if in != nil {
		cmd.Stdin = in
	}
	if out != nil {
		cmd.Stdout = out
	}
	if errs != nil {
		cmd.Stderr = errs
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	p.cmd, p.pid = cmd, cmd.Process.Pid
	started(p.pid)
	go p.wait(cmd, exited)
	return p.pid, nil
}

func (p *process) wait(cmd *exec.Cmd, exited func(int, status)) {
	_ = cmd.Wait() // what it says is in ProcessState
	st := status{at: time.Now()}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		st.code = uint32(128 + int(ws.Signal()))
	} else {
		st.code = uint32(ws.ExitStatus())
	}
	p.mu.Lock()
	p.st = &st
	p.mu.Unlock()
	exited(cmd.Process.Pid, st)
	close(p.done)
}

func (p *process) state() (task.Status, int, status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.st != nil:
		return task.Status_STOPPED, p.pid, *p.st
	case p.cmd != nil:
		return task.Status_RUNNING, p.pid, status{}
	}
	return task.Status_CREATED, p.pid, status{}
}

func (p *process) kill(signal int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil && p.st == nil {
		// Killed before it ran: it has exited without having lived.
		p.st = &status{code: uint32(128 + signal), at: time.Now()}
		close(p.done)
		return nil
	}
	if p.st != nil {
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	return p.cmd.Process.Signal(syscall.Signal(signal))
}
