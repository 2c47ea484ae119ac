package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/criu"
	"github.com/rsys-io/rsys/namespaces"
)

// Checkpoint says how a container is checkpointed, in the terms of runc's options.
type Checkpoint struct {
	Criu                string   // the program; criu in PATH if empty
	Images              string   // the directory for the images; made if it is not there
	Work                string   // the directory for criu's log; in the bundle, and gone after a success, if empty
	Parent              string   // images of before, relative to Images
	Exit                bool     // the container ends, killed by criu
	OpenTCP             bool     // established TCP connections are dumped
	ExternalUnixSockets bool     // so are unix sockets with a peer outside
	Terminal            bool     // so is a terminal that is not the container's own
	FileLocks           bool     // so are locks of files
	EmptyNamespaces     []string // of these is dumped that they are there, not what is in them
	CgroupsMode         string   // criu's --manage-cgroups: ignore, soft, full, strict
}

// descriptorsFile has, in the images, what the first process's standard files are, by number. It has runc's name and form: what is to be
// inherited at a restore has "pipe:" in its name. Here files and fifos from outside have too.
const descriptorsFile = "descriptors.json"

// What criu calls its logs, and what they are called in the bundle after a failure, as containerd's shim for runc has it.
const (
	dumpLog    = "dump.log"
	restoreLog = "restore.log"
	workDir    = "criu-work"
	criuNote   = "criu.note" // of a criu that restores
)

var cgroupModes = map[string]rpc.CriuCgMode{
	"": rpc.CriuCgMode_DEFAULT, "ignore": rpc.CriuCgMode_IGNORE, "soft": rpc.CriuCgMode_SOFT,
	"full": rpc.CriuCgMode_FULL, "strict": rpc.CriuCgMode_STRICT,
}

