package main

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
)

const (
	pods      = 25
	inPod     = 4
	probeEach = time.Second
)

// probes measures what exec probes cost a node: in 25 pods of four containers each, which share a shim,
// every container has one a second. As with the kubelet, a probe that is due while the one before
// still runs is left out; so what a machine is too slow for shows as fewer probes, and the figure to compare is
// the CPU time of one.
func (b *bench) probes() error {
	fmt.Printf("exec probes: %d containers in %d pods, one a second each, for %s\n", pods*inPod, pods, b.probing)
	fmt.Printf("%-10s %10s %10s %14s %16s %14s\n", "", "probes", "left out", "CPU ms/probe", "CPU s, machine", "median ms")
	perProbe := map[string]float64{}
	for _, name := range b.names {
		cost, err := b.probe(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		perProbe[name] = cost
	}
	if ours, theirs := perProbe["rsys"], perProbe["runc"]; ours != 0 && theirs != 0 {
		fmt.Printf("CPU of a probe, containerd's share included: rsys : runc = %.3f\n", ours/theirs)
	}
	return nil
}

func (b *bench) probe(name string) (perProbe float64, err error) {
	ctx, cancel := b.timeout(b.probing + 15*time.Minute)
	defer cancel()
	type target struct {
		c client.Container
		t client.Task
	}
	var targets []target
	defer func() {
		for _, t := range targets {
			if e := remove(ctx, t.c, t.t); e != nil && err == nil {
				err = e
			}
		}
	}()
	for i := range pods * inPod {
		group := oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": fmt.Sprintf("bench-%s-%d-%d", name, os.Getpid(), i/inPod)})
		c, t, err := b.running(ctx, name, []string{"sleep", "3600"}, group)
		if err != nil {
			return 0, err
		}
		targets = append(targets, target{c, t})
	}
	time.Sleep(2 * time.Second) // what was begun has ended
	idle, err := b.background()
	if err != nil {
		return 0, err
	}
	before, err := b.spent()
	if err != nil {
		return 0, err
	}
	var done, missed atomic.Int64
	var mu sync.Mutex
	var took []float64
	errs := make(chan error, len(targets))
	begin := time.Now()
	end := begin.Add(b.probing)
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() {
			due := begin.Add(probeEach * time.Duration(i) / time.Duration(len(targets)))
			for ; due.Before(end); due = due.Add(probeEach) {
				if late := time.Since(due); late > probeEach {
					missed.Add(1)
					continue
				}
				time.Sleep(time.Until(due))
				_, whole, err := b.exec(ctx, t.c, t.t, "true")
				if err != nil {
					errs <- err
					return
				}
				done.Add(1)
				mu.Lock()
				took = append(took, ms(whole))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	after, err := b.spent()
	if err != nil {
		return 0, err
	}
	select {
	case err := <-errs:
		return 0, err
	default:
	}
	n := float64(done.Load())
	machine := after.machine - before.machine - idle*time.Since(begin).Seconds()
	perProbe = (after.ours - before.ours) / n
	fmt.Printf("%-10s %10d %10d %14.1f %16.1f %14.1f\n", name, done.Load(), missed.Load(), perProbe, machine/1000, median(took))
	return perProbe, nil
}
