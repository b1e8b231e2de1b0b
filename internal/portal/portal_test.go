package portal

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/internal/pages"
	"postern/internal/policy"
	"postern/internal/route"
	"postern/internal/session"
)

var now = time.Date(2026, 11, 22, 14, 6, 0, 0, time.UTC)

func newRoute(t *testing.T, s route.Spec, ppl string) *route.Route {
	t.Helper()
	if ppl != "" {
		p, _, err := policy.Parse("test", []byte(ppl), policy.Options{})
		if err != nil {
			t.Fatalf("%s: %v", ppl, err)
		}
		s.Policies = []route.Attached{{Policy: p}}
	}
	s.To = []string{"http://127.0.0.1:1"}
	rt, err := route.New(s)
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

func newPortal(t *testing.T, o Options) *Portal {
	t.Helper()
	r, err := pages.New(pages.Branding{})
	if err != nil {
		t.Fatal(err)
	}
	o.Pages, o.Now = r, func() time.Time { return now }
	return New(o)
}

// secrets are in every place where a caller carries a token.
var secrets = []string{"raw-id-token-1", "access-token-2", "refresh-token-3", "session-id-4", "eyJhbGciOiJI"}

func ada() *session.Caller {
	return &session.Caller{
		ID: "session-id-4",
		Session: &session.Session{
			ID: "session-id-4", UserID: "ada-sub", IssuedAt: now.Add(-2 * time.Hour), ExpiresAt: now.Add(12 * time.Hour), IDPID: "staff",
			IDToken:    &session.IDToken{Raw: "raw-id-token-1", Issuer: "https://idp.example"},
			OAuthToken: &session.OAuthToken{AccessToken: "access-token-2", RefreshToken: "refresh-token-3"},
			Claims: session.Claims{
				"email": {"ada@fernhill.example"}, "site": {"north"}, "level": {float64(3)},
				"access_token": {"access-token-2"}, "odd": {"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"},
			},
		},
		User:      &session.User{ID: "ada-sub", Name: "Ada Lindqvist", Email: "ada@fernhill.example", Claims: session.Claims{"locale": {"en"}}},
		Directory: &session.DirectoryUser{ID: "ada-sub", GroupIDs: []string{"g2", "g1", "g1"}},
		Groups:    []*session.DirectoryGroup{{ID: "g1", Name: "astronomy"}},
	}
}

func serve(h func(http.ResponseWriter, *http.Request, *session.Caller), method, target string, c *session.Caller, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	r.Host = "atlas.fernhill.example"
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	w.Header().Set("X-Request-Id", "req-1")
	h(w, r, c)
	return w
}

// CVE-2024-39315: no token on any page about the caller.
func TestNoTokenOnAnyPage(t *testing.T) {
	p := newPortal(t, Options{Enabled: true, Routes: []*route.Route{newRoute(t, route.Spec{From: "https://a.example"}, "allow: {or: [{accept: true}]}")},
		Claims: func(*http.Request, *session.Caller) map[string]any { return map[string]any{"sub": "ada-sub"} }})
	for path, h := range map[string]func(http.ResponseWriter, *http.Request, *session.Caller){PathAccount: p.Account, PathUser: p.User, PathRoutes: p.Routes, PathAPI: p.RoutesAPI} {
		w := serve(h, "GET", path, ada())
		if w.Code != 200 {
			t.Errorf("%s: %d", path, w.Code)
		}
		for _, s := range secrets {
			if strings.Contains(w.Body.String(), s) {
				t.Errorf("%s holds %q", path, s)
			}
		}
	}
}

func TestAccount(t *testing.T) {
	p := newPortal(t, Options{Enabled: true,
		ProviderName: func(id string) string { return "Fernhill " + id },
		GroupsFrom: func(context.Context, *session.Caller) (string, time.Time) {
			return "the staff directory", now.Add(-4 * time.Minute)
		},
		VerifyLink: func(r *http.Request) error {
			if r.URL.Query().Get("pomerium_signature") == "good" {
				return nil
			}
			return errors.New("bad")
		},
		SignInURL: func(*http.Request) string { return "https://auth.example/sign-in-here" }})
	body := serve(p.Account, "GET", PathAccount, ada()).Body.String()
	for _, want := range []string{
		"<h1>Ada Lindqvist</h1>", "ada@fernhill.example, signed in through Fernhill staff", "This one", "22 Nov 2026, 12:06 UTC", "(2 hours ago)",
		">astronomy<", ">g2<", "From the staff directory, synced", "4 minutes ago", "<dt>site</dt><dd>north</dd>", "<dt>level</dt><dd>3</dd>", "<dt>locale</dt>", "<dt>sub</dt><dd>ada-sub</dd>",
		`href="/.pomerium/sign_out"`, "req-1",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the account page lacks %q", want)
		}
	}
	if strings.Count(body, ">astronomy<") != 1 {
		t.Error("a group stands there twice")
	}
	for _, c := range []*session.Caller{nil, {}} {
		w := serve(p.Account, "GET", "/.pomerium", c)
		if w.Code != 200 || !strings.Contains(w.Body.String(), "You are not signed in") || !strings.Contains(w.Body.String(), "sign-in-here") {
			t.Errorf("anonymous: %d", w.Code)
		}
	}
	sa := &session.Caller{ID: "x", ServiceAccount: &session.ServiceAccount{ID: "x", UserID: "robot", Description: "Nightly export", IssuedAt: now}}
	if body := serve(p.Account, "GET", PathAccount, sa).Body.String(); !strings.Contains(body, "a service account") && !strings.Contains(body, "A service account") || !strings.Contains(body, "Nightly export") {
		t.Error("a service account is not shown as one")
	}
	boss := ada()
	boss.ImpersonatedBy = &session.Session{ID: "session-id-4", UserID: "bo", Claims: session.Claims{"email": {"bo@fernhill.example"}}}
	if body := serve(p.Account, "GET", PathAccount, boss).Body.String(); !strings.Contains(body, "bo@fernhill.example") {
		t.Error("the impersonating person is hidden")
	}
	for target, want := range map[string]int{
		PathAccount + "?pomerium_signature=good": 200, PathAccount + "?pomerium_signature=bad": 400, PathAccount + "?pomerium_redirect_uri=https://x": 400,
	} {
		if w := serve(p.Account, "GET", target, ada()); w.Code != want {
			t.Errorf("%s: %d, want %d", target, w.Code, want)
		}
	}
	bare := newPortal(t, Options{})
	if w := serve(bare.Account, "GET", PathAccount+"?pomerium_signature=good", ada()); w.Code != 400 {
		t.Errorf("a signed link that nobody can check: %d", w.Code)
	}
	if w := serve(p.Account, "POST", PathAccount, ada()); w.Code != 405 || w.Header().Get("Allow") == "" {
		t.Errorf("POST: %d", w.Code)
	}
}

