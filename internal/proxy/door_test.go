package proxy

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/pages"
	"postern/internal/policy"
	"postern/internal/route"
	"postern/internal/session"
)

func decideTo(d authz.Decision) func(*authz.Request) authz.Decision {
	return func(*authz.Request) authz.Decision { return d }
}

func TestForwardsAnAllowedRequest(t *testing.T) {
	run := testDoor{routes: one(appRoute, RouteConfig{})}.start(t)
	for _, client := range []*http.Client{run.client, run.h1} {
		a := run.do(client, "POST", "https://app.test/a/b?x=1;y=%zz&z", "hello", "X-Any", "1", "Cookie", "a=1; __Host-_pomerium=secret")
		if a.StatusCode != 200 || a.body != "/a/b?x=1;y=%zz&z" {
			t.Fatalf("%d %q", a.StatusCode, a.body)
		}
		up := run.echo.last()
		if up.Host != strings.TrimPrefix(run.echo.URL, "http://") || up.Header.Get("X-Forwarded-Host") != "app.test" ||
			up.Header.Get("X-Pomerium-Original-Host") != "app.test" {
			t.Errorf("host %q, forwarded %q", up.Host, up.Header)
		}
		if up.Header.Get("X-Forwarded-For") != "127.0.0.1" || up.Header.Get("X-Forwarded-Proto") != "https" || up.Header.Get("X-Envoy-Internal") != "true" {
			t.Errorf("forwarding headers %v", up.Header)
		}
		if up.Header.Get("Cookie") != "a=1" || up.Header.Get("X-Any") != "1" {
			t.Errorf("headers %v", up.Header)
		}
		if id := a.Header.Get("X-Request-Id"); len(id) != 36 || up.Header.Get("X-Request-Id") != id {
			t.Errorf("request id %q, upstream %q", id, up.Header.Get("X-Request-Id"))
		}
		if a.Header.Get("X-Frame-Options") != "SAMEORIGIN" || a.Header.Get("Strict-Transport-Security") == "" {
			t.Errorf("response headers %v", a.Header)
		}
	}
	e := run.entry(1)
	if e.Method != "POST" || e.Authority != "app.test" || e.Path != "/a/b" || e.Query != "x=1;y=%zz&z" || e.ResponseCode != 200 ||
		e.ResponseCodeDetails != "via_upstream" || e.Size != int64(len("/a/b?x=1;y=%zz&z")) || !strings.HasPrefix(e.UpstreamCluster, "route-") ||
		e.IP.String() != "127.0.0.1" || e.Duration <= 0 {
		t.Errorf("access log %+v", e)
	}
}

