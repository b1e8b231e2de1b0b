package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/certs"
)

// served is a Server on a loopback port.
type served struct {
	*Server
	addr string
	done chan error
}

func serve(t *testing.T, o ServeOptions) *served {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{Server: NewServer(o), addr: ln.Addr().String(), done: make(chan error, 1)}
	go func() { s.done <- s.Serve(ln) }()
	t.Cleanup(func() { s.Close(); <-s.done })
	return s
}

func testTLS(t *testing.T, protos ...string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"app.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: protos}
}

// clientTLS trusts whatever a test serves.
func clientTLS(protos ...string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "app.test", NextProtos: protos}
}

// bodyEcho answers "METHOD target len body".
var bodyEcho = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		var bad *HeadError
		if errors.As(err, &bad) {
			http.Error(w, bad.Error(), bad.Status)
			return
		}
		panic(http.ErrAbortHandler)
	}
	fmt.Fprintf(w, "%s %s %d %s", r.Method, r.RequestURI, len(b), b)
})

func dial(t *testing.T, s *served) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c, bufio.NewReader(c)
}

func readResponse(t *testing.T, br *bufio.Reader) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// TestWire sends each head through a live server, whole and byte by byte, in
// clear and over TLS.
func TestWire(t *testing.T) {
	var refusals atomic.Int64
	refused := func(info *ConnInfo, err *HeadError) string {
		refusals.Add(1)
		if !info.Direct.IsValid() || err.Reason == "" {
			t.Error("refusal without address or reason")
		}
		return "req-1"
	}
	clear := serve(t, ServeOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RequestURI) }), OnRefused: refused})
	secure := serve(t, ServeOptions{Handler: clear.o.Handler, OnRefused: refused, TLS: testTLS(t, "http/1.1")})
	for _, tc := range headCases {
		if tc.name == "TLS" {
			continue // next test
		}
		head, status := tc.head, tc.status
		if status == 0 {
			status = 200
			// A body for those that announce one.
			switch {
			case strings.Contains(head, "hunked"):
				head += "0\r\n\r\n"
			case strings.Contains(head, "Content-Length: 1\r\n"):
				head += "x"
			}
		}
		for _, s := range []*served{clear, secure} {
			for _, split := range []bool{false, true} {
				if split && len(head) > 200 {
					continue
				}
				c, br := dial(t, s)
				if s == secure {
					tc := tls.Client(c, clientTLS("http/1.1"))
					c, br = tc, bufio.NewReader(tc)
				}
				go func() { // the answer may come before all is written
					for i := 0; split && i < len(head); i++ {
						if _, err := io.WriteString(c, head[i:i+1]); err != nil {
							return
						}
					}
					if !split {
						io.WriteString(c, head)
					}
				}()
				line, err := br.ReadString('\n')
				if errors.Is(err, os.ErrDeadlineExceeded) {
					// Others would wait as long: say at once who waits for whom.
					stacks := make([]byte, 1<<20)
					t.Fatalf("%s (split %v, TLS %v): no answer\n%s", tc.name, split, s == secure, stacks[:runtime.Stack(stacks, true)])
				}
				if err != nil || !strings.Contains(line, fmt.Sprintf(" %d ", status)) {
					t.Errorf("%s (split %v): %q %v, want %d", tc.name, split, line, err, status)
				}
				if status != 200 {
					if rest, _ := io.ReadAll(br); !strings.Contains(string(rest), "X-Request-Id: req-1") {
						t.Errorf("%s: %q", tc.name, rest)
					}
				}
				c.Close()
			}
		}
	}
	if refusals.Load() == 0 {
		t.Error("no refusal reported")
	}
}

