package upstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// probeOf makes the prober of a check of the only host at a URL.
func probeOf(t *testing.T, spec Spec, to string, h HealthCheck) prober {
	t.Helper()
	c, bad := compileHealthCheck(&h)
	if len(bad) > 0 {
		t.Fatal(bad[0])
	}
	spec.Cluster = "route-1"
	tg := target(t, spec, to)
	p := c.newProber(tg, tg.hosts.Load().hosts[0])
	t.Cleanup(p.close)
	return p
}

func ask(t *testing.T, p prober) verdict {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return p.probe(ctx)
}

func byHTTP(change func(*HTTPHealthCheck)) HealthCheck {
	return aCheck(func(h *HealthCheck) {
		if change != nil {
			change(h.HTTPHealthCheck)
		}
	})
}

func hexed(s string) Payload { return Payload{Text: hex.EncodeToString([]byte(s))} }

// Statuses and bodies decide; an unexpected status needs no threshold.
func TestHTTPCheckVerdicts(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var status int
		fmt.Sscan(r.URL.Query().Get("s"), &status)
		if status == 302 {
			w.Header().Set("Location", "/healthz?s=200")
		}
		w.WriteHeader(status)
		if r.Method != "HEAD" {
			io.WriteString(w, "PONG "+strings.Repeat("x", 2000)+" OK")
		}
	}))
	defer s.Close()
	statuses := func(from, to int64) []StatusRange { return []StatusRange{{from, to}} }
	for _, tc := range []struct {
		status int
		change func(*HTTPHealthCheck)
		want   string // verdict
	}{
		{200, nil, "good"},
		{201, nil, "at once: unexpected status 201"},
		{302, nil, "at once: unexpected status 302"},
		{500, nil, "at once: unexpected status 500"},
		{204, func(h *HTTPHealthCheck) { h.ExpectedStatuses = statuses(200, 204) }, "at once: unexpected status 204"},
		{203, func(h *HTTPHealthCheck) { h.ExpectedStatuses = statuses(200, 204) }, "good"},
		{200, func(h *HTTPHealthCheck) { h.ExpectedStatuses = statuses(201, 204) }, "at once: unexpected status 200"},
		{503, func(h *HTTPHealthCheck) { h.RetriableStatuses = statuses(500, 504) }, "bad: status 503"},
		{504, func(h *HTTPHealthCheck) { h.RetriableStatuses = statuses(500, 504) }, "at once: unexpected status 504"},
		{200, func(h *HTTPHealthCheck) { h.Method = "HEAD" }, "good"},
		{200, func(h *HTTPHealthCheck) { h.Receive = []Payload{hexed("PONG")} }, "good"},
		{200, func(h *HTTPHealthCheck) { h.Receive = []Payload{hexed("PING")} }, "bad: the answer does not hold what receive names"},
		{200, func(h *HTTPHealthCheck) { h.Receive = []Payload{hexed("P"), hexed("NG"), hexed("xx")} }, "good"},
		{200, func(h *HTTPHealthCheck) { h.Receive = []Payload{hexed("NG"), hexed("PO")} }, "bad: the answer does not hold what receive names"},
		{200, func(h *HTTPHealthCheck) { h.Receive = []Payload{hexed("OK")} }, "bad: the answer does not hold what receive names"},
		{200, func(h *HTTPHealthCheck) { h.Receive, h.ResponseBufferSize = []Payload{hexed("OK")}, ptr(uint64(4096)) }, "good"},
		{200, func(h *HTTPHealthCheck) { h.Receive, h.ResponseBufferSize = []Payload{hexed("OK")}, ptr(uint64(0)) }, "good"},
		{200, func(h *HTTPHealthCheck) { h.Receive = []Payload{{Binary: "UE9ORw=="}} }, "good"},
	} {
		p := probeOf(t, Spec{}, s.URL, byHTTP(func(h *HTTPHealthCheck) {
			h.Path = fmt.Sprintf("/healthz?s=%d", tc.status)
			if tc.change != nil {
				tc.change(h)
			}
		}))
		if got := say(ask(t, p)); got != tc.want {
			t.Errorf("%d: %s, want %s", tc.status, got, tc.want)
		}
	}
	s.Close()
	if v := ask(t, probeOf(t, Spec{}, s.URL, byHTTP(nil))); v.ok || v.atOnce || !strings.Contains(v.reason, "refused") {
		t.Errorf("nobody listens: %+v", v)
	}
}