func (c *Container) checkpoint(ctx context.Context, cfg Checkpoint) (err error) {
	mode, ok := cgroupModes[cfg.CgroupsMode]
	if !ok {
		return fmt.Errorf("checkpoint: CgroupsMode %q: not ignore, soft, full or strict: %w", cfg.CgroupsMode, errdefs.ErrInvalidArgument)
	}
	empty, err := emptyNamespaces(cfg.EmptyNamespaces)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(cfg.Images) {
		return fmt.Errorf("checkpoint: %q is no directory for the images: %w", cfg.Images, errdefs.ErrInvalidArgument)
	}
	made, err := makeDir(cfg.Images)
	if err != nil {
		return fmt.Errorf("checkpoint: images: %w", err)
	}
	before, err := os.ReadDir(cfg.Images)
	if err != nil {
		return fmt.Errorf("checkpoint: images: %w", err)
	}
	defer func() {
		switch {
		case err == nil:
		case made:
			os.RemoveAll(cfg.Images)
		case len(before) == 0:
			// containerd has made it, and may be gone by now; it can be as large as the container's memory.
			files, _ := filepath.Glob(filepath.Join(cfg.Images, "*"))
			for _, file := range files {
				os.Remove(file)
			}
		}
	}()
	work, done, err := c.criuWork(cfg.Work, dumpLog)
	if err != nil {
		return fmt.Errorf("checkpoint: work directory: %w", err)
	}
	pid := c.Init.Pid()
	opts := &rpc.CriuOpts{
		Pid: criu.Ptr(int32(pid)), LeaveRunning: criu.Ptr(!cfg.Exit),
		LogLevel: criu.Ptr(int32(criuLogLevel)), LogFile: criu.Ptr(dumpLog),
		TcpEstablished: &cfg.OpenTCP, ExtUnixSk: &cfg.ExternalUnixSockets, ShellJob: &cfg.Terminal, FileLocks: &cfg.FileLocks,
		ManageCgroups: criu.Ptr(true), ManageCgroupsMode: &mode, EmptyNs: &empty,
		OrphanPtsMaster: criu.Ptr(true),
	}
	if cfg.Parent != "" {
		opts.ParentImg, opts.TrackMem = &cfg.Parent, criu.Ptr(true)
	}
	configFile(c.spec, opts)
	if dir := c.cgroup.FreezerDir(); dir != "" {
		opts.FreezeCgroup = &dir
	}
	names, err := c.dumpOf(pid, cfg.Images, opts)
	if err == nil {
		// What of ours is in the container's namespaces would be in criu's way. The next exec makes it again.
		c.restJoiner()
		err = c.dump(ctx, &criu.Request{Path: cfg.Criu, Type: rpc.CriuReqType_DUMP, Opts: opts, Images: cfg.Images, Work: work,
			Notify: func(script string, _ int, file *os.File) error {
				if file != nil {
					file.Close()
				}
				// Here it can still fail: then criu lets the container go on.
				if script == "post-dump" && len(names) > 0 {
					return criu.RenameFiles(cfg.Images, names)
				}
				return nil
			}})
	}
	if err = done(err); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// dump has criu dump the container. A criu that was killed leaves the container frozen, or one that was frozen running.
func (c *Container) dump(ctx context.Context, req *criu.Request) error {
	frozen, err := c.cgroup.Frozen()
	if err != nil {
		return err
	}
	if _, err = req.Do(ctx); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	switch {
	case req.Opts.FreezeCgroup == nil:
		return err
	case frozen:
		return errors.Join(err, c.cgroup.Freeze(ctx))
	}
	return errors.Join(err, c.cgroup.Thaw(ctx))
}

// configFile names the file whose settings are to prevail over ours: that of runc, for which a node may have been set up, or the annotation's.
func configFile(spec *specs.Spec, opts *rpc.CriuOpts) {
	file, ok := spec.Annotations["org.criu.config"]
	if !ok {
		file = "/etc/criu/runc.conf"
	}
	if file != "" {
		opts.ConfigFile = &file
	}
}

// criuLogLevel is what runc has criu log.
const criuLogLevel = 4

// criuWork makes criu's work directory, and done does away with it if it is ours. A log of a failure stays, in the bundle, and
// the error names it.
func (c *Container) criuWork(dir, logFile string) (work string, done func(error) error, err error) {
	if dir != "" {
		_, err := makeDir(dir)
		return dir, func(err error) error { return err }, err
	}
	work = filepath.Join(c.bundle, workDir)
	if _, err := makeDir(work); err != nil {
		return "", nil, err
	}
	return work, func(err error) error {
		var failed *criu.Error
		if errors.As(err, &failed) && failed.Log != "" {
			kept := filepath.Join(c.bundle, "criu-"+logFile)
			if os.Rename(failed.Log, kept) == nil {
				failed.Log = kept
			}
		}
		if removeErr := os.RemoveAll(work); err == nil {
			err = removeErr
		}
		return err
	}, nil
}

// makeDir makes a directory that may be there, and tells whether it was not.
func makeDir(dir string) (made bool, err error) {
	err = os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

func emptyNamespaces(names []string) (flags uint32, err error) {
	for _, name := range names {
		flag := namespaces.Flag(name)
		switch flag {
		case unix.CLONE_NEWNET:
		case 0:
			return 0, fmt.Errorf("checkpoint: EmptyNamespaces: no namespace %q: %w", name, errdefs.ErrInvalidArgument)
		default:
			return 0, fmt.Errorf("checkpoint: EmptyNamespaces: criu can leave out what is in a network namespace, not in %q: %w", name, errdefs.ErrNotImplemented)
		}
		flags |= uint32(flag)
	}
	return flags, nil
}

// dumpOf adds what criu must be told of a container: what it has from outside. Of files it tells what criu will call them, and what
// they have to be called.
func (c *Container) dumpOf(pid int, images string, opts *rpc.CriuOpts) (names map[string]string, err error) {
	external, err := externalMounts(c.spec, c.cgroup.ByMountpoint())
	if err != nil {
		return nil, err
	}
	root, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for _, m := range external {
		// criu knows it by the path that the mount table has, where the config's may lead over symbolic links.
		at, err := resolveIn(root, m.dest)
		if errors.Is(err, unix.ENOENT) {
			continue // the container has unmounted it, and removed the directory
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.dest, err)
		}
		opts.ExtMnt = append(opts.ExtMnt, &rpc.ExtMountMap{Key: &at, Val: criu.Ptr(m.dest)})
	}
	for _, ns := range externalNamespaces(c.spec) {
		var st unix.Stat_t
		if err := unix.Stat("/proc/"+strconv.Itoa(pid)+"/ns/"+ns.name, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: "namespace " + ns.name, Err: err}
		}
		opts.External = append(opts.External, fmt.Sprintf("%s[%d]:%s", ns.name, st.Ino, ns.key))
	}
	streams, err := externalFiles(pid)
	if err != nil {
		return nil, err
	}
	names = make(map[string]string)
	for i, s := range streams {
		file, ok := strings.CutPrefix(s, "file[")
		if !ok {
			continue
		}
		streams[i] = "pipe:[" + file
		if names[s] == "" {
			opts.External = append(opts.External, s)
		}
		names[s] = "/" + streams[i]
	}
	data, err := json.Marshal(streams)
	if err != nil {
		return nil, err
	}
	return names, os.WriteFile(filepath.Join(images, descriptorsFile), data, 0o600)
}

