package call

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

func sys(name string, nr uintptr, args ...Arg) Call {
	return Call{Name: name, Nr: int64(nr), Args: args}
}

// Expect is a pseudo-call that succeeds if value&mask == want and fails with
// errno otherwise. With it a program checks what an earlier step found.
func Expect(value Arg, mask, want uint64, errno unix.Errno) Call {
	return Call{Name: "expect", Nr: NrExpect, Args: []Arg{value, flags(mask, FormHex), flags(want, FormHex), flags(int(errno), FormErrno)}}
}

// Store32 is a pseudo-call that writes the low half of value to address.
func Store32(address, value Arg) Call {
	return Call{Name: "store32", Nr: NrStore32, Args: []Arg{address, value}}
}

// Store64 is a pseudo-call that writes value to address.
func Store64(address, value Arg) Call {
	return Call{Name: "store64", Nr: NrStore64, Args: []Arg{address, value}}
}

// Files.

func Openat(dir Arg, path string, openFlags int, mode uint32) Call {
	return sys("openat", unix.SYS_OPENAT, dir, String(path), flags(openFlags, FormOpen), flags(mode, FormOctal))
}

// Openat2 opens path below dir; resolve is of RESOLVE_*, Linux 5.6.
func Openat2(dir Arg, path string, openFlags int, mode uint32, resolve uint64) Call {
	how := make([]byte, 24)
	binary.NativeEndian.PutUint64(how[0:], uint64(openFlags))
	binary.NativeEndian.PutUint64(how[8:], uint64(mode))
	binary.NativeEndian.PutUint64(how[16:], resolve)
	return sys("openat2", unix.SYS_OPENAT2, dir, String(path), Bytes(how).as(FormOpenHow), Int(len(how)))
}

func Close(fd Arg) Call { return sys("close", unix.SYS_CLOSE, fd) }

// CloseRange is Linux 5.9; CLOSE_RANGE_CLOEXEC 5.11.
func CloseRange(first, last uint32, f uint) Call {
	return sys("close_range", unix.SYS_CLOSE_RANGE, Int(first), flags(last, FormHex), flags(f, FormCloseRange))
}

func Dup3(from Arg, to int, f int) Call {
	return sys("dup3", unix.SYS_DUP3, from, FD(to), flags(f, FormDup))
}

func Fcntl(fd Arg, cmd int, arg Arg) Call {
	return sys("fcntl", unix.SYS_FCNTL, fd, Int(cmd), arg)
}

// Pread64 reads up to size bytes; they are the step's output, argument 1.
func Pread64(fd Arg, size int, off int64) Call {
	return sys("pread64", unix.SYS_PREAD64, fd, Out(size), Int(size), Int(off))
}

// Read reads up to size bytes; they are the step's output, argument 1.
func Read(fd Arg, size int) Call {
	return sys("read", unix.SYS_READ, fd, Out(size), Int(size))
}

func Write(fd Arg, data string) Call {
	return sys("write", unix.SYS_WRITE, fd, Bytes([]byte(data)).as(FormText), Int(len(data)))
}

func Mkdirat(dir Arg, path string, mode uint32) Call {
	return sys("mkdirat", unix.SYS_MKDIRAT, dir, String(path), flags(mode, FormOctal))
}

func Mknodat(dir Arg, path string, mode uint32, dev uint64) Call {
	return sys("mknodat", unix.SYS_MKNODAT, dir, String(path), flags(mode, FormMode), flags(dev, FormDev))
}

func Symlinkat(target string, dir Arg, path string) Call {
	return sys("symlinkat", unix.SYS_SYMLINKAT, String(target), dir, String(path))
}

// Readlinkat reads a symbolic link into the step's output, argument 2; it returns the length.
func Readlinkat(dir Arg, path string, size int) Call {
	return sys("readlinkat", unix.SYS_READLINKAT, dir, String(path), Out(size), Int(size))
}

// Getdents64 reads directory entries; they are the step's output, argument 1.
func Getdents64(dir Arg, size int) Call {
	return sys("getdents64", unix.SYS_GETDENTS64, dir, Out(size), Int(size))
}

// Sendfile copies up to size bytes from where in is to where out is.
func Sendfile(out, in Arg, size int) Call {
	return sys("sendfile", unix.SYS_SENDFILE, out, in, Null, Int(size))
}

