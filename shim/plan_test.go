package shim

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestPlanVerb(t *testing.T) {
	bundle := newBundle(t, `{"ociVersion":"1.2.0","process":{"args":["sh"],"cwd":"/","user":{"uid":0,"gid":0}},
		"root":{"path":"rootfs"},"linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}}`)
	var out bytes.Buffer
	if err := printPlan([]string{bundle}, &out); err != nil || !strings.Contains(out.String(), "setresuid") {
		t.Errorf("%v: %s", err, out.String())
	}
	out.Reset()
	var plan struct{ Steps []json.RawMessage }
	if err := printPlan([]string{"--json", bundle}, &out); err != nil {
		t.Error(err)
	} else if err := json.Unmarshal(out.Bytes(), &plan); err != nil || len(plan.Steps) == 0 {
		t.Errorf("%v: %s", err, out.String())
	}
	if err := printPlan([]string{newBundle(t, `{"process":`)}, &out); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	for _, args := range [][]string{nil, {"-x"}, {bundle, bundle}} {
		if printPlan(args, &out) == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