// TestPipeline: each message ends where its head says, and the answers come
// in order, the refusal last.
func TestPipeline(t *testing.T) {
	s := serve(t, ServeOptions{Handler: bodyEcho})
	c, br := dial(t, s)
	io.WriteString(c, "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"+
		"POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nX-T: 1\r\n\r\n"+
		"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n"+
		"GET /4 HTTP/1.1\r\nHost: a\r\nX : smuggled\r\n\r\nGET /5 HTTP/1.1\r\nHost: a\r\n\r\n")
	for _, want := range []string{"POST /1 5 hello", "POST /2 5 abcde", "GET /3 0 "} {
		if resp, body := readResponse(t, br); resp.StatusCode != 200 || body != want {
			t.Errorf("%d %q, want %q", resp.StatusCode, body, want)
		}
	}
	if resp, body := readResponse(t, br); resp.StatusCode != 400 || !resp.Close || !strings.Contains(body, "header name is malformed") {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	if rest, err := io.ReadAll(br); len(rest) > 0 || err != nil {
		t.Errorf("after the refusal: %q %v", rest, err)
	}
}

// TestSmuggling: what hides in a body is not a request.
func TestSmuggling(t *testing.T) {
	var served atomic.Int64
	s := serve(t, ServeOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if r.URL.Path == "/admin" {
			t.Error("smuggled request served")
		}
		bodyEcho(w, r)
	})})
	const inner = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, in := range []string{
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n" + inner,
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\n\n" + inner,
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0;\n\r\n\r\n" + inner,
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n" + inner,
		"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: " + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
	} {
		c, br := dial(t, s)
		io.WriteString(c, in)
		c.(*net.TCPConn).CloseWrite()
		rest, _ := io.ReadAll(br)
		if !strings.HasPrefix(string(rest), "HTTP/1.1 400") && !strings.Contains(string(rest), "GET / ") {
			t.Errorf("%q: %q", in, rest)
		}
	}
	if served.Load() == 0 {
		t.Error("nothing served")
	}
}

// TestReceivedHeads: the handler can have names, order and multiplicity as
// they came.
func TestReceivedHeads(t *testing.T) {
	s := serve(t, ServeOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := ConnInfoFrom(r.Context()).TakeHead(r)
		for _, f := range h.Fields {
			fmt.Fprintf(w, "%s=%s|", f.Name, f.Value)
		}
	})})
	c, br := dial(t, s)
	io.WriteString(c, "GET /1 HTTP/1.1\r\nhOst: a\r\nx-B: 2\r\nX-b: 1\r\nPragma: no-cache\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nA:\r\n\r\n")
	if _, body := readResponse(t, br); body != "hOst=a|x-B=2|X-b=1|Pragma=no-cache|" {
		t.Errorf("%q", body)
	}
	if _, body := readResponse(t, br); body != "Host=a|A=|" {
		t.Errorf("%q", body)
	}
}

func TestUpgradePassesThrough(t *testing.T) {
	s := serve(t, ServeOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			io.WriteString(w, "plain")
			return
		}
		c, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		io.Copy(c, buf)
	})})
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
	} {
		c, br := dial(t, s)
		const bytes = "\x00\x01not HTTP\n\r\n"
		io.WriteString(c, request+bytes)
		br.ReadString('\n')
		br.ReadString('\n')
		io.WriteString(c, bytes)
		c.(*net.TCPConn).CloseWrite()
		if got, _ := io.ReadAll(br); string(got) != bytes+bytes {
			t.Errorf("echoed %q", got)
		}
	}
	// Not taken: a plain answer, and the connection ends, whatever follows.
	c, br := dial(t, s)
	io.WriteString(c, "GET /no HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET /no HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, body := readResponse(t, br); body != "plain" || !resp.Close {
		t.Errorf("%q, close %v", body, resp.Close)
	}
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		t.Errorf("then %q", rest)
	}
}

func TestVersions(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info := ConnInfoFrom(r.Context())
		if r.URL.Path == "/tls" && (r.TLS == nil || info.TLS == nil || info.TLS.ServerName != "app.test") {
			t.Error("no TLS state")
		}
		if r.URL.Path == "/" && (r.TLS != nil || info.TLS != nil) {
			t.Error("TLS state on a clear connection")
		}
		if info.Direct.Addr() != netip.MustParseAddr("127.0.0.1") || info.Local.Port() == 0 {
			t.Errorf("addresses %v %v", info.Direct, info.Local)
		}
		io.WriteString(w, r.Proto)
	})
	secure := serve(t, ServeOptions{Handler: h, TLS: testTLS(t, "h2", "http/1.1")})
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		tr := &http.Transport{TLSClientConfig: clientTLS(), ForceAttemptHTTP2: proto == "HTTP/2.0"}
		resp, err := (&http.Client{Transport: tr}).Get("https://" + secure.addr + "/tls")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != proto {
			t.Errorf("%s, want %s", b, proto)
		}
		tr.CloseIdleConnections()
	}
	clear := serve(t, ServeOptions{Handler: h})
	for _, h2 := range []bool{false, true} {
		tr := &http.Transport{Protocols: new(http.Protocols)}
		tr.Protocols.SetHTTP1(!h2)
		tr.Protocols.SetUnencryptedHTTP2(h2)
		resp, err := (&http.Client{Transport: tr}).Get("http://" + clear.addr)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if (string(b) == "HTTP/2.0") != h2 {
			t.Errorf("%s", b)
		}
		tr.CloseIdleConnections()
	}
	// The wrong protocol gets words, not bytes.
	c, br := dial(t, secure)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if line, _ := br.ReadString('\n'); line != "HTTP/1.1 400 Bad Request\r\n" {
		t.Errorf("HTTP to HTTPS: %q", line)
	}
	c, br = dial(t, clear)
	go tls.Client(c, clientTLS()).Handshake()
	if line, _ := br.ReadString('\n'); line != "" && line != "HTTP/1.1 400 Bad Request\r\n" {
		t.Errorf("HTTPS to HTTP: %q", line)
	}
	// Versions that are off.
	only1 := serve(t, ServeOptions{Handler: h, NoHTTP2: true})
	c, br = dial(t, only1)
	io.WriteString(c, h2cPreface)
	if line, _ := br.ReadString('\n'); line != "HTTP/1.1 400 Bad Request\r\n" {
		t.Errorf("HTTP/2 where it is off: %q", line)
	}
}

