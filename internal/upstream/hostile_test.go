package upstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/exchange"
	"postern/internal/upstream/http1"
)

// stuck is a client that does not move: its body, and what it is written, wait
// until the exchange is aborted or the body closed.
type stuck struct {
	nullExchange
	body    exchange.BodySource
	on      string // what waits: inform, begin, write
	waiting chan string
	aborted chan struct{}
	once    sync.Once
	flushes atomic.Int64
}

func newStuck(on string) *stuck {
	return &stuck{on: on, waiting: make(chan string, 100), aborted: make(chan struct{})}
}

func (x *stuck) wait(what string) error {
	if what != x.on {
		return nil
	}
	x.waiting <- what
	<-x.aborted
	return net.ErrClosed
}

func (x *stuck) Body() exchange.BodySource                  { return x.body }
func (x *stuck) Inform(int, exchange.HeaderSeq) error       { return x.wait("inform") }
func (x *stuck) Begin(int, exchange.HeaderSeq, int64) error { return x.wait("begin") }
func (x *stuck) Write(p []byte) (int, error)                { return len(p), x.wait("write") }
func (x *stuck) Flush() error                               { x.flushes.Add(1); return nil }
func (x *stuck) Abort(error)                                { x.once.Do(func() { close(x.aborted) }) }

// stuckBody gives what it has, then waits until it is closed.
type stuckBody struct {
	has     io.Reader
	reading chan bool
	closed  chan struct{}
	once    sync.Once
}

func newStuckBody(has string) *stuckBody {
	return &stuckBody{has: strings.NewReader(has), reading: make(chan bool, 100), closed: make(chan struct{})}
}

func (b *stuckBody) Read(p []byte) (int, error) {
	if n, _ := b.has.Read(p); n > 0 {
		return n, nil
	}
	b.reading <- true
	<-b.closed
	return 0, net.ErrClosed
}
func (b *stuckBody) Close() error                        { b.once.Do(func() { close(b.closed) }); return nil }
func (b *stuckBody) Trailers() iter.Seq2[string, string] { return func(func(string, string) bool) {} }

// endless is a body that never ends.
type endless struct{ zeros }

func (endless) Close() error                        { return nil }
func (endless) Trailers() iter.Seq2[string, string] { return func(func(string, string) bool) {} }

