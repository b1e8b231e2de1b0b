package authn

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/identity"
	"postern/internal/record"
	"postern/internal/session"
)

func TestSignIn(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	p := b.get("https://app.example.com/a/b?c=d&e=%2F")
	if p.StatusCode != 200 || p.body != "hello u1 at app.example.com/a/b?c=d&e=%2F" {
		t.Fatalf("%d %s", p.StatusCode, p.body)
	}
	if n := len(b.trail); n > 8 {
		t.Errorf("%d redirects", n)
	}
	// Cookies: decision 12, wire-contract.md §3.1.
	var route, signIn, nonce int
	for _, r := range b.trail {
		for _, c := range r.Cookies() {
			if !c.Secure || c.Path != "/" || !strings.HasPrefix(c.Name, "__Host-") || c.Domain != "" {
				t.Errorf("cookie %s: secure %v path %q domain %q", c.Name, c.Secure, c.Path, c.Domain)
			}
			if !c.HttpOnly {
				t.Errorf("cookie %s can be read by scripts", c.Name)
			}
			if len(c.Name)+len(c.Value) > 460 {
				t.Errorf("cookie %s has %d bytes", c.Name, len(c.Value))
			}
			switch c.Name {
			case "__Host-_pomerium":
				route++
				if life := time.Until(c.Expires); life < 13*time.Hour || life > 14*time.Hour {
					t.Errorf("route cookie lives %v", life)
				}
				h, err := session.VerifyHandle(w.keys, c.Value)
				if err != nil || strings.Join(h.Audience, " ") != "app.example.com" || h.Issuer != "auth.example.com" || h.UserID != "u1" ||
					h.IDPID != w.idp.ID() || h.RecordVersion == 0 || h.ServerVersion == 0 {
					t.Errorf("route handle %+v %v", h, err)
				}
			case "__Host-_pomerium_authenticate":
				signIn++
				h, err := session.VerifyHandle(w.keys, c.Value)
				if err != nil || !h.ForSignIn("auth.example.com") || h.ForHost("auth.example.com", "") || h.ForHost("app.example.com", "") {
					t.Errorf("sign-in handle %+v %v", h, err)
				}
			case "__Host-_pomerium_nonce":
				nonce++
			case "__Host-_pomerium_bounce":
			default:
				t.Errorf("unexpected cookie %s", c.Name)
			}
		}
		if loc := r.Header.Get("Location"); strings.Contains(loc, b.cookie("app.example.com", "__Host-_pomerium")) {
			t.Errorf("the handle is readable in a redirect: %s", loc)
		}
	}
	if route != 1 || signIn != 1 || nonce != 2 {
		t.Errorf("cookies set: route %d, sign-in %d, nonce %d", route, signIn, nonce)
	}
	// The second application signs in without the provider.
	before := w.iss.TokenCalls
	if p := b.get("https://other.example.com/"); p.body != "hello u1 at other.example.com/" {
		t.Errorf("second application: %d %s", p.StatusCode, p.body)
	}
	if w.iss.TokenCalls != before {
		t.Error("the provider was asked again")
	}
	ss := w.sessions()
	if len(ss) != 1 || ss[0].UserID != "u1" || ss[0].OAuthToken.RefreshToken == "" || ss[0].IDPID != w.idp.ID() || ss[0].Claims.String("email") != "ada@example.com" ||
		ss[0].RemoteIP != "192.0.2.7" || ss[0].ExpiresAt.Sub(ss[0].IssuedAt) != 14*time.Hour {
		t.Errorf("sessions %+v", ss)
	}
	rec, err := w.store.Get(t.Context(), session.UserType, "u1")
	if err != nil {
		t.Fatal(err)
	}
	if u, _ := session.DecodeUser(rec); u.Email != "ada@example.com" || u.Name != "Ada" {
		t.Errorf("user %+v", u)
	}
	for _, secret := range []string{string(ss[0].OAuthToken.RefreshToken), string(ss[0].OAuthToken.AccessToken), string(ss[0].IDToken.Raw), b.cookie("app.example.com", "__Host-_pomerium")} {
		if strings.Contains(w.logged(), secret) {
			t.Error("a token is in the log")
		}
	}
}

