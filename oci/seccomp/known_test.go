package seccomp

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestWhatIsSaidToBeKnownIs(t *testing.T) {
	for _, name := range Actions() {
		if _, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdir"}, Action: specs.LinuxSeccompAction(name)}}}, "amd64"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range Operators() {
		if _, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdir"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: specs.LinuxSeccompOperator(name)}}}}}, "amd64"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range Architectures("amd64") {
		if _, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.Arch(name)}}, "amd64"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range Flags() {
		if _, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlag(name)},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}}, "amd64"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
