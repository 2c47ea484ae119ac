package oci

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const minimal = `{
	"ociVersion": "1.3.0",
	"process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sh"], "cwd": "/"},
	"root": {"path": "rootfs"},
	"linux": {"namespaces": [{"type": "mount"}]}
}`

// edit is minimal with some members replaced: a JSON merge patch.
func edit(t testing.TB, patch string) []byte { return mergeJSON(t, []byte(minimal), patch) }

func mergeJSON(t testing.TB, config []byte, patch string) []byte {
	t.Helper()
	var base, p any
	if err := json.Unmarshal(config, &base); err != nil {
		t.Fatalf("%v in %s", err, config)
	}
	if err := json.Unmarshal([]byte(patch), &p); err != nil {
		t.Fatalf("%v in %s", err, patch)
	}
	b, err := json.Marshal(merge(base, p))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func merge(base, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	b, ok := base.(map[string]any)
	if !ok {
		b = map[string]any{}
	}
	for k, v := range p {
		if v == nil {
			delete(b, k)
		} else {
			b[k] = merge(b[k], v)
		}
	}
	return b
}

func compileBytes(config []byte) (*Plan, error) {
	spec, err := Parse(config)
	if err != nil {
		return nil, err
	}
	return Compile(spec, request(), hostV1)
}

func TestTheSmallestConfigCompiles(t *testing.T) {
	p, err := compileBytes([]byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
}

func TestBadConfigsAreInvalidArgumentsThatNameTheField(t *testing.T) {
	huge := append([]byte(`{"ociVersion": "`), bytes.Repeat([]byte("x"), 100<<20)...)
	deep := strings.Repeat("/a", 300)
	for _, c := range []struct {
		name, patch string
		config      []byte
		field       string
	}{
		{name: "an empty file", config: []byte{}, field: "config.json: empty"},
		{name: "a file of white space", config: []byte(" \n\t"), field: "config.json: empty"},
		{name: "a truncated file", config: []byte(minimal[:len(minimal)/2]), field: "config.json: unexpected end of JSON input"},
		{name: "a file of 100 MB", config: huge, field: "config.json: 104857616 bytes"},
		{name: "two objects", config: []byte(minimal + minimal), field: "config.json: invalid character"},
		{name: "null", config: []byte("null"), field: "ociVersion: missing"},
		{name: "an array", config: []byte("[]"), field: "config.json: a JSON array"},
		{name: "a string", config: []byte(`"x"`), field: "config.json: a JSON string"},
		{name: "a binary", config: []byte("\x7fELF\x00\x00"), field: "config.json: invalid character"},
		{name: "an empty object", config: []byte("{}"), field: "ociVersion: missing"},
		{name: "nested a million deep", config: []byte(`{"process":` + strings.Repeat("[", 1<<20)), field: "config.json:"},

		{name: "a version that is none", patch: `{"ociVersion": "latest"}`, field: "ociVersion"},
		{name: "a version of the future", patch: `{"ociVersion": "2.0.0"}`, field: "ociVersion"},
		{name: "no process", patch: `{"process": null}`, field: "process: missing"},
		{name: "args of the wrong type", patch: `{"process": {"args": "sh"}}`, field: "process.args: a JSON string where an array"},
		{name: "an argument of the wrong type", patch: `{"process": {"args": [1]}}`, field: "process.args"},
		{name: "a terminal of the wrong type", patch: `{"process": {"terminal": "yes"}}`, field: "process.terminal: a JSON string where true or false"},
		{name: "no args", patch: `{"process": {"args": null}}`, field: "process.args: missing"},
		{name: "empty args", patch: `{"process": {"args": []}}`, field: "process.args: missing"},
		{name: "an argument with a zero byte", patch: `{"process": {"args": ["sh", "a\u0000b"]}}`, field: "process.args[1]"},
		{name: "a variable without a value", patch: `{"process": {"env": ["A=1", "B"]}}`, field: "process.env[1]"},
		{name: "a variable without a name", patch: `{"process": {"env": ["=1"]}}`, field: "process.env[0]"},
		{name: "no cwd", patch: `{"process": {"cwd": ""}}`, field: "process.cwd: missing"},
		{name: "a relative cwd", patch: `{"process": {"cwd": "tmp"}}`, field: "process.cwd"},
		{name: "a cwd of 300 directories", patch: `{"process": {"cwd": "` + deep + `"}}`, field: "process.cwd"},
		{name: "a negative uid", patch: `{"process": {"user": {"uid": -1}}}`, field: "process.user.uid"},
		{name: "a uid of 2^32-1", patch: `{"process": {"user": {"uid": 4294967295}}}`, field: "process.user.uid"},
		{name: "a uid of 2^32", patch: `{"process": {"user": {"uid": 4294967296}}}`, field: "process.user.uid"},
		{name: "a uid that is a fraction", patch: `{"process": {"user": {"uid": 0.5}}}`, field: "process.user.uid"},
		{name: "a gid of 2^32-1", patch: `{"process": {"user": {"gid": 4294967295}}}`, field: "process.user.gid"},
		{name: "an additional gid of 2^32-1", patch: `{"process": {"user": {"additionalGids": [1, 4294967295]}}}`, field: "process.user.additionalGids[1]"},
		{name: "a umask of 01000", patch: `{"process": {"user": {"umask": 512}}}`, field: "process.user.umask"},
		{name: "an oomScoreAdj of 1001", patch: `{"process": {"oomScoreAdj": 1001}}`, field: "process.oomScoreAdj"},
		{name: "a console of 70000 lines", patch: `{"process": {"consoleSize": {"height": 70000, "width": 80}}}`, field: "process.consoleSize"},
		{name: "an unknown limit", patch: `{"process": {"rlimits": [{"type": "RLIMIT_FUN", "hard": 1, "soft": 1}]}}`, field: "process.rlimits[0].type"},
		{name: "a limit twice", patch: `{"process": {"rlimits": [{"type": "RLIMIT_CPU", "hard": 1, "soft": 1}, {"type": "RLIMIT_CPU", "hard": 2, "soft": 2}]}}`, field: "process.rlimits[1].type"},
		{name: "a soft limit above the hard one", patch: `{"process": {"rlimits": [{"type": "RLIMIT_CPU", "hard": 1, "soft": 2}]}}`, field: "process.rlimits[0].soft"},

		{name: "no root", patch: `{"root": null}`, field: "root: missing"},
		{name: "a root without a path", patch: `{"root": {"path": ""}}`, field: "root.path: missing"},
		{name: "a root outside of the bundle", patch: `{"root": {"path": "../../etc"}}`, field: "root.path"},
		{name: "a root that leaves the bundle on the way", patch: `{"root": {"path": "a/../../b"}}`, field: "root.path"},
		{name: "the bundle as root", patch: `{"root": {"path": "."}}`, field: "root.path"},

		{name: "an unknown namespace", patch: `{"linux": {"namespaces": [{"type": "mount"}, {"type": "space"}]}}`, field: "linux.namespaces[1].type"},
		{name: "a namespace without a type", patch: `{"linux": {"namespaces": [{"type": "mount"}, {}]}}`, field: "linux.namespaces[1].type"},
		{name: "a namespace twice", patch: `{"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "pid", "path": "/proc/1/ns/pid"}]}}`, field: "linux.namespaces[2].type"},
		{name: "a namespace's path that is relative", patch: `{"linux": {"namespaces": [{"type": "mount"}, {"type": "pid", "path": "ns"}]}}`, field: "linux.namespaces[1].path"},
		{name: "a mount namespace to join with a new user namespace", patch: `{"linux": {"namespaces": [{"type": "user"}, {"type": "mount", "path": "/proc/1/ns/mnt"}], "uidMappings": [{"size": 1}], "gidMappings": [{"size": 1}]}}`, field: "linux.namespaces[1].path"},
		{name: "masked paths without a mount namespace", patch: `{"linux": {"namespaces": [], "maskedPaths": ["/proc/keys"], "readonlyPaths": null}}`, field: "linux.maskedPaths"},
		{name: "read-only paths without a mount namespace", patch: `{"linux": {"namespaces": [], "maskedPaths": null, "readonlyPaths": ["/proc/sys"]}}`, field: "linux.readonlyPaths"},
		{name: "a user namespace without a mount namespace", patch: `{"linux": {"namespaces": [{"type": "user"}], "maskedPaths": null, "readonlyPaths": null, "uidMappings": [{"size": 1}], "gidMappings": [{"size": 1}]}}`, field: "linux.namespaces"},
		{name: "a hostname without a UTS namespace", patch: `{"hostname": "h"}`, field: "hostname"},
		{name: "a hostname of 65 bytes", patch: `{"hostname": "` + strings.Repeat("h", 65) + `", "linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}]}}`, field: "hostname"},

		{name: "a mount without a destination", patch: `{"mounts": [{"type": "tmpfs"}]}`, field: "mounts[0].destination: missing"},
		{name: "a mount on the root", patch: `{"mounts": [{"type": "tmpfs", "destination": "/a/.."}]}`, field: "mounts[0].destination"},
		{name: "a mount in a path of 300 directories", patch: `{"mounts": [{"type": "tmpfs", "destination": "` + deep + `"}]}`, field: "mounts[0].destination"},
		{name: "a mount of no type", patch: `{"mounts": [{"destination": "/a"}]}`, field: "mounts[0].type: missing"},
		{name: "a bind mount without a source", patch: `{"mounts": [{"destination": "/a", "options": ["bind"]}]}`, field: "mounts[0].source: missing"},
		{name: "a bind mount that does not say so", patch: `{"mounts": [{"destination": "/a", "source": "/b", "type": "bind"}]}`, field: "mounts[0].options"},
		{name: "a bind mount with a size", patch: `{"mounts": [{"destination": "/a", "source": "/b", "options": ["rbind", "size=1"]}]}`, field: "mounts[0].options"},
		{name: "a recursive option of a tmpfs", patch: `{"mounts": [{"destination": "/a", "type": "tmpfs", "options": ["rro"]}]}`, field: "mounts[0].options"},
		{name: "an option without a key", patch: `{"mounts": [{"destination": "/a", "type": "tmpfs", "options": ["=1"]}]}`, field: "mounts[0].options"},
		{name: "options of more than a page", patch: `{"mounts": [{"destination": "/a", "type": "overlay", "options": ["lowerdir=` + strings.Repeat("/x:", 2000) + `"]}]}`, field: "mounts[0].options"},
		{name: "the same mount twice", patch: `{"mounts": [{"destination": "/a", "type": "tmpfs"}, {"destination": "/b", "type": "tmpfs"}, {"destination": "/b/../a", "type": "tmpfs"}]}`, field: "mounts[2]: the same as mounts[0]"},
		{name: "a tmpfs on /proc", patch: `{"mounts": [{"destination": "/proc", "type": "tmpfs"}]}`, field: "mounts[0].destination"},
		{name: "a mount inside /proc", patch: `{"mounts": [{"destination": "/proc/self/attr", "source": "/b", "options": ["bind"]}]}`, field: "mounts[0].destination"},
		{name: "a mount inside /proc by a detour", patch: `{"mounts": [{"destination": "/sys/../proc/sys/kernel", "source": "/b", "options": ["bind"]}]}`, field: "mounts[0].destination"},

		{name: "an unknown propagation", patch: `{"linux": {"rootfsPropagation": "wide"}}`, field: "linux.rootfsPropagation"},
		{name: "a seccomp profile with an unknown action", patch: `{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_WAVE"}}}`, field: "linux.seccomp.defaultAction"},
		{name: "a masked path that is relative", patch: `{"linux": {"maskedPaths": ["/proc/kcore", "proc/keys"]}}`, field: "linux.maskedPaths[1]"},
		{name: "the root masked", patch: `{"linux": {"maskedPaths": ["/"]}}`, field: "linux.maskedPaths[0]"},
		{name: "a read-only path that is empty", patch: `{"linux": {"readonlyPaths": [""]}}`, field: "linux.readonlyPaths[0]"},
		{name: "a device of no type", patch: `{"linux": {"devices": [{"path": "/dev/x"}]}}`, field: "linux.devices[0].type"},
		{name: "a device with a negative number", patch: `{"linux": {"devices": [{"path": "/dev/x", "type": "c", "major": -1}]}}`, field: "linux.devices[0].major"},
		{name: "a device without a path", patch: `{"linux": {"devices": [{"type": "c"}]}}`, field: "linux.devices[0].path"},
		{name: "a device of user 2^32-1", patch: `{"linux": {"devices": [{"path": "/dev/x", "type": "c", "uid": 4294967295}]}}`, field: "linux.devices[0].uid"},
		{name: "a sysctl of the host", patch: `{"linux": {"sysctl": {"kernel.panic": "1"}}}`, field: "linux.sysctl[kernel.panic]"},
		{name: "a network sysctl in the host's network", patch: `{"linux": {"sysctl": {"net.ipv4.ip_forward": "1"}}}`, field: "linux.sysctl[net.ipv4.ip_forward]"},
		{name: "a sysctl that climbs out", patch: `{"linux": {"namespaces": [{"type": "mount"}, {"type": "network"}], "sysctl": {"net/../kernel/panic": "1"}}}`, field: "linux.sysctl[net/../kernel/panic]"},
		{name: "the hostname as a sysctl", patch: `{"linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}], "sysctl": {"kernel.hostname": "x"}}}`, field: "linux.sysctl[kernel.hostname]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := c.config
			if config == nil {
				config = edit(t, c.patch)
			}
			_, err := compileBytes(config)
			if !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), c.field) {
				t.Errorf("got %v, want an invalid argument that begins with %q", err, c.field)
			}
		})
	}
}

