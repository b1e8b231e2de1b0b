package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// v2 is a PROXY header of version 2: command and version, family and
// transport, and what follows its length.
func v2(command, family byte, rest string) string {
	return "\r\n\r\n\x00\r\nQUIT\n" + string([]byte{command, family, byte(len(rest) >> 8), byte(len(rest))}) + rest
}

// TestProxyProtocolHeaders holds both versions to the specification of HAProxy,
// 2.1 and 2.2, in clear and in front of TLS.
func TestProxyProtocolHeaders(t *testing.T) {
	o := ServeOptions{
		ProxyProtocol: true, HandshakeTimeout: 500 * time.Millisecond,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			info := ConnInfoFrom(r.Context())
			fmt.Fprintf(w, "<%s %v>", info.Direct, info.Proxy.IsValid())
		}),
	}
	clear := serve(t, o)
	o.TLS = testTLS(t, "http/1.1")
	secure := serve(t, o)
	const (
		own  = "<127.0.0.1:"
		tcp4 = "\xc6\x33\x64\x08\x7f\x00\x00\x01\x12\x67\x01\xbb"
		tcp6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x12\x67\x01\xbb"
	)
	for _, tc := range []struct{ name, in, want string }{
		{"v1 TCP4", "PROXY TCP4 198.51.100.7 127.0.0.1 4711 443\r\n", "<198.51.100.7:4711 true>"},
		{"v1 TCP6", "PROXY TCP6 2001:db8::7 ::1 4711 443\r\n", "<[2001:db8::7]:4711 true>"},
		{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", own},
		{"v1 UNKNOWN with addresses", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", own},
		{"v2 TCP4", v2(0x21, 0x11, tcp4), "<198.51.100.8:4711 true>"},
		{"v2 TCP6", v2(0x21, 0x21, tcp6), "<[2001:db8::7]:4711 true>"},
		{"v2 TCP4 with TLV", v2(0x21, 0x11, tcp4+"\x04\x00\x03abc"), "<198.51.100.8:4711 true>"},
		{"v2 IPv4 inside IPv6", v2(0x21, 0x21, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc6\x33\x64\x08"+tcp6[16:]), "<198.51.100.8:4711 true>"},
		{"v2 LOCAL", v2(0x20, 0x00, ""), own},
		{"v2 LOCAL with addresses", v2(0x20, 0x11, tcp4), own},
		{"v2 UNSPEC that is not LOCAL", v2(0x21, 0x00, ""), ""},

		{"none", "", ""},
		{"v1 lower case", "proxy TCP4 198.51.100.7 127.0.0.1 4711 443\r\n", ""},
		{"v1 without port", "PROXY TCP4 198.51.100.7 127.0.0.1 4711\r\n", ""},
		{"v1 port too large", "PROXY TCP4 198.51.100.7 127.0.0.1 99999 443\r\n", ""},
		{"v1 name", "PROXY TCP4 localhost 127.0.0.1 4711 443\r\n", ""},
		{"v1 other family", "PROXY TCP4 2001:db8::7 ::1 4711 443\r\n", ""},
		{"v1 other protocol", "PROXY UDP4 198.51.100.7 127.0.0.1 4711 443\r\n", ""},
		{"v1 bare LF", "PROXY TCP4 198.51.100.7 127.0.0.1 4711 443\n", ""},
		{"v1 too long", "PROXY TCP4 198.51.100.7 127.0.0.1 4711 443" + strings.Repeat(" ", 100) + "\r\n", ""},
		{"v2 too short", v2(0x21, 0x11, tcp4[:8]), ""},
		{"v2 version", v2(0x31, 0x11, tcp4), ""},
		{"v2 command", v2(0x25, 0x11, tcp4), ""},
		{"v2 cut off", v2(0x21, 0x11, tcp4)[:20], ""},
		{"v2 signature", "\r\n\r\n\x00\r\nQUIX\n" + v2(0x21, 0x11, tcp4)[12:], ""},
	} {
		for _, s := range []*served{clear, secure} {
			c, br := dial(t, s)
			io.WriteString(c, tc.in)
			var answer string
			if s == secure {
				tc := tls.Client(c, clientTLS("http/1.1"))
				if tc.Handshake() == nil {
					io.WriteString(tc, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
					b, _ := io.ReadAll(bufio.NewReader(tc))
					answer = string(b)
				}
			} else {
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
				b, _ := io.ReadAll(br)
				answer = string(b)
			}
			c.Close()
			if tc.want == "" && strings.Contains(answer, "<") || !strings.Contains(answer, tc.want) {
				t.Errorf("%s (TLS %v): %q, want %q", tc.name, s == secure, answer, tc.want)
			}
		}
	}
	// A header that never ends is not waited for.
	c, br := dial(t, clear)
	io.WriteString(c, "PROXY TCP4 198.51")
	if b, err := io.ReadAll(br); err != nil && !strings.Contains(err.Error(), "reset") || len(b) > 0 {
		t.Errorf("half a header: %q %v, want the end of the connection", b, err)
	}
}

// TestProxyProtocolAndForwarding: PROXY names the direct peer, and from there
// X-Forwarded-For is read as ever (decision 4).
func TestProxyProtocolAndForwarding(t *testing.T) {
	for _, tc := range []struct {
		name    string
		hops    uint32
		trusted string
		in      string // X-Forwarded-For, -Proto
		xff     string
		client  string
		proto   string
	}{
		{"nobody trusted", 0, "", "203.0.113.9", "203.0.113.9, 198.51.100.7", "198.51.100.7", "https"},
		{"one hop", 1, "", "203.0.113.9", "203.0.113.9, 198.51.100.7", "203.0.113.9", "http"},
		{"the balancer alone is listed", 1, "127.0.0.0/8", "203.0.113.9", "203.0.113.9, 198.51.100.7", "198.51.100.7", "https"},
		{"both are listed", 1, "127.0.0.0/8,198.51.100.0/24", "203.0.113.9", "203.0.113.9, 198.51.100.7", "203.0.113.9", "http"},
	} {
		cfg := defaultConfig()
		cfg.XFFNumTrustedHops = tc.hops
		for p := range strings.SplitSeq(tc.trusted, ",") {
			if p != "" {
				cfg.TrustedProxies = append(cfg.TrustedProxies, netip.MustParsePrefix(p))
			}
		}
		run := testDoor{config: &cfg, routes: one(appRoute, RouteConfig{})}.start(t)
		s := serve(t, ServeOptions{ProxyProtocol: true, TrustedProxies: cfg.TrustedProxies, TLS: testTLS(t, "http/1.1"),
			Handler: New(func() *Generation { return run.gen })})
		c, _ := dial(t, s)
		io.WriteString(c, v2(0x21, 0x11, "\xc6\x33\x64\x07\x7f\x00\x00\x01\x12\x67\x01\xbb"))
		secure := tls.Client(c, clientTLS("http/1.1"))
		fmt.Fprintf(secure, "GET / HTTP/1.1\r\nHost: app.test\r\nX-Forwarded-For: %s\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: evil.test\r\nX-Envoy-External-Address: 1.2.3.4\r\nConnection: close\r\n\r\n", tc.in)
		if resp, _ := readResponse(t, bufio.NewReader(secure)); resp.StatusCode != 200 {
			t.Fatalf("%s: %d", tc.name, resp.StatusCode)
		}
		h := run.echo.last().Header
		if got := h.Get("X-Forwarded-For"); got != tc.xff {
			t.Errorf("%s: X-Forwarded-For %q, want %q", tc.name, got, tc.xff)
		}
		if got := h.Get("X-Envoy-External-Address"); got != tc.client {
			t.Errorf("%s: X-Envoy-External-Address %q, want %q", tc.name, got, tc.client)
		}
		if got := h.Get("X-Forwarded-Proto"); got != tc.proto {
			t.Errorf("%s: X-Forwarded-Proto %q, want %q", tc.name, got, tc.proto)
		}
		if got := h.Get("X-Forwarded-Host"); strings.Contains(got, "evil") {
			t.Errorf("%s: X-Forwarded-Host %q is the client's", tc.name, got)
		}
	}
}
