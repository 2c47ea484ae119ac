package shim

import (
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// podConfig is what a pod's sandbox is made of: of CRI's PodSandboxConfig what concerns the sandbox.
// The rest of it is for containers, whose specs CRI makes.
type podConfig struct {
	name, uid, namespace string
	hostname             string
	dns                  *dnsConfig // nil: the host's resolv.conf
	cgroupParent         string
	sysctls              map[string]string
	network, pid, ipc    uint64 // runtime.v1.NamespaceMode
	userns               *userNamespace
}

type dnsConfig struct{ servers, searches, options []string }

type userNamespace struct {
	mode       uint64
	uids, gids []specs.LinuxIDMapping
}

// runtime.v1.NamespaceMode
const (
	modePod       = 0
	modeContainer = 1
	modeNode      = 2
)

// podConfigType is the name in the type URL that CRI sends its configuration with. The package that has the type also has all
// the rest of CRI; so it is read by the numbers of its fields.
const podConfigType = "runtime.v1.PodSandboxConfig"

func (c *podConfig) parse(msg []byte) error {
	c.sysctls = make(map[string]string)
	return eachField(msg, func(num protowire.Number, _ uint64, data []byte) error {
		switch num {
		case 1:
			return eachField(data, func(num protowire.Number, _ uint64, data []byte) error {
				switch num {
				case 1:
					c.name = string(data)
				case 2:
					c.uid = string(data)
				case 3:
					c.namespace = string(data)
				}
				return nil
			})
		case 2:
			c.hostname = string(data)
		case 4:
			c.dns = new(dnsConfig)
			return c.dns.parse(data)
		case 8:
			return c.parseLinux(data)
		}
		return nil
	})
}

func (d *dnsConfig) parse(msg []byte) error {
	return eachField(msg, func(num protowire.Number, _ uint64, data []byte) error {
		switch num {
		case 1:
			d.servers = append(d.servers, string(data))
		case 2:
			d.searches = append(d.searches, string(data))
		case 3:
			d.options = append(d.options, string(data))
		}
		return nil
	})
}

func (c *podConfig) parseLinux(msg []byte) error {
	return eachField(msg, func(num protowire.Number, _ uint64, data []byte) error {
		switch num {
		case 1:
			c.cgroupParent = string(data)
		case 2: // security_context
			return eachField(data, func(num protowire.Number, _ uint64, data []byte) error {
				if num == 1 {
					return c.parseNamespaces(data)
				}
				return nil
			})
		case 3:
			k, v, err := mapEntry(data)
			c.sysctls[k] = v
			return err
		}
		return nil
	})
}

func (c *podConfig) parseNamespaces(msg []byte) error {
	return eachField(msg, func(num protowire.Number, n uint64, data []byte) error {
		switch num {
		case 1:
			c.network = n
		case 2:
			c.pid = n
		case 3:
			c.ipc = n
		case 5:
			c.userns = new(userNamespace)
			return c.userns.parse(data)
		}
		return nil
	})
}

func (u *userNamespace) parse(msg []byte) error {
	return eachField(msg, func(num protowire.Number, n uint64, data []byte) error {
		if num == 1 {
			u.mode = n
			return nil
		}
		var m specs.LinuxIDMapping
		err := eachField(data, func(num protowire.Number, n uint64, _ []byte) error {
			switch num {
			case 1:
				m.HostID = uint32(n)
			case 2:
				m.ContainerID = uint32(n)
			case 3:
				m.Size = uint32(n)
			}
			return nil
		})
		switch num {
		case 2:
			u.uids = append(u.uids, m)
		case 3:
			u.gids = append(u.gids, m)
		}
		return err
	})
}

// Annotations by which tools tell a sandbox from a container.
const (
	sandboxIDAnnotation     = "io.kubernetes.cri.sandbox-id"
	containerTypeAnnotation = "io.kubernetes.cri.container-type"
)

// spec is the config of the process that holds the pod's namespaces. It says what CRI says of a pause container.
func (c *podConfig) spec(id, netns string) (*specs.Spec, error) {
	s := &specs.Spec{
		Version:  "1.0.2",
		Hostname: c.hostname,
		Annotations: map[string]string{
			containerTypeAnnotation:               "sandbox",
			sandboxIDAnnotation:                   id,
			"io.kubernetes.cri.sandbox-name":      c.name,
			"io.kubernetes.cri.sandbox-namespace": c.namespace,
			"io.kubernetes.cri.sandbox-uid":       c.uid,
		},
		Linux: &specs.Linux{Sysctl: make(map[string]string)},
	}
	ns := func(t specs.LinuxNamespaceType, path string) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	userns := c.userns != nil && c.userns.mode == modePod
	switch {
	case c.userns != nil && c.userns.mode != modePod && c.userns.mode != modeNode:
		return nil, invalid("linux.security_context.namespace_options.userns_options.mode %d", c.userns.mode)
	case userns:
		// With a network, CRI has made the namespace already: the network's has to be owned by it.
		ns(specs.UserNamespace, "")
		s.Linux.UIDMappings, s.Linux.GIDMappings = c.userns.uids, c.userns.gids
	}
	ns(specs.MountNamespace, "")
	if c.pid != modeNode {
		ns(specs.PIDNamespace, "")
	}
	if c.ipc != modeNode {
		ns(specs.IPCNamespace, "")
	}
	for k, v := range c.sysctls {
		s.Linux.Sysctl[k] = v
	}
	if c.network != modeNode {
		ns(specs.UTSNamespace, "")
		ns(specs.NetworkNamespace, netns)
		// Defaults of CRI's in containerd 2.x (enable_unprivileged_ports and _icmp), which it does not hand on.
		def := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
		if !userns {
			def["net.ipv4.ping_group_range"] = "0 2147483647"
		}
		for k, v := range def {
			if _, ok := s.Linux.Sysctl[k]; !ok {
				s.Linux.Sysctl[k] = v
			}
		}
	} else {
		s.Hostname = ""
	}
	if c.cgroupParent != "" {
		s.Linux.CgroupsPath = cgroupsPath(c.cgroupParent, id)
	}
	return s, nil
}

func inSlice(parent string) bool { return strings.HasSuffix(parent, ".slice") }

// cgroupsPath is the cgroup of a pod's container, as CRI has it.
func cgroupsPath(parent, id string) string {
	if inSlice(parent) {
		return parent[strings.LastIndexByte(parent, '/')+1:] + ":cri-containerd:" + id
	}
	return parent + "/" + id
}

const (
	// pausePath is where the program that holds the namespaces is in its root, under the name that people know of PID 1 of a pod.
	pausePath = "/pause"
	// pauseUser is the pause image's.
	pauseUser = 65535
	// pauseOOMScore is that which CRI gives a pause container.
	pauseOOMScore = -998
)

// oomScore is as CRI's own, or, where it may not be lowered, as in a user namespace, what we have.
func oomScore() int {
	if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0); err != nil || has == 1 {
		return pauseOOMScore
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return pauseOOMScore
	}
	ours, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return pauseOOMScore
	}
	return max(ours, pauseOOMScore)
}

