package seccomp

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Whatever a config says, there is an error, or a program that the kernel accepts.
func FuzzCompile(f *testing.F) {
	b, err := os.ReadFile("testdata/containerd-2.4.2.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, "amd64")
	names := []string{"read", "write", "socket", "ipc", "semop", "clone", "ioctl", "set_tls", "mseal"}
	for len(names) < 60 {
		names = append(names, nameText[nameStart[len(names)*7]:nameStart[len(names)*7+1]])
	}
	for i, m := range families {
		b, err := json.Marshal(randomProfile(rand.New(rand.NewPCG(uint64(i), 5)), names, m.listed))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, m.goarch)
	}
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":1,"op":"SCMP_CMP_MASKED_EQ"}]}]}`), "386")
	f.Fuzz(func(t *testing.T, config []byte, goarch string) {
		s := &specs.LinuxSeccomp{}
		if json.Unmarshal(config, s) != nil {
			return
		}
		filter, err := Compile(s, goarch)
		if err != nil || filter == nil {
			return
		}
		if err := validate(filter.Instructions); err != nil {
			t.Fatalf("%v\n%s", err, listing(filter.Instructions))
		}
		if dead := unreachable(filter.Instructions); len(dead) > 0 {
			t.Fatalf("no path leads to %v\n%s", dead, listing(filter.Instructions))
		}
	})
}
