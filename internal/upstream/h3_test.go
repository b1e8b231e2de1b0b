package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// h3Upstream serves a handler by quic-go's own server. stop ends it at once.
func h3Upstream(t *testing.T, h http.Handler, c *tls.Config) (to string, stop func()) {
	t.Helper()
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	stop = serveH3(t, udp, h, c)
	t.Cleanup(stop)
	return "h3://" + udp.LocalAddr().String(), stop
}

func serveH3(t *testing.T, udp *net.UDPConn, h http.Handler, c *tls.Config) (stop func()) {
	s := &http3.Server{Handler: h, TLSConfig: http3.ConfigureTLSConfig(c)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(udp)
	}()
	return sync.OnceFunc(func() {
		s.Close()
		udp.Close()
		<-done
	})
}

func h3CA(t *testing.T) (*authority, *tls.Config) {
	ca := newAuthority(t)
	pair, _, _ := ca.leaf(t, nil)
	return ca, &tls.Config{Certificates: []tls.Certificate{pair}}
}

// Everything that a request and an answer consist of comes through.
func TestH3Upstream(t *testing.T) {
	ca, c := h3CA(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	release := make(chan struct{})
	to, _ := h3Upstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Proto", r.Proto)
		w.Header().Set("X-Seen", r.Method+" "+r.Host+" "+r.RequestURI+" "+r.Header.Get("X-Asked"))
		switch r.URL.Path {
		case "/echo":
			w.Header().Set("Trailer", "X-End")
			b, _ := io.ReadAll(r.Body)
			w.Write(b)
			w.Header().Set("X-End", fmt.Sprint(len(b), "/", r.Trailer.Get("X-Client-End")))
		case "/stream":
			io.WriteString(w, "first")
			w.(http.Flusher).Flush()
			<-release
			io.WriteString(w, " second")
		case "/grpc":
			w.Header().Set("Content-Type", "application/grpc")
			io.WriteString(w, "message")
			w.(http.Flusher).Flush()
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "7")
		case "/none":
			w.WriteHeader(http.StatusNoContent)
		default:
			io.WriteString(w, "hello")
		}
	}), c)
	d := newDoor(t, target(t, Spec{TLS: TLS{CustomCA: ca.PEM}}, to))
	do := func(method, path string, body io.Reader, change func(*http.Request)) *http.Response {
		t.Helper()
		req, err := http.NewRequest(method, d.URL+path, body)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(req)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	resp := do("GET", "/a%2Fb?q=%20&r", nil, func(r *http.Request) { r.Header.Set("X-Asked", "1") })
	if b, _ := io.ReadAll(resp.Body); string(b) != "hello" || resp.Header.Get("X-Proto") != "HTTP/3.0" {
		t.Errorf("%s by %s", b, resp.Header.Get("X-Proto"))
	}
	if got, want := resp.Header.Get("X-Seen"), "GET "+strings.TrimPrefix(to, "h3://")+" /a%2Fb?q=%20&r 1"; got != want {
		t.Errorf("seen %q, want %q", got, want)
	}
	for name, body := range map[string]io.Reader{"of known length": bytes.NewReader(big), "of unknown length": io.MultiReader(bytes.NewReader(big))} {
		resp = do("POST", "/echo", body, func(r *http.Request) {
			if name == "of unknown length" {
				r.Trailer = http.Header{"X-Client-End": {"bye"}}
			}
		})
		if b, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(b, big) {
			t.Errorf("a body %s came back as %d bytes: %v", name, len(b), err)
		}
		want := map[bool]string{false: fmt.Sprint(len(big), "/"), true: fmt.Sprint(len(big), "/bye")}[name == "of unknown length"]
		if got := resp.Trailer.Get("X-End"); got != want {
			t.Errorf("trailer %q, want %q", got, want)
		}
	}
	resp = do("POST", "/echo", strings.NewReader("expected"), func(r *http.Request) { r.Header.Set("Expect", "100-continue") })
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "expected" {
		t.Errorf("behind Expect: %q %v", b, err)
	}
	resp = do("GET", "/stream", nil, nil)
	if resp.StatusCode != 200 {
		t.Error(resp.Status, d.untold())
	}
	first := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first" {
		t.Errorf("%q %v", first, err)
	}
	close(release)
	if b, err := io.ReadAll(resp.Body); string(b) != " second" {
		t.Errorf("%q %v", b, err)
	}
	resp = do("POST", "/grpc", strings.NewReader("m"), func(r *http.Request) { r.Header.Set("Te", "trailers") })
	if b, err := io.ReadAll(resp.Body); string(b) != "message" || resp.Trailer.Get("Grpc-Status") != "7" {
		t.Errorf("%q %v %v", b, resp.Trailer, err)
	}
	if resp = do("HEAD", "/", nil, nil); resp.StatusCode != 200 {
		t.Error(resp.Status, d.untold())
	}
	if resp = do("GET", "/none", nil, nil); resp.StatusCode != 204 {
		t.Error(resp.Status, d.untold())
	}
}

