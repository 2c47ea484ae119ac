package oci

import (
	"slices"
	"strings"

	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// capNumbers are the capabilities by name, without CAP_.
var capNumbers = map[string]uint{
	"CHOWN": 0, "DAC_OVERRIDE": 1, "DAC_READ_SEARCH": 2, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6,
	"SETUID": 7, "SETPCAP": 8, "LINUX_IMMUTABLE": 9, "NET_BIND_SERVICE": 10, "NET_BROADCAST": 11,
	"NET_ADMIN": 12, "NET_RAW": 13, "IPC_LOCK": 14, "IPC_OWNER": 15, "SYS_MODULE": 16, "SYS_RAWIO": 17,
	"SYS_CHROOT": 18, "SYS_PTRACE": 19, "SYS_PACCT": 20, "SYS_ADMIN": 21, "SYS_BOOT": 22, "SYS_NICE": 23,
	"SYS_RESOURCE": 24, "SYS_TIME": 25, "SYS_TTY_CONFIG": 26, "MKNOD": 27, "LEASE": 28, "AUDIT_WRITE": 29,
	"AUDIT_CONTROL": 30, "SETFCAP": 31, "MAC_OVERRIDE": 32, "MAC_ADMIN": 33, "SYSLOG": 34, "WAKE_ALARM": 35,
	"BLOCK_SUSPEND": 36, "AUDIT_READ": 37, "PERFMON": 38, "BPF": 39, "CHECKPOINT_RESTORE": 40,
}

const sysAdmin = 1 << unix.CAP_SYS_ADMIN

// capSet is a set of capabilities, a bit each. Names that the kernel doesn't know are left out and
// become a warning, as the specification wants.
func (c *compiler) capSet(field string, names []string) (set uint64) {
	for _, n := range names {
		nr, ok := capNumbers[strings.TrimPrefix(n, "CAP_")]
		if !ok || nr > c.host.lastCap() || !strings.HasPrefix(n, "CAP_") {
			if w := "process.capabilities." + field + ": unknown capability " + n; !slices.Contains(c.Warnings, w) {
				c.Warnings = append(c.Warnings, w)
			}
			continue
		}
		set |= 1 << nr
	}
	return set
}

// capabilities of the process.
type capabilities struct {
	given                                                bool
	bounding, effective, permitted, inheritable, ambient uint64
}

func (c *compiler) capabilities() (s capabilities) {
	l := c.proc.Capabilities
	if l == nil {
		return s
	}
	return capabilities{
		given:       true,
		bounding:    c.capSet("bounding", l.Bounding),
		effective:   c.capSet("effective", l.Effective),
		permitted:   c.capSet("permitted", l.Permitted),
		inheritable: c.capSet("inheritable", l.Inheritable),
		ambient:     c.capSet("ambient", l.Ambient),
	}
}

func (c *compiler) dropBounding(s *capabilities) {
	if !s.given {
		return
	}
	c.at("process.capabilities.bounding", "")
	for nr := uint(0); nr <= c.host.lastCap(); nr++ {
		if s.bounding&(1<<nr) == 0 {
			c.do(call.Prctl(unix.PR_CAPBSET_DROP, call.Arg{Int: int64(nr), Form: call.FormCap}))
		}
	}
}

// applyCaps sets the sets; keep is kept on top of them for now.
func (c *compiler) applyCaps(s *capabilities, keep uint64) {
	c.at("process.capabilities", "")
	c.do(call.Capset(s.effective|keep, s.permitted|keep, s.inheritable))
}

func (c *compiler) raiseAmbient(s *capabilities) {
	c.at("process.capabilities.ambient", "")
	c.do(call.Prctl(unix.PR_CAP_AMBIENT, call.Int(unix.PR_CAP_AMBIENT_CLEAR_ALL), call.Int(0), call.Int(0), call.Int(0)))
	for nr := uint(0); nr <= c.host.lastCap(); nr++ {
		if s.ambient&(1<<nr) != 0 {
			// One that is not permitted and inheritable too can't be ambient; runc leaves it out as well.
			c.try(call.Prctl(unix.PR_CAP_AMBIENT, call.Int(unix.PR_CAP_AMBIENT_RAISE),
				call.Arg{Int: int64(nr), Form: call.FormCap}, call.Int(0), call.Int(0)), call.Tolerate(unix.EPERM))
		}
	}
}