// users-want 7: fifty tabs at once all end signed in.
func TestFiftyTabs(t *testing.T) {
	for _, cookieless := range []bool{true, false} {
		t.Run(fmt.Sprint("fresh=", cookieless), func(t *testing.T) {
			w := newWorld(t, nil)
			b := w.browser()
			if !cookieless {
				b.until("https://app.example.com/", "https://auth.example.com/.pomerium/sign_in")
			}
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					host := []string{"app.example.com", "other.example.com"}[i%2]
					want := fmt.Sprintf("hello u1 at %s/tab/%d", host, i)
					if p := b.get(fmt.Sprintf("https://%s/tab/%d", host, i)); p.body != want {
						t.Errorf("tab %d: %d at %s: %.300s", i, p.StatusCode, p.Request.URL.Path, p.body)
					}
				})
			}
			wg.Wait()
		})
	}
}

// The race of tabs at its worst: all tabs get as far as the provider before
// any comes back, each with another nonce.
func TestTabsThatAllBeganFirst(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	var starts []string
	for i := range 10 {
		// A browser that has no cookies yet sends none on its first requests.
		lone := w.browser()
		starts = append(starts, lone.until(fmt.Sprintf("https://app.example.com/%d", i), "https://auth.example.com/oauth2/callback"))
		for _, host := range []string{"app.example.com", "auth.example.com"} {
			u := &url.URL{Scheme: "https", Host: host, Path: "/"}
			b.jar.SetCookies(u, addAttributes(lone.jar.Cookies(u)))
		}
	}
	for i, back := range starts {
		want := fmt.Sprintf("hello u1 at app.example.com/%d", i)
		if p := b.get(back); p.body != want {
			t.Errorf("tab %d: %d at %s: %.300s", i, p.StatusCode, p.Request.URL.Path, p.body)
		}
	}
}

func addAttributes(cs []*http.Cookie) []*http.Cookie {
	for _, c := range cs {
		c.Path, c.Secure = "/", true
	}
	return cs
}

// security-cases: login CSRF. Another browser's callback or hop sets no
// session, neither in a browser without cookies nor in one with its own.
func TestLoginCSRF(t *testing.T) {
	w := newWorld(t, nil)
	for _, where := range []string{"https://auth.example.com/oauth2/callback", "https://app.example.com/.pomerium/callback/"} {
		attacker := w.browser()
		w.iss.User["sub"] = "attacker"
		stolen := attacker.until("https://app.example.com/secret", where)

		fresh := w.browser()
		p := fresh.get(stolen)
		if p.StatusCode != http.StatusBadRequest {
			t.Errorf("fresh browser at %s: %d", where, p.StatusCode)
		}
		noSession(t, fresh)

		// A victim that is in the middle of signing in.
		victim := w.browser()
		w.iss.User["sub"] = "victim"
		victim.until("https://app.example.com/", "https://idp.example.com/auth")
		p = victim.get(stolen)
		for _, host := range []string{"app.example.com", "auth.example.com"} {
			for _, name := range []string{w.svc.names.Session, w.svc.names.SignIn} {
				if v := victim.cookie(host, name); v != "" {
					if h, err := session.VerifyHandle(w.keys, v); err != nil || h.UserID != "victim" {
						t.Errorf("the victim became %v at %s", h, host)
					}
				}
			}
		}
		if strings.Contains(p.body, "attacker") {
			t.Errorf("the victim sees the attacker's page: %s", p.body)
		}

		// A victim that is signed in stays who they are.
		in := w.browser()
		if p := in.get("https://app.example.com/"); p.body != "hello victim at app.example.com/" {
			t.Fatal(p.body)
		}
		if p := in.get(stolen); strings.Contains(p.body, "attacker") {
			t.Errorf("a signed-in victim became the attacker: %s", p.body)
		}
		if p := in.get("https://app.example.com/"); p.body != "hello victim at app.example.com/" {
			t.Errorf("afterwards: %s", p.body)
		}
	}
}

