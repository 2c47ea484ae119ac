//go:build !rsys_inject

package container

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rsys-io/rsys/rsys/call"
)

// Faults can be injected only into a build with the tag rsys_inject.

type injected struct{}

func (i injected) after(int) injected { return i }

func injection(*specs.Spec, string) injected { return injected{} }

func (r *run) inject(context.Context, int, int) error { return nil }

func (r *run) injectInto([]call.Step, int) {}