func TestOwnPathsNeverReachAnUpstream(t *testing.T) {
	var got []*http.Request
	run := testDoor{
		routes:  one(route.Spec{From: "https://app.test"}, RouteConfig{}),
		options: &route.Options{MatchAnyIncomingPort: true, SignInHosts: []route.SignInHost{{Authority: "auth.test"}}},
		endpoints: NewEndpoints(
			Endpoint{Path: "/.pomerium/user", NeedsLogin: true, Handler: func(w http.ResponseWriter, r *http.Request, c *session.Caller) { io.WriteString(w, "user") }},
			Endpoint{Path: "/.pomerium/", Handler: func(w http.ResponseWriter, r *http.Request, c *session.Caller) {
				got = append(got, r)
				io.WriteString(w, "dashboard")
			}},
			Endpoint{Path: "/.pomerium/assets/", Prefix: true, Handler: func(w http.ResponseWriter, r *http.Request, c *session.Caller) { io.WriteString(w, "asset") }},
			Endpoint{Path: "/.pomerium/sign_in", SignInHostOnly: true, Handler: func(w http.ResponseWriter, r *http.Request, c *session.Caller) { io.WriteString(w, "sign in") }},
			Endpoint{Path: "/", SignInHostOnly: true, Handler: func(w http.ResponseWriter, r *http.Request, c *session.Caller) {
				http.Redirect(w, r, "/.pomerium/", 302)
			}},
		),
	}.start(t)
	for target, want := range map[string]struct {
		status int
		body   string
	}{
		"https://app.test/ping":                    {200, "OK\n"},
		"https://app.test/healthz":                 {200, "OK\n"},
		"https://unknown.test/ping":                {200, "OK\n"},
		"https://app.test/.pomerium/":              {200, "dashboard"},
		"https://app.test/%2epomerium/x/..//":      {200, "dashboard"},
		"https://app.test/.pomerium/assets/a/b.js": {200, "asset"},
		"https://app.test/.pomerium/user":          {401, ""},
		"https://app.test/.pomerium/nothing":       {404, ""},
		"https://app.test/.pomerium/api/v9":        {404, "not found\n"},
		"https://app.test/.pomerium/sign_in":       {404, ""},
		"https://auth.test/.pomerium/sign_in":      {200, "sign in"},
		"https://auth.test/":                       {302, ""},
		"https://auth.test/robots.txt":             {200, "User-agent: *\nDisallow: /\n"},
		"https://auth.test/other":                  {404, ""},
		"https://app.test/.well-known/pomerium/x":  {404, ""},
	} {
		a := run.get(target)
		if a.StatusCode != want.status || (want.body != "" && a.body != want.body) {
			t.Errorf("%s: %d %q", target, a.StatusCode, a.body)
		}
		if a.Header.Get("X-Request-Id") == "" || a.Header.Get("X-Frame-Options") != "SAMEORIGIN" {
			t.Errorf("%s: headers %v", target, a.Header)
		}
	}
	if run.echo.count() != 0 {
		t.Errorf("upstream got %v", run.echo.raw)
	}
	if a := run.do(run.client, "POST", "https://app.test/ping", "x"); a.StatusCode != 405 {
		t.Errorf("POST /ping: %d", a.StatusCode)
	}
	if len(got) == 0 || got[0].Host != "app.test" || got[0].URL.Scheme != "https" || got[0].URL.Path != "/.pomerium/" {
		t.Errorf("own page got %+v", got)
	}
}

func TestNoRoute(t *testing.T) {
	run := testDoor{routes: one(route.Spec{From: "https://app.test", Prefix: "/api"}, RouteConfig{})}.start(t)
	a := run.get("https://app.test/other", "Accept", "application/json")
	var body struct {
		RequestID  string `json:"requestId"`
		Status     int    `json:"status"`
		StatusText string `json:"statusText"`
	}
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || a.StatusCode != 404 || body.Status != 404 || body.StatusText != "Not Found" || body.RequestID == "" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	if a := run.get("https://other.test/"); a.StatusCode != 404 || !strings.Contains(a.Header.Get("Content-Type"), "text/html") {
		t.Errorf("%d %v", a.StatusCode, a.Header)
	}
	if e := run.entry(1); e.ResponseCodeDetails != "route_not_found" || e.UpstreamCluster != "" {
		t.Errorf("access log %+v", e)
	}
	if a := run.raw("CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n"); a.StatusCode != 404 {
		t.Errorf("CONNECT: %d", a.StatusCode)
	}
	if run.echo.count() != 0 {
		t.Error("upstream was asked")
	}
}