func TestUser(t *testing.T) {
	claims := map[string]any{"iss": "i", "aud": "a", "exp": 1, "iat": 2, "jti": "j", "sub": "ada-sub", "email": "ada@x.example", "groups": []string{}}
	p := newPortal(t, Options{Claims: func(*http.Request, *session.Caller) map[string]any { return claims }})
	w := serve(p.User, "GET", PathUser, ada())
	if got := w.Body.String(); w.Code != 200 || w.Header().Get("Content-Type") != "application/json" || got != `{"email":"ada@x.example","groups":[],"sub":"ada-sub"}`+"\n" {
		t.Errorf("%d %s", w.Code, got)
	}
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Error("the claims may be stored")
	}
	if claims["iss"] == nil {
		t.Error("the caller's map was changed")
	}
	if w := serve(p.User, "HEAD", PathUser, ada()); w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("HEAD: %d with %d bytes", w.Code, w.Body.Len())
	}
	for name, w := range map[string]*httptest.ResponseRecorder{
		"anonymous":  serve(p.User, "GET", PathUser, nil),
		"no claims":  serve(newPortal(t, Options{}).User, "GET", PathUser, ada()),
		"no subject": serve(newPortal(t, Options{Claims: func(*http.Request, *session.Caller) map[string]any { return map[string]any{"sub": ""} }}).User, "GET", PathUser, ada()),
	} {
		if w.Code != 404 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
}

