package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/rsys-io/rsys/shim/bootstrap"
)

func TestOptions(t *testing.T) {
	want := &runcoptions.Options{SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true, IoUid: 1000, IoGid: 1001, ShimCgroup: "/a b", Root: "/r"}
	const body = "  SystemdCgroup = true # yes\n'NoPivotRoot' = true\nno_new_keyring = true\nIoUid=1_000\nIoGid = 0x3e9\nShimCgroup = \"/a b\"\n" +
		"Root = '/r' # none\nSomeones = [\n  'IoUid = 4',\n]\nMore = \"\"\"\nIoUid = 5\n\"\"\"\nTaskApiAddress = ''\n[more]\nIoUid = 3\n"
	path := filepath.Join(t.TempDir(), "o.toml")
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]proto.Message{
		"runc":      want,
		"cri":       &runtimeoptions.Options{ConfigBody: []byte(body)},
		"cri, path": &runtimeoptions.Options{ConfigPath: path},
	} {
		a, err := toAny(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseOptions(a)
		if err != nil || !proto.Equal(got.Options, want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, bad := range []*anypb.Any{
		{TypeUrl: "x.y", Value: []byte("z")},
		{TypeUrl: "containerd.runc.v1.Options", Value: []byte{0xff}},
	} {
		if _, err := parseOptions(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	// An error names the option.
	for name, bad := range map[string]string{
		"SystemdCgroup": "SystemdCgroup = 3", "IoUid": "IoUid = -1", "ShimCgroup": "ShimCgroup = x", "line 2": "A = 1\nnothing",
		"BinaryName": "BinaryName = 'crun'", "TaskApiAddress": "TaskApiAddress = 'ttrpc+unix:///x'", "TaskApiVersion": "TaskApiVersion = 3",
		"Isolation": "Isolation = 'never'", "RootfsOnHost": "RootfsOnHost = 'yes'", "LogLevel": "LogLevel = 'loud'", "line 1": "A = [\n1",
	} {
		a, _ := toAny(&runtimeoptions.Options{ConfigBody: []byte(bad)})
		if _, err := parseOptions(a); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	a, _ := toAny(&runcoptions.Options{BinaryName: "runc"})
	if _, err := parseOptions(a); err != nil {
		t.Errorf("BinaryName as Docker has it: %v", err)
	}
	a, _ = toAny(&runcoptions.Options{BinaryName: "/usr/bin/crun"})
	if _, err := parseOptions(a); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "BinaryName") {
		t.Errorf("BinaryName of runc's type: %v", err)
	}
}

func TestOptionsOfOurOwn(t *testing.T) {
	a, _ := toAny(&runtimeoptions.Options{ConfigBody: []byte("Isolation = 'always'\nRootfsOnHost = true\nLogLevel = 'debug'\n")})
	got, err := parseOptions(a)
	if err != nil || got.Isolation != "always" || !got.RootfsOnHost || got.LogLevel != "debug" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestOptionsAreKeptForTheDeleteVerb(t *testing.T) {
	dir := t.TempDir()
	if loadOptions(dir).SystemdCgroup {
		t.Error("systemd without a file")
	}
	if err := saveOptions(dir, &options{Options: &runcoptions.Options{SystemdCgroup: true}}); err != nil {
		t.Fatal(err)
	}
	if !loadOptions(dir).SystemdCgroup {
		t.Error("not kept")
	}
}

func FuzzOptions(f *testing.F) {
	f.Add("runtimeoptions.v1.Options", []byte("\x1a\x14SystemdCgroup = true"))
	f.Add("containerd.runc.v1.Options", []byte("\x48\x01"))
	f.Fuzz(func(t *testing.T, url string, value []byte) {
		generic := new(runtimeoptions.Options)
		if proto.Unmarshal(value, generic) == nil && generic.ConfigPath != "" {
			return // no files by chance
		}
		opts, err := parseOptions(&anypb.Any{TypeUrl: url, Value: value})
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
		if err == nil && opts == nil {
			t.Error("neither options nor an error")
		}
		bootstrap.EachSetting(string(value), (&options{Options: new(runcoptions.Options)}).set)
	})
}
