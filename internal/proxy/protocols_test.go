//lint:file-ignore SA1019 the HTTP/2 client of net/http sends no :protocol and makes no connection by hand

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/route"
)

// extendedConnect opens a WebSocket as a stream of HTTP/2 or HTTP/3.
func extendedConnect(t testing.TB, client *http.Client, target, protocol string, headers ...string) (io.WriteCloser, *bufio.Reader, *http.Response, error) {
	t.Helper()
	out, in := io.Pipe()
	t.Cleanup(func() { in.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "CONNECT", target, out)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := client.Transport.(*http3.Transport); ok {
		req.Proto = protocol
	} else {
		req.Header[":protocol"] = []string{protocol}
	}
	req.Header.Set("Sec-WebSocket-Version", "13")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header[headers[i]] = append(req.Header[headers[i]], headers[i+1])
	}
	resp, err := client.Transport.RoundTrip(req)
	if err != nil {
		return nil, nil, nil, err
	}
	t.Cleanup(func() { resp.Body.Close() })
	return in, bufio.NewReader(resp.Body), resp, nil
}

// streamClients are clients whose WebSockets are streams.
func (run *running) streamClients() map[string]*http.Client {
	// The client of net/http does not send :protocol.
	tr := &http2.Transport{DialTLSContext: func(ctx context.Context, _, _ string, c *tls.Config) (net.Conn, error) {
		return (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", run.tlsAddr)
	}, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	run.t.Cleanup(tr.CloseIdleConnections)
	return map[string]*http.Client{"HTTP/2": {Transport: tr}, "HTTP/3": run.quic()}
}

func TestExtendedConnectIsOffered(t *testing.T) {
	// The product must have it without anybody setting GODEBUG: this test does
	// not, and package xconnect does.
	s := serve(t, ServeOptions{TLS: testTLS(t, "h2"), Handler: http.NotFoundHandler()})
	conn, err := tls.Dial("tcp", s.addr, clientTLS("h2"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(conn, http2.ClientPreface)
	f := http2.NewFramer(conn, conn)
	f.WriteSettings()
	frame, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	settings, ok := frame.(*http2.SettingsFrame)
	if !ok {
		t.Fatalf("first frame %v", frame)
	}
	if v, ok := settings.Value(http2.SettingEnableConnectProtocol); !ok || v != 1 {
		t.Errorf("SETTINGS_ENABLE_CONNECT_PROTOCOL is %d (%v), want 1: see package xconnect", v, ok)
	}
}

func TestWebSocketOverStreams(t *testing.T) {
	up := newRecorderless(t, echoWebSocket)
	run := testDoor{routes: []testRoute{{spec: appRoute, keys: websockets, to: up.URL}}}.start(t)
	for name, client := range run.streamClients() {
		before := len(run.decisionsSoFar())
		in, out, resp, err := extendedConnect(t, client, "https://app.test/ws?a=b", "websocket", "Origin", "https://app.test")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if resp.StatusCode != 200 || resp.Header.Get("Sec-Websocket-Accept") != "" || resp.Header.Get("X-Up") != "1" ||
			resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("Connection")+resp.Header.Get("Upgrade") != "" {
			t.Fatalf("%s: %d %v", name, resp.StatusCode, resp.Header)
		}
		for _, n := range []int{0, 5, 200, 70000} {
			want := bytes.Repeat([]byte{'x'}, n)
			if _, err := in.Write(frame(2, want, true)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			op, got, err := readFrame(out)
			if err != nil || op != 2 || !bytes.Equal(got, want) {
				t.Fatalf("%s, %d bytes: op %d, %d bytes, %v", name, n, op, len(got), err)
			}
		}
		// It was judged as what the upstream sees.
		d := run.decisionsSoFar()
		if v := d[before].View; v.Method() != "GET" || v.Protocol() != "websocket" || v.Path() != "/ws" || v.RawQuery() != "a=b" || v.BodySize() != 0 {
			t.Errorf("%s: judged as %s %s %s", name, v.Method(), v.Protocol(), v.Path())
		}
		if run.streams.open() != 1 {
			t.Errorf("%s: %d streams followed", name, run.streams.open())
		}
		// The closing handshake ends the stream properly.
		in.Write(frame(8, []byte{3, 0xE8}, true))
		if op, _, err := readFrame(out); op != 8 || err != nil {
			t.Errorf("%s: op %d %v", name, op, err)
		}
		if _, err := out.ReadByte(); err != io.EOF {
			t.Errorf("%s: after the close frame %v, want a clean end", name, err)
		}
		eventually(t, "the stream is no longer followed", func() bool { return run.streams.open() == 0 })
	}
	for i := 1; i <= 2; i++ {
		if e := run.entry(i); e.ResponseCode != 200 || e.Size < 70000 || e.Method != "GET" {
			t.Errorf("access log %+v", e)
		}
	}
}

// rawH2 sends a request of whatever fields on a fresh connection and gives the
// status of the answer, or 0 where the stream or the connection was broken.
func rawH2(t *testing.T, conn net.Conn, fields ...string) int {
	t.Helper()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(conn, http2.ClientPreface)
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	for {
		frame, err := f.ReadFrame()
		switch frame := frame.(type) {
		case nil:
			t.Logf("connection ended: %v", err)
			return 0
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0
		case *http2.MetaHeadersFrame:
			status := 0
			fmt.Sscan(frame.PseudoValue("status"), &status)
			return status
		}
	}
}

func newRecorderless(t testing.TB, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func (run *running) decisionsSoFar() []*authz.Request {
	run.mu.Lock()
	defer run.mu.Unlock()
	return append([]*authz.Request(nil), run.decisions...)
}

// readClose reads the close frame of a cut WebSocket and the end behind it.
func readClose(t *testing.T, name string, r *bufio.Reader, code uint16, text string) {
	t.Helper()
	op, payload, err := readFrame(r)
	if err != nil || op != 8 || len(payload) < 2 || binary.BigEndian.Uint16(payload) != code || !strings.Contains(string(payload[2:]), text) {
		t.Errorf("%s: op %d %q %v, want a close frame %d %q", name, op, payload, err, code, text)
		return
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("%s: behind the close frame: %v, want the end", name, err)
	}
}

func TestWebSocketStreamsAreCut(t *testing.T) {
	up := newRecorderless(t, echoWebSocket)
	run := testDoor{routes: []testRoute{{spec: appRoute, keys: websockets, to: up.URL}}}.start(t)
	for name, client := range run.streamClients() {
		for _, tc := range []struct {
			reason string
			code   uint16
		}{{authz.CutSessionEnded, 1008}, {authz.CutNoRoute, 1001}} {
			in, out, _, err := extendedConnect(t, client, "https://app.test/ws", "websocket")
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			in.Write(frame(1, []byte("hello"), true))
			if _, _, err := readFrame(out); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			run.streams.cutAll(tc.reason)
			readClose(t, name, out, tc.code, tc.reason)
			eventually(t, "the stream is no longer followed", func() bool { return run.streams.open() == 0 })
		}
		// The connection goes on.
		resp, err := client.Get("https://app.test/.pomerium/none")
		if err != nil || resp.StatusCode != 404 {
			t.Errorf("%s: the next request: %v %v", name, resp, err)
		}
	}
}

// TestUpgradeStreamsAreReset: a tunnel that is no WebSocket cannot be told why
// it ends, so it must not look complete.
func TestUpgradeStreamsAreReset(t *testing.T) {
	up := newRecorderless(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
		rw.Flush()
		io.Copy(conn, rw)
	})
	keys := RouteConfig{Resolved: Resolved{Upgrades: []string{"chat"}}}
	run := testDoor{routes: []testRoute{{spec: appRoute, keys: keys, to: up.URL}}}.start(t)
	for name, client := range run.streamClients() {
		in, out, resp, err := extendedConnect(t, client, "https://app.test/x", "chat")
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v %v", name, resp, err)
		}
		io.WriteString(in, "hello\n")
		if line, err := out.ReadString('\n'); line != "hello\n" {
			t.Fatalf("%s: %q %v", name, line, err)
		}
		run.streams.cutAll(authz.CutRefused)
		if _, err := io.ReadAll(out); err == nil {
			t.Errorf("%s: a cut tunnel ended as if it were complete", name)
		}
	}
}

func TestExtendedConnectNeedsPermission(t *testing.T) {
	run := testDoor{routes: one(appRoute, RouteConfig{})}.start(t)
	locked := testDoor{routes: one(appRoute, websockets), decide: func(*authz.Request) authz.Decision {
		return authz.Decision{Outcome: authz.Deny, Status: 403}
	}}.start(t)
	for name, client := range run.streamClients() {
		for _, target := range []string{"https://app.test/ws", "https://app.test/.pomerium/", "https://other.test/ws"} {
			_, _, resp, err := extendedConnect(t, client, target, "websocket")
			if err != nil || resp.StatusCode < 400 {
				t.Errorf("%s %s: %v %v, want a refusal", name, target, resp, err)
			}
		}
		if run.echo.count() != 0 {
			t.Errorf("%s: the upstream was asked", name)
		}
	}
	for name, client := range locked.streamClients() {
		_, _, resp, err := extendedConnect(t, client, "https://app.test/ws", "websocket")
		if err != nil || resp.StatusCode != 403 {
			t.Errorf("%s: %v %v, want 403", name, resp, err)
		}
	}
	// A :protocol on an ordinary request is not one of ours to guess about.
	conn, err := tls.Dial("tcp", run.tlsAddr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if status := rawH2(t, conn, ":method", "GET", ":scheme", "https", ":authority", "app.test", ":path", "/", ":protocol", "websocket"); status == 200 {
		t.Errorf("GET with :protocol over HTTP/2: %d", status)
	}
}

// TestGoingAway: at the end of the program WebSockets are told so at once, and
// nothing else is.
func TestGoingAway(t *testing.T) {
	up := newRecorderless(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ws" {
			echoWebSocket(w, r)
			return
		}
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		rc.Flush()
		for b := make([]byte, 100); ; rc.Flush() {
			n, err := r.Body.Read(b)
			if w.Write(b[:n]); err != nil {
				return
			}
		}
	})
	run := testDoor{routes: []testRoute{{spec: appRoute, keys: websockets, to: up.URL}}}.start(t)
	var sockets []*bufio.Reader
	for range 2 {
		conn, r, _ := run.dialWebSocket("app.test")
		conn.Write(frame(1, []byte("hello"), true))
		sockets = append(sockets, r)
	}
	clients := run.streamClients()
	for _, client := range clients {
		in, r, _, err := extendedConnect(t, client, "https://app.test/ws", "websocket")
		if err != nil {
			t.Fatal(err)
		}
		in.Write(frame(1, []byte("hello"), true))
		sockets = append(sockets, r)
	}
	// A stream of another kind, over each.
	type stream struct {
		in  *io.PipeWriter
		out *bufio.Reader
	}
	others := map[string]stream{}
	for name, client := range clients {
		out, in := io.Pipe()
		req, _ := http.NewRequest("POST", "https://app.test/stream", out)
		resp, err := client.Transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		others[name] = stream{in, bufio.NewReader(resp.Body)}
	}
	for _, r := range sockets {
		if _, _, err := readFrame(r); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	run.secure.GoAway()
	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		down <- run.secure.Shutdown(ctx)
	}()
	for i, r := range sockets {
		readClose(t, []string{"HTTP/1.1", "HTTP/1.1", "stream", "stream"}[i], r, 1001, "going away")
	}
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("that took %s", took)
	}
	for name, s := range others {
		io.WriteString(s.in, "still here\n")
		if line, err := s.out.ReadString('\n'); line != "still here\n" {
			t.Errorf("%s: the other stream: %q %v", name, line, err)
		}
		s.in.Close()
		io.Copy(io.Discard, s.out)
	}
	if err := <-down; err != nil {
		t.Errorf("the drain: %v", err)
	}
}

func TestAltSvc(t *testing.T) {
	run := testDoor{routes: []testRoute{{spec: appRoute}, {spec: from("https://own.test"),
		keys: RouteConfig{Resolved: Resolved{ResponseHeaders: map[string]string{"Alt-Svc": "clear"}}}}}}.start(t)
	const ours = `h3=":8443"; ma=86400`
	for _, tc := range []struct {
		name   string
		client *http.Client
		target string
		want   string
	}{
		{"HTTP/2", run.client, "https://app.test/", ours},
		{"HTTP/1.1", run.h1, "https://app.test/", ours},
		{"own page", run.client, "https://app.test/ping", ours},
		{"no route", run.client, "https://none.test/", ours},
		{"the operator's own", run.client, "https://own.test/", "clear"},
		{"HTTP/3", run.quic(), "https://app.test/", ""},
	} {
		a := run.do(tc.client, "GET", tc.target, "")
		if got := strings.Join(a.Header.Values("Alt-Svc"), "|"); got != tc.want {
			t.Errorf("%s: alt-svc %q, want %q", tc.name, got, tc.want)
		}
	}
	if a := run.raw("GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n"); a.Header.Get("Alt-Svc") != "" {
		t.Errorf("in clear text: %q", a.Header.Get("Alt-Svc"))
	}
	// What the upstream says of itself is not true of us.
	up := newRecorderless(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Alt-Svc", `h3=":1"`) })
	run = testDoor{routes: []testRoute{{spec: appRoute, to: up.URL}}}.start(t)
	if a := run.get("https://app.test/"); strings.Join(a.Header.Values("Alt-Svc"), "|") != ours {
		t.Errorf("besides the upstream's: %q", a.Header.Values("Alt-Svc"))
	}
}

// coalesced sends requests for any host over one connection that was opened
// for the name sni, as browsers do.
type coalesced map[string]func(*http.Request) (*http.Response, error)

func coalesce(t *testing.T, run *running, sni string, config *tls.Config) coalesced {
	t.Helper()
	config = config.Clone()
	config.ServerName, config.InsecureSkipVerify = sni, true
	overTCP := config.Clone()
	overTCP.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", run.tlsAddr, overTCP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h2, err := new(http2.Transport).NewClientConn(conn)
	if err != nil {
		t.Fatal(err)
	}
	overTCP = config.Clone()
	overTCP.NextProtos = []string{"http/1.1"}
	config.NextProtos = []string{http3.NextProtoH3}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	q, err := quic.DialAddr(ctx, serveQUIC(t, run.secure).addr, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.CloseWithError(0x100, "") })
	return coalesced{
		"HTTP/1.1": func(r *http.Request) (*http.Response, error) {
			conn, err := tls.Dial("tcp", run.tlsAddr, overTCP)
			if err != nil {
				return nil, err
			}
			defer conn.Close()
			r.Close = true
			if err := r.Write(conn); err != nil {
				return nil, err
			}
			return http.ReadResponse(bufio.NewReader(conn), r)
		},
		"HTTP/2": h2.RoundTrip, "HTTP/3": new(http3.Transport).NewClientConn(q).RoundTrip,
	}
}

// TestMisdirected: a host that wants a client certificate is not served over a
// connection that was not asked for one (CVE-2026-32305 and kin over HTTP/3
// and by coalescing).
func TestMisdirected(t *testing.T) {
	valid := testTLS(t).Certificates[0]
	other := testTLS(t).Certificates[0]
	door := testDoor{
		routes:    []testRoute{{spec: from("https://open.test")}, {spec: from("https://locked.test")}, {spec: from("https://vault.test")}},
		endpoints: NewEndpoints(),
		change: func(g *Generation) {
			g.ClientCertificate = func(chain []*x509.Certificate, rt *route.Route) exchange.CertificateState {
				switch {
				case rt == nil || rt.From.Host == "open.test":
					return exchange.CertificateNotAsked
				case len(chain) == 0:
					return exchange.CertificateMissing
				case bytes.Equal(chain[0].Raw, valid.Certificate[0]):
					return exchange.CertificateValid
				}
				return exchange.CertificateInvalid
			}
			g.SameClientPolicy = func(sni, host string) bool { return host == "open.test" || host == "none.test" || sni == host }
		},
	}
	start := func(d testDoor) *running {
		run := d.start(t)
		run.secure.tls.ClientAuth = tls.RequestClientCert // asked everywhere: SameClientPolicy says what counts
		run.secure.o.TLS.ClientAuth = tls.RequestClientCert
		return run
	}
	run := start(door)
	ask := func(c coalesced, sni, url string, certificate string, want int) {
		t.Helper()
		for name, send := range c {
			req, _ := http.NewRequest("GET", url, nil)
			resp, err := send(req)
			if err != nil {
				t.Errorf("%s, SNI %s, %s: %v", name, sni, url, err)
				continue
			}
			if resp.StatusCode != want {
				t.Errorf("%s, SNI %s, %s certificate, %s: %d, want %d", name, sni, certificate, url, resp.StatusCode, want)
			}
			if resp.StatusCode == 421 && resp.Header.Get("Alt-Svc") != "" {
				t.Errorf("%s: 421 advertises alternatives", name)
			}
		}
	}
	no := coalesce(t, run, "open.test", &tls.Config{})
	ask(no, "open.test", "https://open.test/", "no", 200)
	ask(no, "open.test", "https://locked.test/", "no", 421)
	ask(no, "open.test", "https://locked.test/.pomerium/x", "no", 404) // own pages need none
	ask(no, "open.test", "https://none.test/", "no", 404)
	ask(no, "open.test", "https://locked.test/ping", "no", 200)
	wrong := coalesce(t, run, "open.test", &tls.Config{Certificates: []tls.Certificate{other}})
	ask(wrong, "open.test", "https://vault.test/", "another's", 421)
	right := coalesce(t, run, "open.test", &tls.Config{Certificates: []tls.Certificate{valid}})
	ask(right, "open.test", "https://locked.test/", "a valid", 200)
	locked := coalesce(t, run, "locked.test", &tls.Config{})
	ask(locked, "locked.test", "https://locked.test/", "no", 200) // asked: policy decides, and here it allows
	ask(locked, "locked.test", "https://vault.test/", "no", 421)
	nameless := coalesce(t, run, "", &tls.Config{})
	ask(nameless, "none", "https://locked.test/", "no", 200) // nothing better would come of another try

	usual := door.change
	door.change = func(g *Generation) { usual(g); g.CertificatesEverywhere = true }
	no = coalesce(t, start(door), "open.test", &tls.Config{})
	ask(no, "open.test", "https://locked.test/ping", "no", 421)
	ask(no, "open.test", "https://open.test/ping", "no", 200)
}

// TestHTTP3ThroughTheDoor: the pipeline is the same.
func TestHTTP3ThroughTheDoor(t *testing.T) {
	run := testDoor{routes: one(appRoute, RouteConfig{})}.start(t)
	client := run.quic()
	for _, tc := range []struct {
		target, want string
		status       int
		headers      []string
	}{
		{"https://app.test/a/../b//c?x=1;y", "/b/c?x=1;y", 200, nil},
		{"https://app.test/%2fx", "", 400, nil},
		{"https://app.test/", "", 400, []string{"X_under", "1"}},
		{"https://APP.test./", "/", 200, nil},
		{"https://none.test/", "", 404, nil},
	} {
		a := run.do(client, "GET", tc.target, "", tc.headers...)
		if a.StatusCode != tc.status || tc.want != "" && a.body != tc.want {
			t.Errorf("%s: %d %q, want %d %q", tc.target, a.StatusCode, a.body, tc.status, tc.want)
		}
		if a.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s: no request id", tc.target)
		}
	}
	r := run.echo.last()
	if r.Header.Get("X-Forwarded-Proto") != "https" || r.Header.Get("X-Forwarded-For") != "127.0.0.1" || r.ContentLength != 0 || len(r.TransferEncoding) != 0 {
		t.Errorf("the upstream got %v, length %d, %v", r.Header, r.ContentLength, r.TransferEncoding)
	}
	body := strings.Repeat("x", 1<<20)
	if a := run.do(client, "POST", "https://app.test/up", body); a.StatusCode != 200 {
		t.Errorf("POST: %d", a.StatusCode)
	}
	run.echo.mu.Lock()
	if got := run.echo.body[len(run.echo.body)-1]; got != body {
		t.Errorf("the upstream got %d bytes", len(got))
	}
	run.echo.mu.Unlock()
	for i := range run.decisionsSoFar() {
		v := run.decisions[i].View
		if v.Proto() != exchange.HTTP3 || !v.Peer().Secure || !v.Peer().ClientIP.IsLoopback() {
			t.Errorf("judged over %v from %+v", v.Proto(), v.Peer())
		}
	}
}