func request(t testing.TB, method string, size int64, header ...string) *testView {
	t.Helper()
	r, err := http.NewRequest(method, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.RequestURI = "/"
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return &testView{r: r, size: &size}
}

// TestCutReachesEverything: wherever an exchange waits, cutting it ends the
// wait, and nothing of it stays behind.
func TestCutReachesEverything(t *testing.T) {
	arrived := make(chan bool, 100) // the upstream did what the stage needs
	says := func(answer string, body int) func(net.Conn, *bufio.Reader) {
		return func(c net.Conn, r *bufio.Reader) {
			readRequestHead(r)
			r.Discard(body)
			io.WriteString(c, answer)
			arrived <- true
			io.Copy(io.Discard, r)
		}
	}
	deaf := func(c net.Conn, r *bufio.Reader) {
		c.(*net.TCPConn).SetReadBuffer(4096)
		arrived <- true
		var one [1]byte
		for c.SetReadDeadline(time.Now().Add(time.Minute)) == nil {
			if _, err := c.Read(one[:]); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	const streams = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun"
	body := newStuckBody("")
	small := newStuckBody("hi")
	early := newStuckBody("hi")
	onInform, onBegin, onWrite := newStuck("inform"), newStuck("begin"), newStuck("write")
	for _, tc := range []struct {
		name    string
		serve   func(net.Conn, *bufio.Reader)
		v       *testView
		x       *stuck
		body    exchange.BodySource
		tls     bool
		reached <-chan bool
		writing <-chan string
	}{
		{name: "TLS handshake", tls: true, serve: says("", 0), v: request(t, "GET", 0)},
		{name: "writing the head", serve: deaf, v: request(t, "GET", 0, "X-Large", strings.Repeat("x", 32<<20)), reached: arrived},
		{name: "sending the body", serve: deaf, v: request(t, "POST", -1), body: endless{}, reached: arrived},
		{name: "reading a small body", serve: says("", 0), v: request(t, "POST", 5), body: small, reached: small.reading},
		{name: "reading a body", serve: says("", 0), v: request(t, "POST", -1), body: body, reached: body.reading},
		{name: "reading a body after the answer began", serve: says(streams, 0), v: request(t, "POST", -1), body: early, reached: early.reading},
		{name: "waiting for 100", serve: says("", 0), v: request(t, "POST", 5, "Expect", "100-continue"), body: newStuckBody(""), reached: arrived},
		{name: "the answer", serve: says("", 0), v: request(t, "GET", 0), reached: arrived},
		{name: "half a head", serve: says("HTTP/1.1 200 OK\r\nX: ", 0), v: request(t, "GET", 0), reached: arrived},
		{name: "the answer's body", serve: says(streams, 0), v: request(t, "GET", 0), reached: arrived},
		{name: "the answer's chunks", serve: says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbe", 0), v: request(t, "GET", 0), reached: arrived},
		{name: "telling the client 103", serve: says("HTTP/1.1 103 Early\r\n\r\n", 0), v: request(t, "GET", 0), x: onInform, writing: onInform.waiting},
		{name: "telling the client the head", serve: says(streams, 0), v: request(t, "GET", 0), x: onBegin, writing: onBegin.waiting},
		{name: "writing to the client", serve: says(streams, 0), v: request(t, "GET", 0), x: onWrite, writing: onWrite.waiting},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for len(arrived) > 0 {
				<-arrived
			}
			to, conns := raw(t, tc.serve)
			if tc.tls {
				to = strings.Replace(to, "http:", "https:", 1)
			}
			tg := target(t, Spec{}, to)
			x := tc.x
			if x == nil {
				x = newStuck("")
			}
			x.body = tc.body
			ctx, cut := context.WithCancelCause(context.Background())
			defer cut(nil)
			result := make(chan error)
			go func() {
				_, err := RoundTrip(ctx, tg, nil, tc.v, x, Options{})
				result <- err
			}()
			switch {
			case tc.reached != nil:
				<-tc.reached
			case tc.writing != nil:
				<-tc.writing
			default:
				becomes(t, func() bool { return conns() == 1 })
			}
			revoked := errors.New("revoked")
			cut(revoked)
			select {
			case err := <-result:
				if !errors.Is(err, ErrCut) || !errors.Is(err, revoked) {
					t.Errorf("%v", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it still waits")
			}
			nothingLeft(t, tg)
		})
	}
}

// nothingLeft checks that all counts of a target are back at nothing.
func nothingLeft(t *testing.T, tg *Target) {
	t.Helper()
	b := &tg.breaker
	if b.requests.Load() != 0 || b.slots.Load() != 0 || b.retries.Load() != 0 || b.waiters.Load() != 0 {
		t.Errorf("requests %d, slots %d, retries %d, waiting %d", b.requests.Load(), b.slots.Load(), b.retries.Load(), b.waiters.Load())
	}
	for _, h := range tg.hosts.Load().hosts {
		if n := h.inFlight.Load(); n != 0 {
			t.Errorf("%d in flight", n)
		}
	}
	becomes(t, func() bool { return b.open.Load() == 0 })
}

// TestCutFirst: an exchange that is cut before it begins waits for no client.
func TestCutFirst(t *testing.T) {
	to, _ := raw(t, func(c net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) })
	revoked := errors.New("revoked")
	for _, size := range []int64{5, 1 << 20, -1} {
		tg := target(t, Spec{}, to)
		ctx, cut := context.WithCancelCause(context.Background())
		cut(revoked)
		x := newStuck("")
		x.body = newStuckBody("")
		result := make(chan error)
		go func() {
			_, err := RoundTrip(ctx, tg, nil, request(t, "POST", size), x, Options{})
			result <- err
		}()
		select {
		case err := <-result:
			if !errors.Is(err, revoked) || !errors.Is(err, ErrCut) {
				t.Errorf("%d: %v", size, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%d: it waits for the client's body", size)
		}
		nothingLeft(t, tg)
	}
	// The cut may come before the body is known.
	e := &trip{o: &Options{}}
	e.interrupt()
	body := newStuckBody("")
	defer body.Close()
	s := &sender{src: body, out: &outgoing{size: 5}, touched: func() {}}
	e.setUpload(s)
	result := make(chan error, 1)
	go func() { result <- s.readFirst() }()
	select {
	case <-result:
	case <-body.reading:
		t.Error("the client's body is read")
	}
}

// TestInterimFloodOverHTTP2: answers of 1xx without end are the end, and a
// client that takes none of them holds nobody else up.
func TestInterimFloodOverHTTP2(t *testing.T) {
	ca := newAuthority(t)
	pair, _, _ := ca.leaf(t, nil)
	app := tlsUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.URL.Path == "/flood" && r.Context().Err() == nil {
			w.WriteHeader(http.StatusEarlyHints)
		}
		if r.URL.Path == "/hint" {
			w.WriteHeader(http.StatusEarlyHints)
			<-r.Context().Done()
		}
	}), true, tlsServer(pair))
	tg := target(t, Spec{TLS: TLS{CustomCA: ca.PEM}}, app.URL)
	ask := func(path string, x exchange.Exchange, o Options) error {
		v := request(t, "GET", 0)
		v.r.RequestURI = path
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := RoundTrip(ctx, tg, nil, v, x, o)
		return err
	}
	if err := ask("/flood", nullExchange{}, Options{}); !errors.Is(err, ErrBadResponse) {
		t.Errorf("%v", err)
	}
	x := newStuck("inform")
	first := make(chan error)
	go func() { first <- ask("/hint", x, Options{IdleTimeout: time.Second}) }()
	<-x.waiting
	if err := ask("/", nullExchange{}, Options{IdleTimeout: 20 * time.Second}); err != nil {
		t.Errorf("another's exchange: %v", err)
	}
	if n := tg.breaker.open.Load(); n != 1 {
		t.Errorf("%d connections: they did not share one", n)
	}
	if err := <-first; !errors.Is(err, ErrTimeout) {
		t.Errorf("%v", err)
	}
}

// TestPlacesAmongPoolsComeBack: an address that DNS does not name any more
// takes no place among max_connection_pools.
func TestPlacesAmongPoolsComeBack(t *testing.T) {
	tg := target(t, Spec{Breakers: Breakers{MaxConnectionPools: ptr(uint32(1))}}, "http://app.test")
	for i := range byte(3) {
		later := time.Now().Add(time.Hour)
		set := tg.apply([]*answer{{addrs: []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1 + i})}, due: later, late: later}})
		for range 2 {
			if _, err := tg.linksOf(set.hosts[0]); err != nil {
				t.Fatalf("address %d: %v", i, err)
			}
		}
		if n := tg.breaker.pools.Load(); n != 1 {
			t.Errorf("%d pools", n)
		}
	}
}

