package server_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"postern/internal/server/servertest"
)

// h3App is an application that speaks HTTP/3 only, by quic-go's server.
func h3App(t *testing.T, h http.Handler) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s := &http3.Server{Handler: h, TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(udp) }()
	t.Cleanup(func() { s.Close(); udp.Close(); <-done })
	return "h3://" + udp.LocalAddr().String()
}

// A route to an h3 endpoint serves what any route serves, and its health is
// checked over HTTP/3.
func TestRouteToHTTP3(t *testing.T) {
	next := make(chan struct{})
	to := h3App(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		flush := w.(http.Flusher).Flush
		switch r.URL.Path {
		case "/healthz":
			w.WriteHeader(http.StatusNoContent)
		case "/echo":
			b, _ := io.ReadAll(r.Body)
			w.Write(b)
		case "/stream":
			io.WriteString(w, "one ")
			flush()
			<-next
			io.WriteString(w, "two")
		case "/svc.App/Call":
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
			flush()
			io.Copy(w, r.Body)
			w.Header().Set("Grpc-Status", "7")
			w.Header().Set("Grpc-Message", "no")
		default:
			fmt.Fprint(w, r.Proto, " ", r.Method, " ", r.Header.Get("X-Forwarded-Proto"))
		}
	}))
	check := "health_checks: [{timeout: 5s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, http_health_check: {path: /healthz, expected_statuses: [{start: %d, end: 300}]}}]"
	p := servertest.Start(t, `
routes:
  - from: https://app.localhost
    to: `+to+`
    tls_skip_verify: true
    allow_public_unauthenticated_access: true
    `+fmt.Sprintf(check, 204)+`
  - from: https://sick.localhost
    to: `+to+`
    tls_skip_verify: true
    allow_public_unauthenticated_access: true
    `+fmt.Sprintf(check, 205)+`
`)
	agent := p.Agent()
	page := agent.Get("https://app.localhost/hello")
	if page.Body != "HTTP/3.0 GET https" {
		t.Errorf("%d %q", page.StatusCode, page.Body)
	}
	do := func(method, path string, body io.Reader, headers ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequest(method, "https://app.localhost"+path, body)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			req.Header.Set(name, value)
		}
		resp, err := agent.Client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	big := bytes.Repeat([]byte("postern "), 1<<17) // 1 MiB
	resp := do("POST", "/echo", bytes.NewReader(big))
	if b, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(b, big) {
		t.Errorf("1 MiB came back as %d bytes: %v", len(b), err)
	}
	resp = do("GET", "/stream", nil)
	first := make([]byte, 4)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "one " {
		t.Errorf("%q %v", first, err)
	}
	close(next)
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "two" {
		t.Errorf("%q %v", b, err)
	}
	resp = do("POST", "/svc.App/Call", strings.NewReader("message"), "Content-Type: application/grpc", "Te: trailers")
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "message" || resp.Trailer.Get("Grpc-Status") != "7" || resp.Trailer.Get("Grpc-Message") != "no" {
		t.Errorf("%q %v %v", b, resp.Trailer, err)
	}
	if err := servertest.Eventually(func() error {
		status := p.Status()
		if len(status.Upstreams) != 1 || status.Upstreams[0].From != "https://sick.localhost" || !strings.Contains(status.Upstreams[0].Reason, "unexpected status 204") {
			return fmt.Errorf("out of use: %+v", status.Upstreams)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// What h3 cannot be combined with is refused, by name.
func TestHTTP3EndpointsAreCombined(t *testing.T) {
	for lines, want := range map[string]string{
		"to: [h3://127.0.0.1:1, https://127.0.0.1:2]":      "h3 cannot stand beside others",
		"to: h3://127.0.0.1:1\n    allow_websockets: true": "carries no WebSockets",
	} {
		_, err := servertest.Try(t, "routes:\n  - from: https://app.localhost\n    allow_public_unauthenticated_access: true\n    "+lines+"\n")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", lines, err)
		}
	}
}