func noSession(t *testing.T, b *browser) {
	t.Helper()
	for host := range b.w.apps {
		if v := b.cookie(host, b.w.svc.names.Session); v != "" {
			t.Errorf("a session cookie was set at %s", host)
		}
	}
	if v := b.cookie(b.w.signIn, b.w.svc.names.SignIn); v != "" {
		t.Error("a session cookie was set at the sign-in host")
	}
}

// The provider's answer cannot be used twice, even where the provider would
// allow it.
func TestStateReplay(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	back := b.until("https://app.example.com/", "https://auth.example.com/oauth2/callback")
	if p := b.get(back); p.StatusCode != 200 {
		t.Fatalf("%d %s", p.StatusCode, p.body)
	}
	calls := w.iss.TokenCalls
	// With a session: on to the application.
	if p := b.get(back); p.StatusCode != 200 || !strings.HasPrefix(p.body, "hello u1") {
		t.Errorf("replay with a session: %d", p.StatusCode)
	}
	// Signed out: refused.
	for _, s := range w.sessions() {
		if err := w.svc.EndSession(t.Context(), record.System("test"), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	if p := b.get(back); p.StatusCode != http.StatusBadRequest {
		t.Errorf("replay without a session: %d", p.StatusCode)
	}
	if w.iss.TokenCalls != calls {
		t.Error("a replayed state reached the provider")
	}
	if len(w.sessions()) != 0 {
		t.Error("a replay made a session")
	}
}

// security-cases: CVE-2021-29652. Flip each signed parameter: 400, no cookie.
func TestTamperedLinks(t *testing.T) {
	w := newWorld(t, nil)
	w.additional = []string{"other.example.com"}
	for _, prefix := range []string{"https://auth.example.com/.pomerium/sign_in", "https://app.example.com/.pomerium/callback/"} {
		b := w.browser()
		raw := b.until("https://app.example.com/x?y=z", prefix)
		good, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if len(good.Query()) < 6 {
			t.Fatalf("few parameters: %v", good.Query())
		}
		for name := range good.Query() {
			for what, change := range map[string]func(url.Values){
				"flipped": func(q url.Values) { v := []byte(q.Get(name)); v[len(v)/2] ^= 1; q.Set(name, string(v)) },
				"longer":  func(q url.Values) { q.Set(name, q.Get(name)+"A") },
				"removed": func(q url.Values) { q.Del(name) },
				"doubled": func(q url.Values) { q.Add(name, q.Get(name)) },
			} {
				q := good.Query()
				change(q)
				bad := *good
				bad.RawQuery = q.Encode()
				jar := b.jar // the very browser that began
				probe := &browser{w: w, jar: jar}
				p := probe.get(bad.String())
				if p.StatusCode != http.StatusBadRequest || len(probe.trail) != 0 {
					t.Errorf("%s %s at %s: %d after %d redirects", name, what, prefix, p.StatusCode, len(probe.trail))
				}
				if v := probe.cookie("app.example.com", w.svc.names.Session); v != "" {
					t.Fatalf("%s %s set a session", name, what)
				}
			}
		}
		// Another host, another path.
		for _, other := range []string{strings.Replace(raw, "app.example.com/.p", "other.example.com/.p", 1), strings.Replace(raw, "auth.example.com/.pomerium/sign_in", "auth.example.com/.pomerium/sign_out", 1)} {
			if other == raw {
				continue
			}
			if p := (&browser{w: w, jar: b.jar}).get(other); p.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: %d", other[:60], p.StatusCode)
			}
		}
	}
}

// Links expire; the state too. Both offer the way back.
func TestExpiry(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	link := b.until("https://app.example.com/x", "https://auth.example.com/.pomerium/sign_in")
	back := b.until("https://app.example.com/x", "https://auth.example.com/oauth2/callback")
	w.now = func() time.Time { return time.Now().Add(5*time.Minute + time.Second) }
	if p := b.get(back); p.StatusCode != http.StatusBadRequest || !strings.Contains(p.body, "/.pomerium/sign_in?") {
		t.Errorf("expired state: %d", p.StatusCode)
	}
	if p := b.get(link); p.StatusCode == http.StatusBadRequest {
		t.Error("a link is judged expired within the leeway")
	}
	w.now = func() time.Time { return time.Now().Add(7 * time.Minute) }
	if p := b.get(link); p.StatusCode != http.StatusBadRequest || !strings.Contains(p.body, "https://app.example.com/x") {
		t.Errorf("expired link: %d", p.StatusCode)
	}
	w.now = func() time.Time { return time.Now().Add(-7 * time.Minute) }
	if p := b.get(back); p.StatusCode != http.StatusBadRequest {
		t.Errorf("a state from the future: %d", p.StatusCode)
	}
}

// users-want 6: a loop is stopped at the third bounce by a page that names the
// cause, and counting begins anew after a minute.
func TestLoopIsStopped(t *testing.T) {
	for name, c := range map[string]struct {
		set   func(*world)
		cause string
	}{
		"cookie not kept": {func(w *world) {
			w.strip = func(r *http.Request) {
				var keep []string
				for _, c := range r.Cookies() {
					if c.Name != w.svc.names.Session {
						keep = append(keep, c.Name+"="+c.Value)
					}
				}
				r.Header.Set("Cookie", strings.Join(keep, "; "))
			}
		}, "did not keep our cookie"},
		"session not seen": {func(w *world) { w.nobody = true }, "Most likely cause"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			c.set(w)
			b := w.browser()
			p := b.get("https://app.example.com/")
			if p.StatusCode != http.StatusBadRequest || !strings.Contains(p.body, "sign-in loop") || !strings.Contains(p.body, c.cause) {
				t.Fatalf("%d at %s: %s", p.StatusCode, p.Request.URL, p.body)
			}
			visits := 0
			for _, r := range b.trail {
				if r.Request.URL.Host == "app.example.com" && r.Request.URL.Path == "/" {
					visits++
				}
			}
			if visits != 4 { // the first visit and three that came back without a session
				t.Errorf("%d visits to the application", visits)
			}
			if w.iss.TokenCalls != 1 {
				t.Errorf("%d token calls", w.iss.TokenCalls)
			}
			// After a minute it is counted anew.
			later := time.Now().Add(61 * time.Second)
			w.now = func() time.Time { return later }
			w.nobody, w.strip = false, nil
			if p := b.get("https://app.example.com/"); p.StatusCode != 200 {
				t.Errorf("a minute later: %d", p.StatusCode)
			}
		})
	}
}

