package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/policy"
	"postern/internal/route"
	"postern/internal/session"
)

// Tests named after rows of the list of published holes in proxies of this
// kind: everything here goes over real sockets, and every test is proven on a
// deliberately broken build (test/broken).

// randomTarget makes request targets out of the pieces that parsers disagree
// about.
func randomTarget(rnd *rand.Rand) string {
	pieces := []string{"admin", "%61dmin", "%2561dmin", "ADMIN", "public", "%70ublic", "..", ".", "%2e%2e", "%2E", ".%2e", "%252e%252e",
		"api", "v1", "v2x", "x;y", "a=b", "%2f", "%2F", "%5c", "\\", "~", "%7e", "%zz", "%", "%00", "é", "%C3%A9", "%c3%a9", "a%20b", "*", "@", ":", "%3F", "%23", "#"}
	var b strings.Builder
	for range 1 + rnd.Intn(5) {
		b.WriteString([]string{"/", "/", "/", "/", "//", "///"}[rnd.Intn(6)])
		b.WriteString(pieces[rnd.Intn(len(pieces))])
	}
	switch rnd.Intn(6) {
	case 0:
		b.WriteString("/")
	case 1:
		b.WriteString("?/public")
	case 2:
		b.WriteString("?x=%2e%2e/;y#z"[:4+rnd.Intn(10)])
	}
	return b.String()
}

// lenient is how a forgiving application may read a path: escapes decoded
// once, dots resolved, slashes merged.
func lenient(path string) string {
	p, err := url.PathUnescape(path)
	if err != nil {
		p = path
	}
	return cleanSegments(p)
}

func cleanSegments(p string) string {
	var out []string
	for seg := range strings.SplitSeq(strings.ReplaceAll(p, "\\", "/"), "/") {
		switch seg {
		case "", ".":
		case "..":
			out = out[:max(0, len(out)-1)]
		default:
			out = append(out, seg)
		}
	}
	return "/" + strings.Join(out, "/")
}

// CVE-2023-33189: what was judged is byte for byte what is sent, and means the
// same to an application that decodes and cleans it once more.
func TestCVE_2023_33189_JudgedIsSent(t *testing.T) {
	var judged atomic.Pointer[string]
	run := testDoor{routes: one(appRoute, RouteConfig{}), decide: func(r *authz.Request) authz.Decision {
		p := r.View.Path() + "|" + r.View.RawQuery()
		judged.Store(&p)
		return allowAll(r)
	}}.start(t)
	rnd := rand.New(rand.NewSource(33189))
	passed := 0
	for range 1500 {
		target := randomTarget(rnd)
		judged.Store(nil)
		before := run.echo.count()
		a := run.target("app.test", target)
		if run.echo.count() == before {
			if a.StatusCode == 200 {
				t.Fatalf("%q: answered 200 without the upstream", target)
			}
			continue
		}
		passed++
		sent, query, _ := strings.Cut(run.echo.lastTarget(), "?")
		was := judged.Load()
		if was == nil || *was != sent+"|"+query {
			t.Fatalf("%q: judged %v, sent %q?%q", target, deref(was), sent, query)
		}
		if again, _, err := exchange.CanonicalPath(sent, exchange.PathOptions{}); err != nil || again != sent {
			t.Fatalf("%q: sent %q, which is not canonical (%q, %v)", target, sent, again, err)
		}
		if clean := cleanSegments(policy.DecodePath(sent)); clean != lenient(sent) || strings.TrimSuffix(policy.DecodePath(sent), "/") != strings.TrimSuffix(clean, "/") {
			t.Fatalf("%q: policy saw %q, a lenient application reads %q", target, policy.DecodePath(sent), clean)
		}
		if _, raw, _ := strings.Cut(target, "?"); query != raw {
			t.Fatalf("%q: query became %q", target, query)
		}
	}
	if passed < 300 {
		t.Fatalf("only %d targets passed: the test says little", passed)
	}
}

func deref(s *string) string {
	if s == nil {
		return "nothing"
	}
	return *s
}

