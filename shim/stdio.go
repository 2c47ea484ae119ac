package shim

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/container"
)

// stdioPaths are a process's standard streams as containerd names them: paths of fifos, or URIs.
type stdioPaths struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

// ioOptions say whose streams they are.
type ioOptions struct {
	id, namespace string
	uid, gid      int
	streams       *streams
}

// A processIO is the shim's side of a process's standard streams. Without a terminal the
// process has the files themselves, and no byte passes through here. All methods may be
// called on nil.
type processIO struct {
	// stdio are the process's ends.
	stdio container.Stdio

	stdin  *inputFifo
	outs   []*outputFifo
	logger *logger
	term   *terminal

	inStream   *inputStream
	outStreams []*outputStream
	// sink and input are what a terminal is copied to and from.
	sink, input *os.File

	mu     sync.Mutex
	ended  bool
	closed bool
}

// openIO opens what the paths name. As in runc's shim, the scheme of stdout counts for stderr too.
func openIO(ctx context.Context, paths stdioPaths, opts ioOptions) (_ *processIO, err error) {
	pio := new(processIO)
	defer func() {
		if err != nil {
			pio.handedOver()
			pio.close()
		}
	}()
	if paths.Stdin != "" {
		if err := pio.openStdin(paths, opts); err != nil {
			return nil, fmt.Errorf("stdin: %w", err)
		}
	}
	if paths.Stdout == "" && paths.Stderr == "" {
		return pio, nil
	}
	if _, ok, _ := streamName(paths.Stdout); ok {
		return pio, pio.openOutputStreams(paths, opts)
	}
	u, err := url.Parse(paths.Stdout)
	if err != nil {
		return nil, invalid("stdout: %v", err)
	}
	switch u.Scheme {
	case "", "fifo", "pipe":
		// Not the URL's path, which would have a % in the name undone.
		err = pio.openFifos(ctx, trimScheme(paths.Stdout), trimScheme(paths.Stderr), paths.Terminal, opts)
	case "file":
		err = pio.openFile(u.Path, paths, opts)
	case "binary", "binary-v2":
		err = pio.startLogger(ctx, u, paths, opts)
	default:
		return nil, invalid("stdout: unknown scheme %q", u.Scheme)
	}
	if err != nil {
		return nil, err
	}
	return pio, nil
}

func trimScheme(path string) string {
	for _, scheme := range []string{"fifo://", "pipe://"} {
		if len(path) > len(scheme) && path[:len(scheme)] == scheme {
			return path[len(scheme):]
		}
	}
	return path
}

func (pio *processIO) openStdin(paths stdioPaths, opts ioOptions) error {
	if id, ok, err := streamName(paths.Stdin); err != nil {
		return err
	} else if ok {
		return pio.openInputStream(id, paths, opts)
	}
	in, file, err := openInput(trimScheme(paths.Stdin), paths.Terminal)
	if err != nil {
		return err
	}
	pio.stdin = in
	if paths.Terminal {
		pio.input = file
		return nil
	}
	pio.stdio.Stdin = file
	return chown(file, opts)
}

func (pio *processIO) openFifos(ctx context.Context, stdout, stderr string, terminal bool, opts ioOptions) error {
	open := func(path string) (*os.File, error) {
		out, file, err := openOutput(ctx, path, terminal)
		if err != nil {
			return nil, err
		}
		if out != nil {
			pio.outs = append(pio.outs, out)
		}
		return file, nil
	}
	var err error
	if stdout != "" {
		file, err := open(stdout)
		if err != nil {
			return fmt.Errorf("stdout: %w", err)
		}
		if terminal {
			pio.sink = file
			return nil // a terminal has no other stderr
		}
		pio.stdio.Stdout = file
		if err := chown(file, opts); err != nil {
			return fmt.Errorf("stdout: %w", err)
		}
	}
	if stderr != "" && !terminal {
		if pio.stdio.Stderr, err = open(stderr); err != nil {
			return fmt.Errorf("stderr: %w", err)
		}
		if err := chown(pio.stdio.Stderr, opts); err != nil {
			return fmt.Errorf("stderr: %w", err)
		}
	}
	return nil
}

