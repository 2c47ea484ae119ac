package integration

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/rsys-io/rsys/integration/harness"
	"google.golang.org/protobuf/proto"
)

// featuresOf is what our shim tells of itself on this host.
func featuresOf(e *harness.Env) (f features.Features) {
	e.Helper()
	if peer() {
		e.Skip("of our shim")
	}
	var info types.RuntimeInfo
	out, err := exec.Command(filepath.Join(e.Path[0], "containerd-shim-rsys-v1"), "-info").Output()
	e.Must(err, "-info")
	e.Must(proto.Unmarshal(out, &info), "decode")
	if info.Features.TypeUrl != "types.containerd.io/opencontainers/runtime-spec/1/features/Features" {
		e.Errorf("type %s", info.Features.TypeUrl)
	}
	e.Must(json.Unmarshal(info.Features.Value, &f), "decode the features")
	return f
}

// ofFileSystems are the options that are a file system's, not a mount's; "remount" is of a mount that is there.
var ofFileSystems = []string{"tmpcopyup", "sync", "async", "dirsync", "mand", "nomand", "iversion", "noiversion", "lazytime", "nolazytime", "silent", "loud"}

func TestTheMountOptionsOfTheFeaturesAreTrue(t *testing.T) {
	e := start(t)
	f := featuresOf(e)
	var mounts []specs.Mount
	dir := t.TempDir()
	for _, o := range f.MountOptions {
		m := specs.Mount{Destination: "/m/" + o, Type: "bind", Source: dir, Options: []string{"bind", o}}
		switch {
		case slices.Contains(ofFileSystems, o):
			m.Type, m.Source, m.Options = "tmpfs", "tmpfs", []string{o}
		case o == "remount":
			m = specs.Mount{Destination: "/m/ro", Options: []string{"bind", "remount", "ro"}}
		case o == "bind", o == "rbind":
			m.Options = []string{o}
		case o == "idmap", o == "ridmap":
			one := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 10}}
			m.UIDMappings, m.GIDMappings = one, one
		}
		mounts = append(mounts, m)
	}
	// A remount is of what is there before it.
	isRemount := func(m specs.Mount) bool { return slices.Contains(m.Options, "remount") }
	again := mounts[slices.IndexFunc(mounts, isRemount)]
	mounts = append(slices.DeleteFunc(mounts, isRemount), again)
	c := e.Container([]string{"cat", "/proc/self/mountinfo"}, oci.WithMounts(mounts))
	got := c.Finish()
	seen := map[string]string{} // the options of the mount and its propagation, by the option that was asked for
	for line := range strings.Lines(got.Stdout) {
		if fields := strings.Fields(line); len(fields) > 6 && strings.HasPrefix(fields[4], "/m/") {
			seen[fields[4][3:]] = "," + fields[5] + "," + strings.Join(fields[6:], ",") + ","
		}
	}
	for _, o := range f.MountOptions {
		if o != "remount" && seen[o] == "" {
			t.Errorf("%s: no mount; %+v", o, got.Stderr)
		}
	}
	for o, want := range map[string]string{
		"ro": "ro", "rro": "ro", "nosuid": "nosuid", "rnosuid": "nosuid", "nodev": "nodev", "rnodev": "nodev", "noexec": "noexec", "rnoexec": "noexec",
		"noatime": "noatime", "rnoatime": "noatime", "nodiratime": "nodiratime", "rnodiratime": "nodiratime", "relatime": "relatime", "rrelatime": "relatime",
		"nosymfollow": "nosymfollow", "rnosymfollow": "nosymfollow", "idmap": "idmapped", "ridmap": "idmapped", "unbindable": "unbindable", "runbindable": "unbindable",
		"sync": "sync", "dirsync": "dirsync", "rw": "rw", "rrw": "rw",
	} {
		if !slices.Contains(f.MountOptions, o) {
			t.Errorf("%s is not told of", o)
		} else if !strings.Contains(seen[o], ","+want+",") {
			t.Errorf("%s: the mount is %s", o, seen[o])
		}
	}
	for _, o := range []string{"shared", "rshared"} {
		if !strings.Contains(seen[o], "shared:") {
			t.Errorf("%s: the mount is %s", o, seen[o])
		}
	}
	// What is not told of is refused.
	for _, o := range []string{"loop", "rloop", "nosuchoption", "RO"} {
		if slices.Contains(f.MountOptions, o) {
			t.Errorf("%s is told of", o)
		}
		err := e.Container([]string{"true"}, withMount(dir, "/m", "bind", "bind", o)).TryCreate()
		if err == nil || !strings.Contains(err.Error(), ".options: ") {
			t.Errorf("%s: %v", o, err)
		}
	}
}

