package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	for _, name := range []string{"address", bootstrap.DebugAddress} {
		if data, err := os.ReadFile(filepath.Join(bundle, name)); err == nil {
			if path, ok := strings.CutPrefix(string(data), "unix://"); ok {
				// A group's shim may well be alive: then this is about one container's failed start.
				if err := bootstrap.RemoveDead(path); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
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
