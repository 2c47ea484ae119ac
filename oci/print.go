package oci

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

func (w Who) String() string {
	return [...]string{"child", "shim", "born", "parent"}[w]
}

func (p Phase) String() string {
	return [...]string{"create", "start", "started", "deleted"}[p]
}

// reason is the step's field and what it is about.
func (s *Step) reason() string {
	if s.About == "" {
		return s.Why
	}
	return s.Why + " (" + s.About + ")"
}

// tolerated are the names of the errors that a policy goes on after.
func tolerated(p call.Policy) (names []string) {
	for ; p != 0; p >>= 8 {
		switch e := p & 0xff; {
		case e == call.Ignore:
			return []string{"any"}
		case e != 0:
			names = append(names, unix.ErrnoName(unix.Errno(e)))
		}
	}
	return names
}

// Print writes the Plan as a table: a heading for each phase and each field, and a line a step. Behind the
// call are the errors that it may have and, where it is not the next one, the step that comes then.
func (p *Plan) Print(w io.Writer) error {
	b := bufio.NewWriter(w)
	phase, reason := Phase(255), ""
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Phase != phase {
			phase, reason = s.Phase, ""
			fmt.Fprintf(b, "%s:\n", phase)
		}
		if r := s.reason(); r != reason {
			reason = r
			fmt.Fprintf(b, "  %s\n", r)
		}
		fmt.Fprintf(b, "%6d %-5s %s", i, s.Who, s.Call)
		if s.SkipOK != 0 {
			fmt.Fprintf(b, "  ok: go to %d", i+1+int(s.SkipOK))
		}
		if s.OnError != 0 {
			for j, n := range tolerated(s.OnError) {
				if j == 0 {
					b.WriteString("  may fail: ")
				} else {
					b.WriteString(", ")
				}
				b.WriteString(n)
			}
			if s.SkipErr != 0 {
				fmt.Fprintf(b, ": go to %d", i+1+int(s.SkipErr))
			}
		}
		b.WriteByte('\n')
		for _, h := range p.program(s) {
			fmt.Fprintf(b, "       hook    %s\n", h.Call)
		}
	}
	for _, n := range p.Warnings {
		fmt.Fprintf(b, "warning: %s\n", n)
	}
	return b.Flush()
}

// program is what the process that s is about does by itself.
func (p *Plan) program(s *Step) []call.Step {
	if s.Name != RunHook || s.Who != Shim {
		return nil
	}
	return p.Hooks[s.Args[0].Int].Steps
}

type jsonStep struct {
	Index   int      `json:"index"`
	Phase   string   `json:"phase"`
	Who     string   `json:"who"`
	Call    string   `json:"call"`
	Why     string   `json:"why"`
	About   string   `json:"about,omitempty"`
	Program []string `json:"program,omitempty"` // of a hook in the container's namespaces
	MayFail []string `json:"mayFail,omitempty"`
	IfOK    int      `json:"ifOK,omitempty"`    // the step that comes after success, if it is not the next
	IfError int      `json:"ifError,omitempty"` // the same for an error that it may have
}

type jsonPlan struct {
	Steps    []jsonStep `json:"steps"`
	Terminal *int       `json:"terminal,omitempty"`
	Passwd   *int       `json:"passwd,omitempty"`
	Program  string     `json:"program"`
	Found    []int      `json:"found"`
	Exec     []int      `json:"exec"`
	Warnings []string   `json:"warnings,omitempty"`
}

// MarshalJSON writes what Print does, for programs.
func (p *Plan) MarshalJSON() ([]byte, error) {
	j := jsonPlan{
		Steps: make([]jsonStep, len(p.Steps)), Program: p.Lookup.Name,
		Found: append([]int{}, p.Lookup.Steps...), Exec: append([]int{}, p.Lookup.Exec...), Warnings: p.Warnings,
	}
	if p.Terminal >= 0 {
		j.Terminal = &p.Terminal
	}
	if p.Passwd >= 0 {
		j.Passwd = &p.Passwd
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		o := jsonStep{Index: i, Phase: s.Phase.String(), Who: s.Who.String(), Call: s.Call.String(), Why: s.Why, About: s.About, MayFail: tolerated(s.OnError)}
		if s.SkipOK != 0 {
			o.IfOK = i + 1 + int(s.SkipOK)
		}
		if s.OnError != 0 && s.SkipErr != 0 {
			o.IfError = i + 1 + int(s.SkipErr)
		}
		for _, h := range p.program(s) {
			o.Program = append(o.Program, h.Call.String())
		}
		j.Steps[i] = o
	}
	return json.Marshal(j)
}
