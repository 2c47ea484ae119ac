package shim

import (
	"errors"
	"reflect"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/rsys-io/rsys/container"
)

func TestACheckpointsOptionsArrive(t *testing.T) {
	h := newHarness(t)
	// CriuPath is a field that containerd's type has no longer.
	runc := protowire.AppendString(protowire.AppendTag(nil, 8, protowire.BytesType), "/opt/criu")
	runc = protowire.AppendString(protowire.AppendTag(runc, 11, protowire.BytesType), "/var/criu")
	_, err := h.task.Create(h.ctx, &taskapi.CreateTaskRequest{
		ID: "c", Bundle: newBundle(t, `{"process":{"args":["x"]}}`), Options: &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: runc},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := h.rt.last()
	h.start("c", "")
	checkpoint := func(path string, opts *runcoptions.CheckpointOptions) error {
		a, err := toAny(opts)
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.task.Checkpoint(h.ctx, &taskapi.CheckpointTaskRequest{ID: "c", Path: path, Options: a})
		return err
	}
	for name, tc := range map[string]struct {
		path string
		opts *runcoptions.CheckpointOptions
		want container.Checkpoint
	}{
		"none": {"/images", &runcoptions.CheckpointOptions{}, container.Checkpoint{Criu: "/opt/criu", Images: "/images", Work: "/var/criu"}},
		"all": {
			"", &runcoptions.CheckpointOptions{
				Exit: true, OpenTcp: true, ExternalUnixSockets: true, Terminal: true, FileLocks: true, EmptyNamespaces: []string{"network"},
				CgroupsMode: "soft", ImagePath: "/i", WorkPath: "/w", ParentPath: "../p",
			}, container.Checkpoint{
				Criu: "/opt/criu", Images: "/i", Work: "/w", Parent: "../p", Exit: true, OpenTCP: true, ExternalUnixSockets: true,
				Terminal: true, FileLocks: true, EmptyNamespaces: []string{"network"}, CgroupsMode: "soft",
			},
		},
	} {
		if err := checkpoint(tc.path, tc.opts); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := c.checkpoints[len(c.checkpoints)-1]; !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, tc.want)
		}
	}
	_, err = h.task.Checkpoint(h.ctx, &taskapi.CheckpointTaskRequest{ID: "c", Options: &anypb.Any{TypeUrl: "x.y", Value: []byte("z")}})
	h.wantCode("options of another type", err, codes.InvalidArgument)

	c.mu.Lock()
	c.fail = errors.New("criu says no")
	c.mu.Unlock()
	if err := checkpoint("/images", &runcoptions.CheckpointOptions{}); err == nil {
		t.Error("no error")
	}
	if s := h.status("c", ""); s != task.Status_RUNNING {
		t.Errorf("after a checkpoint that failed: %s", s)
	}
	h.wantEvents(topicCreate, topicStart, topicCheckpointed, topicCheckpointed)
}

func TestARestoredTaskHasItsProcessFromItsStart(t *testing.T) {
	h := newHarness(t)
	r, err := h.task.Create(h.ctx, &taskapi.CreateTaskRequest{
		ID: "c", Bundle: newBundle(t, `{"process":{"args":["x"]}}`), Checkpoint: "/images",
	})
	if err != nil || r.Pid != 0 {
		t.Fatalf("create: pid %d, %v", r.GetPid(), err)
	}
	if got, want := h.rt.restored, []container.Restore{{Images: "/images"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("restored of %+v, want %+v", got, want)
	}
	started, err := h.task.Start(h.ctx, &taskapi.StartRequest{ID: "c"})
	if err != nil || started.Pid == 0 {
		t.Errorf("start: pid %d, %v", started.GetPid(), err)
	}
	if st, err := h.task.State(h.ctx, &taskapi.StateRequest{ID: "c"}); err != nil || st.Pid != started.GetPid() {
		t.Errorf("state: pid %d, %v, want %d", st.GetPid(), err, started.GetPid())
	}
}