// CVE-2021-39206: prefix, exact and regex routes are chosen by the very path
// that goes upstream, so that no spelling slips past the route that guards it.
func TestCVE_2021_39206_PrefixAndRegex(t *testing.T) {
	specs := []route.Spec{
		{From: "https://app.test", Prefix: "/admin"},
		{From: "https://app.test", Regex: `/api/v[0-9]+(/.*)?`},
		{From: "https://app.test", Path: "/public"},
		{From: "https://app.test"},
	}
	guards := []func(string) bool{
		func(p string) bool { return strings.HasPrefix(p, "/admin") },
		func(p string) bool {
			rest, ok := strings.CutPrefix(p, "/api/v1")
			return ok && (rest == "" || rest[0] == '/')
		},
		func(p string) bool { return p == "/public" },
		func(string) bool { return true },
	}
	var chosen atomic.Int32
	var routes []testRoute
	for _, s := range specs {
		routes = append(routes, testRoute{spec: s})
	}
	run := testDoor{routes: routes, decide: func(r *authz.Request) authz.Decision {
		chosen.Store(int32(r.Route.Slot))
		return allowAll(r)
	}}.start(t)
	rnd := rand.New(rand.NewSource(39206))
	hits := make([]int, len(specs))
	for range 1500 {
		target := randomTarget(rnd)
		if rnd.Intn(3) == 0 {
			target = []string{"/admin", "/public", "/x/../admin", "/%61dmin/y", "/api/v1/z", "/api/./v1", "//admin", "/public/../admin", "/public/%2e%2e/admin"}[rnd.Intn(9)]
		}
		before := run.echo.count()
		run.target("app.test", target)
		if run.echo.count() == before {
			continue
		}
		sent, _, _ := strings.Cut(run.echo.lastTarget(), "?")
		want := 0
		for !guards[want](policy.DecodePath(sent)) {
			want++
		}
		if first := slices.IndexFunc(guards[:2], func(g func(string) bool) bool { return g(lenient(sent)) }); first >= 0 && first < want {
			t.Fatalf("%q went up as %q, which a lenient application may read as route %d's", target, sent, first)
		}
		got := int(chosen.Load())
		hits[got]++
		if got != want {
			t.Fatalf("%q went up as %q by route %d, its guard is route %d", target, sent, got, want)
		}
	}
	for i, n := range hits {
		if n == 0 {
			t.Errorf("route %d was never chosen: the test says little", i)
		}
	}
}

// Row "encoded path" and CVE-2026-42272, -42273, -42274, CVE-2026-33494: every
// spelling of one path gets one verdict and goes up in one form, over HTTP/1.1
// and HTTP/2; what has no single meaning is refused.
func TestEncodedPathClasses(t *testing.T) {
	run := testDoor{routes: one(appRoute, RouteConfig{}), decide: func(r *authz.Request) authz.Decision {
		if strings.HasPrefix(policy.DecodePath(r.View.Path()), "/admin") {
			return authz.Decision{Outcome: authz.Deny, Status: 403, Caller: &session.Caller{}}
		}
		return allowAll(r)
	}}.start(t)
	classes := []struct {
		status int
		up     string // what the upstream gets
		of     []string
	}{
		{403, "", []string{"/admin", "/%61dmin", "/%61%64%6d%69%6e", "//admin", "/./admin", "/%2e/admin", "/x/../admin", "/x/%2e%2e/admin", "/x/.%2E/admin",
			"/public/../admin", "/../admin", "/../../admin", "/admin/", "/admin?/public", "/admin;x", "/admin//x", "http://app.test/admin", "https://app.test//admin", "HTTPS://app.test/%61dmin"}},
		{200, "/public", []string{"/public", "/%70ublic", "//public", "/./public", "/admin/../public", "/x/%2e%2e/public", "http://app.test/public"}},
		{200, "/%2561dmin", []string{"/%2561dmin"}}, // a literal "%61dmin"
		{200, "/%252e%252e/x", []string{"/%252e%252e/x", "/y/../%252e%252e/x"}},
		{200, "/ADMIN", []string{"/ADMIN", "/%41DMIN"}},
		{200, "/caf%C3%A9", []string{"/café", "/caf%c3%a9", "/caf%C3%A9"}},
		{400, "", []string{"/x%2fadmin", "/x%2Fadmin", "/%2f", "/x%5cadmin", "/x\\admin", "/\\admin", "/a#b", "/#/public", "/admin#/public", "/a%00", "/%zz", "/%", "/%6", "/a?b#c"}},
	}
	for _, c := range classes {
		for _, target := range c.of {
			check := func(codec string, status int) {
				t.Helper()
				up, _, _ := strings.Cut(run.echo.lastTarget(), "?")
				if status != c.status || c.up != "" && up != c.up {
					t.Errorf("%s %q: %d, upstream %q; want %d %q", codec, target, status, up, c.status, c.up)
				}
			}
			check("h1", run.target("app.test", target).StatusCode)
			if target[0] != '/' {
				continue // HTTP/2 has no absolute form
			}
			if status, ok := h2Status(t, run, "app.test", target); ok {
				check("h2", status)
			}
		}
	}
	for _, c := range []struct {
		host   string
		status int
	}{
		{"app.test", 200}, {"APP.test", 200}, {"App.Test", 200}, {"app.test.", 200}, {"app.test:443", 200},
		{"app.test..", 400}, {"app.test@evil.test", 400}, {"app.test#", 400}, {"app%2etest", 400}, {"other.test", 404},
	} {
		if a := run.target(c.host, "/"); a.StatusCode != c.status {
			t.Errorf("host %q: %d, want %d", c.host, a.StatusCode, c.status)
		}
	}
	// Two names for one request.
	for _, raw := range []string{
		"GET http://evil.test/ HTTP/1.1\r\nHost: app.test\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: app.test\r\nHost: evil.test\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: app.test\r\nhost: app.test\r\n\r\n",
	} {
		if a := run.raw(raw); a.StatusCode != 400 {
			t.Errorf("%q: %d", raw, a.StatusCode)
		}
	}
}

