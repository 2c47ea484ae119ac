package shim

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// fields makes a message of numbered fields: strings, numbers, messages.
func fields(kv ...any) []byte {
	var m []byte
	for i := 0; i < len(kv); i += 2 {
		num := protowire.Number(kv[i].(int))
		switch v := kv[i+1].(type) {
		case string:
			m = protowire.AppendString(protowire.AppendTag(m, num, protowire.BytesType), v)
		case int:
			m = protowire.AppendVarint(protowire.AppendTag(m, num, protowire.VarintType), uint64(v))
		case []byte:
			m = protowire.AppendBytes(protowire.AppendTag(m, num, protowire.BytesType), v)
		}
	}
	return m
}

// podOptions is a PodSandboxConfig with these namespace options.
func podOptions(namespaces []byte) *anypb.Any {
	return &anypb.Any{TypeUrl: podConfigType, Value: fields(
		1, fields(1, "pod", 2, "uid", 3, "ns", 4, 1),
		2, "the-name", 3, "/var/log/pods",
		4, fields(1, "1.2.3.4", 1, "1.2.3.5", 2, "svc", 3, "ndots:5"),
		6, fields(1, "label", 2, "value"), 7, fields(1, "an", 2, "annotation"),
		8, fields(1, "/kubepods/pod1", 2, fields(1, namespaces, 3, fields(1, 7), 4, 1), 3, fields(1, "net.a", 2, "1")),
	)}
}

// a call of the sandbox service as containerd makes it, with its own types, by the same ttrpc methods.
func callSandbox(t *testing.T, svc *sandboxService, method string, req, resp proto.Message) error {
	t.Helper()
	out, err := sandboxMethods(svc)[method](context.Background(), func(into any) error {
		data, err := proto.Marshal(req)
		if err != nil {
			return err
		}
		return proto.Unmarshal(data, into.(proto.Message))
	})
	if err != nil {
		return err
	}
	data, err := proto.Marshal(out.(proto.Message))
	if err != nil {
		return err
	}
	return proto.Unmarshal(data, resp)
}

func newSandboxes(t *testing.T) (*sandboxService, *fakeRuntime, chan struct{}) {
	t.Helper()
	rt := new(fakeRuntime)
	down := make(chan struct{})
	s := newService("ns", rt, new(nobody), func() { close(down) }, func() {})
	return s.sandboxes, rt, down
}

type nobody struct{}

func (nobody) send(string, proto.Message) {}

// nodeIPC has no /dev/shm to be mounted, which wants root.
var nodeIPC = fields(2, 1, 3, 2)