func say(v verdict) string {
	switch {
	case v.ok:
		return "good"
	case v.atOnce:
		return "at once: " + v.reason
	}
	return "bad: " + v.reason
}

// What is sent: host, path, method, body, headers.
func TestHTTPCheckRequest(t *testing.T) {
	seen := make(chan string, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen <- fmt.Sprintf("%s %s %s %q agent=%q a=%q", r.Method, r.Host, r.RequestURI, b, r.UserAgent(), r.Header.Values("X-A"))
	}))
	defer s.Close()
	header := func(value, action string) any {
		return map[string]any{"header": map[string]any{"key": "X-A", "value": value}, "append_action": action}
	}
	for _, tc := range []struct {
		change func(*HTTPHealthCheck)
		want   string
	}{
		{nil, `GET route-1 /healthz "" agent="Postern/HealthCheck" a=[]`},
		{func(h *HTTPHealthCheck) { h.Host = "app.internal:8" }, `GET app.internal:8 /healthz "" agent="Postern/HealthCheck" a=[]`},
		{func(h *HTTPHealthCheck) { h.Path = "/a%20b?x=%2F&y" }, `GET route-1 /a%20b?x=%2F&y "" agent="Postern/HealthCheck" a=[]`},
		{func(h *HTTPHealthCheck) { h.Method, h.Send = "POST", &Payload{Text: "50696e67"} }, `POST route-1 /healthz "Ping" agent="Postern/HealthCheck" a=[]`},
		{func(h *HTTPHealthCheck) { h.Method = "OPTIONS" }, `OPTIONS route-1 /healthz "" agent="Postern/HealthCheck" a=[]`},
		{func(h *HTTPHealthCheck) { h.RequestHeadersToAdd = []any{header("1", ""), header("2", "")} }, `GET route-1 /healthz "" agent="Postern/HealthCheck" a=["1" "2"]`},
		{func(h *HTTPHealthCheck) {
			h.RequestHeadersToAdd = []any{header("0", "OVERWRITE_IF_EXISTS"), header("1", ""), header("2", "ADD_IF_ABSENT")}
		}, `GET route-1 /healthz "" agent="Postern/HealthCheck" a=["1"]`},
		{func(h *HTTPHealthCheck) {
			h.RequestHeadersToAdd = []any{header("1", ""), header("2", "OVERWRITE_IF_EXISTS_OR_ADD")}
		}, `GET route-1 /healthz "" agent="Postern/HealthCheck" a=["2"]`},
		{func(h *HTTPHealthCheck) { h.RequestHeadersToRemove = []string{"user-agent"} }, `GET route-1 /healthz "" agent="" a=[]`},
	} {
		if v := ask(t, probeOf(t, Spec{}, s.URL, byHTTP(tc.change))); !v.ok {
			t.Errorf("%s: %+v", tc.want, v)
			continue
		}
		if got := <-seen; got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}

// codec_client_type chooses the version of HTTP, with the route's TLS.
func TestHTTPCheckCodec(t *testing.T) {
	ca := newAuthority(t)
	pair, _, _ := ca.leaf(t, nil)
	proto := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })
	both := tlsUpstream(t, proto, true, &tls.Config{Certificates: []tls.Certificate{pair}}).URL
	only1 := tlsUpstream(t, proto, false, &tls.Config{Certificates: []tls.Certificate{pair}}).URL
	clear := httptest.NewUnstartedServer(proto)
	clear.Config.Protocols = new(http.Protocols)
	clear.Config.Protocols.SetHTTP1(true)
	clear.Config.Protocols.SetUnencryptedHTTP2(true)
	clear.Start()
	defer clear.Close()
	h3, _ := h3Upstream(t, proto, &tls.Config{Certificates: []tls.Certificate{pair}})
	for _, tc := range []struct{ to, codec, proto, want string }{
		{both, "", "HTTP/1.1", "good"},
		{both, "HTTP1", "HTTP/1.1", "good"},
		{both, "HTTP2", "HTTP/2.0", "good"},
		{only1, "HTTP2", "HTTP/2.0", "bad: "},
		{clear.URL, "HTTP2", "HTTP/2.0", "good"},
		{clear.URL, "", "HTTP/1.1", "good"},
		{strings.Replace(clear.URL, "http:", "h2c:", 1), "", "HTTP/2.0", "good"},
		{strings.Replace(h3, "h3:", "https:", 1), "HTTP3", "HTTP/3.0", "good"},
		{h3, "", "HTTP/3.0", "good"},
		{h3, "", "HTTP/1.1", "bad: the answer"},
	} {
		h := byHTTP(func(h *HTTPHealthCheck) { h.CodecClientType, h.Receive = tc.codec, []Payload{hexed(tc.proto)} })
		if got := say(ask(t, probeOf(t, Spec{TLS: TLS{CustomCA: ca.PEM}}, tc.to, h))); !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s by %q: %s, want %s", tc.to, tc.codec, got, tc.want)
		}
	}
	// The route's TLS settings hold: another CA is refused, by name.
	for _, to := range []string{both, h3} {
		if v := ask(t, probeOf(t, Spec{TLS: TLS{CustomCA: newAuthority(t).PEM}}, to, byHTTP(nil))); v.ok || !strings.Contains(v.reason, "unknown CA") {
			t.Errorf("%s with a wrong CA: %+v", to, v)
		}
	}
}

