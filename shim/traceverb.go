package shim

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// taskBundles is where containerd has its bundles, by namespace and ID.
const taskBundles = "/run/containerd/io.containerd.runtime.v2.task"

var errTraceUsage = errors.New("usage: trace [BUNDLE|ID] [--chrome|--json]")

// printTrace is the trace verb: trace [BUNDLE|ID] [--chrome|--json]. It shows what the set-up of a container has done, the last
// one's on this host if none is named.
func printTrace(args []string, out io.Writer) error {
	which, form := "", ""
	for _, arg := range args {
		switch {
		case arg == "--chrome" || arg == "--json":
			form = arg
		case strings.HasPrefix(arg, "-") || which != "":
			return errTraceUsage
		default:
			which = arg
		}
	}
	path, err := findTrace(which)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: there is no trace; they are made at the log level debug, containerd's or by the option LogLevel", path)
	}
	if err != nil {
		return err
	}
	t := new(trace)
	if err := json.Unmarshal(data, t); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	switch form {
	case "--json":
		_, err = out.Write(append(data, '\n'))
	case "--chrome":
		err = t.printChrome(out)
	default:
		err = t.print(out)
	}
	return err
}

func findTrace(which string) (string, error) {
	if which == "" {
		return lastTrace, nil
	}
	if st, err := os.Stat(which); err == nil && st.IsDir() {
		return filepath.Join(which, traceFile), nil
	}
	if strings.ContainsAny(which, `/*?[\`) {
		return "", fmt.Errorf("%s: no such bundle", which)
	}
	found, _ := filepath.Glob(filepath.Join(taskBundles, "*", which))
	switch len(found) {
	case 0:
		return "", fmt.Errorf("%s: no such container in %s; name its bundle", which, taskBundles)
	case 1:
		return filepath.Join(found[0], traceFile), nil
	}
	return "", fmt.Errorf("%s is in several namespaces; name its bundle: %s", which, strings.Join(found, ", "))
}

func (s *traceStep) reason() string {
	if s.About == "" {
		return s.Why
	}
	return s.Why + " (" + s.About + ")"
}

// print writes the trace as a table, in the form of a printed Plan: a heading for each phase and each field, a line for each step.
func (t *trace) print(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "container %s of namespace %s, %s\n", t.ID, t.Namespace, t.Bundle)
	fmt.Fprintf(b, "%6s %-6s %10s  %-8s %s\n", "step", "who", "us", "result", "call")
	phase, reason := "", ""
	sums := map[string]float64{}
	for i := range t.Steps {
		s := &t.Steps[i]
		if s.Phase != phase {
			phase, reason = s.Phase, ""
			fmt.Fprintf(b, "%s:\n", phase)
		}
		if r := s.reason(); r != reason {
			reason = r
			fmt.Fprintf(b, "  %s\n", r)
		}
		mark := ""
		if s.Failed {
			mark = "  <- failed"
		}
		fmt.Fprintf(b, "%6d %-6s %10.1f  %-8s %s%s\n", s.Index, s.Who, s.Micros, s.Result, s.Call, mark)
		sums[s.Who] += s.Micros
	}
	if n := len(t.Steps); n > 0 {
		fmt.Fprintf(b, "%d steps", n)
		for _, who := range []string{"shim", "parent", "child", "born"} {
			if sums[who] > 0 {
				fmt.Fprintf(b, "; %s %.1f us", who, sums[who])
			}
		}
		fmt.Fprintln(b)
	}
	return b.Flush()
}

// A chromeEvent is one of the Trace Event Format, which chrome://tracing and Perfetto read.
type chromeEvent struct {
	Name  string         `json:"name"`
	Cat   string         `json:"cat,omitempty"`
	Phase string         `json:"ph"` // X: complete; M: metadata
	Time  float64        `json:"ts"` // microseconds
	Took  float64        `json:"dur"`
	Pid   int            `json:"pid"`
	Tid   int            `json:"tid"`
	Args  map[string]any `json:"args,omitempty"`
}

// printChrome writes the trace for a viewer: a row for each process that took part, with a bar for each field of the config and
// below it one for each step.
func (t *trace) printChrome(w io.Writer) error {
	name := func(tid int, kind, name string) chromeEvent {
		return chromeEvent{Name: kind, Phase: "M", Pid: t.ShimPid, Tid: tid, Args: map[string]any{"name": name}}
	}
	events := []chromeEvent{
		name(t.ShimPid, "process_name", "containerd-shim-rsys-v1: "+t.Namespace+"/"+t.ID),
		name(t.ShimPid, "thread_name", "shim"),
	}
	named := map[int]bool{t.ShimPid: true}
	for i := 0; i < len(t.Steps); {
		first := &t.Steps[i]
		tid := first.Pid
		if tid == 0 {
			tid = t.ShimPid
		}
		if !named[tid] {
			named[tid] = true
			events = append(events, name(tid, "thread_name", first.Who+" "+strconv.Itoa(tid)))
		}
		n := i
		for n < len(t.Steps) && t.Steps[n].Pid == first.Pid && t.Steps[n].Phase == first.Phase && t.Steps[n].reason() == first.reason() {
			n++
		}
		last := &t.Steps[n-1]
		events = append(events, chromeEvent{
			Name: first.reason(), Cat: first.Phase, Phase: "X", Time: first.At, Took: last.At + last.Micros - first.At, Pid: t.ShimPid, Tid: tid,
			Args: map[string]any{"steps": n - i},
		})
		for ; i < n; i++ {
			s := &t.Steps[i]
			args := map[string]any{"step": s.Index, "call": s.Call, "result": s.Result}
			if s.Failed {
				args["failed"] = true
			}
			events = append(events, chromeEvent{Name: s.Name, Cat: s.Who, Phase: "X", Time: s.At, Took: s.Micros, Pid: t.ShimPid, Tid: tid, Args: args})
		}
	}
	data, err := json.Marshal(map[string]any{"displayTimeUnit": "ns", "traceEvents": events})
	if err != nil {
		return err
	}
	_, err = w.Write(append(data, '\n'))
	return err
}
