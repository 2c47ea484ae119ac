package container

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/cgroup"
	"github.com/rsys-io/rsys/oci"
)

// Host is what compiling must know of this host.
func Host() oci.Host { return thisHost() }

// thisHost is what compiling must know of the host. It does not change while we run.
var thisHost = sync.OnceValue(func() oci.Host {
	var h oci.Host
	list, v2 := cgroup.Hierarchies()
	h.CgroupV2 = v2
	if !v2 {
		for _, c := range list {
			h.CgroupV1 = append(h.CgroupV1, oci.Hierarchy{Mountpoint: c.Mountpoint, Controllers: c.Controllers})
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 8); err == nil {
			h.LastCap = uint(n)
		}
	}
	_, err := os.Stat("/proc/kcore")
	h.Kcore = err == nil
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	h.AppArmor = err == nil && strings.HasPrefix(string(enabled), "Y")
	_, err = os.Stat("/sys/fs/selinux/enforce")
	if h.SELinux = err == nil; h.SELinux {
		h.KnowsLabel = knowsLabel
	}
	var fs unix.Statfs_t
	h.Resctrl = unix.Statfs("/sys/fs/resctrl", &fs) == nil && fs.Type == unix.RDTGROUP_SUPER_MAGIC
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		var major, minor int
		if n, _ := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); n == 2 {
			h.Kernel = major<<16 | minor
		}
	}
	h.CgroupFlags = cgroupFlags
	var mnt unix.Stat_t
	if unix.Stat("/proc/self/ns/mnt", &mnt) == nil {
		h.MountNS = mnt.Ino
	}
	for file, ns := range map[string]specs.LinuxNamespaceType{
		"cgroup": specs.CgroupNamespace, "ipc": specs.IPCNamespace, "net": specs.NetworkNamespace, "pid": specs.PIDNamespace,
		"time": specs.TimeNamespace, "user": specs.UserNamespace, "uts": specs.UTSNamespace,
	} {
		if _, err := os.Stat("/proc/self/ns/" + file); os.IsNotExist(err) {
			h.NoNamespace = append(h.NoNamespace, ns)
		}
	}
	slices.Sort(h.NoNamespace)
	h.ProcPIDNS = procTakesPIDNS()
	return h
})

// knowsLabel asks the kernel. Who may not ask is answered when the label is used.
func knowsLabel(label string) bool {
	f, err := os.OpenFile("/sys/fs/selinux/context", os.O_RDWR, 0)
	if err != nil {
		return true
	}
	defer f.Close()
	_, err = f.WriteString(label)
	return !errors.Is(err, unix.EINVAL)
}

// procTakesPIDNS asks procfs whether it has the mount option pidns (Linux 6.17).
func procTakesPIDNS() bool {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	return unix.FsconfigSetString(fs, "pidns", "/proc/self/ns/pid") == nil
}

// cgroupFlags are the options of the cgroup2 at /sys/fs/cgroup.
func cgroupFlags() (flags []string) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		mount, super, _ := strings.Cut(line, " - ")
		m, s := strings.Fields(mount), strings.Fields(super)
		if len(m) < 5 || m[4] != "/sys/fs/cgroup" || len(s) < 3 || s[0] != "cgroup2" {
			continue
		}
		for o := range strings.SplitSeq(s[2], ",") {
			if o != "rw" && o != "ro" && !strings.Contains(o, "=") && o != "seclabel" {
				flags = append(flags, o)
			}
		}
	}
	return flags
}
