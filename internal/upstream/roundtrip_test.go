package upstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/exchange"
)

var discardLog = log.New(io.Discard, "", 0)

// echo answers with what it got.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s host=%s len=%d body=%q\n", r.Proto, r.Method, r.RequestURI, r.Host, r.ContentLength, b)
	var names []string
	for n := range r.Header {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		fmt.Fprintf(w, "%s: %q\n", n, r.Header[n])
	}
	for n, v := range r.Trailer {
		fmt.Fprintf(w, "trailer %s: %q\n", n, v)
	}
})

func upstreamServer(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// TestProtocols: one request over every kind of endpoint.
func TestProtocols(t *testing.T) {
	ca := newAuthority(t)
	pair, _, _ := ca.leaf(t, nil)
	config := func() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{pair}} }
	plain := upstreamServer(t, echo)
	h1 := tlsUpstream(t, echo, false, config())
	h2 := tlsUpstream(t, echo, true, config())
	h2c := httptest.NewUnstartedServer(echo)
	h2c.Config.Protocols = new(http.Protocols)
	h2c.Config.Protocols.SetUnencryptedHTTP2(true)
	h2c.Start()
	t.Cleanup(h2c.Close)
	socket := filepath.Join(t.TempDir(), "app.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	unix := httptest.NewUnstartedServer(echo)
	unix.Listener.Close()
	unix.Listener = ln
	unix.Start()
	t.Cleanup(unix.Close)
	tlsSocket := filepath.Join(t.TempDir(), "tls.sock")
	if ln, err = net.Listen("unix", tlsSocket); err != nil {
		t.Fatal(err)
	}
	unixTLS := httptest.NewUnstartedServer(echo)
	unixTLS.Listener.Close()
	unixTLS.Listener = ln
	unixTLS.TLS = config()
	unixTLS.StartTLS()
	t.Cleanup(unixTLS.Close)

	trusted := TLS{CustomCA: ca.PEM}
	for _, tc := range []struct {
		name, to, proto, host string
		spec                  Spec
	}{
		{"http", plain.URL, "HTTP/1.1", strings.TrimPrefix(plain.URL, "http://"), Spec{}},
		{"localhost", strings.Replace(plain.URL, "127.0.0.1", "localhost", 1), "HTTP/1.1", "localhost", Spec{}},
		{"https http/1.1", h1.URL, "HTTP/1.1", "127.0.0.1", Spec{TLS: trusted}},
		{"https h2", h2.URL, "HTTP/2.0", "127.0.0.1", Spec{TLS: trusted}},
		{"https h2, WebSockets on", h2.URL, "HTTP/1.1", "127.0.0.1", Spec{TLS: trusted, WebSockets: true}},
		{"h2c", strings.Replace(h2c.URL, "http:", "h2c:", 1), "HTTP/2.0", "127.0.0.1", Spec{}},
		{"unix", "unix://" + socket, "HTTP/1.1", "localhost", Spec{}},
		{"http+unix", "http+unix://" + socket, "HTTP/1.1", "localhost", Spec{}},
		{"https+unix", "https+unix://" + tlsSocket, "HTTP/1.1", "localhost", Spec{TLS: TLS{CustomCA: ca.PEM, ServerName: "app.test"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newDoor(t, target(t, tc.spec, tc.to))
			req, _ := http.NewRequest("POST", d.URL+"/a%2Fb;c/%7e?q=1;2&%zz", strings.NewReader("hello"))
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			o := d.outcome(t)
			if o.err != nil {
				t.Fatal(o.err)
			}
			first, _, _ := strings.Cut(string(b), "\n")
			want := tc.proto + " POST /a%2Fb;c/%7e?q=1;2&%zz host=" + tc.host
			if !strings.HasPrefix(first, want) || !strings.HasSuffix(first, `len=5 body="hello"`) {
				t.Errorf("upstream saw %q, want %q", first, want)
			}
			if o.RequestBytes != 5 || o.ResponseBytes != int64(len(b)) || o.Details != "via_upstream" || o.Status != 200 {
				t.Errorf("result %+v", o.Result)
			}
			for _, unwanted := range []string{"Go-http-client", "gzip\""} {
				if strings.Contains(string(b), "User-Agent: [\""+unwanted) && req.Header.Get("User-Agent") != "" {
					t.Errorf("upstream saw %s", unwanted)
				}
			}
		})
	}
}

// wire sends one raw request through a door and gives what a raw upstream
// received.
func wire(t *testing.T, request string, edits func(*http.Request) *exchange.HeaderEdits) string {
	t.Helper()
	got := make(chan string, 1)
	to, _ := raw(t, func(c net.Conn, r *bufio.Reader) {
		head, _ := readRequestHead(r)
		got <- head
		io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
	})
	d := newDoor(t, target(t, Spec{}, to))
	d.edits = edits
	c, err := net.Dial("tcp", d.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, request)
	select {
	case head := <-got:
		return head
	case o := <-d.results:
		if o.err != nil {
			t.Fatalf("not forwarded: %v", o.err)
		}
		return <-got
	case <-time.After(10 * time.Second):
		t.Fatal("upstream got nothing")
	}
	return ""
}

func TestRequestHead(t *testing.T) {
	head := wire(t, "GET /x HTTP/1.1\r\nHost: app\r\nX-A: 1\r\nX-A: 2\r\nConnection: keep-alive, X-Hop, X-Pomerium-Jwt-Assertion\r\nX-Hop: 1\r\n"+
		"Keep-Alive: 5\r\nProxy-Authorization: x\r\nProxy-Connection: x\r\nTE: trailers, deflate\r\nX_User: evil\r\nX-User: evil\r\nCookie: a=1; secret=2\r\nX-Old: 1\r\nX-Gone: 1\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
		func(r *http.Request) *exchange.HeaderEdits {
			return &exchange.HeaderEdits{
				Host: "other.example", Path: "/judged%2F", RawQuery: "", HasQuery: true,
				Strip:       exchange.NewNameSet("x-user"),
				Set:         []exchange.Field{{Name: "X-Pomerium-Jwt-Assertion", Value: "ours"}, {Name: "x-OLD", Value: "new"}, {Name: "X-Gone", Value: "2"}, {Name: "Content-Length", Value: "7"}},
				Add:         []exchange.Field{{Name: "X-A", Value: "3"}, {Name: "Connection", Value: "close"}},
				FinalRemove: exchange.NewNameSet("x-gone"),
				Cookie:      func(s string) string { return strings.ReplaceAll(s, "; secret=2", "") },
			}
		})
	lines := strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")
	if lines[0] != "GET /judged%2F? HTTP/1.1" {
		t.Errorf("request line %q", lines[0])
	}
	sort.Strings(lines[1:])
	want := "Cookie: a=1|Host: other.example|TE: trailers|X-A: 1|X-A: 2|X-A: 3|X-Pomerium-Jwt-Assertion: ours|x-OLD: new"
	if got := strings.Join(lines[1:], "|"); got != want {
		t.Errorf("upstream got %s\nwant         %s", got, want)
	}
}

func TestTargetsSentAsJudged(t *testing.T) {
	for _, tc := range []struct{ path, query string }{
		{"/", ""}, {"//a//b", "x"}, {"//|", ""}, {"/a|b\"{}^`\\", "<>|\"{}"}, {"/%2e%2E/%zz", "%%%"}, {"/a;b=c", "a;b"}, {"/\xc3\xa9", "\xff"}, {"/a:b@c", ""},
	} {
		head := wire(t, "GET / HTTP/1.1\r\nHost: app\r\n\r\n", func(*http.Request) *exchange.HeaderEdits {
			return &exchange.HeaderEdits{Path: tc.path, RawQuery: tc.query, HasQuery: tc.query != ""}
		})
		want := "GET " + tc.path + " HTTP/1.1\r\n"
		if tc.query != "" {
			want = "GET " + tc.path + "?" + tc.query + " HTTP/1.1\r\n"
		}
		if !strings.HasPrefix(head, want) {
			t.Errorf("upstream got %q, want %q", head, want)
		}
	}
}

func TestTargetsRefused(t *testing.T) {
	d := newDoor(t, target(t, Spec{}, upstreamServer(t, echo).URL))
	for _, e := range []exchange.HeaderEdits{
		{Path: "/a b"}, {Path: "/a\r\nX: 1"}, {Path: "/a#b"}, {Path: "/a?b"}, {Path: "http://evil/"}, {Path: "a"},
		{Path: "/", RawQuery: "a b", HasQuery: true}, {Path: "/", RawQuery: "a#b", HasQuery: true},
		{Path: "/", Set: []exchange.Field{{Name: "X", Value: "a\r\nb"}}}, {Path: "/", Set: []exchange.Field{{Name: "X Y", Value: "a"}}},
	} {
		d.edits = func(*http.Request) *exchange.HeaderEdits { return &e }
		resp, _ := get(t, d.URL)
		if o := d.outcome(t); resp.StatusCode != 400 || !errors.Is(o.err, ErrBadRequest) {
			t.Errorf("%+v: %d, %v", e, resp.StatusCode, o.err)
		}
	}
}

func TestResponses(t *testing.T) {
	app := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/multi":
			w.Header().Add("Set-Cookie", "a=1")
			w.Header().Add("Set-Cookie", "b=2")
			w.Header().Set("Connection", "X-Hop")
			w.Header().Set("X-Hop", "1")
			w.Header().Set("Keep-Alive", "x")
			io.WriteString(w, "body")
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("ETag", `"x"`)
			w.WriteHeader(304)
		case "/head":
			w.Header().Set("Content-Length", "1234")
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "part")
			w.(http.Flusher).Flush()
			w.Header().Set("X-Sum", "42")
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			w.Write([]byte("not really gzip"))
		}
	}))
	d := newDoor(t, target(t, Spec{}, app.URL))
	d.options.OnResponse = func(h *ResponseHead) error {
		h.Set("X-Added", h.Get("etag"))
		return nil
	}
	resp, body := get(t, d.URL+"/multi")
	if body != "body" || len(resp.Header["Set-Cookie"]) != 2 || resp.Header.Get("X-Hop")+resp.Header.Get("Keep-Alive") != "" || resp.ContentLength != 4 {
		t.Errorf("multi: %q %v", body, resp.Header)
	}
	if resp, _ = get(t, d.URL+"/204"); resp.StatusCode != 204 || resp.Header.Get("Content-Length") != "" {
		t.Errorf("204: %v", resp.Header)
	}
	if resp, _ = get(t, d.URL+"/304"); resp.StatusCode != 304 || resp.Header.Get("X-Added") != `"x"` {
		t.Errorf("304: %v", resp.Header)
	}
	resp, err := http.Head(d.URL + "/head")
	if err != nil || resp.Header.Get("Content-Length") != "1234" {
		t.Errorf("HEAD: %v %v", err, resp.Header)
	}
	resp, body = get(t, d.URL+"/trailers")
	if body != "part" || resp.Trailer.Get("X-Sum") != "42" {
		t.Errorf("trailers: %q %v", body, resp.Trailer)
	}
	req, _ := http.NewRequest("GET", d.URL+"/gzip", nil)
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err = http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "not really gzip" {
		t.Errorf("gzip: %q", b)
	}
}

