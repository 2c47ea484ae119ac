package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// freezer is where the cgroup is frozen: the v1 freezer if the host has it, else v2.
func (c *Cgroup) freezer() (dir string, v2 bool, err error) {
	if !c.layout.v2 {
		if dir := c.dir("freezer"); dir != "" {
			return dir, false, nil
		}
	}
	if dir, ok := c.V2Dir(); ok {
		return dir, true, nil
	}
	return "", false, errors.New("cgroup: the freezer controller is not mounted on this host")
}

// FreezerDir is the cgroup by which its processes are frozen; empty if the host has no freezer.
func (c *Cgroup) FreezerDir() string {
	dir, _, _ := c.freezer()
	return dir
}

// Freeze stops every process in the cgroup, and returns when they have stopped. If that can't be had before the context
// ends, they go on.
func (c *Cgroup) Freeze(ctx context.Context) error {
	dir, v2, err := c.freezer()
	if err != nil {
		return err
	}
	if v2 {
		if err := write(dir, "cgroup.freeze", "1"); err != nil {
			return fmt.Errorf("cgroup: freezing: %w", err)
		}
		err = wait(ctx, func(int) (bool, error) {
			s, err := read(dir, "cgroup.events")
			return strings.Contains(s, "frozen 1"), err
		})
		if err != nil {
			_ = write(dir, "cgroup.freeze", "0")
		}
	} else {
		err = wait(ctx, func(try int) (bool, error) {
			// A v1 cgroup in which processes are born can stay FREEZING. Writing again, and now and then letting
			// them run, is what helps (see runc's freezer, and that this is v1's bug).
			if try%20 == 19 {
				_ = write(dir, "freezer.state", "THAWED")
				time.Sleep(time.Millisecond)
			}
			if err := write(dir, "freezer.state", "FROZEN"); err != nil {
				return false, err
			}
			s, err := read(dir, "freezer.state")
			return strings.TrimSpace(s) == "FROZEN", err
		})
		if err != nil {
			_ = write(dir, "freezer.state", "THAWED")
		}
	}
	if err != nil {
		return fmt.Errorf("cgroup: freezing %s: %w", dir, err)
	}
	return nil
}

// Thaw lets them go on.
func (c *Cgroup) Thaw(ctx context.Context) error {
	dir, v2, err := c.freezer()
	if err != nil {
		return err
	}
	file, value, state, want := "freezer.state", "THAWED", "freezer.self_freezing", "0"
	if v2 {
		file, value, state, want = "cgroup.freeze", "0", "cgroup.events", "frozen 0"
	}
	if err := write(dir, file, value); err != nil {
		return fmt.Errorf("cgroup: thawing: %w", err)
	}
	err = wait(ctx, func(int) (bool, error) {
		s, err := read(dir, state)
		return strings.Contains(s, want), err
	})
	if err != nil {
		return fmt.Errorf("cgroup: thawing %s: %w", dir, err)
	}
	return nil
}

// Frozen says whether Freeze is in force. A parent's freeze does not count.
func (c *Cgroup) Frozen() (bool, error) {
	dir, v2, err := c.freezer()
	if err != nil {
		return false, nil // nothing to freeze it with
	}
	file := "freezer.self_freezing"
	if v2 {
		file = "cgroup.freeze"
	}
	s, err := read(dir, file)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return false, nil
		}
		return false, fmt.Errorf("cgroup: %w", err)
	}
	return strings.TrimSpace(s) == "1", nil
}

// Kill kills every process in the cgroup, frozen or not, and in those below it, and returns when none is left alive: at the latest
// after ten seconds. Their parents have to wait for them.
func (c *Cgroup) Kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if dir, ok := c.V2Dir(); ok {
		// Reaches also what is being forked at this moment. On a hybrid host it reaches what is in the v2 part.
		_ = write(dir, "cgroup.kill", "1")
	}
	freezer := ""
	if !c.layout.v2 {
		freezer = c.dir("freezer")
	}
	var left []int
	err := wait(ctx, func(try int) (bool, error) {
		// Without cgroup.kill, those that fork faster than we read are stopped first.
		if try > 2 && freezer != "" {
			_ = write(freezer, "freezer.state", "FROZEN")
		}
		if try == unthrottleAt {
			c.unthrottle()
		}
		pids, err := c.Pids()
		if err != nil {
			return false, err
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return false, fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		if freezer != "" {
			thaw(freezer) // a process frozen by v1 does not even die
		}
		left = pids
		return len(pids) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("cgroup: killing %s (left: %v): %w", c.dirs[0], left, err)
	}
	return nil
}

// unthrottleAt is the look at which Kill takes the quota away, after a few milliseconds.
const unthrottleAt = 6

// unthrottle takes the CPU quota away: what is killed needs CPU time to die, and waits for it as for any other.
func (c *Cgroup) unthrottle() {
	if c.layout.v2 {
		_ = write(c.dirs[0], "cpu.max", "max")
	} else if dir := c.dir("cpu"); dir != "" {
		_ = write(dir, "cpu.cfs_quota_us", "-1")
	}
}

// thaw thaws a v1 cgroup and those below it, which the container may have frozen itself.
func thaw(dir string) {
	if s, err := read(dir, "freezer.self_freezing"); err == nil && strings.TrimSpace(s) == "1" {
		_ = write(dir, "freezer.state", "THAWED")
	}
	_ = children(unix.AT_FDCWD, dir, func(_ int, child string) { thaw(filepath.Join(dir, child)) })
}
