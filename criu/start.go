package criu

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// startIn starts a command in the mount namespace of a process. It is started by a thread that has joined it and ends
// with that; the child has our own process as its parent nevertheless.
func startIn(holder int, cmd *exec.Cmd) error {
	if holder == 0 {
		return cmd.Start()
	}
	mounts, err := os.Open("/proc/" + strconv.Itoa(holder) + "/ns/mnt")
	if err != nil {
		return err
	}
	defer mounts.Close()
	return onAThread(func() error {
		// A thread that shares its working directory and root with others can't join one.
		err := os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_FS))
		if err == nil {
			err = os.NewSyscallError("setns", unix.Setns(int(mounts.Fd()), unix.CLONE_NEWNS))
		}
		if err == nil {
			err = cmd.Start()
		}
		return err
	})
}

// onAThread runs a function on a thread that ends with it. The process's first one never ends: what that joins is held, and is
// what /proc shows of the process.
func onAThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			result <- onAThread(f) // on another, as this one is taken
			runtime.UnlockOSThread()
			return
		}
		result <- f() // never unlocked
	}()
	return <-result
}
