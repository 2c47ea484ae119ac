package cri

import (
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestALogHasBothStreamsLinesAndTimes(t *testing.T) {
	p := start(t).Run()
	began := time.Now()
	long := 40000 // more than a line of a log has: 16 KiB
	c := p.Container(harness.Sh("echo to stdout", "echo to stderr >&2", "head -c 40000 /dev/zero | tr '\\0' l; echo", "printf 'no end'")...)
	c.Wait()
	if got, want := c.Output("stdout"), "to stdout\n"+strings.Repeat("l", long)+"\nno end"; got != want && got != want+"\n" {
		t.Errorf("stdout: %d bytes, %.40q", len(got), got)
	}
	if got := c.Output("stderr"); got != "to stderr\n" {
		t.Errorf("stderr: %q", got)
	}
	partial := 0
	for _, l := range c.Log() {
		if l.Time.Before(began.Add(-time.Second)) || l.Time.After(time.Now()) {
			t.Errorf("a line of %v", l.Time)
		}
		if l.Tags == "P" {
			partial++
		}
	}
	if partial < 2 {
		t.Errorf("a line of %d bytes is in %d parts", long, partial+1)
	}
}

func TestALogThatIsRotatedGoesOnInTheNewFile(t *testing.T) {
	p := start(t).Run()
	c := p.Container(harness.Sh("trap 'exit 0' TERM", "i=0", "while :; do i=$((i+1)); echo $i; sleep 0.01; done")...)
	var files []string
	for n := range 3 {
		p.Eventually("there is a log", func() bool { return len(c.Log()) > 5 })
		old := c.LogFile() + "." + string(rune('a'+n))
		p.Must(os.Rename(c.LogFile(), old), "rotate")
		files = append(files, old)
		_, err := p.CRI.ReopenContainerLog(p.Ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID})
		p.Must(err, "reopen the log")
	}
	p.Eventually("there is a log", func() bool { return len(c.Log()) > 5 })
	c.Stop(10 * time.Second)
	c.Wait()
	// Each line once, in order, over all the files.
	next := 1
	for _, f := range append(files, c.LogFile()) {
		for _, l := range p.ReadLog(f) {
			if l.Text != itoa(next) {
				t.Fatalf("%s: line %q where %d is due", f, l.Text, next)
			}
			next++
		}
	}
	if next < 20 {
		t.Errorf("only %d lines", next)
	}
}

func TestALogOfMuchOutputIsWhole(t *testing.T) {
	p := start(t).Run()
	c := p.Container(harness.Sh("yes 'a line of some length, as programs write them to a log' | head -n 200000")...)
	if st := c.Wait(); st.ExitCode != 0 {
		t.Fatalf("%v", st)
	}
	if got := len(c.Log()); got != 200000 {
		t.Errorf("%d lines of 200000", got)
	}
}