func TestTheNamespacesHooksAndCapabilitiesOfTheFeaturesAreTrue(t *testing.T) {
	e := start(t)
	f := featuresOf(e)
	// All at once: each namespace new, each capability, each hook.
	dir := t.TempDir()
	c := e.Container(harness.Sh("for n in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$n; done; grep CapBnd /proc/self/status"), change(func(s *oci.Spec) {
		s.Linux.Namespaces = nil
		for _, ns := range f.Linux.Namespaces {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(ns)})
		}
		if slices.Contains(f.Linux.Namespaces, "user") {
			one := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 100000}}
			s.Linux.UIDMappings, s.Linux.GIDMappings = one, one
		}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: f.Linux.Capabilities, Permitted: f.Linux.Capabilities, Effective: f.Linux.Capabilities}
	}))
	got := c.Finish()
	lines := strings.Split(strings.TrimSpace(got.Stdout), "\n")
	if len(lines) != 9 || len(f.Linux.Namespaces) != 8 {
		t.Fatalf("%+v, told of %v", got, f.Linux.Namespaces)
	}
	for _, link := range lines[:8] {
		name, _, _ := strings.Cut(link, ":")
		if out, err := exec.Command("readlink", "/proc/self/ns/"+name).Output(); err != nil || strings.TrimSpace(string(out)) == link {
			t.Errorf("it is in our own %s, %v", link, err)
		}
	}
	if !strings.HasSuffix(lines[8], "000001ffffffffff") && !strings.HasSuffix(lines[8], "000001fffeffffff") { // without CAP_SYS_RESOURCE, if we have none
		t.Errorf("capabilities %s", lines[8])
	}
	if len(f.Hooks) != 6 {
		t.Errorf("hooks %v", f.Hooks)
	}
	hooks := map[string]any{}
	for _, name := range f.Hooks {
		args := append([]string{"sh"}, harness.Sh("cat > /dev/null; echo " + name + " >> " + dir + "/ran")[1:]...)
		path := "/bin/sh"
		if name == "startContainer" {
			args = append([]string{"sh"}, harness.Sh("cat > /dev/null; echo " + name + " >> /ran/ran")[1:]...)
		}
		hooks[name] = []any{map[string]any{"path": path, "args": args}}
	}
	c = e.Container([]string{"true"}, withMount(dir, "/ran", "bind", "bind"))
	putSpec(e, c, edit(func(spec, _, _ map[string]any) { spec["hooks"] = hooks }))
	if got := c.Finish(); got.Code != 0 {
		t.Errorf("%+v", got)
	}
	ran, err := exec.Command("sort", dir+"/ran").Output()
	e.Must(err, "what ran")
	if want := "createContainer\ncreateRuntime\npoststart\npoststop\nprestart\nstartContainer\n"; string(ran) != want {
		t.Errorf("ran: %s", ran)
	}
}

