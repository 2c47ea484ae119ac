package namespaces

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheRuleForWhoIsClonedHow(t *testing.T) {
	const pid, mnt, net, tim = unix.CLONE_NEWPID, unix.CLONE_NEWNS, unix.CLONE_NEWNET, unix.CLONE_NEWTIME
	for _, tt := range []struct {
		name            string
		role            Role
		created, joined uint64
		isolation       Isolation
		want            Way
	}{
		{"an init in namespaces of its own is a copy of the stub", RoleInit, pid | mnt | net, 0, IsolationAuto, Way{}},
		{"one that joins a network too", RoleInit, pid | mnt, net, IsolationAuto, Way{}},
		{"one in the host's PID namespace too: there is no outside", RoleInit, mnt | net, 0, IsolationAuto, Way{}},
		{"one that joins a PID namespace is born there", RoleInit, mnt | net, pid, IsolationAuto, Way{Born: true}},
		{"isolation does not change it", RoleInit, mnt | net, pid, IsolationAlways, Way{Born: true}},
		{"an exec is born by a joiner's child", RoleExec, 0, pid | mnt | net, IsolationAuto, Way{ByJoiner: true, Born: true}},
		{"one in the host's PID namespace too", RoleExec, 0, mnt | net, IsolationAuto, Way{ByJoiner: true, Born: true}},
		{"a joiner shares the stub's memory", RoleJoiner, 0, pid | mnt | net, IsolationAuto, Way{ShareMemory: true}},
		{"one that joins a time namespace can't", RoleJoiner, 0, pid | mnt | tim, IsolationAuto, Way{}},
		{"one that is to be isolated does not", RoleJoiner, 0, pid | mnt | net, IsolationAlways, Way{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := How(tt.role, tt.created, tt.joined, tt.isolation); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestIsolationIsParsed(t *testing.T) {
	for s, want := range map[string]Isolation{"": IsolationAuto, "auto": IsolationAuto, "always": IsolationAlways} {
		if got, err := ParseIsolation(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	if _, err := ParseIsolation("sometimes"); err == nil {
		t.Error("no error")
	}
}
