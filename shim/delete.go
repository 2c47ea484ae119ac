package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rsys-io/rsys/container"
	"github.com/rsys-io/rsys/shim/bootstrap"
)

const (
	pidFile = "init.pid"
	// killedExit is what is told of a container whose shim was not there to see its end.
	killedExit = 128 + 9
	// deleteLimit is below containerd's own limit for the verb, so that there is an error to read.
	deleteLimit = 4500 * time.Millisecond
)

// socketPath is what a file of the bundle says of where the shim listens, "" if there is none.
func socketPath(bundle, name string) string {
	data, err := os.ReadFile(filepath.Join(bundle, name))
	if err != nil {
		return ""
	}
	path, _ := strings.CutPrefix(string(data), "unix://")
	return path
}

// answers says whether a shim answers at a socket's path; a busy one counts as one that does. The socket of a shim that was killed
// may take connections for a moment after containerd's was closed: the kernel lets go of what it had in the reverse order
// (task_work), and a busy machine may stop it in between.
func answers(path string) bool {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return errors.Is(err, syscall.EAGAIN) // its backlog is full
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	frame := make([]byte, frameHeader) // with the number of no stream, to which ttrpc's server answers with an error
	if _, err := conn.Write(frame); err != nil {
		return false
	}
	_, err = conn.Read(frame)
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

// deleteVerb removes what a container left whose shim is dead.
func deleteVerb(flags *bootstrap.Flags, out io.Writer) error {
	bundle := flags.Bundle
	if bundle == "" {
		wd, err := os.Getwd()
		if err != nil {
			return err
		}
		bundle = wd
	}
	if flags.ID == "" {
		return fmt.Errorf("delete: shim id cannot be empty")
	}
	ctx, cancel := context.WithTimeout(context.Background(), deleteLimit)
	defer cancel()
	exit, err := container.Cleanup(ctx, flags.ID, bundle, loadOptions(bundle).SystemdCgroup)
	err = errors.Join(err, removePodFiles(bundle))
	if err != nil {
		// The bundle is the only trace of the container. containerd keeps it, and tries again, if this fails.
		return fmt.Errorf("clean up container %s: %w", flags.ID, err)
	}
	if exit.At.IsZero() {
		exit = container.Exit{Status: killedExit, At: time.Now()}
	}
	// A group's shim may well be alive: then this is about one container's failed start.
	if path := socketPath(bundle, "address"); path != "" && !answers(path) {
		for _, path := range []string{path, socketPath(bundle, bootstrap.DebugAddress)} {
			if err := os.Remove(path); err != nil && path != "" && !errors.Is(err, fs.ErrNotExist) {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
	pid := 0
	if data, err := os.ReadFile(filepath.Join(bundle, pidFile)); err == nil {
		pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
	}
	data, err := proto.Marshal(&taskapi.DeleteResponse{
		Pid:        uint32(pid),
		ExitStatus: exit.Status,
		ExitedAt:   timestamppb.New(exit.At),
	})
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	return err
}
