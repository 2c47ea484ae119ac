package rsys

import (
	"errors"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A futexMonitor waits on words of an arena until the kernel changes them: it
// clears a word and wakes it when a process that shares memory execs or
// exits (CLONE_CHILD_CLEARTID), and marks it "owner died" when one that has
// it as a robust futex does.
//
// One thread waits on up to 127 words at once, by futex_waitv (Linux 5.16); the
// 128th is the control word, with which it is called when the list changes. It
// exists only while there is something to watch. An older kernel gets a
// thread a word.
type futexMonitor struct {
	mu      sync.Mutex
	groups  []*futexGroup
	threads sync.WaitGroup
}

type futexGroup struct {
	monitor *futexMonitor
	control atomic.Uint32 // counts changes of list
	list    []*watch
}

// A watch is one word being watched.
type watch struct {
	group *futexGroup
	word  *atomic.Uint32
	value uint32 // of word, while nothing has happened
	fire  func() // called once, in a goroutine of the monitor's, unless cancelled
	over  bool
}

const (
	futexWaitvMax = 128 // FUTEX_WAITV_MAX
	futex32       = 2   // FUTEX_32, and not FUTEX_PRIVATE_FLAG: the words are other processes' too
	futexWait     = 0
	futexWake     = 1
)

type futexWaitv struct {
	val, uaddr      uint64
	flags, reserved uint32
}

func (m *futexMonitor) watch(word *atomic.Uint32, value uint32, fire func()) *watch {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := &watch{word: word, value: value, fire: fire}
	for _, g := range m.groups {
		if len(g.list) < futexWaitvMax-1 {
			w.group = g
		}
	}
	if w.group == nil {
		w.group = &futexGroup{monitor: m}
		m.groups = append(m.groups, w.group)
		m.threads.Go(w.group.loop)
	}
	w.group.list = append(w.group.list, w)
	w.group.changed()
	return w
}

// cancel ends a watch; its word is not touched any more after the monitor's
// next turn, and fire is not called if it was not before.
func (w *watch) cancel() {
	m := w.group.monitor
	m.mu.Lock()
	defer m.mu.Unlock()
	if !w.over {
		w.over = true
		w.group.changed()
	}
}

// changed wakes the group's thread. m.mu is held.
func (g *futexGroup) changed() {
	g.control.Add(1)
	futexWakeAll(&g.control)
}

func futexWakeAll(word *atomic.Uint32) {
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWake, math.MaxInt32, 0, 0, 0)
}

// sweep removes the watches that are over, returns those that have fired, and
// fills vec with what to wait for next. With nothing left the group dissolves.
func (g *futexGroup) sweep(vec []futexWaitv) (fired []*watch, next []futexWaitv) {
	m := g.monitor
	m.mu.Lock()
	defer m.mu.Unlock()
	vec = append(vec[:0], futexWaitv{uint64(g.control.Load()), uint64(uintptr(unsafe.Pointer(&g.control))), futex32, 0})
	keep := g.list[:0]
	for _, w := range g.list {
		if w.over {
			continue
		}
		if w.word.Load() != w.value {
			w.over = true
			fired = append(fired, w)
			continue
		}
		keep = append(keep, w)
		vec = append(vec, futexWaitv{uint64(w.value), uint64(uintptr(unsafe.Pointer(w.word))), futex32, 0})
	}
	clear(g.list[len(keep):])
	g.list = keep
	if len(keep) > 0 || len(fired) > 0 {
		return fired, vec
	}
	for i, h := range m.groups {
		if h == g {
			m.groups = append(m.groups[:i], m.groups[i+1:]...)
			break
		}
	}
	return nil, nil
}

func (g *futexGroup) loop() {
	var vec []futexWaitv
	for {
		var fired []*watch
		if fired, vec = g.sweep(vec); vec == nil {
			return
		}
		for _, w := range fired {
			w.fire()
		}
		if len(fired) > 0 {
			continue
		}
		_, _, errno := unix.Syscall6(unix.SYS_FUTEX_WAITV, uintptr(unsafe.Pointer(&vec[0])), uintptr(len(vec)), 0, 0, 0, 0)
		runtime.KeepAlive(g)
		if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
			g.waitEach() // there is none, or a filter that we are under, of an older container, forbids it
		}
	}
}

// waitEach is a turn on a kernel without futex_waitv: a thread for each word,
// until one changes.
func (g *futexGroup) waitEach() {
	m := g.monitor
	m.mu.Lock()
	control := g.control.Load()
	list := append([]*watch(nil), g.list...)
	m.mu.Unlock()
	for _, w := range list {
		m.threads.Go(func() {
			for w.word.Load() == w.value && g.control.Load() == control {
				if err := futexWaitOn(w.word, w.value); err != nil && !errors.Is(err, unix.EINTR) {
					break
				}
			}
			// Told whatever has changed since: the kernel wakes one waiter, and this may be it.
			m.mu.Lock()
			defer m.mu.Unlock()
			if !w.over && w.word.Load() != w.value || g.control.Load() == control {
				g.changed()
			}
		})
	}
	for g.control.Load() == control {
		futexWaitOn(&g.control, control)
	}
	for _, w := range list {
		futexWakeAll(w.word)
	}
}

func futexWaitOn(word *atomic.Uint32, value uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWait, uintptr(value), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
