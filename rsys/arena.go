package rsys

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An Arena is memory that this process and its tasks both see: a memfd,
// mapped here and, at one address common to all of them, in the tasks. All that
// tasks read and write for us lies in it: programs, their arguments
// and results, stacks of children, futexes. No pointer into Go's memory ever
// reaches a task.
//
// The memfd is sparse: pages that were never used take no memory, and the
// allocator prefers low addresses, so that few ever are.
type Arena struct {
	file *os.File
	mem  []byte

	mu   sync.Mutex
	free []span // by offset, never adjacent to each other
	used int

	monitor futexMonitor
}

type span struct{ off, size int }

// arenaUnit is what allocations are rounded up to and aligned to: a cache line.
const arenaUnit = 64

// ErrNoMemory is returned when an arena has no room for an allocation.
var ErrNoMemory = errors.New("rsys: arena is full")

// NewArena makes an arena of size bytes, a multiple of the page size.
func NewArena(size int) (*Arena, error) {
	fd, err := unix.MemfdCreate("rsys-arena", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("rsys-arena", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "rsys-arena")
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		file.Close()
		return nil, os.NewSyscallError("ftruncate", err)
	}
	// A task that could shrink the file would have us killed by SIGBUS.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		file.Close()
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		file.Close()
		return nil, os.NewSyscallError("mmap", err)
	}
	return &Arena{file: file, mem: mem, free: []span{{0, size}}}, nil
}

// NewLocalArena makes an arena of size bytes that no task sees: our copy of
// the memory of a task that has a data socket; see [Config].
func NewLocalArena(size int) (*Arena, error) {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return &Arena{mem: mem, free: []span{{0, size}}}, nil
}

// File is the arena's memfd, to be mapped in a task; nil of a local one.
func (a *Arena) File() *os.File { return a.file }

// Size is the arena's size in bytes.
func (a *Arena) Size() int { return len(a.mem) }

// Used is the number of bytes that are allocated.
func (a *Arena) Used() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.used
}

// Close unmaps the arena here. No Block may be in use: with one that is not freed it is an error, and the arena stays.
func (a *Arena) Close() error {
	if used := a.Used(); used != 0 {
		return fmt.Errorf("rsys: arena with %d bytes in use is closed", used)
	}
	a.monitor.threads.Wait()
	err := unix.Munmap(a.mem)
	if a.file != nil {
		err = errors.Join(err, a.file.Close())
	}
	return err
}

// A Block is allocated memory in an arena.
type Block struct {
	arena *Arena
	span  span
}

// Alloc allocates size bytes of zeroes, aligned to a cache line.
func (a *Arena) Alloc(size int) (*Block, error) {
	size = max((size+arenaUnit-1)/arenaUnit, 1) * arenaUnit
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.free {
		f := &a.free[i]
		if f.size < size {
			continue
		}
		b := &Block{a, span{f.off, size}}
		f.off += size
		f.size -= size
		if f.size == 0 {
			a.free = slices.Delete(a.free, i, i+1)
		}
		a.used += size
		clear(b.Bytes())
		return b, nil
	}
	return nil, fmt.Errorf("%w: no %d bytes of %d", ErrNoMemory, size, len(a.mem))
}

// Free gives the block's memory back. Freeing twice is a mistake that panics.
func (b *Block) Free() {
	a := b.arena
	a.mu.Lock()
	defer a.mu.Unlock()
	s := b.span
	if s.size == 0 {
		panic("rsys: block freed twice")
	}
	b.span.size = 0
	a.used -= s.size
	i, _ := slices.BinarySearchFunc(a.free, s.off, func(f span, off int) int { return f.off - off })
	if i > 0 && a.free[i-1].off+a.free[i-1].size == s.off {
		i--
		a.free[i].size += s.size
	} else {
		a.free = slices.Insert(a.free, i, s)
	}
	if i+1 < len(a.free) && a.free[i].off+a.free[i].size == a.free[i+1].off {
		a.free[i].size += a.free[i+1].size
		a.free = slices.Delete(a.free, i+1, i+2)
	}
}

// Bytes is the block as this process sees it, until it is freed.
func (b *Block) Bytes() []byte {
	return b.arena.mem[b.span.off : b.span.off+b.span.size : b.span.off+b.span.size]
}

// word is the 32-bit word at offset off, for atomic access and futexes.
func (b *Block) word(off int) *atomic.Uint32 { return wordAt(b.Bytes()[off:]) }

// wordAt is the 32-bit word that mem, of an arena, begins with. The
// kernel and tasks write to it behind Go's back; it lies in no Go heap.
func wordAt(mem []byte) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&mem[:4][0]))
}
