//lint:file-ignore SA1019 Hooks.Prestart is deprecated, and has to work all the same.

package oci

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// allHooks has two hooks of each kind, of whom one says all there is to say.
func allHooks() *specs.Hooks {
	five := 5
	two := func(kind string) []specs.Hook {
		return []specs.Hook{
			{Path: "/usr/bin/nerdctl", Args: []string{"nerdctl", "internal", kind}, Env: []string{"PATH=/bin", "K=" + kind}, Timeout: &five},
			{Path: "/opt/hook"},
		}
	}
	return &specs.Hooks{
		Prestart: two("prestart"), CreateRuntime: two("createRuntime"), CreateContainer: two("createContainer"),
		StartContainer: two("startContainer"), Poststart: two("poststart"), Poststop: two("poststop"),
	}
}

func TestHooksStandAtTheirPlace(t *testing.T) {
	spec := readSpec(t, "ctr-2.4.2")
	spec.Hooks = allHooks()
	p, err := Compile(spec, request(), hostV1)
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	hooks := 0
	for i := range p.Steps {
		s := &p.Steps[i]
		name := s.Name
		switch {
		case name == RunHook:
			h := p.Hooks[s.Args[0].Int]
			if want := item("hooks."+string(h.Kind), hooks%2); s.Why != want || s.About != h.Path || s.Who != Shim {
				t.Errorf("step %d: %s (%s), want %s", i, s.Why, s.About, want)
			}
			hooks++
			name = string(h.Kind)
		case name == "fsopen" && strings.HasPrefix(s.Why, "mounts["):
			name = "mounts"
		case name != "pivot_root" && name != "seccomp" && name != "execve" && name != "clone3":
			continue
		}
		if s.Phase != Create {
			name = s.Phase.String() + ":" + name
		}
		if n := len(order); n == 0 || order[n-1] != name {
			order = append(order, name)
		}
	}
	if want := strings.Fields("clone3 mounts prestart createRuntime createContainer pivot_root start:startContainer start:seccomp start:execve started:poststart deleted:poststop"); !slices.Equal(order, want) {
		t.Errorf("got  %s\nwant %s", order, want)
	}
}

func TestAHooksDefaultsAreThoseOfRunc(t *testing.T) {
	spec := readSpec(t, "nerdctl")
	spec.Hooks = allHooks()
	p, err := Compile(spec, request(), hostV1)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range p.Hooks {
		if h.Path != "/opt/hook" {
			continue
		}
		if !slices.Equal(h.Args, []string{"/opt/hook"}) || h.Timeout != 0 {
			t.Errorf("%s: %+v", h.Kind, h)
		}
		env := "the shim's"
		if h.Env != nil {
			env = strings.Join(h.Env, " ")
		}
		want := map[HookKind]string{CreateContainer: "", StartContainer: strings.Join(spec.Process.Env, " ")}
		if w, ok := want[h.Kind]; ok && env != w || !ok && env != "the shim's" {
			t.Errorf("%s: environment %s", h.Kind, env)
		}
	}
}

func TestAStartContainerHookIsAnExecOfItsPath(t *testing.T) {
	spec := readSpec(t, "ctr-tty")
	h := &Hook{Kind: StartContainer, Path: "/sbin/ldconfig", Args: []string{"ldconfig", "-v"}, Env: []string{"A=1", "PATH=/x"}}
	p, proc, err := CompileHook(spec, h, request(), hostV1)
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	last := p.Steps[len(p.Steps)-1].Call.String()
	if want := `execve("/sbin/ldconfig", ["ldconfig", "-v"], ["A=1", "PATH=/x"])`; last != want {
		t.Errorf("got %s, want %s", last, want)
	}
	if p.Terminal >= 0 || proc.Terminal || !spec.Process.Terminal {
		t.Error("it has the container's terminal, or took it away")
	}
}

func TestHooksAreChecked(t *testing.T) {
	for patch, field := range map[string]string{
		`{"hooks": {"prestart": [{"path": "/a"}, {"path": "b"}]}}`:                  "hooks.prestart[1].path",
		`{"hooks": {"createRuntime": [{}]}}`:                                        "hooks.createRuntime[0].path",
		`{"hooks": {"createContainer": [{"path": "/a", "timeout": 0}]}}`:            "hooks.createContainer[0].timeout",
		`{"hooks": {"startContainer": [{"path": "/a", "timeout": -1}]}}`:            "hooks.startContainer[0].timeout",
		`{"hooks": {"poststart": [{"path": "/a", "args": ["a", "b\u0000"]}]}}`:      "hooks.poststart[0].args[1]",
		`{"hooks": {"poststop": [{"path": "/a", "env": ["a=\u0000"]}]}}`:            "hooks.poststop[0].env[0]",
		`{"hooks": {"poststop": [{"path": "/a", "timeout": "5"}]}}`:                 "hooks.poststop.timeout",
		`{"hooks": {"poststop": [{"path": "/a", "timeout": 4611686018427387904}]}}`: "hooks.poststop[0].timeout",
	} {
		if _, err := compileBytes(edit(t, patch)); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), field+":") {
			t.Errorf("%s: got %v", field, err)
		}
	}
}
