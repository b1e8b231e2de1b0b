package upstream

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/exchange"
)

// TestMain fails the package if anything is left running: connections that
// stay behind are how proxies die.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		deadline := time.Now().Add(10 * time.Second)
		for leaked() != "" && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
		}
		if s := leaked(); s != "" {
			fmt.Fprintf(os.Stderr, "goroutines left running:\n%s\n", s)
			code = 1
		}
	}
	os.Exit(code)
}

func leaked() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for _, g := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(g, "postern/internal/upstream.") && !strings.Contains(g, "TestMain") {
			left = append(left, g)
		}
	}
	return strings.Join(left, "\n\n")
}

// door is the smallest proxy: every request goes through RoundTrip.
type door struct {
	*httptest.Server
	mu      sync.Mutex
	target  *Target
	edits   func(*http.Request) *exchange.HeaderEdits
	options Options
	results chan exchanged
	cut     context.CancelCauseFunc // of the last exchange
}

type exchanged struct {
	Result
	err error
}

func newDoor(t *testing.T, target *Target) *door {
	t.Helper()
	d := &door{target: target, results: make(chan exchanged, 1000)}
	d.Server = httptest.NewUnstartedServer(d)
	d.Config.ErrorLog = nil
	d.Start()
	t.Cleanup(d.Close)
	return d
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := &testView{r: r}
	x := &testExchange{w: w, r: r, rc: http.NewResponseController(w)}
	edits := &exchange.HeaderEdits{Path: v.Path(), RawQuery: v.RawQuery(), HasQuery: v.HasQuery()}
	if d.edits != nil {
		edits = d.edits(r)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	d.mu.Lock()
	d.cut = cancel
	target := d.target
	d.mu.Unlock()
	result, err := RoundTrip(ctx, target, edits, v, x, d.options)
	d.results <- exchanged{result, err}
	switch {
	case err == nil:
	case result.Tunnel:
	case !result.Began():
		var e *Error
		errors.As(err, &e)
		status := http.StatusBadGateway
		switch e.Kind {
		case ErrTimeout:
			status = http.StatusGatewayTimeout
		case ErrUpgradeRefused:
			status = http.StatusForbidden
		case ErrBadRequest:
			status = http.StatusBadRequest
		}
		http.Error(w, e.Public(), status)
	default:
		panic(http.ErrAbortHandler)
	}
}

func (d *door) outcome(t *testing.T) exchanged {
	t.Helper()
	select {
	case o := <-d.results:
		return o
	case <-time.After(20 * time.Second):
		t.Fatal("no outcome")
		return exchanged{}
	}
}

// untold are the outcomes that nobody took, for messages.
func (d *door) untold() (list []string) {
	for {
		select {
		case o := <-d.results:
			list = append(list, fmt.Sprintf("%d %v", o.Status, o.err))
		case <-time.After(50 * time.Millisecond):
			return list
		}
	}
}

type testView struct {
	r        *http.Request
	protocol string
	proto    exchange.Proto
	size     *int64
}

func (v *testView) Method() string   { return v.r.Method }
func (v *testView) Scheme() string   { return "https" }
func (v *testView) Protocol() string { return v.protocol }
func (v *testView) Proto() exchange.Proto {
	if v.proto != 0 {
		return v.proto
	}
	return exchange.HTTP11
}
func (v *testView) Authority() string { return v.r.Host }
func (v *testView) Hostname() string  { return v.r.Host }
func (v *testView) RawTarget() string { return v.r.RequestURI }
func (v *testView) Path() string {
	p, _, _ := strings.Cut(v.r.RequestURI, "?")
	return p
}
func (v *testView) RawQuery() string {
	_, q, _ := strings.Cut(v.r.RequestURI, "?")
	return q
}
func (v *testView) HasQuery() bool            { return strings.Contains(v.r.RequestURI, "?") }
func (v *testView) Header(name string) string { return v.r.Header.Get(name) }
func (v *testView) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for n, value := range v.Headers() {
			if strings.EqualFold(n, name) && !yield(value) {
				return
			}
		}
	}
}
func (v *testView) Headers() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for name, values := range v.r.Header {
			for _, value := range values {
				if !yield(name, value) {
					return
				}
			}
		}
		if len(v.r.Trailer) > 0 { // net/http took the announcement out
			for name := range v.r.Trailer {
				if !yield("Trailer", name) {
					return
				}
			}
		}
	}
}
func (v *testView) BodySize() int64 {
	if v.size != nil {
		return *v.size
	}
	return v.r.ContentLength
}
func (v *testView) RequestID() string    { return "id" }
func (v *testView) Peer() *exchange.Peer { return &exchange.Peer{} }

type testExchange struct {
	w  http.ResponseWriter
	r  *http.Request
	rc *http.ResponseController
}