// TestHTTP2Fields: what net/http does not check on HTTP/2.
func TestHTTP2Fields(t *testing.T) {
	s := serve(t, ServeOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := r.Header["Host"]; ok {
			t.Error("Host field left")
		}
		io.WriteString(w, "ok")
	}), OnRefused: func(*ConnInfo, *HeadError) string { return "id" }})
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	for _, tc := range []struct {
		change func(*http.Request)
		status int
	}{
		{func(r *http.Request) {}, 200},
		{func(r *http.Request) { r.Host = "a,b" }, 400},
		{func(r *http.Request) {
			for i := range 1001 {
				r.Header.Add("X", fmt.Sprint(i))
			}
		}, 431},
	} {
		req, _ := http.NewRequest("GET", "http://"+s.addr, nil)
		tc.change(req)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Error(err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != tc.status || tc.status != 200 && resp.Header.Get("X-Request-Id") != "id" {
			t.Errorf("%d %v, want %d", resp.StatusCode, resp.Header, tc.status)
		}
	}
	for host, want := range map[string]*HeadError{s.addr: nil, "other": errHeadHostMismatch} {
		r, _ := http.NewRequest("GET", "http://"+s.addr, nil)
		r.Header["Host"] = []string{host}
		if got := checkFields(r); got != want {
			t.Errorf("Host %s: %v", host, got)
		}
	}
}

// TestSlowloris: heads that never end and handshakes that never begin are cut,
// on first and later requests, while others are served.
func TestSlowloris(t *testing.T) {
	o := ServeOptions{Handler: bodyEcho, ReadHeaderTimeout: 100 * time.Millisecond, HandshakeTimeout: 100 * time.Millisecond, IdleTimeout: time.Minute, MaxHandshakes: 2}
	clear := serve(t, o)
	o.TLS = testTLS(t, "http/1.1")
	secure := serve(t, o)
	var slow []net.Conn
	for i := range 20 {
		c, br := dial(t, clear)
		if i%2 == 1 { // behind a good request
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			readResponse(t, br)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nX: ")
		stop := make(chan bool)
		defer close(stop)
		go func() { // dribbles on
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
					if _, err := io.WriteString(c, "y"); err != nil {
						return
					}
				}
			}
		}()
		half, _ := dial(t, secure)
		io.WriteString(half, "\x16\x03\x01\x02\x00\x01\x00") // a hello that does not go on
		slow = append(slow, c, half)
	}
	for _, s := range []*served{clear, secure} {
		url := "http://" + s.addr
		if s == secure {
			url = "https://" + s.addr
		}
		tr := &http.Transport{TLSClientConfig: clientTLS()}
		resp, err := (&http.Client{Transport: tr}).Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		tr.CloseIdleConnections()
	}
	for i, c := range slow {
		rest, err := io.ReadAll(c) // ends when we are cut
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d is still open", i)
		}
		if len(rest) > 0 && !strings.HasPrefix(string(rest), "HTTP/1.1 408") {
			t.Errorf("%d: %q", i, rest)
		}
	}
}

