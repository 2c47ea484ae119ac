package oci

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func notifySpec(names, more string) string {
	return `{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"` + more + `, "syscalls": [{"names": [` + names + `], "action": "SCMP_ACT_NOTIFY"}]}}}`
}

func TestAListenerIsSentBetweenTheFilterAndExecve(t *testing.T) {
	p, err := compileBytes(edit(t, notifySpec(`"mkdir"`, `, "listenerPath": "/run/agent.sock", "listenerMetadata": "x=y"`)))
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	var after []string
	for i := range p.Steps {
		if s := &p.Steps[i]; s.Name == "seccomp" || len(after) > 0 {
			after = append(after, s.Name)
			if s.Name == SendListener {
				if got := s.Call.String(); !strings.HasSuffix(got, `, "/run/agent.sock", "x=y")`) || s.Why != "linux.seccomp.listenerPath" {
					t.Errorf("%s: %s", s.Why, got)
				}
			}
		}
	}
	if got := strings.Join(after, " "); !strings.HasPrefix(got, "seccomp listener") || !strings.HasSuffix(got, "execve") {
		t.Errorf("got %s", got)
	}
}

func TestListenersAreChecked(t *testing.T) {
	for patch, field := range map[string]string{
		notifySpec(`"mkdir"`, ``):                                     "linux.seccomp.listenerPath: missing",
		notifySpec(`"mkdir"`, `, "listenerPath": "a.sock"`):           "linux.seccomp.listenerPath:",
		notifySpec(`"mkdir"`, `, "listenerMetadata": "m"`):            "linux.seccomp.listenerMetadata:",
		notifySpec(`"mkdir", "read"`, `, "listenerPath": "/a.sock"`):  "linux.seccomp.syscalls: read must be allowed",
		notifySpec(`"mkdir", "write"`, `, "listenerPath": "/a.sock"`): "linux.seccomp.syscalls[0].names[1]",
	} {
		if _, err := compileBytes(edit(t, patch)); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestAnExecWithAListenerIsNotBornAndSaysSo(t *testing.T) {
	spec, err := Parse(edit(t, notifySpec(`"mkdir"`, `, "listenerPath": "/run/agent.sock"`)))
	if err != nil {
		t.Fatal(err)
	}
	req := request()
	req.Born = true
	p, err := CompileExec(spec, spec.Process, req, hostV1)
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	if p.Birth >= 0 || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "SCMP_ACT_NOTIFY") {
		t.Errorf("birth %d, warnings %q", p.Birth, p.Warnings)
	}
}
