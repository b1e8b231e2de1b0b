package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/pages"
	"postern/internal/route"
	"postern/internal/upstream"
)

// issued is a CA and a certificate of it for 127.0.0.1 that ends at end.
func issued(t *testing.T, end time.Time) (ca []byte, leaf tls.Certificate) {
	t.Helper()
	sign := func(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	caKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Fixture CA"}, NotBefore: time.Now().Add(-100 * time.Hour),
		NotAfter: time.Now().Add(100 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := sign(root, root, caKey, caKey)
	own := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "secret-host.inside"}, NotBefore: time.Now().Add(-50 * time.Hour),
		NotAfter: end, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		tls.Certificate{Certificate: [][]byte{sign(own, root, key, caKey)}, PrivateKey: key}
}

// What is wrong with an application is told by client kind and to those who
// may know: nobody else learns more than a request id.
func TestFailuresAreToldToThoseWhoMayKnow(t *testing.T) {
	ca, good := issued(t, time.Now().Add(time.Hour))
	oldCA, expired := issued(t, time.Now().Add(-time.Hour))
	serve := func(cert tls.Certificate) string {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.URL
	}
	sound, stale := serve(good), serve(expired)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + ln.Addr().String()
	ln.Close()
	cases := []struct {
		host, to    string
		tls         *upstream.TLS
		status      int
		heading     string
		brief, full string // told with show_error_details, and to administrators
	}{
		{"expired", stale, &upstream.TLS{CustomCA: oldCA}, 502, "could not prove who it is", "has expired", "(127.0.0.1) expired on"},
		{"name", sound, &upstream.TLS{CustomCA: ca, ServerName: "other.test"}, 502, "could not prove who it is", "for another name", "other.test"},
		{"unknown", sound, &upstream.TLS{}, 502, "could not prove who it is", "unknown certificate authority", "tls_custom_ca"},
		{"dead", dead, nil, 503, "is not answering", "", dead[len("http://"):]},
		{"nowhere", "http://nowhere.invalid", nil, 503, "is out of order", "No server of the application", "nowhere.invalid"},
	}
	var routes []testRoute
	for _, c := range cases {
		for _, details := range []bool{false, true} {
			routes = append(routes, testRoute{
				spec: route.Spec{From: fmt.Sprintf("https://%s-%v.test", c.host, details), Access: route.Access{ShowErrorDetails: details}}, to: c.to, tls: c.tls})
		}
	}
	run := testDoor{routes: routes, change: func(g *Generation) {
		g.Decorate = func(p *pages.ErrorPage, v exchange.View, _ *route.Route, _ *authz.Decision) {
			p.Administrator = v.Header("X-Admin") != ""
		}
	}}.start(t)
	inside := []string{"127.0.0.1", "secret-host", "other.test", "Fixture CA", "nowhere.invalid"}
	for _, c := range cases {
		hidden, shown := "https://"+c.host+"-false.test/", "https://"+c.host+"-true.test/"
		a := run.get(hidden)
		if a.StatusCode != c.status || !strings.Contains(a.body, c.heading) || !strings.Contains(a.body, a.Header.Get("X-Request-Id")) {
			t.Errorf("%s: %d, want %d and %q", c.host, a.StatusCode, c.status, c.heading)
		}
		if c.brief != "" && strings.Contains(a.body, c.brief) {
			t.Errorf("%s: everybody is told %q", c.host, c.brief)
		}
		b := run.get(shown)
		if !strings.Contains(b.body, c.brief) {
			t.Errorf("%s: with show_error_details the page does not tell %q", c.host, c.brief)
		}
		for _, page := range []string{a.body, b.body} {
			for _, word := range inside {
				if strings.Contains(page, word) {
					t.Errorf("%s: a visitor is told %q", c.host, word)
				}
			}
		}
		if x := run.get(hidden, "X-Admin", "1"); !strings.Contains(x.body, c.full) {
			t.Errorf("%s: an administrator is not told %q", c.host, c.full)
		}
		if j := run.get(hidden, "Accept", "application/json"); j.StatusCode != c.status || !strings.Contains(j.body, fmt.Sprintf(`"status":%d`, c.status)) {
			t.Errorf("%s: JSON %d %s", c.host, j.StatusCode, j.body)
		}
		g := run.do(run.client, "POST", hidden, "", "Content-Type", "application/grpc", "Te", "trailers")
		if g.Header.Get("Grpc-Status") != "14" || g.body != "" {
			t.Errorf("%s: gRPC %v %q", c.host, g.Header, g.body)
		}
	}
}

// A route whose settings hold a mistake answers 503, whoever asks, and its
// neighbours serve.
func TestBrokenTarget(t *testing.T) {
	run := testDoor{routes: []testRoute{{spec: route.Spec{From: "https://broken.test"}}, {spec: route.Spec{From: "https://app.test"}}},
		change: func(g *Generation) { g.Targets[0] = BrokenTarget(g.Targets[0].Route, "routes.yaml:4: a mistake") }}.start(t)
	a := run.get("https://broken.test/")
	if a.StatusCode != 503 || !strings.Contains(a.body, "not set up correctly") || strings.Contains(a.body, "routes.yaml") || a.Header.Get("X-Frame-Options") == "" {
		t.Errorf("%d %v %.300s", a.StatusCode, a.Header, a.body)
	}
	if e := run.entry(1); e.ResponseCodeDetails != "route_misconfigured" {
		t.Errorf("logged as %s", e.ResponseCodeDetails)
	}
	if b := run.get("https://app.test/"); b.StatusCode != 200 {
		t.Errorf("the neighbour: %d", b.StatusCode)
	}
	if len(run.decisions) != 1 {
		t.Errorf("%d decisions: a broken route is not decided", len(run.decisions))
	}
}

// To HTTP/1.1 applications the names of headers go in the spelling in which
// they came (§3.2).
func TestHeaderCaseOfRequestsIsKept(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	heads := make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b := make([]byte, 4096)
		n, _ := conn.Read(b)
		heads <- string(b[:n])
		_, _ = conn.Write([]byte("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"))
	}()
	run := testDoor{routes: []testRoute{{spec: appRoute, to: "http://" + ln.Addr().String()}}}.start(t)
	if a := run.target("app.test", "/", "x-lower: 1", "X-UPPER: 2", "x-MiXed-Case: 3"); a.StatusCode != 204 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	head := <-heads
	for _, line := range []string{"\r\nx-lower: 1\r\n", "\r\nX-UPPER: 2\r\n", "\r\nx-MiXed-Case: 3\r\n"} {
		if !strings.Contains(head, line) {
			t.Errorf("%q is not in\n%s", line, head)
		}
	}
}

