// Package spans tests that a container's set-up is a part of the trace in which somebody has asked containerd for it.
package spans

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/rsys-io/rsys/integration/harness"
)

const ours = "github.com/rsys-io/rsys" // the scope of the shim's spans

// received is what has been sent to our collector.
var received struct {
	sync.Mutex
	spans   map[string]*otlp.Span // by ID
	ours    []*otlp.Span
	wrong   []string
	service string // of ours
}

func collect(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	req := new(otlp.TracesData) // which an ExportTraceServiceRequest has the fields of
	if err == nil {
		err = proto.Unmarshal(body, req)
	}
	received.Lock()
	defer received.Unlock()
	if err != nil || r.URL.Path != "/v1/traces" || len(req.ProtoReflect().GetUnknown()) > 0 {
		received.wrong = append(received.wrong, fmt.Sprint(r.URL, err))
		return
	}
	for _, rs := range req.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				received.spans[hex.EncodeToString(s.SpanId)] = s
				if ss.Scope.GetName() == ours {
					received.ours = append(received.ours, s)
					for _, a := range rs.Resource.Attributes {
						if a.Key == "service.name" {
							received.service = a.Value.GetStringValue()
						}
					}
				}
			}
		}
	}
}

var daemon *harness.Daemon

func TestMain(m *testing.M) {
	harness.Isolate()
	received.spans = map[string]*otlp.Span{}
	server := httptest.NewServer(http.HandlerFunc(collect))
	cfg, err := harness.FromEnv()
	if err == nil {
		cfg.Spans = server.URL
		daemon, err = harness.Start(cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "spans:", err)
		os.Exit(1)
	}
	code := m.Run()
	daemon.Stop()
	os.Exit(code)
}

// span waits for a request's span that is not there yet, and for its caller's.
func span(e *harness.Env, method string, seen int) (s, parent *otlp.Span) {
	e.Helper()
	e.Eventually("there is a span of "+method, func() bool {
		received.Lock()
		defer received.Unlock()
		n := 0
		for _, o := range received.ours {
			if strings.HasSuffix(o.Name, "Task/"+method) {
				if n++; n > seen {
					s, parent = o, received.spans[hex.EncodeToString(o.ParentSpanId)]
				}
			}
		}
		return s != nil && parent != nil
	})
	return s, parent
}

// below are the spans of a request's steps, by name.
func below(s *otlp.Span) map[string]*otlp.Span {
	received.Lock()
	defer received.Unlock()
	found := map[string]*otlp.Span{}
	for _, o := range received.ours {
		if string(o.ParentSpanId) == string(s.SpanId) {
			found[o.Name] = o
		}
	}
	return found
}

func attribute(s *otlp.Span, key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return fmt.Sprint(a.Value.GetStringValue(), a.Value.GetIntValue())
		}
	}
	return ""
}

func TestAContainersSetUpIsPartOfItsCreatorsTrace(t *testing.T) {
	e := harness.New(t, daemon)
	c := e.Container(harness.Sleep()).Run()
	create, parent := span(e, "Create", 0)
	if create.Kind != otlp.Span_SPAN_KIND_SERVER || string(create.TraceId) != string(parent.TraceId) {
		t.Errorf("the span is %v below %v", create, parent)
	}
	if create.StartTimeUnixNano < parent.StartTimeUnixNano || create.EndTimeUnixNano > parent.EndTimeUnixNano || create.EndTimeUnixNano <= create.StartTimeUnixNano {
		t.Errorf("it is from %d to %d, its caller's from %d to %d", create.StartTimeUnixNano, create.EndTimeUnixNano, parent.StartTimeUnixNano, parent.EndTimeUnixNano)
	}
	if got := attribute(create, "rpc.method"); got != "Create0" {
		t.Errorf("rpc.method is %q", got)
	}
	steps := below(create)
	for name, about := range map[string]string{"linux.cgroupsPath": "", "linux.namespaces": "", "mounts[0]": "/proc0", "root.path": ""} {
		s := steps[name]
		if s == nil {
			t.Errorf("there is no span of %s", name)
			continue
		}
		if about != "" && attribute(s, "rsys.about") != about {
			t.Errorf("%s is about %q", name, attribute(s, "rsys.about"))
		}
		const clocks = 1e6 // of two counters, compared
		if s.StartTimeUnixNano+clocks < create.StartTimeUnixNano || s.EndTimeUnixNano > create.EndTimeUnixNano+clocks || s.EndTimeUnixNano < s.StartTimeUnixNano {
			t.Errorf("%s is from %d to %d, the request from %d to %d", name, s.StartTimeUnixNano, s.EndTimeUnixNano, create.StartTimeUnixNano, create.EndTimeUnixNano)
		}
	}
	start, _ := span(e, "Start", 0)
	if steps := below(start); steps["process.capabilities"] == nil {
		t.Errorf("the start has no capabilities: %v", steps)
	}
	c.RunExec("true")
	exec, _ := span(e, "Start", 1)
	if steps := below(exec); steps["process.capabilities"] == nil {
		t.Errorf("the exec has no capabilities: %v", steps)
	}
	c.Kill(syscall.SIGKILL)
	c.Wait()
	c.Delete()
	received.Lock()
	defer received.Unlock()
	if len(received.wrong) > 0 || received.service == "" {
		t.Errorf("wrong: %v; the service is %q", received.wrong, received.service)
	}
}

func TestAFailedCreateIsAnErrorInTheTrace(t *testing.T) {
	e := harness.New(t, daemon)
	received.Lock()
	seen := 0
	for _, o := range received.ours {
		if strings.HasSuffix(o.Name, "Task/Create") {
			seen++
		}
	}
	received.Unlock()
	c := e.Container([]string{"true"}, oci.WithMounts([]specs.Mount{{Source: "/no/such/source", Destination: "/data", Type: "bind", Options: []string{"rbind"}}}))
	if err := c.TryCreate(); err == nil {
		t.Fatal("there is no such source")
	}
	create, _ := span(e, "Create", seen)
	if s := create.Status; s.GetCode() != otlp.Status_STATUS_CODE_ERROR || !strings.Contains(s.GetMessage(), "(/data): open_tree: ENOENT") {
		t.Errorf("the status is %v", s)
	}
	var failed []string
	for name, s := range below(create) {
		if s.Status.GetCode() == otlp.Status_STATUS_CODE_ERROR {
			failed = append(failed, name+" "+attribute(s, "rsys.about")+" "+s.Status.Message)
		}
	}
	if len(failed) != 1 || !slices.ContainsFunc(failed, func(s string) bool { return strings.HasSuffix(s, "/data0 open_tree: ENOENT") }) {
		t.Errorf("the steps that failed are %v", failed)
	}
}