// The route's TLS settings hold, and errors say what is wrong.
func TestH3UpstreamTLS(t *testing.T) {
	ca := newAuthority(t)
	pair, _, _ := ca.leaf(t, nil)
	expired, _, _ := ca.leaf(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	_, certPEM, keyPEM := ca.leaf(t, nil)
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %d", r.TLS.ServerName, len(r.TLS.PeerCertificates))
	})
	plain, _ := h3Upstream(t, hello, &tls.Config{Certificates: []tls.Certificate{pair}})
	old, _ := h3Upstream(t, hello, &tls.Config{Certificates: []tls.Certificate{expired}})
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	mutual, _ := h3Upstream(t, hello, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots})
	for _, tc := range []struct {
		name, to string
		tls      TLS
		want     string // body, or part of the error
	}{
		{"custom CA", plain, TLS{CustomCA: ca.PEM}, " 0"},
		{"server name", plain, TLS{CustomCA: ca.PEM, ServerName: "app.test"}, "app.test 0"},
		{"wrong name", plain, TLS{CustomCA: ca.PEM, ServerName: "other.test"}, "is for app.test, 127.0.0.1, not for other.test"},
		{"unknown CA", plain, TLS{}, "unknown CA"},
		{"skip verify", plain, TLS{SkipVerify: true}, " 0"},
		{"expired", old, TLS{CustomCA: ca.PEM}, "expired on"},
		{"client certificate", mutual, TLS{CustomCA: ca.PEM, ClientCert: certPEM, ClientKey: keyPEM}, " 1"},
		{"no client certificate", mutual, TLS{CustomCA: ca.PEM}, ""},
	} {
		d := newDoor(t, target(t, Spec{TLS: tc.tls}, tc.to))
		resp, body := get(t, d.URL)
		_, err := outcomeOf(t, d)
		switch {
		case tc.name == "no client certificate":
			if resp.StatusCode == 200 {
				t.Error("served without the client certificate that the upstream wants")
			}
		case err != nil:
			if !strings.Contains(err.Error(), tc.want) || !errors.Is(err, ErrUnreachable) {
				t.Errorf("%s: %v", tc.name, err)
			}
		case body != tc.want:
			t.Errorf("%s: %q, want %q", tc.name, body, tc.want)
		}
	}
}

// A port that nobody listens on is noticed at once, not by a timeout.
func TestH3UpstreamRefused(t *testing.T) {
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	to := "h3://" + udp.LocalAddr().String()
	udp.Close()
	d := newDoor(t, target(t, Spec{TLS: TLS{SkipVerify: true}}, to))
	began := time.Now()
	get(t, d.URL)
	if _, err := outcomeOf(t, d); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > connectTimeout/2 {
		t.Errorf("it took %v", took)
	}
	// What guards the route guards QUIC.
	d = newDoor(t, target(t, Spec{Guarded: true}, to))
	get(t, d.URL)
	if _, err := outcomeOf(t, d); err == nil || !strings.Contains(err.Error(), "upstream_dial_allow") {
		t.Errorf("a guarded route: %v", err)
	}
}

