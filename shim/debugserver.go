package shim

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"runtime"
	"runtime/pprof"
	execution "runtime/trace"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
)

// debugFD is where the start verb puts the debug socket, if there is one.
const debugFD = 4

const (
	requestTime = 5 * time.Second
	// profileMost bounds what seconds= may ask for.
	profileMost = 5 * time.Minute
)

// serveDebug answers what net/http/pprof does, on a socket that only this user may connect to: `ctr shim --id ID pprof`, or curl
// --unix-socket. Package net/http would be three megabytes of the binary and a tenth of its start, for a server of
// one kind of request: docs/decisions/seeing.md.
func serveDebug(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			answerDebug(conn)
		}()
	}
}

func answerDebug(conn net.Conn) {
	conn.SetDeadline(time.Now().Add(requestTime))
	r := bufio.NewReader(io.LimitReader(conn, 16<<10))
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	for {
		h, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if strings.TrimSpace(h) == "" {
			break
		}
	}
	f := strings.Fields(line)
	if len(f) != 3 || f[0] != "GET" || !strings.HasPrefix(f[2], "HTTP/1.") {
		respond(conn, "400 Bad Request", "text/plain", strings.NewReader("GET is what this server knows\n"))
		return
	}
	u, err := url.ParseRequestURI(f[1])
	if err != nil {
		respond(conn, "400 Bad Request", "text/plain", strings.NewReader(err.Error()+"\n"))
		return
	}
	name, ok := strings.CutPrefix(u.Path, "/debug/pprof/")
	if !ok {
		respond(conn, "404 Not Found", "text/plain", strings.NewReader("try /debug/pprof/\n"))
		return
	}
	debug, _ := strconv.Atoi(u.Query().Get("debug"))
	profile(conn, name, debug, seconds(u.Query().Get("seconds"), name))
}

// seconds is how long a profile is to take; ctr says it as a duration, others as a number.
func seconds(s, name string) time.Duration {
	d, err := time.ParseDuration(s)
	if n, ferr := strconv.ParseFloat(s, 64); ferr == nil {
		d, err = time.Duration(n*float64(time.Second)), nil
	}
	if err != nil || d <= 0 {
		d = 30 * time.Second
		if name == "trace" {
			d = time.Second
		}
	}
	return min(d, profileMost)
}

func profile(conn net.Conn, name string, debug int, d time.Duration) {
	start, stop := pprof.StartCPUProfile, pprof.StopCPUProfile
	switch name {
	case "":
		var list strings.Builder
		for _, p := range pprof.Profiles() {
			fmt.Fprintf(&list, "%d\t%s\n", p.Count(), p.Name())
		}
		list.WriteString("\tcmdline\n\tprofile?seconds=30\n\ttrace?seconds=1\n")
		respond(conn, "200 OK", "text/plain; charset=utf-8", strings.NewReader(list.String()))
		return
	case "cmdline":
		respond(conn, "200 OK", "text/plain; charset=utf-8", strings.NewReader(strings.Join(os.Args, "\x00")))
		return
	case "trace":
		start, stop = execution.Start, execution.Stop
	case "profile":
	default:
		p := pprof.Lookup(name)
		if p == nil {
			respond(conn, "404 Not Found", "text/plain", strings.NewReader("no profile of this name\n"))
			return
		}
		if name == "heap" {
			runtime.GC() // as with net/http/pprof's gc=1: what lives, not what lived at the last collection
		}
		kind := "application/octet-stream"
		if debug > 0 {
			kind = "text/plain; charset=utf-8"
		}
		respond(conn, "200 OK", kind, nil)
		p.WriteTo(conn, debug)
		return
	}
	conn.SetDeadline(time.Now().Add(d + requestTime))
	var out strings.Builder
	if err := start(&out); err != nil {
		respond(conn, "500 Internal Server Error", "text/plain", strings.NewReader(err.Error()+"\n"))
		return
	}
	// Whoever hangs up ends it.
	conn.SetReadDeadline(time.Now().Add(d))
	conn.Read(make([]byte, 1))
	stop()
	respond(conn, "200 OK", "application/octet-stream", strings.NewReader(out.String()))
}

// respond writes a response, whose body ends with the connection. Without a body the caller writes it.
func respond(conn net.Conn, status, kind string, body *strings.Reader) {
	length := ""
	if body != nil {
		length = fmt.Sprintf("Content-Length: %d\r\n", body.Len())
	}
	fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Type: %s\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n%s\r\n", status, kind, length)
	if body != nil {
		io.Copy(conn, body)
	}
}

// debugListener takes over the start verb's debug socket; nil if there is none.
func debugListener(path string) *net.UnixListener {
	if path == "" {
		return nil
	}
	l, err := listenerOf(debugFD)
	if err != nil {
		log.L.WithError(err).Warn("no debug socket")
		return nil
	}
	return l
}

// pipeBuf is PIPE_BUF.
const pipeBuf = 4096

// dumpStacks writes the stacks of all goroutines to the log.
func dumpStacks() {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	// Not as one line of the log: a pipe takes no more than 4096 bytes at once for sure, and what it does not take is lost.
	log.L.Warnf("the stacks of all %d goroutines follow", runtime.NumGoroutine())
	for part := range slices.Chunk(buf, pipeBuf) {
		patientLog(2).Write(part)
	}
	log.L.Warn("the stacks end here")
}