func TestSelection(t *testing.T) {
	cases := []struct {
		name, ppl string
		want      bool
	}{
		{"none", "", false},
		{"accept", "allow: {or: [{accept: true}]}", true},
		{"any user", "allow: {and: [{authenticated_user: true}]}", true},
		{"mail", "allow: {or: [{email: {is: ada@fernhill.example}}]}", true},
		{"other mail", "allow: {or: [{email: {is: bo@fernhill.example}}]}", false},
		{"domain", "allow: {or: [{domain: {is: fernhill.example}}]}", true},
		{"group", "allow: {or: [{groups: {has: g1}}]}", true},
		{"other group", "allow: {or: [{groups: {has: g9}}]}", false},
		{"user", "allow: {and: [{user: {is: ada-sub}}]}", true},
		{"second of or", "allow: {or: [{groups: {has: g9}}, {user: {is: ada-sub}}]}", true},
		{"and of two is skipped", "allow: {and: [{authenticated_user: true}, {user: {is: ada-sub}}]}", false},
		{"not is skipped", "allow: {not: [{groups: {has: g9}}]}", false},
		{"nor is skipped", "allow: {nor: [{groups: {has: g9}}]}", false},
		{"unknown criterion", "allow: {or: [{http_method: {is: GET}}]}", false},
		{"deny is not read", "allow: {or: [{accept: true}]}\ndeny: {or: [{reject: true}]}", true},
		{"deny alone", "deny: {or: [{accept: true}]}", false},
	}
	for _, c := range cases {
		p := newPortal(t, Options{Routes: []*route.Route{newRoute(t, route.Spec{From: "https://a.example"}, c.ppl)}})
		if got := len(p.selected(ada())) == 1; got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestRoutes(t *testing.T) {
	const all = "allow: {or: [{accept: true}]}"
	routes := []*route.Route{
		newRoute(t, route.Spec{ID: "r1", Name: "Star Atlas", From: "https://atlas.example", Description: "Charts", LogoURL: "https://cdn.example/a.png"}, all),
		newRoute(t, route.Spec{ID: "r2", From: "https://dome.example:8443", Prefix: "/app"}, all),
		newRoute(t, route.Spec{ID: "r3", Name: "Payroll", From: "https://pay.example"}, "allow: {or: [{groups: {has: finance}}]}"),
		newRoute(t, route.Spec{ID: "r4", Name: "DB", From: "tcp+https://db.example:5432"}, all),
		newRoute(t, route.Spec{ID: "r5", Name: "DNS", From: "udp+https://dns.example:53"}, all),
		newRoute(t, route.Spec{ID: "r6", Name: "Any", From: "https://*.wild.example"}, all),
		newRoute(t, route.Spec{ID: "r7", Name: "Bastion", From: "tcp+https://bastion.example:443/10.0.0.1:22"}, all),
		newRoute(t, route.Spec{ID: "r8", Name: "Tools", From: "https://mcp.example", Access: route.Access{MCPServer: true}}, all),
	}
	p := newPortal(t, Options{Enabled: true, Routes: routes})

	w := serve(p.RoutesAPI, "GET", PathAPI, ada())
	var got struct{ Routes []map[string]any }
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
		t.Fatalf("%d %v", w.Code, err)
	}
	var lines []string
	for _, r := range got.Routes {
		line := r["id"].(string) + " " + r["name"].(string) + " " + r["type"].(string) + " " + r["from"].(string)
		if cmd, ok := r["connect_command"]; ok {
			line += " " + cmd.(string)
		}
		for _, k := range []string{"description", "logo_url"} {
			if _, ok := r[k]; !ok {
				t.Errorf("%s lacks %s", r["id"], k)
			}
		}
		lines = append(lines, line)
	}
	want := []string{
		"r1 Star Atlas http https://atlas.example",
		"r2 dome.example:8443 http https://dome.example:8443",
		"r4 DB tcp tcp+https://db.example:5432 pomerium-cli tcp db.example:5432",
		"r5 DNS udp udp+https://dns.example:53 pomerium-cli udp dns.example:53",
		"r6 Any http https://*.wild.example",
		"r7 Bastion tcp tcp+https://bastion.example:443/10.0.0.1:22 pomerium-cli tcp tcp+https://bastion.example:443/10.0.0.1:22",
		"r8 Tools mcp https://mcp.example",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}

	body := serve(p.Routes, "GET", PathRoutes, ada()).Body.String()
	for _, s := range []string{`href="https://atlas.example/"`, `href="https://dome.example:8443/app"`, "postern tcp db.example:5432", "postern udp dns.example:53", "Five you may open."} {
		if !strings.Contains(body, s) {
			t.Errorf("the portal lacks %q", s)
		}
	}
	for _, s := range []string{"Payroll", "wild.example", "mcp.example"} {
		if strings.Contains(body, s) {
			t.Errorf("the portal shows %q", s)
		}
	}
	w = serve(p.Routes, "GET", PathRoutes, ada())
	if csp := w.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "img-src 'self' https://cdn.example;") {
		t.Errorf("logo host missing in %q", csp)
	}
	if body := serve(p.Routes, "GET", PathRoutes+"?q=ATLAS", ada()).Body.String(); !strings.Contains(body, "1 of 5 match") || strings.Contains(body, "db.example") {
		t.Error("the search does not narrow")
	}

	if w := serve(p.RoutesAPI, "POST", PathAPI, ada()); w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}
	if w := serve(p.RoutesAPI, "GET", PathAPI, nil); w.Code != 401 {
		t.Errorf("anonymous: %d", w.Code)
	}
	if w := serve(p.Routes, "GET", PathRoutes, &session.Caller{}); w.Code != 401 {
		t.Errorf("anonymous portal: %d", w.Code)
	}
	empty := newPortal(t, Options{Enabled: true})
	if w := serve(empty.RoutesAPI, "GET", PathAPI, ada()); w.Body.String() != `{"routes":[]}`+"\n" {
		t.Errorf("no routes: %s", w.Body)
	}
	off := newPortal(t, Options{Routes: routes})
	if w := serve(off.RoutesAPI, "GET", PathAPI, ada()); w.Code != 404 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		t.Errorf("switched off: %d %s", w.Code, w.Header().Get("Content-Type"))
	}
	if w := serve(off.Routes, "GET", PathRoutes, ada()); w.Code != 404 {
		t.Errorf("switched off: %d", w.Code)
	}
	if w := serve(off.Account, "GET", PathAccount, ada()); strings.Contains(w.Body.String(), PathRoutes) {
		t.Error("a link to a portal that is off")
	}
}

func TestUnknown(t *testing.T) {
	p := newPortal(t, Options{})
	if w := serve(p.Unknown, "GET", "/.pomerium/api/v2/x", nil); w.Code != 404 || w.Body.String() != "not found\n" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if w := serve(p.Unknown, "GET", "/.pomerium/x", nil); w.Code != 404 || !strings.Contains(w.Body.String(), "There is no page here") {
		t.Errorf("%d", w.Code)
	}
	w := serve(p.Unknown, "GET", "/.pomerium/x", nil, "Accept", "application/json")
	if w.Code != 404 || w.Body.String() != `{"Status":404,"RequestID":"req-1","description":"Not Found"}`+"\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
