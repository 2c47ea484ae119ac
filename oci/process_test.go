package oci

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

func compile(t testing.TB, change func(*specs.Spec, *Request)) *Plan {
	t.Helper()
	spec, err := Parse([]byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	req := request()
	if change != nil {
		change(spec, &req)
	}
	p, err := Compile(spec, req, hostV1)
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	return p
}

// calls are the printed calls whose text contains all of words.
func calls(p *Plan, words ...string) (list []string) {
	for i := range p.Steps {
		s := p.Steps[i].Call.String()
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(s, w) }) {
			list = append(list, s)
		}
	}
	return list
}

func index(t testing.TB, p *Plan, words ...string) int {
	t.Helper()
	for i := range p.Steps {
		s := p.Steps[i].Call.String()
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(s, w) }) {
			return i
		}
	}
	t.Fatalf("no call with %q", words)
	return -1
}

func TestALookupThatFailsSaysWhatRuncSays(t *testing.T) {
	for _, c := range []struct {
		name   string
		failed map[int]unix.Errno // by the place in the group of three; -1 is an exec
		want   string
	}{
		{"nosuch", map[int]unix.Errno{0: unix.ENOENT}, `exec: "nosuch": executable file not found in $PATH`},
		{"/nosuch", map[int]unix.Errno{0: unix.ENOENT}, `exec: "/nosuch": stat /nosuch: no such file or directory`},
		{"/a/b", map[int]unix.Errno{0: unix.ENOTDIR}, `exec: "/a/b": stat /a/b: not a directory`},
		{"/etc", map[int]unix.Errno{1: unix.EISDIR}, `exec: "/etc": is a directory`},
		{"/etc/passwd", map[int]unix.Errno{2: unix.EACCES}, `exec: "/etc/passwd": permission denied`},
		{"./x", map[int]unix.Errno{0: unix.ENOENT}, `exec: "./x": stat ./x: no such file or directory`},
		{"", nil, `exec: "": executable file not found in $PATH`},
		{"/script", map[int]unix.Errno{-1: unix.ENOEXEC}, `exec: "/script": exec format error`},
		{"sh", map[int]unix.Errno{-1: unix.EACCES}, `exec: "sh": permission denied`},
	} {
		p := compile(t, func(s *specs.Spec, _ *Request) {
			s.Process.Args = []string{c.name}
			s.Process.Env = []string{"PATH=/bin:/usr/bin"}
		})
		l := p.Lookup
		err := l.Error(func(i int) (unix.Errno, bool) {
			for _, at := range l.Steps {
				for place, e := range c.failed {
					if place >= 0 && i == at-2+place {
						return e, true
					}
				}
				if i >= at-2 && i <= at && c.failed[i-at+2] == 0 && i-at+2 == 0 {
					return 0, true
				}
			}
			if e := c.failed[-1]; e != 0 && slices.Contains(l.Exec, i) {
				return e, true
			}
			return 0, false
		})
		if err == nil || err.Error() != c.want {
			t.Errorf("%q: got %v, want %s", c.name, err, c.want)
		}
	}
}

func TestTheErrorOfAnExecIsTheOneThatTellsMost(t *testing.T) {
	l := Lookup{Name: "sh", Candidates: []string{"/a/sh", "/b/sh", "/c/sh"}, Exec: []int{1, 2, 3}}
	err := l.Error(func(i int) (unix.Errno, bool) {
		return map[int]unix.Errno{1: unix.ENOENT, 2: unix.EACCES, 3: unix.ENOENT}[i], true
	})
	if err.Error() != `exec: "sh": permission denied` {
		t.Error(err)
	}
}

func TestCandidatesComeFromTheLastPATHAndAreAbsolute(t *testing.T) {
	env := []string{"PATH=/x", "A=1", "PATH=/bin::rel:/usr/bin/"}
	if got := candidates("sh", env); !slices.Equal(got, []string{"/bin/sh", "/usr/bin/sh"}) {
		t.Errorf("%q", got)
	}
	if got := candidates("a/sh", env); !slices.Equal(got, []string{"a/sh"}) {
		t.Errorf("%q", got)
	}
	if got := candidates("sh", nil); got != nil {
		t.Errorf("%q", got)
	}
}

func TestHomeIsFoundInPasswdHoweverBroken(t *testing.T) {
	passwd := []byte("root:x:0:0:root:/root:/bin/sh\n\nbroken\n:::\nuser:x:1000:1000::/home/user:\nzero:x:7:7::/h\x00me:\ncut:x:8:8:")
	for uid, want := range map[uint32]string{0: "/root", 1000: "/home/user", 7: "", 8: "", 9: ""} {
		got, ok := Home(passwd, uid)
		if got != want || ok != (want != "") {
			t.Errorf("%d: %q, %v", uid, got, ok)
		}
	}
}

