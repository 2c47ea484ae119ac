package cri

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/rsys-io/rsys/integration/harness"
)

// serve runs a server in the pod, and gives the URL by which its port is forwarded.
func serve(p *harness.Pod) string {
	p.Helper()
	c := p.Container(server(8000)...)
	// A connection that is refused ends a forwarding.
	p.Eventually("the server listens", func() bool {
		got, err := c.Exec(10*time.Second, "nc", "-w", "2", "127.0.0.1", "8000")
		return err == nil && got.Code == 0
	})
	resp, err := p.CRI.PortForward(p.Ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{8000}})
	p.Must(err, "port forward")
	return resp.Url
}

func TestAPortIsForwarded(t *testing.T) {
	p := start(t).Run()
	at, err := url.Parse(serve(p))
	p.Must(err, "URL")
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	p.Must(err, "transport")
	stop, ready := make(chan struct{}), make(chan struct{})
	var out, errs harness.Buffer
	forward, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, at),
		[]string{"127.0.0.1"}, []string{"0:8000"}, stop, ready, &out, &errs)
	p.Must(err, "forward")
	ended := make(chan error, 1)
	go func() { ended <- forward.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("the forwarding ended: %v", err)
	case <-time.After(harness.Patience):
		t.Fatal("the forwarding is not ready")
	}
	ports, err := forward.GetPorts()
	p.Must(err, "ports")
	for range 3 {
		p.Eventually("the forwarded port answers", func() bool { return ask(int(ports[0].Local)) == p.Config.Hostname+"\n" })
	}
	close(stop)
	<-ended
}

// A port has two channels, for what it says and for errors; each begins with its number. kubectl's own way, SPDY in a websocket, ends at the API server.
func TestAPortIsForwardedByWebsocket(t *testing.T) {
	p := start(t).Run()
	at, err := url.Parse(serve(p))
	p.Must(err, "URL")
	at.Scheme = "ws"
	dialer := websocket.Dialer{Subprotocols: []string{websocketProtocol}, HandshakeTimeout: harness.Patience}
	conn, _, err := dialer.DialContext(p.Ctx, at.String(), nil)
	p.Must(err, "dial")
	defer conn.Close()
	p.Must(conn.SetReadDeadline(time.Now().Add(harness.Patience)), "deadline")
	channels := [2]string{}
	want := "\x40\x1f" + p.Config.Hostname + "\n" // 8000
	for channels[0] != want || channels[1] != want[:2] {
		_, msg, err := conn.ReadMessage()
		if err != nil || len(msg) == 0 || int(msg[0]) >= len(channels) {
			t.Fatalf("message %q, %v; so far %q", msg, err, channels)
		}
		channels[msg[0]] += string(msg[1:])
	}
}
