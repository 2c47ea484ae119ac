package oci

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	compiled = "compiled"
	refused  = "refused"   // NotImplemented, with the field's name
	toCgroup = "cgroup"    // left to who makes the cgroup
	filter   = "seccomp"   // left to oci/seccomp
	noEffect = "no effect" // by the specification
)

// coverage is what becomes of each field of the specification. An entry covers the fields below it.
var coverage = map[string]string{
	"ociVersion":                       compiled,
	"process.terminal":                 compiled,
	"process.consoleSize":              compiled,
	"process.user.uid":                 compiled,
	"process.user.gid":                 compiled,
	"process.user.umask":               compiled,
	"process.user.additionalGids":      compiled,
	"process.user.username":            refused, // of Windows
	"process.args":                     compiled,
	"process.commandLine":              refused, // of Windows
	"process.env":                      compiled,
	"process.cwd":                      compiled,
	"process.capabilities.bounding":    compiled,
	"process.capabilities.effective":   compiled,
	"process.capabilities.inheritable": compiled,
	"process.capabilities.permitted":   compiled,
	"process.capabilities.ambient":     compiled,
	"process.rlimits":                  compiled,
	"process.noNewPrivileges":          compiled,
	"process.apparmorProfile":          compiled,
	"process.oomScoreAdj":              compiled,
	"process.scheduler":                compiled,
	"process.selinuxLabel":             compiled,
	"process.ioPriority":               compiled,
	"process.execCPUAffinity":          compiled,
	"root.path":                        compiled,
	"root.readonly":                    compiled,
	"hostname":                         compiled,
	"domainname":                       compiled,
	"mounts.destination":               compiled,
	"mounts.type":                      compiled,
	"mounts.source":                    compiled,
	"mounts.options":                   compiled,
	"mounts.uidMappings":               compiled,
	"mounts.gidMappings":               compiled,
	"hooks.prestart":                   compiled,
	"hooks.createRuntime":              compiled,
	"hooks.createContainer":            compiled,
	"hooks.startContainer":             compiled,
	"hooks.poststart":                  compiled,
	"hooks.poststop":                   compiled,
	"annotations":                      noEffect,
	"linux.uidMappings":                compiled,
	"linux.gidMappings":                compiled,
	"linux.sysctl":                     compiled,
	"linux.resources":                  toCgroup,
	"linux.cgroupsPath":                toCgroup,
	"linux.namespaces":                 compiled,
	"linux.devices":                    compiled,
	"linux.netDevices":                 compiled,
	"linux.seccomp.defaultAction":      filter,
	"linux.seccomp.defaultErrnoRet":    filter,
	"linux.seccomp.architectures":      filter,
	"linux.seccomp.flags":              filter,
	"linux.seccomp.listenerPath":       compiled,
	"linux.seccomp.listenerMetadata":   compiled,
	"linux.seccomp.syscalls":           filter,
	"linux.rootfsPropagation":          compiled,
	"linux.maskedPaths":                compiled,
	"linux.readonlyPaths":              compiled,
	"linux.mountLabel":                 compiled,
	"linux.intelRdt":                   compiled,
	"linux.memoryPolicy":               compiled,
	"linux.personality":                compiled,
	"linux.timeOffsets":                compiled,
	"solaris":                          refused,
	"windows":                          refused,
	"vm":                               refused,
	"zos":                              refused,
	"freebsd":                          refused,
}

// field is a field of the specification: its path, and how to get at it in a Spec.
type field struct {
	path string
	get  func(*specs.Spec) reflect.Value
}

// fields are those of a struct type, down to what coverage has an entry for.
func fields(t reflect.Type, prefix string, get func(*specs.Spec) reflect.Value) (list []field) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		path := prefix + name
		at := func(s *specs.Spec) reflect.Value { return get(s).Field(i) }
		ft, elem := f.Type, at
		switch {
		case ft.Kind() == reflect.Pointer && ft.Elem().Kind() == reflect.Struct:
			ft = ft.Elem()
			elem = func(s *specs.Spec) reflect.Value {
				v := at(s)
				if v.IsNil() {
					v.Set(reflect.New(v.Type().Elem()))
				}
				return v.Elem()
			}
		case ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct:
			ft = ft.Elem()
			elem = func(s *specs.Spec) reflect.Value {
				v := at(s)
				if v.Len() == 0 {
					v.Set(reflect.MakeSlice(v.Type(), 1, 1))
				}
				return v.Index(0)
			}
		}
		if _, known := coverage[path]; !known && ft.Kind() == reflect.Struct {
			list = append(list, fields(ft, path+".", elem)...)
			continue
		}
		list = append(list, field{path, at})
	}
	return list
}

