package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

func endpoints(t testing.TB, urls ...string) []Endpoint {
	t.Helper()
	var list []Endpoint
	for _, s := range urls {
		raw, weight, _ := strings.Cut(s, ",")
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		e := Endpoint{URL: u}
		fmt.Sscan(weight, &e.Weight)
		list = append(list, e)
	}
	return list
}

func TestBuildRefuses(t *testing.T) {
	_, cert, key := newAuthority(t).leaf(t, nil)
	_, otherCert, _ := newAuthority(t).leaf(t, nil)
	for _, tc := range []struct {
		name, says string
		spec       Spec
	}{
		{"tcp", "not served yet", Spec{Endpoints: endpoints(t, "tcp://a:1")}},
		{"ssh", "not served yet", Spec{Endpoints: endpoints(t, "ssh://a")}},
		{"scheme", "unknown scheme", Spec{Endpoints: endpoints(t, "ftp://a")}},
		{"no host", "names no host", Spec{Endpoints: endpoints(t, "https:///x")}},
		{"no socket", "names no socket", Spec{Endpoints: endpoints(t, "unix://")}},
		{"socket and others", "only endpoint", Spec{Endpoints: endpoints(t, "unix:///a", "http://b")}},
		{"some weights", "weight", Spec{Endpoints: endpoints(t, "http://a,1", "http://b")}},
		{"bad CA", "tls_custom_ca", Spec{Endpoints: endpoints(t, "https://a"), TLS: TLS{CustomCA: []byte("x")}}},
		{"bad extra roots", "certificate_authority", Spec{Endpoints: endpoints(t, "https://a"), TLS: TLS{ExtraRoots: []byte("x")}}},
		{"half a pair", "tls_client_key", Spec{Endpoints: endpoints(t, "https://a"), TLS: TLS{ClientCert: cert}}},
		{"other half", "tls_client_cert", Spec{Endpoints: endpoints(t, "https://a"), TLS: TLS{ClientKey: key}}},
		{"wrong key", "does not match", Spec{Endpoints: endpoints(t, "https://a"), TLS: TLS{ClientCert: otherCert, ClientKey: key}}},
		{"socket for a guarded route", "may not use", Spec{Endpoints: endpoints(t, "unix:///a"), Guarded: true}},
	} {
		p, failed := Build([]Spec{{}, tc.spec}, nil, nil)
		if p != nil || len(failed) != 1 || failed[0].Slot != 1 || !strings.Contains(failed[0].Error(), tc.says) {
			t.Errorf("%s: %v", tc.name, failed)
		}
	}
}

