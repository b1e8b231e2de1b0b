package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"postern/internal/authz"
	"postern/internal/route"
)

func from(address string) route.Spec { return route.Spec{From: address} }

// websockets are the keys of a route that lets WebSockets through.
var websockets = RouteConfig{AllowWebsockets: true, Resolved: Resolved{Upgrades: []string{"websocket"}, Websockets: true}}

// echoWebSocket answers the handshake and echoes frames, unmasked.
func echoWebSocket(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nSet-Cookie: __Host-_pomerium=evil\r\nX-Up: 1\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	rw.Flush()
	for {
		op, payload, err := readFrame(rw.Reader)
		if err != nil {
			return
		}
		if _, err := conn.Write(frame(op, payload, false)); err != nil || op == 8 {
			return
		}
	}
}

func frame(op byte, payload []byte, mask bool) []byte {
	b := []byte{0x80 | op}
	bit := byte(0)
	if mask {
		bit = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		b = append(b, bit|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, bit|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, bit|127), uint64(n))
	}
	if mask {
		b = append(b, 1, 2, 3, 4)
		for i, c := range payload {
			b = append(b, c^byte(i%4+1))
		}
		return b
	}
	return append(b, payload...)
}

func readFrame(r *bufio.Reader) (op byte, payload []byte, err error) {
	var head [2]byte
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return
	}
	n := uint64(head[1] & 0x7F)
	switch n {
	case 126:
		var b [2]byte
		_, err = io.ReadFull(r, b[:])
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		_, err = io.ReadFull(r, b[:])
		n = binary.BigEndian.Uint64(b[:])
	}
	if err != nil {
		return
	}
	var key [4]byte
	if head[1]&0x80 != 0 {
		if _, err = io.ReadFull(r, key[:]); err != nil {
			return
		}
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r, payload)
	if head[1]&0x80 != 0 {
		for i := range payload {
			payload[i] ^= key[i%4]
		}
	}
	return head[0] & 0x0F, payload, err
}

// dialWebSocket opens a WebSocket through the door over TLS.
func (run *running) dialWebSocket(host string) (net.Conn, *bufio.Reader, *http.Response) {
	run.t.Helper()
	conn, err := tls.Dial("tcp", run.tlsAddr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		run.t.Fatal(err)
	}
	run.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", host)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		run.t.Fatal(err)
	}
	return conn, r, resp
}

func TestWebSocketEchoesBothWays(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(echoWebSocket))
	defer up.Close()
	run := testDoor{routes: []testRoute{{spec: appRoute, keys: websockets, to: up.URL}}}.start(t)
	conn, r, resp := run.dialWebSocket("app.test")
	if resp.StatusCode != 101 || resp.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" ||
		resp.Header.Get("X-Up") != "1" || resp.Header.Get("Set-Cookie") != "" || !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	for _, n := range []int{0, 5, 200, 70000} {
		want := bytes.Repeat([]byte{'x'}, n)
		if _, err := conn.Write(frame(2, want, true)); err != nil {
			t.Fatal(err)
		}
		op, got, err := readFrame(r)
		if err != nil || op != 2 || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: op %d, %d bytes, %v", n, op, len(got), err)
		}
	}
	if run.streams.open() != 1 {
		t.Errorf("%d streams followed", run.streams.open())
	}
	conn.Close()
	e := run.entry(1)
	if e.ResponseCode != 101 || e.Size < 70000 {
		t.Errorf("access log %+v", e)
	}
	eventually(t, "the stream is no longer followed", func() bool { return run.streams.open() == 0 })
}

func TestCutWebSocketIsToldWhy(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(echoWebSocket))
	defer up.Close()
	run := testDoor{routes: []testRoute{{spec: appRoute, keys: websockets, to: up.URL}}}.start(t)
	conn, r, _ := run.dialWebSocket("app.test")
	conn.Write(frame(1, []byte("hello"), true))
	if _, _, err := readFrame(r); err != nil {
		t.Fatal(err)
	}
	run.streams.cutAll("the session has ended")
	op, payload, err := readFrame(r)
	if err != nil || op != 8 || len(payload) < 2 || binary.BigEndian.Uint16(payload) != 1008 || string(payload[2:]) != "the session has ended" {
		t.Fatalf("op %d %q %v", op, payload, err)
	}
	if _, err := r.ReadByte(); err == nil {
		t.Error("bytes after the close frame")
	}
	run.entry(1)
}

