// Command rsys-bench compares runtimes under one containerd.
//
// Rounds are interleaved: in each, every runtime does the same once, in an
// order that turns, so that what the machine does meanwhile meets all alike.
// What the null runtime takes (a shim that answers the protocol and starts a
// bare process) is containerd's own share; the others' own share is what they
// take beyond it.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/rsys-io/rsys/integration/harness"
)

// runtimes are the names on the command line and containerd's.
var runtimes = map[string]string{
	"rsys": "io.containerd.rsys.v1",
	"runc": "io.containerd.runc.v2",
	"null": "io.containerd.null.v1",
}

type bench struct {
	d       *harness.Daemon
	names   []string
	rounds  int
	clients int
	members int
	many    int
	probing time.Duration
}

func main() {
	rounds := flag.Int("rounds", 20, "rounds of times and CPU")
	names := flag.String("runtimes", "rsys,runc,null", "what to compare")
	sections := flag.String("sections", "time,mounts,cpu,memory,parallel,limit,scale,probes,logs", "what to measure")
	probing := flag.Duration("probing", time.Minute, "how long exec probes are made")
	members := flag.Int("group", 36, "containers in the group whose memory is measured")
	many := flag.Int("many", 200, "containers that run at once in the section scale")
	clients := flag.Int("clients", 4, "clients that run lifecycles in parallel")
	flag.Parse()
	harness.Isolate()
	if err := run(bench{rounds: *rounds, clients: *clients, members: *members, many: *many, probing: *probing}, strings.Split(*names, ","), strings.Split(*sections, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "rsys-bench:", err)
		os.Exit(1)
	}
}

func run(b bench, names, sections []string) error {
	for _, name := range names {
		if runtimes[name] == "" {
			return fmt.Errorf("no runtime %q: there are rsys, runc and null", name)
		}
	}
	cfg, err := harness.FromEnv()
	if err != nil {
		return err
	}
	cfg.Namespace = fmt.Sprintf("rsys-bench-%d", os.Getpid())
	d, err := harness.Start(cfg)
	if err != nil {
		return err
	}
	defer d.Stop()
	b.d, b.names = d, names
	for _, s := range sections {
		f := map[string]func() error{"time": b.times, "mounts": b.mounts, "cpu": b.cpu, "memory": b.memory, "parallel": b.parallel, "limit": b.limit,
			"scale": b.scale, "probes": b.probes, "logs": b.logs}[s]
		if f == nil {
			return fmt.Errorf("no section %q: there are time, mounts, cpu, memory, parallel, limit, scale, probes and logs", s)
		}
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		fmt.Println()
	}
	return nil
}

// each does f once for every runtime, rounds times and once before that does
// not count, in an order that turns.
func (b *bench) each(f func(name string, counts bool) error) error {
	order := slices.Clone(b.names)
	for round := range b.rounds + 1 {
		for _, name := range order {
			if err := f(name, round > 0); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		order = append(order[1:], order[0])
	}
	return nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	sort.Float64s(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// table prints medians by row and runtime, own shares, and ratios to runc's.
func (b *bench) table(title string, rows []string, samples map[string]map[string][]float64) {
	has := func(name string) bool { return slices.Contains(b.names, name) }
	real := slices.DeleteFunc(slices.Clone(b.names), func(n string) bool { return n == "null" })
	fmt.Printf("%-28s", title)
	for _, n := range b.names {
		fmt.Printf(" %9s", n)
	}
	if has("null") {
		for _, n := range real {
			fmt.Printf(" %9s", "own "+n)
		}
	}
	ratio := has("rsys") && has("runc")
	if ratio {
		fmt.Printf("  %s", "own rsys : own runc")
	}
	fmt.Println()
	for _, row := range rows {
		fmt.Printf("%-28s", row)
		for _, n := range b.names {
			fmt.Printf(" %9.2f", median(samples[n][row]))
		}
		null := 0.0
		if has("null") {
			null = median(samples["null"][row])
			for _, n := range real {
				fmt.Printf(" %9.2f", median(samples[n][row])-null)
			}
		}
		if ratio {
			ours, theirs := median(samples["rsys"][row])-null, median(samples["runc"][row])-null
			switch {
			case theirs <= 0:
				fmt.Printf("  -")
			case ours <= 0:
				fmt.Printf("  below null")
			default:
				fmt.Printf("  1 : %.1f (%.3f)", theirs/ours, ours/theirs)
			}
		}
		fmt.Println()
	}
}