func TestDifferentMountsOnOneDestinationAreStacked(t *testing.T) {
	p, err := compileBytes(edit(t, `{"mounts": [{"destination": "/run", "type": "tmpfs"}, {"destination": "/run", "source": "/srv", "options": ["rbind"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
}

func TestUnknownPropertiesAreIgnored(t *testing.T) {
	if _, err := compileBytes(edit(t, `{"future": {"a": 1}, "process": {"mood": "good"}}`)); err != nil {
		t.Fatal(err)
	}
}

func TestUnknownCapabilitiesAreWarnedOf(t *testing.T) {
	p, err := compileBytes(edit(t, `{"process": {"capabilities": {"bounding": ["CAP_CHOWN", "CAP_FUN", "CHOWN"], "ambient": ["CAP_FUN"]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Warnings) != 3 {
		t.Errorf("got %q", p.Warnings)
	}
}

func TestRequestsAreChecked(t *testing.T) {
	spec, err := Parse([]byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Request){
		"id":                             func(r *Request) { r.ID = "" },
		"bundle":                         func(r *Request) { r.Bundle = "rel" },
		"rootfs[0].type":                 func(r *Request) { r.Rootfs[0].Type = "" },
		"rootfs[0].source":               func(r *Request) { r.Rootfs[0].Source = "\x00" },
		"rootfs[0].options":              func(r *Request) { r.Rootfs[0].Options = []string{strings.Repeat("x", 5000)} },
		"rootfs[0].options: loop is for": func(r *Request) { r.Rootfs[0] = Mount{Type: "ext4", Source: "img", Options: []string{"loop"}} },
		"rootfs[0].options: loop is":     func(r *Request) { r.Rootfs[0] = Mount{Type: "bind", Source: "/img", Options: []string{"loop", "bind"}} },
		"rootfs[0].options: gidmap":      func(r *Request) { r.Rootfs[0].Options = []string{"uidmap=0:1:2"} },
		"rootfs[0].options: uidmap":      func(r *Request) { r.Rootfs[0].Options = []string{"uidmap=0:1:2:3", "gidmap=0:1:2"} },
	} {
		req := request()
		change(&req)
		if _, err := Compile(spec, req, hostV1); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for name, m := range map[string]Mount{
		"rootfs[0].type: format/overlay, which is containerd's": {Type: "format/overlay", Source: "overlay"},
		"rootfs[0].type: mkfs/ext4, which is containerd's":      {Type: "mkfs/ext4", Source: "/img", Options: []string{"loop"}},
		"rootfs[0].options: uidmap":                             {Type: "ext4", Options: []string{"uidmap=0:1:2", "gidmap=0:1:2"}},
		"rootfs[0].type: fuse.x":                                {Type: "fuse.x"},
	} {
		req := request()
		req.Rootfs = []Mount{m}
		if _, err := Compile(spec, req, hostV1); !errdefs.IsNotImplemented(err) || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestExecsAreChecked(t *testing.T) {
	spec, err := Parse([]byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CompileExec(spec, &specs.Process{Cwd: "/"}, request(), hostV1); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no args: %v", err)
	}
	if _, err := CompileExec(spec, nil, request(), hostV1); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no process: %v", err)
	}
}

func FuzzConfigsEitherFailOrGiveAPlanThatCanRun(f *testing.F) {
	f.Add([]byte(minimal))
	for _, g := range golden {
		if g.spec == "" && g.exec == nil {
			spec := readSpec(f, g.plan)
			b, err := json.Marshal(spec)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		spec, err := Parse(config)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("%v", err)
			}
			return
		}
		p, err := Compile(spec, request(), hostV1)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsNotImplemented(err) {
				t.Fatalf("%v", err)
			}
			return
		}
		check(t, p)
		if p, err := Compile(spec, request(), hostV2); err == nil {
			check(t, p)
		}
		if p, err := CompileExec(spec, spec.Process, request(), hostV1); err == nil {
			check(t, p)
		}
	})
}
