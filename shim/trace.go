package shim

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/container"
	"github.com/rsys-io/rsys/rsys"
)

// Traces are made at the log level debug, and none at any other: every remote call is a line of the log, and the set-up of each
// container is a file in its bundle. That of the last one is kept beside, for a container that is gone with its bundle.

const (
	traceFile = "rsys-trace.json"
	// lastTrace is the one file of its kind, whatever the number of containers.
	lastTrace = "/run/rsys/trace.json"
)

// A trace is the set-up of a container: what its create and its start have done.
type trace struct {
	Namespace string      `json:"namespace"`
	ID        string      `json:"id"`
	Bundle    string      `json:"bundle"`
	ShimPid   int         `json:"shimPid"`
	Steps     []traceStep `json:"steps"`
}

type traceStep struct {
	Index  int     `json:"index"` // in the Plan
	Phase  string  `json:"phase"`
	Who    string  `json:"who"`
	Pid    int     `json:"pid,omitempty"` // not of the shim's steps
	Name   string  `json:"name"`
	Call   string  `json:"call"`
	Why    string  `json:"why,omitempty"`
	About  string  `json:"about,omitempty"`
	Result string  `json:"result"`
	Failed bool    `json:"failed,omitempty"`
	At     float64 `json:"at"` // microseconds since the Unix epoch
	Micros float64 `json:"us"`
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// toFile says that traces are to be kept.
var toFile = func() bool { return log.GetLevel() >= log.DebugLevel }

// recorded has what is done with ctx recorded, if anybody wants to know.
func (s *service) recorded(ctx context.Context) (context.Context, *container.Recorder) {
	if !toFile() {
		return ctx, nil
	}
	if r := container.RecorderOf(ctx); r != nil {
		return ctx, r
	}
	r := container.NewRecorder()
	return container.WithRecorder(ctx, r), r
}

// keepTrace adds what was recorded to a container's trace.
func (s *service) keepTrace(id, bundle string, before []traceStep, r *container.Recorder) []traceStep {
	if r == nil {
		return nil
	}
	t := trace{Namespace: s.namespace, ID: id, Bundle: bundle, ShimPid: os.Getpid(), Steps: before}
	for _, st := range r.Steps() {
		t.Steps = append(t.Steps, traceStep{
			Index: st.Index, Phase: st.Phase, Who: st.Who, Pid: st.Pid, Name: st.Name, Call: st.Call, Why: st.Why, About: st.About,
			Result: st.Result, Failed: st.Failed, At: float64(st.Start.UnixNano()) / 1000, Micros: micros(st.End.Sub(st.Start)),
		})
	}
	data, err := json.Marshal(&t)
	if err == nil {
		err = replaceFile(filepath.Join(bundle, traceFile), data)
	}
	if err == nil {
		if err = os.MkdirAll(filepath.Dir(lastTrace), 0o700); err == nil {
			err = replaceFile(lastTrace, data)
		}
	}
	if err != nil {
		log.L.WithError(err).Warn("keep the trace of a container")
	}
	return t.Steps
}

// replaceFile writes a file that is there whole or not at all. Arguments of a container are nobody's business.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// logCalls has every remote call logged.
func logCalls() {
	clock := rsys.NewClock()
	var number atomic.Uint64
	rsys.Trace(func(calls []rsys.Traced) {
		ticks := make([]uint64, 0, 2*len(calls))
		for i := range calls {
			ticks = append(ticks, calls[i].Start, calls[i].Result.Ticks)
		}
		times := clock.Times(ticks...)
		for i := range calls {
			c := &calls[i]
			log.L.WithFields(log.Fields{
				"number": number.Add(1), "nr": c.Call.Nr, "task": c.Pid, "call": container.Readable(c.Call).String(),
				"result": container.Outcome(c.Result), "us": micros(max(0, times[2*i+1]-times[2*i])),
			}).Debug("remote call")
		}
	})
}

// A patientLog is the log's fifo at the level debug, where a set-up has more lines than a pipe takes. It waits for
// containerd to take them, but not for ever.
type patientLog int

const (
	logPipe = 1 << 20 // bytes; the most that a pipe of root's has by default
	logWait = 500     // milliseconds
)

func (l patientLog) Write(p []byte) (n int, err error) {
	for n < len(p) {
		m, err := unix.Write(int(l), p[n:])
		switch {
		case err == nil:
			n += m
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(l), Events: unix.POLLOUT}}, logWait)
			if ready == 0 && err == nil {
				return n, errors.New("nobody reads the log")
			}
		default:
			return n, err
		}
	}
	return n, nil
}