type testBody struct{ x *testExchange }

func (b testBody) Read(p []byte) (int, error) { return b.x.r.Body.Read(p) }
func (b testBody) Close() error               { return b.x.rc.SetReadDeadline(time.Unix(1, 0)) }
func (b testBody) Trailers() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for n, vv := range b.x.r.Trailer {
			for _, value := range vv {
				if !yield(n, value) {
					return
				}
			}
		}
	}
}

func (x *testExchange) Body() exchange.BodySource {
	if x.r.ContentLength == 0 {
		return nil
	}
	return testBody{x}
}

func (x *testExchange) Inform(status int, h exchange.HeaderSeq) error {
	for n, v := range h {
		x.w.Header().Add(n, v)
	}
	x.w.WriteHeader(status)
	clear(x.w.Header())
	return nil
}

func (x *testExchange) Begin(status int, h exchange.HeaderSeq, size int64) error {
	for n, v := range h {
		x.w.Header().Add(n, v)
	}
	if size >= 0 && status != 304 && status != 204 && x.r.Method != "HEAD" {
		x.w.Header().Set("Content-Length", fmt.Sprint(size))
	}
	x.w.WriteHeader(status)
	return nil
}
func (x *testExchange) Write(p []byte) (int, error) { return x.w.Write(p) }
func (x *testExchange) Flush() error                { return x.rc.Flush() }
func (x *testExchange) Finish(trailers exchange.HeaderSeq) error {
	if trailers != nil {
		for n, v := range trailers {
			x.w.Header().Set(http.TrailerPrefix+n, v)
		}
	}
	return nil
}
func (x *testExchange) Abort(error) { x.rc.SetWriteDeadline(time.Unix(1, 0)) }
func (x *testExchange) Tunnel(status int, h exchange.HeaderSeq) (net.Conn, error) {
	c, buf, err := x.rc.Hijack()
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(c, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	for n, v := range h {
		fmt.Fprintf(c, "%s: %s\r\n", n, v)
	}
	io.WriteString(c, "\r\n")
	return &bufferedConn{c, buf.Reader}, nil
}

type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

// Read takes from net/http's reader only what it holds: at the end of the
// stream that reader would cancel the request.
func (c *bufferedConn) Read(p []byte) (int, error) {
	if n := c.r.Buffered(); n > 0 {
		return c.r.Read(p[:min(n, len(p))])
	}
	return c.Conn.Read(p)
}
func (c *bufferedConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// target builds the only target of a pool.
func target(t *testing.T, spec Spec, to ...string) *Target {
	t.Helper()
	for _, s := range to {
		raw, weight, _ := strings.Cut(s, ",")
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		e := Endpoint{URL: u}
		fmt.Sscan(weight, &e.Weight)
		spec.Endpoints = append(spec.Endpoints, e)
	}
	p, failed := Build([]Spec{spec}, nil, nil)
	if failed != nil {
		t.Fatal(failed[0].Err)
	}
	t.Cleanup(p.Close)
	return p.Target(0)
}

// raw is an upstream that answers each connection with a script.
func raw(t *testing.T, serve func(c net.Conn, r *bufio.Reader)) (url string, conns func() int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	n := 0
	var wg sync.WaitGroup
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			n++
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				serve(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "http://" + ln.Addr().String(), func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// readRequestHead reads up to the blank line.
func readRequestHead(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			return b.String(), err
		}
		if line == "\r\n" {
			return b.String(), nil
		}
	}
}

// authority is a CA made for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	PEM  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) leaf(t *testing.T, change func(*x509.Certificate)) (tls.Certificate, []byte, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "leaf"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:    []string{"app.test"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, _ := x509.MarshalPKCS8PrivateKey(key)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair, certPEM, keyPEM
}

// tlsUpstream serves a handler with a certificate.
func tlsUpstream(t *testing.T, h http.Handler, h2 bool, config *tls.Config) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = h2
	s.TLS = config
	s.Config.ErrorLog = discardLog
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	return resp, string(b)
}

// nullExchange takes any answer.
type nullExchange struct{}

func (nullExchange) Body() exchange.BodySource                        { return nil }
func (nullExchange) Inform(int, exchange.HeaderSeq) error             { return nil }
func (nullExchange) Begin(int, exchange.HeaderSeq, int64) error       { return nil }
func (nullExchange) Write(p []byte) (int, error)                      { return len(p), nil }
func (nullExchange) Flush() error                                     { return nil }
func (nullExchange) Finish(exchange.HeaderSeq) error                  { return nil }
func (nullExchange) Abort(error)                                      {}
func (nullExchange) Tunnel(int, exchange.HeaderSeq) (net.Conn, error) { return nil, net.ErrClosed }

func tlsServer(pair tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}
