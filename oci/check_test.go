package oci

import (
	"slices"
	"strings"
	"testing"

	"github.com/rsys-io/rsys/rsys/call"
)

// check fails the test if p is not a Plan that can be run: arguments come from earlier steps that have
// not been skipped, skips stay inside and in their phase, and what opens a descriptor closes it.
func check(t testing.TB, p *Plan) {
	t.Helper()
	bad := func(i int, format string, args ...any) {
		t.Helper()
		t.Errorf("step %d, %s: "+format, append([]any{i, p.Steps[i].Call.String()}, args...)...)
	}
	n := len(p.Steps)
	phase := Create
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Phase < phase {
			bad(i, "after the start")
		}
		phase = s.Phase
		if s.Why == "" {
			bad(i, "no reason")
		}
		if len(s.Args) > 6 {
			bad(i, "%d arguments", len(s.Args))
		}
		if s.Who == Shim && (s.Nr != NrShim || s.OnError != call.Stop) || s.Who != Shim && s.Nr == NrShim {
			bad(i, "not of who performs it")
		}
		if s.Nr == 0 && s.Name != "read" {
			bad(i, "no number")
		}
		for _, skip := range []int{int(s.SkipOK), int(s.SkipErr)} {
			if skip < 0 || i+1+skip > n || i+1+skip < n && p.Steps[i+1+skip].Phase != s.Phase && !endsPhase(p, i+1+skip) {
				bad(i, "goes to %d", i+1+skip)
			}
		}
		if s.OnError == call.Stop && s.SkipErr != 0 {
			bad(i, "skips after an error that it may not have")
		}
		for q := s.OnError; q != 0; q >>= 8 {
			if q&0xff == 0 {
				bad(i, "a policy with a hole")
			}
		}
		for k := range s.Args {
			checkArg(t, p, i, &s.Args[k], bad)
		}
	}
	checkPaths(t, p, bad)
	l := &p.Lookup
	if len(l.Candidates) != len(l.Steps) || len(l.Candidates) != len(l.Exec) {
		t.Errorf("lookup: %d candidates, %d steps, %d execs", len(l.Candidates), len(l.Steps), len(l.Exec))
	}
	end := n
	for end > 0 && p.Steps[end-1].Phase > Start {
		end--
	}
	for k, i := range l.Exec {
		if i != end-len(l.Exec)+k || p.Steps[i].Name != "execve" {
			bad(i, "is not the execve step it should be")
		}
	}
	if l.Failed < 0 || l.Failed >= n {
		t.Errorf("lookup: no step that fails")
	}
}

// endsPhase says that step i is where its phase begins, so that to go there is to end the one before.
func endsPhase(p *Plan, i int) bool { return i > 0 && p.Steps[i-1].Phase != p.Steps[i].Phase }

func checkArg(t testing.TB, p *Plan, i int, a *call.Arg, bad func(int, string, ...any)) {
	t.Helper()
	switch a.Kind {
	case call.KindResult:
		if a.Step < 0 || int(a.Step) >= i || p.Steps[a.Step].Who == Born || p.Steps[a.Step].Who == Shim && !strings.HasPrefix(p.Steps[a.Step].Name, IDMap) {
			bad(i, "uses the result of %d", a.Step)
		}
	case call.KindWord, call.KindInt32, call.KindOutPtr:
		if a.Step < 0 || int(a.Step) >= i {
			bad(i, "uses the output of %d", a.Step)
			return
		}
		from := p.Steps[a.Step].Args
		if int(a.Index) >= len(from) || from[a.Index].Kind != call.KindOut {
			bad(i, "uses argument %d of %d, which is no output", a.Index, a.Step)
			return
		}
		if size := map[call.Kind]int64{call.KindWord: 8, call.KindInt32: 4}[a.Kind]; a.Off < 0 || int64(a.Off)+size > from[a.Index].Int {
			bad(i, "reads beyond the output of %d", a.Step)
		}
	case call.KindIn:
		if a.Form == call.FormString && strings.IndexByte(a.Data, 0) != len(a.Data)-1 {
			bad(i, "a string with a zero byte in it")
		}
		for k := range a.Ptrs() {
			if a.Ptrs()[k].Off < 0 || a.Ptrs()[k].Off+8 > len(a.Data) {
				bad(i, "a pointer outside of its data")
			}
			checkArg(t, p, i, &a.Ptrs()[k].To, bad)
		}
	}
}

// checkPaths follows every way through the Plan. At each step all that it uses must have been done on
// whichever way led there, or be negative and expected to be; at the end nothing may be open.
func checkPaths(t testing.TB, p *Plan, bad func(int, string, ...any)) {
	t.Helper()
	n := len(p.Steps)
	if n > 3000 {
		return
	}
	// done[i] is what has succeeded and what has run on every way to step i; nil if none leads there.
	type state struct{ ok, ran []bool }
	meet := func(into *state, from state) {
		if into.ok == nil {
			into.ok, into.ran = slices.Clone(from.ok), slices.Clone(from.ran)
			return
		}
		for k := range into.ok {
			into.ok[k] = into.ok[k] && from.ok[k]
			into.ran[k] = into.ran[k] && from.ran[k]
		}
	}
	at := make([]state, n+1)
	at[0] = state{make([]bool, n), make([]bool, n)}
	for i := range p.Steps {
		s, now := &p.Steps[i], at[i]
		if now.ok == nil && len(p.Lookup.Candidates) == 0 && i > p.Lookup.Failed {
			break // there is no program to start
		}
		if now.ok == nil {
			bad(i, "no way leads here")
			continue
		}
		for _, a := range s.Args {
			switch {
			case a.Kind == call.KindResult && !now.ok[a.Step] && (s.Nr != call.NrExpect || !now.ran[a.Step]):
				bad(i, "may use the result of %d when that has failed or was skipped", a.Step)
			case (a.Kind == call.KindWord || a.Kind == call.KindInt32) && !now.ok[a.Step]:
				bad(i, "may use the output of %d when that has failed or was skipped", a.Step)
			}
		}
		after := state{slices.Clone(now.ok), slices.Clone(now.ran)}
		after.ran[i] = true
		if s.OnError != call.Stop {
			meet(&at[i+1+int(s.SkipErr)], after)
		}
		after.ok[i] = true
		if never := s.Nr == call.NrExpect && s.Args[0].Kind == call.KindInt && uint64(s.Args[0].Int)&uint64(s.Args[1].Int) != uint64(s.Args[2].Int); !never {
			meet(&at[i+1+int(s.SkipOK)], after)
		}
		at[i] = state{}
	}
	checkClosed(t, p, bad)
}

// opens are the calls that return a descriptor.
var opens = []string{"openat", "openat2", "open_tree", "fsopen", "fsmount", "socket"}

// checkClosed wants for each descriptor of the Create phase a step that closes it, as the next that names it last.
// Only the terminal stays open: the runtime fetches it.
func checkClosed(t testing.TB, p *Plan, bad func(int, string, ...any)) {
	t.Helper()
	closed := make(map[int32]bool)
	for i := range p.Steps {
		s := &p.Steps[i]
		for _, a := range s.Args {
			if a.Kind == call.KindResult && closed[a.Step] && slices.Contains(opens, p.Steps[a.Step].Name) {
				bad(i, "uses %d, which is closed", a.Step)
			}
		}
		if s.Name == "close" {
			closed[s.Args[0].Step] = true
		}
	}
	for i := range p.Steps {
		if slices.Contains(opens, p.Steps[i].Name) && !closed[int32(i)] && i != p.Terminal {
			bad(i, "is never closed")
		}
	}
}