// TestStalledHandshakes: peers that stop in mid-handshake hold none of the
// slots that others need.
func TestStalledHandshakes(t *testing.T) {
	s := serve(t, ServeOptions{Handler: bodyEcho, TLS: testTLS(t, "http/1.1"), MaxHandshakes: 1, HandshakeTimeout: time.Minute})
	for range 5 {
		c, _ := dial(t, s)
		stalled := &deafConn{Conn: c, heard: make(chan bool), end: t.Context().Done()}
		go tls.Client(stalled, clientTLS()).Handshake()
		<-stalled.heard // our flight is there; the peer does not go on
	}
	tr := &http.Transport{TLSClientConfig: clientTLS()}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: 15 * time.Second}).Get("https://" + s.addr)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// TestWaitingHandshakes: neither does one that waits for somebody else, before
// it can go on: an OCSP responder, a storage of challenges.
func TestWaitingHandshakes(t *testing.T) {
	config := testTLS(t, "http/1.1")
	waiting, end := make(chan struct{}), make(chan struct{})
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "slow.test" {
			certs.HandshakeWaits(hello)
			close(waiting)
			<-end
		}
		return &config.Certificates[0], nil
	}
	s := serve(t, ServeOptions{Handler: bodyEcho, TLS: config, MaxHandshakes: 1, HandshakeTimeout: time.Minute})
	c, _ := dial(t, s)
	slow := clientTLS()
	slow.ServerName = "slow.test"
	done := make(chan error, 1)
	go func() { done <- tls.Client(c, slow).Handshake() }()
	<-waiting
	tr := &http.Transport{TLSClientConfig: clientTLS()}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: 15 * time.Second}).Get("https://" + s.addr)
	close(end)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if err := <-done; err != nil {
		t.Errorf("the one that waited: %v", err)
	}
}

// deafConn reads one byte and then nothing more.
type deafConn struct {
	net.Conn
	heard chan bool
	end   <-chan struct{}
}

func (c *deafConn) Read(p []byte) (int, error) {
	c.Conn.Read(p[:1])
	close(c.heard)
	<-c.end
	return 0, io.EOF
}

func TestProxyProtocol(t *testing.T) {
	var failed sync.Map
	o := ServeOptions{
		ProxyProtocol: true,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			info := ConnInfoFrom(r.Context())
			fmt.Fprint(w, info.Direct, " ", info.Proxy.IsValid())
		}),
		OnConnectionFailed: func(info *ConnInfo, _ string, err error) { failed.Store(err.Error(), true) },
		HandshakeTimeout:   time.Second,
	}
	const request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	open := serve(t, o)
	o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	closed := serve(t, o)
	o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	listed := serve(t, o)
	for _, tc := range []struct {
		s        *served
		in, want string
	}{
		{open, "PROXY TCP4 198.51.100.7 127.0.0.1 4711 443\r\n", "198.51.100.7:4711 true"},
		{listed, "PROXY TCP6 2001:db8::7 ::1 4711 443\r\n", "[2001:db8::7]:4711 true"},
		{open, "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc6\x33\x64\x08\x7f\x00\x00\x01\x12\x67\x01\xbb", "198.51.100.8:4711 true"},
		{open, "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", "127.0.0.1:"},
		{open, "PROXY UNKNOWN\r\n", "127.0.0.1:"},
		{open, "", ""},
		{open, "PROXY TCP4 nonsense 127.0.0.1 4711 443\r\n", ""},
		{closed, "PROXY TCP4 198.51.100.7 127.0.0.1 4711 443\r\n", ""},
	} {
		c, br := dial(t, tc.s)
		io.WriteString(c, tc.in+request)
		rest, _ := io.ReadAll(br)
		_, body, _ := strings.Cut(string(rest), "\r\n\r\n")
		if !strings.HasPrefix(body, tc.want) || tc.want == "" && body != "" {
			t.Errorf("%q: %q, want %q", tc.in, rest, tc.want)
		}
	}
	// The client sees the end before the report is made.
	eventually(t, "three failures are reported", func() bool {
		n := 0
		failed.Range(func(any, any) bool { n++; return true })
		return n == 3
	})
}