// TestLengthOfNothing: a request whose method is for sending says that it has
// nothing to send, as servers that answer 411 want it.
func TestLengthOfNothing(t *testing.T) {
	for method, want := range map[string]bool{"POST": true, "PUT": true, "PATCH": true, "GET": false, "DELETE": false} {
		heads := make(chan string, 1)
		to, _ := raw(t, func(c net.Conn, r *bufio.Reader) {
			head, _ := readRequestHead(r)
			heads <- head
			io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		})
		if _, err := RoundTrip(context.Background(), target(t, Spec{}, to), nil, request(t, method, 0), nullExchange{}, Options{}); err != nil {
			t.Fatal(err)
		}
		if head := <-heads; strings.Contains(head, "Content-Length: 0\r\n") != want {
			t.Errorf("%q", head)
		}
	}
}

// TestProtocolChanges: an upstream that begins to speak HTTP/1.1 only, and
// later HTTP/2 only, is followed.
func TestProtocolChanges(t *testing.T) {
	ca := newAuthority(t)
	pair, _, _ := ca.leaf(t, nil)
	var protocols atomic.Pointer[[]string]
	config := tlsServer(pair)
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := tlsServer(pair)
		c.NextProtos = *protocols.Load()
		if c.NextProtos[0] == "h2" && !slices.Contains(hello.SupportedProtos, "h2") {
			c.NextProtos = []string{"none"} // else crypto/tls makes do with HTTP/1.1
		}
		return c, nil
	}
	app := tlsUpstream(t, echo, true, config)
	tg := target(t, Spec{TLS: TLS{CustomCA: ca.PEM}}, app.URL)
	d := newDoor(t, tg)
	for _, p := range [][]string{{"h2", "http/1.1"}, {"http/1.1"}, {"h2"}} {
		protocols.Store(&p)
		app.CloseClientConnections()
		tg.closeIdle()
		version := "HTTP/1.1 "
		if p[0] == "h2" {
			version = "HTTP/2.0 "
		}
		if resp, body := get(t, d.URL); resp.StatusCode != 200 || !strings.HasPrefix(body, version) {
			t.Errorf("%v: %d %.20q", p, resp.StatusCode, body)
		}
		for _, size := range []int{10, 100 << 10} {
			app.CloseClientConnections()
			tg.closeIdle()
			sent := strings.Repeat("x", size)
			resp, err := http.Post(d.URL, "text/plain", strings.NewReader(sent))
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 || !strings.HasPrefix(string(b), version) || !strings.Contains(string(b), sent) {
				t.Errorf("%v: %d bytes: %d %.20q", p, size, resp.StatusCode, b)
			}
		}
	}
}

