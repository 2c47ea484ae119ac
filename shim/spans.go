package shim

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/rsys-io/rsys/container"
)

// A span is one of OpenTelemetry's.
type span struct {
	trace      [16]byte
	id, parent [8]byte
	state      string // W3C's tracestate, handed on
	name       string
	server     bool // a request's; else something within
	start, end time.Time
	attributes []attribute
	failed     string // the error
}

type attribute struct {
	key   string
	value any // string or int
}

// traceParent is a caller's span, of W3C's Trace Context.
type traceParent struct {
	trace [16]byte
	span  [8]byte
	state string
}

// parentOf is the span that a request belongs to, which containerd's client hands over in the metadata; false if there is none or
// it is not recorded.
func parentOf(ctx context.Context) (p traceParent, ok bool) {
	md, ok := ttrpc.GetMetadata(ctx)
	if !ok {
		return p, false
	}
	values, ok := md.Get("traceparent")
	if !ok || len(values) != 1 || !p.parse(values[0]) {
		return p, false
	}
	if state, ok := md.Get("tracestate"); ok {
		p.state = strings.Join(state, ",")
	}
	return p, true
}

// parse reads version-trace-span-flags; versions to come may have more behind.
func (p *traceParent) parse(s string) bool {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" || s[:2] == "00" && len(s) != 55 || len(s) > 55 && s[55] != '-' {
		return false
	}
	var version, flags [1]byte
	for _, f := range []struct {
		to  []byte
		hex string
	}{{version[:], s[:2]}, {p.trace[:], s[3:35]}, {p.span[:], s[36:52]}, {flags[:], s[53:55]}} {
		if strings.ToLower(f.hex) != f.hex {
			return false
		}
		if _, err := hex.Decode(f.to, []byte(f.hex)); err != nil {
			return false
		}
	}
	const sampled = 1
	return p.trace != [16]byte{} && p.span != [8]byte{} && flags[0]&sampled != 0
}

func newSpanID() (id [8]byte) {
	for id == [8]byte{} {
		r := rand.Uint64()
		for i := range id {
			id[i] = byte(r >> (8 * i))
		}
	}
	return id
}

// traceRequests makes spans of the requests that belong to a trace: one for the request, as containerd's own shim does, and below it
// one for each field of the config that steps were done for.
func traceRequests(to *spanExporter) ttrpc.UnaryServerInterceptor {
	return func(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
		parent, ok := parentOf(ctx)
		if !ok {
			return method(ctx, unmarshal)
		}
		name := strings.TrimPrefix(info.FullMethod, "/")
		service, short, _ := strings.Cut(name, "/")
		s := span{
			trace: parent.trace, parent: parent.span, state: parent.state, id: newSpanID(), name: name, server: true, start: time.Now(),
			attributes: []attribute{{"rpc.system", "ttrpc"}, {"rpc.service", service}, {"rpc.method", short}},
		}
		rec := container.NewRecorder()
		resp, err := method(container.WithRecorder(ctx, rec), unmarshal)
		s.end = time.Now()
		if err != nil {
			s.failed = err.Error()
		}
		to.send(append([]span{s}, stepSpans(&s, rec.Steps())...))
		return resp, err
	}
}

// stepSpans are the spans of steps that stand together for one field.
func stepSpans(request *span, steps []container.Step) (spans []span) {
	for i := 0; i < len(steps); {
		first := &steps[i]
		s := span{trace: request.trace, parent: request.id, state: request.state, id: newSpanID(), name: first.Why, start: first.Start}
		n := i
		for ; n < len(steps) && steps[n].Why == first.Why && steps[n].About == first.About && steps[n].Who == first.Who; n++ {
			if st := &steps[n]; st.Failed {
				s.failed = st.Name + ": " + st.Result
			}
		}
		s.end = steps[n-1].End
		s.attributes = []attribute{{"rsys.step", first.Index}, {"rsys.steps", n - i}, {"rsys.who", first.Who}, {"rsys.phase", first.Phase}}
		if first.About != "" {
			s.attributes = append(s.attributes, attribute{"rsys.about", first.About})
		}
		spans = append(spans, s)
		i = n
	}
	return spans
}