func createSandbox(t *testing.T, s *sandboxService, options *anypb.Any) string {
	t.Helper()
	bundle := t.TempDir()
	err := callSandbox(t, s, "CreateSandbox", &sandboxapi.CreateSandboxRequest{
		SandboxID: "box", BundlePath: bundle, NetnsPath: "/net/ns", Options: options, Annotations: map[string]string{"k": "v"},
	}, new(sandboxapi.CreateSandboxResponse))
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

func TestSandboxMessagesAreThoseOfContainerdsPackage(t *testing.T) {
	s, rt, down := newSandboxes(t)
	bundle := createSandbox(t, s, podOptions(nodeIPC))
	cfg := rt.configs[0]
	if cfg.ID != "box" || cfg.Bundle != bundle || cfg.Spec.Hostname != "the-name" || cfg.Spec.Linux.CgroupsPath != "/kubepods/pod1/box" ||
		cfg.Spec.Linux.Sysctl["net.a"] != "1" || cfg.Spec.Annotations["k"] != "v" || namespaceOf(cfg.Spec, specs.NetworkNamespace).Path != "/net/ns" {
		t.Errorf("the container is %+v, %+v", cfg, cfg.Spec)
	}
	var st sandboxapi.SandboxStatusResponse
	if err := callSandbox(t, s, "SandboxStatus", &sandboxapi.SandboxStatusRequest{SandboxID: "box"}, &st); err != nil || st.State != "SANDBOX_NOTREADY" || st.Pid != 0 {
		t.Errorf("before the start: %v, %v", &st, err)
	}
	var started sandboxapi.StartSandboxResponse
	before := time.Now()
	if err := callSandbox(t, s, "StartSandbox", &sandboxapi.StartSandboxRequest{SandboxID: "box"}, &started); err != nil {
		t.Fatal(err)
	}
	pid := uint32(rt.last().main.Pid())
	if started.Pid != pid || started.CreatedAt.AsTime().Before(before) || started.Spec.GetTypeUrl() != "types.containerd.io/opencontainers/runtime-spec/1/Spec" {
		t.Errorf("started %v", &started)
	}
	var spec specs.Spec
	if err := json.Unmarshal(started.Spec.Value, &spec); err != nil || spec.Process.Args[0] != "/pause" {
		t.Errorf("its spec is %+v, %v", spec, err)
	}
	st.Reset()
	if err := callSandbox(t, s, "SandboxStatus", &sandboxapi.SandboxStatusRequest{SandboxID: "box", Verbose: true}, &st); err != nil {
		t.Fatal(err)
	}
	if st.SandboxID != "box" || st.Pid != pid || st.State != "SANDBOX_READY" || !strings.Contains(st.Info["info"], "/pause") ||
		!st.CreatedAt.AsTime().Equal(started.CreatedAt.AsTime()) || st.ExitedAt != nil {
		t.Errorf("status %v", &st)
	}
	var p sandboxapi.PlatformResponse
	if err := callSandbox(t, s, "Platform", &sandboxapi.PlatformRequest{SandboxID: "box"}, &p); err != nil || p.Platform.GetOS() != "linux" || p.Platform.GetArchitecture() == "" {
		t.Errorf("platform %v, %v", &p, err)
	}
	if err := callSandbox(t, s, "PingSandbox", &sandboxapi.PingRequest{SandboxID: "box"}, new(sandboxapi.PingResponse)); err != nil {
		t.Errorf("ping: %v", err)
	}
	waited := make(chan *sandboxapi.WaitSandboxResponse, 1)
	go func() {
		w := new(sandboxapi.WaitSandboxResponse)
		if err := callSandbox(t, s, "WaitSandbox", &sandboxapi.WaitSandboxRequest{SandboxID: "box"}, w); err != nil {
			t.Errorf("wait: %v", err)
		}
		waited <- w
	}()
	if err := callSandbox(t, s, "StopSandbox", &sandboxapi.StopSandboxRequest{SandboxID: "box", TimeoutSecs: 5}, new(sandboxapi.StopSandboxResponse)); err != nil {
		t.Errorf("stop: %v", err)
	}
	if w := <-waited; w.ExitStatus != 137 || w.ExitedAt == nil {
		t.Errorf("waited for %v", w)
	}
	if err := callSandbox(t, s, "ShutdownSandbox", &sandboxapi.ShutdownSandboxRequest{SandboxID: "box"}, new(sandboxapi.ShutdownSandboxResponse)); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	select {
	case <-down:
	default:
		t.Error("the shim was not shut down")
	}
	if _, err := os.Stat(filepath.Join(bundle, podDir)); !os.IsNotExist(err) {
		t.Errorf("the pod's files are left: %v", err)
	}
}

func TestSandboxRequestsThatAreRefused(t *testing.T) {
	create := func(r *sandboxapi.CreateSandboxRequest) func(*testing.T, *sandboxService) error {
		return func(t *testing.T, s *sandboxService) error {
			if r.BundlePath == "" {
				r.BundlePath = t.TempDir()
			}
			return callSandbox(t, s, "CreateSandbox", r, new(sandboxapi.CreateSandboxResponse))
		}
	}
	for name, c := range map[string]struct {
		call func(*testing.T, *sandboxService) error
		code codes.Code
		want string
	}{
		"no id":                     {create(&sandboxapi.CreateSandboxRequest{}), codes.InvalidArgument, "sandbox_id"},
		"a root file system":        {create(&sandboxapi.CreateSandboxRequest{SandboxID: "x", Rootfs: []*types.Mount{{Type: "bind"}}}), codes.Unimplemented, "rootfs"},
		"options of another type":   {create(&sandboxapi.CreateSandboxRequest{SandboxID: "x", Options: &anypb.Any{TypeUrl: "other", Value: []byte{8, 1}}}), codes.InvalidArgument, `"other"`},
		"options that are not such": {create(&sandboxapi.CreateSandboxRequest{SandboxID: "x", Options: &anypb.Any{TypeUrl: podConfigType, Value: []byte{0xff}}}), codes.InvalidArgument, podConfigType},
		"a mode of user namespaces that is not there": {create(&sandboxapi.CreateSandboxRequest{SandboxID: "x", Options: podOptions(fields(3, 2, 5, fields(1, 1)))}), codes.InvalidArgument, "userns_options.mode"},
		"a start of what is not there": {func(t *testing.T, s *sandboxService) error {
			return callSandbox(t, s, "StartSandbox", &sandboxapi.StartSandboxRequest{SandboxID: "x"}, new(sandboxapi.StartSandboxResponse))
		}, codes.NotFound, "sandbox x"},
		"a second sandbox": {func(t *testing.T, s *sandboxService) error {
			createSandbox(t, s, podOptions(nodeIPC))
			return create(&sandboxapi.CreateSandboxRequest{SandboxID: "y"})(t, s)
		}, codes.AlreadyExists, "box"},
		"a second start": {func(t *testing.T, s *sandboxService) error {
			createSandbox(t, s, podOptions(nodeIPC))
			req := &sandboxapi.StartSandboxRequest{SandboxID: "box"}
			if err := callSandbox(t, s, "StartSandbox", req, new(sandboxapi.StartSandboxResponse)); err != nil {
				return err
			}
			return callSandbox(t, s, "StartSandbox", req, new(sandboxapi.StartSandboxResponse))
		}, codes.FailedPrecondition, "started before"},
	} {
		t.Run(name, func(t *testing.T) {
			s, _, _ := newSandboxes(t)
			err := c.call(t, s)
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %s with %q", err, c.code, c.want)
			}
		})
	}
}