// TestConcurrent: many connections of both versions at once.
func TestConcurrent(t *testing.T) {
	s := serve(t, ServeOptions{TLS: testTLS(t, "h2", "http/1.1"), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ConnInfoFrom(r.Context()).TakeHead(r)
		bodyEcho(w, r)
	})})
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			tr := &http.Transport{TLSClientConfig: clientTLS(), ForceAttemptHTTP2: worker%2 == 0}
			defer tr.CloseIdleConnections()
			client := &http.Client{Transport: tr}
			var streams sync.WaitGroup
			for stream := range 4 {
				streams.Go(func() {
					for i := range 20 {
						body := strings.Repeat("x", (i*997)%20000)
						resp, err := client.Post(fmt.Sprintf("https://%s/%d/%d", s.addr, stream, i), "x/y", io.NopCloser(strings.NewReader(body)))
						if err != nil {
							t.Error(err)
							return
						}
						b, _ := io.ReadAll(resp.Body)
						resp.Body.Close()
						if string(b) != fmt.Sprintf("POST /%d/%d %d %s", stream, i, len(body), body) {
							t.Errorf("answer of %d bytes to %d", len(b), len(body))
						}
					}
				})
			}
			streams.Wait()
		})
	}
	wg.Wait()
}

// TestShutdown: requests and tunnels under way may finish; idle connections of
// both versions end; nothing new is taken.
func TestShutdown(t *testing.T) {
	began, finish := make(chan bool, 10), make(chan bool)
	s := serve(t, ServeOptions{TLS: testTLS(t, "h2", "http/1.1"), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			began <- true
			<-finish
		}
		io.WriteString(w, "done")
	})})
	h1 := &http.Client{Transport: &http.Transport{TLSClientConfig: clientTLS()}}
	h2 := &http.Client{Transport: &http.Transport{TLSClientConfig: clientTLS(), ForceAttemptHTTP2: true}}
	var wg sync.WaitGroup
	for _, c := range []*http.Client{h1, h2} {
		wg.Go(func() {
			resp, err := c.Get("https://" + s.addr + "/slow")
			if err != nil {
				t.Error(err)
				return
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(b) != "done" {
				t.Errorf("%q", b)
			}
		})
		<-began
	}
	// An idle one, and one opened ahead.
	idle, err := tls.Dial("tcp", s.addr, clientTLS("http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	br := bufio.NewReader(idle)
	readResponse(t, br)
	ahead, err := tls.Dial("tcp", s.addr, clientTLS("http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- s.Shutdown(ctx) }()
	if _, err := br.ReadByte(); err == nil {
		t.Error("idle connection still open")
	}
	ahead.SetReadDeadline(time.Now().Add(15 * time.Second))
	if _, err := ahead.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connection opened ahead: %v", err)
	}
	if c, err := net.Dial("tcp", s.addr); err == nil {
		c.Close()
		t.Error("still accepting")
	}
	close(finish)
	wg.Wait()
	if err := <-drained; err != nil {
		t.Error(err)
	}
	if err := <-s.done; err != http.ErrServerClosed {
		t.Error(err)
	}
	s.done <- nil
	if n := s.Connections(); n != 0 {
		t.Errorf("%d connections left", n)
	}
}

// TestShutdownEnds: what does not finish in time is cut.
func TestShutdownEnds(t *testing.T) {
	s := serve(t, ServeOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 101 X\r\n\r\n")
			io.Copy(io.Discard, c)
		}
	})})
	c, br := dial(t, s)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
	br.ReadString('\n')
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := io.ReadAll(br); err != nil {
		t.Error(err)
	}
}

func TestServeUntilContextEnds(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, ServeOptions{Handler: bodyEcho}) }()
	resp, err := http.Get("http://" + ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestReadTimeoutCutsABody(t *testing.T) {
	s := serve(t, ServeOptions{Handler: bodyEcho, ReadTimeout: 100 * time.Millisecond})
	c, br := dial(t, s)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
	if rest, _ := io.ReadAll(br); strings.Contains(string(rest), "200") {
		t.Errorf("%q", rest)
	}
}

// TestRefusedHandshake: an error of the TLS configuration reaches the hook.
func TestRefusedHandshake(t *testing.T) {
	failed := make(chan string, 1)
	config := testTLS(t)
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, errors.New("no such name") }
	s := serve(t, ServeOptions{Handler: bodyEcho, TLS: config, MaxHandshakes: 1, OnConnectionFailed: func(_ *ConnInfo, sni string, err error) { failed <- sni + ": " + err.Error() }})
	for range 3 { // the one slot comes back
		c, _ := dial(t, s)
		if err := tls.Client(c, clientTLS()).Handshake(); err == nil {
			t.Error("handshake succeeded")
		}
		if got := <-failed; !strings.Contains(got, "no such name") {
			t.Errorf("%q", got)
		}
	}
}