// TestCloseFrameWaitsForFrameBoundary: the close frame must not land in the
// middle of a frame that the upstream is sending.
func TestCloseFrameWaitsForFrameBoundary(t *testing.T) {
	client, ours := net.Pipe()
	defer client.Close()
	c := &cuttable{Conn: ours, websocket: true}
	whole := frame(2, bytes.Repeat([]byte{'a'}, 300), false)
	got := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(client)
		got <- b
	}()
	c.Write(whole[:1])
	c.Write(whole[1:100])
	c.cut(policyClosure, "over")
	if n, err := c.Write(append(whole[100:len(whole):len(whole)], "next frame"...)); !errors.Is(err, errCut) || n != len(whole)-100 {
		t.Errorf("wrote %d, %v", n, err)
	}
	c.Close()
	want := append(whole, 0x88, 6, 0x03, 0xF0, 'o', 'v', 'e', 'r')
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("client got %d bytes ending %q", len(b), b[len(b)-10:])
	}
}

func TestUpgradesNeedPermission(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(echoWebSocket))
	defer up.Close()
	run := testDoor{routes: []testRoute{
		{spec: from("https://app.test"), to: up.URL},
		{spec: from("https://spdy.test"), keys: RouteConfig{Resolved: Resolved{Upgrades: []string{"spdy/3.1"}}}, to: up.URL},
	}}.start(t)
	for _, host := range []string{"app.test", "spdy.test"} {
		if _, _, resp := run.dialWebSocket(host); resp.StatusCode != 403 {
			t.Errorf("%s: %d", host, resp.StatusCode)
		}
	}
	if e := run.entry(1); e.ResponseCodeDetails != "upgrade_failed" {
		t.Errorf("access log %+v", e)
	}
}

func TestSPDYUpgrade(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\nConnection: Upgrade\r\n\r\n", r.Header.Get("Upgrade"))
		rw.Flush()
		io.Copy(conn, rw)
	}))
	defer up.Close()
	run := testDoor{routes: []testRoute{{spec: appRoute, keys: RouteConfig{Resolved: Resolved{Upgrades: []string{"spdy/3.1"}}}, to: up.URL}}}.start(t)
	conn, err := net.Dial("tcp", run.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(conn, "POST /exec HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\nearly")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || !strings.EqualFold(resp.Header.Get("Upgrade"), "spdy/3.1") {
		t.Fatalf("%v %v", resp, err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "early" {
		t.Fatalf("%q %v", got, err)
	}
}

func TestServerSentEventsAreFlushed(t *testing.T) {
	next := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			<-next
		}
	}))
	defer up.Close()
	run := testDoor{routes: []testRoute{{spec: appRoute, to: up.URL}}}.start(t)
	for _, client := range []*http.Client{run.client, run.h1} {
		resp, err := client.Get("https://app.test/events")
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(resp.Body)
		for i := range 3 {
			line, err := r.ReadString('\n')
			if err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("event %d: %q %v", i, line, err)
			}
			r.ReadString('\n')
			next <- struct{}{} // only now does the upstream go on
		}
		resp.Body.Close()
	}
}

// TestLongStreamIsFollowedAndCut: a response that outlives a second is an open
// stream and ends, visibly broken, when access does.
func TestLongStreamIsFollowedAndCut(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer up.Close()
	run := testDoor{routes: []testRoute{{spec: appRoute, to: up.URL}}}.start(t)
	for i, client := range []*http.Client{run.client, run.h1} {
		resp, err := client.Get("https://app.test/events")
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the stream is followed", func() bool { return run.streams.open() == 1 })
		run.streams.cutAll("gone")
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("the cut stream ended as if it were complete")
		}
		resp.Body.Close()
		if e := run.entry(i + 1); e.ResponseCodeDetails != "stream_cut" {
			t.Errorf("access log %+v", e)
		}
	}
}