// One connection serves many requests, at once too; it is closed when idle
// connections are; an upstream that comes back is found again, and requests
// that change nothing do not notice.
func TestH3UpstreamConnections(t *testing.T) {
	ca, c := h3CA(t)
	conns := map[string]bool{}
	var mu sync.Mutex
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		conns[r.RemoteAddr] = true
		mu.Unlock()
		io.Copy(w, r.Body)
	})
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(conns) }
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	stop := serveH3(t, udp, h, c)
	tg := target(t, Spec{TLS: TLS{CustomCA: ca.PEM}}, "h3://"+udp.LocalAddr().String())
	d := newDoor(t, tg)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if resp, err := http.Get(d.URL); err != nil || resp.StatusCode != 200 {
				t.Error(resp, err)
			} else {
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	if n := count(); n != 1 {
		t.Errorf("%d connections for 20 requests", n)
	}
	tg.hosts.Load().hosts[0].closeIdle()
	if resp, _ := get(t, d.URL); resp.StatusCode != 200 || count() != 2 {
		t.Errorf("%d, %d connections", resp.StatusCode, count())
	}
	addr := udp.LocalAddr().(*net.UDPAddr)
	stop()
	if udp, err = net.ListenUDP("udp", addr); err != nil {
		t.Fatal(err)
	}
	stop = serveH3(t, udp, h, c)
	defer stop()
	if resp, _ := get(t, d.URL); resp.StatusCode != 200 {
		t.Errorf("after the restart: %d: %q", resp.StatusCode, d.untold())
	}
}

// Cancelling the exchange resets the stream; the connection lives on.
func TestH3UpstreamCancel(t *testing.T) {
	ca, c := h3CA(t)
	began, gone := make(chan struct{}, 1), make(chan struct{}, 1)
	to, _ := h3Upstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			began <- struct{}{}
			<-r.Context().Done()
			gone <- struct{}{}
		}
	}), c)
	tg := target(t, Spec{TLS: TLS{CustomCA: ca.PEM}}, to)
	d := newDoor(t, tg)
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "GET", d.URL+"/hang", nil)
	go func() { <-began; cancel() }()
	if _, err := http.DefaultClient.Do(req); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-gone
	if _, err := outcomeOf(t, d); !errors.Is(err, ErrClientGone) {
		t.Error(err)
	}
	d.options.Timeout = 50 * time.Millisecond
	go func() { <-began }()
	get(t, d.URL+"/hang")
	<-gone
	if _, err := outcomeOf(t, d); !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	d.options.Timeout = 0
	if resp, _ := get(t, d.URL+"/"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}

// An upstream that breaks HTTP/3 gives 502, one that vanishes 502 or 503.
func TestH3UpstreamGarbage(t *testing.T) {
	ca, c := h3CA(t)
	c.NextProtos = []string{http3.NextProtoH3}
	ln, err := quic.ListenAddr("127.0.0.1:0", c, nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() }) // behind the pool's
	wg.Go(func() {
		for {
			conn, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() {
				for {
					s, err := conn.AcceptStream(context.Background())
					if err != nil {
						return
					}
					s.Write([]byte{0x01, 0x03, 0xff, 0xff, 0xff}) // HEADERS that no QPACK decoder takes
					s.Close()
				}
			})
		}
	})
	d := newDoor(t, target(t, Spec{TLS: TLS{CustomCA: ca.PEM}}, "h3://"+ln.Addr().String()))
	get(t, d.URL)
	if _, err := outcomeOf(t, d); !errors.Is(err, ErrBadResponse) {
		t.Errorf("%v", err)
	}
}

func outcomeOf(t *testing.T, d *door) (Result, error) {
	t.Helper()
	o := d.outcome(t)
	return o.Result, o.err
}