func Unlinkat(dir Arg, path string, f int) Call {
	return sys("unlinkat", unix.SYS_UNLINKAT, dir, String(path), flags(f, FormAt))
}

func Fchownat(dir Arg, path string, uid, gid int, f int) Call {
	return sys("fchownat", unix.SYS_FCHOWNAT, dir, String(path), Int(uid), Int(gid), flags(f, FormAt))
}

func Fchown(fd Arg, uid, gid int) Call {
	return sys("fchown", unix.SYS_FCHOWN, fd, Int(uid), Int(gid))
}

func Fchmod(fd Arg, mode uint32) Call {
	return sys("fchmod", unix.SYS_FCHMOD, fd, flags(mode, FormOctal))
}

func Fchmodat(dir Arg, path string, mode uint32) Call {
	return sys("fchmodat", unix.SYS_FCHMODAT, dir, String(path), flags(mode, FormOctal))
}

// Setxattr sets an extended attribute of a file.
func Setxattr(path, name string, value []byte) Call {
	return sys("setxattr", unix.SYS_SETXATTR, String(path), String(name), Bytes(value), Int(len(value)), Int(0))
}

// Offsets in the output of [Statx] (struct statx).
const (
	StatxModeOff = 28  // stx_mode, 16 bits, behind uid and gid
	StatxInoOff  = 32  // stx_ino
	StatxRdevOff = 128 // stx_rdev_major and stx_rdev_minor, 32 bits each
	StatxSize    = 256
)

// Statx fills a struct statx, its output, argument 4.
func Statx(dir Arg, path string, f int, mask uint32) Call {
	return sys("statx", unix.SYS_STATX, dir, String(path), flags(f, FormAt), flags(mask, FormHex), Out(StatxSize))
}

// Fstatfs fills a struct statfs, its output, argument 1; f_type is its first word.
func Fstatfs(fd Arg) Call {
	return sys("fstatfs", unix.SYS_FSTATFS, fd, Out(120))
}

func Faccessat2(dir Arg, path string, mode uint32, f int) Call {
	return sys("faccessat2", unix.SYS_FACCESSAT2, dir, String(path), Int(mode), flags(f, FormAt))
}

func Ioctl(fd Arg, name string, request uint, arg Arg) Call {
	return sys("ioctl", unix.SYS_IOCTL, fd, Arg{Int: int64(request), Form: FormNamed, Data: name}, arg)
}

// SetRobustList registers a list head of size bytes at address head.
func SetRobustList(head Arg, size int) Call {
	return sys("set_robust_list", unix.SYS_SET_ROBUST_LIST, head, Int(size))
}

// Mounts.

// OpenTree is Linux 5.2.
func OpenTree(dir Arg, path string, f uint) Call {
	return sys("open_tree", unix.SYS_OPEN_TREE, dir, String(path), flags(f, FormOpenTree))
}

func MoveMount(from Arg, fromPath string, to Arg, toPath string, f uint) Call {
	return sys("move_mount", unix.SYS_MOVE_MOUNT, from, String(fromPath), to, String(toPath), flags(f, FormMoveMount))
}

func Fsopen(fstype string, f uint) Call {
	return sys("fsopen", unix.SYS_FSOPEN, String(fstype), flags(f, FormFsopen))
}

// FsconfigFlag is FSCONFIG_SET_FLAG.
func FsconfigFlag(fs Arg, key string) Call {
	return sys("fsconfig", unix.SYS_FSCONFIG, fs, flags(unix.FSCONFIG_SET_FLAG, FormFsconfig), String(key), Null, Int(0))
}

// FsconfigString is FSCONFIG_SET_STRING; the kernel takes values of up to 255 bytes.
func FsconfigString(fs Arg, key, value string) Call {
	return sys("fsconfig", unix.SYS_FSCONFIG, fs, flags(unix.FSCONFIG_SET_STRING, FormFsconfig), String(key), String(value), Int(0))
}

// FsconfigFD is FSCONFIG_SET_FD.
func FsconfigFD(fs Arg, key string, fd Arg) Call {
	return sys("fsconfig", unix.SYS_FSCONFIG, fs, flags(unix.FSCONFIG_SET_FD, FormFsconfig), String(key), Null, fd)
}

