package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"

	"postern/internal/exchange"
)

// quicServed is a server on a UDP port of loopback.
type quicServed struct {
	*Server
	listener *QUICListener
	addr     string
}

func listenUDP(t testing.TB) net.PacketConn {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return pc
}

func serveQUIC(t testing.TB, s *Server) *quicServed {
	t.Helper()
	l, err := ListenQUIC(listenUDP(t), func() *Server { return s })
	if err != nil {
		t.Fatal(err)
	}
	go l.Serve()
	t.Cleanup(func() { s.Close(); l.Close() })
	return &quicServed{s, l, l.Addr().String()}
}

// h3Client speaks HTTP/3 to one address, whatever the host.
func h3Client(t testing.TB, addr string, c *tls.Config) (*http.Client, *http3.Transport) {
	t.Helper()
	c = c.Clone()
	c.NextProtos = []string{http3.NextProtoH3}
	tr := &http3.Transport{TLSClientConfig: c, DisableCompression: true,
		Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, addr, c, q)
		}}
	t.Cleanup(func() { tr.Close() })
	return &http.Client{Transport: tr, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, tr
}

func TestHTTP3(t *testing.T) {
	var got atomic.Pointer[http.Request]
	s := serveQUIC(t, NewServer(ServeOptions{TLS: testTLS(t, "h2"), ReadTimeout: 20 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Store(r)
		bodyEcho(w, r)
	})}))
	client, _ := h3Client(t, s.addr, clientTLS())
	large := strings.Repeat("0123456789abcdef", 1<<16)
	for _, tc := range []struct {
		method, path, body string
		unknown            bool
		length             int64
	}{
		{"GET", "/a%2fb?q;r=%zz", "", false, 0},
		{"DELETE", "/x", "", false, 0},
		{"POST", "/none", "", false, 0},
		{"POST", "/up", large, false, 1 << 20},
		{"PUT", "/unknown", large, true, -1},
		{"GET", "/with-body", "surprise", true, -1},
	} {
		var body io.Reader
		if tc.body != "" {
			body = strings.NewReader(tc.body)
			if tc.unknown {
				body = struct{ io.Reader }{body}
			}
		}
		req, _ := http.NewRequest(tc.method, "https://app.test"+tc.path, body)
		res, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", tc.method, tc.path, err)
		}
		b, err := io.ReadAll(res.Body)
		if want := fmt.Sprintf("%s %s %d %s", tc.method, tc.path, len(tc.body), tc.body); err != nil || res.StatusCode != 200 || string(b) != want {
			t.Errorf("%s %s: %d %.80q (%d bytes), %v", tc.method, tc.path, res.StatusCode, b, len(b), err)
		}
		r := got.Load()
		if tc.method != "POST" && r.ContentLength != tc.length || tc.method == "POST" && tc.body != "" && r.ContentLength != tc.length {
			t.Errorf("%s %s: length %d, want %d", tc.method, tc.path, r.ContentLength, tc.length)
		}
		info := ConnInfoFrom(r.Context())
		if info == nil || info.TLS == nil || info.TLS.ServerName != "app.test" || !peerOf(r, info).Addr().IsLoopback() {
			t.Errorf("%s: connection %+v", tc.path, info)
		}
	}
}

// rawH3 sends a request of whatever fields, and gives the status of the
// answer, or 0 where the stream or the connection was broken.
func rawH3(t testing.TB, addr string, body []byte, fields ...string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := clientTLS(http3.NextProtoH3)
	conn, err := quic.DialAddr(ctx, addr, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseWithError(0x100, "")
	control, err := conn.OpenUniStream()
	if err != nil {
		t.Fatal(err)
	}
	control.Write([]byte{0, 4, 0}) // control stream, empty SETTINGS
	return rawH3On(ctx, conn, body, fields...)
}

func rawH3On(ctx context.Context, conn *quic.Conn, body []byte, fields ...string) int {
	var block bytes.Buffer
	enc := qpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		enc.WriteField(qpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	str, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return 0
	}
	frame := quicvarint.Append(nil, 1)
	frame = quicvarint.Append(frame, uint64(block.Len()))
	frame = append(frame, block.Bytes()...)
	if body != nil {
		frame = quicvarint.Append(frame, 0)
		frame = quicvarint.Append(frame, uint64(len(body)))
		frame = append(frame, body...)
	}
	if _, err := str.Write(frame); err != nil {
		return 0
	}
	str.Close()
	str.SetReadDeadline(time.Now().Add(20 * time.Second))
	r := quicvarint.NewReader(str)
	kind, err := quicvarint.Read(r)
	if err != nil || kind != 1 {
		return 0
	}
	n, err := quicvarint.Read(r)
	if err != nil {
		return 0
	}
	head := make([]byte, n)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0
	}
	decode := qpack.NewDecoder().Decode(head)
	for {
		f, err := decode()
		if err != nil {
			return 0
		}
		if f.Name == ":status" {
			status := 0
			fmt.Sscan(f.Value, &status)
			return status
		}
	}
}