// openFile opens a log file. Both streams share one description, so that they interleave.
func (pio *processIO) openFile(path string, paths stdioPaths, opts ioOptions) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("stdout: %w", err)
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOCTTY, 0o644)
	if err != nil {
		return fmt.Errorf("stdout: open %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	if paths.Terminal {
		pio.sink = file
		return nil
	}
	pio.stdio.Stdout = file
	if paths.Stderr != "" {
		pio.stdio.Stderr = file
	}
	return nil
}

// chown gives a stream to the user that the options name, who may then open /dev/stdout and the like.
func chown(f *os.File, opts ioOptions) error {
	if opts.uid == 0 && opts.gid == 0 {
		return nil
	}
	if err := unix.Fchown(int(f.Fd()), opts.uid, opts.gid); err != nil {
		return fmt.Errorf("chown %s: %w", f.Name(), err)
	}
	return nil
}

// handedOver drops the process's ends: it has them now, or there will be no process.
func (pio *processIO) handedOver() {
	if pio == nil {
		return
	}
	s := &pio.stdio
	for _, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		if f != nil {
			f.Close() // a second time, where stderr is stdout: an error without effect
		}
	}
	*s = container.Stdio{}
}

// attach copies between the process's terminal and the streams.
func (pio *processIO) attach(master *os.File) error {
	if master == nil {
		return errors.New("the process has no terminal")
	}
	pio.term = startTerminal(master, pio.input, pio.sink)
	pio.input, pio.sink = nil, nil
	return nil
}

// exited lets go of what outlives the process only for the sake of its readers.
func (pio *processIO) exited() {
	if pio == nil {
		return
	}
	pio.mu.Lock()
	defer pio.mu.Unlock()
	if pio.ended {
		return
	}
	pio.ended = true
	pio.inStream.close()
	if pio.term != nil {
		pio.term.exited()
		return // its output has yet to pass
	}
	pio.stdin.close()
	for _, out := range pio.outs {
		out.release()
	}
	for _, out := range pio.outStreams {
		out.exited()
	}
}

// drain waits until the output that passes through here has been written: a terminal's, and what goes to streams.
func (pio *processIO) drain(limit time.Duration) bool {
	if pio == nil {
		return true
	}
	end := time.Now().Add(limit)
	return pio.drainTerminal(limit) && pio.drainStreams(time.Until(end))
}

func (pio *processIO) drainStreams(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, out := range pio.outStreams {
		if !out.streams.has(out.id) && !out.ending.Load() {
			continue // what is left is kept until close, for a client that comes again
		}
		select {
		case <-out.drained:
		case <-timer.C:
			return false
		}
	}
	return true
}

func (pio *processIO) drainTerminal(limit time.Duration) bool {
	if pio.term == nil {
		return true
	}
	if !pio.term.drain(limit) {
		return false
	}
	pio.mu.Lock()
	defer pio.mu.Unlock()
	for _, out := range pio.outs {
		out.release()
	}
	return true
}

func (pio *processIO) closeStdin() {
	if pio == nil {
		return
	}
	pio.stdin.close()
	pio.inStream.closeIO()
}

// close ends everything.
func (pio *processIO) close() {
	if pio == nil {
		return
	}
	pio.mu.Lock()
	if pio.closed {
		pio.mu.Unlock()
		return
	}
	pio.closed = true
	pio.mu.Unlock()
	pio.stdin.close()
	pio.inStream.close()
	if pio.term != nil {
		pio.term.close()
	}
	for _, f := range []*os.File{pio.input, pio.sink} {
		if f != nil {
			f.Close()
		}
	}
	for _, out := range pio.outs {
		out.close()
	}
	for _, out := range pio.outStreams {
		out.close()
	}
	if pio.logger != nil {
		pio.logger.stop()
	}
}
