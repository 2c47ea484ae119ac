package namespaces

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
)

// Parent clones a task, with new namespaces of flags, that is to do what takes the host's rights and then to
// clone a child into the namespaces that it has joined, of joins, and new ones.
func Parent(ctx context.Context, from *rsys.Task, flags, joins uint64, isolation Isolation) (*rsys.Task, error) {
	return from.Clone(ctx, rsys.CloneConfig{Flags: flags | How(RoleJoiner, flags, joins, isolation).memory()})
}

// IDMap opens a new user namespace with these maps, in the kernel's form. Nobody is in it: it is to idmap mounts by.
func IDMap(ctx context.Context, from *rsys.Task, uids, gids string) (*os.File, error) {
	task, err := from.Clone(ctx, rsys.CloneConfig{Flags: unix.CLONE_NEWUSER | How(RoleJoiner, unix.CLONE_NEWUSER, 0, IsolationAuto).memory()})
	if err != nil {
		return nil, err
	}
	proc := "/proc/" + strconv.Itoa(task.Pid())
	err = WriteMap(proc+"/uid_map", uids)
	if err == nil {
		err = WriteMap(proc+"/gid_map", gids)
	}
	var ns *os.File
	if err == nil {
		ns, err = os.Open(proc + "/ns/user")
	}
	task.Kill()
	_, waitErr := task.Child.Wait(ctx)
	return ns, errors.Join(err, waitErr)
}

// WriteMap writes a map of IDs. The kernel wants the whole of it at once.
func WriteMap(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	return nil
}