func TestSpecHash(t *testing.T) {
	base := func() Spec { return Spec{Endpoints: endpoints(t, "https://a,1", "https://b,2")} }
	same, other := base(), base()
	seen := map[string]string{}
	add := func(name string, s Spec) {
		h := s.hash()
		if was, ok := seen[h]; ok {
			t.Errorf("%s and %s are the same", name, was)
		}
		seen[h] = name
	}
	if same.hash() != other.hash() {
		t.Error("equal specs differ")
	}
	add("base", base())
	change := func(name string, f func(*Spec)) { s := base(); f(&s); add(name, s) }
	change("weight", func(s *Spec) { s.Endpoints[0].Weight = 7 })
	change("url", func(s *Spec) { s.Endpoints = endpoints(t, "https://a,1", "https://c,2") })
	change("websockets", func(s *Spec) { s.WebSockets = true })
	change("skip", func(s *Spec) { s.TLS.SkipVerify = true })
	change("name", func(s *Spec) { s.TLS.ServerName = "x" })
	change("ca", func(s *Spec) { s.TLS.CustomCA = []byte("x") })
	change("roots", func(s *Spec) { s.TLS.ExtraRoots = []byte("x") })
	change("cert", func(s *Spec) { s.TLS.ClientCert = []byte("x") })
	change("key", func(s *Spec) { s.TLS.ClientKey = []byte("x") })
	change("renegotiation", func(s *Spec) { s.TLS.AllowRenegotiation = true })
	change("guarded", func(s *Spec) { s.Guarded = true })
	change("allow", func(s *Spec) { s.DialAllow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
}

// TestReuseOverRebuild: a reload that does not touch a target keeps its
// connections; one that does closes them.
func TestReuseOverRebuild(t *testing.T) {
	to, conns := raw(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := readRequestHead(r); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	spec := Spec{Endpoints: endpoints(t, to)}
	one, _ := Build([]Spec{spec}, nil, nil)
	d := newDoor(t, one.Target(0))
	get(t, d.URL)
	two, _ := Build([]Spec{{}, spec}, one, nil) // same route, other slot
	if two.Target(1) != one.Target(0) || two.Target(0) != nil || two.Target(2) != nil {
		t.Fatal("target not shared")
	}
	one.Close()
	one.Close() // twice is once
	get(t, d.URL)
	if conns() != 1 {
		t.Errorf("%d connections after an unrelated reload", conns())
	}
	changed := spec
	changed.WebSockets = true
	three, _ := Build([]Spec{changed}, two, nil)
	defer three.Close()
	if three.Target(0) == two.Target(1) {
		t.Error("changed target shared")
	}
	if p, failed := Build([]Spec{spec, {Endpoints: endpoints(t, "ftp://x")}}, two, nil); p != nil || failed == nil {
		t.Error("built")
	}
	get(t, d.URL) // a failed build took nothing away
	two.Close()
	if four, _ := Build([]Spec{spec}, two, nil); four.Target(0) == two.Target(1) {
		t.Error("closed target shared")
	} else {
		four.Close()
	}
}

func TestDialGuard(t *testing.T) {
	app := upstreamServer(t, echo)
	for _, tc := range []struct {
		to   string
		spec Spec
		ok   bool
	}{
		{app.URL, Spec{}, true},
		{app.URL, Spec{Guarded: true}, false},
		{strings.Replace(app.URL, "127.0.0.1", "localhost", 1), Spec{Guarded: true}, false},
		{strings.Replace(app.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1), Spec{Guarded: true}, false},
		{app.URL, Spec{Guarded: true, DialAllow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}, true},
	} {
		d := newDoor(t, target(t, tc.spec, tc.to))
		resp, _ := get(t, d.URL)
		if (resp.StatusCode == 200) != tc.ok {
			t.Errorf("%s %+v: %d %v", tc.to, tc.spec, resp.StatusCode, d.outcome(t).err)
		}
	}
	g := &dialGuard{}
	for _, a := range []string{"169.254.169.254:80", "[fe80::1%eth0]:80", "[fd00:ec2::254]:80", "0.0.0.0:80", "[::]:80", "[::1]:80", "127.9.9.9:80", "100.100.100.200:80", "nonsense"} {
		if g.check(context.Background(), "tcp", a, nil) == nil {
			t.Errorf("%s allowed", a)
		}
	}
	if err := g.check(context.Background(), "tcp", "10.0.0.1:80", nil); err != nil {
		t.Error(err)
	}
}

// TestCertificateTrouble: the operator is told what is wrong with the
// upstream's certificate; the visitor is not.
func TestCertificateTrouble(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	leaf := func(a *authority, change func(*x509.Certificate)) *tls.Config {
		pair, _, _ := a.leaf(t, change)
		return &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	_, clientCert, clientKey := ca.leaf(t, nil)
	clients := x509.NewCertPool()
	clients.AddCert(ca.cert)
	needsClient := leaf(ca, nil)
	needsClient.ClientAuth, needsClient.ClientCAs = tls.RequireAndVerifyClientCert, clients
	trusted := TLS{CustomCA: ca.PEM}
	with := func(f func(*TLS)) TLS { s := trusted; f(&s); return s }

	for _, tc := range []struct {
		name   string
		server *tls.Config
		tls    TLS
		says   string // "" is success
	}{
		{"good", leaf(ca, nil), trusted, ""},
		{"expired", leaf(ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), trusted, "expired on"},
		{"not yet", leaf(ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), trusted, "not valid before"},
		{"wrong name", leaf(ca, func(c *x509.Certificate) { c.IPAddresses = nil }), trusted, "is for app.test, not for 127.0.0.1"},
		{"unknown CA", leaf(stranger, nil), trusted, "unknown CA"},
		{"system roots only", leaf(ca, nil), TLS{}, "unknown CA"},
		{"extra roots", leaf(ca, nil), TLS{ExtraRoots: ca.PEM}, ""},
		{"custom CA replaces extra roots", leaf(ca, nil), TLS{ExtraRoots: ca.PEM, CustomCA: stranger.PEM}, "unknown CA"},
		{"skip", leaf(stranger, nil), with(func(s *TLS) { s.SkipVerify = true }), ""},
		{"server name", leaf(ca, func(c *x509.Certificate) { c.IPAddresses = nil }), with(func(s *TLS) { s.ServerName = "app.test" }), ""},
		{"wrong server name", leaf(ca, nil), with(func(s *TLS) { s.ServerName = "other.test" }), "not for other.test"},
		{"pattern", leaf(ca, nil), with(func(s *TLS) { s.ServerName = "*.Test" }), ""},
		{"pattern in the middle", leaf(ca, func(c *x509.Certificate) { c.DNSNames = []string{"db-7.eu.test"} }), with(func(s *TLS) { s.ServerName = "db-*.eu.test" }), ""},
		{"pattern does not cross dots", leaf(ca, func(c *x509.Certificate) { c.DNSNames = []string{"a.b.test"} }), with(func(s *TLS) { s.ServerName = "*.test" }), "is for a.b.test"},
		{"pattern, other name", leaf(ca, nil), with(func(s *TLS) { s.ServerName = "*.example" }), "is for app.test"},
		{"pattern, unknown CA", leaf(stranger, nil), with(func(s *TLS) { s.ServerName = "*.test" }), "unknown CA"},
		{"pattern, expired", leaf(ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), with(func(s *TLS) { s.ServerName = "*.test" }), "expired on"},
		{"client certificate", needsClient, with(func(s *TLS) { s.ClientCert, s.ClientKey = clientCert, clientKey }), ""},
		{"old cipher", func() *tls.Config {
			c := leaf(ca, nil)
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA}
			return c
		}(), trusted, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			app := tlsUpstream(t, echo, false, tc.server)
			d := newDoor(t, target(t, Spec{TLS: tc.tls}, app.URL))
			resp, body := get(t, d.URL)
			o := d.outcome(t)
			if tc.says == "" {
				if resp.StatusCode != 200 {
					t.Errorf("%d %v", resp.StatusCode, o.err)
				}
				return
			}
			var e *Error
			if resp.StatusCode != 502 || !errors.As(o.err, &e) || e.Kind != ErrUnreachable || !strings.Contains(e.Detail, tc.says) {
				t.Errorf("%d %v, want %q", resp.StatusCode, o.err, tc.says)
			}
			if strings.Contains(body, "127.0.0.1") || strings.Contains(body, "app.test") || strings.Contains(body, "CA") {
				t.Errorf("the visitor is told %q", body)
			}
		})
	}

	// TLS 1.3 reports a missing client certificate only when first reading.
	app := tlsUpstream(t, echo, false, needsClient)
	d := newDoor(t, target(t, Spec{TLS: trusted}, app.URL))
	if resp, _ := get(t, d.URL); resp.StatusCode != 502 {
		t.Errorf("no client certificate: %d", resp.StatusCode)
	}
	if o := d.outcome(t); !strings.Contains(o.err.Error(), "certificate required") {
		t.Errorf("no client certificate: %v", o.err)
	}
	// Not TLS at all.
	plain := upstreamServer(t, echo)
	d = newDoor(t, target(t, Spec{TLS: trusted}, strings.Replace(plain.URL, "http:", "https:", 1)))
	get(t, d.URL)
	if o := d.outcome(t); !strings.Contains(o.err.Error(), "does not speak TLS") {
		t.Errorf("plain upstream: %v", o.err)
	}
	d = newDoor(t, target(t, Spec{}, "http://name.invalid"))
	get(t, d.URL)
	if o := d.outcome(t); !strings.Contains(o.err.Error(), "does not resolve") {
		t.Errorf("unknown name: %v", o.err)
	}
}

func TestSpecOf(t *testing.T) {
	s := SpecOf(&Config{}, &RouteConfig{To: endpoints(t, "https://a"), TLSServerName: "old", TLSSkipVerify: true}, RouteContext{WebSockets: true, ExtraRoots: []byte("roots")})
	if s.TLS.ServerName != "old" || !s.TLS.SkipVerify || !s.WebSockets || string(s.TLS.ExtraRoots) != "roots" {
		t.Errorf("%+v", s)
	}
	if s = SpecOf(&Config{}, &RouteConfig{TLSServerName: "old", TLSUpstreamServerName: "new"}, RouteContext{}); s.TLS.ServerName != "new" {
		t.Errorf("%+v", s)
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 1024)) })}
	go srv.Serve(ln)
	defer srv.Close()
	u, _ := url.Parse("http://" + ln.Addr().String())
	p, _ := Build([]Spec{{Endpoints: []Endpoint{{URL: u}}}}, nil, nil)
	defer p.Close()
	r, _ := http.NewRequest("GET", "/", nil)
	r.RequestURI = "/"
	b.ReportAllocs()
	for b.Loop() {
		if _, err := RoundTrip(context.Background(), p.Target(0), nil, &testView{r: r}, nullExchange{}, Options{Timeout: time.Minute, IdleTimeout: time.Minute}); err != nil {
			b.Fatal(err)
		}
	}
}