// h2conn is a bare HTTP/2 connection to the door.
type h2conn struct {
	net.Conn
	*http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

func dialH2(t testing.TB, run *running) *h2conn {
	t.Helper()
	c, err := tls.Dial("tcp", run.tlsAddr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { c.Close() })
	io.WriteString(c, http2.ClientPreface)
	h := &h2conn{Conn: c, Framer: http2.NewFramer(c, c)}
	h.enc = hpack.NewEncoder(&h.buf)
	h.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := h.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *h2conn) headers(stream uint32, end bool, fields ...string) error {
	h.buf.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		h.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return h.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.buf.Bytes(), EndHeaders: true, EndStream: end})
}

// h2Status sends one GET with that :path; ok is false if the stream was reset.
func h2Status(t testing.TB, run *running, host, path string) (status int, ok bool) {
	t.Helper()
	h := dialH2(t, run)
	defer h.Close()
	if err := h.headers(1, true, ":method", "GET", ":scheme", "https", ":authority", host, ":path", path); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := h.ReadFrame()
		if err != nil {
			return 0, false
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if _, err := fmt.Sscan(f.PseudoValue("status"), &status); err != nil {
				t.Fatal(err)
			}
			return status, true
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0, false
		}
	}
}

// CVE-2025-54576 and CVE-2026-41059: a rule about the path is not satisfied by
// query or fragment.
func TestCVE_2025_54576_QueryIsNotPath(t *testing.T) {
	run := testDoor{routes: one(appRoute, RouteConfig{}), decide: func(r *authz.Request) authz.Decision {
		if strings.Contains(r.View.Path(), "public") {
			return allowAll(r)
		}
		return authz.Decision{Outcome: authz.SignIn, Status: 401, Caller: &session.Caller{}}
	}}.start(t)
	for _, target := range []string{"/x?/public", "/x?public", "/?/../public", "/x#/public", "/x%23?/public", "/x?a#/public", "http://app.test?/public", "/x;?/public", "*"} {
		if a := run.target("app.test", target); a.StatusCode != 401 && a.StatusCode != 400 {
			t.Errorf("%q: %d", target, a.StatusCode)
		}
	}
	if run.echo.count() != 0 {
		t.Error("the upstream was reached")
	}
}