func TestRefusals(t *testing.T) {
	signIn := func(*Generation) {}
	withSignIn := func(g *Generation) {
		g.SignInURL = func(v exchange.View, rt *route.Route) (string, []*http.Cookie, error) {
			return "https://auth.test/.pomerium/sign_in?to=" + url.QueryEscape("https://"+v.Authority()+pathAndQuery(v)),
				[]*http.Cookie{{Name: "__Host-nonce", Value: "n", Path: "/", Secure: true}}, nil
		}
		g.StepUpURL = func(v exchange.View, rt *route.Route, device string) (string, error) {
			return "https://app.test/.pomerium/webauthn?type=" + device, nil
		}
	}
	brokenSignIn := func(g *Generation) {
		g.SignInURL = func(exchange.View, *route.Route) (string, []*http.Cookie, error) {
			return "", nil, errors.New("no key")
		}
	}
	reasons := policy.ReasonsOf(policy.ReasonUserUnauthenticated)
	for _, c := range []struct {
		name     string
		d        authz.Decision
		change   func(*Generation)
		path     string
		headers  []string
		status   int
		location string
		body     string
		details  string
	}{
		{"zero decision", authz.Decision{}, signIn, "/", nil, 403, "", "<html", "ext_authz_denied"},
		{"sign in", authz.Decision{Outcome: authz.SignIn, Status: 302, Redirect: true, Why: reasons}, withSignIn, "/x?y", nil, 302,
			"https://auth.test/.pomerium/sign_in?to=https%3A%2F%2Fapp.test%2Fx%3Fy", "", "ext_authz_denied"},
		{"sign in without sign-in host", authz.Decision{Outcome: authz.SignIn, Status: 302, Redirect: true}, signIn, "/", nil, 401, "", "<html", "ext_authz_denied"},
		{"sign in that fails", authz.Decision{Outcome: authz.SignIn, Status: 302, Redirect: true}, brokenSignIn, "/", nil, 401, "", "<html", "ext_authz_denied"},
		{"sign in for a program", authz.Decision{Outcome: authz.SignIn, Status: 401}, withSignIn, "/", []string{"Accept", "application/json"}, 401, "", `{"error":"Unauthenticated","request_id":"`, "ext_authz_denied"},
		{"step up", authz.Decision{Outcome: authz.StepUp, Status: 302, Redirect: true, DeviceType: "any"}, withSignIn, "/", nil, 302, "https://app.test/.pomerium/webauthn?type=any", "", "ext_authz_denied"},
		{"denied", authz.Decision{Outcome: authz.Deny, Status: 403}, signIn, "/", []string{"Accept", "application/json"}, 403, "", `{"error":"Forbidden"`, "ext_authz_denied"},
		{"denied kubernetes", authz.Decision{Outcome: authz.Deny, Status: 403}, signIn, "/", []string{"User-Agent", "kubectl/v1 kubernetes/abc"}, 403, "", `"reason":"Forbidden","code":403}`, "ext_authz_denied"},
		{"device", authz.Decision{Outcome: authz.Deny, Status: 450}, signIn, "/", nil, 450, "", "<html", "ext_authz_denied"},
		{"client certificate", authz.Decision{Outcome: authz.Deny, Status: 495}, signIn, "/", nil, 495, "", "<html", "ext_authz_denied"},
		{"no route", authz.Decision{Outcome: authz.Deny, Status: 404}, signIn, "/", nil, 404, "", "<html", "ext_authz_denied"},
		{"deny with an impossible status", authz.Decision{Outcome: authz.Deny, Status: 200}, signIn, "/", nil, 403, "", "<html", "ext_authz_denied"},
		{"robots", authz.Decision{Outcome: authz.SignIn, Status: 302, Redirect: true}, withSignIn, "/robots.txt", nil, 200, "", "User-agent: *\nDisallow: /\n", "ext_authz_denied"},
		{"error", authz.Decision{Outcome: authz.Error, Status: 503, Err: errors.New("secret detail")}, signIn, "/", nil, 503, "", "<html", "ext_authz_error"},
		{"error without status", authz.Decision{Outcome: authz.Error}, signIn, "/", nil, 500, "", "<html", "ext_authz_error"},
		{"grpc", authz.Decision{Outcome: authz.Deny, Status: 403}, signIn, "/", []string{"Content-Type", "application/grpc"}, 403, "", "", "ext_authz_denied"},
		{"unknown outcome", authz.Decision{Outcome: 99, Status: 200}, signIn, "/", nil, 403, "", "<html", "ext_authz_denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			run := testDoor{routes: one(appRoute, RouteConfig{}), decide: decideTo(c.d), change: c.change}.start(t)
			a := run.get("https://app.test"+c.path, c.headers...)
			if a.StatusCode != c.status || a.Header.Get("Location") != c.location || !strings.Contains(a.body, c.body) {
				t.Errorf("%d %q %s", a.StatusCode, a.Header.Get("Location"), a.body)
			}
			if c.name == "sign in" && (!strings.HasPrefix(a.Header.Get("Set-Cookie"), "__Host-nonce=n") || a.Header.Get("Cache-Control") != "no-store") {
				t.Errorf("redirect %v", a.Header)
			}
			if strings.Contains(a.body, "secret detail") {
				t.Error("the page shows an internal detail")
			}
			if c.name == "grpc" && (a.Header.Get("Grpc-Status") != "7" || a.Header.Get("Content-Type") != "application/grpc+json") {
				t.Errorf("gRPC refusal %v", a.Header)
			}
			if e := run.entry(1); e.ResponseCodeDetails != c.details || e.ResponseCode != c.status {
				t.Errorf("access log %d %q", e.ResponseCode, e.ResponseCodeDetails)
			}
			if run.echo.count() != 0 {
				t.Error("a refused request reached the upstream")
			}
		})
	}
}

