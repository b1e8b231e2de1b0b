package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/pages"
	"postern/internal/route"
	"postern/internal/session"
	"postern/internal/telemetry"
	"postern/internal/upstream"
)

// testRoute is one route of a test door.
type testRoute struct {
	spec route.Spec
	keys RouteConfig
	to   string // destination; default: the door's echo server
	hook RouteHook
	tls  *upstream.TLS // default: nothing is verified
}

// testDoor describes a door; zero fields have useful defaults.
type testDoor struct {
	routes       []testRoute
	config       *Config
	options      *route.Options
	decide       func(*authz.Request) authz.Decision
	endpoints    *Endpoints
	claimHeaders []string
	change       func(*Generation)
}

// running is a door with real sockets: h1 clear, TLS for h1 and h2.
type running struct {
	t         testing.TB
	gen       *Generation
	addr      string // clear text
	tlsAddr   string
	client    *http.Client // any host name reaches the door over TLS, h2
	h1        *http.Client // the same over TLS, h1
	echo      *recorder
	secure    *Server // TLS and, once quic was called, HTTP/3
	mu        sync.Mutex
	entries   []telemetry.AccessEntry
	streams   *fakeStreams
	decisions []*authz.Request
}

// recorder is an upstream that keeps what it got.
type recorder struct {
	*httptest.Server
	mu   sync.Mutex
	got  []*http.Request
	raw  []string // request targets
	body []string
}

func newRecorder(t testing.TB, handler http.HandlerFunc) *recorder {
	rec := &recorder{}
	rec.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		rec.mu.Lock()
		rec.got = append(rec.got, r)
		rec.raw = append(rec.raw, r.RequestURI)
		rec.body = append(rec.body, string(b))
		rec.mu.Unlock()
		if handler != nil {
			handler(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, r.RequestURI)
	}))
	rec.Config.DisableGeneralOptionsHandler = true
	rec.Start()
	t.Cleanup(rec.Close)
	return rec
}

// last is the newest request the upstream got, nil if there was none.
func (r *recorder) last() *http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.got) == 0 {
		return nil
	}
	return r.got[len(r.got)-1]
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func (r *recorder) lastTarget() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.raw) == 0 {
		return ""
	}
	return r.raw[len(r.raw)-1]
}

type fakeStreams struct {
	mu   sync.Mutex
	cuts map[*authz.Stream]func(string)
	seen int
}

func (f *fakeStreams) Follow(_ *authz.Request, _ *authz.Decision, cut func(string)) *authz.Stream {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cuts == nil {
		f.cuts = map[*authz.Stream]func(string){}
	}
	st := new(authz.Stream)
	f.cuts[st] = cut
	f.seen++
	return st
}

func (f *fakeStreams) CloseStream(st *authz.Stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.cuts, st)
}

func (f *fakeStreams) open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.cuts)
}

func (f *fakeStreams) cutAll(reason string) {
	f.mu.Lock()
	cuts := make([]func(string), 0, len(f.cuts))
	for _, c := range f.cuts {
		cuts = append(cuts, c)
	}
	f.mu.Unlock()
	for _, c := range cuts {
		c(reason)
	}
}

// allowAll is the decision of a test door unless it says otherwise.
func allowAll(r *authz.Request) authz.Decision {
	return authz.Decision{
		Outcome: authz.Allow, Status: 200, Caller: &session.Caller{},
		Strip: exchange.NewNameSet(authz.StripNames(&authz.Config{}, r.Route)...),
	}
}

type authorizerFunc func(*authz.Request) authz.Decision

func (f authorizerFunc) Decide(_ context.Context, r *authz.Request) authz.Decision { return f(r) }

func defaultConfig() Config {
	return Config{NormalizePath: true, MergeSlashes: true, TimeoutRead: 30 * time.Second, TimeoutIdle: time.Minute}
}

