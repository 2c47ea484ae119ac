package bootstrap

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestHash(t *testing.T) {
	for n := range 200 {
		s := strings.Repeat("x", n)
		if got, want := hexSum(s), fmt.Sprintf("%x", sha256.Sum256([]byte(s))); got != want {
			t.Fatalf("%d bytes: %s, want %s", n, got, want)
		}
	}
}

func TestSocketPathIsContainerds(t *testing.T) {
	// As containerd's pkg/shim makes it.
	path := filepath.Join("/run/containerd/containerd.sock", "k8s.io", "pod")
	want := fmt.Sprintf("/run/containerd/s/%x", sha256.Sum256([]byte(path)))
	if got := SocketPath("", "/run/containerd/containerd.sock", "k8s.io", "pod"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestFlags(t *testing.T) {
	f, err := ParseFlags(strings.Fields("-namespace n --address=/a -publish-binary /c -id i -debug -bundle /b start -x"))
	if err != nil {
		t.Fatal(err)
	}
	want := Flags{Namespace: "n", Address: "/a", PublishBin: "/c", ID: "i", Debug: true, Bundle: "/b", Verb: "start"}
	if *f != want {
		t.Errorf("%+v, want %+v", *f, want)
	}
	for _, bad := range []string{"-nosuch", "-id", "-debug=maybe", "--nosuch=1"} {
		if _, err := ParseFlags([]string{bad}); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func optionsAny(t *testing.T, o *runcoptions.Options) *anypb.Any {
	t.Helper()
	value, err := proto.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: value}
}

func TestProtocols(t *testing.T) {
	flags := &Flags{ID: "c1", Namespace: "ns"}
	const address = "unix:///run/x"
	any, err := proto.Marshal(optionsAny(t, &runcoptions.Options{ShimCgroup: "/shims", BinaryName: "x"}))
	if err != nil {
		t.Fatal(err)
	}
	dir := "/sock"
	params := &bootapi.BootstrapParams{
		InstanceID: "c1", Namespace: "ns", LogLevel: bootapi.LogLevel_LOG_LEVEL_DEBUG, ContainerdTtrpcAddress: "/t",
		SocketDir: &dir, Extensions: []*bootapi.Extension{{Value: optionsAny(t, &runcoptions.Options{ShimCgroup: "/shims"})}},
	}
	boot, err := proto.Marshal(params)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		env    []string
		input  []byte
		answer func([]byte) string
		cgroup string
	}{
		{"1.6", []string{"TTRPC_ADDRESS=/t"}, nil, func(b []byte) string { return string(b) }, ""},
		{"1.7", []string{"MAX_SHIM_VERSION=2", "TTRPC_ADDRESS=/t"}, any, jsonAddress(2), "/shims"},
		{"2.0", []string{"MAX_SHIM_VERSION=4", "TTRPC_ADDRESS=/t"}, any, jsonAddress(3), "/shims"},
		{"2.3", []string{"MAX_SHIM_VERSION=2", "TTRPC_ADDRESS=/wrong"}, boot, func(b []byte) string {
			var r bootapi.BootstrapResult
			if err := proto.Unmarshal(b, &r); err != nil {
				return err.Error()
			}
			if r.Version != 3 || r.Protocol != "ttrpc" {
				return r.String()
			}
			return r.Address
		}, "/shims"},
	} {
		req, err := parseRequest(flags, tt.env, tt.input)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := tt.answer(req.answer(address)); got != address {
			t.Errorf("%s: answer %q", tt.name, got)
		}
		if req.ttrpc != "/t" || req.shimCgroup != tt.cgroup {
			t.Errorf("%s: %+v", tt.name, req)
		}
		if tt.name == "2.3" && (!req.debug || req.socketDir != dir) {
			t.Errorf("%s: %+v", tt.name, req)
		}
	}
	// Parameters of another container are options of none.
	params.InstanceID = "other"
	boot, _ = proto.Marshal(params)
	if req, err := parseRequest(flags, nil, boot); err == nil && string(req.answer(address)) != address {
		t.Error("another container's parameters were taken")
	}
}

func TestTheStartVerbHeedsOptionsThatComeAsTOML(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.toml")
	const body = "SystemdCgroup = false\nshim_cgroup = '/shims' # here\nLogLevel = \"debug\"\n[x]\nShimCgroup = '/no'\n"
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*runtimeoptions.Options{
		"body": {ConfigBody: []byte(body)}, "path": {ConfigPath: path}, "body before path": {ConfigPath: "/nowhere", ConfigBody: []byte(body)},
	} {
		value, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		input, _ := proto.Marshal(&anypb.Any{TypeUrl: "types.googleapis.com/runtimeoptions.v1.Options", Value: value})
		req, err := parseRequest(&Flags{ID: "c1", Namespace: "ns"}, nil, input)
		if err != nil || req.shimCgroup != "/shims" || req.logLevel != "debug" {
			t.Errorf("%s: %+v, %v", name, req, err)
		}
	}
}

// FuzzTOML looks for what does not end, or panics.
func FuzzTOML(f *testing.F) {
	f.Add("a = 'b'\nc = [\n1, ']', # x ]\n]\nd = \"\"\"\n\\\"\"\"\"\n[t]\n")
	f.Fuzz(func(t *testing.T, body string) {
		EachSetting(body, func(key, value string) error {
			if key == "" && value == "" {
				t.Errorf("%q: a setting of nothing", body)
			}
			ParseText(value)
			ParseBool(value)
			ParseID(value)
			return nil
		})
	})
}

func jsonAddress(version int) func([]byte) string {
	return func(b []byte) string {
		var r struct {
			Version           int
			Address, Protocol string
		}
		if err := json.Unmarshal(b, &r); err != nil {
			return err.Error()
		}
		if r.Version != version || r.Protocol != "ttrpc" {
			return string(b)
		}
		return r.Address
	}
}

func TestBundleGroup(t *testing.T) {
	for config, want := range map[string]string{
		`{}`:                   "id",
		``:                     "id",
		`{"annotations":null}`: "id",
		`{"process":{"args":["annotations"]},"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}`:                               "pod",
		`{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}, "linux":{"x":[1,{"a":true}]}}`:  "g",
		`{"annotations":{"io.containerd.runc.v2.group":"a\u00e9\n"}}`:                                                             "aé\n",
		`{"annotations":{"io.containerd.runc.v2.group":1}}`:                                                                       "id",
		`{"hooks":{"annotations":{"io.containerd.runc.v2.group":"inner"}},"annotations":{"io.containerd.runc.v2.group":"outer"}}`: "outer",
		`{"annotations":{"io.containerd.runc.v2.group":"g"},`:                                                                     "id",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/config.json", []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := bundleGroup(dir, "id"); got != want {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}

// FuzzAnnotations compares with encoding/json whatever that accepts.
func FuzzAnnotations(f *testing.F) {
	f.Add([]byte(`{"annotations":{"a":"b","c":"\ud83d\ude00\"\\\/\b\f\n\r\t"},"x":[1,-2.5e+3,true,false,null,{"y":[]}]}`))
	f.Add([]byte(`{"annotations":{"a":"\ud83d","b":"\ude00x"}}`))
	f.Add([]byte("{\"annotations\":{\"\xff\":\"\xc0\"}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got := make(map[string]string)
		err := eachAnnotation(data, func(k, v string) { got[k] = v })
		// Keys are matched exactly here, and the last of several counts, where encoding/json merges them.
		var raw map[string]json.RawMessage
		if json.Unmarshal(data, &raw) != nil || raw == nil || strings.Count(string(data), "nnotations") > 1 {
			return
		}
		want := make(map[string]string)
		if a, ok := raw["annotations"]; ok && json.Unmarshal(a, &want) != nil {
			return
		}
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		if len(got) != len(want) {
			t.Fatalf("%q: %q, want %q", data, got, want)
		}
		for k, v := range want {
			if got[k] != v {
				t.Fatalf("%q: [%q] = %q, want %q", data, k, got[k], v)
			}
		}
	})
}

// FuzzParams compares with protobuf whatever that accepts.
func FuzzParams(f *testing.F) {
	dir := "/s"
	seed, _ := proto.Marshal(&bootapi.BootstrapParams{
		InstanceID: "i", Namespace: "n", LogLevel: -4, ContainerdTtrpcAddress: "/t", SocketDir: &dir,
		Extensions: []*bootapi.Extension{{Value: &anypb.Any{TypeUrl: "x", Value: []byte("y")}}},
	})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var p bootstrapParams
		err := p.parse(data)
		(&request{}).options(data)
		var want bootapi.BootstrapParams
		if proto.Unmarshal(data, &want) != nil || len(want.ProtoReflect().GetUnknown()) > 0 {
			return
		}
		if err != nil {
			t.Fatalf("%x: %v", data, err)
		}
		if p.id != want.InstanceID || p.namespace != want.Namespace || p.ttrpc != want.ContainerdTtrpcAddress ||
			p.socketDir != want.GetSocketDir() || p.logLevel != int32(want.LogLevel) {
			t.Fatalf("%x: %+v, want %v", data, p, &want)
		}
	})
}

func TestResult(t *testing.T) {
	long := "unix:///" + strings.Repeat("x", 300)
	var r bootapi.BootstrapResult
	if err := proto.Unmarshal(appendResult(nil, 3, long, "ttrpc"), &r); err != nil {
		t.Fatal(err)
	}
	if r.Address != long || r.Version != 3 || r.Protocol != "ttrpc" {
		t.Error(&r)
	}
	if want, _ := proto.Marshal(&r); !bytes.Equal(want, appendResult(nil, 3, long, "ttrpc")) {
		t.Error("not as protobuf writes it")
	}
}