func TestErrorDetailsOnlyWhereAsked(t *testing.T) {
	d := authz.Decision{Outcome: authz.Deny, Status: 403, Details: []policy.Detail{{ID: "p1", Explanation: "Only for staff", Remediation: "Ask Ann"}}}
	for _, show := range []bool{false, true} {
		run := testDoor{routes: one(route.Spec{From: "https://app.test", Access: route.Access{ShowErrorDetails: show}}, RouteConfig{}), decide: decideTo(d)}.start(t)
		if a := run.get("https://app.test/"); strings.Contains(a.body, "Only for staff") != show {
			t.Errorf("show %v: %s", show, a.body)
		}
	}
}

func TestRedirectAndFixedResponseRoutesAreAuthorized(t *testing.T) {
	routes := []testRoute{
		{spec: route.Spec{From: "https://redirect.test", Redirect: "r"}, keys: RouteConfig{Redirect: &Redirect{HostRedirect: ptr("new.test"), ResponseCode: ptr(308)}}},
		{spec: route.Spec{From: "https://fixed.test", Response: "r"}, keys: RouteConfig{Response: &Response{Status: 418, Body: "tea"},
			Resolved: Resolved{ResponseHeaders: map[string]string{"Content-Type": "text/x-tea"}}}},
	}
	run := testDoor{routes: routes}.start(t)
	if a := run.get("https://redirect.test/a?b"); a.StatusCode != 308 || a.Header.Get("Location") != "https://new.test/a?b" {
		t.Errorf("%d %v", a.StatusCode, a.Header)
	}
	if a := run.get("https://fixed.test/"); a.StatusCode != 418 || a.body != "tea" || a.Header.Get("Content-Type") != "text/x-tea" {
		t.Errorf("%d %q %v", a.StatusCode, a.body, a.Header)
	}
	refusing := testDoor{routes: routes, decide: decideTo(authz.Decision{})}.start(t)
	for _, host := range []string{"redirect", "fixed"} {
		if a := refusing.get("https://" + host + ".test/"); a.StatusCode != 403 {
			t.Errorf("%s: %d", host, a.StatusCode)
		}
	}
	if run.echo.count() != 0 {
		t.Error("upstream was asked")
	}
}

// TestCVE_2021_32637: a request that cannot be understood, or a program error
// on the way, must never be an allow.
func TestCVE_2021_32637(t *testing.T) {
	run := testDoor{routes: one(appRoute, RouteConfig{})}.start(t)
	for _, target := range []string{"/%zz", "/%", "/a%2fb", "/a%5Cb", "/a\\b", "/a#b", "/?a#b", "/%00", "*", "app.test/", "//%2e%2e/%2f"} {
		if a := run.target("app.test", target); a.StatusCode != 400 {
			t.Errorf("%q: %d", target, a.StatusCode)
		}
	}
	for _, host := range []string{"user@app.test", "app.test:99999", "app..test", "app.test:x", "[::1", "app.test,evil.test", "app.test/x"} {
		if a := run.target(host, "/"); a.StatusCode != 400 {
			t.Errorf("host %q: %d", host, a.StatusCode)
		}
	}
	panics := testDoor{routes: one(appRoute, RouteConfig{}), decide: func(*authz.Request) authz.Decision { panic("bug") }}.start(t)
	a := panics.get("https://app.test/")
	if a.StatusCode != 500 || strings.Contains(a.body, "bug") || a.Header.Get("X-Request-Id") == "" {
		t.Errorf("panic: %d %q", a.StatusCode, a.body)
	}
	if run.echo.count()+panics.echo.count() != 0 {
		t.Error("upstream was asked")
	}
	if e := panics.entry(1); e.ResponseCode != 500 || e.ResponseCodeDetails != "internal_error" {
		t.Errorf("access log %+v", e)
	}
}

func TestNoGenerationYet(t *testing.T) {
	h := New(func() *Generation { return nil })
	w := &bareWriter{header: http.Header{}}
	h.ServeHTTP(w, &http.Request{Method: "GET", RequestURI: "/", Host: "app.test"})
	if w.status != 503 {
		t.Errorf("status %d", w.status)
	}
}

