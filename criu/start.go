package criu

import (
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// startIn starts a command in a mount namespace. It is started by a thread that has joined it and ends
// with that; the child has our own process as its parent nevertheless.
func startIn(mounts *os.File, cmd *exec.Cmd) error {
	if mounts == nil {
		return cmd.Start()
	}
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		// A thread that shares its working directory and root with others can't join one.
		err := os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_FS))
		if err == nil {
			err = os.NewSyscallError("setns", unix.Setns(int(mounts.Fd()), unix.CLONE_NEWNS))
		}
		if err == nil {
			err = cmd.Start()
		}
		result <- err
	}()
	return <-result
}
