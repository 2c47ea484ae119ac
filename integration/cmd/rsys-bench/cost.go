package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/rsys-io/rsys/integration/harness"
)

// spent is the CPU time that everything of ours has used: this process, the
// daemon, the shims, and all that ended and was reaped by one of them.
//
// It is the sum over the processes that descend from us of what the kernel
// accounts to them and to their reaped children: sum_exec_runtime of
// /proc/PID/schedstat, in nanoseconds, for those that live; utime and stime of
// reaped children from /proc/PID/stat, in ticks of 10 ms. The ticks are coarse
// for one exec, so each sample is of many execs. What the kernel does on its own
// threads for them is not in it; the machine's own figure, /proc/stat, has that,
// and is printed too when the machine was otherwise idle enough for it to tell.
type spent struct {
	machine float64 // ms, all that is not idle, of the whole machine
	ours    float64 // ms, of our processes
}

func (b *bench) spent() (spent, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return spent{}, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	f := strings.Fields(line)
	var s spent
	for i, v := range f[1:] {
		if i == 3 || i == 4 || i > 7 { // idle, iowait; guests are in user
			continue
		}
		n, _ := strconv.ParseFloat(v, 64)
		s.machine += n * 10
	}
	pids := []int{os.Getpid(), os.Getppid()}
	for _, p := range harness.Descendants() {
		pids = append(pids, p.Pid)
	}
	for _, pid := range pids {
		s.ours += ofProcess(pid)
	}
	return s, nil
}

// ofThreads is the CPU time of a process's threads, in ms.
func ofThreads(pid int) float64 {
	var total float64
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, t.Name()))
		if f := strings.Fields(string(data)); len(f) > 0 {
			ns, _ := strconv.ParseFloat(f[0], 64)
			total += ns / 1e6
		}
	}
	return total
}

// ofProcess is the CPU time of a process and its reaped children, in ms.
func ofProcess(pid int) float64 {
	total := ofThreads(pid)
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if i := strings.LastIndexByte(string(data), ')'); i > 0 {
		if f := strings.Fields(string(data[i+1:])); len(f) > 14 {
			for _, v := range f[13:15] { // cutime, cstime
				n, _ := strconv.ParseFloat(v, 64)
				total += n * 10
			}
		}
	}
	return total
}

// cpu measures what an exec of true costs, whole machine.
func (b *bench) cpu() error {
	const execs = 20
	whole := "by the whole machine"
	ours := "one exec of true"
	samples := map[string]map[string][]float64{}
	ctx, cancel := b.timeout(30 * time.Minute)
	defer cancel()
	type target struct {
		c client.Container
		t client.Task
	}
	targets := map[string]target{}
	for _, name := range b.names {
		c, t, err := b.running(ctx, name, []string{"sleep", "3600"})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		targets[name] = target{c, t}
		samples[name] = map[string][]float64{}
	}
	// What the machine does without us, to take off its figure.
	idle, err := b.background()
	if err != nil {
		return err
	}
	err = b.each(func(name string, counts bool) error {
		before, err := b.spent()
		if err != nil {
			return err
		}
		begin := time.Now()
		for range execs {
			if _, _, err := b.exec(ctx, targets[name].c, targets[name].t, "true"); err != nil {
				return err
			}
		}
		took := time.Since(begin)
		after, err := b.spent()
		if err != nil || !counts {
			return err
		}
		s := samples[name]
		s[whole] = append(s[whole], (after.machine-before.machine-idle*took.Seconds())/execs)
		s[ours] = append(s[ours], (after.ours-before.ours)/execs)
		return nil
	})
	if err != nil {
		return err
	}
	rows := []string{ours}
	if idle < 100 {
		rows = append(rows, whole)
	}
	b.table(fmt.Sprintf("CPU ms, medians of %d x %d", b.rounds, execs), rows, samples)
	if idle >= 100 {
		fmt.Printf("(no figure of the whole machine: it uses %.0f ms/s when we do nothing)\n", idle)
	}
	for _, t := range targets {
		if err := remove(ctx, t.c, t.t); err != nil {
			return err
		}
	}
	return nil
}

// background is the machine's CPU use without us, in ms per second.
func (b *bench) background() (float64, error) {
	before, err := b.spent()
	if err != nil {
		return 0, err
	}
	const span = 3 * time.Second
	time.Sleep(span)
	after, err := b.spent()
	return (after.machine - before.machine) / span.Seconds(), err
}

// private is the private memory of a process in kB.
func private(pid int) int {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	total := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) > 1 && strings.HasPrefix(f[0], "Private_") {
			n, _ := strconv.Atoi(f[1])
			total += n
		}
	}
	return total
}

// overhead is the private memory of the shims and their helpers: of all that
// descends from us but the daemon and the containers' own processes.
func (b *bench) overhead(own map[int]bool) int {
	total := 0
	for _, p := range harness.Descendants() {
		if p.Pid != b.d.Pid() && !own[p.Pid] {
			total += private(p.Pid)
		}
	}
	return total
}

