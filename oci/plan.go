// Package oci compiles an OCI runtime configuration to a [Plan]: the ordered
// list of everything that is done to make the container, each step with the
// config field that asked for it.
//
// Compiling is pure: no system call, no file, no clock. What must be known of
// the host is an argument ([Host]), which also answers for SELinux's policy. So a container's set-up can be printed,
// compared, and tested as data.
package oci

import (
	"github.com/rsys-io/rsys/oci/seccomp"
	"github.com/rsys-io/rsys/rsys/call"
)

// Who performs a step.
type Who uint8

const (
	Child  Who = iota // the container's process, by a remote system call
	Shim              // the shim, outside; the call's Name says what, its Nr is NrShim
	Born              // the process that the child bore, by itself
	Parent            // the process that clones the child, by a remote system call
)

// NrShim stands for the number of a call that the shim performs. It is none of the kernel's.
const NrShim = -1000

// Names of the calls that the shim performs.
const (
	CgroupCreate  = "cgroup.create" // make the cgroup and set its limits
	CgroupJoin    = "cgroup.join"   // move the child into it
	JoinPID       = "joiner"        // clone the joiner, which joins the PID namespace that the child is then born into
	CloneParent   = "parent"        // clone the parent, with the flags of argument 0; it joins namespaces of argument 1
	CloneChild    = "clone3"        // clone the child, from the parent, the joiner or the stub, with the flags of argument 0
	PassStdio     = "stdio"         // put standard input, output and error in the child's descriptors 0, 1 and 2
	WriteAttr     = "attr"          // write argument 1 to the file argument 0 of the child's own /proc/self/attr
	SendListener  = "listener"      // send the child's descriptor argument 0 to the seccomp agent at argument 1, with the metadata argument 2
	ChownStdio    = "stdio.chown"   // give the standard files to the user argument 0 of the child's user namespace
	RaiseRlimit   = "rlimit.raise"  // let the child set its limit argument 0 to argument 1
	IDMap         = "idmap"         // open a user namespace with the maps of arguments 0 and 1; its descriptor is the result
	IDMapOf       = "idmap.of"      // open the user namespace of the path argument 0; its descriptor is the result
	WriteProc     = "write"         // write argument 1 to the file argument 0 of /proc/<child or parent>
	CheckMaps     = "maps"          // fail unless arguments 0 and 1 are the maps of users and groups of the user namespace that the parent has joined
	MoveNetDevice = "netdev"        // move the host's network device argument 0 to the child's namespace, as argument 1
	CopyUp        = "copyup"        // copy what is in the child's directory argument 0 into argument 1, by its system calls
	RdtCreate     = "rdt.create"    // make the resctrl class argument 0, if argument 1 is not 0, with the schemata argument 2 and the monitoring group argument 3
	RdtJoin       = "rdt.join"      // move the child into the resctrl class argument 0 and its monitoring group argument 1
	HostRootfs    = "rootfs.host"   // mount the child's or parent's detached mount argument 0 at the bundle's rootfs, on the host
	LoopAttach    = "loop"          // set up a loop device of the file argument 0, with the LO_FLAGS_* argument 1; its number is the result
	RunHook       = "hook"          // run the hook of index argument 0 in Hooks; the rest is to be read
)

// Phase is the request of the runtime specification during which a step runs.
type Phase uint8

const (
	Create  Phase = iota
	Start         // ends in execve
	Started       // the rest of the Start request, when the program runs
	Deleted       // the end of the Delete request, when there is nothing else left
)

// A Reason is why a step is there.
type Reason struct {
	Why   string // the config field: "mounts[3]", "process.capabilities.bounding"
	About string // what it is about, where the field does not tell: a mount's destination
}

// A Step is one thing done. Indices in its arguments count from the Plan's first step.
type Step struct {
	call.Step
	*Reason // one for all the steps that it has
	Who     Who
	Phase   Phase
	// Mend says of an openat2 that fails with ENOENT that its path leads over a symbolic link to where nothing is, or that a mount
	// has hidden what was there. The runtime makes directories there, in the root that argument 0 is, and goes on with the step again.
	Mend bool
}

// A Plan is a container, or an exec into one, as a program of system calls.
//
// The child's root and working directory are the host's "/" when it starts, in a mount
// namespace of its own. Of the shim's it has nothing but the channel.
type Plan struct {
	Steps []Step

	// What the runtime wants to know of a run, as indices into Steps; -1 if not there.
	Leave    int  // where the child begins to give up what it has, of a Plan with a birth
	Birth    int  // the child's last step, by which the process is born that goes on
	Gate     int  // where that waits for the start; -1 if it is not born before
	Terminal int  // the step that returns the pseudoterminal's master
	OwnEnv   bool // the environment is a hook's own, to which nothing is added
	Passwd   int  // the pread64 of the start of the root's /etc/passwd, to find HOME
	Lookup   Lookup

	Loops    []Loop          // what is mounted by loop devices
	Hooks    []Hook          // what RunHook steps run
	Seccomp  *seccomp.Filter // what linux.seccomp became; nil if it is not there
	Warnings []string        // what was left out because this kernel or runtime does not know it, as the specification allows
}

// A Loop is a file system on a loop device, which is not known before it is there: the value that the fsconfig of step
// Source sets is to be the device of the number that step Attach, a LoopAttach, results in.
type Loop struct{ Attach, Source int }

// SetLoop gives the file system that step attach has set up a loop device for its source.
func (p *Plan) SetLoop(attach int, device string) {
	for _, l := range p.Loops {
		if l.Attach == attach {
			p.Steps[l.Source].Args[3] = call.String(device)
		}
	}
}

// Lookup is the search for the program to run. Every candidate path has a
// step which succeeds if an executable file is there; the execve steps, one
// a candidate and in the same order, are the last of the Start phase.
type Lookup struct {
	Name       string // process.args[0]
	Candidates []string
	Steps      []int // the one before looks at the file's type, and the one before that gets its status
	Exec       []int // the execve steps
	Failed     int   // the step that fails if there is no program
}