// TestHTTP3Fields: what HTTP/2 refuses, HTTP/3 refuses.
func TestHTTP3Fields(t *testing.T) {
	served := atomic.Int64{}
	s := serveQUIC(t, NewServer(ServeOptions{TLS: testTLS(t, "h2"), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		io.Copy(io.Discard, r.Body)
	})}))
	head := func(more ...string) []string {
		return append([]string{":method", "GET", ":scheme", "https", ":authority", "app.test", ":path", "/"}, more...)
	}
	many := head()
	for range MaxHeadFields + 1 {
		many = append(many, "a", "b")
	}
	for _, tc := range []struct {
		name   string
		status int // 0: the stream is broken
		body   []byte
		fields []string
	}{
		{"good", 200, nil, head("te", "trailers", "host", "app.test")},
		{"connection", 0, nil, head("connection", "close")},
		{"keep-alive", 0, nil, head("keep-alive", "1")},
		{"proxy-connection", 0, nil, head("proxy-connection", "close")},
		{"transfer-encoding", 0, nil, head("transfer-encoding", "chunked")},
		{"upgrade", 0, nil, head("upgrade", "websocket")},
		{"te", 0, nil, head("te", "gzip")},
		{"upper case", 0, nil, head("X-A", "b")},
		{"control character", 0, nil, head("x-a", "b\x00c")},
		{"line end", 0, nil, head("x-a", "b\r\nc: d")},
		{"space in name", 0, nil, head("x a", "b")},
		{"other host", 0, nil, head("host", "other.test")},
		{"two hosts", 0, nil, head("host", "app.test", "host", "app.test")},
		{"user in authority", 0, nil, []string{":method", "GET", ":scheme", "https", ":authority", "u@app.test", ":path", "/"}},
		{"bad authority", 400, nil, []string{":method", "GET", ":scheme", "https", ":authority", "app.test/x", ":path", "/"}},
		{"no authority", 0, nil, []string{":method", "GET", ":scheme", "https", ":path", "/"}},
		{"no path", 0, nil, []string{":method", "GET", ":scheme", "https", ":authority", "app.test"}},
		{"path without slash", 0, nil, []string{":method", "GET", ":scheme", "https", ":authority", "app.test", ":path", "x"}},
		{"absolute path", 0, nil, []string{":method", "GET", ":scheme", "https", ":authority", "app.test", ":path", "http://other.test/"}},
		{"two paths", 0, nil, []string{":method", "GET", ":scheme", "https", ":authority", "app.test", ":path", "/", ":path", "/x"}},
		{"two methods", 0, nil, []string{":method", "GET", ":method", "POST", ":scheme", "https", ":authority", "app.test", ":path", "/"}},
		{"late pseudo field", 0, nil, []string{":method", "GET", ":scheme", "https", ":authority", "app.test", "x", "y", ":path", "/"}},
		{"unknown pseudo field", 0, nil, head()[:0:0]},
		{"protocol without CONNECT", 0, nil, head(":protocol", "websocket")},
		{"two lengths", 0, []byte("x"), head("content-length", "1", "content-length", "2")},
		{"malformed length", 0, []byte("x"), head("content-length", "+1")},
		{"too many fields", 431, nil, many},
		{"too large", 431, nil, head("x-a", strings.Repeat("x", MaxHeadBytes))},
		{"method", 0, nil, []string{":method", "GE T", ":scheme", "https", ":authority", "app.test", ":path", "/"}},
	} {
		if tc.name == "unknown pseudo field" {
			tc.fields = append([]string{":user", "x"}, head()...)
		}
		before := served.Load()
		status := rawH3(t, s.addr, tc.body, tc.fields...)
		if status != tc.status {
			t.Errorf("%s: %d, want %d", tc.name, status, tc.status)
		}
		if tc.status != 200 && served.Load() != before {
			t.Errorf("%s: the handler was called", tc.name)
		}
	}
	// Bodies that do not keep to their announced length.
	for _, body := range []string{"", "xyz"} {
		if status := rawH3(t, s.addr, []byte(body), head("content-length", "2")...); status == 200 && body == "xyz" {
			t.Errorf("a body of %d bytes of announced 2 was served", len(body))
		}
	}
}