// The sign-in host itself never loops with the provider.
func TestLoopWithProviderIsStopped(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	// A browser that loses the sign-in host's session each time.
	b.before = func(r *http.Request) error {
		if r.URL.Host == "auth.example.com" && r.URL.Path == pathSignIn {
			b.jar.SetCookies(&url.URL{Scheme: "https", Host: "auth.example.com", Path: "/"}, []*http.Cookie{{Name: w.svc.names.SignIn, Path: "/", MaxAge: -1}})
		}
		return nil
	}
	p := b.get("https://app.example.com/")
	if p.StatusCode != http.StatusBadRequest || !strings.Contains(p.body, "sign-in loop") {
		t.Fatalf("%d at %s", p.StatusCode, p.Request.URL)
	}
	if w.iss.TokenCalls != 3 {
		t.Errorf("%d token calls, want 3", w.iss.TokenCalls)
	}
}

func TestProviderErrors(t *testing.T) {
	w := newWorld(t, nil)
	for query, want := range map[string]int{
		"error=access_denied": 401, "error=unauthorized_client": 401, "error=server_error": 400, "error=%00%0a": 400,
		"": 400, "code=x": 400, "state=x": 400, "code=x&state=x": 400, "code=x&state=" + strings.Repeat("A", 40000): 400,
		"code=x&code=y&state=x": 400, "%zz": 400, "error=a&error=b": 400,
	} {
		b := w.browser()
		if p := b.get("https://auth.example.com/oauth2/callback?" + query); p.StatusCode != want {
			t.Errorf("%.60q: %d, want %d", query, p.StatusCode, want)
		}
		noSession(t, b)
	}
	// A good state with a code that the provider does not know.
	b := w.browser()
	back := b.until("https://app.example.com/", "https://auth.example.com/oauth2/callback")
	u, _ := url.Parse(back)
	q := u.Query()
	q.Set("code", "forged")
	u.RawQuery = q.Encode()
	if p := b.get(u.String()); p.StatusCode != http.StatusBadRequest {
		t.Errorf("forged code: %d", p.StatusCode)
	}
	// Missing code.
	q.Del("code")
	u.RawQuery = q.Encode()
	if p := w.browser().get(u.String()); p.StatusCode != http.StatusBadRequest {
		t.Errorf("no code: %d", p.StatusCode)
	}
	// A dead provider: 503, and the person may try again.
	w.iss.Down = true
	w2 := newWorld(t, nil)
	w2.iss.Down = true
	if p := w2.browser().get("https://app.example.com/"); p.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("dead provider: %d", p.StatusCode)
	}
	if strings.Contains(w.logged()+w2.logged(), "forged") {
		t.Error("a code is in the log")
	}
	// The person has no account there.
	w3 := newWorld(t, nil)
	w3.iss.User = map[string]any{}
	if p := w3.browser().get("https://app.example.com/"); p.StatusCode != http.StatusUnauthorized {
		t.Errorf("access denied: %d", p.StatusCode)
	}
	// Methods.
	if p := b.post("https://auth.example.com/.pomerium/signed_out", nil, nil); p.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("post to signed_out: %d", p.StatusCode)
	}
}

