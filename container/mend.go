package container

import (
	"bytes"
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/oci"
	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
)

// mendable is the step at which err came about, if that is to be mended; otherwise -1.
func (r *run) mendable(err error) int {
	var failed *rsys.StepError
	if errors.As(err, &failed) && failed.Errno == unix.ENOENT && failed.Index < len(r.plan.Steps) && r.plan.Steps[failed.Index].Mend {
		return failed.Index
	}
	return -1
}

// maxLinks is how many symbolic links the kernel follows in a path (MAXSYMLINKS).
const maxLinks = 40

// mend makes the directories that are missing on the path of an openat2 in a root, following symbolic links as if that were
// the root. Every directory is opened in the root by the kernel, so a link that is changed meanwhile
// leads nowhere else; at worst, a directory is made in a wrong place inside.
func (r *run) mend(ctx context.Context, s *oci.Step) error {
	root := call.FD(int(r.steps.Result(int(s.Args[0].Step)).Value))
	todo := strings.Split(strings.TrimRight(argString(s.Args[1]), "/"), "/")
	var done []string
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = done[:max(len(done)-1, 0)]
			continue
		}
		target, err := r.linkOrDir(ctx, root, strings.Join(append([]string{"."}, done...), "/"), name)
		switch {
		case err != nil:
			return err
		case target == "":
			done = append(done, name)
			continue
		case links == maxLinks:
			return unix.ELOOP
		}
		links++
		if target[0] == '/' {
			done = nil
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return nil
}

// linkOrDir is where name in dir, a path below root, leads if it is a symbolic link. If nothing is there, it makes a directory.
func (r *run) linkOrDir(ctx context.Context, root call.Arg, dir, name string) (target string, err error) {
	fd, err := r.task.Open(ctx, call.Openat2(root, dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0,
		unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS))
	if err != nil {
		return "", err
	}
	defer fd.Close(ctx, r.task)
	run := r.task.NewRun()
	defer run.Close()
	err = run.Do(ctx, call.Step{Call: call.Readlinkat(fd.Arg(), name, unix.PathMax)})
	switch {
	case err == nil:
		return string(bytes.TrimRight(run.Out(0, 2), "\x00")), nil
	case errors.Is(err, unix.EINVAL):
		return "", nil
	case !errors.Is(err, unix.ENOENT):
		return "", err
	}
	_, err = r.task.Call(ctx, call.Mkdirat(fd.Arg(), name, 0o755))
	return "", err
}
