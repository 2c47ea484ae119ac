package oci

import (
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Validate refuses a config that can't be compiled, with the name of the field that is wrong or
// not supported. Of linux.resources and linux.cgroupsPath it leaves the judgement to who makes the cgroup,
// and of linux.seccomp to the compiler of filters.
func Validate(spec *specs.Spec) error {
	if spec == nil {
		return invalid("config.json", "empty")
	}
	spec = withLinux(spec)
	if err := refuse(spec); err != nil {
		return err
	}
	if spec.Version == "" {
		return invalid("ociVersion", "missing")
	}
	if v := strings.SplitN(spec.Version, ".", 3); len(v) != 3 || v[0] != "1" && v[0] != "0" {
		return invalid("ociVersion", "%q is not a version of the specification that is known here", spec.Version)
	}
	if spec.Process == nil {
		return invalid("process", "missing")
	}
	if err := validateProcess(spec.Process); err != nil {
		return err
	}
	if err := validateEnv(spec.Process.Env); err != nil {
		return err
	}
	if err := validateRoot(spec.Root); err != nil {
		return err
	}
	if err := validateNamespaces(spec); err != nil {
		return err
	}
	for i := range spec.Mounts {
		if err := validateMount(&spec.Mounts[i], fmt.Sprintf("mounts[%d]", i)); err != nil {
			return err
		}
	}
	if err := validateDuplicates(spec.Mounts); err != nil {
		return err
	}
	if err := validateHooks(spec.Hooks); err != nil {
		return err
	}
	if err := validateLabels(spec, spec.Process); err != nil {
		return err
	}
	if err := validateUserNS(spec); err != nil {
		return err
	}
	if err := validateTimeNS(spec); err != nil {
		return err
	}
	return validateLinux(spec)
}

// withLinux is spec with a linux that is not nil.
func withLinux(spec *specs.Spec) *specs.Spec {
	if spec.Linux != nil {
		return spec
	}
	s := *spec
	s.Linux = &specs.Linux{}
	return &s
}

// refuse names the first field that asks for what is not supported.
func refuse(spec *specs.Spec) error {
	l := spec.Linux
	if l == nil {
		l = new(specs.Linux)
	}
	p := spec.Process
	if p == nil {
		p = new(specs.Process)
	}
	for _, f := range []struct {
		set  bool
		name string
	}{
		{spec.Solaris != nil, "solaris"},
		{spec.Windows != nil, "windows"},
		{spec.VM != nil, "vm"},
		{spec.ZOS != nil, "zos"},
		{spec.FreeBSD != nil, "freebsd"},
	} {
		if f.set {
			return notYet(f.name)
		}
	}
	return nil
}

func validateRoot(r *specs.Root) error {
	switch {
	case r == nil:
		return invalid("root", "missing")
	case r.Path == "":
		return invalid("root.path", "missing")
	case !isPath(r.Path):
		return invalid("root.path", "not a path")
	case !path.IsAbs(r.Path):
		if p := path.Clean(r.Path); p == "." || p == ".." || strings.HasPrefix(p, "../") {
			return invalid("root.path", "%q is not below the bundle", r.Path)
		}
	}
	return nil
}

// isPath says that the kernel can take s as a path.
func isPath(s string) bool {
	return s != "" && len(s) < 4096 && strings.IndexByte(s, 0) < 0
}

// maxDepth is how many directories a path of the config may have; it bounds the Plan.
const maxDepth = 256

func deep(s string) bool { return strings.Count(s, "/") > maxDepth }

func validateNamespaces(spec *specs.Spec) error {
	var seen [len(nsTypes)]bool
	for i, ns := range spec.Linux.Namespaces {
		field := fmt.Sprintf("linux.namespaces[%d]", i)
		k := nsIndex(ns.Type)
		switch {
		case k < 0:
			return invalid(field+".type", "%q is not a type of namespace", ns.Type)
		case seen[k]:
			return invalid(field+".type", "a second %s namespace", ns.Type)
		case ns.Path != "" && (!isPath(ns.Path) || !path.IsAbs(ns.Path)):
			return invalid(field+".path", "%q is not an absolute path", ns.Path)
		}
		seen[k] = true
	}
	if n := namespacesOf(spec); n[nsIndex(specs.MountNamespace)].path != "" && n.isNew(specs.UserNamespace) {
		return invalid(n[nsIndex(specs.MountNamespace)].why+".path", "a new user namespace has no rights over a mount namespace that is there already")
	}
	if !seen[nsIndex(specs.MountNamespace)] {
		return validateHostMounts(spec)
	}
	return nil
}

// validateHostMounts is for a container in the host's mount namespace. As runc's, it has no
// paths that are hidden: on the host's mounts they would be no obstacle.
func validateHostMounts(spec *specs.Spec) error {
	switch l := spec.Linux; {
	case len(l.MaskedPaths) > 0:
		return invalid("linux.maskedPaths", "not without a mount namespace")
	case len(l.ReadonlyPaths) > 0:
		return invalid("linux.readonlyPaths", "not without a mount namespace")
	case hasUserNS(spec):
		return invalid("linux.namespaces", "a user namespace without a mount namespace has no rights over the host's mounts")
	}
	return nil
}

func validateMount(m *specs.Mount, field string) error {
	o := parseOptions(m.Options)
	dest := inside(m.Destination)
	switch {
	case m.Destination == "":
		return invalid(field+".destination", "missing")
	case !isPath(m.Destination) || deep(m.Destination):
		return invalid(field+".destination", "not a path")
	case dest == "":
		return invalid(field+".destination", "%q is the root itself", m.Destination)
	case (o.idmap || m.UIDMappings != nil || m.GIDMappings != nil) && !o.bind:
		return notYet(field + ".uidMappings: of what is not a bind mount")
	case (len(m.UIDMappings) > 0) != (len(m.GIDMappings) > 0):
		return invalid(field+".uidMappings", "without gidMappings, or these without it")
	case strings.IndexByte(m.Source, 0) >= 0 || len(m.Source) >= 4096:
		return invalid(field+".source", "not a path")
	case strings.IndexByte(m.Type, 0) >= 0 || len(m.Type) > 255:
		return invalid(field+".type", "not a type of file system")
	case o.loop:
		return notYet(field + ".options: loop")
	case o.uidmap != "" || o.gidmap != "":
		return invalid(field+".options", "uidmap and gidmap are a root file system's")
	case slices.ContainsFunc(m.Options, func(s string) bool { return strings.IndexByte(s, 0) >= 0 }):
		return invalid(field+".options", "with a zero byte in it")
	case o.remount && len(strings.Join(o.data, ",")) >= pageSize:
		return invalid(field+".options", "more than a page")
	case o.remount && (o.idmap || len(m.UIDMappings) > 0):
		return invalid(field+".options", "a mount that is somewhere can't be idmapped")
	case o.copyUp && (m.Type != "tmpfs" || o.bind || o.remount || o.long(m.Source)):
		return invalid(field+".options", "tmpcopyup is for a new tmpfs")
	case o.binds() && m.Source == "":
		return invalid(field+".source", "missing")
	case o.bind && len(o.data) > 0:
		return invalid(field+".options", "a bind mount can't have options of a file system, such as %q", o.data[0])
	case !o.bind && !o.remount && m.Type == "":
		return invalid(field+".type", "missing")
	case !o.bind && m.Type == "bind":
		return invalid(field+".options", "a bind mount has the option bind or rbind")
	case !o.bind && !o.remount && o.recSet|o.recClear != 0:
		return invalid(field+".options", "recursive options are for bind mounts")
	}
	if !o.bind && !o.remount && o.long(m.Source) {
		if n := len(strings.Join(o.data, ",")); n >= pageSize {
			return invalid(field+".options", "%d bytes are more than a page", n)
		}
		if m.Type == "cgroup" || m.Type == "proc" || m.Type == "sysfs" {
			return invalid(field+".options", "not of a %s", m.Type)
		}
	}
	for _, d := range o.data {
		for d := range strings.SplitSeq(d, ",") {
			if k, _, _ := strings.Cut(d, "="); d != "" && (k == "" || len(k) > 255) {
				return invalid(field+".options", "%q has no key", d)
			}
		}
	}
	if dest == "proc" && !o.bind && !o.remount && m.Type != "proc" {
		return invalid(field+".destination", "%q can't be on /proc, for it is not of type proc", m.Type)
	}
	if strings.HasPrefix(dest, "proc/") && !inProc[dest] {
		return invalid(field+".destination", "%q is inside /proc", m.Destination)
	}
	return nil
}

// validateDuplicates refuses a mount that is in the list twice. Different ones may be
// stacked on one destination: clients replace a default mount by adding theirs.
func validateDuplicates(mounts []specs.Mount) error {
	seen := make(map[string]int, len(mounts))
	for i := range mounts {
		m := &mounts[i]
		d := inside(m.Destination)
		j, dup := seen[d]
		if dup && m.Type == mounts[j].Type && m.Source == mounts[j].Source && slices.Equal(m.Options, mounts[j].Options) {
			return invalid(fmt.Sprintf("mounts[%d]", i), "the same as mounts[%d]", j)
		}
		seen[d] = i
	}
	return nil
}

func validateProcess(p *specs.Process) error {
	for _, f := range []struct {
		set  bool
		name string
	}{
		{p.CommandLine != "", "process.commandLine"},
		{p.User.Username != "", "process.user.username"},
	} {
		if f.set {
			return notYet(f.name)
		}
	}
	if len(p.Args) == 0 {
		return invalid("process.args", "missing")
	}
	size := 0
	for i, a := range p.Args {
		size += len(a) + 9
		if strings.IndexByte(a, 0) >= 0 {
			return invalid(fmt.Sprintf("process.args[%d]", i), "with a zero byte in it")
		}
	}
	if len(p.Args[0]) >= 4096 {
		return invalid("process.args[0]", "not a path")
	}
	for i, e := range p.Env {
		size += len(e) + 9
		if strings.IndexByte(e, 0) >= 0 {
			return invalid(fmt.Sprintf("process.env[%d]", i), "with a zero byte in it")
		}
	}
	if size > 6<<20 { // the kernel takes three quarters of 8 MiB
		return invalid("process.args", "with process.env %d bytes, more than a program can be given", size)
	}
	switch {
	case p.Cwd == "":
		return invalid("process.cwd", "missing")
	case !isPath(p.Cwd) || deep(p.Cwd) || !path.IsAbs(p.Cwd):
		return invalid("process.cwd", "%q is not an absolute path", p.Cwd)
	}
	if p.OOMScoreAdj != nil && (*p.OOMScoreAdj < -1000 || *p.OOMScoreAdj > 1000) {
		return invalid("process.oomScoreAdj", "%d is not in [-1000, 1000]", *p.OOMScoreAdj)
	}
	if s := p.ConsoleSize; s != nil && (s.Height > math.MaxUint16 || s.Width > math.MaxUint16) {
		return invalid("process.consoleSize", "%d x %d is larger than a terminal can be", s.Width, s.Height)
	}
	if err := validateScheduling(p); err != nil {
		return err
	}
	if err := validateUser(&p.User); err != nil {
		return err
	}
	if err := validateLabels(nil, p); err != nil {
		return err
	}
	return validateRlimits(p.Rlimits)
}

// validateEnv is for the process alone: runc gives a hook whatever its env has, and so do we.
func validateEnv(env []string) error {
	for i, e := range env {
		if strings.IndexByte(e, '=') <= 0 {
			return invalid(item("process.env", i), "not of the form NAME=VALUE")
		}
	}
	return nil
}

func validateUser(u *specs.User) error {
	// The kernel takes this number for "no change": the process would stay what it is.
	const none = math.MaxUint32
	switch {
	case u.UID == none:
		return invalid("process.user.uid", "%d is not a user ID", u.UID)
	case u.GID == none:
		return invalid("process.user.gid", "%d is not a group ID", u.GID)
	case len(u.AdditionalGids) > 65536:
		return invalid("process.user.additionalGids", "%d are more than 65536", len(u.AdditionalGids))
	case u.Umask != nil && *u.Umask > 0o777:
		return invalid("process.user.umask", "%#o is not a umask", *u.Umask)
	}
	for i, g := range u.AdditionalGids {
		if g == none {
			return invalid(fmt.Sprintf("process.user.additionalGids[%d]", i), "%d is not a group ID", g)
		}
	}
	return nil
}

func validateRlimits(list []specs.POSIXRlimit) error {
	seen := make(map[string]bool, len(list))
	for i, r := range list {
		field := fmt.Sprintf("process.rlimits[%d]", i)
		if _, ok := rlimits[r.Type]; !ok {
			return invalid(field+".type", "%q is not a limit", r.Type)
		}
		if seen[r.Type] {
			return invalid(field+".type", "a second %s", r.Type)
		}
		seen[r.Type] = true
		if r.Soft > r.Hard {
			return invalid(field+".soft", "%d is more than the hard limit, %d", r.Soft, r.Hard)
		}
	}
	return nil
}

func validateLinux(spec *specs.Spec) error {
	l, ns := spec.Linux, namespacesOf(spec)
	if err := validatePersonality(l.Personality); err != nil {
		return err
	}
	if err := validateRdt(l.IntelRdt); err != nil {
		return err
	}
	if err := validateNetDevices(l, &ns); err != nil {
		return err
	}
	if err := validateListener(l.Seccomp); err != nil {
		return err
	}
	if err := validateMemoryPolicy(l.MemoryPolicy); err != nil {
		return err
	}
	for _, n := range [...][2]string{{"hostname", spec.Hostname}, {"domainname", spec.Domainname}} {
		name, f := n[0], n[1]
		if f == "" {
			continue
		}
		if !ns.has(specs.UTSNamespace) {
			return invalid(name, "not without a UTS namespace")
		}
		if len(f) > 64 || strings.IndexByte(f, 0) >= 0 {
			return invalid(name, "%q is longer than 64 bytes", f)
		}
	}
	if l.RootfsPropagation != "" {
		if _, ok := propagationOptions[l.RootfsPropagation]; !ok {
			return invalid("linux.rootfsPropagation", "%q is not a propagation", l.RootfsPropagation)
		}
	}
	for _, list := range []struct {
		name  string
		paths []string
	}{{"linux.maskedPaths", l.MaskedPaths}, {"linux.readonlyPaths", l.ReadonlyPaths}} {
		for i, p := range list.paths {
			if !isPath(p) || !path.IsAbs(p) || inside(p) == "" {
				return invalid(fmt.Sprintf("%s[%d]", list.name, i), "%q is not an absolute path below the root", p)
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(l.Sysctl)) {
		if err := checkSysctl(k, l.Sysctl[k], &ns); err != nil {
			return err
		}
	}
	for i := range l.Devices {
		if err := validateDevice(&l.Devices[i], fmt.Sprintf("linux.devices[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

func validateDevice(d *specs.LinuxDevice, field string) error {
	switch {
	case !isPath(d.Path) || !path.IsAbs(d.Path) || deep(d.Path) || inside(d.Path) == "":
		return invalid(field+".path", "%q is not an absolute path", d.Path)
	case deviceKind(d.Type) == 0:
		return invalid(field+".type", "%q is not a type of device", d.Type)
	case d.Type != "p" && (d.Major < 0 || d.Major > 4095):
		return invalid(field+".major", "%d is not a device number", d.Major)
	case d.Type != "p" && (d.Minor < 0 || d.Minor > 1<<20-1):
		return invalid(field+".minor", "%d is not a device number", d.Minor)
	case d.UID != nil && *d.UID == math.MaxUint32:
		return invalid(field+".uid", "%d is not a user ID", *d.UID)
	case d.GID != nil && *d.GID == math.MaxUint32:
		return invalid(field+".gid", "%d is not a group ID", *d.GID)
	}
	return nil
}

func checkID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > 1024 || strings.ContainsAny(id, "/\x00") {
		return invalid("id", "%q is not a container's ID", id)
	}
	return nil
}

func checkRequest(r *Request) error {
	if err := checkID(r.ID); err != nil {
		return err
	}
	if !isPath(r.Bundle) || !path.IsAbs(r.Bundle) {
		return invalid("bundle", "%q is not an absolute path", r.Bundle)
	}
	r.Bundle = path.Clean(r.Bundle)
	for i, m := range r.Rootfs {
		field := fmt.Sprintf("rootfs[%d]", i)
		if m.Type == "" || strings.IndexByte(m.Type, 0) >= 0 {
			return invalid(field+".type", "%q is not a type of file system", m.Type)
		}
		if strings.IndexByte(m.Source, 0) >= 0 || len(m.Source) >= 4096 || strings.IndexByte(m.Target, 0) >= 0 || len(m.Target) >= 4096 {
			return invalid(field+".source", "not a path")
		}
		for _, o := range m.Options {
			if strings.IndexByte(o, 0) >= 0 {
				return invalid(field+".options", "with a zero byte in it")
			}
		}
	}
	return nil
}
