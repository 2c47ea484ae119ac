package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// Result is what a command of a client, docker or nerdctl, came to.
type Result struct {
	Args           []string
	Code           int
	Stdout, Stderr string
}

func (r Result) String() string {
	return fmt.Sprintf("%s %q exited with %d, stdout %q, stderr %q", filepath.Base(r.Args[0]), r.Args[1:], r.Code, r.Stdout, r.Stderr)
}

// RunClient runs a command to its end. One that takes too long is made to say what it
// is at, if it is a Go program, and has the exit code -1 or 2.
func RunClient(cmd *exec.Cmd) Result {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 10 * time.Second // for the output of what it has left behind
	r := Result{Args: cmd.Args}
	err := cmd.Start()
	if err == nil {
		timer := time.AfterFunc(15*time.Second, func() { _ = cmd.Process.Signal(unix.SIGQUIT) })
		err = cmd.Wait()
		timer.Stop()
	}
	r.Stdout, r.Stderr = stdout.String(), stderr.String()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil:
		r.Code, r.Stderr = -1, r.Stderr+err.Error()
	}
	return r
}

// Typed runs a client with a terminal of 99 columns and 33 rows, types what is said, and tells what was shown.
func (e *Env) Typed(cmd *exec.Cmd, input string) (shown string, code int) {
	e.Helper()
	master, path, err := console.NewPty()
	e.Must(err, "new terminal")
	defer master.Close()
	e.Must(master.Resize(console.WinSize{Height: 33, Width: 99}), "resize")
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	e.Must(err, "open the terminal")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	slave.Close()
	e.Must(err, "start the client")
	done := make(chan string)
	go func() {
		all, _ := io.ReadAll(master) // ends with EIO
		done <- string(all)
	}()
	_, err = io.WriteString(master, input)
	e.Must(err, "type")
	timer := time.AfterFunc(Patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait()
	return <-done, cmd.ProcessState.ExitCode()
}