func (d testDoor) start(t testing.TB) *running {
	t.Helper()
	run := &running{t: t, streams: &fakeStreams{}}
	run.echo = newRecorder(t, nil)
	cfg := defaultConfig()
	if d.config != nil {
		cfg = *d.config
	}
	if cfg.SetResponseHeaders == nil {
		cfg.SetResponseHeaders = map[string]string{
			"X-Frame-Options": "SAMEORIGIN", "X-XSS-Protection": "1; mode=block",
			"Strict-Transport-Security": "max-age=31536000; includeSubDomains; preload",
		}
	}
	settings, err := NewSettings(cfg, session.NewCookieNames("", ""))
	if err != nil {
		t.Fatal(err)
	}
	options := route.Options{MatchAnyIncomingPort: true}
	if d.options != nil {
		options = *d.options
	}
	var routes []*route.Route
	var specs []upstream.Spec
	for i := range d.routes {
		tr := &d.routes[i]
		if tr.to == "" {
			tr.to = run.echo.URL
		}
		if len(tr.spec.To) == 0 {
			tr.spec.To = []string{tr.to}
		}
		rt, err := route.New(tr.spec)
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, rt)
		u, err := url.Parse(tr.to)
		if err != nil {
			t.Fatal(err)
		}
		specs = append(specs, upstream.Spec{
			Endpoints: []upstream.Endpoint{{URL: u}}, WebSockets: tr.keys.Resolved.Websockets,
			TLS: upstream.TLS{SkipVerify: true},
		})
		if tr.tls != nil {
			specs[len(specs)-1].TLS = *tr.tls
		}
	}
	table, err := route.NewTable(routes, options)
	if err != nil {
		t.Fatal(err)
	}
	pool, failed := upstream.Build(specs, nil, nil)
	if failed != nil {
		t.Fatal(failed)
	}
	t.Cleanup(pool.Close)
	renderer, err := pages.New(pages.Branding{})
	if err != nil {
		t.Fatal(err)
	}
	decide := d.decide
	if decide == nil {
		decide = allowAll
	}
	run.gen = &Generation{
		Table: table, Settings: settings, Endpoints: d.endpoints, Pages: renderer,
		Streams: run.streams, Log: slog.New(slog.DiscardHandler),
		Authorizer: authorizerFunc(func(r *authz.Request) authz.Decision {
			run.mu.Lock()
			run.decisions = append(run.decisions, r)
			run.mu.Unlock()
			return decide(r)
		}),
		AccessLog: func(e *telemetry.AccessEntry) {
			run.mu.Lock()
			run.entries = append(run.entries, *e)
			run.mu.Unlock()
		},
	}
	for i, rt := range routes {
		tr := &d.routes[i]
		if tr.keys.Resolved.ResponseHeaders == nil {
			tr.keys.Resolved.ResponseHeaders = cfg.SetResponseHeaders
		}
		target, err := NewTarget(rt, tr.keys, TargetOptions{
			Upstream: pool.Target(i), FirstTo: specs[i].Endpoints[0].URL, ClaimHeaders: d.claimHeaders,
			PassIdentityHeaders: true, Hook: tr.hook,
		})
		if err != nil {
			t.Fatal(err)
		}
		run.gen.Targets = append(run.gen.Targets, target)
	}
	if d.change != nil {
		d.change(run.gen)
	}

	handler := New(func() *Generation { return run.gen })
	run.addr, _ = run.listen(handler, nil, cfg)
	run.tlsAddr, run.secure = run.listen(handler, &tls.Config{Certificates: []tls.Certificate{testCertificate(t)}, NextProtos: []string{"h2", "http/1.1"}}, cfg)
	run.client = run.newClient(true)
	run.h1 = run.newClient(false)
	return run
}

var (
	certOnce sync.Once
	certTLS  tls.Certificate
)

// testCertificate is that of httptest: any key does, clients do not verify.
func testCertificate(testing.TB) tls.Certificate {
	certOnce.Do(func() {
		s := httptest.NewUnstartedServer(nil)
		s.StartTLS()
		certTLS = s.TLS.Certificates[0]
		s.Close()
	})
	return certTLS
}

func (run *running) listen(h http.Handler, c *tls.Config, cfg Config) (string, *Server) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		run.t.Fatal(err)
	}
	srv := NewServer(ServeOptions{Handler: h, TLS: c, ReadTimeout: cfg.TimeoutRead, IdleTimeout: cfg.TimeoutIdle, AltSvc: `h3=":8443"; ma=86400`})
	done := make(chan struct{})
	go func() { srv.Serve(ln); close(done) }()
	run.t.Cleanup(func() { srv.Close(); <-done })
	return ln.Addr().String(), srv
}

// quic gives a client that speaks HTTP/3 to the door.
func (run *running) quic() *http.Client {
	s := serveQUIC(run.t, run.secure)
	client, _ := h3Client(run.t, s.addr, &tls.Config{InsecureSkipVerify: true})
	return client
}

func (run *running) newClient(h2 bool) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, run.tlsAddr)
		},
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2:  h2,
		DisableCompression: true,
	}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	run.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// answer is a response read whole.
type answer struct {
	*http.Response
	body string
}

// get requests a URL with header pairs ("Name", "value", ...).
func (run *running) get(target string, headers ...string) answer {
	run.t.Helper()
	return run.do(run.client, "GET", target, "", headers...)
}

func (run *running) do(client *http.Client, method, target, body string, headers ...string) answer {
	run.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, target, reader)
	if err != nil {
		run.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header[headers[i]] = append(req.Header[headers[i]], headers[i+1])
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		run.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		run.t.Fatalf("%s %s: %v", method, target, err)
	}
	return answer{resp, string(b)}
}

// raw sends bytes to the clear listener and reads one response.
func (run *running) raw(request string) answer {
	run.t.Helper()
	conn, err := net.Dial("tcp", run.addr)
	if err != nil {
		run.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		run.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		run.t.Fatalf("%q: %v", request, err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return answer{resp, string(b)}
}

// target sends one GET with that request target to host.
func (run *running) target(host, target string, lines ...string) answer {
	run.t.Helper()
	return run.raw(fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n", target, host, strings.Join(append(lines, ""), "\r\n")))
}

// entry waits for the n-th access log line.
func (run *running) entry(n int) telemetry.AccessEntry {
	run.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		run.mu.Lock()
		if len(run.entries) >= n {
			e := run.entries[n-1]
			run.mu.Unlock()
			return e
		}
		run.mu.Unlock()
		if time.Now().After(deadline) {
			run.t.Fatalf("no access log line %d", n)
		}
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func one(spec route.Spec, keys RouteConfig) []testRoute { return []testRoute{{spec: spec, keys: keys}} }

var appRoute = route.Spec{From: "https://app.test"}