// FuzzHTTP3Head: whatever HTTP/3 lets through has a head that the rest of the
// program may rely on, and becomes a view without a panic.
func FuzzHTTP3Head(f *testing.F) {
	f.Add("GET", "app.test", "/", "x-a", "b", "")
	f.Add("CONNECT", "app.test", "/chat", "sec-websocket-version", "13", "websocket")
	f.Add("GET", "app.test:443", "/%2e%2e/x?y#z", "x_a", "b", "")
	f.Add("OPTIONS", "APP.test", "*", "host", "app.test", "")
	f.Add("GET", "[::1]:1", "//x", "cookie", "a=b", "")
	f.Add("G\x00T", "a@b", "/\x7f", "Connection", "close", "x y")
	f.Fuzz(func(t *testing.T, method, authority, path, name, value, protocol string) {
		r := &http.Request{Method: method, Host: authority, RequestURI: path, Proto: "HTTP/3.0", ProtoMajor: 3,
			Header: http.Header{http.CanonicalHeaderKey(name): {value}}, ContentLength: -1, Body: http.NoBody, RemoteAddr: "127.0.0.1:1"}
		if protocol != "" {
			r.Proto = protocol
		}
		r = r.WithContext(context.WithValue(context.Background(), connInfoKey{}, &ConnInfo{TLS: &tls.ConnectionState{}, quic: &quicConn{}}))
		if checkFields(r) != nil {
			return
		}
		v, _, bad := newRequest(r, &Settings{})
		if bad != nil {
			return
		}
		if v.authority != strings.ToLower(v.authority) || strings.ContainsAny(v.authority, "@/ \x00#?") || v.authority == "" {
			t.Errorf("authority %q of %q", v.authority, authority)
		}
		if v.path != "" && v.path[0] != '/' && v.path != "*" || strings.ContainsAny(v.path, "\x00 #?\\") || strings.Contains(v.path, "/../") {
			t.Errorf("path %q of %q", v.path, path)
		}
		if v.Method() == http.MethodConnect && v.Protocol() != "" || v.Protocol() != "" && method != http.MethodConnect {
			t.Errorf("method %q and protocol %q of %q and %q", v.Method(), v.Protocol(), method, protocol)
		}
		if v.Proto() != exchange.HTTP3 || !v.peer.Secure || v.peer.Direct.Addr() != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("peer %+v over %v", v.peer, v.Proto())
		}
	})
}

// TestNoEarlyData: a resumed connection is served only after its handshake
// (CVE-2024-39321), although the client would send at once.
func TestCVE_2024_39321_NoEarlyData(t *testing.T) {
	served := make(chan bool, 10)
	s := serveQUIC(t, NewServer(ServeOptions{TLS: testTLS(t), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served <- r.TLS.HandshakeComplete
	})}))
	c := clientTLS(http3.NextProtoH3)
	c.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	resumed := false
	for i := range 2 {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		conn, err := quic.DialAddrEarly(ctx, s.addr, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		tr := &http3.Transport{}
		req, _ := http.NewRequestWithContext(ctx, http3.MethodGet0RTT, "https://app.test/", nil)
		res, err := tr.NewClientConn(conn).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if !<-served {
			t.Error("served before the handshake was complete")
		}
		state := conn.ConnectionState()
		if state.Used0RTT {
			t.Error("early data was taken")
		}
		resumed = i == 1 && state.TLS.DidResume
		// The ticket comes behind the handshake.
		for end := time.Now().Add(10 * time.Second); i == 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if _, ok := c.ClientSessionCache.Get("app.test"); ok {
				break
			}
		}
		conn.CloseWithError(0x100, "")
		cancel()
	}
	if !resumed {
		t.Error("the second connection was not resumed: this test shows nothing")
	}
}

func TestHTTP3Drain(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	s := serveQUIC(t, NewServer(ServeOptions{TLS: testTLS(t), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(begun)
			<-finish
		}
		io.WriteString(w, "done")
	})}))
	client, _ := h3Client(t, s.addr, clientTLS())
	idle, _ := h3Client(t, s.addr, clientTLS())
	if _, err := idle.Get("https://app.test/"); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		res, err := client.Get("https://app.test/slow")
		if err == nil {
			b, rerr := io.ReadAll(res.Body)
			if err = rerr; err == nil && string(b) != "done" {
				err = fmt.Errorf("answer %q", b)
			}
		}
		answer <- err
	}()
	<-begun
	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		down <- s.Shutdown(ctx)
	}()
	// New connections are turned away while the old request is served.
	for end := time.Now().Add(10 * time.Second); ; {
		other, tr := h3Client(t, s.addr, clientTLS())
		_, err := other.Get("https://app.test/")
		tr.Close()
		if err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("new connections are served while the server drains")
		}
	}
	close(finish)
	if err := <-answer; err != nil {
		t.Errorf("the request in progress: %v", err)
	}
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if n := s.Connections(); n != 0 {
		t.Errorf("%d connections left", n)
	}
}

