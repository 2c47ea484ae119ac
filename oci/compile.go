package oci

import (
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/oci/seccomp"
	"github.com/rsys-io/rsys/rsys/call"
)

// A Request is what is asked for besides the config.
type Request struct {
	ID, Bundle   string
	Rootfs       []Mount
	NoPivotRoot  bool
	HostRootfs   bool              // the root file system is also to be seen on the host, at the bundle's rootfs
	NoNewKeyring bool              // the process gets the session keyring of the shim
	Fifos        [3]bool           // standard files that are to belong to the process's user
	Null         [3]bool           // standard files that are the host's null device
	Seccomp      *seccomp.Filter   // linux.seccomp as another Plan of this container has it; nil to compile it
	Born         bool              // the process is to be born unprivileged
	Program      string            // the path of what is executed; process.args[0], to be found in PATH, if not given
	Cgroups      map[string]string // the directory of the container's cgroup in each v1 hierarchy, by its mountpoint; linux.cgroupsPath below that if not given
}

// Host is what must be known of the host.
type Host struct {
	CgroupV2    bool
	CgroupFlags func() []string // the options that the host's cgroup2 has; asked where they matter, for they are in the mount table
	CgroupV1    []Hierarchy     // if not CgroupV2
	LastCap     uint            // /proc/sys/kernel/cap_last_cap; 0 is the newest that is known here
	Kcore       bool            // there is /proc/kcore
	AppArmor    bool            // it is enabled
	SELinux     bool            // it is enabled
	// KnowsLabel asks SELinux's policy whether a label is one of it; nil where it can't be asked.
	KnowsLabel func(label string) bool
	Resctrl    bool   // a resctrl file system is mounted on /sys/fs/resctrl
	Kernel     int    // the version, major<<16 | minor
	MountNS    uint64 // the inode of the mount namespace that children are cloned in

	NoNamespace []specs.LinuxNamespaceType // what the kernel was built without
	// ProcPIDNS says that procfs has the mount option pidns, Linux 6.17.
	ProcPIDNS bool
}

func (h *Host) lastCap() uint {
	if h.LastCap == 0 || h.LastCap > 63 {
		return 40
	}
	return h.LastCap
}

type compiler struct {
	*builder
	spec *specs.Spec
	proc *specs.Process
	req  Request
	host Host
	ns   namespaces
	exec bool // into a container

	place birthPlace
	pidns *call.Arg // the PID namespace that the process is born into, for procfs

	joined     [len(nsTypes)]bool // by the parent
	handed     map[int]call.Arg   // namespaces that the parent has opened for the child to join
	root       call.Arg           // the root directory's descriptor
	late       []lateReadonly
	sources    map[int]call.Arg    // of bind mounts, those that are open already
	nodes      map[string]call.Arg // clones of the host's devices
	idmaps     map[idmap]call.Arg  // user namespaces for idmapped mounts
	idmapOrder []idmap             // their keys
	devices    map[int]call.Arg    // root file systems on block devices, which the parent has made
}

// Compile makes the Plan of a container.
func Compile(spec *specs.Spec, req Request, host Host) (*Plan, error) {
	if err := Validate(spec); err != nil {
		return nil, err
	}
	if err := checkRequest(&req); err != nil {
		return nil, err
	}
	spec = withLinux(spec)
	c := &compiler{builder: newBuilder(512 + stepsAMount*len(spec.Mounts)), spec: spec, proc: spec.Process, req: req, host: host, ns: namespacesOf(spec)}
	if err := c.filter(); err != nil {
		return nil, err
	}
	if err := c.checkLabels(); err != nil {
		return nil, err
	}
	if err := c.checkRdt(); err != nil {
		return nil, err
	}
	c.place = c.placeOfInit()
	if err := c.birth(); err != nil {
		return nil, err
	}
	c.at("process", "")
	c.do(call.Umask(0))
	c.affinityAfter()
	c.joinNamespaces()
	c.session()
	c.ownNamespaces()
	if err := c.rootfs(); err != nil {
		return nil, err
	}
	if err := c.mounts(); err != nil {
		return nil, err
	}
	c.closeIDMaps()
	if err := c.dev(); err != nil {
		return nil, err
	}
	c.hooks(Prestart, CreateRuntime, CreateContainer)
	c.sysctls()
	if err := c.readonlyPaths(); err != nil {
		return nil, err
	}
	if err := c.maskedPaths(); err != nil {
		return nil, err
	}
	c.enter()
	c.makeCwd()
	c.ownNull()
	if c.proc.Terminal {
		c.terminal()
	}
	c.readonly()
	c.at("root.path", "")
	c.close(c.root)
	c.readPasswd()
	c.lookup()
	if c.pidns != nil {
		c.close(*c.pidns)
	}
	if c.place == notBorn {
		c.phase = Start
		c.hooks(StartContainer)
	}
	if err := c.start(); err != nil {
		return nil, err
	}
	c.phase = Started
	c.hooks(Poststart)
	c.phase = Deleted
	c.hooks(Poststop)
	return c.Plan, nil
}

// birth is what the shim does for the child before it does anything itself.
func (c *compiler) birth() error {
	if !c.exec {
		c.at("linux.cgroupsPath", c.spec.Linux.CgroupsPath)
		c.shim(CgroupCreate)
		if err := c.parent(); err != nil {
			return err
		}
	}
	c.clone()
	c.affinityBefore()
	c.writeMaps()
	c.at("linux.cgroupsPath", c.spec.Linux.CgroupsPath)
	c.shim(CgroupJoin)
	c.rdt()
	if !c.proc.Terminal {
		c.at("process", "")
		c.shim(PassStdio)
	}
	c.helpInUserNS()
	if adj := c.proc.OOMScoreAdj; adj != nil {
		c.at("process.oomScoreAdj", "")
		c.shim(WriteProc, call.String("oom_score_adj"), call.String(strconv.Itoa(*adj)))
	}
	c.labels()
	c.becomeRoot()
	return nil
}