// identityDoor lets everybody in as Ada and tells the upstream so.
func identityDoor(t *testing.T, spec route.Spec, keys RouteConfig, underscores string, bare bool) *running {
	cfg := defaultConfig()
	cfg.HeadersWithUnderscoresAction = underscores
	claims := []string{"X-Email", "X-Pomerium-Claim-Email"}
	return testDoor{routes: one(spec, keys), config: &cfg, claimHeaders: claims, decide: func(r *authz.Request) authz.Decision {
		d := authz.Decision{Outcome: authz.Allow, Status: 200, Caller: &session.Caller{}, Bare: bare}
		names := authz.StripNames(&authz.Config{JWTClaimsHeaders: map[string]string{"X-Email": "email", "X-Pomerium-Claim-Email": "email"}}, r.Route)
		d.Strip = exchange.NewNameSet(append(names, "X-Route-User")...)
		if !bare {
			d.Identity = []exchange.Field{{Name: "X-Pomerium-Jwt-Assertion", Value: "signed"}, {Name: "X-Email", Value: "ada@example.com"}}
		}
		return d
	}}.start(t)
}

// spellings are those in which an application might read a header name.
func spellings(name string) []string {
	return []string{name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_"), strings.ToLower(strings.ReplaceAll(name, "-", "_")),
		strings.Replace(name, "-", "_", 1)}
}

// seen gives what an upstream that folds names (CGI, WSGI) finds under name.
func seen(h http.Header, name string) (values []string) {
	fold := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "-")) }
	for n, v := range h {
		if fold(n) == fold(name) {
			values = append(values, v...)
		}
	}
	return values
}

var spoofed = []string{"X-Pomerium-Jwt-Assertion", "X-Pomerium-Jwt-Assertion-For", "X-Pomerium-Claim-Email", "X-Pomerium-Anything", "X-Email", "X-Route-User", "X-Envoy-External-Address", "X-Forwarded-Host"}

// CVE-2026-30851, CVE-2026-33433 and CVE-2025-64484: a client's identity
// header reaches no upstream, whatever its spelling and whatever the route.
func TestCVE_2026_30851_ClaimedIdentityIsStripped(t *testing.T) {
	for _, bare := range []bool{false, true} {
		run := identityDoor(t, appRoute, RouteConfig{SetRequestHeaders: map[string]string{"X-Route-User": "ours"}}, "allow", bare)
		for _, name := range spoofed {
			for _, spelling := range spellings(name) {
				a := run.target("app.test", "/", spelling+": evil")
				if a.StatusCode != 200 {
					t.Fatalf("%s: %d", spelling, a.StatusCode)
				}
				for _, v := range seen(run.echo.last().Header, name) {
					if strings.Contains(v, "evil") {
						t.Errorf("bare %v: %q reached the upstream", bare, spelling)
					}
				}
				run.get("https://app.test/", strings.ToLower(spelling), "evil") // HTTP/2
				for _, v := range seen(run.echo.last().Header, name) {
					if strings.Contains(v, "evil") {
						t.Errorf("bare %v: %q reached the upstream over HTTP/2", bare, spelling)
					}
				}
			}
		}
		if !bare {
			if h := run.echo.last().Header; fmt.Sprint(h["X-Email"], h["X-Route-User"], h["X-Pomerium-Jwt-Assertion"]) != "[ada@example.com] [ours] [signed]" {
				t.Errorf("our own: %v", h)
			}
		}
	}
}

// The same in trailers, where some frameworks merge them into the head.
func TestIdentityInTrailersIsStripped(t *testing.T) {
	run := identityDoor(t, appRoute, RouteConfig{SetRequestHeaders: map[string]string{"X-Route-User": "ours"}}, "allow", false)
	for _, name := range append([]string{"Authorization", "Cookie", "X-Original-URL"}, spoofed...) {
		for _, spelling := range spellings(name) {
			a := run.raw("POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Plain, " + spelling +
				"\r\nConnection: close\r\n\r\n2\r\nhi\r\n0\r\nX-Plain: 1\r\n" + spelling + ": evil\r\n\r\n")
			if a.StatusCode != 200 {
				t.Errorf("%s: %d", spelling, a.StatusCode)
				continue
			}
			up := run.echo.last()
			if up.Trailer.Get("X-Plain") != "1" {
				t.Errorf("%s: an ordinary trailer was lost: %v", spelling, up.Trailer)
			}
			if v := seen(up.Trailer, name); len(v) > 0 {
				t.Errorf("trailer %s reached the upstream: %v", spelling, up.Trailer)
			}
		}
	}
}