// TestHTTP3ServerIsExchanged: connections go to the server of the moment, and
// those of the one before end when their requests do.
func TestHTTP3ServerIsExchanged(t *testing.T) {
	config := testTLS(t)
	begun, finish := make(chan struct{}), make(chan struct{})
	first := NewServer(ServeOptions{TLS: config, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-finish
		io.WriteString(w, "first")
	})})
	second := NewServer(ServeOptions{TLS: config, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "second") })})
	var current atomic.Pointer[Server]
	current.Store(first)
	l, err := ListenQUIC(listenUDP(t), current.Load)
	if err != nil {
		t.Fatal(err)
	}
	go l.Serve()
	t.Cleanup(func() { first.Close(); second.Close(); l.Close() })
	get := func(c *http.Client) (string, error) {
		res, err := c.Get("https://app.test/")
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(res.Body)
		return string(b), err
	}
	old, _ := h3Client(t, l.Addr().String(), clientTLS())
	answer := make(chan string, 1)
	go func() { b, err := get(old); answer <- fmt.Sprint(b, err) }()
	<-begun
	current.Store(second)
	go first.Shutdown(context.Background())
	fresh, _ := h3Client(t, l.Addr().String(), clientTLS())
	if b, err := get(fresh); err != nil || b != "second" {
		t.Errorf("a new connection: %q %v", b, err)
	}
	close(finish)
	if b := <-answer; b != "first<nil>" {
		t.Errorf("the old request: %q", b)
	}
	if b, err := get(old); err != nil || b != "second" {
		t.Errorf("the old client afterwards: %q %v", b, err)
	}
}

func TestHTTP3IdleConnectionsEnd(t *testing.T) {
	s := serveQUIC(t, NewServer(ServeOptions{TLS: testTLS(t), IdleTimeout: 50 * time.Millisecond, Handler: http.NotFoundHandler()}))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := quic.DialAddr(ctx, s.addr, clientTLS(http3.NextProtoH3), nil)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-conn.Context().Done():
		var ended *quic.ApplicationError
		if !errors.As(context.Cause(conn.Context()), &ended) || ended.ErrorCode != h3NoError {
			t.Errorf("ended by %v", context.Cause(conn.Context()))
		}
	case <-ctx.Done():
		t.Error("an idle connection stays")
	}
}

func TestHTTP3ReadTimeoutCutsABody(t *testing.T) {
	s := serveQUIC(t, NewServer(ServeOptions{TLS: testTLS(t), ReadTimeout: 100 * time.Millisecond, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusRequestTimeout)
		}
	})}))
	client, _ := h3Client(t, s.addr, clientTLS())
	body, stuck := io.Pipe()
	defer stuck.Close()
	res, err := client.Post("https://app.test/", "text/plain", body)
	if err != nil || res.StatusCode != http.StatusRequestTimeout {
		t.Errorf("%v %v, want 408", res, err)
	}
}

// TestHTTP3RequestWithoutAnEnd: whether a GET has a body only the end of its
// stream tells. Who never ends it is answered as soon as the rest of a head
// would have had to be here, also where requests may take for ever to arrive.
func TestHTTP3RequestWithoutAnEnd(t *testing.T) {
	s := serveQUIC(t, NewServer(ServeOptions{TLS: testTLS(t), ReadHeaderTimeout: 100 * time.Millisecond, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			if _, err := io.ReadAll(r.Body); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the body ends with %v", err)
			}
		} else if b, err := io.ReadAll(r.Body); err != nil || string(b) != "late" {
			t.Errorf("%q %v", b, err)
		}
		io.WriteString(w, "answered")
	})}))
	client, _ := h3Client(t, s.addr, clientTLS())
	body, stuck := io.Pipe()
	defer stuck.Close()
	req, _ := http.NewRequest("GET", "https://app.test/", body)
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(res.Body); string(b) != "answered" {
		t.Errorf("%q", b)
	}
	// An upload has all the time it needs.
	body, slow := io.Pipe()
	go func() {
		time.Sleep(300 * time.Millisecond)
		io.WriteString(slow, "late")
		slow.Close()
	}()
	if res, err = client.Post("https://app.test/", "text/plain", body); err != nil || res.StatusCode != 200 {
		t.Errorf("%v %v", res, err)
	}
}

