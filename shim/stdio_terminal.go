package shim

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// hangupWait is how long after the process's end a terminal may take to be hung up by
// the last one that has it open. It is immediate unless somebody else has.
const hangupWait = 100 * time.Millisecond

// terminalBuffer is what a pseudoterminal gives in one read at the most.
const terminalBuffer = 4096

// A terminal copies between a pseudoterminal's master and the streams of a client. Reads and writes
// wait in Go's poller, not in threads.
type terminal struct {
	master      *os.File // owned by the process
	input, sink *os.File // may be nil
	done        chan struct{}
	inputDone   chan struct{}
	once        sync.Once
}

func startTerminal(master, input, sink *os.File) *terminal {
	t := &terminal{master: master, input: input, sink: sink, done: make(chan struct{}), inputDone: make(chan struct{})}
	go t.copyOutput()
	if input == nil {
		close(t.inputDone)
	} else {
		go t.copyInput()
	}
	return t
}

func (t *terminal) copyOutput() {
	defer close(t.done)
	buf := make([]byte, terminalBuffer)
	for {
		n, err := t.master.Read(buf)
		t.write(buf[:n])
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			t.copyRest(buf)
			return
		default:
			return // EIO: nobody has the terminal open any more
		}
	}
}

// copyRest takes what is there, without waiting for more from processes that have been left behind.
func (t *terminal) copyRest(buf []byte) {
	conn, err := t.master.SyscallConn()
	if err != nil {
		return
	}
	for {
		var n int
		var rerr error
		if conn.Control(func(fd uintptr) { n, rerr = unix.Read(int(fd), buf) }) != nil {
			return
		}
		if rerr == unix.EINTR {
			continue
		}
		if rerr != nil || n <= 0 {
			return
		}
		t.write(buf[:n])
	}
}

func (t *terminal) write(p []byte) {
	if t.sink != nil && len(p) > 0 {
		t.sink.Write(p) // an error is the client's loss; the process must not stall for it
	}
}

func (t *terminal) copyInput() {
	defer close(t.inputDone)
	buf := make([]byte, terminalBuffer)
	last := byte('\n')
	for {
		n, err := t.input.Read(buf)
		if n > 0 {
			last = buf[n-1]
			if _, werr := t.master.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				t.endInput(last)
			}
			return
		}
	}
}

// endInput does what a user at the terminal does to end the input: ^D, which has to be typed twice in
// the middle of a line. (Closing the master would be a hang-up, and lose output.)
func (t *terminal) endInput(last byte) {
	const eot = 4
	t.master.Write([]byte{eot})
	if last != '\n' && last != '\r' {
		t.master.Write([]byte{eot})
	}
}

// exited is called when the process has ended.
func (t *terminal) exited() {
	if t.input != nil {
		t.input.Close()
	}
	t.master.SetReadDeadline(time.Now().Add(hangupWait))
}

// drain waits until the output has been written, or says that it has not.
func (t *terminal) drain(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-t.done:
		t.closeSink()
		return true
	case <-timer.C:
		return false
	}
}

func (t *terminal) closeSink() {
	t.once.Do(func() {
		if t.sink != nil {
			t.sink.Close()
		}
	})
}

// close stops the copying, whatever is left.
func (t *terminal) close() {
	if t.input != nil {
		t.input.Close()
	}
	past := time.Unix(1, 0)
	t.master.SetDeadline(past)
	t.closeSink()
	<-t.done
	<-t.inputDone
}