// memory measures what a container takes beside its own process: with a shim
// of its own, and each further one in a group.
func (b *bench) memory() error {
	const alone, further = "alone", "each further in a group"
	rows := []string{alone, further}
	samples := map[string]map[string][]float64{}
	for _, name := range b.names {
		one, err := b.weigh(name, 3, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		group := oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "bench-" + name})
		many, err := b.weigh(name, b.members, group)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		samples[name] = map[string][]float64{
			alone:   {float64(one[len(one)-1]) / float64(len(one))},
			further: {float64(many[len(many)-1]-many[0]) / float64(len(many)-1)},
		}
	}
	// Of memory, containerd has no share: the shim is all there is.
	fmt.Printf("%-28s", "private kB a container")
	for _, n := range b.names {
		fmt.Printf(" %9s", n)
	}
	fmt.Println()
	for _, row := range rows {
		fmt.Printf("%-28s", row)
		for _, n := range b.names {
			fmt.Printf(" %9.0f", median(samples[n][row]))
		}
		if ours, theirs := samples["rsys"][row], samples["runc"][row]; ours != nil && theirs != nil {
			fmt.Printf("  rsys : runc = %.3f", median(ours)/median(theirs))
		}
		fmt.Println()
	}
	fmt.Printf("(Private_* of smaps_rollup, shims and helpers, without the container's own process; a group of %d)\n", b.members)
	return nil
}

// quiet waits until the shims of before have ended.
func (b *bench) quiet(ctx context.Context) error {
	for len(harness.Descendants()) > 1 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("shims of before do not end: %v", harness.Descendants())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// weigh runs n containers and tells the overhead after the first, the second...
func (b *bench) weigh(name string, n int, group oci.SpecOpts) ([]int, error) {
	ctx, cancel := b.timeout(10 * time.Minute)
	defer cancel()
	var weights []int
	own := map[int]bool{}
	if err := b.quiet(ctx); err != nil {
		return nil, err
	}
	base := b.overhead(own)
	var ends []func() error
	for range n {
		var opts []oci.SpecOpts
		if group != nil {
			opts = append(opts, group)
		}
		c, task, err := b.running(ctx, name, []string{"sleep", "3600"}, opts...)
		if err != nil {
			return nil, err
		}
		own[int(task.Pid())] = true
		if pids, err := task.Pids(ctx); err == nil {
			for _, p := range pids {
				own[int(p.Pid)] = true
			}
		}
		ends = append(ends, func() error { return remove(ctx, c, task) })
		weights = append(weights, 0)
		if i := len(weights); i == 1 || i == n {
			time.Sleep(500 * time.Millisecond) // what was begun has ended
			weights[i-1] = b.overhead(own) - base
		}
	}
	for _, end := range ends {
		if err := end(); err != nil {
			return nil, err
		}
	}
	return weights, nil
}

// parallel counts whole lifecycles a second, of several clients.
func (b *bench) parallel() error {
	const each = 6
	samples := map[string]map[string][]float64{}
	row := fmt.Sprintf("lifecycles/s, %d clients", b.clients)
	rounds := b.rounds
	b.rounds = min(rounds, 3)
	defer func() { b.rounds = rounds }()
	err := b.each(func(name string, counts bool) error {
		ctx, cancel := b.timeout(5 * time.Minute)
		defer cancel()
		errs := make([]error, b.clients)
		var wg sync.WaitGroup
		begin := time.Now()
		for i := range b.clients {
			wg.Go(func() {
				for range each {
					if errs[i] = b.lifecycle(ctx, name); errs[i] != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
		if counts {
			if samples[name] == nil {
				samples[name] = map[string][]float64{}
			}
			samples[name][row] = append(samples[name][row], float64(b.clients*each)/time.Since(begin).Seconds())
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Printf("%-28s", row)
	for _, n := range b.names {
		fmt.Printf("  %s %.2f", n, median(samples[n][row]))
	}
	fmt.Println()
	return nil
}

// lifecycle is a container's whole life: add, create, start, exec, kill,
// delete, remove.
func (b *bench) lifecycle(ctx context.Context, name string) error {
	c, task, err := b.running(ctx, name, []string{"sleep", "3600"})
	if err != nil {
		return err
	}
	if _, _, err := b.exec(ctx, c, task, "true"); err != nil {
		return err
	}
	return remove(ctx, c, task)
}

// limit finds the smallest memory limit with which busybox true runs.
func (b *bench) limit() error {
	fmt.Println("smallest memory limit with which a container of busybox true runs")
	for _, name := range b.names {
		if name == "null" {
			continue // it has no limits
		}
		page := os.Getpagesize()
		low, high := 0, (64<<20)/page // pages: low fails, high runs
		for high-low > 1 {
			mid := (low + high) / 2
			if b.fits(name, uint64(mid*page)) {
				high = mid
			} else {
				low = mid
			}
		}
		fmt.Printf("%-28s %9d kB\n", name, high*page/1024)
	}
	return nil
}

// fits tells whether true runs, three times of three, with a memory limit.
func (b *bench) fits(name string, limit uint64) bool {
	for range 3 {
		if !b.fitsOnce(name, limit) {
			return false
		}
	}
	return true
}

func (b *bench) fitsOnce(name string, limit uint64) bool {
	ctx, cancel := b.timeout(30 * time.Second)
	defer cancel()
	c, err := b.container(ctx, name, []string{"true"}, oci.WithMemoryLimit(limit), oci.WithMemorySwap(int64(limit)))
	if err != nil {
		return false
	}
	defer func() {
		ctx, cancel := b.timeout(30 * time.Second)
		defer cancel()
		task, _ := c.Task(ctx, nil)
		_ = remove(ctx, c, task)
	}()
	task, err := c.NewTask(ctx, b.io())
	if err != nil {
		return false
	}
	exit, err := task.Wait(ctx)
	if err != nil {
		return false
	}
	if err := task.Start(ctx); err != nil {
		return false
	}
	select {
	case st := <-exit:
		return st.Error() == nil && st.ExitCode() == 0
	case <-ctx.Done():
		return false
	}
}
