package criu

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// An Error is a request that criu could not carry out.
type Error struct {
	Err   error
	Says  []string // the errors in its log, or else what it wrote to its standard error
	Log   string   // the path of the log; empty if there is none
	lines int
}

func (e *Error) Error() string {
	s := "criu: " + e.Err.Error()
	if len(e.Says) > 0 {
		s += ": " + strings.Join(e.Says, "; ")
	}
	if e.lines > len(e.Says) {
		s += fmt.Sprintf("; and %d lines more", e.lines-len(e.Says))
	}
	if e.Log != "" {
		s += " (log: " + e.Log + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// maxLines and maxLine bound what of the log gets into an error, which goes over a wire and to a terminal.
const (
	maxLines = 6
	maxLine  = 300
)

func failure(err error, stderr, dir, name string, since time.Time) error {
	e := &Error{Err: err}
	if path := filepath.Join(dir, name); name != "" && e.read(path, since) {
		e.Log = path
	}
	var r *refused
	if len(e.Says) == 0 && errors.As(err, &r) {
		e.add(r.msg)
	}
	if len(e.Says) == 0 {
		for line := range strings.Lines(stderr) {
			e.add(line)
		}
	}
	return e
}

// read takes the errors of a log that criu has written since: another's may lie there.
func (e *Error) read(path string, since time.Time) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.ModTime().Before(since.Add(-time.Second)) {
		return false
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if _, text, ok := strings.Cut(lines.Text(), "Error "); ok {
			e.add(text)
		}
	}
	return true
}

func (e *Error) add(line string) {
	line = strings.TrimSpace(line)
	if line == "" {
		return
	}
	e.lines++
	if len(e.Says) == maxLines {
		return
	}
	if len(line) > maxLine {
		line = line[:maxLine] + "…"
	}
	e.Says = append(e.Says, line)
}

// A head keeps the first few kilobytes that are written to it.
type head struct{ buf []byte }

func (t *head) Write(p []byte) (int, error) {
	if room := 4096 - len(t.buf); room > 0 {
		t.buf = append(t.buf, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (t *head) String() string { return string(t.buf) }