// hold makes of a config that of the process that holds the namespaces: it has no capability, a root with nothing in it but its own
// program, read-only, and nothing of the host.
func hold(s *specs.Spec, program string) {
	score := oomScore()
	if s.Linux == nil {
		s.Linux = new(specs.Linux)
	}
	s.Process = &specs.Process{
		Args: []string{pausePath}, Cwd: "/", NoNewPrivileges: true, OOMScoreAdj: &score,
		User:         specs.User{UID: pauseUser, GID: pauseUser},
		Capabilities: new(specs.LinuxCapabilities),
	}
	if hasNamespace(s, specs.UserNamespace) && !(maps(s.Linux.UIDMappings, pauseUser) && maps(s.Linux.GIDMappings, pauseUser)) {
		s.Process.User = specs.User{}
	}
	s.Root = &specs.Root{Path: "rootfs", Readonly: true}
	// "exec": /run, where the bundle is, may be mounted noexec.
	s.Mounts = []specs.Mount{{Destination: pausePath, Source: program, Type: "bind", Options: []string{"bind", "ro", "nosuid", "nodev", "exec"}}}
	s.Hooks = nil
	s.Linux.Devices, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
	s.Linux.Seccomp, s.Linux.RootfsPropagation, s.Linux.MountLabel = nil, "", ""
	if !hasNamespace(s, specs.MountNamespace) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace})
	}
	if s.Linux.Resources == nil {
		shares := uint64(2)
		s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}
	}
}

func hasNamespace(s *specs.Spec, t specs.LinuxNamespaceType) bool { return namespaceOf(s, t) != nil }

// namespaceOf finds a namespace of a config; nil if it is the host's.
func namespaceOf(s *specs.Spec, t specs.LinuxNamespaceType) *specs.LinuxNamespace {
	if s.Linux == nil {
		return nil
	}
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == t {
			return &s.Linux.Namespaces[i]
		}
	}
	return nil
}

func maps(m []specs.LinuxIDMapping, id uint32) bool {
	for _, r := range m {
		if id >= r.ContainerID && id-r.ContainerID < r.Size {
			return true
		}
	}
	return false
}

// hostID is the host's number of a container's root.
func hostID(m []specs.LinuxIDMapping) int {
	for _, r := range m {
		if r.ContainerID == 0 && r.Size > 0 {
			return int(r.HostID)
		}
	}
	return 0
}
