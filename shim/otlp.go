package shim

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	"google.golang.org/protobuf/encoding/protowire"
)

// A spanExporter sends spans to a collector, by OTLP over HTTP in protobuf. It is configured by the variables that
// containerd's is, which a shim inherits: https://opentelemetry.io/docs/specs/otel/protocol/exporter/. Without an endpoint there
// is none. Spans that can't be sent are dropped.
type spanExporter struct {
	address, host, path string
	headers             string
	resource            []attribute

	once  sync.Once
	queue chan []span
	idle  sync.WaitGroup
}

const (
	exportQueue = 256 // requests' spans
	exportTime  = 10 * time.Second
)

// newSpanExporter is nil, with an error or without, if there is nothing to send to.
func newSpanExporter(getenv func(string) string) (*spanExporter, error) {
	of := func(names ...string) string {
		for _, n := range names {
			if v := getenv("OTEL_" + n); v != "" {
				return v
			}
		}
		return ""
	}
	if off, _ := strconv.ParseBool(of("SDK_DISABLED")); off {
		return nil, nil
	}
	endpoint := of("EXPORTER_OTLP_TRACES_ENDPOINT")
	if endpoint == "" {
		if endpoint = of("EXPORTER_OTLP_ENDPOINT"); endpoint == "" {
			return nil, nil
		}
		endpoint = strings.TrimSuffix(endpoint, "/") + "/v1/traces"
	}
	if e := of("TRACES_EXPORTER"); e != "" && e != "otlp" {
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER: %q is not otlp", e)
	}
	if p := of("EXPORTER_OTLP_TRACES_PROTOCOL", "EXPORTER_OTLP_PROTOCOL"); p != "" && p != "http/protobuf" {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL: %q is not http/protobuf", p)
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %q is not http://HOST:PORT; this shim speaks no TLS", endpoint)
	}
	e := &spanExporter{host: u.Host, address: u.Host, path: u.RequestURI(), queue: make(chan []span, exportQueue)}
	if u.Port() == "" {
		e.address = net.JoinHostPort(u.Hostname(), "80")
	}
	for _, h := range pairs(of("EXPORTER_OTLP_TRACES_HEADERS", "EXPORTER_OTLP_HEADERS")) {
		if strings.ContainsAny(h.key+h.value.(string), "\r\n") {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_HEADERS: %q has a line's end", h.key)
		}
		e.headers += h.key + ": " + h.value.(string) + "\r\n"
	}
	e.resource = pairs(of("RESOURCE_ATTRIBUTES"))
	name := of("SERVICE_NAME")
	if name == "" {
		name = "containerd-shim-rsys-v1"
	}
	e.resource = append(e.resource, attribute{"service.name", name})
	return e, nil
}

// pairs reads a list of key=value, with percent encoding.
func pairs(s string) (list []attribute) {
	for p := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(p, "=")
		if !ok {
			continue
		}
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if err == nil {
			list = append(list, attribute{strings.TrimSpace(key), value})
		}
	}
	return list
}

// send has spans sent, in a while. The first ones start what does it.
func (e *spanExporter) send(spans []span) {
	e.once.Do(func() { go e.run() })
	e.idle.Add(1)
	select {
	case e.queue <- spans:
	default:
		e.idle.Done()
	}
}

// flush waits until all is sent, but not for longer than limit.
func (e *spanExporter) flush(limit time.Duration) {
	done := make(chan struct{})
	go func() {
		e.idle.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}

func (e *spanExporter) run() {
	failed := false
	for spans := range e.queue {
		n := 1
		for len(e.queue) > 0 && len(spans) < 2048 {
			spans = append(spans, <-e.queue...)
			n++
		}
		ctx, cancel := context.WithTimeout(context.Background(), exportTime)
		err := e.post(ctx, e.request(spans))
		cancel()
		if err != nil && !failed { // not each time again
			log.L.WithError(err).Warnf("export spans to %s", e.address)
		}
		failed = err != nil
		e.idle.Add(-n)
	}
}

// post makes a POST and reads its status.
func (e *spanExporter) post(ctx context.Context, body []byte) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", e.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: containerd-shim-rsys-v1\r\nContent-Type: application/x-protobuf\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n",
		e.path, e.host, len(body), e.headers)
	b.Write(body)
	if _, err := conn.Write(b.Bytes()); err != nil {
		return err
	}
	line, err := bufio.NewReaderSize(conn, 512).ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read the response: %w", err)
	}
	if f := strings.Fields(string(line)); len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/1.") || !strings.HasPrefix(f[1], "2") {
		return fmt.Errorf("the response is %q", line)
	}
	return nil
}

// request is an ExportTraceServiceRequest of opentelemetry.proto.collector.trace.v1.
func (e *spanExporter) request(spans []span) []byte {
	var scoped []byte
	scoped = message(scoped, 1, text(nil, 1, "github.com/rsys-io/rsys"))
	for i := range spans {
		scoped = message(scoped, 2, spans[i].encode())
	}
	var of []byte
	of = message(of, 1, attributes(nil, 1, e.resource))
	of = message(of, 2, scoped)
	return message(nil, 1, of)
}

// encode is a Span of opentelemetry.proto.trace.v1.
func (s *span) encode() (b []byte) {
	const kindInternal, kindServer, statusError = 1, 2, 2
	b = message(b, 1, s.trace[:])
	b = message(b, 2, s.id[:])
	if s.state != "" {
		b = text(b, 3, s.state)
	}
	b = message(b, 4, s.parent[:])
	b = text(b, 5, s.name)
	kind := uint64(kindInternal)
	if s.server {
		kind = kindServer
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, 6, protowire.VarintType), kind)
	b = protowire.AppendFixed64(protowire.AppendTag(b, 7, protowire.Fixed64Type), uint64(s.start.UnixNano()))
	b = protowire.AppendFixed64(protowire.AppendTag(b, 8, protowire.Fixed64Type), uint64(s.end.UnixNano()))
	b = attributes(b, 9, s.attributes)
	if s.failed != "" {
		status := text(nil, 2, s.failed)
		status = protowire.AppendVarint(protowire.AppendTag(status, 3, protowire.VarintType), statusError)
		b = message(b, 15, status)
	}
	return b
}

// attributes are KeyValues of opentelemetry.proto.common.v1.
func attributes(b []byte, field protowire.Number, list []attribute) []byte {
	for _, a := range list {
		var value []byte
		switch v := a.value.(type) {
		case string:
			value = text(nil, 1, v)
		case int:
			value = protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), uint64(v))
		}
		b = message(b, field, message(text(nil, 1, a.key), 2, value))
	}
	return b
}

func message(b []byte, field protowire.Number, data []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), data)
}

// text is a string, which protobuf has in UTF-8.
func text(b []byte, field protowire.Number, s string) []byte {
	return message(b, field, []byte(strings.ToValidUTF8(s, "?")))
}
