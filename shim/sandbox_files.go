package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// podFiles are what a pod's containers share beside namespaces: /dev/shm and three files of /etc. With a pause container CRI makes them and mounts them into
// containers; of a shim's sandbox it knows no place where they could be, and leaves them to the shim. They are in the bundle.
type podFiles struct {
	dir    string
	mounts []specs.Mount
	shm    bool
}

const (
	podDir = "pod"
	// shmSize is the size of a pod's /dev/shm in CRI.
	shmSize = "65536k"
)

func makePodFiles(bundle string, spec *specs.Spec, pod *podConfig) (_ *podFiles, err error) {
	f := &podFiles{dir: filepath.Join(bundle, podDir)}
	if err := os.Mkdir(f.dir, 0o711); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.remove())
		}
	}()
	hostname := spec.Hostname
	if hostname == "" {
		if hostname, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var resolv []byte
	if pod.dns != nil {
		resolv = pod.dns.resolvConf()
	} else if resolv, err = os.ReadFile("/etc/resolv.conf"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range []struct {
		name string
		data []byte
	}{{"hostname", []byte(hostname + "\n")}, {"hosts", hosts}, {"resolv.conf", resolv}} {
		path := filepath.Join(f.dir, e.name)
		if err := os.WriteFile(path, e.data, 0o644); err != nil {
			return nil, err
		}
		if err := os.Chown(path, hostID(spec.Linux.UIDMappings), hostID(spec.Linux.GIDMappings)); err != nil {
			return nil, err
		}
		f.mounts = append(f.mounts, specs.Mount{
			Destination: "/etc/" + e.name, Source: path, Type: "bind", Options: []string{"rbind", "rprivate", "rw"},
		})
	}
	if hasNamespace(spec, specs.IPCNamespace) {
		shm := filepath.Join(f.dir, "shm")
		if err := os.Mkdir(shm, 0o700); err != nil {
			return nil, err
		}
		if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size="+shmSize); err != nil {
			return nil, fmt.Errorf("mount %s: %w", shm, err)
		}
		f.shm = true
	}
	return f, nil
}

// resolvConf is the file in the form that CRI writes it.
func (d *dnsConfig) resolvConf() []byte {
	var b strings.Builder
	if len(d.searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.searches, " "))
	}
	for _, s := range d.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.options, " "))
	}
	return []byte(b.String())
}

// remove also knows a bundle that was renamed: it is the working directory.
func (f *podFiles) remove() error {
	bundle := filepath.Dir(f.dir)
	if _, err := os.Lstat(bundle); errors.Is(err, fs.ErrNotExist) {
		bundle = "."
	}
	return removePodFiles(bundle)
}

// removePodFiles removes a bundle's, as far as they are there.
func removePodFiles(bundle string) error {
	dir := filepath.Join(bundle, podDir)
	err := unix.Unmount(filepath.Join(dir, "shm"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.ENOENT && err != unix.EINVAL { // EINVAL: not mounted
		return fmt.Errorf("unmount %s/shm: %w", dir, err)
	}
	return os.RemoveAll(dir)
}

// share gives a container of the pod what its config has not: CRI mounts these only where its own sandbox controller has made them.
func (f *podFiles) share(spec *specs.Spec) {
	readonly := spec.Root != nil && spec.Root.Readonly
	for _, m := range f.mounts {
		if mountAt(spec, m.Destination) >= 0 {
			continue
		}
		if readonly {
			m.Options = []string{"rbind", "rprivate", "ro"}
		}
		spec.Mounts = append(spec.Mounts, m)
	}
	if !f.shm || !hasNamespace(spec, specs.IPCNamespace) {
		return
	}
	m := specs.Mount{
		Destination: "/dev/shm", Source: filepath.Join(f.dir, "shm"), Type: "bind", Options: []string{"rbind", "rprivate", "rw"},
	}
	switch i := mountAt(spec, m.Destination); {
	case i < 0:
		spec.Mounts = append(spec.Mounts, m)
	case spec.Mounts[i].Type == "tmpfs" && spec.Mounts[i].Source == "shm": // the default, which is the container's alone
		spec.Mounts[i] = m
	}
}

func mountAt(spec *specs.Spec, destination string) int {
	for i, m := range spec.Mounts {
		if filepath.Clean(m.Destination) == destination {
			return i
		}
	}
	return -1
}