type bareWriter struct {
	header http.Header
	status int
}

func (w *bareWriter) Header() http.Header         { return w.header }
func (w *bareWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w *bareWriter) WriteHeader(status int)      { w.status = status }

func TestUnderscoreHeaders(t *testing.T) {
	for action, want := range map[string]struct {
		status int
		passed bool
	}{"reject_request": {400, false}, "": {400, false}, "drop_header": {200, false}, "allow": {200, true}} {
		cfg := defaultConfig()
		cfg.HeadersWithUnderscoresAction = action
		run := testDoor{routes: one(appRoute, RouteConfig{}), config: &cfg}.start(t)
		for _, client := range []*http.Client{run.client, run.h1} {
			before := run.echo.count()
			a := run.do(client, "GET", "https://app.test/", "", "X_Custom", "1", "X-Other", "2")
			if a.StatusCode != want.status {
				t.Errorf("%s: %d", action, a.StatusCode)
			}
			if a.StatusCode != 200 {
				if run.echo.count() != before {
					t.Errorf("%s: reached the upstream", action)
				}
				continue
			}
			up := run.echo.last()
			_, plain := up.Header["X_custom"]
			_, lower := up.Header["x_custom"]
			_, kept := up.Header["X_Custom"]
			if (plain || lower || kept) != want.passed || up.Header.Get("X-Other") != "2" {
				t.Errorf("%s: upstream got %v", action, up.Header)
			}
		}
	}
}

func TestEscapedSlashActions(t *testing.T) {
	for _, c := range []struct {
		action   string
		ruled    bool // the host has path rules
		target   string
		status   int
		upstream string
		location string
	}{
		{"", false, "/a%2Fb", 400, "", ""},
		{"keep_unchanged", false, "/a%2fb%5C", 200, "/a%2Fb%5C", ""},
		{"keep_unchanged", true, "/a%2fb", 400, "", ""},
		{"unescape_and_forward", false, "/a%2Fb", 200, "/a/b", ""},
		{"unescape_and_forward", true, "/a%2F..%2Fb", 200, "/b", ""},
		{"unescape_and_redirect", false, "/a%2Fb?q", 307, "", "https://app.test/a/b?q"},
		{"unescape_and_redirect", false, "/%2F%2Fevil.test", 307, "", "https://app.test/evil.test"},
		{"unescape_and_redirect", false, "/a/b", 200, "/a/b", ""},
	} {
		cfg := defaultConfig()
		cfg.PathWithEscapedSlashesAction = c.action
		routes := one(appRoute, RouteConfig{})
		if c.ruled {
			routes = append(routes, testRoute{spec: route.Spec{From: "https://app.test", Path: "/ruled"}})
		}
		run := testDoor{routes: routes, config: &cfg}.start(t)
		a := run.target("app.test", c.target)
		if a.StatusCode != c.status || run.echo.lastTarget() != c.upstream || a.Header.Get("Location") != c.location {
			t.Errorf("%+v: %d, upstream %q, location %q", c, a.StatusCode, run.echo.lastTarget(), a.Header.Get("Location"))
		}
	}
}

func TestHostRulesOnTheWire(t *testing.T) {
	run := testDoor{routes: []testRoute{
		{spec: route.Spec{From: "https://preserve.test"}, keys: RouteConfig{PreserveHostHeader: true}},
		{spec: route.Spec{From: "https://literal.test"}, keys: RouteConfig{HostRewrite: "Other.internal:81"}},
		{spec: route.Spec{From: "https://hidden.test"}, keys: RouteConfig{RemoveRequestHeaders: []string{"X-Forwarded-Host", "X-Pomerium-Original-Host"}}},
	}}.start(t)
	for _, c := range []struct{ from, host, forwarded, original string }{
		{"preserve.test:8443", "preserve.test:8443", "", ""},
		{"literal.test", "Other.internal:81", "literal.test", "literal.test"},
		{"hidden.test", strings.TrimPrefix(run.echo.URL, "http://"), "", ""},
	} {
		run.get("https://"+c.from+"/", "X-Forwarded-Host", "evil.test", "X-Pomerium-Original-Host", "evil.test")
		up := run.echo.last()
		if up.Host != c.host || up.Header.Get("X-Forwarded-Host") != c.forwarded || up.Header.Get("X-Pomerium-Original-Host") != c.original {
			t.Errorf("%s: host %q, X-Forwarded-Host %q", c.from, up.Host, up.Header["X-Forwarded-Host"])
		}
	}
}

