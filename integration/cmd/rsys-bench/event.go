package main

import (
	"context"
	"fmt"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
)

// exited waits for the exit event of a container's own process.
func exited(ctx context.Context, ch <-chan *events.Envelope, errs <-chan error, id string) error {
	for {
		select {
		case ev := <-ch:
			v, err := typeurl.UnmarshalAny(ev.Event)
			if err != nil {
				return err
			}
			if exit, ok := v.(*apievents.TaskExit); ok && exit.ContainerID == id && exit.ID == id {
				return nil
			}
		case err := <-errs:
			return fmt.Errorf("events: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("no exit event of %s: %w", id, ctx.Err())
		}
	}
}
