// Package ptrace has a container's init attack what is exec'd in the
// container before it is the program that was asked for; see command rsys-ptracer.
package ptrace

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rsys-io/rsys/integration/harness"
)

const (
	planted = "planted-4b1d7e52c09a"
	group   = "io.containerd.runc.v2.group"
)

func TestMain(m *testing.M) {
	harness.Isolate()
	os.Exit(m.Run())
}

// build builds a command of this repository.
func build(t *testing.T, module, pkg, dir string, tags string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-tags", tags, "-o", dir+"/", pkg)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
}

// attack has execs go into a container whose init attacks them, and returns what that found.
func attack(t *testing.T, tags string, execs int) (findings []string) {
	bin := t.TempDir()
	build(t, "../..", "./cmd/containerd-shim-rsys-v1", bin, tags)
	build(t, "..", "./cmd/rsys-ptracer", bin, "")
	// containerd hands its environment to the shim.
	t.Setenv("PLANTED", planted)
	cfg, err := harness.FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Path = append([]string{bin}, cfg.Path...)
	daemon, err := harness.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Stop()
	os.Unsetenv("PLANTED")
	t.Run("attack", func(t *testing.T) {
		e := harness.New(t, daemon)
		together := oci.WithAnnotations(map[string]string{group: "g"})
		// The neighbour's execs pass their environment through the same shim and stub.
		neighbour := e.Container(harness.Sleep(), together).Run()
		enemy := e.Container([]string{"/enemy", planted}, together,
			oci.WithAddedCapabilities([]string{"CAP_SYS_PTRACE"}),
			oci.WithMounts([]specs.Mount{{Destination: "/enemy", Type: "bind", Source: filepath.Join(bin, "rsys-ptracer"), Options: []string{"bind", "ro"}}}))
		// Its own argument is not to be found in what it looks at.
		enemy.Run()
		e.Eventually("the enemy is ready", func() bool { return strings.Contains(enemy.IO.Stdout.String(), "ready") })
		run := func(c *harness.Container, id string, env ...string) error {
			spec, err := c.Spec(e.Ctx)
			if err != nil {
				return err
			}
			p := *spec.Process
			p.Args, p.Env = []string{"true"}, append(append([]string{}, p.Env...), env...)
			ex, err := c.Task.Exec(e.Ctx, id, &p, cio.NullIO)
			if err != nil {
				return err
			}
			exit, err := ex.Wait(e.Ctx)
			if err != nil {
				return err
			}
			if err = ex.Start(e.Ctx); err == nil {
				if st := <-exit; st.ExitCode() != 0 {
					err = fmt.Errorf("exit code %d", st.ExitCode())
				}
			}
			if _, delErr := ex.Delete(context.WithoutCancel(e.Ctx)); err == nil {
				err = delErr
			}
			return err
		}
		var wg sync.WaitGroup
		failed := 0
		var mu sync.Mutex
		for w := range 2 {
			wg.Go(func() {
				for i := range execs / 2 {
					if i%10 == 0 {
						if err := run(neighbour, fmt.Sprintf("n%d-%d", w, i), "SECRET="+planted); err != nil {
							t.Errorf("exec in the neighbour: %v", err)
						}
					}
					if err := run(enemy, fmt.Sprintf("e%d-%d", w, i)); err != nil {
						mu.Lock()
						failed++
						mu.Unlock()
						if failed < 5 {
							t.Logf("an exec failed: %v", err)
						}
					}
				}
			})
		}
		wg.Wait()
		enemy.Kill(syscall.SIGTERM)
		got := enemy.Wait()
		for line := range strings.Lines(got.Stdout) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "looked at ") {
				t.Logf("%s of %d execs, of which %d failed; %d findings", line, execs, failed, len(findings))
			} else if line != "ready" {
				findings = append(findings, line)
			}
		}
		enemy.Delete()
		neighbour.Kill(syscall.SIGKILL)
		neighbour.Wait()
		neighbour.Delete()
	})
	return findings
}

func TestNobodyInTheContainerSeesMoreThanItHas(t *testing.T) {
	found := attack(t, "", 500)
	for i, f := range found {
		if i < 10 {
			t.Errorf("found %s", f)
		}
	}
}

// The test proves itself: processes that enter the namespace with their privileges are caught.
func TestTheAttackCatchesWhatIsPrivileged(t *testing.T) {
	found := strings.Join(attack(t, "rsys_plain", 100), "\n")
	for _, want := range []string{"capabilities ", "planted bytes ", "descriptor "} {
		if !strings.Contains(found, want) {
			t.Errorf("did not find %q", want)
		}
	}
	t.Logf("%.600s", found)
}
