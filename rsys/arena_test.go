package rsys

import (
	"errors"
	"math/rand/v2"
	"testing"
)

func testArena(t *testing.T, size int) *Arena {
	t.Helper()
	a, err := NewArena(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if used := a.Used(); used != 0 {
			t.Errorf("%d bytes of the arena are still allocated", used)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func TestArenaGivesBackWhatIsFreedInAnyOrder(t *testing.T) {
	a := testArena(t, 1<<16)
	rnd := rand.New(rand.NewPCG(1, 2))
	var live []*Block
	for range 20000 {
		if len(live) > 0 && rnd.IntN(2) == 0 {
			i := rnd.IntN(len(live))
			for _, v := range live[i].Bytes() {
				if v != live[i].Bytes()[0] {
					t.Fatal("blocks overlap")
				}
			}
			live[i].Free()
			live[i] = live[len(live)-1]
			live = live[:len(live)-1]
			continue
		}
		b, err := a.Alloc(rnd.IntN(3000))
		if errors.Is(err, ErrNoMemory) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		fill := byte(rnd.Uint32())
		for i, v := range b.Bytes() {
			if v != 0 {
				t.Fatalf("byte %d of a new block is %d", i, v)
			}
			b.Bytes()[i] = fill
		}
		live = append(live, b)
	}
	for _, b := range live {
		b.Free()
	}
	if len(a.free) != 1 || a.free[0] != (span{0, 1 << 16}) {
		t.Errorf("free spans did not grow together: %v", a.free)
	}
}

func TestArenaRefusesToFreeTwice(t *testing.T) {
	a := testArena(t, 4096)
	b, err := a.Alloc(1)
	if err != nil {
		t.Fatal(err)
	}
	b.Free()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	b.Free()
}
