package container

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
	"github.com/rsys-io/rsys/stub"
)

// A label that is written to a file of the image's confines nobody (CVE-2019-16884, CVE-2025-52881). The kernel takes none of this
// name, whether it has a security module or not; a file would.
func TestALabelIsWrittenToTheKernelsFile(t *testing.T) {
	ctx := t.Context()
	s, err := stub.Start(ctx, stub.DefaultArenaSize)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	task, err := s.Task.Clone(ctx, rsys.CloneConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		task.Kill()
		task.Child.Wait(ctx)
	}()
	root := t.TempDir()
	fake := filepath.Join(root, "proc/self/attr/exec")
	if err := os.MkdirAll(filepath.Dir(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fake, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := task.Call(ctx, call.Chdir(root)); err != nil {
		t.Fatal(err)
	}
	if _, err := task.Call(ctx, call.Chroot(".")); err != nil {
		t.Fatal(err)
	}
	r := &run{task: task}
	if err := r.writeAttr(ctx, "exec", "no such label"); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(fake); len(data) != 0 || err != nil {
		t.Errorf("the file in the root got %q, %v", data, err)
	}
}
