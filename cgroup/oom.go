package cgroup

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// OOM says when the cgroup is out of memory (v1) or the kernel killed a process for that (v2). Events that come faster than they are
// taken become one. The channel is closed when the context ends or the cgroup is removed, on v2 by Delete: of a removal by another the
// kernel says nothing there. Waiting costs a parked goroutine and no thread.
func (c *Cgroup) OOM(ctx context.Context) (<-chan struct{}, error) {
	dir := c.dir("memory")
	if dir == "" {
		return nil, fmt.Errorf("cgroup: watching for OOM: the memory controller is not mounted on this host")
	}
	watch := watchLegacy
	if c.layout.v2 {
		watch = watchUnified
	}
	f, happened, err := watch(dir)
	if err != nil {
		return nil, fmt.Errorf("cgroup: watching for OOM: %w", err)
	}
	ch := make(chan struct{}, 1)
	end := func() { f.Close() }
	stop := context.AfterFunc(ctx, end)
	forget := c.watches.add(end)
	go func() {
		defer close(ch)
		defer end()
		defer stop()
		defer forget()
		buf := make([]byte, 4096)
		for {
			if _, err := f.Read(buf); err != nil {
				return
			}
			oom, gone := happened()
			if oom {
				select {
				case ch <- struct{}{}:
				default:
				}
			}
			if gone {
				return
			}
		}
	}()
	return ch, nil
}

// watches are what is to be ended when a cgroup is deleted.
type watches struct {
	mu   sync.Mutex
	last int
	ends map[int]func()
}

func (w *watches) add(end func()) (forget func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last++
	n := w.last
	if w.ends == nil {
		w.ends = map[int]func(){}
	}
	w.ends[n] = end
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.ends, n)
	}
}

func (w *watches) endAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, end := range w.ends {
		end()
	}
}

func watchLegacy(dir string) (*os.File, func() (oom, gone bool), error) {
	ctl, err := openFile(dir, "memory.oom_control", false)
	if err != nil {
		return nil, nil, err
	}
	defer ctl.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("eventfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "eventfd for "+dir)
	if err := write(dir, "cgroup.event_control", fmt.Sprintf("%d %d", fd, ctl.fd)); err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, func() (bool, bool) {
		// The kernel also signals when it removes the cgroup.
		_, err := os.Lstat(dir)
		return err == nil, err != nil
	}, nil
}

func watchUnified(dir string) (*os.File, func() (oom, gone bool), error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("inotify: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify for "+dir)
	for _, file := range []string{"/memory.events", "/cgroup.events"} {
		if _, err := unix.InotifyAddWatch(fd, dir+file, unix.IN_MODIFY|unix.IN_DELETE_SELF); err != nil {
			f.Close()
			return nil, nil, &os.PathError{Op: "inotify_add_watch", Path: dir + file, Err: err}
		}
	}
	last := oomKills(dir)
	return f, func() (bool, bool) {
		now := oomKills(dir)
		oom := now > last
		last = max(now, last)
		_, err := os.Lstat(dir)
		return oom, err != nil
	}, nil
}

// OOMKills is how often the kernel has killed a process of the cgroup for want of memory; 0 if that can't be told.
func (c *Cgroup) OOMKills() uint64 {
	dir := c.dir("memory")
	switch {
	case dir == "":
		return 0
	case c.layout.v2:
		return oomKills(dir)
	}
	s, err := read(dir, "memory.oom_control") // oom_kill: Linux 4.13
	if err != nil {
		return 0
	}
	return keys(s)["oom_kill"]
}

func oomKills(dir string) uint64 {
	s, err := read(dir, "memory.events")
	if err != nil {
		return 0
	}
	return keys(s)["oom_kill"]
}

// keys reads lines of a word and a number.
func keys(s string) map[string]uint64 {
	m := map[string]uint64{}
	for line := range strings.Lines(s) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			m[k] = n
		}
	}
	return m
}