// pattern is a reader of n reproducible bytes.
type pattern struct{ n, at int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at >= p.n {
		return 0, io.EOF
	}
	k := min(int64(len(b)), p.n-p.at)
	for i := range b[:k] {
		b[i] = byte((p.at + int64(i)) * 7)
	}
	p.at += k
	return int(k), nil
}

func TestLongBodiesStreamInBoundedMemory(t *testing.T) {
	const size = 64 << 20
	sum := crc32.NewIEEE()
	io.Copy(sum, &pattern{n: size})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := crc32.NewIEEE()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			return
		}
		w.Header().Set("X-Got", fmt.Sprintf("%d %x", n, h.Sum32()))
		io.Copy(w, &pattern{n: size})
	}))
	defer up.Close()
	run := testDoor{routes: []testRoute{{spec: appRoute, to: up.URL}}}.start(t)
	for name, client := range map[string]*http.Client{"h2": run.client, "h1": run.h1} {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		req, _ := http.NewRequest("POST", "https://app.test/", &pattern{n: size})
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(name, err)
		}
		h := crc32.NewIEEE()
		n, err := io.Copy(h, resp.Body)
		resp.Body.Close()
		if err != nil || n != size || h.Sum32() != sum.Sum32() || resp.Header.Get("X-Got") != fmt.Sprintf("%d %x", size, sum.Sum32()) {
			t.Errorf("%s: down %d %x %v, up %s", name, n, h.Sum32(), err, resp.Header.Get("X-Got"))
		}
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > size/2 {
			t.Errorf("%s: heap grew by %d MiB for a body of %d MiB", name, grown>>20, size>>20)
		}
	}
}

// grpcUpstream speaks h2c and answers like a gRPC server: it echoes messages as
// they come and ends with trailers.
func grpcUpstream(t *testing.T) string {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
			http.Error(w, "not gRPC", 500)
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		buf := make([]byte, 64)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "from "+r.Trailer.Get("X-Client"))
	})
	srv := httptest.NewUnstartedServer(h)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	return strings.Replace(srv.URL, "http://", "h2c://", 1)
}

func TestGRPCPassesBothWaysWithTrailers(t *testing.T) {
	run := testDoor{routes: []testRoute{{spec: appRoute, to: grpcUpstream(t)}}}.start(t)
	tr := &http.Transport{
		Protocols:       new(http.Protocols),
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, run.tlsAddr)
		},
	}
	tr.Protocols.SetHTTP2(true)
	defer tr.CloseIdleConnections()
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", "https://app.test/svc/Method", pr)
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	req.Trailer = http.Header{"X-Client": nil, "X-Pomerium-Claim-Email": nil}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	for i := range 3 { // a message goes up and comes back before the next one
		msg := fmt.Sprintf("message %d", i)
		io.WriteString(pw, msg)
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != msg {
			t.Fatalf("%q %v", got, err)
		}
	}
	req.Trailer.Set("X-Client", "client")
	req.Trailer.Set("X-Pomerium-Claim-Email", "evil")
	pw.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
		t.Fatalf("%q %v", rest, err)
	}
	if resp.Trailer.Get("Grpc-Status") != "0" || resp.Trailer.Get("Grpc-Message") != "from client" {
		t.Errorf("trailers %v", resp.Trailer)
	}
}

func TestInformationalResponsesPass(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.WriteHeader(204)
	}))
	defer up.Close()
	run := testDoor{routes: []testRoute{{spec: appRoute, to: up.URL}}}.start(t)
	conn, err := net.Dial("tcp", run.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
	r := bufio.NewReader(conn)
	first, err := http.ReadResponse(r, nil)
	if err != nil || first.StatusCode != 103 || first.Header.Get("Link") == "" {
		t.Fatalf("%v %v", first, err)
	}
	second, err := http.ReadResponse(r, nil)
	if err != nil || second.StatusCode != 204 || second.Header.Get("Link") != "" || second.Header.Get("X-Request-Id") == "" {
		t.Fatalf("%v %v", second, err)
	}
}