func TestASandboxThatIsNotMadeLetsTheShimGo(t *testing.T) {
	s, rt, down := newSandboxes(t)
	rt.createErr = errors.New("no namespaces today")
	bundle := t.TempDir()
	err := s.create(context.Background(), &sandboxRequest{id: "box", bundle: bundle, options: podOptions(nodeIPC)})
	if !errors.Is(err, rt.createErr) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(bundle, podDir)); !os.IsNotExist(err) {
		t.Errorf("the pod's files are left: %v", err)
	}
	if err := s.shutdown(context.Background(), "box"); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	select {
	case <-down:
	default:
		t.Error("the shim stays")
	}
}

func TestASandboxKeepsTheShimAndItsEndTakesContainers(t *testing.T) {
	s, rt, down := newSandboxes(t)
	createSandbox(t, s, podOptions(nodeIPC))
	ctx := context.Background()
	if _, _, err := s.start(ctx, "box"); err != nil {
		t.Fatal(err)
	}
	if s.tasks.idle() {
		t.Error("a shim with a sandbox is idle")
	}
	if _, err := s.tasks.Shutdown(ctx, &taskapi.ShutdownRequest{}); err != nil {
		t.Error(err)
	}
	select {
	case <-down:
		t.Fatal("the task service's shutdown ended a shim with a sandbox")
	default:
	}
	bundle := t.TempDir()
	config, _ := json.Marshal(&specs.Spec{
		Version: "1.0.2", Process: &specs.Process{Args: []string{"x"}, Cwd: "/"}, Root: &specs.Root{Path: "rootfs"},
		Annotations: map[string]string{sandboxIDAnnotation: "box"},
		Mounts:      []specs.Mount{{Destination: "/etc/hosts", Source: "/kubelet/hosts", Type: "bind"}},
	})
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.tasks.Create(ctx, &taskapi.CreateTaskRequest{ID: "c", Bundle: bundle}); err != nil {
		t.Fatal(err)
	}
	var to []string
	for _, m := range rt.configs[1].Spec.Mounts {
		to = append(to, m.Source[strings.LastIndexByte(m.Source, '/')+1:]+" at "+m.Destination)
	}
	if want := []string{"hosts at /etc/hosts", "hostname at /etc/hostname", "resolv.conf at /etc/resolv.conf"}; !slices.Equal(to, want) {
		t.Errorf("the container's mounts are %q, want %q", to, want)
	}
	if m := rt.configs[1].Spec.Mounts[0]; m.Source != "/kubelet/hosts" {
		t.Errorf("/etc/hosts is %s", m.Source)
	}
	c := rt.last()
	if _, err := s.tasks.Start(ctx, &taskapi.StartRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	if err := s.stop(ctx, "box", time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	if got := c.main.Exit().Status; got != 128+uint32(unix.SIGKILL) {
		t.Errorf("the container ended with %d", got)
	}
	if err := s.shutdown(ctx, "box"); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if _, err := s.tasks.container("c"); !errdefs.IsNotFound(err) {
		t.Errorf("the container is still there: %v", err)
	}
	<-down
}

func TestWhatASandboxIsMadeOf(t *testing.T) {
	types := func(s *specs.Spec) string {
		var l []string
		for _, n := range s.Linux.Namespaces {
			l = append(l, strings.TrimSuffix(string(n.Type)+"="+n.Path, "="))
		}
		return strings.Join(l, " ")
	}
	for _, c := range []struct {
		name, namespaces, sysctls string
		options                   []byte
	}{
		{"a pod with a PID namespace for each container", "mount pid ipc uts network=/net", "net.a net.ipv4.ip_unprivileged_port_start net.ipv4.ping_group_range", fields(2, modeContainer)},
		{"a pod that shares its PID namespace", "mount pid ipc uts network=/net", "net.a net.ipv4.ip_unprivileged_port_start net.ipv4.ping_group_range", nil},
		{"the node's network", "mount pid ipc", "net.a", fields(1, modeNode)},
		{"all of the node's", "mount", "net.a", fields(1, modeNode, 2, modeNode, 3, modeNode)},
		{"a user namespace", "user mount pid ipc uts network=/net", "net.a net.ipv4.ip_unprivileged_port_start", fields(5, fields(1, modePod, 2, fields(1, 70000, 2, 0, 3, 65536), 3, fields(1, 80000, 2, 0, 3, 65536)))},
		{"the node's user namespace", "mount pid ipc uts network=/net", "net.a net.ipv4.ip_unprivileged_port_start net.ipv4.ping_group_range", fields(5, fields(1, modeNode))},
	} {
		t.Run(c.name, func(t *testing.T) {
			var pod podConfig
			if err := pod.parse(podOptions(c.options).Value); err != nil {
				t.Fatal(err)
			}
			s, err := pod.spec("box", "/net")
			if err != nil {
				t.Fatal(err)
			}
			if got := types(s); got != c.namespaces {
				t.Errorf("namespaces %s, want %s", got, c.namespaces)
			}
			var sysctls []string
			for k := range s.Linux.Sysctl {
				sysctls = append(sysctls, k)
			}
			slices.Sort(sysctls)
			if got := strings.Join(sysctls, " "); got != c.sysctls {
				t.Errorf("sysctls %s, want %s", got, c.sysctls)
			}
			hold(s, "/bundle/pod/pause")
			if p := s.Process; p.User.UID != pauseUser || !p.NoNewPrivileges || len(p.Capabilities.Bounding) > 0 || !s.Root.Readonly || len(s.Mounts) != 1 {
				t.Errorf("the holder is %+v", p)
			}
		})
	}
}

func TestTheCgroupOfASandbox(t *testing.T) {
	for parent, want := range map[string]string{
		"/kubepods/pod1": "/kubepods/pod1/box",
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice": "kubepods-burstable-pod1.slice:cri-containerd:box",
	} {
		if got := cgroupsPath(parent, "box"); got != want {
			t.Errorf("%s: %s, want %s", parent, got, want)
		}
	}
}

func TestTheResolvConfOfAPod(t *testing.T) {
	d := dnsConfig{servers: []string{"a", "b"}, searches: []string{"x", "y"}, options: []string{"o", "p"}}
	if got, want := string(d.resolvConf()), "search x y\nnameserver a\nnameserver b\noptions o p\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := (&dnsConfig{}).resolvConf(); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestAShimWhoseBundleWasRemovedGoes(t *testing.T) {
	for name, with := range map[string]func(*testing.T, *sandboxService){
		"without a sandbox":    func(*testing.T, *sandboxService) {},
		"with one not started": func(t *testing.T, s *sandboxService) { createSandbox(t, s, podOptions(nodeIPC)) },
		"with one that has been": func(t *testing.T, s *sandboxService) {
			createSandbox(t, s, podOptions(nodeIPC))
			if _, _, err := s.start(context.Background(), "box"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, rt, down := newSandboxes(t)
			with(t, s)
			bundle := t.TempDir()
			go goIfForgotten(s.tasks, bundle, 10*time.Millisecond)
			select {
			case <-down:
				t.Fatal("it went, with a bundle")
			case <-time.After(50 * time.Millisecond):
			}
			if err := os.Remove(bundle); err != nil {
				t.Fatal(err)
			}
			select {
			case <-down:
			case <-time.After(10 * time.Second):
				t.Fatal("it stays, without a bundle")
			}
			for _, c := range rt.created {
				select {
				case <-c.main.Exited():
				default:
					t.Error("the holder stays")
				}
			}
		})
	}
}