// wire-contract.md §1.6: an XMLHttpRequest without a session gets 401.
func TestScriptedSignIn(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	link := b.until("https://app.example.com/", "https://auth.example.com/.pomerium/sign_in")
	for _, v := range []string{"XMLHttpRequest", "xmlhttprequest"} {
		req, _ := http.NewRequest("GET", link, nil)
		req.Header.Set("X-Requested-With", v)
		req.Header.Set("Accept", "application/json")
		if p := b.do(req); p.StatusCode != http.StatusUnauthorized || !strings.Contains(p.body, `"Status":401`) {
			t.Errorf("%s: %d %s", v, p.StatusCode, p.body)
		}
	}
}

// Unsigned use of the sign-in host: to one's own page, and nowhere else.
func TestUnsignedSignIn(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	if p := b.get("https://auth.example.com/.pomerium/sign_in"); p.body != "dashboard" || p.Request.URL.Path != pathDashboard {
		t.Errorf("%d at %s", p.StatusCode, p.Request.URL)
	}
	for _, q := range []string{"pomerium_redirect_uri=https://evil.example/", "pomerium_signature=x", "pomerium_redirect_uri=https://app.example.com/&pomerium_signature="} {
		if p := b.get("https://auth.example.com/.pomerium/sign_in?" + q); p.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", q, p.StatusCode)
		}
	}
}

