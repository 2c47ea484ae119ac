package docker

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/integration/harness"
)

// A dockerd is a Docker daemon of our own, on a containerd of our own.
type dockerd struct {
	client, daemon string // directories of the programs
	runtime        string // what docker run is told
	named          string // a name that the configuration gives the runtime; "" if this Docker knows none
	on             *harness.Daemon
	log            string
	cmd            *exec.Cmd
	exited         chan error
}

const address = "unix:///run/docker.sock"

// pids are the daemon's own processes.
func (d *dockerd) pids() []int {
	if d.cmd == nil {
		return nil
	}
	return []int{d.cmd.Process.Pid}
}

// start starts the daemon and waits until it answers.
func (d *dockerd) start() error {
	logs, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logs.Close()
	// Not the machine's own.
	config := filepath.Join(d.on.Dir, "dockerd.json")
	content := "{}"
	if d.named != "" {
		content = fmt.Sprintf(`{"runtimes": {%q: {"runtimeType": %q}}}`, d.named, d.runtime)
	}
	if err := os.WriteFile(config, []byte(content), 0o644); err != nil {
		return err
	}
	driver, parent := "cgroupfs", "/"+d.on.Namespace
	if harness.Systemd() {
		driver, parent = "systemd", d.on.Slice()
	}
	cmd := exec.Command(filepath.Join(d.daemon, "dockerd"), "--config-file", config,
		"--data-root", filepath.Join(d.on.Dir, "docker"), "--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "--host", address,
		"--containerd", d.on.Address(), "--containerd-namespace", d.on.Namespace, "--containerd-plugins-namespace", d.on.Namespace+"-plugins",
		"--cgroup-parent", parent, "--exec-opt", "native.cgroupdriver="+driver,
		"--init-path", filepath.Join(d.client, "docker-init"), "--userland-proxy-path", filepath.Join(d.daemon, "docker-proxy"),
		"--storage-driver", "overlay2", "--live-restore", "--shutdown-timeout", "5")
	cmd.Stdout, cmd.Stderr = logs, logs
	cmd.Env = append(os.Environ(), "PATH="+strings.Join(d.on.Path, ":")+":"+os.Getenv("PATH"), "TMPDIR="+d.on.Temp())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.cmd, d.exited = cmd, make(chan error, 1)
	go func() { d.exited <- cmd.Wait() }()
	for deadline := time.Now().Add(time.Minute); ; {
		if r := d.docker("version", "--format", "{{.Server.Version}}"); r.Code == 0 {
			return nil
		}
		select {
		case err := <-d.exited:
			d.cmd = nil
			return fmt.Errorf("dockerd exited: %v\n%s", err, d.logged(4000))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("dockerd does not answer\n%s", d.logged(4000))
		}
	}
}

// prepare loads the image, and has made what Docker makes once and keeps.
func (d *dockerd) prepare() error {
	var image bytes.Buffer
	if err := harness.WriteImage(&image); err != nil {
		return err
	}
	r := d.run(&image, "load")
	for _, network := range []string{"none", "host", "bridge"} {
		if r.Code == 0 {
			r = d.docker("run", "--rm", "--runtime", d.runtime, "--network", network, harness.ImageName, "true")
		}
	}
	if r.Code != 0 {
		return fmt.Errorf("%v\n%s", r, d.logged(4000))
	}
	return nil
}

// end ends the daemon with a signal.
func (d *dockerd) end(sig syscall.Signal) {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(sig)
	select {
	case <-d.exited:
	case <-time.After(harness.Patience):
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
	d.cmd = nil
}

func (d *dockerd) stop() {
	d.end(unix.SIGTERM)
	_ = unix.Unmount("/run/docker/netns/default", unix.MNT_DETACH)
	for _, dir := range []string{"/run/docker", filepath.Join(d.on.Dir, "docker")} {
		_ = os.RemoveAll(dir)
	}
}

// logged is the end of the daemon's log.
func (d *dockerd) logged(max int) string {
	data, _ := os.ReadFile(d.log)
	return string(data[len(data)-min(len(data), max):])
}

func (d *dockerd) versions() string {
	r := d.docker("version", "--format", `docker {{.Server.Version}}{{range .Server.Components}}, {{.Name}} {{.Version}}{{end}}`)
	return strings.TrimSpace(r.Stdout)
}

// command is a command of Docker's client, not yet run.
func (d *dockerd) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(d.client, "docker"), args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+address, "DOCKER_CONFIG="+filepath.Join(d.on.Dir, "client"))
	return cmd
}

func (d *dockerd) docker(args ...string) harness.Result { return d.run(nil, args...) }

// run runs a command of Docker's client, with what it reads from its standard input.
func (d *dockerd) run(in io.Reader, args ...string) harness.Result {
	cmd := d.command(args...)
	cmd.Stdin = in
	return harness.RunClient(cmd)
}
