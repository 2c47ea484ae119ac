package oci

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestRdtIsCompiled(t *testing.T) {
	for patch, want := range map[string]string{
		`{}`:                 `rdt.create("c1", 1, "", ""); rdt.join("c1", "")`,
		`{"closID": "gold"}`: `rdt.create("gold", 0, "", ""); rdt.join("gold", "")`,
		`{"closID": "/", "enableMonitoring": true}`:                                                              `rdt.create("", 0, "", "c1"); rdt.join("", "c1")`,
		`{"closID": "g", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20", "schemata": ["L2:0=1", "MB:1=5"]}`: `rdt.create("g", 1, "L3:0=f\nMB:0=20\nL2:0=1\nMB:1=5\n", ""); rdt.join("g", "")`,
	} {
		spec, err := Parse(edit(t, `{"linux": {"intelRdt": `+patch+`}}`))
		if err != nil {
			t.Fatal(err)
		}
		p, err := Compile(spec, request(), hostV1)
		if err != nil {
			t.Fatal(err)
		}
		check(t, p)
		if got := stepsOf(p, "linux.intelRdt"); got != want {
			t.Errorf("%s: got %s, want %s", patch, got, want)
		}
		if p, err = CompileExec(spec, spec.Process, request(), hostV1); err != nil {
			t.Fatal(err)
		}
		if got := stepsOf(p, "linux.intelRdt"); !strings.HasPrefix(got, "rdt.join(") {
			t.Errorf("%s: an exec: got %s", patch, got)
		}
		if _, err := Compile(spec, request(), hostV2); !errdefs.IsFailedPrecondition(err) || !strings.HasPrefix(err.Error(), "linux.intelRdt: no resctrl file system") {
			t.Errorf("without the file system: %v", err)
		}
	}
	for patch, field := range map[string]string{
		`{"closID": ".."}`: "closID", `{"closID": "a/b"}`: "closID", `{"memBwSchema": "0=20"}`: "memBwSchema",
		`{"l3CacheSchema": "a\nb"}`: "l3CacheSchema", `{"schemata": ["a", "b\n"]}`: "schemata",
	} {
		patch = strings.ReplaceAll(patch, "\n", `\n`)
		if _, err := compileBytes(edit(t, `{"linux": {"intelRdt": `+patch+`}}`)); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), "linux.intelRdt."+field+":") {
			t.Errorf("%s: got %v", patch, err)
		}
	}
}
