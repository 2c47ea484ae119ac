// Package faults has a fault injected at every step of a container's creation,
// and of an exec: the step fails with an errno, or the process is killed
// there. It finds the steps by itself, by going on until a container works.
//
// For a machine without Go, RSYS_FAULTS_SHIM names a directory with a shim built with the tag rsys_inject; for a slow
// one, RSYS_FAULTS_STRIDE is how many steps to go on each time.
package faults

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

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
	return regexp.MustCompile(`(linux|process|mounts|root|hostname|hooks)\S*( \(.*\))?: .*` + how).MatchString(err.Error())
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

// hooked gives a container a hook of each kind, and says which have run: each makes a file in the directory. The hooks in the
// container have it mounted.
func hooked(dir string) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: dir, Destination: "/ran", Options: []string{"rbind"}})
		on := func(kind, dir string) []specs.Hook {
			return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat > /dev/null; echo > " + dir + "/" + kind}, Env: []string{"PATH=/bin:/usr/bin"}}}
		}
		s.Hooks = &specs.Hooks{
			//lint:ignore SA1019 deprecated, and still of the specification
			Prestart:        on("prestart", dir),
			CreateRuntime:   on("createRuntime", dir),
			CreateContainer: on("createContainer", dir),
			StartContainer:  on("startContainer", "/ran"),
			Poststart:       on("poststart", dir),
			Poststop:        on("poststop", dir),
		}
		return nil
	}
}

// All steps near a hook's are tried, and every sixteenth of the others: these are all tested without hooks.
func TestAContainerWithHooksWhoseCreationFailsLeavesNothing(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			failed, before := 0, ""
			for at := 0; ; {
				var fault error
				var ran string
				if !t.Run(fmt.Sprintf("step %d", at), func(t *testing.T) { ran, fault = hookedAttempt(t, at, f.what, f.how) }) {
					return
				}
				if fault == nil {
					if want := "createContainer createRuntime poststart poststop prestart startContainer"; ran != want {
						t.Errorf("without a fault these have run: %s", ran)
					}
					break
				}
				failed++
				// Where another hook begins to run, no step is left out.
				if near := ran != before; near && at > hookStride {
					for back := at - hookStride + 1; back < at; back++ {
						if !t.Run(fmt.Sprintf("step %d", back), func(t *testing.T) { _, fault = hookedAttempt(t, back, f.what, f.how) }) {
							return
						}
						if fault == nil {
							t.Errorf("no fault at %d", back)
						}
						failed++
					}
				}
				before = ran
				at += hookStride
			}
			if failed < 30 {
				t.Errorf("only %d steps were found", failed)
			}
			t.Logf("%d steps", failed)
		})
	}
}

// hookStride is how many steps to go on where no hook is.
const hookStride = 16

func hookedAttempt(t *testing.T, at int, what, how string) (ran string, fault error) {
	e := harness.New(t, daemon)
	dir := t.TempDir()
	c := e.Container([]string{"true"}, oci.WithAnnotations(map[string]string{annotation: fmt.Sprintf("create %d %s", at, what)}), hooked(dir))
	err := c.TryCreate()
	if err == nil {
		err = c.Task.Start(e.Ctx)
	}
	if err == nil {
		if got := c.Wait(); got.Code != 0 {
			t.Errorf("exited with %d", got.Code)
		}
		c.Delete()
	}
	if err != nil && !names(err, how) {
		t.Errorf("error does not name the step: %v", err)
	}
	if c.Task != nil && err != nil {
		c.Task.Delete(e.Ctx, client.WithProcessKill)
		c.Task = nil
	}
	var list []string
	files, rerr := os.ReadDir(dir)
	e.Must(rerr, "read the hooks' directory")
	for _, f := range files {
		list = append(list, f.Name())
	}
	// What was created far enough for one hook of the runtime is told to those of its end.
	if err != nil && len(list) > 0 && !slices.Contains(list, "poststop") {
		t.Errorf("these have run, and poststop not: %v", list)
	}
	return strings.Join(list, " "), err
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
