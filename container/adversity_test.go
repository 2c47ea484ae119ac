package container

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestWhatIsInTheCgroupOfARefusedContainerLivesOn(t *testing.T) {
	ctx := context.Background()
	r, dir := testRuntime(t), bundle(t)
	first := sleeping(t, r, dir)
	other := bundle(t)
	if _, err := r.Create(ctx, Config{ID: "y", Bundle: other, Spec: defaultSpec(t, "sleep", "1000")}); err == nil {
		t.Error("a second container in the same cgroup")
	}
	if _, err := Cleanup(ctx, "y", other, false); err != nil {
		t.Error(err)
	}
	select {
	case <-first.Init.Exited():
		t.Errorf("the first container ended: %+v", first.Init.Exit())
	case <-time.After(200 * time.Millisecond):
	}
}

func TestNobodyWaitsForAStartThatHangs(t *testing.T) {
	ctx := context.Background()
	r, dir := testRuntime(t), bundle(t)
	for name, end := range map[string]func(c *Container) error{
		"a signal":   func(c *Container) error { return c.Init.Signal(unix.SIGKILL) },
		"a deletion": func(c *Container) error { return c.Init.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			spec := defaultSpec(t, "true")
			spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}}}}
			c, err := r.Create(ctx, Config{ID: "x", Bundle: dir, Spec: spec})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(ctx)
			started := make(chan error, 1)
			go func() { started <- c.Init.Start(ctx) }()
			time.Sleep(50 * time.Millisecond)
			ended := make(chan error, 1)
			go func() {
				c.Init.Pid()
				ended <- end(c)
			}()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("it waits")
			}
			cancel()
			if err := <-started; err == nil {
				t.Error("it was started")
			}
			if err := c.Delete(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestExecsThatRaceWithTheEndOfTheirContainerFailCleanly(t *testing.T) {
	ctx := context.Background()
	r, dir := testRuntime(t), bundle(t)
	n := 60
	if testing.Short() {
		n = 10
	}
	for range n {
		c, err := r.Create(ctx, Config{ID: "x", Bundle: dir, Spec: defaultSpec(t, "sleep", "1000")})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Init.Start(ctx); err != nil {
			t.Fatal(err)
		}
		p := *c.spec.Process
		p.Args = []string{"true"}
		time.AfterFunc(time.Duration(rand.IntN(6000))*time.Microsecond, func() { c.Init.Signal(unix.SIGKILL) })
		for range 3 {
			ex, err := c.Exec(ctx, &p, Stdio{})
			if err != nil {
				t.Fatal(err)
			}
			if err := ex.Start(ctx); err != nil && !errors.Is(err, errdefs.ErrFailedPrecondition) {
				t.Errorf("exec: %v", err)
			}
			if err := ex.Close(); err != nil {
				t.Error(err)
			}
		}
		wait(t, c.Init)
		if err := c.Delete(ctx); err != nil {
			t.Error(err)
		}
	}
}

func TestExecsWithALargeEnvironmentHaveRoom(t *testing.T) {
	ctx := context.Background()
	c := sleeping(t, testRuntime(t), bundle(t))
	p := *c.spec.Process
	p.Args = []string{"true"}
	p.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for range 14 {
		p.Env = append(p.Env, strings.Repeat("x", 100)+"="+strings.Repeat("y", 100<<10))
	}
	for i := range p.Env[1:] {
		p.Env[i+1] = string(rune('a'+i)) + p.Env[i+1]
	}
	failed := make(chan error)
	for range 4 {
		go func() {
			ex, err := c.Exec(ctx, &p, Stdio{})
			if err == nil {
				if err = ex.Start(ctx); err == nil {
					<-ex.Exited()
				}
				err = errors.Join(err, ex.Close())
			}
			failed <- err
		}()
	}
	for range 4 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}
