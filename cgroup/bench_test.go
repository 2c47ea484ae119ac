package cgroup

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	libcgroups "github.com/opencontainers/cgroups"
	libfs "github.com/opencontainers/cgroups/fs"
	"golang.org/x/sys/unix"
)

// BenchmarkLifecycle is Create, Join and Delete of one container's cgroup with a process, containerd's default
// limits, below a parent that stays: the raw system calls, us, and runc's library. Each prints what its parts take.
func BenchmarkLifecycle(b *testing.B) {
	_, _ = libcgroups.ReadFile("/sys/fs/cgroup/cpu", "cpu.shares") // the library keeps an fd
	p := parent(b)
	l, err := host()
	if err != nil {
		b.Fatal(err)
	}
	if l.v2 {
		b.Skip("the raw sequence is v1's")
	}
	keep, err := New(Config{Path: p + "/keep"})
	if err != nil {
		b.Fatal(err)
	}
	if err := keep.Create(context.Background(), 0); err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := keep.Delete(); err != nil {
			b.Error(err)
		}
	}()
	type steps struct {
		create, join, remove func() error
	}
	n := 0
	dirs := func() (d []string) {
		for _, h := range l.hierarchies {
			d = append(d, fmt.Sprintf("%s%s/%d", h.dir, p, n))
		}
		return d
	}
	var pid int
	rawCreate := func() error {
		for i, d := range dirs() {
			if err := unix.Mkdir(d, 0o755); err != nil {
				return err
			}
			if l.hierarchies[i].has("cpuset") {
				if err := write(d, "cpuset.cpus", "0-1"); err != nil {
					return err
				}
				if err := write(d, "cpuset.mems", "0"); err != nil {
					return err
				}
			}
		}
		return nil
	}
	rawRemove := func() error {
		for _, d := range dirs() {
			for unix.Rmdir(d) == unix.EBUSY {
				time.Sleep(50 * time.Microsecond)
			}
		}
		return nil
	}
	rawJoin := func() error {
		for _, d := range dirs() {
			if err := write(d, "cgroup.procs", strconv.Itoa(pid)); err != nil {
				return err
			}
		}
		return nil
	}
	var c *Cgroup
	var m *libfs.Manager
	r := &libcgroups.Resources{CpuShares: 1024}
	for _, x := range []struct {
		name string
		steps
	}{
		{"raw", steps{rawCreate, rawJoin, rawRemove}},
		{"raw in parallel", steps{rawCreate, func() error {
			var wg sync.WaitGroup
			for _, d := range dirs() {
				wg.Go(func() { _ = write(d, "cgroup.procs", strconv.Itoa(pid)) })
			}
			wg.Wait()
			return nil
		}, rawRemove}},
		{"ours", steps{func() (err error) {
			if c, err = New(Config{Path: fmt.Sprintf("%s/%d", p, n)}); err != nil {
				return err
			}
			return c.Create(context.Background(), 0)
		}, func() error { return c.Join(pid) }, func() error { return c.Delete() }}},
		{"ours, self", steps{func() (err error) {
			if c, err = New(Config{Path: fmt.Sprintf("%s/%d", p, n)}); err != nil {
				return err
			}
			return c.Create(context.Background(), 0)
		}, func() error { // the cost of opening; the writes are the process's own
			fs, err := c.JoinFiles(true)
			for _, f := range fs {
				f.Close()
			}
			return err
		}, func() error { return c.Delete() }}},
		{"library", steps{func() (err error) {
			if m, err = libfs.NewManager(&libcgroups.Cgroup{Path: fmt.Sprintf("%s/%d", p, n), Resources: r}, nil); err != nil {
				return err
			}
			if err := m.Apply(-1); err != nil {
				return err
			}
			return m.Set(r)
		}, func() error { return m.AddPid("", pid) }, func() error { return m.Destroy() }}},
	} {
		b.Run(x.name, func(b *testing.B) {
			var took [3]time.Duration
			for b.Loop() {
				b.StopTimer()
				n++
				cmd := exec.Command("/bin/sleep", "100")
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				pid = cmd.Process.Pid
				time.Sleep(5 * time.Millisecond)
				for i, f := range []func() error{x.create, x.join, x.remove} {
					if i == 2 {
						_ = cmd.Process.Kill()
						_ = cmd.Wait()
					}
					b.StartTimer()
					t := time.Now()
					if err := f(); err != nil {
						b.Fatal(err)
					}
					took[i] += time.Since(t)
					b.StopTimer()
				}
				b.StartTimer()
			}
			for i, name := range []string{"create", "join", "delete"} {
				b.ReportMetric(float64(took[i].Microseconds())/float64(b.N), name+"-us")
			}
		})
	}
}
