package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

const (
	// loggerStart is how long a logger may take to say that it is ready.
	loggerStart = 12 * time.Second
	// A logger sees the end of its input when the container ends. It has loggerFinish to
	// finish by itself, and loggerStop after SIGTERM.
	loggerFinish = 2 * time.Second
	loggerStop   = 10 * time.Second
)

// A logger is a program that takes a container's output: stdout on descriptor 3, stderr on 4; it
// closes 5 when it is ready.
type logger struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (pio *processIO) startLogger(ctx context.Context, u *url.URL, paths stdioPaths, opts ioOptions) (err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	pipe := func() (r, w *os.File, err error) {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return nil, nil, fmt.Errorf("pipe: %w", err)
		}
		return os.NewFile(uintptr(fds[0]), "logger"), os.NewFile(uintptr(fds[1]), "logger"), nil
	}
	outR, outW, err := pipe()
	if err != nil {
		return err
	}
	files = append(files, outR)
	if paths.Terminal {
		pio.sink = outW
	} else {
		pio.stdio.Stdout = outW
		if err := chown(outW, opts); err != nil {
			return err
		}
	}
	errR, errW, err := pipe()
	if err != nil {
		return err
	}
	files = append(files, errR)
	if paths.Terminal {
		errW.Close() // a terminal has one stream; the logger sees the end of the other at once
	} else {
		pio.stdio.Stderr = errW
		if err := chown(errW, opts); err != nil {
			return err
		}
	}
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return err
	}
	files = append(files, readyR)

	cmd := exec.Command(u.Path, loggerArgs(u.RawQuery)...)
	cmd.Env = []string{"CONTAINER_ID=" + opts.id, "CONTAINER_NAMESPACE=" + opts.namespace}
	cmd.ExtraFiles = []*os.File{outR, errR, readyW}
	err = cmd.Start()
	readyW.Close()
	if err != nil {
		return fmt.Errorf("start logger: %w", err)
	}
	pio.logger = &logger{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(pio.logger.done)
		if err := cmd.Wait(); err != nil {
			log.L.WithError(err).Debugf("logger %s", u.Path)
		}
	}()

	limit := time.Now().Add(loggerStart)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	readyR.SetReadDeadline(limit)
	defer context.AfterFunc(ctx, func() { readyR.SetReadDeadline(time.Unix(1, 0)) })()
	n, err := readyR.Read(make([]byte, 1))
	switch {
	case err == nil:
	case !errors.Is(err, io.EOF):
		pio.logger.kill()
		return fmt.Errorf("logger %s did not get ready: %w", u.Path, err)
	case n == 0 && u.Scheme == "binary-v2":
		// The first version's loggers only close the descriptor, as a crash would.
		pio.logger.kill()
		return fmt.Errorf("logger %s ended before it was ready", u.Path)
	}
	return nil
}

// loggerArgs are the query's keys and values, in its order.
func loggerArgs(query string) []string {
	var args []string
	seen := make(map[string]bool)
	for _, pair := range strings.Split(query, "&") {
		if pair == "" {
			continue
		}
		key, value, _ := strings.Cut(pair, "=")
		key, kerr := url.QueryUnescape(key)
		value, verr := url.QueryUnescape(value)
		if kerr != nil || verr != nil || seen[key] {
			continue
		}
		seen[key] = true
		args = append(args, key, value)
	}
	return args
}

func (l *logger) kill() {
	l.cmd.Process.Kill()
	<-l.done
}

// stop ends a logger whose container has ended.
func (l *logger) stop() {
	if l.waitFor(loggerFinish) {
		return
	}
	l.cmd.Process.Signal(unix.SIGTERM)
	if l.waitFor(loggerStop) {
		return
	}
	log.L.Warnf("logger %s does not end, killing it", l.cmd.Path)
	l.kill()
}

func (l *logger) waitFor(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-l.done:
		return true
	case <-timer.C:
		return false
	}
}
