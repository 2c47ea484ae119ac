package container

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys/call"
)

func hooked(t *testing.T) *Container {
	return &Container{containerState: containerState{id: "c1", bundle: t.TempDir(), spec: &specs.Spec{Version: "1.3.0", Annotations: map[string]string{"k": "v"}}}}
}

func runOutside(t *testing.T, ctx context.Context, script string, timeout time.Duration) error {
	t.Helper()
	c := hooked(t)
	plan := &oci.Plan{Hooks: []oci.Hook{{Kind: oci.Poststop, Path: "/bin/sh", Args: []string{"sh", "-c", script}, Timeout: timeout, Status: specs.StateStopped}}}
	s := oci.Step{}
	s.Args = append(s.Args, call.Int(0))
	return c.hook(ctx, &run{plan: plan}, &s)
}

func TestHooksOutcomes(t *testing.T) {
	for _, test := range []struct{ name, script, want string }{
		{"success", "cat >/dev/null", ""},
		{"its input not read", "exit 0", ""},
		{"a status", "exit 7", "exited with status 7"},
		{"the last line of what it complains of", "echo a >&2; echo b >&2; echo; echo c; exit 1", "exited with status 1: b"},
		{"the last line of what it says", "echo c; exit 1", "exited with status 1: c"},
		{"much output", "head -c 300000 /dev/zero | tr '\\0' x; echo; echo end; exit 1", "exited with status 1: end"},
		{"a signal", "kill -TERM $$", "killed by SIGTERM"},
		{"a daemon left behind that holds its output", "sleep 2 & exit 0", ""},
		{"a failure with a daemon that holds its output", "echo why >&2; sleep 2 & exit 5", "exited with status 5: why"},
	} {
		t.Run(test.name, func(t *testing.T) {
			began := time.Now()
			err := runOutside(t, t.Context(), test.script, 0)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if took := time.Since(began); took > 1900*time.Millisecond {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestAHookIsKilledWithAllItsGroupWhenItsTimeIsOver(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	err := runOutside(t, t.Context(), "sleep 3600 & echo $! > "+pid+"; wait", 200*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "timeout of 200ms") {
		t.Errorf("got %v", err)
	}
	data, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(data)) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("what it started still runs")
}

func TestAHookEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := runOutside(t, ctx, "sleep 3600", 0); err == nil || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("got %v", err)
	}
}

func TestAHookGetsTheStateInItsBundle(t *testing.T) {
	c := hooked(t)
	plan := &oci.Plan{Hooks: []oci.Hook{{Kind: oci.Poststop, Path: "/bin/sh", Args: []string{"sh", "-c", "cat > state"}, Status: specs.StateStopped}}}
	s := oci.Step{}
	s.Args = append(s.Args, call.Int(0))
	if err := c.hook(t.Context(), &run{plan: plan}, &s); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(c.bundle, "state"))
	if err != nil {
		t.Fatal(err)
	}
	var got specs.State
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.ID != "c1" || got.Status != specs.StateStopped || got.Bundle != c.bundle || got.Version != "1.3.0" || got.Annotations["k"] != "v" || got.Pid != 0 {
		t.Errorf("got %+v", got)
	}
}
