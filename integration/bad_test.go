package integration

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/integration/harness"
	"google.golang.org/protobuf/types/known/anypb"
)

// edit changes a spec as plain JSON, so that it can become what no spec is.
func edit(f func(spec, process, linux map[string]any)) func([]byte) []byte {
	return func(data []byte) []byte {
		var spec map[string]any
		if err := json.Unmarshal(data, &spec); err != nil {
			panic(err)
		}
		f(spec, spec["process"].(map[string]any), spec["linux"].(map[string]any))
		data, err := json.Marshal(spec)
		if err != nil {
			panic(err)
		}
		return data
	}
}

func TestABadConfigIsRefusedAndNothingIsLeft(t *testing.T) {
	for _, test := range []struct {
		name  string
		make  func([]byte) []byte
		field string // that our error names; empty when there is no field to name
	}{
		{"empty", func([]byte) []byte { return nil }, ""},
		{"not JSON", func([]byte) []byte { return []byte("hello") }, ""},
		{"truncated", func(b []byte) []byte { return b[:len(b)/2] }, ""},
		{"an array", func([]byte) []byte { return []byte("[]") }, ""},
		{"a process that is a number", edit(func(spec, _, _ object) { spec["process"] = 3 }), "process"},
		{"no process", edit(func(spec, _, _ object) { delete(spec, "process") }), "process"},
		{"no args", edit(func(_, process, _ object) { delete(process, "args") }), "process.args"},
		{"args of numbers", edit(func(_, process, _ object) { process["args"] = []int{1} }), "args"},
		{"no cwd", edit(func(_, process, _ object) { process["cwd"] = "" }), "process.cwd"},
		{"a relative cwd", edit(func(_, process, _ object) { process["cwd"] = "tmp" }), "process.cwd"},
		{"a negative uid", edit(func(_, process, _ object) { process["user"] = object{"uid": -1, "gid": 0} }), "uid"},
		{"a uid beyond 32 bits", edit(func(_, process, _ object) { process["user"] = object{"uid": int64(1) << 33, "gid": 0} }), "uid"},
		{"an unknown namespace", edit(func(_, _, linux object) {
			linux["namespaces"] = append(linux["namespaces"].([]any), object{"type": "nosuch"})
		}), "linux.namespaces"},
		{"a namespace twice", edit(func(_, _, linux object) {
			linux["namespaces"] = append(linux["namespaces"].([]any), object{"type": "ipc"})
		}), "linux.namespaces"},
		{"an unknown rlimit", edit(func(_, process, _ object) {
			process["rlimits"] = []object{{"type": "RLIMIT_NOSUCH", "soft": 1, "hard": 1}}
		}), "process.rlimits"},
		{"an unknown seccomp action", edit(func(_, _, linux object) {
			linux["seccomp"] = object{"defaultAction": "SCMP_ACT_NOSUCH"}
		}), "linux.seccomp"},
		{"a sysctl of the host", edit(func(_, _, linux object) { linux["sysctl"] = object{"vm.swappiness": "1"} }), "linux.sysctl"},
		{"a hostname without a namespace for it", edit(func(spec, _, linux object) {
			spec["hostname"] = "mine"
			linux["namespaces"] = []object{{"type": "mount"}, {"type": "pid"}}
		}), "hostname"},
		{"a device of an unknown type", edit(func(_, _, linux object) {
			linux["devices"] = []object{{"path": "/dev/x", "type": "z", "major": 1, "minor": 1}}
		}), "linux.devices"},
		{"a mount without a destination", edit(func(spec, _, _ object) {
			spec["mounts"] = append(spec["mounts"].([]any), object{"type": "tmpfs", "source": "tmpfs"})
		}), "mounts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t)
			if test.field == "" {
				// containerd reads the spec before the shim does, fails, and
				// leaves the bundle it was making.
				e.MayLeave("directory " + filepath.Dir(e.Bundle("x")))
			}
			c := e.Container([]string{"true"})
			info, err := c.Info(e.Ctx)
			e.Must(err, "info")
			bad := test.make(bytes.Clone(info.Spec.GetValue()))
			info.Spec = &anypb.Any{TypeUrl: info.Spec.GetTypeUrl(), Value: bad}
			_, err = e.Client.ContainerService().Update(e.Ctx, info, "spec")
			e.Must(err, "put the bad spec")
			if err = createRaw(e, c.ID()); err == nil {
				err = startRaw(e, c.ID())
			}
			if err == nil {
				t.Fatal("it was created and started")
			}
			if peer() {
				return // that it is refused is all we ask of others
			}
			if test.field != "" && !strings.Contains(err.Error(), test.field) {
				t.Errorf("the error does not name %s: %v", test.field, err)
			}
			byContainerd := strings.Contains(err.Error(), "failed to validate OCI runtime features")
			if !errdefs.IsInvalidArgument(err) && test.field != "" && !byContainerd {
				t.Errorf("the error is not an invalid argument: %v", err)
			}
		})
	}
}

func TestABadExecIsRefused(t *testing.T) {
	e := start(t)
	c := e.Container(harness.Sleep(), oci.WithPidsLimit(100)).Run()
	for _, test := range []struct {
		name   string
		change func(*specs.Process)
	}{
		{"no args", func(p *specs.Process) { p.Args = nil }},
		{"a relative cwd", func(p *specs.Process) { p.Cwd = "tmp" }},
		{"an unknown rlimit", func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOSUCH"}} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			process, err := c.Task.Exec(e.Ctx, "bad-"+strings.ReplaceAll(test.name, " ", "-"), c.Process([]string{"true"}, test.change), nullIO)
			if err == nil {
				defer process.Delete(e.Ctx)
				err = process.Start(e.Ctx)
			}
			if err == nil {
				t.Error("it was started")
			}
		})
	}
	if got := c.RunExec("true"); got.Code != 0 {
		t.Errorf("an exec after that: %+v", got)
	}
}
