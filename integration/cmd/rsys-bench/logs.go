package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/rsys-io/rsys/integration/harness"
)

// logged is how much a container writes to its standard output.
const logged = 1 << 30

// logs measures the way of a container's output: to a log file, and to a fifo that the client reads. The CPU
// time is that of the shim alone.
func (b *bench) logs() error {
	ways := []struct {
		name string
		io   func(log string) cio.Creator
	}{
		{"file://", func(log string) cio.Creator { return cio.LogFile(log) }},
		{"fifo", func(string) cio.Creator {
			return cio.NewCreator(cio.WithStreams(nil, io.Discard, io.Discard), cio.WithFIFODir(b.d.FIFOs()))
		}},
	}
	fmt.Printf("1 GiB of output, medians of 3 %22s %14s\n", "MB/s", "shim CPU ms")
	rounds := b.rounds
	b.rounds = min(rounds, 3)
	defer func() { b.rounds = rounds }()
	for _, way := range ways {
		speed, cpu := map[string][]float64{}, map[string][]float64{}
		err := b.each(func(name string, counts bool) error {
			if name == "null" { // it has no streams
				return nil
			}
			s, c, err := b.log(name, way.io)
			if err == nil && counts {
				speed[name], cpu[name] = append(speed[name], s), append(cpu[name], c)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		for _, name := range b.names {
			if name != "null" {
				fmt.Printf("%-10s %-10s %28.0f %14.1f\n", way.name, name, median(speed[name]), median(cpu[name]))
			}
		}
	}
	return nil
}

func (b *bench) log(name string, creator func(string) cio.Creator) (speed, cpu float64, err error) {
	ctx, cancel := b.timeout(5 * time.Minute)
	defer cancel()
	log := filepath.Join("/run", "bench-log") // a tmpfs: no disk is measured
	defer os.Remove(log)
	c, err := b.container(ctx, name, []string{"dd", "if=/dev/zero", "bs=32k", fmt.Sprintf("count=%d", logged/(32<<10)), "status=none"})
	if err != nil {
		return 0, 0, err
	}
	task, err := c.NewTask(ctx, creator(log))
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if e := remove(context.WithoutCancel(ctx), c, task); err == nil {
			err = e
		}
	}()
	exit, err := task.Wait(ctx)
	if err != nil {
		return 0, 0, err
	}
	before := shimCPU(int(task.Pid()))
	begin := time.Now()
	if err := task.Start(ctx); err != nil {
		return 0, 0, err
	}
	st := <-exit
	took := time.Since(begin)
	cpu = shimCPU(int(task.Pid())) - before
	if st.Error() != nil || st.ExitCode() != 0 {
		return 0, 0, fmt.Errorf("exit code %d, %v", st.ExitCode(), st.Error())
	}
	if st, err := os.Stat(log); err == nil && st.Size() != logged {
		return 0, 0, fmt.Errorf("%d bytes arrived", st.Size())
	}
	return logged / took.Seconds() / 1e6, cpu, nil
}

// shimCPU is the CPU time of the shims themselves, in ms: their children that they have reaped are not in
// it, for the container is one.
func shimCPU(own int) float64 {
	total := 0.0
	for _, p := range harness.Descendants() {
		if p.Pid != own && strings.HasPrefix(p.Comm, "containerd-shim") {
			total += ofThreads(p.Pid)
		}
	}
	return total
}