// GHSA-w9mr-28mw-j8hg and CVE-2024-45410: Connection names hop-by-hop fields of
// the client, never what we add, in any case.
func TestCVE_2024_45410_ConnectionNamesIdentity(t *testing.T) {
	run := identityDoor(t, appRoute, RouteConfig{SetRequestHeaders: map[string]string{"X-Route-User": "ours"}}, "allow", false)
	for _, list := range []string{
		"X-Pomerium-Jwt-Assertion, X-Email, X-Route-User, X-Forwarded-For, X-Forwarded-Proto, X-Request-Id",
		"x-pomerium-jwt-assertion,x-email,x-route-user,x-forwarded-for,x-forwarded-proto,x-request-id",
		"X_POMERIUM_JWT_ASSERTION, X_EMAIL, X_ROUTE_USER, close",
		"close, X-EMAIL\r\nConnection: x-pomerium-Jwt-assertion, x-route-User",
		"keep-alive, X-Email\r\nX-Email: evil\r\nX-Pomerium-Jwt-Assertion: evil",
	} {
		a := run.raw("GET / HTTP/1.1\r\nHost: app.test\r\nX-Hop: 1\r\nConnection: X-Hop, " + list + "\r\n\r\n")
		if a.StatusCode != 200 {
			t.Fatalf("%q: %d", list, a.StatusCode)
		}
		h := run.echo.last().Header
		if h.Get("X-Hop") != "" {
			t.Errorf("%q: a hop-by-hop field went on", list)
		}
		for name, want := range map[string]string{"X-Pomerium-Jwt-Assertion": "signed", "X-Email": "ada@example.com", "X-Route-User": "ours", "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http"} {
			if got := h[name]; len(got) != 1 || got[0] != want {
				t.Errorf("%q: %s is %q", list, name, got)
			}
		}
		if h.Get("X-Request-Id") == "" {
			t.Errorf("%q: no request id", list)
		}
	}
}

// Row "override headers", CVE-2026-40575 and CVE-2026-76835: what could tell
// an application that another request was made never goes up, and changes no
// verdict. A preflight goes up bare.
func TestOverrideHeaders(t *testing.T) {
	names := []string{"X-Original-URL", "X-Original-URI", "X-Original-Method", "X-Rewrite-URL", "X-Forwarded-Uri", "X-Forwarded-Method",
		"X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override", "X-Forwarded-Host", "X-Envoy-Original-Path", "X-Envoy-Original-Method", "X-Envoy-Internal", "X-Envoy-Force-Trace"}
	var judged atomic.Pointer[string]
	cfg := defaultConfig()
	cfg.HeadersWithUnderscoresAction = "allow"
	run := testDoor{routes: one(appRoute, RouteConfig{}), config: &cfg, decide: func(r *authz.Request) authz.Decision {
		s := r.View.Method() + " " + r.View.Authority() + r.View.Path()
		judged.Store(&s)
		return allowAll(r)
	}}.start(t)
	for _, name := range names {
		for _, spelling := range spellings(name) {
			if a := run.target("app.test", "/admin", spelling+": /public"); a.StatusCode != 200 {
				t.Fatalf("%s: %d", spelling, a.StatusCode)
			}
			if *judged.Load() != "GET app.test/admin" {
				t.Errorf("%s: judged %q", spelling, *judged.Load())
			}
			for _, v := range seen(run.echo.last().Header, name) {
				if strings.Contains(v, "public") {
					t.Errorf("%s reached the upstream", spelling)
				}
			}
		}
	}
	bare := identityDoor(t, appRoute, RouteConfig{}, "", true)
	a := bare.raw("OPTIONS /x HTTP/1.1\r\nHost: app.test\r\nOrigin: https://evil.test\r\nAccess-Control-Request-Method: POST\r\nCookie: a=b\r\n" +
		"Authorization: Bearer x\r\nProxy-Authorization: Basic x\r\nX-Pomerium-Authorization: x\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nevil")
	up := bare.echo.last()
	if a.StatusCode != 200 || up == nil {
		t.Fatalf("preflight: %d", a.StatusCode)
	}
	for _, name := range []string{"Cookie", "Authorization", "Proxy-Authorization", "X-Pomerium-Authorization", "Content-Type", "Content-Length"} {
		if v := up.Header.Get(name); v != "" {
			t.Errorf("the preflight carried %s: %q", name, v)
		}
	}
	if bare.echo.body[len(bare.echo.body)-1] != "" || up.Header.Get("Access-Control-Request-Method") != "POST" {
		t.Errorf("preflight with body %q, headers %v", bare.echo.body, up.Header)
	}
}