// An externalMount is a bind mount of something of the host's. In the images it has the name dest.
type externalMount struct{ dest, source string }

// externalMounts are the bind mounts that a config asks for. The directories of its cgroup are by the mountpoint.
func externalMounts(spec *specs.Spec, cgroups map[string]string) (list []externalMount, err error) {
	host := thisHost()
	for _, m := range spec.Mounts {
		dest := path.Clean("/" + m.Destination)
		switch {
		case isBind(&m):
			list = append(list, externalMount{dest, m.Source})
		case m.Type == "cgroup" && !host.CgroupV2 && !hasNamespace(spec, specs.CgroupNamespace):
			for _, h := range host.CgroupV1 {
				list = append(list, externalMount{path.Join(dest, path.Base(h.Mountpoint)), cgroups[h.Mountpoint]})
			}
		}
	}
	if hasNamespace(spec, specs.UserNamespace) {
		// There, devices are those of the host.
		for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
			list = append(list, externalMount{"/dev/" + name, "/dev/" + name})
		}
		for _, d := range spec.Linux.Devices {
			list = append(list, externalMount{path.Clean("/" + d.Path), d.Path})
		}
	}
	return list, nil
}

func isBind(m *specs.Mount) bool {
	remount := false
	bind := m.Type == "bind"
	for _, o := range m.Options {
		bind = bind || o == "bind" || o == "rbind"
		remount = remount || o == "remount"
	}
	return bind && !remount
}

func hasNamespace(spec *specs.Spec, t specs.LinuxNamespaceType) bool {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == t {
			return true
		}
	}
	return false
}

// An externalNamespace is one that the container has joined, with the key that runc gives it.
type externalNamespace struct{ name, key, path string }

func externalNamespaces(spec *specs.Spec) (list []externalNamespace) {
	for _, ns := range spec.Linux.Namespaces {
		switch {
		case ns.Path == "":
		case ns.Type == specs.NetworkNamespace:
			list = append(list, externalNamespace{"net", "extRootNetNS", ns.Path})
		case ns.Type == specs.PIDNamespace:
			list = append(list, externalNamespace{"pid", "extRootPidNS", ns.Path})
		}
	}
	return list
}

// resolveIn is the path that p leads to in a root.
func resolveIn(root *os.File, p string) (string, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	var at string
	raw, err := root.SyscallConn()
	if err != nil {
		return "", err
	}
	raw.Control(func(dir uintptr) {
		var fd int
		if fd, err = unix.Openat2(int(dir), p, how); err != nil {
			err = os.NewSyscallError("openat2", err)
			return
		}
		defer unix.Close(fd)
		at, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	})
	return at, err
}

// externalFiles are a process's standard files, as criu names them: a pipe, or a file in a mount that is not the container's.
func externalFiles(pid int) ([]string, error) {
	mounts, err := mountIDs(pid)
	if err != nil {
		return nil, err
	}
	names := make([]string, 3)
	for i := range names {
		fd := fmt.Sprintf("/proc/%d/fd/%d", pid, i)
		link, err := os.Readlink(fd)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has closed it
		}
		if err != nil {
			return nil, err
		}
		names[i] = link
		if !path.IsAbs(link) {
			continue
		}
		id, err := mountID(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, i))
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Stat(fd, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: fd, Err: err}
		}
		if !mounts[id] {
			names[i] = fmt.Sprintf("file[%x:%x]", id, st.Ino)
		}
	}
	return names, nil
}

func mountIDs(pid int) (map[int]bool, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	if err != nil {
		return nil, err
	}
	ids := make(map[int]bool)
	for line := range strings.Lines(string(data)) {
		id, _, _ := strings.Cut(line, " ")
		if n, err := strconv.Atoi(id); err == nil {
			ids[n] = true
		}
	}
	return ids, nil
}

// mountID is the ID of the mount that an open file is in.
func mountID(fdinfo string) (int, error) {
	data, err := os.ReadFile(fdinfo)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if s, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(s))
		}
	}
	return 0, fmt.Errorf("%s: no mnt_id", fdinfo)
}