func TestTheFeaturesOfSeccompAreTrue(t *testing.T) {
	e := start(t)
	f := featuresOf(e).Linux.Seccomp
	harmless := []string{"swapon", "swapoff", "reboot", "quotactl", "acct", "nfsservctl", "vhangup", "uselib", "ustat", "sysfs"}
	var archs []specs.Arch
	for _, a := range f.Archs {
		archs = append(archs, specs.Arch(a))
	}
	profile := func(change func(*specs.LinuxSeccomp)) oci.SpecOpts {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: archs}
		change(p)
		return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Linux.Seccomp = p
			return nil
		}
	}
	run := func(name string, opt oci.SpecOpts) {
		t.Helper()
		c := e.Container([]string{"grep", "^Seccomp:", "/proc/self/status"}, opt)
		err := c.TryCreate()
		if err == nil {
			err = c.Task.Start(e.Ctx)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		if got := c.Wait(); got.Stdout != "Seccomp:\t2\n" {
			t.Errorf("%s: %+v", name, got)
		}
		c.Delete()
	}
	a := startAgent(t)
	run("every action, and every operator with it", profile(func(p *specs.LinuxSeccomp) {
		p.ListenerPath = a.path
		for i := range f.Actions {
			action := specs.LinuxSeccompAction(f.Actions[i])
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: harmless[i : i+1], Action: action})
			for j, op := range f.Operators {
				p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"flock"}, Action: action,
					Args: []specs.LinuxSeccompArg{{Index: uint(j % 6), Value: 1<<40 + uint64(i), ValueTwo: 7, Op: specs.LinuxSeccompOperator(op)}}})
			}
		}
	}))
	// Of the flags one wants an agent, which another does not go with on old kernels.
	var plain, withAgent []specs.LinuxSeccompFlag
	for _, flag := range f.SupportedFlags {
		if strings.Contains(flag, "WAIT_KILLABLE") {
			withAgent = append(withAgent, specs.LinuxSeccompFlag(flag))
		} else {
			plain = append(plain, specs.LinuxSeccompFlag(flag))
		}
	}
	run("flags", profile(func(p *specs.LinuxSeccomp) {
		p.Flags, p.Syscalls = plain, []specs.LinuxSyscall{{Names: harmless, Action: specs.ActErrno}}
	}))
	run("flags with an agent", profile(func(p *specs.LinuxSeccomp) {
		p.Flags, p.ListenerPath, p.Syscalls = withAgent, a.path, []specs.LinuxSyscall{{Names: harmless, Action: specs.ActNotify}}
	}))
	for name, change := range map[string]func(*specs.LinuxSeccomp){
		"an action": func(p *specs.LinuxSeccomp) {
			p.Syscalls = []specs.LinuxSyscall{{Names: harmless, Action: "SCMP_ACT_NOSUCH"}}
		},
		"an operator": func(p *specs.LinuxSeccomp) {
			p.Syscalls = []specs.LinuxSyscall{{Names: harmless, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "SCMP_CMP_NOSUCH"}}}}
		},
		"architecture": func(p *specs.LinuxSeccomp) { p.Architectures = []specs.Arch{"SCMP_ARCH_NOSUCH"} },
		"a flag":       func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NOSUCH"} },
	} {
		if err := e.Container([]string{"true"}, profile(change)).TryCreate(); err == nil || !strings.Contains(err.Error(), "linux.seccomp.") {
			t.Errorf("%s that is not told of: %v", name, err)
		}
	}
}

func TestTheMemoryPoliciesOfTheFeaturesAreTrue(t *testing.T) {
	e := start(t)
	f := featuresOf(e).Linux.MemoryPolicy
	for _, mode := range f.Modes {
		c := e.Container([]string{"true"}, change(func(s *oci.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MemoryPolicyModeType(mode), Nodes: "0"}
			if mode == "MPOL_DEFAULT" || mode == "MPOL_LOCAL" {
				s.Linux.MemoryPolicy.Nodes = ""
			}
		}))
		err := c.TryCreate()
		if err == nil {
			err = c.Task.Start(e.Ctx)
		}
		// WEIGHTED_INTERLEAVE is Linux 6.9's: the features are what the runtime knows.
		if err != nil && !(mode == "MPOL_WEIGHTED_INTERLEAVE" && strings.Contains(err.Error(), "linux.memoryPolicy (MPOL_WEIGHTED_INTERLEAVE): set_mempolicy: EINVAL")) {
			t.Errorf("%s: %v", mode, err)
		}
	}
	err := e.Container([]string{"true"}, change(func(s *oci.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "MPOL_NOSUCH"} })).TryCreate()
	if err == nil || !strings.Contains(err.Error(), "linux.memoryPolicy.mode: ") {
		t.Errorf("a mode that is not told of: %v", err)
	}
}

// What containerd's CRI reads to tell the kubelet whether pods may have user namespaces and mounts that are
// read-only recursively.
func TestTheFeaturesAreToldAndTrue(t *testing.T) {
	e := start(t)
	if f := featuresOf(e); !slices.Contains(f.MountOptions, "rro") || !slices.Contains(f.Linux.Namespaces, "user") {
		t.Errorf("no recursive read-only mounts, or no user namespaces: %v, %v", f.MountOptions, f.Linux.Namespaces)
	}
	dir := t.TempDir()
	c := e.Container(harness.Sh("mkdir /m/a 2>&1; grep ' /m' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f1"), withMount(dir, "/m", "bind", "rbind", "rro"))
	if got := c.Finish(); got.Stdout != "mkdir: can't create directory '/m/a': Read-only file system\nro\n" {
		t.Errorf("rro: got %+v", got)
	}
}