func TestOnResponseMayRefuse(t *testing.T) {
	d := newDoor(t, target(t, Spec{}, upstreamServer(t, echo).URL))
	d.options.OnResponse = func(*ResponseHead) error { return errors.New("no") }
	resp, _ := get(t, d.URL)
	if o := d.outcome(t); resp.StatusCode != 502 || !errors.Is(o.err, ErrBadResponse) {
		t.Errorf("%d, %v", resp.StatusCode, o.err)
	}
}

func TestInformational(t *testing.T) {
	app := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(103)
		w.Header().Del("Link")
		io.WriteString(w, "ok")
	}))
	d := newDoor(t, target(t, Spec{}, app.URL))
	var got []string
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		got = append(got, fmt.Sprint(code, h.Get("Link")))
		return nil
	}}
	req, _ := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace), "GET", d.URL, nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if len(got) != 1 || got[0] != "103</style.css>; rel=preload" || resp.Header.Get("Link") != "" {
		t.Errorf("1xx: %q, final %v", got, resp.Header)
	}
}

func TestRequestTrailers(t *testing.T) {
	d := newDoor(t, target(t, Spec{}, upstreamServer(t, echo).URL))
	d.edits = func(r *http.Request) *exchange.HeaderEdits {
		return &exchange.HeaderEdits{Path: "/", Strip: exchange.NewNameSet("x-pomerium-*"), Set: []exchange.Field{{Name: "X-Ours", Value: "1"}}}
	}
	req, _ := http.NewRequest("POST", d.URL, io.NopCloser(strings.NewReader("body")))
	req.Trailer = http.Header{"X-Sum": nil, "X-Pomerium-Claim-Email": nil, "X-Ours": nil, "Authorization": nil}
	req.Body = &setTrailers{Reader: strings.NewReader("body"), r: req}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(b), `trailer X-Sum: ["v"]`) || strings.Count(string(b), "trailer ") != 1 {
		t.Errorf("upstream saw:\n%s", b)
	}
}

