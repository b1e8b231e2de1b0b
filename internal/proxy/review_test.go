package proxy

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"postern/internal/authz"
	"postern/internal/session"
)

// earlyAnswer is an upstream that answers 413 once it has the head, and then
// closes: the body is not wanted.
func earlyAnswer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReader(c)
				for {
					line, err := br.ReadString('\n')
					if err != nil {
						return
					}
					if line == "\r\n" {
						break
					}
				}
				io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
				io.Copy(io.Discard, br)
			}()
		}
	}()
	return "http://" + ln.Addr().String()
}

// TestEarlyAnswerEndsTheConnection: an answer in the middle of an upload may
// not leave the connection open, or the rest of the body would be read as the
// next request.
func TestEarlyAnswerEndsTheConnection(t *testing.T) {
	for _, framing := range []string{"Content-Length: 2000\r\n\r\nfirst part", "Transfer-Encoding: chunked\r\n\r\n7d0\r\nfirst part"} {
		routes := one(appRoute, RouteConfig{})
		routes[0].to = earlyAnswer(t)
		run := testDoor{routes: routes}.start(t)
		c, err := net.Dial("tcp", run.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, "POST /upload HTTP/1.1\r\nHost: app.test\r\n"+framing)
		br := bufio.NewReader(c)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 413 || string(b) != "big" {
			t.Fatalf("%d %q", resp.StatusCode, b)
		}
		// The rest of the body is made to look like a request.
		io.WriteString(c, "GET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n")
		rest, _ := io.ReadAll(br)
		if len(rest) > 0 {
			t.Errorf("the body's rest was answered: %.80q", rest)
		}
		run.mu.Lock()
		for _, d := range run.decisions {
			if d.View.Path() == "/smuggled" {
				t.Error("the body's rest was judged as a request")
			}
		}
		run.mu.Unlock()
	}
}

// TestPreflightOpensNoTunnel: what passes without credentials may not become a
// connection of raw bytes to the application, whatever that answers.
func TestPreflightOpensNoTunnel(t *testing.T) {
	var asked []string
	app := newRecorder(t, func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header["Upgrade"]
		if len(asked) == 0 {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		c, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(c, buf)
	})
	keys := RouteConfig{}
	keys.Resolved.Websockets, keys.Resolved.Upgrades = true, []string{"websocket"}
	routes := one(appRoute, keys)
	routes[0].to = app.URL
	run := testDoor{routes: routes, decide: func(r *authz.Request) authz.Decision {
		d := allowAll(r)
		d.Bare = true
		return d
	}}.start(t)
	got := run.raw("OPTIONS /socket HTTP/1.1\r\nHost: app.test\r\nOrigin: https://evil.test\r\nAccess-Control-Request-Method: GET\r\n" +
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if got.StatusCode == http.StatusSwitchingProtocols || len(asked) > 0 {
		t.Errorf("a preflight was answered %d, the application was asked to upgrade to %q", got.StatusCode, asked)
	}
}

// TestOwnPagesSeeTheClientAddress: own pages throttle and list by the same
// client address as policy and the access log (decision 4).
func TestOwnPagesSeeTheClientAddress(t *testing.T) {
	var saw string
	cfg := defaultConfig()
	cfg.XFFNumTrustedHops = 1
	run := testDoor{routes: one(appRoute, RouteConfig{}), config: &cfg, endpoints: NewEndpoints(Endpoint{
		Path: "/.pomerium/", Handler: func(w http.ResponseWriter, r *http.Request, _ *session.Caller) { saw = r.RemoteAddr },
	})}.start(t)
	run.target("app.test", "/.pomerium/", "X-Forwarded-For: 2001:db8::7")
	if host, _, err := net.SplitHostPort(saw); err != nil || host != "2001:db8::7" {
		t.Errorf("own pages saw %q", saw)
	}
}

// TestUnderscoreSpellingOfOurs: where underscores pass, no spelling of a field
// that Postern sets does (decision 6).
func TestUnderscoreSpellingOfOurs(t *testing.T) {
	cfg := defaultConfig()
	cfg.HeadersWithUnderscoresAction = "allow"
	run := testDoor{routes: one(appRoute, RouteConfig{}), config: &cfg}.start(t)
	run.target("app.test", "/", "X_Forwarded_For: 10.9.9.9", "x_forwarded_proto: gopher", "X_Request_ID: mine", "X_Other: stays")
	got := run.echo.last()
	if got == nil {
		t.Fatal("nothing arrived")
	}
	for name, values := range got.Header {
		if folded := strings.ToLower(name); strings.HasPrefix(folded, "x_") && folded != "x_other" {
			t.Errorf("%s: %q arrived", name, values)
		}
	}
	if got.Header.Get("X_other") != "stays" {
		t.Errorf("another field was lost: %v", got.Header)
	}
}

// TestDotSegmentWithParameter: servers that cut path parameters see "..;x" as
// "..", so policy that looks at paths cannot judge it.
func TestDotSegmentWithParameter(t *testing.T) {
	spec := appRoute
	spec.Prefix = "/public"
	run := testDoor{routes: one(spec, RouteConfig{})}.start(t)
	for _, path := range []string{"/public/..;/admin", "/public/..;a=b/admin", "/public/.;x/y", "/public/%2e%2e;/admin", "/public/..%3B/admin"} {
		if got := run.target("app.test", path); got.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", path, got.StatusCode)
		}
	}
	if n := run.echo.count(); n > 0 {
		t.Errorf("%d of them arrived", n)
	}
	for _, path := range []string{"/public/a;b/c", "/public/...;/x", "/public/a..;/x"} {
		if got := run.target("app.test", path); got.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", path, got.StatusCode)
		}
	}
}

// TestPanicInAHandshakeEndsOneConnection: what a stranger's handshake sets off
// ends that connection, gives its slot back, and nothing else.
func TestPanicInAHandshakeEndsOneConnection(t *testing.T) {
	c := testTLS(t, "http/1.1")
	inner := c.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName == "panic.test" {
			panic("a bug")
		}
		return inner, nil
	}
	s := serve(t, ServeOptions{Handler: bodyEcho, TLS: c, MaxHandshakes: 1})
	for range 3 {
		conn, _ := dial(t, s)
		bad := clientTLS("http/1.1")
		bad.ServerName = "panic.test"
		if err := tls.Client(conn, bad).Handshake(); err == nil {
			t.Fatal("the handshake went through")
		}
	}
	tr := &http.Transport{TLSClientConfig: clientTLS()}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://" + s.addr)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}