// CVE-2026-40575, CVE-2023-36456 and CVE-2026-57210 over a socket: forwarding
// headers count only from a listed peer, walked from the right, and text that
// is no address is refused.
func TestCVE_2023_36456_ForwardedFor(t *testing.T) {
	clientIP := func(cfg Config, lines ...string) (int, netip.Addr, string) {
		var ip netip.Addr
		var scheme string
		run := testDoor{routes: one(appRoute, RouteConfig{}), config: &cfg, decide: func(r *authz.Request) authz.Decision {
			ip, scheme = r.View.Peer().ClientIP, r.View.Scheme()
			return allowAll(r)
		}}.start(t)
		return run.target("app.test", "/", lines...).StatusCode, ip, scheme
	}
	spoof := []string{"X-Forwarded-For: 10.1.2.3", "X-Forwarded-Proto: https", "X-Real-IP: 10.1.2.3", "Forwarded: for=10.1.2.3", "X-Envoy-External-Address: 10.1.2.3", "True-Client-IP: 10.1.2.3", "CF-Connecting-IP: 10.1.2.3"}
	if status, ip, scheme := clientIP(defaultConfig(), spoof...); status != 200 || ip.String() != "127.0.0.1" || scheme != "http" {
		t.Errorf("by default: %d, client %v, scheme %s", status, ip, scheme)
	}
	listed := defaultConfig()
	listed.XFFNumTrustedHops = 2
	listed.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	if status, ip, scheme := clientIP(listed, spoof...); status != 200 || ip.String() != "127.0.0.1" || scheme != "http" {
		t.Errorf("from an unlisted peer: %d, client %v, scheme %s", status, ip, scheme)
	}
	listed.TrustedProxies = append(listed.TrustedProxies, netip.MustParsePrefix("127.0.0.0/8"))
	if status, ip, _ := clientIP(listed, "X-Forwarded-For: 10.1.2.3, 203.0.113.7"); status != 200 || ip.String() != "203.0.113.7" {
		t.Errorf("from a listed peer: %d, client %v", status, ip)
	}
	if status, ip, _ := clientIP(listed, "X-Forwarded-For: 10.1.2.3, 203.0.113.7, 198.51.100.1"); status != 200 || ip.String() != "203.0.113.7" {
		t.Errorf("through two listed peers: %d, client %v", status, ip)
	}
	for _, text := range []string{"localhost", "10.1.2.3.4", "", "127.0.0.1, ", "0x7f.1", "10.1.2.3/8", "10.1.2.3#", "fe80::1%lo"} {
		if status, ip, _ := clientIP(listed, "X-Forwarded-For: "+text); status != 400 {
			t.Errorf("client address %q: %d, client %v", text, status, ip)
		}
	}
}