// counting counts connections of a listener.
type counting struct {
	net.Listener
	n atomic.Int32
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

// reuse_connection keeps the connection; alt_port asks at another port.
func TestCheckConnections(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	l := &counting{Listener: s.Listener}
	s.Listener = l
	s.Start()
	defer s.Close()
	for reuse, want := range map[bool]int32{true: 1, false: 3} {
		l.n.Store(0)
		p := probeOf(t, Spec{}, s.URL, aCheck(func(h *HealthCheck) { h.ReuseConnection = ptr(reuse) }))
		for range 3 {
			if v := ask(t, p); !v.ok {
				t.Fatal(v)
			}
		}
		if got := l.n.Load(); got != want {
			t.Errorf("reuse_connection %v: %d connections, want %d", reuse, got, want)
		}
		p.close()
	}
	port := mustURL(t, s.URL).Port()
	var n uint32
	fmt.Sscan(port, &n)
	p := probeOf(t, Spec{}, "http://127.0.0.1:1", aCheck(func(h *HealthCheck) { h.AltPort = &n }))
	if v := ask(t, p); !v.ok {
		t.Errorf("alt_port: %+v", v)
	}
	// What guards the route guards its checks.
	p = probeOf(t, Spec{Guarded: true}, s.URL, aCheck(nil))
	if v := ask(t, p); v.ok || !strings.Contains(v.reason, "upstream_dial_allow") {
		t.Errorf("a guarded route: %+v", v)
	}
}

// TCP checks send, and wait for parts in order, over many reads.
func TestTCPCheck(t *testing.T) {
	var mu sync.Mutex
	heard := ""
	to, conns := raw(t, func(c net.Conn, r *bufio.Reader) {
		for {
			line := make([]byte, 4)
			if _, err := io.ReadFull(r, line); err != nil {
				return
			}
			mu.Lock()
			heard += string(line)
			mu.Unlock()
			for _, part := range []string{"-PO", "NG-", "DO", "NE"} {
				io.WriteString(c, part)
			}
		}
	})
	byTCP := func(reuse bool, send string, receive ...string) HealthCheck {
		return aCheck(func(h *HealthCheck) {
			h.HTTPHealthCheck, h.TCPHealthCheck, h.ReuseConnection = nil, &TCPHealthCheck{}, &reuse
			if send != "" {
				h.TCPHealthCheck.Send = ptr(hexed(send))
			}
			for _, s := range receive {
				h.TCPHealthCheck.Receive = append(h.TCPHealthCheck.Receive, hexed(s))
			}
		})
	}
	for _, tc := range []struct {
		check HealthCheck
		conns int
		want  string
	}{
		{byTCP(true, "PING", "PONG", "DONE"), 1, "good"},
		{byTCP(false, "PING", "PONG", "DONE"), 3, "good"},
		{byTCP(true, ""), 3, "good"},
		{byTCP(true, "PING"), 3, "good"},
	} {
		before := conns()
		p := probeOf(t, Spec{}, to, tc.check)
		for range 3 {
			if got := say(ask(t, p)); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		}
		eventually(t, func() error {
			if n := conns() - before; n != tc.conns {
				return fmt.Errorf("%d connections, want %d", n, tc.conns)
			}
			return nil
		})
		p.close()
	}
	// Parts in the wrong order do not come: the time runs out.
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if v := probeOf(t, Spec{}, to, byTCP(true, "PING", "DONE", "PONG")).probe(ctx); v.ok || v.atOnce {
		t.Errorf("wrong order: %+v", v)
	}
	mu.Lock()
	if !strings.HasPrefix(heard, "PINGPING") {
		t.Errorf("sent %q", heard)
	}
	mu.Unlock()
	// A TLS endpoint is spoken to through TLS.
	ca := newAuthority(t)
	pair, _, _ := ca.leaf(t, nil)
	secure := tlsUpstream(t, http.NotFoundHandler(), false, &tls.Config{Certificates: []tls.Certificate{pair}}).URL
	if v := ask(t, probeOf(t, Spec{TLS: TLS{CustomCA: ca.PEM}}, secure, byTCP(false, "GET / HTTP/1.0\r\n\r\n", "404"))); !v.ok {
		t.Errorf("through TLS: %+v", v)
	}
	if v := ask(t, probeOf(t, Spec{}, secure, byTCP(false, ""))); v.ok || !strings.Contains(v.reason, "unknown CA") {
		t.Errorf("connecting alone checks the certificate: %+v", v)
	}
	closed, _ := raw(t, func(c net.Conn, r *bufio.Reader) {})
	if v := ask(t, probeOf(t, Spec{}, closed, byTCP(false, "", "PONG"))); v.ok {
		t.Error("a connection that ends is good")
	}
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Error(err)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// grpcAnswer plays a health service: TestHealthOfRealGRPC asks a real one.
func grpcAnswer(message []byte, status string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/grpc.health.v1.Health/Check" || r.Header.Get("Te") != "trailers" || !bytes.HasPrefix(b, []byte{0, 0, 0, 0}) {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status, Grpc-Message, X-Heard")
		w.Write(message)
		w.Header().Set("Grpc-Status", status)
	})
}

