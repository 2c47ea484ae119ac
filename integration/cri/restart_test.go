package cri

import (
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

func TestAPodOutlivesContainerd(t *testing.T) {
	p := start(t).Run()
	stays := p.Container(harness.Sh("trap 'exit 6' TERM", "i=0", "while :; do i=$((i+1)); echo $i; sleep 0.05; done")...)
	ends := p.Container(harness.Sh("sleep 1; echo last words; exit 5")...)
	pid := stays.Pid()
	p.Eventually("it writes", func() bool { return len(stays.Log()) > 2 })

	p.Daemon.Kill()
	time.Sleep(2 * time.Second) // the one ends meanwhile
	seen := len(stays.Log())
	p.Must(p.Daemon.Run(), "containerd again")

	p.Eventually("CRI knows the pod", func() bool {
		st, err := p.CRI.PodSandboxStatus(p.Ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
		return err == nil && st.Status.State == runtimeapi.PodSandboxState_SANDBOX_READY
	})
	if st := ends.Wait(); st.ExitCode != 5 {
		t.Errorf("what ended meanwhile: exit code %d, reason %s", st.ExitCode, st.Reason)
	}
	p.Eventually("its last output is in the log", func() bool { return ends.Output("stdout") == "last words\n" })
	if got := stays.Pid(); got != pid {
		t.Errorf("process %d is now %d", pid, got)
	}
	if got := stays.Sh("echo here"); got != "here" {
		t.Errorf("an exec says %q", got)
	}
	p.Eventually("the log goes on", func() bool { return len(stays.Log()) > seen+5 })
	stays.Stop(10 * time.Second)
	if st := stays.Wait(); st.ExitCode != 6 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	// Not one line is lost.
	for i, l := range strings.Fields(stays.Output("stdout")) {
		if l != itoa(i+1) {
			t.Fatalf("line %d of the log is %q", i+1, l)
		}
	}
	if got := p.Container("echo", "next").Wait(); got.ExitCode != 0 {
		t.Errorf("a further container: %v", got)
	}
}
