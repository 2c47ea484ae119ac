package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a pod, made by CRI as a kubelet would.
type Pod struct {
	*Env
	CRI     *CRIClient
	ID      string
	Handler string // "" is the default
	Config  *runtimeapi.PodSandboxConfig
}

// PodContainer is a container of one.
type PodContainer struct {
	*Pod
	ID     string
	Config *runtimeapi.ContainerConfig
}

// NewPod makes the configuration of a pod, with a cgroup and a directory of logs
// as a kubelet makes them; what it needs is removed at the end of the test.
func (e *Env) NewPod() *Pod {
	e.Helper()
	cri, err := e.DialCRI()
	e.Must(err, "connect to CRI")
	e.Cleanup(cri.Close)
	name := fmt.Sprintf("pod%d", e.serial())
	p := &Pod{Env: e, CRI: cri, Config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "default"},
		Hostname:     name,
		LogDirectory: filepath.Join(e.TB.TempDir(), name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/" + filepath.Join(e.CgroupName(), name),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}}
	e.Must(os.MkdirAll(p.Config.LogDirectory, 0o755), "directory of logs")
	if Systemd() {
		slices := e.podSlices(name)
		p.Config.Linux.CgroupParent = path.Join(append([]string{e.SliceDir()}, slices...)...)
		out, err := exec.CommandContext(e.Ctx, "systemctl", "start", slices[2]).CombinedOutput()
		e.Must(err, "systemctl start %s: %s", slices[2], out)
		e.Cleanup(p.remove)
		return p
	}
	for _, controller := range controllers() {
		e.Must(makeCgroup(controller, p.Config.Linux.CgroupParent), "cgroup of the pod")
	}
	e.Cleanup(p.remove)
	return p
}

// controllers are the hierarchies of cgroups, by their directories.
func controllers() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	return dirs
}

// makeCgroup makes a cgroup in which there can be processes: on cgroup v1 a cpuset
// has none before it has processors.
func makeCgroup(root, path string) error {
	dir := root
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if v, err := os.ReadFile(filepath.Join(parent, file)); err == nil && filepath.Base(root) == "cpuset" {
				if err := os.WriteFile(filepath.Join(dir, file), v, 0); err != nil {
					return err
				}
			}
		}
		if parent != root || root == "/sys/fs/cgroup" { // v2 alone
			_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+cpu +cpuset +io +memory +pids +hugetlb"), 0)
		}
	}
	return nil
}

// LimitMemory puts a limit on the pod's cgroup, as a kubelet does, in bytes.
func (p *Pod) LimitMemory(limit int) {
	p.Helper()
	file, property := "memory.limit_in_bytes", "MemoryLimit"
	if CgroupRoot("memory") == "/sys/fs/cgroup" {
		file, property = "memory.max", "MemoryMax"
	}
	if Systemd() {
		out, err := exec.CommandContext(p.Ctx, "systemctl", "set-property", "--runtime", path.Base(p.Config.Linux.CgroupParent), fmt.Sprintf("%s=%d", property, limit)).CombinedOutput()
		p.Must(err, "limit the pod: %s", out)
		return
	}
	p.Must(os.WriteFile(filepath.Join(CgroupRoot("memory"), p.Config.Linux.CgroupParent, file), fmt.Append(nil, limit), 0), "limit the pod")
}

// Run runs the pod: its pause container, and its network.
func (p *Pod) Run() *Pod {
	p.Helper()
	p.Must(p.TryRun(), "run pod %s", p.Config.Metadata.Name)
	return p
}

// TryRun is Run with an error.
func (p *Pod) TryRun() error {
	resp, err := p.CRI.RunPodSandbox(p.Ctx, &runtimeapi.RunPodSandboxRequest{Config: p.Config, RuntimeHandler: p.Handler})
	if err == nil {
		p.ID = resp.PodSandboxId
	}
	return err
}

// Status is what CRI tells of the pod.
func (p *Pod) Status() *runtimeapi.PodSandboxStatus {
	p.Helper()
	resp, err := p.CRI.PodSandboxStatus(p.Ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	p.Must(err, "status of the pod")
	return resp.Status
}

// Stop stops the pod, and what runs in it.
func (p *Pod) Stop() {
	p.Helper()
	_, err := p.CRI.StopPodSandbox(p.Ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID})
	p.Must(err, "stop the pod")
}

// remove is what the end of a test does.
func (p *Pod) remove() {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	if p.ID != "" {
		if _, err := p.CRI.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
			p.Errorf("stop the pod at the end: %v", err)
		}
		if _, err := p.CRI.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
			p.Errorf("remove the pod at the end: %v", err)
		}
	}
	if Systemd() {
		p.removeSlices(p.podSlices(p.Config.Metadata.Name))
		return
	}
	for _, root := range controllers() {
		// Not below it: what is left there is a leak.
		_ = os.Remove(filepath.Join(root, p.Config.Linux.CgroupParent))
	}
}

// NewContainer makes the configuration of a container: the image, the args, the
// runtime's seccomp profile, the namespaces of the pod.
func (p *Pod) NewContainer(args ...string) *PodContainer {
	p.Helper()
	name := fmt.Sprintf("c%d", p.serial())
	sandbox := p.Config.Linux.SecurityContext
	return &PodContainer{Pod: p, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: ImageName},
		Command:  args,
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: sandbox.NamespaceOptions,
				Privileged:       sandbox.Privileged,
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				MaskedPaths:      []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
				ReadonlyPaths:    []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}}
}

