// Package faults has a fault injected at every step of a container's creation,
// and of an exec: the step fails with an errno, or the process is killed
// there. It finds the steps by itself, by going on until a container works.
//
// For a machine without Go, RSYS_FAULTS_SHIM names a directory with a shim built with the tag rsys_inject; for a slow
// one, RSYS_FAULTS_STRIDE is how many steps to go on each time.
package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/rsys-io/rsys/integration/harness"
)

// annotation is container.InjectAnnotation.
const annotation = "io.rsys.inject"

var daemon *harness.Daemon

func TestMain(m *testing.M) {
	harness.Isolate()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	cfg, err := harness.FromEnv()
	if err != nil {
		return 1, err
	}
	bin := os.Getenv("RSYS_FAULTS_SHIM")
	if bin == "" {
		if bin, err = os.MkdirTemp("", "rsys-faults-"); err != nil {
			return 1, err
		}
		defer os.RemoveAll(bin)
		build := exec.Command("go", "build", "-tags", "rsys_inject", "-o", bin, "./cmd/containerd-shim-rsys-v1")
		build.Dir = "../.."
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("%w\n%s", err, out)
		}
	}
	cfg.Path = append([]string{bin}, cfg.Path...)
	if daemon, err = harness.Start(cfg); err != nil {
		return 1, err
	}
	defer daemon.Stop()
	return m.Run(), nil
}

// steps runs attempt for each step from 0 on, until there was no fault: the
// step does not exist.
func steps(t *testing.T, attempt func(t *testing.T, at int) (fault error)) {
	stride := 1
	if n, err := strconv.Atoi(os.Getenv("RSYS_FAULTS_STRIDE")); err == nil && n > 1 {
		stride = n
	}
	for at := 0; ; at += stride {
		var fault error
		if !t.Run(fmt.Sprintf("step %d", at), func(t *testing.T) { fault = attempt(t, at) }) {
			return
		}
		if fault == nil {
			t.Logf("%d steps", at)
			if at < 20 {
				t.Errorf("only %d steps were found", at)
			}
			return
		}
	}
}

// names reports whether an error says which step it was, by its config field and its call, and how it failed.
func names(err error, how string) bool {
	return regexp.MustCompile(`(linux|process|mounts|root|hostname)\S*( \(.*\))?: .*` + how).MatchString(err.Error())
}

var faults = []struct{ name, what, how string }{
	{"fails", "EIO", `input/output error`},
	{"is killed", "kill", `(killed by SIG(KILL|SEGV) (in \w+|between calls)|no process)`},
}

func TestAContainerWhoseCreationFailsAtAnyStepLeavesNothing(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			steps(t, func(t *testing.T, at int) error {
				e := harness.New(t, daemon)
				c := e.Container([]string{"true"}, oci.WithAnnotations(map[string]string{annotation: fmt.Sprintf("create %d %s", at, f.what)}))
				err := c.TryCreate()
				if err == nil {
					err = c.Task.Start(e.Ctx)
				}
				if err == nil {
					if got := c.Wait(); got.Code != 0 {
						t.Errorf("exited with %d", got.Code)
					}
					c.Delete()
					return nil
				}
				if !names(err, f.how) {
					t.Errorf("error does not name the step: %v", err)
				}
				if at%100 == 0 {
					t.Log(err)
				}
				return err
			})
		})
	}
}

func TestAnExecThatFailsAtAnyStepLeavesTheContainerAsItWas(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			steps(t, func(t *testing.T, at int) error {
				e := harness.New(t, daemon)
				c := e.Container(harness.Sleep(), oci.WithAnnotations(map[string]string{annotation: fmt.Sprintf("exec %d %s", at, f.what)})).Run()
				spec, err := c.Spec(e.Ctx)
				e.Must(err, "spec")
				p := *spec.Process
				p.Args = []string{"true"}
				ex, err := c.Task.Exec(e.Ctx, "x", &p, cio.NullIO)
				e.Must(err, "exec")
				exit, err := ex.Wait(e.Ctx)
				e.Must(err, "wait")
				fault := ex.Start(e.Ctx)
				if fault != nil && !names(fault, f.how) {
					t.Errorf("error does not name the step: %v", fault)
				}
				if fault == nil {
					select {
					case st := <-exit:
						if st.ExitCode() != 0 {
							t.Errorf("exited with %d", st.ExitCode())
						}
					case <-time.After(harness.Patience):
						t.Error("no exit")
					}
				}
				_, err = ex.Delete(e.Ctx)
				e.Must(err, "delete the exec")
				if st := c.Status(); st != client.Running {
					t.Errorf("the container is %s", st)
				}
				if left, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", c.Task.Pid())); len(left) != 1 {
					t.Errorf("init has %d threads", len(left))
				}
				return fault
			})
		})
	}
}