// security-cases: CVE-2021-29651, second line: even a link with a good
// signature leads only to hosts that are served here.
func TestSignedOpenRedirect(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	if p := b.get("https://app.example.com/"); p.StatusCode != 200 {
		t.Fatal(p.StatusCode)
	}
	corpus := []string{
		"https://evil.example/", "//evil.example", `https://app.example.com\@evil.example/`, "https://app.example.com@evil.example/", "http://app.example.com/",
		"javascript:alert(1)", "https://app.example.com.evil.example/", "https://evilapp.example.com/", "/relative", "",
	}
	for _, to := range corpus {
		for _, d := range []*destination{{Redirect: to}, {Redirect: "https://app.example.com/", Callback: to}} {
			if d.Callback == "" && d.Redirect != to {
				continue
			}
			if p := b.get(w.svc.signInLink(d)); p.StatusCode != http.StatusBadRequest || p.Request.URL.Host != "auth.example.com" {
				t.Errorf("%+v: %d at %s", d, p.StatusCode, p.Request.URL)
			}
		}
	}
	// And a hop whose redirect leads away sets nothing.
	for _, to := range corpus {
		fresh := w.browser()
		hop := fresh.until("https://app.example.com/", "https://app.example.com/.pomerium/callback/")
		u, _ := url.Parse(hop)
		q := u.Query()
		q.Set(paramRedirect, to)
		u.RawQuery = q.Encode()
		if p := fresh.get(session.SignLink(w.keys, u, time.Now()).String()); p.StatusCode != http.StatusBadRequest {
			t.Errorf("hop to %q: %d", to, p.StatusCode)
		}
		if fresh.cookie("app.example.com", w.svc.names.Session) != "" {
			t.Errorf("hop to %q set a session", to)
		}
	}
}

// depends_on: further hosts are signed in on the way, each with its own
// handle.
func TestAdditionalHosts(t *testing.T) {
	w := newWorld(t, nil)
	w.additional = []string{"other.example.com", "third.example.com:8443", "unknown.example.com"}
	b := w.browser()
	if p := b.get("https://app.example.com/x"); p.body != "hello u1 at app.example.com/x" {
		t.Fatalf("%d at %s: %s", p.StatusCode, p.Request.URL, p.body)
	}
	seen := map[string]bool{}
	for _, host := range []string{"app.example.com", "other.example.com", "third.example.com"} {
		v := b.cookie(host, w.svc.names.Session)
		h, err := session.VerifyHandle(w.keys, v)
		if err != nil || !h.ForHost(host, "") || len(h.Audience) != 1 {
			t.Errorf("%s: %+v %v", host, h, err)
		}
		if seen[v] {
			t.Errorf("%s shares its handle with another host", host)
		}
		seen[v] = true
	}
	if w.iss.TokenCalls != 1 {
		t.Errorf("%d token calls", w.iss.TokenCalls)
	}
}

// security-cases: handle replay, cookie tossing. R1's cookie at R2 and at A,
// two differing cookies.
func TestHandleReplayAndTossing(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	b.get("https://app.example.com/")
	handle := b.cookie("app.example.com", w.svc.names.Session)
	try := func(host, cookies string) int {
		req, _ := http.NewRequest("GET", "https://"+host+"/", nil)
		req.Header.Set("Cookie", cookies)
		resp, _ := w.RoundTrip(req)
		return resp.StatusCode
	}
	name := w.svc.names.Session
	for what, c := range map[string]struct {
		host, cookies string
		want          int
	}{
		"own":                     {"app.example.com", name + "=" + handle, 200},
		"same twice":              {"app.example.com", name + "=" + handle + "; " + name + "=" + handle, 200},
		"at another route":        {"other.example.com", name + "=" + handle, 302},
		"with a tossed one":       {"app.example.com", name + "=" + handle + "; " + name + "=x", 302},
		"with a tossed one first": {"app.example.com", name + "=x; " + name + "=" + handle, 302},
		"without prefix":          {"app.example.com", "_pomerium=" + handle, 302},
	} {
		if got := try(c.host, c.cookies); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
	}
	// At the sign-in host it is no session: the provider is asked.
	link := w.svc.signInLink(&destination{Redirect: "https://other.example.com/"})
	req, _ := http.NewRequest("GET", link, nil)
	req.Header.Set("Cookie", w.svc.names.SignIn+"="+handle)
	resp, _ := w.RoundTrip(req)
	if to := resp.Header.Get("Location"); !strings.HasPrefix(to, "https://idp.example.com/") {
		t.Errorf("a route's handle signs in at the sign-in host: %s", to)
	}
	// The sign-in host's handle at a route.
	if got := try("app.example.com", name+"="+b.cookie("auth.example.com", w.svc.names.SignIn)); got != 302 {
		t.Errorf("the sign-in host's handle at a route: %d", got)
	}
}

