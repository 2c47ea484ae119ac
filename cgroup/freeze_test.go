package cgroup

import (
	"context"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestPausedContainersDieAsWell(t *testing.T) {
	p := parent(t)
	for _, inner := range []bool{false, true} {
		c := create(t, Config{Path: p + "/a", ID: "a"})
		cmd := helper(t, "sleep", nil)
		if err := c.Join(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		if inner && !c.layout.v2 { // frozen by the container itself, in a cgroup of its own
			in := c.dir("freezer") + "/in"
			if err := os.Mkdir(in, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := join(in, cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			if err := write(in, "freezer.state", "FROZEN"); err != nil {
				t.Fatal(err)
			}
		} else {
			if err := c.Freeze(context.Background()); err != nil {
				t.Fatal(err)
			}
			if frozen, err := c.Frozen(); !frozen || err != nil {
				t.Errorf("Frozen: %v, %v", frozen, err)
			}
		}
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		if s := cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGKILL {
			t.Errorf("it ended by %v", s)
		}
		if err := c.Delete(); err != nil {
			t.Error(err)
		}
	}
}

func TestAForkBombDies(t *testing.T) {
	for _, with := range []string{"cgroup.kill", "the freezer alone"} {
		t.Run("by "+with, func(t *testing.T) {
			p := parent(t)
			c := create(t, Config{Path: p + "/a", ID: "a", Resources: &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](100)}}})
			wait, begin, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer wait.Close()
			cmd := helper(t, "fork", nil, wait)
			// A child that it had meanwhile would be in some hierarchies alone.
			if err := c.Join(cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			begin.Close()
			time.Sleep(200 * time.Millisecond)
			k := *c
			if with != "cgroup.kill" {
				v1(t)
				l := *c.layout
				k.layout = &l
				l.hierarchies = slices.Clone(l.hierarchies)
				l.hierarchies[len(l.hierarchies)-1].v2 = false // no cgroup.kill here
			}
			if err := k.Kill(); err != nil {
				t.Error(err)
			}
			if pids, err := c.Pids(); len(pids) > 0 || err != nil {
				t.Errorf("left: %v, %v", pids, err)
			}
			_ = cmd.Wait()
			if err := c.Delete(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatHasUsedUpItsQuotaDiesAllTheSame(t *testing.T) {
	// Ten of them can die in a second, and Kill takes ten at most.
	n := 200
	if testing.Short() { // an emulated machine starts two of them in a second
		n = 120
	}
	c := create(t, Config{Path: parent(t) + "/a", ID: "a", Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](1000), Period: ptr[uint64](1000000)}}})
	ready, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	defer w.Close()
	var cmds []*exec.Cmd
	for range n {
		cmds = append(cmds, helper(t, "ready to work", nil, w))
	}
	// Before Linux 6.18 one that is throttled within an exec holds up all that fork or join a cgroup, for minutes.
	if _, err := io.ReadFull(ready, make([]byte, len(cmds))); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range cmds {
		if err := c.Join(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Kill(); err != nil {
		t.Error(err)
	}
	for _, cmd := range cmds {
		_ = cmd.Wait()
	}
}

func TestAFreezeThatCanNotBeHadIsUndone(t *testing.T) {
	p := parent(t)
	c := create(t, Config{Path: p + "/a", ID: "a"})
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	_ = c.Freeze(gone) // may well succeed at once
	if err := c.Thaw(context.Background()); err != nil {
		t.Error(err)
	}
	if frozen, err := c.Frozen(); frozen || err != nil {
		t.Errorf("Frozen: %v, %v", frozen, err)
	}
}