// FsconfigCreate is FSCONFIG_CMD_CREATE.
func FsconfigCreate(fs Arg) Call {
	return sys("fsconfig", unix.SYS_FSCONFIG, fs, flags(unix.FSCONFIG_CMD_CREATE, FormFsconfig), Null, Null, Int(0))
}

func Fsmount(fs Arg, f uint, attrs uint) Call {
	return sys("fsmount", unix.SYS_FSMOUNT, fs, flags(f, FormFsmount), flags(attrs, FormMountAttr))
}

// MountSetattr is Linux 5.12. propagation is 0 or one of MS_PRIVATE,
// MS_SLAVE, MS_SHARED and MS_UNBINDABLE.
func MountSetattr(dir Arg, path string, f uint, set, clear, propagation uint64) Call {
	attr := make([]byte, 32)
	binary.NativeEndian.PutUint64(attr[0:], set)
	binary.NativeEndian.PutUint64(attr[8:], clear)
	binary.NativeEndian.PutUint64(attr[16:], propagation)
	return sys("mount_setattr", unix.SYS_MOUNT_SETATTR, dir, String(path), flags(f, FormAt), Bytes(attr).as(FormMountSetattr), Int(len(attr)))
}

// MountSetattrIDMap is mount_setattr with MOUNT_ATTR_IDMAP. userns is a descriptor that is known when the program is
// laid out: the result of a step of an earlier part.
func MountSetattrIDMap(dir Arg, path string, f uint, userns Arg) Call {
	attr := make([]byte, 32)
	binary.NativeEndian.PutUint64(attr[0:], unix.MOUNT_ATTR_IDMAP)
	a := Bytes(attr).as(FormMountSetattr).With(Ptr{Off: 24, To: userns})
	return sys("mount_setattr", unix.SYS_MOUNT_SETATTR, dir, String(path), flags(f, FormAt), a, Int(len(attr)))
}

// Mount is the old mount(2), for file systems with options longer than
// fsconfig takes. data may be "".
func Mount(source, target, fstype string, f uintptr, data string) Call {
	d := Null
	if data != "" {
		d = String(data)
	}
	return sys("mount", unix.SYS_MOUNT, String(source), String(target), String(fstype), flags(uint64(f), FormMS), d)
}

func Umount2(target string, f int) Call {
	return sys("umount2", unix.SYS_UMOUNT2, String(target), flags(f, FormUmount))
}

func PivotRoot(newRoot, putOld string) Call {
	return sys("pivot_root", unix.SYS_PIVOT_ROOT, String(newRoot), String(putOld))
}

func Chroot(path string) Call { return sys("chroot", unix.SYS_CHROOT, String(path)) }
func Chdir(path string) Call  { return sys("chdir", unix.SYS_CHDIR, String(path)) }
func Fchdir(fd Arg) Call      { return sys("fchdir", unix.SYS_FCHDIR, fd) }

// Getcwd writes the working directory's path, its output, argument 0. A
// directory outside the root is given as "(unreachable)…", with no error.
func Getcwd(size int) Call { return sys("getcwd", unix.SYS_GETCWD, Out(size), Int(size)) }

// Namespaces.

func Unshare(f int) Call { return sys("unshare", unix.SYS_UNSHARE, flags(f, FormClone)) }

// Setns joins a namespace, or with a pidfd (Linux 5.8) several.
func Setns(fd Arg, nstype int) Call {
	return sys("setns", unix.SYS_SETNS, fd, flags(nstype, FormClone))
}

func Sethostname(name string) Call {
	return sys("sethostname", unix.SYS_SETHOSTNAME, Bytes([]byte(name)).as(FormText), Int(len(name)))
}

func Setdomainname(name string) Call {
	return sys("setdomainname", unix.SYS_SETDOMAINNAME, Bytes([]byte(name)).as(FormText), Int(len(name)))
}

// Processes and credentials.

func Getpid() Call               { return sys("getpid", unix.SYS_GETPID) }
func Gettid() Call               { return sys("gettid", unix.SYS_GETTID) }
func Setsid() Call               { return sys("setsid", unix.SYS_SETSID) }
func Umask(mask uint32) Call     { return sys("umask", unix.SYS_UMASK, flags(mask, FormOctal)) }
func ExitGroup(status int) Call  { return sys("exit_group", unix.SYS_EXIT_GROUP, Int(status)) }
func Setresuid(r, e, s int) Call { return sys("setresuid", unix.SYS_SETRESUID, Int(r), Int(e), Int(s)) }
func Setresgid(r, e, s int) Call { return sys("setresgid", unix.SYS_SETRESGID, Int(r), Int(e), Int(s)) }