// Cgroup is the path of the container's cgroup below each hierarchy: CRI names it.
func (c *PodContainer) Cgroup() string {
	if Systemd() {
		return path.Join(c.Pod.Config.Linux.CgroupParent, "cri-containerd-"+c.ID+".scope")
	}
	return path.Join(c.Pod.Config.Linux.CgroupParent, c.ID)
}

// Create creates the container.
func (c *PodContainer) Create() *PodContainer {
	c.Helper()
	c.Must(c.TryCreate(), "create container %s", c.Config.Metadata.Name)
	return c
}

// TryCreate is Create with an error.
func (c *PodContainer) TryCreate() error {
	resp, err := c.CRI.CreateContainer(c.Ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: c.Pod.ID, Config: c.Config, SandboxConfig: c.Pod.Config})
	if err == nil {
		c.ID = resp.ContainerId
	}
	return err
}

// TryStart starts it. This is when CRI asks the shim for the task.
func (c *PodContainer) TryStart() error {
	_, err := c.CRI.StartContainer(c.Ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ID})
	return err
}

// Run creates and starts the container.
func (c *PodContainer) Run() *PodContainer {
	c.Helper()
	c.Create()
	c.Must(c.TryStart(), "start container %s", c.Config.Metadata.Name)
	return c
}

// Container runs one with what NewContainer has.
func (p *Pod) Container(args ...string) *PodContainer {
	p.Helper()
	return p.NewContainer(args...).Run()
}

// Status is what CRI tells of the container.
func (c *PodContainer) Status() *runtimeapi.ContainerStatus {
	c.Helper()
	resp, err := c.CRI.ContainerStatus(c.Ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	c.Must(err, "status of container %s", c.Config.Metadata.Name)
	return resp.Status
}

// Wait waits until the container has ended.
func (c *PodContainer) Wait() *runtimeapi.ContainerStatus {
	c.Helper()
	var st *runtimeapi.ContainerStatus
	c.Eventually(c.Config.Metadata.Name+" has ended", func() bool {
		st = c.Status()
		return st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return st
}

// Stop has it end, by force after the timeout.
func (c *PodContainer) Stop(timeout time.Duration) {
	c.Helper()
	_, err := c.CRI.StopContainer(c.Ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: int64(timeout / time.Second)})
	c.Must(err, "stop container %s", c.Config.Metadata.Name)
}

// Remove removes it, running or not.
func (c *PodContainer) Remove() {
	c.Helper()
	_, err := c.CRI.RemoveContainer(c.Ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
	c.Must(err, "remove container %s", c.Config.Metadata.Name)
}

// Exec runs a command in the container to its end, at most timeout if that is not 0.
func (c *PodContainer) Exec(timeout time.Duration, args ...string) (Exit, error) {
	resp, err := c.CRI.ExecSync(c.Ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: args, Timeout: int64(timeout / time.Second)})
	if err != nil {
		return Exit{}, err
	}
	return Exit{uint32(resp.ExitCode), string(resp.Stdout), string(resp.Stderr)}, nil
}

// Sh runs a script in the container, which must succeed, and gives its output
// without white space at the ends.
func (c *PodContainer) Sh(lines ...string) string {
	c.Helper()
	exit, err := c.Exec(Patience, Sh(lines...)...)
	c.Must(err, "exec %q in %s", lines, c.Config.Metadata.Name)
	if exit.Code != 0 {
		c.Fatalf("exec %q in %s: %+v", lines, c.Config.Metadata.Name, exit)
	}
	return strings.TrimSpace(exit.Stdout)
}

// LogFile is the container's log.
func (c *PodContainer) LogFile() string {
	return filepath.Join(c.Pod.Config.LogDirectory, c.Config.LogPath)
}

// LogLine is a line of a log as CRI writes it.
type LogLine struct {
	Time         time.Time
	Stream, Tags string
	Text         string
}

// Log is what the container has written.
func (c *PodContainer) Log() []LogLine {
	c.Helper()
	return c.ReadLog(c.LogFile())
}

// ReadLog reads a log in CRI's format.
func (e *Env) ReadLog(file string) []LogLine {
	e.Helper()
	data, err := os.ReadFile(file)
	e.Must(err, "read the log")
	var lines []LogLine
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 {
			e.Fatalf("%s: not a line of CRI's format: %q", file, line)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		e.Must(err, "time in a line of %s", file)
		lines = append(lines, LogLine{at, f[1], f[2], f[3]})
	}
	return lines
}

// Output is what it has written to a stream, stdout or stderr.
func (c *PodContainer) Output(stream string) string {
	c.Helper()
	var out strings.Builder
	for _, l := range c.Log() {
		if l.Stream != stream {
			continue
		}
		out.WriteString(l.Text)
		if l.Tags == "F" {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// Pid is the process's, by containerd's own account.
func (c *PodContainer) Pid() int { c.Helper(); return c.pid(c.ID) }

// Pid is that of the pod's pause container.
func (p *Pod) Pid() int { p.Helper(); return p.pid(p.ID) }

func (e *Env) pid(id string) int {
	e.Helper()
	record, err := e.Client.LoadContainer(e.Ctx, id)
	e.Must(err, "load container %s", id)
	task, err := record.Task(e.Ctx, nil)
	e.Must(err, "task of %s", id)
	return int(task.Pid())
}

// cleanPods removes what a failed test left.
func (d *Daemon) cleanPods(ctx context.Context) {
	if d.CRI == nil {
		return
	}
	cri, err := d.DialCRI()
	if err != nil {
		return
	}
	defer cri.Close()
	pods, err := cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return
	}
	for _, p := range pods.Items {
		_, _ = cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id})
		_, _ = cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
	}
}