// CVE-2026-26205 and CVE-2026-50197: policy and hooks see the very request
// that goes up, doubled slashes and chunked bodies included.
func TestCVE_2026_26205_SameRequest(t *testing.T) {
	var path string
	hook := &bodySpy{}
	run := testDoor{routes: []testRoute{{spec: appRoute, hook: hook}}, decide: func(r *authz.Request) authz.Decision {
		path = r.View.Path()
		return allowAll(r)
	}}.start(t)
	for raw, body := range map[string]string{
		"POST //admin///x HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n": "secret",
		"POST //admin/x HTTP/1.1\r\nHost: app.test\r\nContent-Length: 6\r\n\r\nsecret":                              "secret",
	} {
		a := run.raw(raw)
		if a.StatusCode != 200 || path != "/admin/x" || run.echo.lastTarget() != "/admin/x" {
			t.Errorf("%q: %d, judged %q, sent %q", raw, a.StatusCode, path, run.echo.lastTarget())
		}
		if got := run.echo.body[len(run.echo.body)-1]; got != body || hook.saw != body {
			t.Errorf("%q: the hook saw %q, the upstream %q", raw, hook.saw, got)
		}
	}
	// What could be read in two ways is refused before anybody reads it.
	count := run.echo.count()
	for _, raw := range []string{
		"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: +3\r\n\r\nabc",
		"POST / HTTP/1.0\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\nHost: app.test\n\n",
		"GET / HTTP/1.1\r\nHost: app.test\r\nX: a\r\n folded\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: app.test\r\nX: a\rY: b\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: app.test\r\n X: a\r\n\r\n",
	} {
		if a := run.raw(raw); a.StatusCode != 400 && a.StatusCode != 501 {
			t.Errorf("%q: %d", raw, a.StatusCode)
		}
	}
	if run.echo.count() != count {
		t.Error("an ambiguous request reached the upstream")
	}
}

// bodySpy reads the whole body before the decision and puts it back.
type bodySpy struct{ saw string }

func (h *bodySpy) BeforeDecide(_ context.Context, _ *authz.Request, body exchange.BodySource) (exchange.BodySource, error) {
	b, err := io.ReadAll(body)
	h.saw = string(b)
	return replay{strings.NewReader(h.saw)}, err
}

func (h *bodySpy) OnResponse(_ context.Context, _ *authz.Request, status int, f []exchange.Field) (int, []exchange.Field) {
	return status, f
}

// CVE-2021-39162 and CVE-2021-39204: a client that opens and resets streams
// over and over keeps no more work going than the connection may have streams.
func TestCVE_2021_39162_RapidReset(t *testing.T) {
	var now, most atomic.Int32
	release := make(chan struct{})
	run := testDoor{routes: one(appRoute, RouteConfig{}), decide: func(r *authz.Request) authz.Decision {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		now.Add(-1)
		return authz.Decision{Outcome: authz.Deny, Status: 403, Caller: &session.Caller{}}
	}}.start(t)
	h := dialH2(t, run)
	go io.Copy(io.Discard, h.Conn)
	for i := range 3000 {
		id := uint32(2*i + 1)
		if h.headers(id, true, ":method", "GET", ":scheme", "https", ":authority", "app.test", ":path", "/") != nil || h.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break // the server has had enough
		}
	}
	// Somebody else is served meanwhile.
	if a := run.get("https://app.test/ping"); a.StatusCode != 200 {
		t.Errorf("another client: %d", a.StatusCode)
	}
	eventually(t, "the flood is being worked on", func() bool { return now.Load() > 0 })
	close(release)
	eventually(t, "the flood is over", func() bool { return now.Load() == 0 })
	if n := most.Load(); n > 100 {
		t.Errorf("%d requests of one connection were worked on at once", n)
	}
}

// CVE-2026-71324: CONNECT is refused, its connection ends, and nothing that
// was sent behind it reaches an upstream or another user.
func TestCVE_2026_71324_ConnectPoisonsNothing(t *testing.T) {
	run := testDoor{routes: one(appRoute, RouteConfig{})}.start(t)
	for _, raw := range []string{
		"CONNECT app.test:443 HTTP/1.1\r\nHost: app.test:443\r\n\r\nGET /poison HTTP/1.1\r\nHost: app.test\r\n\r\n",
		"CONNECT app.test:80 HTTP/1.1\r\nHost: app.test:80\r\n\r\nGET /poison HTTP/1.1\r\nHost: app.test\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nGET /poison HTTP/1.1\r\nHost: app.test\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nGET /poison HTTP/1.1\r\nHost: app.test\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", run.addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, raw)
		br := bufio.NewReader(conn)
		resp, err := http.ReadResponse(br, &http.Request{Method: "GET"})
		if err != nil {
			t.Fatalf("%.20q: %v", raw, err)
		}
		io.Copy(io.Discard, resp.Body)
		if strings.HasPrefix(raw, "CONNECT") && resp.StatusCode < 400 {
			t.Errorf("%.20q: %d", raw, resp.StatusCode)
		}
		rest, err := io.ReadAll(br)
		conn.Close()
		if err != nil || len(rest) > 0 {
			t.Fatalf("%.20q: the connection goes on with %.60q, %v", raw, rest, err)
		}
	}
	run.echo.mu.Lock()
	defer run.echo.mu.Unlock()
	for _, target := range run.echo.raw {
		if target == "/poison" {
			t.Error("bytes behind CONNECT or an upgrade were taken for a request")
		}
	}
}