func Setgroups(gids []uint32) Call {
	b := make([]byte, 0, 4*len(gids))
	for _, g := range gids {
		b = binary.NativeEndian.AppendUint32(b, g)
	}
	list := Null
	if len(b) > 0 {
		list = Bytes(b).as(FormUint32s)
	}
	return sys("setgroups", unix.SYS_SETGROUPS, Int(len(gids)), list)
}

func Prctl(option int, args ...Arg) Call {
	return sys("prctl", unix.SYS_PRCTL, append([]Arg{flags(option, FormPrctl)}, args...)...)
}

// Capset sets the caller's effective, permitted and inheritable sets, a bit
// a capability.
func Capset(effective, permitted, inheritable uint64) Call {
	hdr := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	hdr = binary.NativeEndian.AppendUint32(hdr, 0)
	var data []byte
	for _, shift := range []uint{0, 32} {
		for _, set := range []uint64{effective, permitted, inheritable} {
			data = binary.NativeEndian.AppendUint32(data, uint32(set>>shift))
		}
	}
	return sys("capset", unix.SYS_CAPSET, Bytes(hdr).as(FormHidden), Bytes(data).as(FormCaps))
}

// Prlimit64 sets a limit of the caller.
func Prlimit64(resource int, soft, hard uint64) Call {
	b := binary.NativeEndian.AppendUint64(nil, soft)
	b = binary.NativeEndian.AppendUint64(b, hard)
	return sys("prlimit64", unix.SYS_PRLIMIT64, Int(0), flags(resource, FormRlimit), Bytes(b).as(FormRlimitValue), Null)
}

// Seccomp installs a filter of n instructions, prog in struct sock_filter's layout.
func Seccomp(f uint, prog []byte, n int) Call {
	fprog := make([]byte, 16)
	binary.NativeEndian.PutUint16(fprog, uint16(n))
	return sys("seccomp", unix.SYS_SECCOMP, Int(unix.SECCOMP_SET_MODE_FILTER), flags(f, FormHex),
		Bytes(fprog).as(FormSockFprog).With(Ptr{Off: 8, To: Bytes(prog)}))
}

func Execve(path string, argv, envp []string) Call {
	return sys("execve", unix.SYS_EXECVE, String(path), Strings(argv), Strings(envp))
}

// Kill sends a signal, by the caller's PID namespace.
func Kill(pid Arg, sig int) Call { return sys("kill", unix.SYS_KILL, pid, Int(sig)) }

// Mmap and Munmap are for a task's own set-up.
func Mmap(addr Arg, length int, prot, f int, fd Arg, off int64) Call {
	return sys("mmap", unix.SYS_MMAP, addr, Int(length), Int(prot), flags(f, FormHex), fd, Int(off))
}

func Munmap(addr Arg, length int) Call { return sys("munmap", unix.SYS_MUNMAP, addr, Int(length)) }

// ExecveArgs is [Execve] with argv and envp made by [Strings], for several calls that share them.
func ExecveArgs(path string, argv, envp Arg) Call {
	return sys("execve", unix.SYS_EXECVE, String(path), argv, envp)
}

func Socket(domain, typ, proto int) Call {
	return sys("socket", unix.SYS_SOCKET, Int(domain), flags(typ, FormHex), Int(proto))
}

// JoinSessionKeyring is keyctl(KEYCTL_JOIN_SESSION_KEYRING).
func JoinSessionKeyring(name string) Call {
	return sys("keyctl", unix.SYS_KEYCTL, flags(unix.KEYCTL_JOIN_SESSION_KEYRING, FormKeyctl), String(name))
}

// SetKeyPerm is keyctl(KEYCTL_SETPERM).
func SetKeyPerm(key Arg, perm uint32) Call {
	return sys("keyctl", unix.SYS_KEYCTL, flags(unix.KEYCTL_SETPERM, FormKeyctl), key, flags(perm, FormHex))
}

// FutexWait waits, if the word that it makes is still 0, until it is woken. The word is the step's output, argument 0.
func FutexWait() Call {
	return sys("futex", unix.SYS_FUTEX, Out(4), Int(0 /* FUTEX_WAIT */), Int(0), Null)
}
