package oci

import (
	"encoding/binary"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/oci/seccomp"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// session makes the process the leader of a session with a keyring of its own.
func (c *compiler) session() {
	c.at("process", "")
	if !c.req.NoNewKeyring {
		// Otherwise it would have the shim's, and what is in it. Where keyrings are not to be had there is
		// nothing to take away.
		k := c.try(call.JoinSessionKeyring("_ses."+c.req.ID), call.Tolerate(unix.ENOSYS, unix.EPERM))
		// The default, and search permission for the owner so that an exec can join it.
		c.do(call.SetKeyPerm(call.ResultOf(k), 0x3f1b0000))
		c.errHere(k)
	}
	if c.place == notBorn {
		c.do(call.Setsid())
	}
}

// makeCwd makes the working directory if it is not there. The root has been entered.
func (c *compiler) makeCwd() {
	cwd := path.Clean(c.proc.Cwd)
	if cwd == "/" {
		return
	}
	c.at("process.cwd", cwd)
	there := c.try(call.Chdir(cwd), call.Tolerate(unix.ENOENT, unix.EACCES))
	for i := 1; i <= len(cwd); i++ {
		if i == len(cwd) || cwd[i] == '/' {
			c.try(call.Mkdirat(call.CWD, cwd[:i], 0o755), mayExist)
		}
	}
	c.okHere(there)
}

// passwdSize is what of /etc/passwd is read.
const passwdSize = 16 << 10

// readPasswd reads the start of the container's /etc/passwd, whatever that is, without getting stuck.
func (c *compiler) readPasswd() {
	if c.OwnEnv || lookupEnv(c.proc.Env, "HOME") != "" {
		return
	}
	c.at("process.env", "HOME")
	open := c.try(call.Openat2(call.CWD, "/etc/passwd",
		unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0, unix.RESOLVE_NO_MAGICLINKS), call.Ignore)
	fd := call.ResultOf(open)
	st := c.do(call.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE))
	file := c.try(call.Expect(call.Int32Of(st, 4, call.StatxModeOff), unix.S_IFMT, unix.S_IFREG, unix.EINVAL), call.Tolerate(unix.EINVAL))
	c.Passwd = c.try(call.Pread64(fd, passwdSize, 0), call.Ignore)
	c.errHere(file)
	c.close(fd)
	c.errHere(open)
}

// ownNull replaces standard files that are the host's null device by the container's.
func (c *compiler) ownNull() {
	if c.proc.Terminal || c.req.Null == [3]bool{} {
		return
	}
	c.at("process", "/dev/null")
	null := call.ResultOf(c.do(call.Openat2(call.CWD, "/dev/null", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0, unix.RESOLVE_NO_MAGICLINKS)))
	c.expectNull(null)
	for fd, is := range c.req.Null {
		if is {
			c.do(call.Dup3(null, fd, 0))
		}
	}
	c.close(null)
}

// start is all that happens between the Start request and the program.
func (c *compiler) start() error {
	if c.place == notBorn || c.exec {
		c.phase = Start
	}
	c.Leave = len(c.Steps)
	p := c.proc
	c.at("process", "")
	if c.place == notBorn { // what is born does not inherit it
		c.do(call.Prctl(unix.PR_SET_PDEATHSIG, call.Int(0)))
	}
	uid, gid := int(p.User.UID), int(p.User.GID)
	if uid != 0 && !p.Terminal && !hasUserNS(c.spec) {
		for fd, is := range c.req.Fifos {
			if is {
				c.at("process.user", fmt.Sprintf("descriptor %d", fd))
				c.try(call.Fchown(call.FD(fd), uid, -1), mayNotChown)
			}
		}
	}
	for i, r := range p.Rlimits {
		c.at(item("process.rlimits", i), r.Type)
		c.do(call.Prlimit64(rlimits[r.Type], r.Soft, r.Hard))
	}
	if p.NoNewPrivileges {
		c.at("process.noNewPrivileges", "")
		c.do(call.Prctl(unix.PR_SET_NO_NEW_PRIVS, call.Int(1), call.Int(0), call.Int(0), call.Int(0)))
	}

	c.scheduling()

	// The directory may be one that only root or only the user can enter, so both try.
	c.at("process.cwd", p.Cwd)
	dir := path.Clean(p.Cwd)
	cwd := c.try(call.Chdir(dir), call.Tolerate(unix.EACCES, unix.EPERM))

	caps := c.capabilities()
	c.dropBounding(&caps)
	c.at("process.user", "")
	if uid != 0 {
		c.do(call.Prctl(unix.PR_SET_KEEPCAPS, call.Int(1), call.Int(0), call.Int(0), call.Int(0)))
	}
	c.do(call.Setgroups(distinct(p.User.AdditionalGids)))
	c.do(call.Setresgid(gid, gid, gid))
	c.do(call.Setresuid(uid, uid, uid))
	c.at("process.user.umask", "")
	umask := uint32(0o022)
	if p.User.Umask != nil {
		umask = *p.User.Umask
	}
	c.do(call.Umask(umask))

	c.at("process.cwd", p.Cwd)
	was := c.try(call.Expect(call.ResultOf(cwd), ^uint64(0), 0, unix.EACCES), call.Tolerate(unix.EACCES))
	c.do(call.Chdir(dir))
	c.okHere(was)
	// One that is outside the root has a name that does not begin with a slash (CVE-2024-21626).
	wd := c.do(call.Getcwd(4096))
	c.do(call.Expect(call.Int32Of(wd, 0, 0), 0xff, '/', unix.EXDEV))

	filter := c.Seccomp
	// A filter is installed by those who gain nothing by it: with no_new_privs, or with this capability.
	var keep uint64
	if filter != nil && !p.NoNewPrivileges {
		keep = sysAdmin &^ caps.effective
	}
	if caps.given {
		c.applyCaps(&caps, keep)
		c.raiseAmbient(&caps)
	} else if uid != 0 && filter != nil && !p.NoNewPrivileges {
		c.at("process.capabilities", "")
		c.do(call.Capset(sysAdmin, ^uint64(0)>>(63-c.host.lastCap()), 0))
	}
	c.at("process", "")
	if c.place == notBorn {
		c.do(call.CloseRange(3, ^uint32(0), unix.CLOSE_RANGE_CLOEXEC))
	} else {
		c.do(call.CloseRange(3, ^uint32(0), 0))
	}
	if c.place == filterAfter {
		c.bear()
	}
	if filter != nil {
		c.at("linux.seccomp", "")
		prog := make([]byte, 0, 8*len(filter.Instructions))
		for _, i := range filter.Instructions {
			prog = binary.NativeEndian.AppendUint16(prog, i.Code)
			prog = append(prog, i.Jt, i.Jf)
			prog = binary.NativeEndian.AppendUint32(prog, i.K)
		}
		c.sendListener(c.do(call.Seccomp(uint(filter.Flags), prog, len(filter.Instructions))))
	}
	if keep != 0 && caps.given {
		c.applyCaps(&caps, 0)
	}
	if c.place == filterBefore {
		c.bear()
	}
	env := lastOfEach(p.Env)
	if !c.OwnEnv {
		// An empty one is to be found out.
		env = slices.DeleteFunc(env, func(s string) bool { return s == "HOME=" })
	}
	c.execve(env)
	return nil
}