// cookie_domain: one handle for the domain and no more; a left-over host-only
// cookie is taken away instead of making a loop.
func TestCookieDomain(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Config.CookieDomain = "example.com" })
	b := w.browser()
	app := &url.URL{Scheme: "https", Host: "app.example.com", Path: "/"}
	b.jar.SetCookies(app, []*http.Cookie{{Name: "_pomerium", Value: "left-over", Path: "/", Secure: true}})
	if p := b.get("https://app.example.com/"); p.StatusCode != 200 {
		// The first round meets the stray cookie; the callback removes it.
		t.Fatalf("%d at %s: %.300s", p.StatusCode, p.Request.URL, p.body)
	}
	h, err := session.VerifyHandle(w.keys, b.cookie("app.example.com", "_pomerium"))
	if err != nil || strings.Join(h.Audience, " ") != ".example.com" {
		t.Errorf("%+v %v", h, err)
	}
	before := len(b.trail)
	if p := b.get("https://other.example.com/"); p.StatusCode != 200 || len(b.trail) != before {
		t.Errorf("a sibling needs %d more redirects", len(b.trail)-before)
	}
}

// Decision 10: the host of an application also serves sign-in.
func TestSharedSignInHost(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.SignInURL = &url.URL{Scheme: "https", Host: "app.example.com"}
		o.SignInHostIsRoute = true
	})
	b := w.browser()
	if p := b.get("https://app.example.com/x"); p.body != "hello u1 at app.example.com/x" {
		t.Fatalf("%d at %s: %s", p.StatusCode, p.Request.URL, p.body)
	}
	if p := b.get("https://other.example.com/y"); p.body != "hello u1 at other.example.com/y" {
		t.Fatalf("%d at %s: %s", p.StatusCode, p.Request.URL, p.body)
	}
	if a, r := b.cookie("app.example.com", w.svc.names.SignIn), b.cookie("app.example.com", w.svc.names.Session); a == "" || r == "" || a == r {
		t.Error("the two handles are not apart")
	}
	// Sign-out here ends all.
	p := b.get("https://app.example.com/.pomerium/sign_out")
	if len(w.sessions()) != 0 {
		t.Fatalf("still signed in: %d at %s", p.StatusCode, p.Request.URL)
	}
}

// SameSite=Strict keeps a new cookie back from a redirect that another site
// began: the callback goes on through a page of its own.
func TestStrictSameSite(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Config.CookieSameSite = "Strict" })
	b := w.browser()
	p := b.get("https://app.example.com/x")
	if p.StatusCode != 200 || p.Request.URL.Path != pathCallback || p.Header.Get("Refresh") != "0; url=https://app.example.com/x" {
		t.Fatalf("%d at %s, Refresh %q", p.StatusCode, p.Request.URL.Path, p.Header.Get("Refresh"))
	}
	for _, c := range p.Cookies() {
		if c.Name == w.svc.names.Session && c.SameSite != http.SameSiteStrictMode {
			t.Errorf("cookie is %v", c)
		}
	}
	if p := b.get("https://app.example.com/x"); p.body != "hello u1 at app.example.com/x" {
		t.Errorf("%d %s", p.StatusCode, p.body)
	}
}

