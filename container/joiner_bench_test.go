package container

import (
	"context"
	"testing"

	"github.com/rsys-io/rsys/namespaces"
)

// What an exec would take more if there were no joiner from the one before: the making of one, not its end.
func BenchmarkJoiner(b *testing.B) {
	ctx := context.Background()
	r := testRuntime(b)
	c := sleeping(b, r, bundle(b))
	stub, err := r.ground(ctx)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		j, err := namespaces.JoinProcess(ctx, stub.Task, c.Init.child, c.namespaces(), c.isolation)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := j.Close(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