func TestEveryFieldOfTheSpecificationIsAccountedFor(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range fields(reflect.TypeFor[specs.Spec](), "", func(s *specs.Spec) reflect.Value { return reflect.ValueOf(s).Elem() }) {
		seen[f.path] = true
		if coverage[f.path] == "" {
			t.Errorf("nobody has thought of %s", f.path)
		}
	}
	for path := range coverage {
		if !seen[path] {
			t.Errorf("the specification has no %s", path)
		}
	}
}

// something sets v to a value that is not the zero value.
func something(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("x").Convert(v.Type().Key()), reflect.Zero(v.Type().Elem()))
	case reflect.String:
		v.SetString("x")
	}
}

func TestWhatIsNotSupportedIsRefusedByName(t *testing.T) {
	for _, f := range fields(reflect.TypeFor[specs.Spec](), "", func(s *specs.Spec) reflect.Value { return reflect.ValueOf(s).Elem() }) {
		if coverage[f.path] != refused {
			continue
		}
		spec, err := Parse(edit(t, `{"mounts": [{"destination": "/a", "type": "tmpfs"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		something(f.get(spec))
		_, err = Compile(spec, request(), hostV1)
		if !errdefs.IsNotImplemented(err) || !strings.HasPrefix(strings.ReplaceAll(err.Error(), "[0]", ""), f.path+":") {
			t.Errorf("%s: got %v", f.path, err)
		}
	}
	for patch, name := range map[string]string{
		`{"mounts": [{"destination": "/a", "source": "/b", "type": "ext4", "options": ["loop"]}]}`: "mounts[0].options: loop",
	} {
		if _, err := compileBytes(edit(t, patch)); !errdefs.IsNotImplemented(err) || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// What is compiled must be seen in the Plan: a field that is read by nobody would change nothing.
func TestEachCompiledFieldChangesThePlan(t *testing.T) {
	const namespaces = `"namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "network"}]`
	base := `{"mounts": [{"destination": "/a", "type": "tmpfs"}], "linux": {` + namespaces + `}, "process": {"env": ["PATH=/bin"]}}`
	with := func(head, field, tail string) string {
		both := map[string]string{"uid": `"uidMappings": [{"containerID": 0, "hostID": 5, "size": 9}]`, "gid": `"gidMappings": [{"containerID": 0, "hostID": 5, "size": 9}]`}
		both[field[1:4]] = field
		return head + both["uid"] + ", " + both["gid"] + tail
	}
	user := func(field string) string {
		return with(`{"linux": {"namespaces": [{"type": "mount"}, {"type": "user"}], `, field, `}}`)
	}
	bind := func(field string) string {
		return with(`{"mounts": [{"destination": "/a", "source": "/b", "options": ["bind"], `, field, `}]}`)
	}
	changes := map[string]string{
		"process.terminal":                 `{"process": {"terminal": true}}`,
		"process.consoleSize":              `{"process": {"terminal": true, "consoleSize": {"height": 1, "width": 1}}}`,
		"process.user.uid":                 `{"process": {"user": {"uid": 1}}}`,
		"process.user.gid":                 `{"process": {"user": {"gid": 1}}}`,
		"process.user.umask":               `{"process": {"user": {"umask": 63}}}`,
		"process.user.additionalGids":      `{"process": {"user": {"additionalGids": [5]}}}`,
		"process.args":                     `{"process": {"args": ["/bin/sh", "-c"]}}`,
		"process.env":                      `{"process": {"env": ["PATH=/bin", "A=1"]}}`,
		"process.cwd":                      `{"process": {"cwd": "/tmp"}}`,
		"process.capabilities.bounding":    `{"process": {"capabilities": {"bounding": ["CAP_CHOWN"]}}}`,
		"process.capabilities.effective":   `{"process": {"capabilities": {"effective": ["CAP_CHOWN"]}}}`,
		"process.capabilities.inheritable": `{"process": {"capabilities": {"inheritable": ["CAP_CHOWN"]}}}`,
		"process.capabilities.permitted":   `{"process": {"capabilities": {"permitted": ["CAP_CHOWN"]}}}`,
		"process.capabilities.ambient":     `{"process": {"capabilities": {"ambient": ["CAP_CHOWN"]}}}`,
		"process.rlimits":                  `{"process": {"rlimits": [{"type": "RLIMIT_CPU", "hard": 1, "soft": 1}]}}`,
		"process.noNewPrivileges":          `{"process": {"noNewPrivileges": true}}`,
		"process.oomScoreAdj":              `{"process": {"oomScoreAdj": 5}}`,
		"root.path":                        `{"root": {"path": "other"}}`,
		"root.readonly":                    `{"root": {"readonly": true}}`,
		"hostname":                         `{"hostname": "h"}`,
		"domainname":                       `{"domainname": "d"}`,
		"mounts.destination":               `{"mounts": [{"destination": "/b", "type": "tmpfs"}]}`,
		"mounts.type":                      `{"mounts": [{"destination": "/a", "type": "ramfs"}]}`,
		"mounts.source":                    `{"mounts": [{"destination": "/a", "type": "tmpfs", "source": "x"}]}`,
		"mounts.options":                   `{"mounts": [{"destination": "/a", "type": "tmpfs", "options": ["ro"]}]}`,
		"process.apparmorProfile":          `{"process": {"apparmorProfile": "p"}}`,
		"process.selinuxLabel":             `{"process": {"selinuxLabel": "l"}}`,
		"process.scheduler":                `{"process": {"scheduler": {"policy": "SCHED_BATCH"}}}`,
		"process.ioPriority":               `{"process": {"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1}}}`,
		"linux.mountLabel":                 `{"linux": {"mountLabel": "l"}}`,
		"linux.memoryPolicy":               `{"linux": {"memoryPolicy": {"mode": "MPOL_LOCAL", "nodes": ""}}}`,
		"linux.personality":                `{"linux": {"personality": {"domain": "LINUX32"}}}`,
		"linux.seccomp.listenerPath":       `{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/a", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}}}`,
		"linux.seccomp.listenerMetadata":   `{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/a", "listenerMetadata": "m", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}}}`,
		"linux.netDevices":                 `{"linux": {"netDevices": {"eth0": {"name": "e%d"}}}}`,
		"linux.intelRdt":                   `{"linux": {"intelRdt": {"closID": "a"}}}`,
		"hooks.prestart":                   `{"hooks": {"prestart": [{"path": "/a"}]}}`,
		"hooks.createRuntime":              `{"hooks": {"createRuntime": [{"path": "/a"}]}}`,
		"hooks.createContainer":            `{"hooks": {"createContainer": [{"path": "/a"}]}}`,
		"hooks.startContainer":             `{"hooks": {"startContainer": [{"path": "/a"}]}}`,
		"hooks.poststart":                  `{"hooks": {"poststart": [{"path": "/a"}]}}`,
		"hooks.poststop":                   `{"hooks": {"poststop": [{"path": "/a"}]}}`,
		"linux.sysctl":                     `{"linux": {"sysctl": {"net.a": "1"}}}`,
		"linux.namespaces":                 `{"linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "network"}, {"type": "pid"}]}}`,
		"linux.devices":                    `{"linux": {"devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 2}]}}`,
		"linux.rootfsPropagation":          `{"linux": {"rootfsPropagation": "rshared"}}`,
		"linux.uidMappings":                user(`"uidMappings": [{"containerID": 0, "hostID": 1, "size": 9}]`),
		"linux.gidMappings":                user(`"gidMappings": [{"containerID": 0, "hostID": 1, "size": 9}]`),
		"linux.timeOffsets":                `{"linux": {"namespaces": [{"type": "mount"}, {"type": "time"}], "timeOffsets": {"boottime": {"secs": 1}}}}`,
		"mounts.uidMappings":               bind(`"uidMappings": [{"containerID": 0, "hostID": 1, "size": 9}]`),
		"mounts.gidMappings":               bind(`"gidMappings": [{"containerID": 0, "hostID": 1, "size": 9}]`),
		"linux.maskedPaths":                `{"linux": {"maskedPaths": ["/a"]}}`,
		"linux.readonlyPaths":              `{"linux": {"readonlyPaths": ["/a"]}}`,
	}
	print := func(patches ...string) string {
		config := []byte(minimal)
		for _, p := range patches {
			config = mergeJSON(t, config, p)
		}
		p, err := compileBytes(config)
		if err != nil {
			t.Fatalf("%v: %s", err, patches)
		}
		check(t, p)
		var b strings.Builder
		if err := p.Print(&b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	first := print(base)
	seen := []string{first}
	for path, how := range coverage {
		if how != compiled || path == "ociVersion" || path == "process.execCPUAffinity" { // of execs only
			continue
		}
		c, ok := changes[path]
		if !ok {
			t.Errorf("%s: not tested", path)
			continue
		}
		if got := print(base, c); slices.Contains(seen, got) {
			t.Errorf("%s: the Plan is the same with it", path)
		} else {
			seen = append(seen, got)
		}
	}
}
