package shim

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// What the sandbox service needs of the task service.

// pin keeps the shim alive without containers.
func (s *service) pin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return fmt.Errorf("the shim is shutting down: %w", errdefs.ErrUnavailable)
	}
	s.pinned = true
	return nil
}

func (s *service) unpin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned = false
}

func (s *service) allContainers() []*containerTask {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*containerTask, 0, len(s.containers))
	for _, c := range s.containers {
		if c != nil {
			all = append(all, c)
		}
	}
	return all
}

// killContainers kills all containers that run, and waits until their ends are told.
func (s *service) killContainers(ctx context.Context) error {
	var errs []error
	all := s.allContainers()
	for _, c := range all {
		if st, _, _ := c.init.snapshot(); st != running {
			continue
		}
		if err := c.kill(ctx, "", unix.SIGKILL, true); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("kill container %s: %w", c.id, err))
		}
	}
	for _, c := range all {
		if st, _, _ := c.init.snapshot(); st != running {
			continue
		}
		if _, err := c.init.wait(ctx); err != nil {
			errs = append(errs, fmt.Errorf("wait for container %s: %w", c.id, err))
		}
	}
	return errors.Join(errs...)
}

// deleteContainers deletes what nobody will ask the deletion of any more.
func (s *service) deleteContainers(ctx context.Context) error {
	var errs []error
	for _, c := range s.allContainers() {
		if err := c.delete(ctx); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
			continue
		}
		s.set(c.id, nil)
	}
	return errors.Join(errs...)
}

func (s *service) wasUsed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used || s.down
}
