package bootstrap

import (
	"strconv"
	"syscall"
)

const maxSocketPath = 106

// listen makes the listening socket of a new shim, or returns -1 when there is one whose
// shim answers.
func listen(path string) (fd int, err error) {
	dir := path
	for i := len(path) - 1; i > 0; i-- {
		if path[i] == '/' {
			dir = path[:i]
			break
		}
	}
	if err := mkdirAll(dir); err != nil {
		return -1, err
	}
	// Two starts of one group must not each take the other's socket, bound and not yet
	// listening, for one whose shim has died.
	lock, err := open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return -1, wrap("open "+dir, err)
	}
	defer syscall.Close(lock)
	for {
		if err = syscall.Flock(lock, syscall.LOCK_EX); err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return -1, wrap("lock "+dir, err)
	}
	fd, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, wrap("make a socket", err)
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	name := &syscall.SockaddrUnix{Name: path}
	err = syscall.Bind(fd, name)
	if err == syscall.EADDRINUSE {
		if alive(path) {
			syscall.Close(fd)
			return -1, nil
		}
		if err := syscall.Unlink(path); err != nil && err != syscall.ENOENT {
			syscall.Close(fd)
			return -1, wrap("remove the socket of a dead shim "+path, err)
		}
		err = syscall.Bind(fd, name)
	}
	if err != nil {
		syscall.Close(fd)
		return -1, wrap("bind "+path, err)
	}
	if err := syscall.Listen(fd, syscall.SOMAXCONN); err != nil {
		syscall.Unlink(path)
		syscall.Close(fd)
		return -1, wrap("listen on "+path, err)
	}
	return fd, nil
}

// alive says whether somebody listens at a socket's path. One with a full backlog does.
func alive(path string) bool {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return true // better no shim than two
	}
	defer syscall.Close(fd)
	err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
	return err == nil || err == syscall.EAGAIN
}

const (
	prSchedCore       = 62
	schedCoreCreate   = 1
	schedCorePIDGroup = 2
)

// startServer starts this very program once more, as the server: a session of its own, so that
// nothing sent to containerd's reaches it, the bundle as working directory, the socket as descriptor 3.
func startServer(bundle string, flags *Flags, req *request, env []string, socket int, debug debugSocket) (pid int, err error) {
	self, err := readLink("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	null, err := open("/dev/null", syscall.O_RDWR, 0)
	if err != nil {
		return 0, wrap("open /dev/null", err)
	}
	defer syscall.Close(null)
	argv := []string{self, "-namespace", flags.Namespace, "-id", flags.ID, "-address", flags.Address}
	if req.debug {
		argv = append(argv, "-debug")
	}
	if req.logLevel != "" {
		argv = append(argv, "-log-level", req.logLevel)
	}
	files := []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(socket)}
	if debug.fd >= 0 {
		defer syscall.Close(debug.fd)
		argv = append(argv, "-debug-socket", debug.path)
		files = append(files, uintptr(debug.fd))
	}
	if lookup(env, "SCHED_CORE") != "" {
		// The cookie is inherited by the server and by every container.
		_, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, prSchedCore, schedCoreCreate, 0, schedCorePIDGroup, 0, 0)
		if e != 0 {
			return 0, wrap("prctl(PR_SCHED_CORE)", e)
		}
	}
	pid, _, err = syscall.StartProcess(self, argv, &syscall.ProcAttr{
		Dir:   bundle,
		Env:   serverEnv(env, req.ttrpc),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, wrap("start the server "+self, err)
	}
	if req.shimCgroup != "" {
		err = joinCgroup(req.shimCgroup, pid)
	}
	if err == nil {
		err = adjustOOM(pid)
	}
	if err != nil {
		syscall.Kill(pid, syscall.SIGKILL)
		syscall.Wait4(pid, nil, 0, nil)
		return 0, err
	}
	return pid, nil
}

// serverEnv is the environment with what the Go runtime of the server must know before anything of ours runs.
func serverEnv(env []string, ttrpc string) []string {
	out := make([]string, 0, len(env)+3)
	for _, e := range env {
		switch {
		case hasPrefix(e, "TTRPC_ADDRESS="), hasPrefix(e, "GOMAXPROCS="), hasPrefix(e, "GOGC="):
		default:
			out = append(out, e)
		}
	}
	// One processor: a shim waits nearly always, and each more has caches of its own, 0.3 MB of them. No collection while a container is
	// created, which would cost time then, and memory ever after; the server collects when it is done.
	return append(out, "TTRPC_ADDRESS="+ttrpc, "GOMAXPROCS=1", "GOGC=400")
}

// adjustOOM makes the kernel prefer the shim to containerd when memory is short, as containerd's
// shims do.
func adjustOOM(pid int) error {
	parent := "/proc/" + strconv.Itoa(syscall.Getppid()) + "/oom_score_adj"
	data, err := readFile(parent, 64)
	if err != nil {
		return err
	}
	for len(data) > 0 && data[len(data)-1] == '\n' {
		data = data[:len(data)-1]
	}
	score, err := strconv.Atoi(string(data))
	if err != nil {
		return wrap(parent, err)
	}
	err = writeFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", strconv.Itoa(min(score+1, 1000)))
	if e, ok := err.(*stepError); ok && (e.err == syscall.EACCES || e.err == syscall.EPERM) {
		return nil // in a user namespace it may not be lowered, and it need not be
	}
	return err
}

// joinCgroup moves a process to the cgroup that the ShimCgroup option names, which must exist in
// at least one hierarchy.
func joinCgroup(cgroup string, pid int) error {
	const root = "/sys/fs/cgroup"
	joined := false
	join := func(dir string) error {
		path := dir + "/" + cgroup + "/cgroup.procs"
		err := writeFile(path, strconv.Itoa(pid))
		if e, ok := err.(*stepError); ok && e.err == syscall.ENOENT {
			return nil
		}
		joined = joined || err == nil
		return err
	}
	for len(cgroup) > 0 && cgroup[0] == '/' {
		cgroup = cgroup[1:]
	}
	var st syscall.Stat_t
	if syscall.Stat(root+"/cgroup.controllers", &st) == nil {
		if err := join(root); err != nil {
			return err
		}
	} else {
		names, err := readDir(root)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := join(root + "/" + name); err != nil {
				return err
			}
		}
	}
	if !joined {
		return failure("shim_cgroup " + cgroup + " does not exist")
	}
	return nil
}

func hasPrefix(s, prefix string) bool { return len(s) >= len(prefix) && s[:len(prefix)] == prefix }