// spelling is a hook that answers with fields of its own.
type spelling struct{ fields []exchange.Field }

func (s spelling) BeforeDecide(_ context.Context, _ *authz.Request, b exchange.BodySource) (exchange.BodySource, error) {
	return b, nil
}

func (s spelling) OnResponse(_ context.Context, _ *authz.Request, status int, h []exchange.Field) (int, []exchange.Field) {
	return status, append(h, s.fields...)
}

// And so do those of responses, but for the few that the server reads itself.
func TestHeaderCaseOfResponsesIsKept(t *testing.T) {
	hook := spelling{[]exchange.Field{{Name: "x-lower", Value: "1"}, {Name: "X-UPPER", Value: "2"}, {Name: "x-lower", Value: "3"}, {Name: "date", Value: "never"}}}
	run := testDoor{routes: []testRoute{{spec: appRoute, hook: hook}}}.start(t)
	conn, err := net.Dial("tcp", run.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n")
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(b), "\r\n\r\n")
	for _, part := range []string{"\r\nx-lower: 1\r\nx-lower: 3", "\r\nX-UPPER: 2"} {
		if !strings.Contains(head, part) {
			t.Errorf("%q is not in\n%s", part, head)
		}
	}
	if n := strings.Count(strings.ToLower(head), "\r\ndate:"); n > 2 || strings.Contains(head, "\r\ndate:") {
		t.Errorf("%d dates in\n%s", n, head)
	}
	if a := run.get("https://app.test/"); a.Header.Get("X-Lower") != "1" || a.Header.Get("X-Upper") != "2" {
		t.Errorf("over HTTP/2: %v", a.Header)
	}
}
