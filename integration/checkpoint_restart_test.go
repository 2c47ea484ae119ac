package integration

import (
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
)

// A container that is to be restored has no process before its start. A containerd that is started meanwhile keeps it nevertheless.
func TestContainerdIsKilledBetweenCreateAndStartOfARestore(t *testing.T) {
	needCriu(t)
	if peer() && daemon.Old() {
		t.Skip("containerd 1.7 ends runc's shim then")
	}
	e := start(t)
	c := e.Container(counter())
	c.Run()
	e.Eventually("it counts", func() bool { return strings.Contains(c.IO.Stdout.String(), "3\n") })
	r := moved(e, c, new(options.CheckpointOptions))
	e.Kill()
	e.Must(e.Run(), "run containerd again")
	record, err := e.Client.LoadContainer(e.Ctx, r.ID())
	e.Must(err, "load")
	task, err := record.Task(e.Ctx, nil)
	e.Must(err, "task")
	if st, err := task.Status(e.Ctx); err != nil || st.Status != client.Created || task.Pid() != 0 {
		t.Errorf("it is %v, its process %d, %v", st.Status, task.Pid(), err)
	}
	if peer() {
		t.Log("runc's shim has no list of processes then")
	} else if pids, err := task.Pids(e.Ctx); err != nil || len(pids) != 1 {
		t.Errorf("its processes are %v, %v", pids, err)
	}
	exits, err := task.Wait(e.Ctx)
	e.Must(err, "wait")
	e.Must(task.Start(e.Ctx), "start")
	e.Eventually("it goes on counting", func() bool { return strings.Count(r.IO.Stdout.String(), "\n") > 3 })
	e.Must(task.Kill(e.Ctx, syscall.SIGKILL), "kill")
	<-exits
	_, err = task.Delete(e.Ctx)
	e.Must(err, "delete")
}
