package oci

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// sysctlPath is a sysctl's path below /proc/sys. Either separator may be the first; the
// other one is then part of a name, as in net/ipv4/conf/eth0.100/rp_filter.
func sysctlPath(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		return strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	return key
}

var ipcSysctls = map[string]bool{
	"kernel/msgmax": true, "kernel/msgmnb": true, "kernel/msgmni": true, "kernel/sem": true,
	"kernel/shmall": true, "kernel/shmmax": true, "kernel/shmmni": true, "kernel/shm_rmid_forced": true,
}

// checkSysctl refuses what would change the host.
func checkSysctl(key, value string, ns *namespaces) error {
	field, p := "linux.sysctl["+key+"]", sysctlPath(key)
	switch {
	case key == "" || len(p) > 255 || strings.ContainsRune(p, 0) || p != inside(p):
		return invalid(field, "not the name of a sysctl")
	case len(value) > 4096 || strings.ContainsRune(value, 0):
		return invalid(field, "not a value of a sysctl")
	case ipcSysctls[p] || strings.HasPrefix(p, "fs/mqueue/"):
		if !ns.has(specs.IPCNamespace) {
			return invalid(field, "not allowed in the host's IPC namespace")
		}
	case strings.HasPrefix(p, "net/"):
		if !ns.has(specs.NetworkNamespace) {
			return invalid(field, "not allowed in the host's network namespace")
		}
	case p == "kernel/domainname":
		if !ns.has(specs.UTSNamespace) {
			return invalid(field, "not allowed in the host's UTS namespace")
		}
	case p == "kernel/hostname":
		return invalid(field, "conflicts with the field hostname")
	case strings.HasPrefix(p, "user/"):
		if !ns.has(specs.UserNamespace) {
			return invalid(field, "not allowed in the host's user namespace")
		}
	default:
		return invalid(field, "not in a namespace of its own")
	}
	return nil
}

// sysctls are written through a procfs that nobody else has seen: what is mounted on the container's
// /proc may be anything (CVE-2025-52881).
func (c *compiler) sysctls() {
	if len(c.spec.Linux.Sysctl) == 0 {
		return
	}
	keys := make([]string, 0, len(c.spec.Linux.Sysctl))
	for k := range c.spec.Linux.Sysctl {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	c.at("linux.sysctl", "")
	proc := c.newMount("proc", "proc", &mountOptions{}, 0)
	for _, k := range keys {
		c.at("linux.sysctl["+k+"]", "")
		fd := call.ResultOf(c.do(call.Openat2(proc, "sys/"+sysctlPath(k), unix.O_WRONLY|unix.O_CLOEXEC, 0,
			unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)))
		c.do(call.Write(fd, c.spec.Linux.Sysctl[k]))
		c.close(fd)
	}
	c.at("linux.sysctl", "")
	c.close(proc)
}
