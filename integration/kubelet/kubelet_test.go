package kubelet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

// A kubelet runs until it is stopped, and serves whoever asks, as there is no cluster that knows who may.
type kubelet struct {
	bin, dir string
	cgroup   string
	cmd      *exec.Cmd
	exited   chan error
	http     http.Client
}

const server = "https://127.0.0.1:10250"

func startKubelet(d *harness.Daemon) (*kubelet, error) {
	found, _ := filepath.Glob(filepath.Join(harness.Cache(), "kubelet-*/bin/kubelet"))
	if len(found) == 0 {
		return nil, errors.New("no kubelet (hack/setup kubelet)")
	}
	k := &kubelet{
		bin: found[len(found)-1], dir: filepath.Join(d.Dir, "kubelet"), cgroup: d.CgroupName(),
		http: http.Client{
			Timeout:   30 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, // it has signed its own certificate
		},
	}
	for _, dir := range []string{"pods", "root", "certs", "logs", "plugins"} {
		if err := os.MkdirAll(filepath.Join(k.dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	config, err := json.Marshal(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + d.Address(),
		"staticPodPath":            k.pods(), "fileCheckFrequency": "1s", "syncFrequency": "1s",
		"podLogsDir": filepath.Join(k.dir, "logs"), "volumePluginDir": filepath.Join(k.dir, "plugins"),
		"authentication": map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":  map[string]any{"mode": "AlwaysAllow"},
		"address":        "127.0.0.1", "healthzPort": 0, "registerNode": false, "enableControllerAttachDetach": false,
		"cgroupDriver": "cgroupfs", "cgroupRoot": "/" + k.cgroup, "failSwapOn": false, "failCgroupV1": false,
		"makeIPTablesUtilChains": false, "localStorageCapacityIsolation": false,
		// What there is of disk and memory here is others' as well.
		"evictionHard": map[string]string{"memory.available": "1Mi", "nodefs.available": "1Mi", "imagefs.available": "1Mi"},
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(k.dir, "config.json"), config, 0o644); err != nil {
		return nil, err
	}
	hierarchies, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for _, procs := range append(hierarchies, "/sys/fs/cgroup/cgroup.procs") {
		if _, err := os.Stat(procs); err != nil {
			continue
		}
		for _, class := range []string{"burstable", "besteffort"} { // else a hierarchy has them from the first pod on
			if err := os.MkdirAll(filepath.Join(filepath.Dir(procs), k.cgroup, "kubepods", class), 0o755); err != nil {
				return nil, err
			}
		}
	}
	d.Others = func() []int { return []int{k.cmd.Process.Pid} }
	if err := k.run(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, k.log(3000))
	}
	return k, nil
}

func (k *kubelet) pods() string { return filepath.Join(k.dir, "pods") }

// run starts it, for the first time or again.
func (k *kubelet) run() error {
	log, err := os.OpenFile(filepath.Join(k.dir, "kubelet.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	k.cmd = exec.Command(k.bin, "--config", filepath.Join(k.dir, "config.json"), "--root-dir", filepath.Join(k.dir, "root"),
		"--cert-dir", filepath.Join(k.dir, "certs"), "--hostname-override", "node", "--v=2")
	k.cmd.Stdout, k.cmd.Stderr = log, log
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := k.cmd.Start(); err != nil {
		return err
	}
	k.exited = make(chan error, 1)
	go func() { k.exited <- k.cmd.Wait() }()
	for deadline := time.Now().Add(2 * harness.Patience); ; time.Sleep(100 * time.Millisecond) {
		body, err := k.get("/healthz")
		if err == nil && body == "ok" {
			return nil
		}
		select {
		case err := <-k.exited:
			return fmt.Errorf("the kubelet ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the kubelet is not well: %q, %v", body, err)
		}
	}
}

func (k *kubelet) kill(sig syscall.Signal) {
	_ = k.cmd.Process.Signal(sig)
	<-k.exited
}

func (k *kubelet) stop() {
	k.kill(unix.SIGTERM)
}

func (k *kubelet) version() string {
	out, err := exec.Command(k.bin, "--version").Output()
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

func (k *kubelet) log(max int) string {
	data, _ := os.ReadFile(filepath.Join(k.dir, "kubelet.log"))
	return string(data[len(data)-min(len(data), max):])
}

func (k *kubelet) get(path string) (string, error) { return k.do(http.MethodGet, path) }

func (k *kubelet) do(method, path string) (string, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, server+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := k.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// The status of a pod, as far as the tests look at it.
type podStatus struct {
	Phase                 string
	PodIP                 string
	InitContainerStatuses []containerStatus
	ContainerStatuses     []containerStatus
}

type containerStatus struct {
	Name             string
	Ready            bool
	RestartCount     int
	ContainerID      string
	State, LastState struct {
		Running, Waiting, Terminated *struct {
			Reason   string
			Message  string
			ExitCode int
		}
	}
}

// status is a pod's, nil if there is none of that name.
func (k *kubelet) status(name string) (*podStatus, error) {
	body, err := k.get("/pods")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   podStatus
		}
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		return nil, err
	}
	for _, pod := range list.Items {
		if pod.Metadata.Name == name+"-node" { // the node's name is appended to a static pod's
			return &pod.Status, nil
		}
	}
	return nil, nil
}

// A pod is one from a file.
type pod struct {
	*harness.Env
	name, file string
}

func newPod(e *harness.Env, name, spec string) *pod {
	e.Helper()
	p := &pod{e, name, filepath.Join(node.pods(), name+".json")}
	p.write(spec)
	e.Cleanup(func() {
		if e.Failed() {
			e.Logf("what the kubelet logged:\n%s", node.log(6000))
		}
		p.remove()
	})
	return p
}

func (p *pod) write(spec string) {
	p.Helper()
	manifest := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": "default"}, "spec": %s}`, p.name, spec)
	if !json.Valid([]byte(manifest)) {
		p.Fatalf("not JSON: %s", manifest)
	}
	file := filepath.Join(node.dir, p.name)
	p.Must(os.WriteFile(file, []byte(manifest), 0o644), "write the pod")
	p.Must(os.Rename(file, p.file), "write the pod")
}

// remove takes the pod away and waits until the kubelet has stopped it. A sandbox that has stopped it removes some minute.
func (p *pod) remove() {
	p.Helper()
	if err := os.Remove(p.file); errors.Is(err, os.ErrNotExist) {
		return
	}
	cri, err := p.DialCRI()
	p.Must(err, "connect to CRI")
	defer cri.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*harness.Patience)
	defer cancel()
	p.Eventually("the pod is stopped", func() bool {
		if st, err := node.status(p.name); err != nil || st != nil {
			return false
		}
		list, err := cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return false
		}
		for _, sandbox := range list.Items {
			if sandbox.Metadata.Name != p.name+"-node" {
				continue
			}
			if sandbox.State == runtimeapi.PodSandboxState_SANDBOX_READY {
				return false
			}
			if _, err := cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.Id}); err != nil {
				return false
			}
		}
		return true
	})
}

// until waits for a status.
func (p *pod) until(what string, so func(*podStatus) bool) *podStatus {
	p.Helper()
	var st *podStatus
	p.Eventually(what, func() bool {
		var err error
		st, err = node.status(p.name)
		return err == nil && st != nil && so(st)
	})
	return st
}

func (st *podStatus) ready() bool {
	for _, c := range st.ContainerStatuses {
		if !c.Ready {
			return false
		}
	}
	return len(st.ContainerStatuses) > 0
}

// exec runs a command of a container's, by the kubelet, which parts it at spaces.
func (p *pod) exec(container, command string) string {
	p.Helper()
	out, err := node.do(http.MethodPost, fmt.Sprintf("/run/default/%s-node/%s?cmd=%s", p.name, container, url.QueryEscape(command)))
	p.Must(err, "run %q", command)
	return out
}

func (p *pod) log(container string) string {
	p.Helper()
	out, err := node.get(fmt.Sprintf("/containerLogs/default/%s-node/%s", p.name, container))
	p.Must(err, "logs of %s", container)
	return out
}
