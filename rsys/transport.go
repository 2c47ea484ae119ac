package rsys

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// A transport is how what we write into a block gets into a task's memory,
// and what the task writes there comes back. Blocks, addresses, programs are
// the same with each; a request that uses a block comes between a flush and a
// fetch of it. The task's lock is held.
type transport interface {
	flush(ctx context.Context, t *Task, b *Block) error
	fetch(ctx context.Context, t *Task, b *Block) error
}

// sharedMemory is the transport of a task that has our arena mapped: there is nothing to do.
type sharedMemory struct{}

func (sharedMemory) flush(context.Context, *Task, *Block) error { return nil }
func (sharedMemory) fetch(context.Context, *Task, *Block) error { return nil }

// A dataSocket is the transport of a task whose memory we do not see. Ours is a
// copy of it: the task is asked to read a block from its end of a socket, and to
// write it there.
type dataSocket struct {
	conn *conn
	fd   int // the task's end
}

// dataChunk is what is sent at once. It fits into the socket's buffer, so
// neither side waits for the other in the middle of it.
const dataChunk = 16 << 10

func (d *dataSocket) flush(ctx context.Context, t *Task, b *Block) error {
	mem, addr := b.Bytes(), t.address(b)
	for done, sent := 0, 0; done < len(mem); {
		if sent == done {
			sent = min(done+dataChunk, len(mem))
			if _, err := d.conn.file.Write(mem[done:sent]); err != nil {
				return t.gone(ctx)
			}
		}
		n, err := d.ask(ctx, t, unix.SYS_READ, "read", addr+uint64(done), sent-done)
		if err != nil {
			return err
		}
		done += n
	}
	return nil
}

func (d *dataSocket) fetch(ctx context.Context, t *Task, b *Block) error {
	mem, addr := b.Bytes(), t.address(b)
	stop := context.AfterFunc(ctx, func() { t.Child.interrupt(context.Cause(ctx)) })
	defer stop()
	for done := 0; done < len(mem); {
		n, err := d.ask(ctx, t, unix.SYS_WRITE, "write", addr+uint64(done), min(dataChunk, len(mem)-done))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(d.conn.file, mem[done:done+n]); err != nil {
			return t.Child.diedError()
		}
		done += n
	}
	return nil
}

// ask has the task read or write size bytes at addr, of which it may do a part.
func (d *dataSocket) ask(ctx context.Context, t *Task, nr uintptr, name string, addr uint64, size int) (int, error) {
	for {
		if err := t.request(ctx, [7]uint64{uint64(nr), uint64(d.fd), addr, uint64(size)}); err != nil {
			return 0, err
		}
		n, err := t.response(ctx)
		switch {
		case err != nil:
			return 0, err
		case n == -int64(unix.EINTR):
			continue
		case n < 0 && n >= -4095:
			return 0, fmt.Errorf("rsys: data socket: %s: %w", name, unix.Errno(-n))
		case n <= 0 || n > int64(size):
			return 0, fmt.Errorf("rsys: data socket: %s of %d bytes returned %d", name, size, n)
		}
		return int(n), nil
	}
}

// canClone reports whether the task can have children of ours.
func (t *Task) canClone() error {
	if t.Child.peer {
		return ErrNotOurs
	}
	return t.shares()
}

// shares reports whether the task sees our arena; [ErrNotShared] otherwise.
func (t *Task) shares() error {
	if t.link != (sharedMemory{}) {
		return ErrNotShared
	}
	return nil
}