// TestHTTP3RapidReset: resetting requests does not buy more of them than a
// connection may have (CVE-2023-44487).
func TestHTTP3RapidReset(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	var open, most atomic.Int64
	s := serveQUIC(t, NewServer(ServeOptions{TLS: testTLS(t), MaxStreams: 10, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		most.Store(max(most.Load(), open.Add(1)))
		defer open.Add(-1)
		begun <- struct{}{}
		io.Copy(io.Discard, r.Body) // to its reset
		<-finish                    // work that does not look whether anybody waits
	})}))
	defer close(finish)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := quic.DialAddr(ctx, s.addr, clientTLS(http3.NextProtoH3), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseWithError(0x100, "")
	cc := new(http3.Transport).NewClientConn(conn)
	refused := false
	for range 100 {
		// A stream counts until its handler has returned, so that no credit
		// comes for another.
		soon, cancel := context.WithTimeout(ctx, time.Second)
		str, err := cc.OpenRequestStream(soon)
		cancel()
		if err == nil {
			req := httptest.NewRequest("POST", "https://app.test/", nil)
			req.Body = nil
			err = str.SendRequestHeader(req)
		}
		if err == nil {
			select {
			case <-begun:
			case <-conn.Context().Done():
				err = context.Cause(conn.Context())
			case <-ctx.Done():
				t.Fatal("a request is neither served nor refused")
			}
		}
		if err != nil {
			refused = true // the server had enough
			break
		}
		str.CancelRead(0x10c)
		str.CancelWrite(0x10c)
	}
	if m := most.Load(); !refused || m > 20 {
		t.Errorf("%d requests at once of a connection that may have 10", m)
	}
}

// TestHTTP3ConnectionsAreBounded: strangers who keep connections open take no
// more memory than so many of them; who leaves makes room.
func TestHTTP3ConnectionsAreBounded(t *testing.T) {
	s := NewServer(ServeOptions{TLS: testTLS(t), Handler: bodyEcho})
	l, err := ListenQUIC(listenUDP(t), func() *Server { return s })
	if err != nil {
		t.Fatal(err)
	}
	l.most.Store(4)
	go l.Serve()
	t.Cleanup(func() { s.Close(); l.Close() })
	connect := func() (*quic.Conn, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		return quic.DialAddr(ctx, l.Addr().String(), clientTLS(http3.NextProtoH3), nil)
	}
	var open []*quic.Conn
	for range 4 {
		c, err := connect()
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseWithError(0x100, "")
		open = append(open, c)
	}
	var refused *quic.TransportError
	if c, err := connect(); !errors.As(err, &refused) || refused.ErrorCode != quic.ConnectionRefused {
		if err == nil {
			c.CloseWithError(0x100, "")
		}
		t.Errorf("one too many: %v, want a refusal", err)
	}
	open[0].CloseWithError(0x100, "")
	for end := time.Now().Add(20 * time.Second); ; {
		c, err := connect()
		if err == nil {
			c.CloseWithError(0x100, "")
			break
		}
		if time.Now().After(end) {
			t.Fatalf("one has left: %v", err)
		}
	}
}

// TestHTTP3ProxyProtocolAndForwarding: where a balancer names clients by PROXY
// headers, it may be a trusted proxy, which over UDP passes on what strangers
// say of themselves.
func TestHTTP3ProxyProtocolAndForwarding(t *testing.T) {
	for _, proxyProtocol := range []bool{false, true} {
		cfg := defaultConfig()
		cfg.XFFNumTrustedHops, cfg.UseProxyProtocol = 1, proxyProtocol
		cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		run := testDoor{config: &cfg, routes: one(appRoute, RouteConfig{})}.start(t)
		req, _ := http.NewRequest("GET", "https://app.test/", nil)
		req.Header.Set("X-Forwarded-For", "203.0.113.9")
		req.Header.Set("X-Forwarded-Proto", "http")
		res, err := run.quic().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		h := run.echo.last().Header
		want := "http"
		if proxyProtocol {
			want = "https"
		}
		if got := h.Get("X-Forwarded-Proto"); got != want {
			t.Errorf("use_proxy_protocol %v: X-Forwarded-Proto %q, want %q", proxyProtocol, got, want)
		}
		if got := h.Get("X-Envoy-External-Address"); (got == "203.0.113.9") == proxyProtocol {
			t.Errorf("use_proxy_protocol %v: the client is %q", proxyProtocol, got)
		}
	}
}
