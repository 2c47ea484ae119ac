package criu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killTime bounds the wait for the end of what was killed.
const killTime = 1500 * time.Millisecond

// killLeft kills what a criu that is dead has forked and not ended. A process that waits for others by a futex of criu's does so for
// ever. Neither groups, nor command lines, nor the environment tell what is criu's: it changes them all.
func (p *conversation) killLeft(holder int) error {
	mounts, err := os.Readlink(namespaceOf(holder))
	if err != nil {
		return fmt.Errorf("criu: %w", err)
	}
	ours, err := os.Readlink(namespaceOf(os.Getpid()))
	if err != nil {
		return fmt.Errorf("criu: %w", err)
	}
	for deadline := time.Now().Add(killTime); ; time.Sleep(10 * time.Millisecond) {
		left := in(mounts, holder)
		for _, pid := range Children() {
			ns, err := os.Readlink(namespaceOf(pid))
			if err != nil || ns == ours || p.exe == nil || slices.Contains(left, pid) {
				continue // a zombie has no namespaces; a criu that dumps is in ours
			}
			if exe, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe"); err == nil && os.SameFile(exe, p.exe) {
				left = append(left, pid)
			}
		}
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("criu: kill %d: %w", pid, err)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("criu: processes %v are left", left)
		}
	}
}

// note writes down which criu works, by what nothing else has: its program, in a mount namespace that is not ours.
func note(file string, pid int) error {
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return fmt.Errorf("criu: %w", err)
	}
	mounts, err := os.Readlink(namespaceOf(pid))
	if err != nil {
		return fmt.Errorf("criu: %w", err)
	}
	if err := os.WriteFile(file, fmt.Appendf(nil, "%d %s %s", pid, mounts, exe), 0o600); err != nil {
		return fmt.Errorf("criu: %w", err)
	}
	return nil
}

// EndNoted ends a criu whose note there is: who asked it has been killed. It finds that out at its next notification and undoes what
// it has done, but for one process that it has for cgroups. If it does not end, it is killed.
func EndNoted(file string) error {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	first, rest, _ := strings.Cut(string(data), " ")
	mounts, exe, ok := strings.Cut(rest, " ")
	criu, err := strconv.Atoi(first)
	if err != nil || !ok {
		return nil // it was being written, before criu had forked
	}
	start := time.Now()
	for {
		left := processes(func(pid int) bool {
			proc := "/proc/" + strconv.Itoa(pid)
			if its, err := os.Readlink(proc + "/exe"); err != nil || its != exe {
				return false
			}
			// At times criu itself is in the mount namespace of what it restores, where its first process begins.
			ns, err := os.Readlink(namespaceOf(pid))
			return pid == criu || err == nil && ns == mounts || holdsBelow(proc, filepath.Dir(file))
		})
		took := time.Since(start)
		if len(left) == 0 {
			return nil
		}
		if took > 2*killTime {
			return fmt.Errorf("criu: processes %v are left", left)
		}
		if !slices.Contains(left, criu) || took > killTime {
			for _, pid := range left {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
					return fmt.Errorf("criu: kill %d: %w", pid, err)
				}
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func namespaceOf(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/ns/mnt" }

// in are the processes in a mount namespace, but one.
func in(mounts string, but int) []int {
	return processes(func(pid int) bool {
		ns, err := os.Readlink(namespaceOf(pid))
		return err == nil && ns == mounts && pid != but
	})
}

func processes(which func(pid int) bool) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*")
	for _, file := range files {
		if pid, err := strconv.Atoi(filepath.Base(file)); err == nil && which(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// holdsBelow says whether a process has a file open below a directory: what criu forks has its log.
func holdsBelow(proc, dir string) bool {
	fds, _ := filepath.Glob(proc + "/fd/*")
	return slices.ContainsFunc(fds, func(fd string) bool {
		file, err := os.Readlink(fd)
		return err == nil && strings.HasPrefix(file, dir+"/")
	})
}

// Children are the children of all our threads.
func Children() (pids []int) {
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, file := range files {
		data, _ := os.ReadFile(file)
		for s := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(s); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