// filter compiles the seccomp profile, if there is one.
func (c *compiler) filter() (err error) {
	filter := c.req.Seccomp
	if filter == nil {
		if filter, err = seccomp.Compile(c.spec.Linux.Seccomp, runtime.GOARCH); err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	c.Seccomp = filter
	return c.checkListener(filter)
}

// lastOfEach leaves the last of each variable.
func lastOfEach(env []string) []string {
	seen := make(map[string]bool, len(env))
	out := make([]string, 0, len(env))
	for i := len(env) - 1; i >= 0; i-- {
		k, _, _ := strings.Cut(env[i], "=")
		if seen[k] {
			continue
		}
		seen[k] = true
		out = append(out, env[i])
	}
	slices.Reverse(out)
	return out
}

// SetHome gives the program HOME if its environment has none.
func (p *Plan) SetHome(home string) {
	if p.OwnEnv {
		return
	}
	var envp call.Arg
	for _, i := range p.Lookup.Exec {
		a := &p.Steps[i].Args[2]
		if envp.Kind != call.KindIn {
			for _, v := range a.Ptrs() {
				if strings.HasPrefix(v.To.Data, "HOME=") {
					return
				}
			}
			n := len(a.Ptrs())
			envp = a.With(append(slices.Clip(a.Ptrs()), call.Ptr{Off: 8 * n, To: call.String("HOME=" + home)})...)
			envp.Data = string(make([]byte, 8*(n+2)))
		}
		*a = envp
	}
}

// Home finds a user's home directory in a passwd file, or the start of one.
func Home(passwd []byte, uid uint32) (string, bool) {
	want := fmt.Sprint(uid)
	for line := range strings.SplitSeq(string(passwd), "\n") {
		f := strings.Split(line, ":")
		if len(f) >= 6 && f[2] == want && !strings.ContainsRune(f[5], 0) {
			return f[5], true
		}
	}
	return "", false
}

// processOf is what a process that is executed in a container has: what is not said is the container's.
func processOf(spec *specs.Spec, p *specs.Process) *specs.Process {
	q := *p
	if init := spec.Process; init != nil {
		if q.Capabilities == nil {
			q.Capabilities = init.Capabilities
		}
		if len(q.Rlimits) == 0 {
			q.Rlimits = init.Rlimits
		}
		if q.Scheduler == nil {
			q.Scheduler = init.Scheduler
		}
		if q.IOPriority == nil {
			q.IOPriority = init.IOPriority
		}
		if q.ExecCPUAffinity == nil {
			q.ExecCPUAffinity = init.ExecCPUAffinity
		}
		if q.ApparmorProfile == "" {
			q.ApparmorProfile = init.ApparmorProfile
		}
		if q.SelinuxLabel == "" {
			q.SelinuxLabel = init.SelinuxLabel
		}
		if q.User.Umask == nil {
			q.User.Umask = init.User.Umask
		}
	}
	return &q
}

// distinct are the groups without those named before: the kernel keeps each as often as it is
// said, and Docker says one twice that is the user's by /etc/group and by --group-add.
func distinct(gids []uint32) []uint32 {
	seen := make(map[uint32]bool, len(gids))
	var once []uint32
	for _, g := range gids {
		if !seen[g] {
			seen[g] = true
			once = append(once, g)
		}
	}
	return once
}
