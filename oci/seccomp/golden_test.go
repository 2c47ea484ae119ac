package seccomp

import (
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files anew")

// containerdProfile is what containerd 2.4.2 gives a container with its default capabilities on amd64
// (contrib/seccomp.DefaultProfile, printed as JSON).
func containerdProfile(t testing.TB) *specs.LinuxSeccomp {
	t.Helper()
	b, err := os.ReadFile("testdata/containerd-2.4.2.json")
	if err != nil {
		t.Fatal(err)
	}
	s := &specs.LinuxSeccomp{}
	if err := json.Unmarshal(b, s); err != nil {
		t.Fatal(err)
	}
	return s
}

// A change of this listing is either wanted and reviewed, or a mistake.
func TestContainerdsProfileCompilesToTheReviewedProgram(t *testing.T) {
	f, err := Compile(containerdProfile(t), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(f.Instructions); err != nil {
		t.Fatal(err)
	}
	if dead := unreachable(f.Instructions); len(dead) > 0 {
		t.Errorf("no path leads to the instructions %v", dead)
	}
	const golden = "testdata/containerd-2.4.2.amd64.bpf"
	got := listing(f.Instructions)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("not as in %s (go test -update to accept):\n%s", golden, got)
	}
}

func BenchmarkCompileContainerdsProfile(b *testing.B) {
	s := containerdProfile(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(s, "amd64"); err != nil {
			b.Fatal(err)
		}
	}
}
