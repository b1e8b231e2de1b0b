package security

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern/internal/server"
	"postern/internal/session"
)

// CVE-2022-24797: without credentials no listener shows more than it must, and
// none of the paths at which programs are inspected answers.
func TestCVE_2022_24797_CrawlWithoutCredentials(t *testing.T) {
	inspect := []string{"/metrics", "/metrics/envoy", "/debug", "/debug/", "/debug/pprof", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=1", "/debug/vars", "/debug/requests",
		"/debug/events", "/debug/statsviz", "/config", "/config_dump", "/stats", "/stats/prometheus", "/clusters", "/admin", "/server_info", "/logging", "/quitquitquit", "/status", "/startupz", "/readyz", "/healthz", "/ping",
		"/v1/status", "/v1/sessions", "/v1/users", "/api/v1/status", "/.git/config", "/.env", "/robots.txt", "/favicon.ico", "/",
		"/databroker.DataBrokerService/Query", "/databroker.DataBrokerService/Get", "/config.ConfigService/ListRoutes", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/envoy.service.auth.v3.Authorization/Check"}
	own := []string{"/.pomerium", "/.pomerium/", "/.pomerium/user", "/.pomerium/jwt", "/.pomerium/routes", "/.pomerium/api/v1/routes", "/.pomerium/api/v1/login", "/.pomerium/admin", "/.pomerium/admin/",
		"/.pomerium/debug/pprof/", "/.pomerium/metrics", "/.pomerium/sessions", "/.pomerium/users", "/.pomerium/config", "/.pomerium/sign_in", "/.pomerium/sign_out", "/.pomerium/signed_out", "/.pomerium/callback/",
		"/.pomerium/local", "/.pomerium/verify-access-token", "/.pomerium/verify-identity-token", "/.pomerium/webauthn", "/.pomerium/device-enrolled", "/oauth2/callback", "/.well-known/pomerium", "/.well-known/pomerium/jwks.json", "/.well-known/pomerium/hpke-public-key",
		"/.well-known/acme-challenge/x", "/.well-known/oauth-authorization-server"}
	// What everybody may see, and that the body is what it says it is.
	open := map[string]string{"/ping": "OK", "/healthz": "OK", "/robots.txt": "User-agent", "/.well-known/pomerium": "jwks_uri", "/.well-known/pomerium/jwks.json": `"keys"`, "/.well-known/pomerium/hpke-public-key": ""}
	b := stranger(t)
	for _, host := range []string{"app", "other", "paths", "local", "auth", "nowhere"} {
		for _, path := range append(append([]string{}, inspect...), own...) {
			for _, method := range []string{"GET", "POST", "OPTIONS"} {
				before := w.app.count()
				p := b.do(method, at(host, path), "")
				if w.app.count() != before || strings.Contains(p.body, appSecret) {
					t.Errorf("%s %s: reached the application", method, at(host, path))
				}
				for _, tell := range []string{"goroutine ", "heap profile", "go_gc_", "go_goroutines", "postern_", "pomerium_build", "process_resident", "cmdline", "staff", "eve@example.com", "local/ada", w.dir, w.app.URL, "password_hash"} {
					if strings.Contains(p.body, tell) {
						t.Errorf("%s %s: %d tells %q", method, at(host, path), p.StatusCode, tell)
					}
				}
				if p.StatusCode != 200 {
					continue
				}
				want, ok := open[path]
				switch {
				case ok && strings.Contains(p.body, want):
				case path == "/.pomerium/" || path == "/.pomerium" || path == "/.pomerium/signed_out" || path == "/.pomerium/local":
					// Pages of ours without a person: they show nobody (checked above).
				case path == "/favicon.ico":
				default:
					t.Errorf("%s %s: 200 %.80q", method, at(host, path), p.body)
				}
			}
		}
	}
	// The health listener knows its four paths and nothing else.
	client := &http.Client{Timeout: 10 * time.Second}
	for _, path := range append(append([]string{}, inspect...), own...) {
		res, err := client.Get("http://127.0.0.1:" + w.health + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		for _, tell := range []string{"goroutine", "go_gc_", "ada", w.dir, w.app.URL, "secret"} {
			if strings.Contains(string(body), tell) {
				t.Errorf("health %s tells %q", path, tell)
			}
		}
		switch path {
		case "/status", "/startupz", "/readyz", "/healthz":
		default:
			if res.StatusCode == 200 {
				t.Errorf("health %s: 200 %.80q", path, body)
			}
		}
	}
	// A page on the web cannot ask it through the name of its own.
	req, _ := http.NewRequest("GET", "http://127.0.0.1:"+w.health+"/status", nil)
	req.Host = "rebound.evil.test"
	if res, err := client.Do(req); err != nil || res.StatusCode == 200 {
		t.Errorf("health listener by a foreign name: %v %v", res, err)
	}
	// The control socket is for this user only.
	if info, err := os.Stat(filepath.Join(w.dir, "control.sock")); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("control socket: %v %v", info, err)
	}
}

// forge signs claims with HS256 under any key.
func forge(key []byte, claims map[string]any) string {
	payload, _ := json.Marshal(claims)
	enc := base64.RawURLEncoding
	signed := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString(payload)
	m := hmac.New(sha256.New, key)
	m.Write([]byte(signed))
	return signed + "." + enc.EncodeToString(m.Sum(nil))
}

// CVE-2024-47616 and the row "token kind confusion": each kind of token at
// each endpoint in each carrier opens what it is for and nothing else.
func TestCVE_2024_47616_TokenKinds(t *testing.T) {
	b := newBrowser(t)
	b.signIn("app", "ada")
	handle, signIn := b.cookie("app", routeCookie), b.cookie("auth", signInCookie)
	if handle == "" || signIn == "" || handle == signIn {
		t.Fatal("no cookies to try")
	}
	real, err := session.VerifyHandle(w.keys, handle)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	claims := map[string]any{"jti": real.ID, "sub": real.UserID, "iss": "auth.localhost", "aud": []string{"app.localhost"}, "iat": now}
	sa, err := session.SignServiceAccount(w.keys, &session.ServiceAccount{ID: real.ID, UserID: real.UserID, IssuedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	assertion := b.get(at("app", "/.pomerium/jwt")).body
	b.get(at("app", "/"))
	if a := w.app.last().header.Get("X-Pomerium-Jwt-Assertion"); a != "" {
		assertion = a
	}
	kinds := []struct {
		name, token   string
		route, signIn bool // counts at app.localhost, at auth.localhost
	}{
		{"route handle", handle, true, false},
		{"sign-in handle", signIn, false, true},
		{"service account that has no record", string(sa), false, false},
		{"assertion for the application", assertion, false, false},
		{"handle under the raw shared secret", forge(w.secret, claims), false, false},
		{"handle under the link key", forge(w.keys.Current(session.PurposeSignedURL), claims), false, false},
		{"handle under the service-account key", forge(w.keys.Current(session.PurposeServiceAccount), claims), false, false},
		{"SDK bootstrap token", forge(w.secret, map[string]any{"jti": "014e587b-3f4b-4fcf-90a9-f6ecdf8154af", "sub": "bootstrap-014e587b-3f4b-4fcf-90a9-f6ecdf8154af.pomerium", "iat": now}), false, false},
		{"reserved service account", forge(w.keys.Current(session.PurposeServiceAccount), map[string]any{"jti": "014e587b-3f4b-4fcf-90a9-f6ecdf8154af", "sub": real.UserID, "iat": now, "nbf": now}), false, false},
		{"session id", real.ID, false, false},
		{"raw secret", base64.StdEncoding.EncodeToString(w.secret), false, false},
		{"nothing", "", false, false},
	}
	carriers := []struct {
		name string
		as   func(token string) (query string, headers []string)
		in   string // "route": counts as a route's credential; "signin"; "": never
	}{
		{"route cookie", func(k string) (string, []string) { return "", []string{"Cookie", routeCookie + "=" + k} }, "route"},
		{"sign-in cookie", func(k string) (string, []string) { return "", []string{"Cookie", signInCookie + "=" + k} }, "signin"},
		{"Pomerium header", func(k string) (string, []string) { return "", []string{"X-Pomerium-Authorization", k} }, "route"},
		{"Authorization", func(k string) (string, []string) { return "", []string{"Authorization", "Pomerium " + k} }, "route"},
		{"query", func(k string) (string, []string) { return "pomerium_session=" + url.QueryEscape(k), nil }, "route"},
		{"bearer", func(k string) (string, []string) { return "", []string{"Authorization", "Bearer " + k} }, ""},
		{"old cookie name", func(k string) (string, []string) { return "", []string{"Cookie", "_pomerium=" + k} }, ""},
	}
	endpoints := []string{"/", "/.pomerium/user", "/.pomerium/routes", "/.pomerium/api/v1/routes", "/.pomerium/jwt"}
	s := stranger(t)
	for _, k := range kinds {
		for _, c := range carriers {
			query, headers := c.as(k.token)
			for _, host := range []string{"app", "other", "auth"} {
				for _, path := range endpoints {
					if host == "auth" && path == "/" {
						continue // a redirect to the portal for everybody
					}
					p := s.get(at(host, path+"?"+query), headers...)
					allowed := k.route && c.in == "route" && host == "app" || k.signIn && c.in == "signin" && host == "auth"
					if p.StatusCode == 200 && !allowed {
						t.Errorf("%s as %s opens %s", k.name, c.name, at(host, path))
					}
					if p.StatusCode != 200 && allowed && path == "/.pomerium/user" {
						t.Errorf("%s as %s at %s: %d", k.name, c.name, at(host, path), p.StatusCode)
					}
				}
			}
			// Endpoints that take a state, a link or a foreign token take none of ours.
			for _, target := range []string{
				at("auth", "/oauth2/callback?code=x&state="+url.QueryEscape(k.token)), at("app", "/.pomerium/callback/?pomerium_session_encrypted="+url.QueryEscape(k.token)),
				at("app", "/.pomerium/callback/?pomerium_redirect_uri=https://app.localhost/&pomerium_session_encrypted="+url.QueryEscape(k.token)+"&pomerium_issued=1&pomerium_expiry=9999999999&pomerium_signature="+url.QueryEscape(k.token)),
				at("auth", "/.pomerium/sign_in?pomerium_redirect_uri=https://app.localhost/&pomerium_signature="+url.QueryEscape(k.token)),
			} {
				if p := s.get(target); p.StatusCode < 400 || p.Header.Get("Set-Cookie") != "" && strings.Contains(strings.Join(p.Header.Values("Set-Cookie"), " "), routeCookie+"=") {
					t.Errorf("%s at %.60s: %d", k.name, target, p.StatusCode)
				}
			}
			for _, path := range []string{"/.pomerium/verify-access-token", "/.pomerium/verify-identity-token"} {
				body, _ := json.Marshal(map[string]string{"accessToken": k.token, "identityToken": k.token})
				p := s.do("POST", at("auth", path), string(body), "Content-Type", "application/json")
				if p.StatusCode == 200 && decodeJSON(t, p.body)["valid"] == true {
					t.Errorf("%s: %s calls it valid", k.name, path)
				}
			}
		}
	}
}

// looksLikeJWT matches two of its parts: three letters alone stand in random
// bytes now and then.
var looksLikeJWT = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}`)

// CVE-2024-39315: no page of ours shows a token, a cookie or a secret, to
// whomever it is shown.
func TestCVE_2024_39315_NoTokensOnPages(t *testing.T) {
	b := newBrowser(t)
	b.signIn("app", "ada")
	b.signIn("other", "ada")
	secrets := map[string]string{"the shared secret": base64.StdEncoding.EncodeToString(w.secret), "the password": password, "a password hash": "$argon2id$"}
	for _, host := range []string{"app", "other"} {
		secrets["the handle of "+host] = b.cookie(host, routeCookie)
	}
	secrets["the sign-in handle"] = b.cookie("auth", signInCookie)
	for name, v := range secrets {
		if v == "" {
			t.Fatalf("%s is unknown", name)
		}
		if strings.Count(v, ".") == 2 { // a signature alone is half a token
			secrets["the signature of "+name] = v[strings.LastIndexByte(v, '.')+1:]
		}
	}
	for _, host := range []string{"app", "other", "auth", "paths"} {
		for _, path := range []string{"/.pomerium/", "/.pomerium", "/.pomerium/user", "/.pomerium/routes", "/.pomerium/api/v1/routes", "/.pomerium/sign_out", "/.pomerium/signed_out", "/.pomerium/nothing",
			"/.pomerium/callback/", "/oauth2/callback", "/.pomerium/sign_in", "/.pomerium/local", "/.well-known/pomerium", "/.well-known/pomerium/jwks.json", "/a%2fb", "/robots.txt"} {
			if host != "auth" && path == "/.pomerium/sign_out" {
				continue // would sign out; the sign-in host asks
			}
			for _, accept := range []string{"text/html", "application/json", "text/plain", "application/grpc"} {
				p := b.get(at(host, path), "Accept", accept)
				for name, v := range secrets {
					if strings.Contains(p.body, v) {
						t.Errorf("%s (%s) shows %s", at(host, path), accept, name)
					}
				}
				if looksLikeJWT.MatchString(p.body) && path != "/.pomerium/jwt" {
					t.Errorf("%s (%s) shows something like a JWT", at(host, path), accept)
				}
				// Public documents may be read by anyone, and without credentials only.
				public := strings.HasPrefix(path, "/.well-known/") && p.Header.Get("Access-Control-Allow-Origin") == "*"
				if p.Header.Get("Access-Control-Allow-Origin") != "" && !public || p.Header.Get("Access-Control-Allow-Credentials") != "" {
					t.Errorf("%s can be read by scripts of other sites: %v", at(host, path), p.Header)
				}
			}
		}
	}
	log := w.log.String()
	for name, v := range secrets {
		if strings.Contains(log, v) {
			t.Errorf("the log holds %s", name)
		}
	}
	if up := fmt.Sprint(w.app.last()); strings.Contains(up, b.cookie("other", routeCookie)) {
		t.Error("the application was sent the handle")
	}
}

// CVE-2026-34454: after signing out, no copy of any cookie counts, anywhere.
func TestCVE_2026_34454_SignOutThenReplay(t *testing.T) {
	b := newBrowser(t)
	b.signIn("app", "ada")
	b.signIn("other", "ada")
	kept := map[string][2]string{"app": {routeCookie, b.cookie("app", routeCookie)}, "other": {routeCookie, b.cookie("other", routeCookie)}, "auth": {signInCookie, b.cookie("auth", signInCookie)}}
	s := stranger(t)
	user := func(host string) int {
		return s.get(at(host, "/.pomerium/user"), "Cookie", kept[host][0]+"="+kept[host][1], "Accept", "application/json").StatusCode
	}
	for host := range kept {
		if got := user(host); got != 200 {
			t.Fatalf("before: %s %d", host, got)
		}
	}
	p := b.follow(b.get(at("app", "/.pomerium/sign_out"), "Sec-Fetch-Site", "none", "Sec-Fetch-Dest", "document"), "")
	if p.StatusCode != 200 || !strings.Contains(p.Request.URL.Path, "signed_out") {
		t.Fatalf("sign-out ended with %d at %s", p.StatusCode, p.Request.URL)
	}
	for host := range kept {
		deadline := time.Now().Add(5 * time.Second)
		for user(host) == 200 && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		if got := user(host); got == 200 {
			t.Errorf("the cookie of %s still counts", host)
		}
	}
	for _, host := range []string{"app", "other"} {
		before := w.app.count()
		if p := s.get(at(host, "/"), "Cookie", kept[host][0]+"="+kept[host][1]); p.StatusCode == 200 || w.app.count() != before {
			t.Errorf("%s: the application answers a signed-out person: %d", host, p.StatusCode)
		}
	}
	// Nor does the sign-in host make a new session from the old cookie.
	link := s.get(at("other", "/")).Header.Get("Location")
	if p := s.get(link, "Cookie", kept["auth"][0]+"="+kept["auth"][1]); strings.Contains(p.Header.Get("Location"), "/.pomerium/callback/") {
		t.Error("the old sign-in cookie signed in again")
	}
}

// Row "handle replay": the handle of one host is nothing at another.
func TestHandleReplay(t *testing.T) {
	b := newBrowser(t)
	b.signIn("app", "ada")
	b.signIn("other", "ada")
	s := stranger(t)
	values := map[string]string{"app": b.cookie("app", routeCookie), "other": b.cookie("other", routeCookie), "auth": b.cookie("auth", signInCookie)}
	for from, v := range values {
		for _, to := range []string{"app", "other", "auth", "paths"} {
			for _, name := range []string{routeCookie, signInCookie} {
				own := from == to && (name == signInCookie) == (from == "auth")
				p := s.get(at(to, "/.pomerium/user"), "Cookie", name+"="+v, "Accept", "application/json")
				if (p.StatusCode == 200) != own {
					t.Errorf("handle of %s as %s at %s: %d", from, name, to, p.StatusCode)
				}
			}
		}
	}
	before := w.app.count()
	for _, to := range []string{"other", "paths"} {
		if p := s.get(at(to, "/"), "Cookie", routeCookie+"="+values["app"]); p.StatusCode == 200 {
			t.Errorf("the application at %s answers app's handle", to)
		}
	}
	// The Host header decides, not the server name of the connection.
	status, _, _ := raw(t, "app", "GET / HTTP/1.1\r\nHost: other.localhost:"+w.port+"\r\nAccept: text/html\r\nCookie: "+routeCookie+"="+values["app"]+"\r\n\r\n")
	if status == 200 || w.app.count() != before {
		t.Errorf("with another Host on app's connection: %d", status)
	}
}

// Row "cookie tossing": cookies that a sibling or an application plants have no
// effect, before, during and after signing in.
func TestCookieTossing(t *testing.T) {
	eve := newBrowser(t)
	eve.signIn("other", "eve")
	planted := eve.cookie("other", routeCookie)
	b := newBrowser(t)
	b.signIn("other", "ada")
	mine := b.cookie("other", routeCookie)
	s := stranger(t)
	who := func(cookies string) string {
		p := s.get(at("other", "/"), "Cookie", cookies)
		if p.StatusCode != 200 {
			return fmt.Sprint(p.StatusCode)
		}
		return strings.TrimPrefix(p.body, appSecret+" for ")
	}
	for cookies, want := range map[string]string{
		routeCookie + "=" + mine: "ada@example.com",
		routeCookie + "=" + mine + "; " + routeCookie + "=" + planted:                             "302",
		routeCookie + "=" + planted + "; " + routeCookie + "=" + mine:                             "302",
		"_pomerium=" + planted + "; " + routeCookie + "=" + mine:                                  "ada@example.com",
		routeCookie + "=" + mine + "; " + routeCookie + "=":                                       "302",
		strings.ToLower(routeCookie) + "=" + planted + "; " + routeCookie + "=" + mine:            "ada@example.com",
		"a=\"; " + routeCookie + "=" + planted + "\"; " + routeCookie + "=" + mine:                "302",
		signInCookie + "=" + planted + "; " + routeCookie + "=" + mine:                            "ada@example.com",
		routeCookie + "=" + mine + ", " + routeCookie + "=" + planted:                             "302",
		"x=1;" + routeCookie + "=" + mine + ";=" + routeCookie + "=" + planted + ";__Host-other=": "ada@example.com",
	} {
		if got := who(cookies); got != want {
			t.Errorf("%s: %s, want %s", strings.NewReplacer(mine, "MINE", planted, "PLANTED").Replace(cookies), got, want)
		}
	}
	// An application cannot set our cookies for the browser.
	for _, line := range []string{routeCookie + "=" + planted + "; Path=/; Secure", "=" + routeCookie + "=" + planted, signInCookie + "=x; Path=/; Secure", "__Host-_pomerium_nonce=x; Path=/; Secure"} {
		p := b.get(at("other", "/?set-cookie="+url.QueryEscape(line)))
		if c := p.Header.Values("Set-Cookie"); len(c) > 0 {
			t.Errorf("the application set %q", c)
		}
	}
	if p := b.get(at("other", "/?set-cookie=plain%3D1")); p.Header.Get("Set-Cookie") != "plain=1" {
		t.Errorf("an ordinary cookie of the application: %v", p.Header)
	}
	// Before signing in: a planted nonce and session do not carry the login.
	v := newBrowser(t)
	u, _ := url.Parse(at("app", "/"))
	v.jar.SetCookies(u, []*http.Cookie{{Name: "__Host-_pomerium_nonce", Value: "planted.x", Path: "/", Secure: true}, {Name: routeCookie, Value: planted, Path: "/", Secure: true}})
	v.signIn("app", "ada")
	if h, err := session.VerifyHandle(w.keys, v.cookie("app", routeCookie)); err != nil || h.UserID != "local/ada" {
		t.Errorf("signed in as %+v, %v", h, err)
	}
}

// Row "login CSRF" through the whole program: the last hop of somebody else's
// sign-in sets nothing in this browser.
func TestLoginCSRF(t *testing.T) {
	eve := newBrowser(t)
	p := eve.get(at("other", "/"))
	// Eve signs in but stops before her browser takes the last hop.
	link := ""
	eve.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for range 10 {
		loc := p.Header.Get("Location")
		if strings.Contains(loc, "other.localhost") && strings.Contains(loc, "/.pomerium/callback/") {
			link = loc
			break
		}
		if loc == "" {
			before := len(eve.hops)
			p = eve.followOnce(p, "eve")
			if len(eve.hops) == before {
				break
			}
			continue
		}
		next, _ := p.Request.URL.Parse(loc)
		p = eve.get(next.String())
	}
	if link == "" {
		t.Fatalf("no last hop in\n%s", strings.Join(eve.hops, "\n"))
	}
	fresh := newBrowser(t)
	if p := fresh.get(link); p.StatusCode != 400 || fresh.cookie("other", routeCookie) != "" {
		t.Errorf("a fresh browser: %d, cookie %q", p.StatusCode, fresh.cookie("other", routeCookie))
	}
	victim := newBrowser(t)
	victim.get(at("other", "/")) // is about to sign in
	if p := victim.get(link); victim.cookie("other", routeCookie) != "" {
		t.Errorf("a victim about to sign in got a session: %d", p.StatusCode)
	}
	in := newBrowser(t)
	in.signIn("other", "ada")
	in.get(link)
	if p := in.get(at("other", "/")); !strings.HasSuffix(p.body, "for ada@example.com") {
		t.Errorf("a signed-in victim became %q", p.body)
	}
	if p := eve.follow(eve.get(link), ""); !strings.HasSuffix(p.body, "for eve@example.com") {
		t.Errorf("the browser that began it: %d %.100s", p.StatusCode, p.body)
	}
}

// followOnce fills the sign-in form and gives the answer to it.
func (b *browser) followOnce(p page, who string) page {
	if !strings.Contains(p.body, `type="password"`) {
		return p
	}
	form := url.Values{"email": {who + "@example.com"}, "password": {password}}
	for _, in := range hidden.FindAllString(p.body, -1) {
		if n, v := nameOf.FindStringSubmatch(in), valueOf.FindStringSubmatch(in); n != nil && v != nil {
			form.Set(unescape(n[1]), unescape(v[1]))
		}
	}
	to := p.Request.URL
	if m := formAction.FindStringSubmatch(p.body); m != nil && m[1] != "" {
		to, _ = p.Request.URL.Parse(unescape(m[1]))
	}
	return b.do("POST", to.String(), form.Encode(), "Content-Type", "application/x-www-form-urlencoded", "Origin", to.Scheme+"://"+to.Host, "Sec-Fetch-Site", "same-origin")
}

// CVE-2026-25748: whatever the cookie, a stranger gets no 200 and no 5xx.
func TestCVE_2026_25748_CookieFuzz(t *testing.T) {
	b := newBrowser(t)
	b.signIn("app", "ada")
	good := b.cookie("app", routeCookie)
	rnd := rand.New(rand.NewSource(25748))
	before := w.app.count()
	check := func(line string) {
		t.Helper()
		status, _, _ := target(t, "app", "/", "Accept: text/html", "Cookie: "+line)
		if status == 200 || status >= 500 {
			t.Errorf("%q: %d", line, status)
		}
	}
	for _, line := range []string{"", ";", "=", ";;;=;=", routeCookie, routeCookie + "=", routeCookie + "=x", routeCookie + "=" + good + "x", routeCookie + "=\"" + good + "\"", routeCookie + "=" + good[1:], routeCookie + "=..", routeCookie + "=" + strings.Repeat("A", 20000),
		routeCookie + "=" + good + "; " + routeCookie + "=", routeCookie + "=\xff\xfe", routeCookie + "=%s%n", strings.Repeat(routeCookie+"=x; ", 500), strings.Repeat("a=b;", 4000)} {
		check(line)
	}
	for range 300 {
		v := []byte(good)
		for range 1 + rnd.Intn(3) {
			at := rnd.Intn(len(v))
			switch rnd.Intn(3) {
			case 0:
				v[at] ^= byte(1 + rnd.Intn(15))
			case 1:
				v = append(v[:at], v[at+1:]...)
			case 2:
				v = append(v[:at], append([]byte(string(good[rnd.Intn(len(good))])), v[at:]...)...)
			}
		}
		if string(v) == good || strings.ContainsAny(string(v), "\r\n\x00;") || strings.ContainsFunc(string(v), func(r rune) bool { return r < ' ' || r == 0x7f }) {
			continue
		}
		check(routeCookie + "=" + string(v))
	}
	if w.app.count() != before {
		t.Error("the application was reached")
	}
	if status, _, _ := target(t, "app", "/", "Cookie: "+routeCookie+"="+good); status != 200 {
		t.Fatalf("the good cookie: %d: the test says little", status)
	}
}

// Rows "override headers", CVE-2025-64484, CVE-2024-45410, CVE-2026-30851:
// what the application is told about the person comes from us alone.
func TestIdentityHeaders(t *testing.T) {
	b := newBrowser(t)
	b.signIn("app", "ada")
	mine := "Cookie: " + routeCookie + "=" + b.cookie("app", routeCookie)
	claimed := []string{"X-Pomerium-Jwt-Assertion", "X-Pomerium-Jwt-Assertion-For", "X-Pomerium-Claim-Email", "X-Email", "X-Route-User", "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-Forwarded-Uri", "X-Forwarded-Host", "X-Envoy-External-Address"}
	for _, host := range []string{"app", "public", "paths"} {
		for _, name := range claimed {
			if name == "X-Route-User" && host != "app" {
				continue // no name of that route's
			}
			for _, spelling := range []string{name, strings.ToUpper(name), strings.ToLower(name), strings.ReplaceAll(name, "-", "_"), strings.ToLower(strings.ReplaceAll(name, "-", "_"))} {
				lines := []string{spelling + ": evil"}
				if host == "app" {
					lines = append(lines, mine)
				}
				before := w.app.count()
				status, _, _ := target(t, host, "/public/x", lines...)
				if status != 200 || w.app.count() == before {
					t.Fatalf("%s with %s: %d", host, spelling, status)
				}
				for n, v := range w.app.last().header {
					if n == "X-Pomerium-Jwt-Assertion-For" {
						continue // hands on, unverified, what a proxy before us asserted
					}
					if strings.Contains(strings.Join(v, " "), "evil") {
						t.Errorf("%s: %s reached the application as %s", host, spelling, n)
					}
				}
			}
		}
	}
	status, _, _ := target(t, "app", "/", mine, "Connection: X-Pomerium-Jwt-Assertion, x-email, X-ROUTE-USER, cookie, X-Forwarded-For")
	h := w.app.last().header
	if status != 200 || h.Get("X-Email") != "ada@example.com" || h.Get("X-Route-User") != "ours" || strings.Count(h.Get("X-Pomerium-Jwt-Assertion"), ".") != 2 || h.Get("X-Forwarded-For") == "" {
		t.Errorf("Connection deleted identity: %d %v", status, h)
	}
	if h.Get("Cookie") != "" {
		t.Errorf("our cookie went up: %q", h.Get("Cookie"))
	}
}

// CVE-2023-36456 and CVE-2026-40575: an address rule is not satisfied by what
// the client says of its address.
func TestCVE_2023_36456_ForwardedForSpoof(t *testing.T) {
	before := w.app.count()
	for _, line := range []string{"X-Forwarded-For: 10.1.2.3", "X-Forwarded-For: 10.1.2.3, 10.1.2.3", "X-Real-IP: 10.1.2.3", "Forwarded: for=10.1.2.3", "X-Envoy-External-Address: 10.1.2.3", "True-Client-IP: 10.1.2.3", "X-Client-IP: 10.1.2.3", "CF-Connecting-IP: 10.1.2.3", "X-Forwarded-For: localhost", "X-Forwarded-Uri: /public/x", "X_Forwarded_For: 10.1.2.3"} {
		if status, _, _ := target(t, "local", "/", "Accept: text/html", line); status == 200 || status >= 500 {
			t.Errorf("%s: %d", line, status)
		}
		if status, _, _ := target(t, "paths", "/x", "Accept: text/html", line); status == 200 {
			t.Errorf("%s at a path rule: %d", line, status)
		}
	}
	if w.app.count() != before {
		t.Error("the application was reached")
	}
}

// CVE-2025-54576, CVE-2026-41059, CVE-2021-32637, CVE-2026-33494 and the row
// "encoded path": only what is the public path is public.
func TestEncodedPaths(t *testing.T) {
	for _, path := range []string{"/x?/public/", "/x?a=/public/y", "/?/../public/x", "/public", "/publicx", "/PUBLIC/x", "/x/public/", "/public/../admin", "/public/%2e%2e/admin", "/public/.%2E/admin", "/public/./../admin", "/public/x/../../admin",
		"/%2570ublic/x", "/public%2f..%2fadmin", "/public%2Fx", "/public%5cx", "/public\\..\\admin", "/public/..;/admin#/public/", "/x#/public/", "/x%23/public/", "/%zz/public/", "/public/%", "/public/%00", "/public/\\../x", "//evil.test/public/",
		"/x/%252e%252e/public/", "*", "public/x", "http://paths.localhost/x?/public/", "/x;/public/", "/admin/..%2fpublic/"} {
		before := w.app.count()
		status, _, body := target(t, "paths", path, "Accept: text/html")
		if status == 200 || status >= 500 && status != 501 || w.app.count() != before || strings.Contains(body, appSecret) {
			t.Errorf("%q: %d, went up %q", path, status, w.app.last().target)
		}
	}
	for path, up := range map[string]string{"/public/x": "/public/x", "/%70ublic/x": "/public/x", "//public//x": "/public/x", "/a/../public/x": "/public/x", "/public//../y": "/public/y", "/public/x%2e%2e": "/public/x..", "/public/a;b?c=%2e%2e/": "/public/a;b?c=%2e%2e/", "/public/%252e%252e/": "/public/%252e%252e/"} {
		if status, _, _ := target(t, "paths", path); status != 200 || w.app.last().target != up {
			t.Errorf("%q: %d, went up %q, want %q", path, status, w.app.last().target, up)
		}
	}
}

// CVE-2021-32637: every parse error denies, before and after the door.
func TestCVE_2021_32637_ParseErrorsDeny(t *testing.T) {
	before := w.app.count()
	host := "public.localhost:" + w.port
	for _, request := range []string{
		"GET /\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / HTTP/1.1\r\nHost: " + host + "\r\nHost: x\r\n\r\n", "GET / HTTP/9.9\r\nHost: " + host + "\r\n\r\n", "GET  / HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
		"GET /%zz HTTP/1.1\r\nHost: " + host + "\r\n\r\n", "G\x01T / HTTP/1.1\r\nHost: " + host + "\r\n\r\n", "GET / HTTP/1.1\nHost: " + host + "\n\n", "GET / HTTP/1.1\r\nHost: " + host + "\r\nX Y: 1\r\n\r\n", "GET / HTTP/1.1\r\nHost: " + host + "\r\nX: \x00\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: u@" + host + "\r\n\r\n", "GET / HTTP/1.1\r\nHost: " + host + "/x\r\n\r\n", "GET http://evil.test/ HTTP/1.1\r\nHost: " + host + "\r\n\r\n", "POST / HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "POST / HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: -1\r\n\r\n", "CONNECT " + host + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n", "GET / HTTP/1.1\r\nHost: " + host + "\r\n X: folded\r\n\r\n",
	} {
		if status, _, _ := raw(t, "public", request); status != 0 && status < 400 || status >= 500 && status != 501 && status != 505 {
			t.Errorf("%q: %d", request, status)
		}
	}
	if w.app.count() != before {
		t.Error("the application was reached")
	}
}

// Row "setting parsed, not enforced": whoever narrows access by a setting that
// does not act is told so and nothing starts.
func TestNarrowingSettingsRefuseTheStart(t *testing.T) {
	base := fmt.Sprintf("address: 127.0.0.1:0\nhealth_check_addr: 127.0.0.1:0\nshared_secret: %s\ncontrol_address: 'off'\ndatabroker_storage_type: memory\n", base64.StdEncoding.EncodeToString(w.secret))
	inRoute := func(line string) string {
		return "routes: [{from: https://a.localhost, to: 'http://127.0.0.1:1', allow_any_authenticated_user: true, " + line + "}]\n"
	}
	for name, text := range map[string]string{
		"jwt_groups_filter_infer_from_ppl": "jwt_groups_filter_infer_from_ppl: true\n",
		"malformed rego":                   "routes: [{from: https://a.localhost, to: 'http://127.0.0.1:1', sub_policies: [{rego: ['package a; allow {']}]}]\n",
		"unknown criterion":                "routes: [{from: https://a.localhost, to: 'http://127.0.0.1:1', policy: [{allow: {and: [{frobnicate: x}]}}]}]\n",
		"unreadable client CA":             "downstream_mtls: {ca_file: /nowhere/ca.pem}\n",
		"malformed client CA":              "downstream_mtls: {ca: bm90IGEgY2VydGlmaWNhdGU=}\n",
		"malformed policy":                 inRoute("policy: [{allow: {and: {}}}]"),
		"unknown provider":                 "idp_provider: keycloack\n",
		"split services":                   "services: proxy\n",
	} {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(base+text), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		served := false
		err := server.Run(ctx, server.Options{ConfigFile: file, Out: io.Discard, LocalCA: w.ca, Ready: func() { served = true; cancel() }})
		cancel()
		if served || err == nil {
			t.Errorf("%s: the program starts (%v)", name, err)
		}
	}
	// The same without them does start.
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(base+inRoute("name: a")), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	served := false
	if err := server.Run(ctx, server.Options{ConfigFile: file, Out: io.Discard, LocalCA: w.ca, Ready: func() { served = true; cancel() }}); err != nil || !served {
		t.Errorf("the plain configuration does not start: %v", err)
	}
}

// Row "upstream script as attacker": a script of an application reads nothing
// of ours across sites and ends no session by an image.
func TestScriptsOfApplications(t *testing.T) {
	b := newBrowser(t)
	b.signIn("app", "ada")
	for _, c := range []struct{ host, path string }{{"auth", "/.pomerium/user"}, {"auth", "/.pomerium/"}, {"auth", "/.pomerium/routes"}, {"app", "/.pomerium/user"}, {"app", "/.pomerium/api/v1/login?pomerium_redirect_uri=https://evil.test/"}} {
		for _, method := range []string{"GET", "OPTIONS"} {
			p := b.do(method, at(c.host, c.path), "", "Origin", "https://evil.test", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors", "Access-Control-Request-Method", "GET")
			for name := range p.Header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("%s %s gives %s: %q", method, c.path, name, p.Header[name])
				}
			}
		}
		p := b.get(at(c.host, c.path))
		if c.host == "auth" && p.StatusCode == 200 && strings.HasPrefix(p.Header.Get("Content-Type"), "text/html") && !strings.Contains(p.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
			t.Errorf("%s can be framed: %v", c.path, p.Header)
		}
	}
	for _, host := range []string{"app", "auth"} {
		for _, dest := range []string{"image", "iframe", "empty"} {
			b.get(at(host, "/.pomerium/sign_out"), "Sec-Fetch-Site", "same-site", "Sec-Fetch-Dest", dest)
		}
		b.do("POST", at(host, "/.pomerium/sign_out"), "", "Origin", "https://evil.test", "Sec-Fetch-Site", "cross-site")
	}
	if p := b.get(at("app", "/")); p.StatusCode != 200 {
		t.Errorf("signed out by an image: %d", p.StatusCode)
	}
}

// Row "stranger's floods", connections: one that says nothing or only part of a
// hello keeps nobody else out.
func TestSilentConnections(t *testing.T) {
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 100 {
		c, err := net.Dial("tcp", "127.0.0.1:"+w.port)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1})
		}
		conns = append(conns, c)
	}
	if status, _, _ := target(t, "public", "/"); status != 200 {
		t.Errorf("beside a hundred silent connections: %d", status)
	}
}
