// Package docker has the tests of the shim under Docker. RSYS_DOCKER says which:
//
//   - debian, if nothing is said: Debian's dockerd with Debian's containerd (20.10 and 1.6 in Debian 12), which knows no
//     shim but runc's, so that ours goes by its name;
//   - a version that hack/setup built (28): that dockerd, with the containerd of RSYS_CONTAINERD, and
//     "docker run --runtime io.containerd.rsys.v1".
//
// RSYS_RUNTIME=io.containerd.runc.v2 compares with runc, under the first Debian's. The client is Debian's.
//
// They run in a network namespace of their own too: Docker's bridge and its
// packet filter rules are there.
package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/integration/harness"
)

var (
	daemon *harness.Daemon
	engine *dockerd
)

func TestMain(m *testing.M) {
	harness.Isolate(unix.CLONE_NEWNET)
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "docker:", err)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	cfg, err := harness.FromEnv()
	if err != nil {
		return 1, err
	}
	debian := filepath.Join(harness.Cache(), "docker")
	if _, err := os.Stat(filepath.Join(debian, "built")); err != nil {
		return 1, fmt.Errorf("%w (hack/setup docker)", err)
	}
	// runc and dockerd are linked with libraries that came with them.
	if err := os.Setenv("LD_LIBRARY_PATH", filepath.Join(debian, "lib")); err != nil {
		return 1, err
	}
	dockerBin := filepath.Join(debian, "bin")
	engine = &dockerd{client: dockerBin, daemon: dockerBin, runtime: harness.Runtime()}
	if version := os.Getenv("RSYS_DOCKER"); version == "" || version == "debian" {
		cfg.Containerd = dockerBin
		cfg.Path = []string{cfg.Path[0], dockerBin}
		if !peer() {
			dir, err := os.MkdirTemp("/run", "bin-")
			if err != nil {
				return 1, err
			}
			if err := os.Symlink(filepath.Join(cfg.Path[0], "containerd-shim-rsys-v1"), filepath.Join(dir, "containerd-shim-runc-v2")); err != nil {
				return 1, err
			}
			cfg.Path = append([]string{dir}, cfg.Path...)
		}
		engine.runtime = "io.containerd.runc.v2"
	} else {
		found, _ := filepath.Glob(filepath.Join(harness.Cache(), "dockerd-"+version+"*", "bin"))
		if len(found) == 0 {
			return 1, fmt.Errorf("no dockerd %s: hack/setup dockerd gets it", version)
		}
		engine.daemon, engine.named = found[len(found)-1], "named"
		cfg.Path = append(cfg.Path, dockerBin) // the runc that Docker insists on
	}
	if daemon, err = harness.Start(cfg); err != nil {
		return 1, err
	}
	defer daemon.Stop()
	engine.on, engine.log = daemon, filepath.Join(daemon.Dir, "dockerd.log")
	daemon.Others = engine.pids
	// dockerd removes a network namespace's file up to a minute after its mount, which is looked for; the socket changes
	// its name with each start of dockerd. The default namespace is mounted once, when a container first needs it.
	daemon.Keeps = []string{"/run/docker/netns/default", "/run/docker/netns/*", "/run/docker/libnetwork/*.sock"}
	defer engine.stop()
	if err := engine.start(); err != nil {
		return 1, err
	}
	if err := engine.prepare(); err != nil {
		return 1, err
	}
	fmt.Printf("# runtime %s, %s\n", harness.Runtime(), engine.versions())
	return m.Run(), nil
}

// peer tells that the runtime under test is not ours.
func peer() bool { return harness.Runtime() != "io.containerd.rsys.v1" }
