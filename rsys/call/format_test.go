package call

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCallsArePrintedAsStraceDoes(t *testing.T) {
	for _, c := range []struct {
		call Call
		want string
	}{
		{Openat(CWD, "/a\n", unix.O_RDONLY, 0), `openat(AT_FDCWD, "/a\n", O_RDONLY, 0)`},
		{Openat(FD(3), "x", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644), `openat(3, "x", O_RDWR|O_CREAT|O_CLOEXEC, 0644)`},
		{Openat(CWD, "x", unix.O_PATH, 0), `openat(AT_FDCWD, "x", O_PATH, 0)`},
		{Openat2(ResultOf(12), "dev", unix.O_PATH|unix.O_DIRECTORY, 0, unix.RESOLVE_IN_ROOT), `openat2($12, "dev", {O_PATH|O_DIRECTORY, RESOLVE_IN_ROOT})`},
		{Openat2(CWD, "f", unix.O_WRONLY|unix.O_CREAT, 0o600, 0), `openat2(AT_FDCWD, "f", {O_WRONLY|O_CREAT, 0600})`},
		{Expect(Int32Of(3, 4, StatxModeOff), unix.S_IFMT, unix.S_IFDIR, unix.ENOTDIR), `expect($3[4]+28:32 & 0xf000 == 0x4000, ENOTDIR)`},
		{Expect(WordOf(12, 1, 28), 1, 1, unix.EPERM), `expect($12[1]+28 & 0x1 == 0x1, EPERM)`},
		{Expect(WordOf(12, 1, 0), ^uint64(0), 5, unix.EPERM), `expect($12[1]+0 == 0x5, EPERM)`},
		{Store64(OutPtrOf(1, 0, 8), ResultOf(2)), `store64(&$1[0]+8, $2)`},
		{Dup3(ResultOf(1), 0, 0), `dup3($1, 0, 0)`},
		{Dup3(ResultOf(1), 5, unix.O_CLOEXEC), `dup3($1, 5, O_CLOEXEC)`},
		{CloseRange(3, ^uint32(0), unix.CLOSE_RANGE_CLOEXEC), `close_range(3, 0xffffffff, CLOSE_RANGE_CLOEXEC)`},
		{Pread64(FD(4), 100, 0), `pread64(4, out[100], 0)`},
		{Write(FD(1), "1\n"), `write(1, "1\n")`},
		{Mknodat(FD(3), "null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)), `mknodat(3, "null", S_IFCHR|0666, 1:3)`},
		{Statx(FD(3), "", unix.AT_EMPTY_PATH, unix.STATX_TYPE), `statx(3, "", AT_EMPTY_PATH, 0x1, out[256])`},
		{OpenTree(CWD, "/s", unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE), `open_tree(AT_FDCWD, "/s", OPEN_TREE_CLONE|AT_RECURSIVE)`},
		{Fsmount(FD(3), unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID), `fsmount(3, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID)`},
		{FsconfigString(FD(3), "mode", "755"), `fsconfig(3, FSCONFIG_SET_STRING, "mode", "755", 0)`},
		{FsconfigCreate(FD(3)), `fsconfig(3, FSCONFIG_CMD_CREATE, 0, 0, 0)`},
		{MountSetattr(FD(3), "", unix.AT_EMPTY_PATH, unix.MOUNT_ATTR_RDONLY, unix.MOUNT_ATTR__ATIME, unix.MS_PRIVATE),
			`mount_setattr(3, "", AT_EMPTY_PATH, {set MOUNT_ATTR_RDONLY, clear MOUNT_ATTR__ATIME, MS_PRIVATE})`},
		{MountSetattrIDMap(FD(3), "", unix.AT_EMPTY_PATH, ResultOf(7)), `mount_setattr(3, "", AT_EMPTY_PATH, {set MOUNT_ATTR_IDMAP, userns $7})`},
		{MountSetattr(FD(3), "", 0, 0, 0, 0), `mount_setattr(3, "", 0, {})`},
		{Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""), `mount("", "/", "", MS_REC|MS_SLAVE, 0)`},
		{Umount2(".", unix.MNT_DETACH), `umount2(".", MNT_DETACH)`},
		{Unshare(unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS), `unshare(CLONE_NEWNS|CLONE_NEWCGROUP)`},
		{Unshare(1), `unshare(0x1)`},
		{Sethostname("h"), `sethostname("h")`},
		{Setgroups([]uint32{1, 4294967294}), `setgroups(2, [1, 4294967294])`},
		{Setgroups(nil), `setgroups(0, 0)`},
		{Prctl(unix.PR_SET_NO_NEW_PRIVS, Int(1)), `prctl(PR_SET_NO_NEW_PRIVS, 1)`},
		{Prctl(9999), `prctl(9999)`},
		{Capset(1|1<<21, 1<<41-1, 0), `capset({effective CHOWN|SYS_ADMIN, permitted all, inheritable 0})`},
		{Capset(1<<41-1-1<<16-1<<22, 1<<60|1<<40, 1<<60), `capset({effective all-SYS_MODULE-SYS_BOOT, permitted CHECKPOINT_RESTORE|0x1000000000000000, inheritable 0x1000000000000000})`},
		{Prlimit64(unix.RLIMIT_NOFILE, 1024, ^uint64(0)), `prlimit64(0, RLIMIT_NOFILE, {1024, RLIM_INFINITY}, 0)`},
		{Seccomp(0, make([]byte, 16), 2), `seccomp(1, 0x0, {2 instructions})`},
		{Execve("/bin/sh", []string{"sh", "-c"}, nil), `execve("/bin/sh", ["sh", "-c"], [])`},
		{Ioctl(FD(0), "TIOCSCTTY", unix.TIOCSCTTY, Int(0)), `ioctl(0, TIOCSCTTY, 0)`},
		{JoinSessionKeyring("k"), `keyctl(KEYCTL_JOIN_SESSION_KEYRING, "k")`},
		{Close(ResultOf(3)), `close($3)`},
		{Getpid(), `getpid()`},
		{SchedSetattr(SchedAttr{Policy: 1, Priority: 5, Flags: 1}), `sched_setattr(0, {SCHED_FIFO, RESET_ON_FORK, priority 5}, 0)`},
		{SchedSetattr(SchedAttr{Policy: 6, Runtime: 1, Deadline: 2, Period: 3, Nice: -4}), `sched_setattr(0, {SCHED_DEADLINE, nice -4, runtime 1, deadline 2, period 3}, 0)`},
		{SchedSetaffinity([]byte{0x8f, 0x81}), `sched_setaffinity(0, 2, {0-3,7-8,15})`},
		{SchedSetaffinity([]byte{0xff}), `sched_setaffinity(0, 1, {0-7})`},
		{IoprioSet(2, 4), `ioprio_set(IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_BE:4)`},
		{Personality(8), `personality(PER_LINUX32)`},
		{SetMempolicy(2|1<<15, []byte{1, 0, 0, 0, 0, 0, 0, 0}), `set_mempolicy(MPOL_BIND|MPOL_F_STATIC_NODES, {0}, 65)`},
		{SetMempolicy(0, nil), `set_mempolicy(MPOL_DEFAULT, 0, 0)`},
	} {
		if got := c.call.String(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

func TestLongDataIsCut(t *testing.T) {
	c := Call{Name: "f", Args: []Arg{Bytes(make([]byte, 1000)), String(strings.Repeat("x", 5000))}}
	if got := c.String(); len(got) > 4300 || !strings.Contains(got, "...[1000]") || !strings.Contains(got, "...[5000]") {
		t.Errorf("%d bytes: %.200s", len(got), got)
	}
}

// Whatever an argument is, printing it is no risk: it happens in the handling of errors.
func FuzzAnyArgumentCanBePrinted(f *testing.F) {
	f.Add(uint8(0), uint8(0), int64(0), []byte(nil))
	f.Fuzz(func(t *testing.T, kind, form uint8, v int64, data []byte) {
		a := Arg{Kind: Kind(kind), Form: Form(form), Int: v, Data: string(data)}
		_ = Call{Name: "f", Args: []Arg{a, Int(len(data)), a}}.String()
	})
}
