package shim

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

func TestATraceParentIsReadAsW3CHasIt(t *testing.T) {
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for s, ok := range map[string]bool{
		"00-" + trace + "-" + span + "-01":                    true,
		"00-" + trace + "-" + span + "-03":                    true,
		"00-" + trace + "-" + span + "-00":                    false, // not recorded
		"01-" + trace + "-" + span + "-01-more":               true,
		"00-" + trace + "-" + span + "-01-more":               false,
		"01-" + trace + "-" + span + "-01x":                   false,
		"ff-" + trace + "-" + span + "-01":                    false,
		"00-" + strings.ToUpper(trace) + "-" + span + "-01":   false,
		"00-" + strings.Repeat("0", 32) + "-" + span + "-01":  false,
		"00-" + trace + "-" + strings.Repeat("0", 16) + "-01": false,
		"00-" + trace + "-" + span:                            false,
		"":                                                    false, "x": false,
	} {
		var p traceParent
		if got := p.parse(s); got != ok {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestSpansAreExportedAsTheEnvironmentSays(t *testing.T) {
	for name, test := range map[string]struct {
		env  map[string]string
		want string // the address and path, or a part of the error
	}{
		"nothing":            {nil, ""},
		"an endpoint":        {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, "h:4318/v1/traces"},
		"one with a path":    {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318/x/"}, "h:4318/x/v1/traces"},
		"one for traces":     {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h/t", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://no"}, "h:80/t"},
		"switched off":       {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318", "OTEL_SDK_DISABLED": "true"}, ""},
		"TLS":                {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://h:4318"}, "TLS"},
		"another protocol":   {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "PROTOCOL"},
		"another exporter":   {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317", "OTEL_TRACES_EXPORTER": "zipkin"}, "EXPORTER"},
		"a header of others": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317", "OTEL_EXPORTER_OTLP_HEADERS": "a=b%0d%0ac"}, "HEADERS"},
	} {
		e, err := newSpanExporter(func(k string) string { return test.env[k] })
		switch {
		case err != nil:
			if test.want == "" || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v", name, err)
			}
		case e == nil:
			if test.want != "" {
				t.Errorf("%s: no exporter", name)
			}
		case e.address+e.path != test.want:
			t.Errorf("%s: %s%s", name, e.address, e.path)
		}
	}
}

func TestARequestOfATraceHasASpan(t *testing.T) {
	got := make(chan *http.Request, 4)
	bodies := make(chan int, 4)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- len(body)
		got <- r
	}))
	defer collector.Close()
	env := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL, "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20x,b=c"}
	e, err := newSpanExporter(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	call := traceRequests(e)
	method := func(context.Context, func(any) error) (any, error) { return proto.Message(empty), nil }
	info := &ttrpc.UnaryServerInfo{FullMethod: "/containerd.task.v3.Task/State"}
	// One that belongs to none, and one that does.
	call(context.Background(), nil, info, method)
	md := ttrpc.MD{}
	md.Set("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	call(ttrpc.WithMetadata(context.Background(), md), nil, info, method)
	e.flush(10 * time.Second)
	select {
	case r := <-got:
		if r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" || r.Header.Get("Authorization") != "Bearer x" || r.Header.Get("b") != "c" {
			t.Errorf("%s, %v", r.URL, r.Header)
		}
		if n := <-bodies; n < 100 {
			t.Errorf("%d bytes", n)
		}
	default:
		t.Fatal("nothing came")
	}
	if len(got) > 0 {
		t.Error("there is more")
	}
	// Nobody there: no harm.
	collector.Close()
	call(ttrpc.WithMetadata(context.Background(), md), nil, info, method)
	e.flush(10 * time.Second)
}