// A session of one provider is none for a route of another (wire-contract.md
// §1.2), and a person at another provider is another person.
func TestSecondProvider(t *testing.T) {
	w := newWorld(t, nil)
	partner := w.provider("partner")
	w.build(func(o *Options) { o.Providers = []identity.Provider{w.idp, partner} })
	b := w.browser()
	w.routeIDP = w.idp.ID()
	if p := b.get("https://app.example.com/"); p.body != "hello u1 at app.example.com/" {
		t.Fatal(p.body)
	}
	w.routeIDP = partner.ID()
	p := b.get("https://app.example.com/")
	if p.body != "hello partner/u1 at app.example.com/" {
		t.Fatalf("%d at %s: %.200s", p.StatusCode, p.Request.URL, p.body)
	}
	if got := w.iss.LastAuth.Get("redirect_uri"); got != "https://auth.example.com/oauth2/callback/"+partner.ID() {
		t.Errorf("callback of the second provider: %s", got)
	}
	// An answer of one provider at the other's address is refused.
	fresh := w.browser()
	back := fresh.until("https://app.example.com/", "https://auth.example.com/oauth2/callback")
	if p := fresh.get(strings.Replace(back, "/oauth2/callback/"+partner.ID(), "/oauth2/callback", 1)); p.StatusCode != http.StatusBadRequest {
		t.Errorf("mixed-up providers: %d", p.StatusCode)
	}
	// An unknown provider id.
	if p := b.get(w.svc.signInLink(&destination{Redirect: "https://app.example.com/", IDP: "gone"})); p.StatusCode != http.StatusBadRequest {
		t.Errorf("unknown provider: %d", p.StatusCode)
	}
}

// A deleted session is gone for every cookie that names it, and a hop made
// before does not bring it back.
func TestHopAfterSignOut(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	hop := b.until("https://app.example.com/", "https://app.example.com/.pomerium/callback/")
	for _, s := range w.sessions() {
		if err := w.svc.EndSession(context.Background(), record.System("test"), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	if p := b.get(hop); p.StatusCode != http.StatusBadRequest || b.cookie("app.example.com", w.svc.names.Session) != "" {
		t.Errorf("%d", p.StatusCode)
	}
}

// Long and odd addresses: the way back is kept where it can be, and never
// breaks the sign-in.
func TestReturnAddress(t *testing.T) {
	for _, c := range [][3]string{
		{"/a", "b=c", "https://h/a?b=c"}, {"/a", "", "https://h/a"},
		{"/a", "q=\xc3\xa9\\ #", "https://h/a?q=%C3%A9%5C%20%23"},
		{"/a", strings.Repeat("x", maxReturn), "https://h/a"},
		{"/" + strings.Repeat("x", maxReturn), "", "https://h/"},
	} {
		got := returnAddress("h", c[0], c[1])
		if got != c[2] {
			t.Errorf("%.40q?%.40q: %.100s", c[0], c[1], got)
		}
		if _, err := session.ParseRedirect(got); err != nil {
			t.Error(err)
		}
	}
}

func FuzzCookies(f *testing.F) {
	f.Add("__Host-_pomerium=x", "__Host-_pomerium_nonce=a.b", "__Host-_pomerium_bounce=1.2.3.x")
	f.Add("a;=;b==", "\"", "__Host-_pomerium_authenticate=..")
	w := newWorld(f, nil)
	f.Fuzz(func(t *testing.T, a, b, c string) {
		r := &http.Request{Method: "GET", Host: "app.example.com", URL: &url.URL{Path: "/"}, Header: http.Header{"Cookie": {a, b, c}}}
		if got := w.caller(r); !got.Anonymous() {
			t.Fatal("a made-up cookie is a session") // security-cases: CVE-2026-25748
		}
		if n := w.svc.nonce(cookieLines(r), r.Host); n != "" {
			t.Fatal("a made-up nonce was taken")
		}
		if _, ok := w.svc.bounceMark(cookieLines(r), r.Host); ok {
			t.Fatal("a made-up mark was taken")
		}
		if _, err := w.svc.openState(a); err == nil {
			t.Fatal("a made-up state was taken")
		}
		red := w.svc.SignInRedirect(view{r}, "", nil)
		if !strings.HasPrefix(red.URL, "https://auth.example.com/.pomerium/sign_in?") || len(red.Cookies) != 1 {
			t.Fatalf("redirect %+v", red)
		}
	})
}