func TestTimeoutsNameTheirKey(t *testing.T) {
	hang := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			w.(http.Flusher).Flush()
		}
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}))
	defer up.Close()
	defer close(hang)
	short := 30 * time.Millisecond
	routes := []testRoute{
		{spec: from("https://own.test"), keys: RouteConfig{Timeout: &short, Resolved: Resolved{Timeout: short}}, to: up.URL},
		{spec: from("https://default.test"), keys: RouteConfig{Resolved: Resolved{Timeout: short}}, to: up.URL},
		{spec: from("https://idle.test"), keys: RouteConfig{Resolved: Resolved{IdleTimeout: short}}, to: up.URL},
	}
	run := testDoor{routes: routes}.start(t)
	for host, key := range map[string]string{"own.test": "timeout", "default.test": "default_upstream_timeout", "idle.test": "idle_timeout"} {
		a := run.get("https://" + host + "/")
		if a.StatusCode != 504 || !strings.Contains(a.body, key) {
			t.Errorf("%s: %d, page names %q: %v", host, a.StatusCode, key, strings.Contains(a.body, key))
		}
		// After the head it can only be cut, visibly.
		resp, err := run.client.Get("https://" + host + "/begun")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: a response that ran out of time looks complete", host)
		}
		resp.Body.Close()
	}
	cfg := defaultConfig()
	cfg.TimeoutWrite = short
	life := testDoor{routes: []testRoute{{spec: from("https://app.test"), to: up.URL}}, config: &cfg}.start(t)
	if a := life.get("https://app.test/"); a.StatusCode != 504 || !strings.Contains(a.body, "timeout_write") {
		t.Errorf("timeout_write: %d", a.StatusCode)
	}
	cfg = defaultConfig()
	cfg.TimeoutRead = 100 * time.Millisecond
	slow := testDoor{routes: one(appRoute, RouteConfig{}), config: &cfg}.start(t)
	a := slow.raw("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 10\r\n\r\nabc")
	if a.StatusCode != 408 || !strings.Contains(a.body, "timeout_read") {
		t.Errorf("timeout_read: %d %s", a.StatusCode, a.body)
	}
	if e := slow.entry(1); e.ResponseCodeDetails != "request_overall_timeout" {
		t.Errorf("access log %+v", e)
	}
}

// TestTimeoutCountsFromTheWholeRequest: a long upload is not the upstream's
// slowness.
func TestTimeoutCountsFromTheWholeRequest(t *testing.T) {
	run := testDoor{routes: one(appRoute, RouteConfig{Resolved: Resolved{Timeout: 400 * time.Millisecond}})}.start(t)
	pr, pw := io.Pipe()
	go func() {
		for range 3 {
			pw.Write([]byte("x"))
			time.Sleep(250 * time.Millisecond) // together longer than the timeout
		}
		pw.Close()
	}()
	req, _ := http.NewRequest("POST", "https://app.test/", pr)
	resp, err := run.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// TestTimeoutRunsAfterADeclaredLength: HTTP/2 and HTTP/3 tell the end of a body
// in a read of its own, which nobody makes who knows the length.
func TestTimeoutRunsAfterADeclaredLength(t *testing.T) {
	up := newRecorderless(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	run := testDoor{routes: []testRoute{{spec: appRoute, keys: RouteConfig{Resolved: Resolved{Timeout: 50 * time.Millisecond}}, to: up.URL}}}.start(t)
	for name, client := range map[string]*http.Client{"HTTP/1.1": run.h1, "HTTP/2": run.client, "HTTP/3": run.quic()} {
		for _, size := range []int{5, 100 << 10} {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			req, _ := http.NewRequestWithContext(ctx, "POST", "https://app.test/", strings.NewReader(strings.Repeat("x", size)))
			resp, err := client.Do(req)
			if err != nil {
				t.Fatalf("%s, %d bytes: %v", name, size, err)
			}
			resp.Body.Close()
			cancel()
			if resp.StatusCode != 504 {
				t.Errorf("%s, %d bytes: status %d", name, size, resp.StatusCode)
			}
		}
	}
}

func TestUpstreamFailures(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + ln.Addr().String()
	ln.Close()
	odd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		defer conn.Close()
		if r.URL.Path == "/torn" {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	}))
	defer odd.Close()
	run := testDoor{routes: []testRoute{{spec: from("https://dead.test"), to: dead}, {spec: from("https://odd.test"), to: odd.URL}}}.start(t)
	if a := run.get("https://dead.test/", "Accept", "application/json"); a.StatusCode != 503 || strings.Contains(a.body, "127.0.0.1") || !strings.Contains(a.body, `"status":503`) {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	if a := run.get("https://odd.test/"); a.StatusCode != 502 {
		t.Errorf("%d", a.StatusCode)
	}
	for _, client := range []*http.Client{run.client, run.h1} {
		resp, err := client.Get("https://odd.test/torn")
		if err != nil {
			continue // broken before the head was out: as visible
		}
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("a torn response looks complete")
		}
		resp.Body.Close()
	}
}