type testHook struct{ body string }

func (h *testHook) BeforeDecide(_ context.Context, req *authz.Request, body exchange.BodySource) (exchange.BodySource, error) {
	b, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	if h.body = string(b); h.body == "bad" {
		return nil, errors.New("body is not a call")
	}
	req.MCP = &policy.MCPCall{Method: h.body}
	return replay{strings.NewReader(h.body)}, nil
}

func (h *testHook) OnResponse(_ context.Context, _ *authz.Request, status int, f []exchange.Field) (int, []exchange.Field) {
	return status + 1, append(f, exchange.Field{Name: "X-Hook", Value: "1"})
}

type replay struct{ io.Reader }

func (replay) Trailers() exchange.HeaderSeq { return exchange.Fields(nil) }

func TestRouteHook(t *testing.T) {
	hook := &testHook{}
	run := testDoor{
		routes: []testRoute{{spec: appRoute, hook: hook}},
		decide: func(r *authz.Request) authz.Decision {
			if r.MCP == nil || r.MCP.Method != "call" {
				return authz.Decision{}
			}
			return allowAll(r)
		},
	}.start(t)
	a := run.do(run.client, "POST", "https://app.test/", "call")
	if a.StatusCode != 201 || a.Header.Get("X-Hook") != "1" || run.echo.body[0] != "call" {
		t.Errorf("%d %v, upstream got %q", a.StatusCode, a.Header, run.echo.body)
	}
	if a := run.do(run.client, "POST", "https://app.test/", "other"); a.StatusCode != 403 {
		t.Errorf("refused call: %d", a.StatusCode)
	}
	if a := run.do(run.client, "POST", "https://app.test/", "bad"); a.StatusCode != 400 {
		t.Errorf("bad body: %d", a.StatusCode)
	}
}

func TestClientCertificateIsJudgedForEachRequest(t *testing.T) {
	var asked []string
	run := testDoor{routes: one(appRoute, RouteConfig{}), change: func(g *Generation) {
		g.ClientCertificate = func(chain []*x509.Certificate, rt *route.Route) exchange.CertificateState {
			asked = append(asked, rt.From.Host)
			return exchange.CertificateInvalid
		}
	}}.start(t)
	for range 2 {
		run.get("https://app.test/")
	}
	if len(asked) != 2 || run.decisions[1].View.Peer().CertificateState != exchange.CertificateInvalid {
		t.Errorf("asked %v", asked)
	}
}

func TestDecorate(t *testing.T) {
	run := testDoor{routes: one(appRoute, RouteConfig{}), decide: decideTo(authz.Decision{Outcome: authz.Deny, Status: 403}), change: func(g *Generation) {
		g.Decorate = func(p *pages.ErrorPage, v exchange.View, rt *route.Route, d *authz.Decision) {
			if rt == nil || d == nil {
				t.Error("a refusal without route or decision")
			}
			p.Application = "Decorated " + v.Authority()
		}
	}}.start(t)
	if a := run.get("https://app.test/"); !strings.Contains(a.body, "Decorated app.test") {
		t.Error(a.body)
	}
}

func TestHTTPSRedirectListener(t *testing.T) {
	addr, _ := testDoor{}.start(t).listen(RedirectHandler(), nil, defaultConfig())
	run := &running{t: t, addr: addr}
	for _, c := range []struct {
		host, target string
		status       int
		location     string
	}{
		{"App.test:8080", "/a/%2e?q=1", 301, "https://app.test/a/%2e?q=1"},
		{"[::1]:80", "/", 301, "https://[::1]/"},
		{"app.test", "//evil.test", 301, "https://app.test//evil.test"},
		{"other.test", "http://other.test/x", 301, "https://other.test/x"},
		{"app.test", "/a#b", 400, ""},
	} {
		a := run.target(c.host, c.target)
		if a.StatusCode != c.status || a.Header.Get("Location") != c.location || !a.Close {
			t.Errorf("%+v: %d %q close %v", c, a.StatusCode, a.Header.Get("Location"), a.Close)
		}
	}
}