type setTrailers struct {
	io.Reader
	r *http.Request
}

func (s *setTrailers) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err == io.EOF {
		for name := range s.r.Trailer {
			s.r.Trailer[name] = []string{"v"}
		}
	}
	return n, err
}
func (s *setTrailers) Close() error { return nil }

func TestServerSentEventsAreNotHeldBack(t *testing.T) {
	next := make(chan bool)
	app := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for range next {
			io.WriteString(w, "data: x\n\n")
			w.(http.Flusher).Flush()
		}
	}))
	d := newDoor(t, target(t, Spec{}, app.URL))
	resp, err := http.Get(d.URL) // returns once the head is through
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	br := bufio.NewReader(resp.Body)
	for range 3 {
		next <- true
		if line, err := br.ReadString('\n'); line != "data: x\n" || err != nil {
			t.Fatalf("%q %v", line, err)
		}
		br.ReadString('\n')
	}
	close(next)
}

// TestLargeStreams: 100 MB each way, with memory that does not grow with them.
func TestLargeStreams(t *testing.T) {
	const size = 100 << 20
	app := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, err)
			return
		}
		chunk := make([]byte, 64<<10)
		for sent := 0; sent < size; sent += len(chunk) {
			w.Write(chunk)
		}
	}))
	d := newDoor(t, target(t, Spec{}, app.URL))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak atomic.Uint64
	stop := make(chan bool)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapAlloc))
			}
		}
	})
	resp, err := http.Get(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if n != size || err != nil {
		t.Errorf("downloaded %d, %v", n, err)
	}
	resp, err = http.Post(d.URL, "x/y", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != fmt.Sprint(size, "<nil>") && string(b) != fmt.Sprintf("%d <nil>", size) {
		t.Errorf("uploaded: %s", b)
	}
	close(stop)
	wg.Wait()
	runtime.ReadMemStats(&after)
	if grown := int64(peak.Load()) - int64(before.HeapAlloc); grown > 24<<20 {
		t.Errorf("heap grew by %d bytes", grown)
	}
	o := d.outcome(t)
	if o.ResponseBytes != size {
		t.Errorf("counted %d", o.ResponseBytes)
	}
	if o = d.outcome(t); o.RequestBytes != size {
		t.Errorf("counted %d", o.RequestBytes)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestEarlyAnswerToUpload: the upstream answers 413 in mid-body. The answer
// comes through, and its connection is not used again.
func TestEarlyAnswerToUpload(t *testing.T) {
	to, conns := raw(t, func(c net.Conn, r *bufio.Reader) {
		for {
			head, err := readRequestHead(r)
			if err != nil {
				return
			}
			if strings.HasPrefix(head, "POST") {
				io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
				continue // reads the rest of the body as a request, as a victim would
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	d := newDoor(t, target(t, Spec{}, to))
	pr, pw := io.Pipe()
	defer pw.Close()
	go pw.Write([]byte(strings.Repeat("x", 1000)))
	req, _ := http.NewRequest("POST", d.URL, pr)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 413 || string(b) != "big" {
		t.Errorf("%d %q", resp.StatusCode, b)
	}
	if o := d.outcome(t); o.err != nil {
		t.Errorf("early answer: %v", o.err)
	}
	if _, body := get(t, d.URL); body != "ok" {
		t.Errorf("next user got %q", body)
	}
	if n := conns(); n != 2 {
		t.Errorf("%d upstream connections, want a second one", n)
	}
}

// TestExpectContinue: the body is asked for only once the upstream agreed.
func TestExpectContinue(t *testing.T) {
	for _, agree := range []bool{true, false} {
		to, _ := raw(t, func(c net.Conn, r *bufio.Reader) {
			head, _ := readRequestHead(r)
			if !strings.Contains(head, "Expect: 100-continue") {
				io.WriteString(c, "HTTP/1.1 500 no Expect\r\nContent-Length: 0\r\n\r\n")
				return
			}
			if !agree {
				io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
				if n, _ := io.Copy(io.Discard, r); n > 0 {
					t.Errorf("%d body bytes sent without being asked for", n)
				}
				return
			}
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			b := make([]byte, 5)
			io.ReadFull(r, b)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n%s", b)
		})
		d := newDoor(t, target(t, Spec{}, to))
		c, err := net.Dial("tcp", d.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
		br := bufio.NewReader(c)
		line, _ := br.ReadString('\n')
		if agree {
			if line != "HTTP/1.1 100 Continue\r\n" {
				t.Errorf("client got %q", line)
			}
			br.ReadString('\n')
			io.WriteString(c, "hello")
			line, _ = br.ReadString('\n')
			if line != "HTTP/1.1 200 OK\r\n" {
				t.Errorf("client got %q", line)
			}
		} else if line != "HTTP/1.1 401 Unauthorized\r\n" {
			t.Errorf("client got %q", line)
		}
		if o := d.outcome(t); o.err != nil {
			t.Error(o.err)
		}
		c.Close()
	}
}

// TestMalformedResponses: each is a 502, or an aborted body where the head
// was already gone, and its connection is never used again.
func TestMalformedResponses(t *testing.T) {
	for _, tc := range []struct {
		name, answer string
		late         bool // the head is in order, and arrives first
	}{
		{name: "length and coding", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
		{name: "two lengths", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"},
		{name: "length not a number", answer: "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok"},
		{name: "other coding", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
		{name: "hidden coding", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"},
		{name: "coding in HTTP/1.0", answer: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{name: "bare LF in head", answer: "HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok"},
		{name: "bare LF ends head", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nok"},
		{name: "folding", answer: "HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok"},
		{name: "space before colon", answer: "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok"},
		{name: "NUL", answer: "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok"},
		{name: "no status", answer: "HTTP/1.1 OK\r\n\r\n"},
		{name: "status 099", answer: "HTTP/1.1 099 X\r\n\r\n"},
		{name: "HTTP/3", answer: "HTTP/3.0 200 OK\r\n\r\n"},
		{name: "not HTTP", answer: "SSH-2.0-OpenSSH\r\n"},
		{name: "bytes after length", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"},
		{name: "bytes after chunks", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"},
		{name: "bytes after 204", answer: "HTTP/1.1 204 OK\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"},
		{name: "bad chunk at once", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nok\r\n0\r\n\r\n"},
		{name: "bare LF in chunk", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n"},
		{name: "101 unasked", answer: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"},
		{name: "too many headers", answer: "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: 1\r\n", 1001) + "Content-Length: 2\r\n\r\nok"},
		{name: "too large a head", answer: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 140<<10) + "\r\n\r\n"},
		{name: "bad chunk later", late: true, answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n|ZZ\r\n0\r\n\r\n"},
		{name: "more than the length", late: true, answer: "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok|okpoison"},
		{name: "less than the length", late: true, answer: "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok|"},
		{name: "chunks break off", late: true, answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n|"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			headSeen := make(chan bool, 2)
			first := true
			to, conns := raw(t, func(c net.Conn, r *bufio.Reader) {
				for {
					if _, err := readRequestHead(r); err != nil {
						return
					}
					if !first {
						io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
						continue
					}
					first = false
					before, after, _ := strings.Cut(tc.answer, "|")
					io.WriteString(c, before)
					if tc.late {
						<-headSeen
						io.WriteString(c, after)
						if after == "" {
							return
						}
					}
				}
			})
			d := newDoor(t, target(t, Spec{}, to))
			d.options.OnResponse = func(*ResponseHead) error { headSeen <- true; return nil }
			var b []byte
			resp, err := http.Get(d.URL)
			if err == nil {
				b, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			o := d.outcome(t)
			if !errors.Is(o.err, ErrBadResponse) {
				t.Errorf("error %v", o.err)
			}
			if tc.late {
				if err == nil {
					t.Errorf("the client took %q for whole", b)
				}
			} else if err != nil || resp.StatusCode != 502 {
				t.Errorf("%v, %v, body %q", resp, err, b)
			}
			if strings.Contains(string(b), "poison") {
				t.Errorf("poison in %q", b)
			}
			if _, body := get(t, d.URL); body != "fine" {
				t.Errorf("next user got %q", body)
			}
			if conns() != 2 {
				t.Errorf("%d connections: the broken one was used again", conns())
			}
		})
	}
}

// TestUnaskedBytesOnIdleConnection: what an upstream sends on an idle
// connection is not the answer to the next request.
func TestUnaskedBytesOnIdleConnection(t *testing.T) {
	poison := make(chan bool)
	first := true
	to, conns := raw(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := readRequestHead(r); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
			if first {
				first = false
				<-poison
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
				poison <- true
				io.Copy(io.Discard, r) // until closed
				poison <- true
				return
			}
		}
	})
	d := newDoor(t, target(t, Spec{}, to))
	get(t, d.URL)
	poison <- true
	<-poison // written: over loopback that is, arrived
	if _, body := get(t, d.URL); body != "fine" {
		t.Errorf("got %q", body)
	}
	<-poison // the proxy closed it
	if conns() != 2 {
		t.Errorf("%d connections", conns())
	}
}

func TestTimeouts(t *testing.T) {
	release := make(chan bool)
	app := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/silent":
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case "/stalls":
			io.WriteString(w, "begin")
			w.(http.Flusher).Flush()
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case "/upload":
			b, _ := io.ReadAll(r.Body)
			fmt.Fprint(w, len(b))
		}
	}))
	defer close(release)
	d := newDoor(t, target(t, Spec{}, app.URL))
	d.options.Timeout = 50 * time.Millisecond
	resp, body := get(t, d.URL+"/silent")
	o := d.outcome(t)
	var e *Error
	if resp.StatusCode != 504 || !errors.As(o.err, &e) || e.Kind != ErrTimeout || e.Key != "timeout" || o.Details != "response_timeout" || !strings.Contains(body, "(timeout)") {
		t.Errorf("%d %v %q", resp.StatusCode, o.err, body)
	}

	// The clock of the response head does not run while the body arrives.
	pr, pw := io.Pipe()
	go func() {
		for range 4 {
			pw.Write([]byte("x"))
			time.Sleep(30 * time.Millisecond)
		}
		pw.Close()
	}()
	resp, err := http.Post(d.URL+"/upload", "x/y", pr)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if o = d.outcome(t); string(b) != "4" || o.err != nil {
		t.Errorf("slow upload: %q %v", b, o.err)
	}

	d.options = Options{IdleTimeout: 50 * time.Millisecond}
	resp, err = http.Get(d.URL + "/stalls")
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(resp.Body)
	resp.Body.Close()
	if o = d.outcome(t); err == nil || !errors.As(o.err, &e) || e.Key != "idle_timeout" || o.Details != "stream_idle_timeout" {
		t.Errorf("stall: %v, %v", err, o.err)
	}

	// A client that stalls in its body is cut too, although Transport waits
	// for it.
	pr, pw = io.Pipe()
	go pw.Write([]byte("x"))
	resp, err = http.Post(d.URL+"/upload", "x/y", pr)
	pw.Close()
	if err == nil {
		resp.Body.Close()
	}
	if o = d.outcome(t); !errors.As(o.err, &e) || e.Key != "idle_timeout" {
		t.Errorf("stalled upload: %v", o.err)
	}
}

// TestClientThatReadsNothing: a blocked write to the client ends with the
// idle timeout.
func TestClientThatReadsNothing(t *testing.T) {
	app := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, io.LimitReader(zeros{}, 1<<30))
	}))
	d := newDoor(t, target(t, Spec{}, app.URL))
	d.options.IdleTimeout = 100 * time.Millisecond
	c, err := net.Dial("tcp", d.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if o := d.outcome(t); !errors.Is(o.err, ErrTimeout) {
		t.Errorf("%v", o.err)
	}
}

func TestClientAbortReachesUpstream(t *testing.T) {
	began, gone := make(chan bool, 1), make(chan bool, 1)
	app := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began <- true
		<-r.Context().Done()
		gone <- true
	}))
	d := newDoor(t, target(t, Spec{}, app.URL))
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "GET", d.URL, nil)
	go func() { <-began; cancel() }()
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Error("no error")
	}
	<-gone
	if o := d.outcome(t); !errors.Is(o.err, ErrClientGone) || o.Details != "downstream_remote_disconnect" {
		t.Errorf("%v %s", o.err, o.Details)
	}
}

func TestCutByContext(t *testing.T) {
	app := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	d := newDoor(t, target(t, Spec{}, app.URL))
	resp, err := http.Get(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	revoked := errors.New("session revoked")
	d.cut(revoked)
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the body ended as if whole")
	}
	if o := d.outcome(t); !errors.Is(o.err, ErrCut) || !errors.Is(o.err, revoked) {
		t.Errorf("%v", o.err)
	}
}

func TestUpstreamDownAndUp(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	d := newDoor(t, target(t, Spec{}, "http://"+addr))
	resp, body := get(t, d.URL)
	o := d.outcome(t)
	if resp.StatusCode != 502 || !errors.Is(o.err, ErrUnreachable) || o.Details != "upstream_reset_before_response_started{connection_failure}" || !strings.Contains(o.err.Error(), "connection refused") {
		t.Errorf("%d %v %s", resp.StatusCode, o.err, o.Details)
	}
	if strings.Contains(body, "127.0.0.1") {
		t.Errorf("the visitor is told %q", body)
	}
	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	app := httptest.NewUnstartedServer(echo)
	app.Listener.Close()
	app.Listener = ln
	app.Start()
	defer app.Close()
	if resp, _ = get(t, d.URL); resp.StatusCode != 200 {
		t.Errorf("back up: %d", resp.StatusCode)
	}
	// It restarts while a connection is idle: the next request goes over a
	// fresh one.
	for range 5 {
		app.CloseClientConnections()
		if resp, _ = get(t, d.URL); resp.StatusCode != 200 {
			t.Errorf("after restart: %d", resp.StatusCode)
		}
	}
}

// TestReplay: what Transport has read of a small body can be read again.
func TestReplay(t *testing.T) {
	for _, size := range []int{0, 5, replaySize, replaySize + 1} {
		want := bytes.Repeat([]byte("x"), size)
		b := newRequestBody(plainBody{bytes.NewReader(want)}, -1)
		b.touched, b.ended = func() {}, func() {}
		buf := make([]byte, 1<<20)
		for n, total := 1, 0; n > 0 && total < size; total += n {
			n, _ = b.Read(buf)
		}
		again, err := b.again()
		if size > replaySize {
			if err == nil {
				t.Error("a large body can be read again")
			}
		} else if got, readErr := io.ReadAll(again); err != nil || readErr != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d, %v %v", size, len(got), err, readErr)
		}
		b.finish()
	}
}

// TestNeverTwice: an upstream that takes a request over a connection in use and
// closes it without an answer is asked again only what may be asked twice.
func TestNeverTwice(t *testing.T) {
	for _, tc := range []struct {
		method, body string
		header       string
		twice        bool
	}{
		{"GET", "", "", true},
		{"HEAD", "", "", true},
		{"GET", "with a body", "", false},
		{"POST", "", "", false},
		{"POST", "hello", "", false},
		{"POST", "hello", "Idempotency-Key", false},
		{"POST", "", "X-Idempotency-Key", false},
		{"PUT", "hello", "", false},
		{"DELETE", "", "", false},
	} {
		var mu sync.Mutex
		heads := 0
		to, _ := raw(t, func(c net.Conn, r *bufio.Reader) {
			for n := 0; ; n++ {
				if _, err := readRequestHead(r); err != nil {
					return
				}
				mu.Lock()
				heads++
				all := heads
				mu.Unlock()
				if n == 1 && all == 2 {
					return // the second request of the first connection
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		})
		d := newDoor(t, target(t, Spec{}, to))
		get(t, d.URL)
		req, _ := http.NewRequest(tc.method, d.URL, strings.NewReader(tc.body))
		if tc.header != "" {
			req.Header[tc.header] = []string{"1"}
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		mu.Lock()
		if twice := heads == 3; twice != tc.twice || twice != (resp.StatusCode == 200) {
			t.Errorf("%s %q %s: asked %d times, status %d", tc.method, tc.body, tc.header, heads-1, resp.StatusCode)
		}
		mu.Unlock()
	}
}

type plainBody struct{ io.Reader }

func (plainBody) Trailers() iter.Seq2[string, string] { return func(func(string, string) bool) {} }

// TestNextEndpoint: what one endpoint does not even connect for, another takes.
func TestNextEndpoint(t *testing.T) {
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	dead := "http://" + ln.Addr().String()
	ln.Close()
	d := newDoor(t, target(t, Spec{}, dead, upstreamServer(t, echo).URL))
	for range 4 {
		resp, err := http.Post(d.URL, "x/y", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || !strings.Contains(string(b), "hello") {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
	}
}

func TestBodyOverHTTP2Upstream(t *testing.T) {
	ca := newAuthority(t)
	pair, _, _ := ca.leaf(t, nil)
	app := tlsUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.(http.Flusher).Flush()
		io.Copy(flushWriter{w}, r.Body) // both ways at once
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	}), true, &tls.Config{Certificates: []tls.Certificate{pair}})
	d := newDoor(t, target(t, Spec{TLS: TLS{CustomCA: ca.PEM}}, app.URL))
	d.Config.Handler = fullDuplex{d}
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", d.URL, pr)
	req.Header.Set("Te", "trailers")
	go pw.Write([]byte("one\n"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	br := bufio.NewReader(resp.Body)
	for _, word := range []string{"one\n", "two\n", "three\n"} {
		if line, err := br.ReadString('\n'); line != word || err != nil {
			t.Fatalf("%q %v", line, err)
		}
		switch word {
		case "one\n":
			pw.Write([]byte("two\n"))
		case "two\n":
			pw.Write([]byte("three\n"))
		case "three\n":
			pw.Close()
		}
	}
	if _, err := io.ReadAll(br); err != nil {
		t.Fatal(err)
	}
	if resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("trailers %v", resp.Trailer)
	}
}

type fullDuplex struct{ h http.Handler }

func (f fullDuplex) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	http.NewResponseController(w).EnableFullDuplex()
	f.h.ServeHTTP(w, r)
}

type flushWriter struct{ w http.ResponseWriter }

func (f flushWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	f.w.(http.Flusher).Flush()
	return n, err
}

func TestNoTarget(t *testing.T) {
	var x testExchange
	u, _ := url.Parse("/")
	_, err := RoundTrip(context.Background(), nil, nil, &testView{r: &http.Request{URL: u}}, &x, Options{})
	if !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
}