func TestGRPCCheck(t *testing.T) {
	answers := map[string]struct {
		message []byte
		status  string
	}{
		"good":                          {[]byte{0, 0, 0, 0, 2, 8, 1}, "0"},
		"bad: the service is NOT_SERV":  {[]byte{0, 0, 0, 0, 2, 8, 2}, "0"},
		"bad: the service is UNKNOWN":   {[]byte{0, 0, 0, 0, 0}, "0"},
		"bad: the service is SERVICE_U": {[]byte{0, 0, 0, 0, 2, 8, 3}, "0"},
		"bad: the service is unknown":   {nil, "5"},
		"bad: the upstream has no heal": {nil, "12"},
		"bad: gRPC status 14":           {[]byte{0, 0, 0, 0, 2, 8, 1}, "14"},
		"bad: the answer is not a mess": {[]byte{1, 0, 0, 0, 2, 8, 1}, "0"},
	}
	byGRPC := aCheck(func(h *HealthCheck) { h.HTTPHealthCheck, h.GRPCHealthCheck = nil, &GRPCHealthCheck{} })
	for want, a := range answers {
		s := httptest.NewUnstartedServer(grpcAnswer(a.message, a.status))
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
		if got := say(ask(t, probeOf(t, Spec{}, s.URL, byGRPC))); !strings.HasPrefix(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
		s.Close()
	}
	// Over HTTP/3 as well.
	ca := newAuthority(t)
	pair, _, _ := ca.leaf(t, nil)
	h3, _ := h3Upstream(t, grpcAnswer(answers["good"].message, "0"), &tls.Config{Certificates: []tls.Certificate{pair}})
	if v := ask(t, probeOf(t, Spec{TLS: TLS{CustomCA: ca.PEM}}, h3, byGRPC)); !v.ok {
		t.Errorf("over HTTP/3: %+v", v)
	}
}

// Whatever an upstream answers, the codec neither panics nor calls it good by
// mistake.
func TestHealthStatusOfGarbage(t *testing.T) {
	for _, frame := range []string{"", "00", "0000000001", "0000000002", "000000000208", "0000000002ff01", "00000000030a0508", "000000000109", "00000000010d", "000000000108", "00000000020b01"} {
		b, _ := hex.DecodeString(frame)
		if status, err := healthStatus(b); err == nil {
			t.Errorf("%s: status %d", frame, status)
		}
	}
	// Unknown fields of all kinds around the status are skipped.
	b, _ := hex.DecodeString("0000000019" + "1005" + "190102030405060708" + "22026162" + "2d01020304" + "0801" + "b80601")
	b[4] = byte(len(b) - 5)
	if status, err := healthStatus(b); err != nil || status != 1 {
		t.Error(status, err)
	}
}

func FuzzHealthStatus(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 8, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if status, err := healthStatus(b); err == nil && len(b) == 5 && status != 0 {
			t.Error("an empty message has a status")
		}
	})
}