func TestSetHomeAddsHOMEToEveryExecve(t *testing.T) {
	p := compile(t, func(s *specs.Spec, _ *Request) {
		s.Process.Args = []string{"sh"}
		s.Process.Env = []string{"PATH=/bin:/usr/bin", "HOME="}
	})
	if p.Passwd < 0 {
		t.Error("passwd is not read for an empty HOME")
	}
	p.SetHome("/root")
	check(t, p)
	if got := calls(p, "execve", `["PATH=/bin:/usr/bin", "HOME=/root"]`); len(got) != 2 {
		t.Errorf("%q", calls(p, "execve"))
	}
	p.SetHome("/other")
	if got := calls(p, "execve", "/other"); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestAHOMEThatIsGivenStays(t *testing.T) {
	p := compile(t, func(s *specs.Spec, _ *Request) { s.Process.Env = []string{"HOME=/h"} })
	if p.Passwd != -1 {
		t.Error("passwd is read")
	}
	p.SetHome("/root")
	if len(calls(p, "execve", `["HOME=/h"]`)) != 1 {
		t.Errorf("%q", calls(p, "execve"))
	}
}

func TestTheLastOfAVariableCounts(t *testing.T) {
	if got := lastOfEach([]string{"A=1", "B=2", "A=3"}); !slices.Equal(got, []string{"B=2", "A=3"}) {
		t.Errorf("%q", got)
	}
}

func TestSeccompIsLoadedByWhoMay(t *testing.T) {
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"reboot"}, Action: specs.ActErrno}}}
	caps := func(names ...string) *specs.LinuxCapabilities {
		return &specs.LinuxCapabilities{Bounding: names, Permitted: names, Effective: names}
	}
	for name, c := range map[string]struct {
		nnp     bool
		caps    *specs.LinuxCapabilities
		capsets int
	}{
		"with no_new_privs, as the last thing":                         {true, caps("CAP_CHOWN"), 1},
		"without it and without the capability, which is kept so long": {false, caps("CAP_CHOWN"), 2},
		"with the capability":                                          {false, caps("CAP_SYS_ADMIN"), 1},
		"with whatever root has":                                       {false, nil, 0},
	} {
		p := compile(t, func(s *specs.Spec, _ *Request) {
			s.Linux.Seccomp, s.Process.NoNewPrivileges, s.Process.Capabilities = profile, c.nnp, c.caps
		})
		at := index(t, p, "seccomp")
		if got := calls(p, "capset"); len(got) != c.capsets {
			t.Errorf("%s: %q", name, got)
		}
		if c.capsets == 2 {
			if !strings.Contains(p.Steps[at+1].Call.String(), "{effective CHOWN, permitted CHOWN, inheritable 0}") {
				t.Errorf("%s: %s", name, p.Steps[at+1].Call)
			}
			at++
		}
		if at != p.Lookup.Exec[0]-1 {
			t.Errorf("%s: %s comes before the program", name, p.Steps[at+1].Call)
		}
	}
}

func TestUsersOtherThanRootKeepTheirCapabilitiesUntilTheyAreSet(t *testing.T) {
	p := compile(t, func(s *specs.Spec, r *Request) {
		s.Process.User.UID = 5
		s.Process.Capabilities = &specs.LinuxCapabilities{Permitted: []string{"CAP_CHOWN"}}
	})
	if keep, set := index(t, p, "PR_SET_KEEPCAPS"), index(t, p, "setresuid"); keep > set {
		t.Error("keepcaps comes after setresuid")
	}
	for fd := range 3 {
		if len(calls(p, "fchown("+string(rune('0'+fd))+", 5, -1)")) != 1 {
			t.Errorf("descriptor %d does not become the user's", fd)
		}
	}
	if len(calls(compile(t, nil), "fchown(")) != 0 {
		t.Error("root's are changed")
	}
}

func TestStandardFilesThatAreNullAreTheContainers(t *testing.T) {
	p := compile(t, func(_ *specs.Spec, r *Request) { r.Null = [3]bool{true, false, true} })
	if got := calls(p, "dup3"); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

func TestExecTakesFromTheContainerWhatItDoesNotSay(t *testing.T) {
	spec := readSpec(t, "cri-container")
	umask := uint32(0o27)
	spec.Process.User.Umask = &umask
	p, err := CompileExec(spec, &specs.Process{Args: []string{"/x"}, Cwd: "/"}, request(), hostV1)
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	if len(calls(p, "umask(027)")) != 1 || len(calls(p, "PR_CAPBSET_DROP")) != 40 || len(calls(p, "seccomp")) != 1 {
		t.Error("umask, capabilities or seccomp are not the container's")
	}
	if len(calls(p, "mount")) != 0 {
		t.Errorf("%q", calls(p, "mount"))
	}
}

func TestNothingIsOpenAtExecve(t *testing.T) {
	p := compile(t, nil)
	if i := index(t, p, "close_range(3, 0xffffffff, CLOSE_RANGE_CLOEXEC)"); p.Steps[i].OnError != call.Stop || i > p.Lookup.Exec[0] {
		t.Error("not closed")
	}
}

func TestAGroupThatIsNamedTwiceIsSetOnce(t *testing.T) {
	p := compile(t, func(spec *specs.Spec, _ *Request) { spec.Process.User.AdditionalGids = []uint32{50, 1, 50, 77, 1} })
	var got []string
	for _, s := range p.Steps {
		if text := fmt.Sprint(s.Call); strings.HasPrefix(text, "setgroups(") {
			got = append(got, text)
		}
	}
	if len(got) != 1 || got[0] != "setgroups(3, [50, 1, 77])" {
		t.Errorf("got %q", got)
	}
}