func TestClientDisconnectReachesTheUpstream(t *testing.T) {
	gone := make(chan struct{})
	started := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
		close(gone)
	}))
	defer up.Close()
	run := testDoor{routes: []testRoute{{spec: appRoute, to: up.URL}}}.start(t)
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "GET", "https://app.test/", nil)
	go func() { <-started; cancel() }()
	if _, err := run.client.Do(req); err == nil {
		t.Fatal("no error")
	}
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Fatal("the upstream was not told")
	}
	if e := run.entry(1); e.ResponseCodeDetails != "downstream_remote_disconnect" {
		t.Errorf("access log %+v", e)
	}
}

func TestRefusalDoesNotWaitForTheBody(t *testing.T) {
	run := testDoor{routes: one(from("https://app.test"), RouteConfig{}), decide: decideTo(authz.Decision{Outcome: authz.Deny, Status: 403})}.start(t)
	conn, err := net.Dial("tcp", run.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 403 || !resp.Close {
		t.Fatalf("%v %v", resp, err)
	}
}

func TestHeadKeepsTheLength(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/304" {
			w.Header().Set("ETag", `"x"`)
			w.WriteHeader(304)
			return
		}
		w.Header().Set("Content-Length", "12345")
		if r.Method == "GET" {
			io.Copy(w, &pattern{n: 12345})
		}
	}))
	defer up.Close()
	run := testDoor{routes: []testRoute{{spec: appRoute, to: up.URL}}}.start(t)
	for _, client := range []*http.Client{run.client, run.h1} {
		if a := run.do(client, "HEAD", "https://app.test/", ""); a.StatusCode != 200 || a.ContentLength != 12345 {
			t.Errorf("HEAD: %d, length %d", a.StatusCode, a.ContentLength)
		}
		if a := run.do(client, "GET", "https://app.test/", ""); a.ContentLength != 12345 || len(a.body) != 12345 {
			t.Errorf("GET: length %d, %d bytes", a.ContentLength, len(a.body))
		}
		if a := run.do(client, "GET", "https://app.test/304", ""); a.StatusCode != 304 || a.Header.Get("ETag") != `"x"` || a.Header.Get("Content-Type") != "" {
			t.Errorf("304: %d %v", a.StatusCode, a.Header)
		}
	}
}

func TestRandomBinaryBodySurvives(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}))
	defer up.Close()
	run := testDoor{routes: []testRoute{{spec: appRoute, to: up.URL}}}.start(t)
	want := make([]byte, 300000)
	rand.Read(want)
	if a := run.do(run.h1, "PUT", "https://app.test/", string(want)); a.body != string(want) || a.Header.Get("Content-Type") == "" {
		t.Errorf("%d bytes came back", len(a.body))
	}
}
