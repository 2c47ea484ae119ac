// Package faults has a fault injected at every step of a container's creation,
// and of an exec: the step fails with an errno, or the process is killed
// there. It finds the steps by itself, by going on until a container works.
//
// For a machine without Go, RSYS_FAULTS_SHIM names a directory with a shim built with the tag rsys_inject; for a slow
// one, RSYS_FAULTS_STRIDE is how many steps to go on each time.
package faults

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(atOnce)); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// batch is how many steps are tried between two looks at what is left behind; some of them at once. A look takes
// as long as a creation, and each thing that is left has the step in its name.
const batch, atOnce = 16, 4

// try runs attempt for some steps, and tells which of them it found a fault at: those that exist. A container that is made for
// a step has the name that id gives it.
func try(t *testing.T, at []int, attempt func(e *harness.Env, at int) (fault error)) (found map[int]bool, ok bool) {
	found = map[int]bool{}
	var mu sync.Mutex
	for some := range slices.Chunk(at, batch) {
		ok = t.Run(fmt.Sprintf("steps %d to %d", some[0], some[len(some)-1]), func(t *testing.T) {
			e := harness.New(t, daemon)
			t.Run("each", func(t *testing.T) { // is over when all are
				for _, at := range some {
					t.Run(fmt.Sprintf("step %d", at), func(t *testing.T) {
						t.Parallel()
						part := *e
						part.TB = t
						fault := attempt(&part, at)
						mu.Lock()
						defer mu.Unlock()
						found[at] = fault != nil
					})
				}
			})
		})
		if !ok {
			return found, false
		}
		if !slices.ContainsFunc(some, func(at int) bool { return found[at] }) {
			break
		}
	}
	return found, true
}

// add adds a container with a fault.
func add(e *harness.Env, plan string, at int, what string, args []string, opts ...oci.SpecOpts) *harness.Container {
	e.Helper()
	opts = append(opts, oci.WithAnnotations(map[string]string{annotation: fmt.Sprintf("%s %d %s", plan, at, what)}))
	c, err := e.TryContainer(fmt.Sprintf("f%d-step-%d", os.Getpid()%1000, at), args, opts...)
	e.Must(err, "new container")
	return c
}

// maxSteps is more than any Plan here has.
const maxSteps = 2000

func every(stride int) (at []int) {
	for i := 0; i < maxSteps; i += stride {
		at = append(at, i)
	}
	return at
}

// steps runs attempt for each step from 0 on, until there was no fault: the
// step does not exist.
func steps(t *testing.T, attempt func(e *harness.Env, at int) (fault error)) {
	stride := 1
	if n, err := strconv.Atoi(os.Getenv("RSYS_FAULTS_STRIDE")); err == nil && n > 1 {
		stride = n
	}
	found, ok := try(t, every(stride), attempt)
	if !ok {
		return
	}
	n := end(t, found, stride)
	t.Logf("%d steps", n)
	if n < 20 {
		t.Errorf("only %d steps were found", n)
	}
}

// end is the first step that does not exist. Two of an exec exist and have no fault: a chdir that is passed over where the
// working directory is the root, and the birth, which is in no program.
func end(t *testing.T, found map[int]bool, stride int) int {
	n, holes := 0, 0
	for at, is := range found {
		if is {
			n = max(n, at+stride)
		}
	}
	for at := 0; at < n; at += stride {
		if !found[at] {
			holes++
			t.Logf("no fault at %d", at)
		}
	}
	if holes > 2 {
		t.Errorf("no fault at %d steps", holes)
	}
	if _, tried := found[n]; !tried {
		t.Errorf("more than %d steps, and no end", maxSteps)
	}
	return n
}

// names reports whether an error says which step it was, by its config field and its call, and how it failed; of the look-up of
// a program it says which program.
func names(err error, how string) bool {
	return regexp.MustCompile(`((linux|process|mounts|root|hostname|hooks)\S*( \(.*\))?|exec: "true"): .*` + how).MatchString(err.Error())
}

var faults = []struct{ name, what, how string }{
	{"fails", "EIO", `input/output error`},
	{"is killed", "kill", `(killed by SIG(KILL|SEGV) (in \w+|between calls)|no process)`},
}

func TestAContainerWhoseCreationFailsAtAnyStepLeavesNothing(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			steps(t, func(e *harness.Env, at int) error {
				c := add(e, "create", at, f.what, []string{"true"})
				err := c.TryCreate()
				if err == nil {
					err = c.Task.Start(e.Ctx)
				}
				if err == nil {
					if got := c.Wait(); got.Code != 0 {
						e.Errorf("exited with %d", got.Code)
					}
					c.Delete()
					return nil
				}
				if !names(err, f.how) {
					e.Errorf("error does not name the step: %v", err)
				}
				if at%100 == 0 {
					e.TB.Log(err)
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
			var mu sync.Mutex
			ran := map[int]string{}
			attempt := func(e *harness.Env, at int) error {
				done, fault := hookedAttempt(e, at, f.what, f.how)
				mu.Lock()
				defer mu.Unlock()
				ran[at] = done
				return fault
			}
			found, ok := try(t, every(hookStride), attempt)
			if !ok {
				return
			}
			last := end(t, found, hookStride)
			if want := "createContainer createRuntime poststart poststop prestart startContainer"; ran[last] != want {
				t.Errorf("without a fault these have run: %s", ran[last])
			}
			// Where another hook begins to run, no step is left out.
			var near []int
			for at := 2 * hookStride; at < last; at += hookStride {
				if ran[at] != ran[at-hookStride] {
					for back := at - hookStride + 1; back < at; back++ {
						near = append(near, back)
					}
				}
			}
			if found, ok = try(t, near, attempt); !ok {
				return
			}
			for _, at := range near {
				if !found[at] {
					t.Errorf("no fault at %d", at)
				}
			}
			failed := last/hookStride + len(near)
			if failed < 30 {
				t.Errorf("only %d steps were found", failed)
			}
			t.Logf("%d steps", failed)
		})
	}
}

// hookStride is how many steps to go on where no hook is.
const hookStride = 16

func hookedAttempt(e *harness.Env, at int, what, how string) (ran string, fault error) {
	dir := e.TempDir()
	c := add(e, "create", at, what, []string{"true"}, hooked(dir))
	err := c.TryCreate()
	if err == nil {
		err = c.Task.Start(e.Ctx)
	}
	if err == nil {
		if got := c.Wait(); got.Code != 0 {
			e.Errorf("exited with %d", got.Code)
		}
		c.Delete()
	}
	if err != nil && !names(err, how) {
		e.Errorf("error does not name the step: %v", err)
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
		e.Errorf("these have run, and poststop not: %v", list)
	}
	return strings.Join(list, " "), err
}

func TestAnExecThatFailsAtAnyStepLeavesTheContainerAsItWas(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			steps(t, func(e *harness.Env, at int) error {
				c := add(e, "exec", at, f.what, harness.Sleep()).Run()
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
					e.Errorf("error does not name the step: %v", fault)
				}
				if fault == nil {
					select {
					case st := <-exit:
						if st.ExitCode() != 0 {
							e.Errorf("exited with %d", st.ExitCode())
						}
					case <-time.After(harness.Patience):
						e.Error("no exit")
					}
				}
				_, err = ex.Delete(e.Ctx)
				e.Must(err, "delete the exec")
				if st := c.Status(); st != client.Running {
					e.Errorf("the container is %s", st)
				}
				if left, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", c.Task.Pid())); len(left) != 1 {
					e.Errorf("init has %d threads", len(left))
				}
				return fault
			})
		})
	}
}