// halfWritten takes some of a request, fails, and answers in full.
type halfWritten struct {
	net.Conn
	answer io.Reader
}

func (c *halfWritten) Write([]byte) (int, error)        { return 5, net.ErrClosed }
func (c *halfWritten) Read(p []byte) (int, error)       { return c.answer.Read(p) }
func (c *halfWritten) SetReadDeadline(time.Time) error  { return nil }
func (c *halfWritten) SetWriteDeadline(time.Time) error { return nil }

// TestHalfWritten: a connection with half a request on it is not used again,
// however well it answered.
func TestHalfWritten(t *testing.T) {
	e := &trip{ctx: context.Background(), began: time.Now(), o: &Options{}}
	a := &direct{e: e, conn: http1.NewConn(&halfWritten{answer: strings.NewReader("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")})}
	if _, err := e.ask(a, &outgoing{method: "POST"}, []byte("POST / HTTP/1.1\r\n")); err != nil || a.Status != 413 {
		t.Fatalf("%d %v", a.Status, err)
	}
	if a.conn.Reusable() {
		t.Error("it would be used again")
	}
}

// TestFlushes: what arrives together goes out together; what is followed by
// silence goes out at once.
func TestFlushes(t *testing.T) {
	for answer, want := range map[string]int64{
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n":   0,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n|0\r\n\r\n":  1,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n|2\r\nab\r\n2|\r\ncd\r\n0\r\n\r\n": 2,
		"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab|cd":                                      0,
		"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 4\r\n\r\nab|cd":   1,
	} {
		x := newStuck("")
		to, _ := raw(t, func(c net.Conn, r *bufio.Reader) {
			readRequestHead(r)
			var flushed int64
			for piece := range strings.SplitSeq(answer, "|") {
				if want > 0 && piece != answer[:len(piece)] {
					flushed++
					becomes(t, func() bool { return x.flushes.Load() >= flushed })
				}
				io.WriteString(c, piece)
			}
		})
		if _, err := RoundTrip(context.Background(), target(t, Spec{}, to), nil, request(t, "GET", 0), x, Options{}); err != nil {
			t.Fatal(err)
		}
		if n := x.flushes.Load(); n != want {
			t.Errorf("%q: %d flushes, want %d", answer, n, want)
		}
	}
}

// TestErrorsLeaveNothing: every way to fail gives back what it took.
func TestErrorsLeaveNothing(t *testing.T) {
	for _, answer := range []string{
		"", "nonsense\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nless", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nmore",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nless", "HTTP/1.1 101 X\r\n\r\n", strings.Repeat("HTTP/1.1 103 X\r\n\r\n", 100),
		"HTTP/1.1 413 Large\r\nContent-Length: 3\r\n\r\nbig",
	} {
		for _, size := range []int64{0, 5, -1} {
			to, _ := raw(t, func(c net.Conn, r *bufio.Reader) {
				readRequestHead(r)
				io.WriteString(c, answer)
			})
			tg := target(t, Spec{}, to)
			x := newStuck("")
			if size != 0 {
				x.body = struct {
					plainBody
					io.Closer
				}{plainBody{bytes.NewReader([]byte("hello"))}, io.NopCloser(nil)}
			}
			RoundTrip(context.Background(), tg, nil, request(t, "POST", size), x, Options{IdleTimeout: 10 * time.Second})
			tg.closeIdle()
			nothingLeft(t, tg)
		}
	}
}

// endedBody has ended, which Transport is not told.
type endedBody struct {
	plainBody
	closed atomic.Bool
}

func (b *endedBody) Close() error { b.closed.Store(true); return nil }

// TestReadBodyIsNotClosed: a body that was read to its end is left alone, though
// nobody took its last part: what closes it would end the client's next request.
func TestReadBodyIsNotClosed(t *testing.T) {
	src := &endedBody{plainBody: plainBody{strings.NewReader("m")}}
	b := newRequestBody(src, -1)
	ended := make(chan bool)
	b.touched, b.ended = func() {}, func() { close(ended) }
	if n, err := b.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	<-ended
	b.finish()
	if src.closed.Load() {
		t.Error("it was closed")
	}
}
