package seccomp

import (
	"encoding/json"
	"testing"

	docker "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// dockerProfile is what Docker makes of its default profile for a container with the capabilities, on this machine.
func dockerProfile(t testing.TB, capabilities ...string) *specs.LinuxSeccomp {
	t.Helper()
	s, err := docker.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capabilities}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dockerCapabilities are those that Docker gives a container that asks for none (moby's daemon/pkg/oci/caps).
var dockerCapabilities = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

// dockerAll are all capabilities that Docker's profile has rules for.
func dockerAll(t testing.TB) []string {
	t.Helper()
	seen := map[string]bool{}
	var all []string
	for _, b := range docker.DefaultProfile().Syscalls {
		if b.Includes == nil {
			continue
		}
		for _, c := range b.Includes.Caps {
			if !seen[c] {
				seen[c] = true
				all = append(all, c)
			}
		}
	}
	if len(all) < 10 {
		t.Fatalf("Docker's profile has rules for %d capabilities only", len(all))
	}
	return append(all, dockerCapabilities...)
}

// The profiles that are compared are different ones, or the comparison says less than it seems to.
func TestDockersProfileDependsOnTheCapabilities(t *testing.T) {
	few, all := dockerProfile(t, dockerCapabilities...), dockerProfile(t, dockerAll(t)...)
	a, _ := json.Marshal(few)
	b, _ := json.Marshal(all)
	if string(a) == string(b) || len(few.Syscalls) < 10 || len(few.Architectures) < 2 {
		t.Errorf("%d rules, %d rules, architectures %v", len(few.Syscalls), len(all.Syscalls), few.Architectures)
	}
	for name, want := range map[string]bool{"read": true, "mount": false} {
		if got := allows(few, name); got != want {
			t.Errorf("with the default capabilities: %s allowed: %v", name, got)
		}
		if !allows(all, name) {
			t.Errorf("with all capabilities: %s is not allowed", name)
		}
	}
}

func allows(s *specs.LinuxSeccomp, name string) bool {
	for _, b := range s.Syscalls {
		for _, n := range b.Names {
			if n == name && b.Action == specs.ActAllow {
				return true
			}
		}
	}
	return false
}