// Row "cookie tossing", upstream's part: an application cannot set our
// cookies, and never sees them.
func TestUpstreamCannotTossCookies(t *testing.T) {
	names := []string{"__Host-_pomerium", "__Host-_pomerium_authenticate", "__Host-_pomerium_nonce", "__Host-_pomerium_bounce"}
	app := newRecorder(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Set-Cookie"] = []string{"mine=1; Path=/"}
		for _, n := range names {
			for _, line := range []string{n + "=evil; Path=/; Secure", " " + n + "=evil", n + " =evil", "=" + n + "=evil", n} {
				w.Header()["Set-Cookie"] = append(w.Header()["Set-Cookie"], line)
			}
		}
		w.Header()["set-cookie"] = []string{names[0] + "=evil; Path=/x"}
	})
	run := testDoor{routes: []testRoute{{spec: appRoute, to: app.URL}}}.start(t)
	for _, client := range []*http.Client{run.client, run.h1} {
		a := run.do(client, "GET", "https://app.test/", "", "Cookie", "a=1; "+names[0]+"=secret; b=2", "Cookie", names[1]+"=secret; "+names[2]+"=secret;c=3")
		if got := strings.Join(a.Header.Values("Set-Cookie"), "|"); got != "mine=1; Path=/" {
			t.Errorf("the client was given %q", got)
		}
		if c := strings.Join(app.last().Header.Values("Cookie"), "; "); strings.Contains(c, "secret") || !strings.Contains(c, "a=1") || !strings.Contains(c, "b=2") || !strings.Contains(c, "c=3") {
			t.Errorf("the upstream got %q", c)
		}
	}
}

// Architecture, "no credential leaves": no carrier of ours goes up.
func TestOurCredentialsNeverGoUp(t *testing.T) {
	run := testDoor{routes: one(appRoute, RouteConfig{})}.start(t)
	const token = "eyJsecret"
	for _, lines := range [][]string{
		{"Authorization: Pomerium " + token}, {"authorization: pomerium " + token}, {"Authorization: Bearer Pomerium-" + token}, {"Authorization: bearer  pomerium-" + token},
		{"X-Pomerium-Authorization: " + token}, {"x-pomerium-authorization: " + token}, {"Cookie: __Host-_pomerium=" + token},
	} {
		run.target("app.test", "/x?a=1&pomerium_session="+token+"&b=%32&%70omerium_session="+token, lines...)
		up := run.echo.last()
		if got := run.echo.lastTarget(); got != "/x?a=1&b=%32" {
			t.Errorf("%v: target %q", lines, got)
		}
		for name, values := range up.Header {
			if strings.Contains(strings.Join(values, " "), token) {
				t.Errorf("%v went up in %s: %q", lines, name, values)
			}
		}
	}
}

// CVE-2023-40025: an open stream does not outlive what let it in.
func TestCVE_2023_40025_StreamEndsWithSession(t *testing.T) {
	up := newRecorder(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	run := testDoor{routes: []testRoute{{spec: appRoute, to: up.URL}}}.start(t)
	for _, client := range []*http.Client{run.client, run.h1} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", "https://app.test/events", nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		for run.streams.open() == 0 && ctx.Err() == nil {
			time.Sleep(2 * time.Millisecond)
		}
		run.streams.cutAll("the session has ended")
		_, err = io.ReadAll(resp.Body)
		if err == nil || ctx.Err() != nil {
			t.Fatalf("the stream goes on after its session: %v, %v", err, ctx.Err())
		}
	}
}
