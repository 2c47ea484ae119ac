package shim

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestTheDebugServerSpeaksHTTP(t *testing.T) {
	for request, want := range map[string]struct {
		status int
		body   string
	}{
		"GET /debug/pprof/ HTTP/1.1\r\nHost: x\r\n\r\n":                            {200, "goroutine"},
		"GET /debug/pprof/goroutine?debug=2 HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n":   {200, "shim.answerDebug"},
		"GET /debug/pprof/profile?seconds=0.1 HTTP/1.0\r\n\r\n":                    {200, "\x1f\x8b"},
		"GET /debug/pprof/nothing HTTP/1.1\r\n\r\n":                                {404, "no profile"},
		"GET / HTTP/1.1\r\n\r\n":                                                   {404, "/debug/pprof/"},
		"POST /debug/pprof/ HTTP/1.1\r\n\r\n":                                      {400, "GET"},
		"GET nowhere HTTP/1.1\r\n\r\n":                                             {400, "invalid"},
		"rubbish\r\n\r\n":                                                          {400, "GET"},
		"GET /debug/pprof/cmdline HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 5000): {0, ""}, // more than is read: hung up on
	} {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			answerDebug(theirs)
		}()
		ours.SetDeadline(time.Now().Add(20 * time.Second))
		go io.WriteString(ours, request)
		resp, err := http.ReadResponse(bufio.NewReader(ours), nil)
		if want.status == 0 {
			if err == nil {
				t.Errorf("%.40q is answered", request)
			}
			ours.Close()
			continue
		}
		if err != nil {
			t.Errorf("%.60q: %v", request, err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if resp.StatusCode != want.status || err != nil || !strings.Contains(string(body), want.body) {
			t.Errorf("%.60q: %d, %v: %.200q", request, resp.StatusCode, err, body)
		}
		ours.Close()
	}
}
