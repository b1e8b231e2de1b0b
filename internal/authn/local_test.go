package authn

import (
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

var passwordHash = sync.OnceValue(func() session.Token {
	h, err := identity.HashPassword("correct horse")
	if err != nil {
		panic(err)
	}
	return h
})

func localWorld(t testing.TB, accounts ...session.LocalAccount) *world {
	t.Helper()
	w := newWorld(t, nil)
	w.useLocal(accounts...)
	return w
}

func (w *world) useLocal(accounts ...session.LocalAccount) {
	w.t.Helper()
	p, err := identity.New(identity.Settings{Provider: "local", AuthenticateURL: "https://" + w.signIn}, identity.Deps{LocalUsers: accounts, Accounts: w.store})
	if err != nil {
		w.t.Fatal(err)
	}
	w.idp = p
	w.build(nil)
}

func ada() session.LocalAccount {
	return session.LocalAccount{ID: "ada", Email: "ada@example.com", Name: "Ada", Groups: []string{"admins"}, PasswordHash: passwordHash()}
}

func TestLocalSignIn(t *testing.T) {
	w := localWorld(t, ada())
	b := w.browser()
	p := b.get("https://app.example.com/x")
	if p.StatusCode != 200 || p.Request.URL.Path != identity.LocalPath || !strings.Contains(p.body, "app.example.com") {
		t.Fatalf("%d at %s: %s", p.StatusCode, p.Request.URL, p.body)
	}
	// Browsers apply form-action to redirects: the way back must be allowed.
	if csp := p.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self' https://app.example.com") {
		t.Errorf("CSP %s", csp)
	}
	to, form := p.form(t)
	form.Set("email", "ada@example.com")
	form.Set("password", "wrong")
	p = b.post(to, form, nil)
	if p.StatusCode != http.StatusUnauthorized || strings.Contains(p.body, "wrong") || !strings.Contains(p.body, "ada@example.com") {
		t.Errorf("wrong password: %d %s", p.StatusCode, p.body)
	}
	to, form = p.form(t)
	form.Set("email", "Ada@Example.com")
	form.Set("password", "correct horse")
	posted := form
	if p = b.post(to, form, nil); p.body != "hello local/ada at app.example.com/x" {
		t.Fatalf("%d at %s: %s", p.StatusCode, p.Request.URL, p.body)
	}
	rec, err := w.store.Get(t.Context(), session.DirectoryUserType, "local/ada")
	if err != nil {
		t.Fatal(err)
	}
	if d, _ := session.DecodeDirectoryUser(rec); len(d.GroupIDs) != 1 || d.GroupIDs[0] != "admins" || d.Email != "ada@example.com" {
		t.Errorf("directory %+v", d)
	}
	if _, err := w.store.Get(t.Context(), session.DirectoryGroupType, "admins"); err != nil {
		t.Errorf("group record: %v", err)
	}
	// The same form once more makes no second session.
	if p := b.post("https://auth.example.com"+identity.LocalPath, posted, nil); p.StatusCode != http.StatusBadRequest {
		t.Errorf("replayed form: %d", p.StatusCode)
	}
	if n := len(w.sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
	if strings.Contains(w.logged(), "correct horse") || strings.Contains(w.logged(), "wrong") && strings.Contains(w.logged(), "password=") {
		t.Error("a password is in the log")
	}
}

// security-cases: login CSRF by form. Another site's post, another browser's
// state, no cookie: no session.
func TestLocalFormIsBound(t *testing.T) {
	w := localWorld(t, ada())
	b := w.browser()
	to, form := b.get("https://app.example.com/x").form(t)
	form.Set("email", "ada@example.com")
	form.Set("password", "correct horse")
	if p := b.post(to, form, map[string]string{"Sec-Fetch-Site": "cross-site"}); p.StatusCode != http.StatusBadRequest {
		t.Errorf("cross-site: %d", p.StatusCode)
	}
	if p := b.post(to, form, map[string]string{"Sec-Fetch-Site": "", "Origin": "https://evil.example"}); p.StatusCode != http.StatusBadRequest {
		t.Errorf("other origin: %d", p.StatusCode)
	}
	if p := b.post(to, form, map[string]string{"Content-Type": "text/plain"}); p.StatusCode != http.StatusBadRequest {
		t.Errorf("other type: %d", p.StatusCode)
	}
	fresh := w.browser()
	if p := fresh.post(to, form, nil); p.StatusCode != http.StatusBadRequest {
		t.Errorf("browser without cookies: %d", p.StatusCode)
	}
	noSession(t, fresh)
	other := w.browser()
	other.get("https://app.example.com/y")
	p := other.post(to, form, nil)
	if p.StatusCode != http.StatusBadRequest {
		t.Errorf("another browser: %d", p.StatusCode)
	}
	noSession(t, other)
	// But it gets a form of its own.
	to2, form2 := p.form(t)
	form2.Set("email", "ada@example.com")
	form2.Set("password", "correct horse")
	if p := other.post(to2, form2, nil); p.StatusCode != 200 || !strings.HasPrefix(p.body, "hello local/ada") {
		t.Errorf("renewed form: %d %s", p.StatusCode, p.body)
	}
	for _, state := range []string{"", "x", strings.Repeat("A", 100)} {
		form.Set("state", state)
		if p := b.post(to, form, nil); p.StatusCode != http.StatusBadRequest {
			t.Errorf("state %.5q: %d", state, p.StatusCode)
		}
	}
	if n := len(w.sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
	// Too slow: the form is renewed, what was typed is kept, a password never.
	to, form = b.get("https://app.example.com/x").form(t)
	form.Set("email", "ada@example.com")
	form.Set("password", "correct horse")
	w.now = func() time.Time { return time.Now().Add(6 * time.Minute) }
	if p := b.post(to, form, nil); p.StatusCode != http.StatusBadRequest || !strings.Contains(p.body, "ada@example.com") || strings.Contains(p.body, "correct horse") {
		t.Errorf("late: %d", p.StatusCode)
	}
}

// security-cases: stranger's floods. Guessing is answered 429 in time.
func TestLocalFlood(t *testing.T) {
	w := localWorld(t, ada())
	b := w.browser()
	to, form := b.get("https://app.example.com/x").form(t)
	form.Set("email", "ada@example.com")
	form.Set("password", "guess")
	waits := 0
	for range 8 {
		p := b.post(to, form, nil)
		if p.StatusCode == http.StatusTooManyRequests {
			waits++
			if p.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		}
	}
	if waits == 0 {
		t.Error("eight guesses and no wait")
	}
}

// Accounts kept as records sign in like those of the file; what changes in an
// account counts at once, and an account that goes takes its sessions along.
func TestAccountsFollow(t *testing.T) {
	w := localWorld(t)
	put := func(a session.LocalAccount) {
		rec, err := a.Record()
		if err != nil {
			t.Fatal(err)
		}
		rec.Version = 0
		if _, err := w.store.Put(t.Context(), record.System("test"), rec); err != nil {
			t.Fatal(err)
		}
	}
	put(ada())
	b := w.browser()
	to, form := b.get("https://app.example.com/").form(t)
	form.Set("email", "ada@example.com")
	form.Set("password", "correct horse")
	if p := b.post(to, form, nil); p.body != "hello local/ada at app.example.com/" {
		t.Fatalf("%d %s", p.StatusCode, p.body)
	}
	changed := ada()
	changed.Groups, changed.Claims, changed.Name = []string{"staff"}, map[string]any{"team": "new"}, "Ada L."
	put(changed)
	if err := w.svc.SyncAccounts(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec, _ := w.store.Get(t.Context(), session.DirectoryUserType, "local/ada")
	if d, _ := session.DecodeDirectoryUser(rec); strings.Join(d.GroupIDs, ",") != "staff" {
		t.Errorf("groups %v", d.GroupIDs)
	}
	if s := w.sessions()[0]; s.Claims.String("team") != "new" {
		t.Errorf("claims %v", s.Claims) // security-cases: CVE-2021-41230
	}
	if rec, _ := w.store.Get(t.Context(), session.UserType, "local/ada"); !strings.Contains(string(rec.Data), "Ada L.") {
		t.Errorf("user %s", rec.Data)
	}
	before := w.sessions()[0].RecordVersion
	if err := w.svc.SyncAccounts(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.sessions()[0].RecordVersion != before {
		t.Error("an unchanged account was written again")
	}
	changed.Disabled = true
	put(changed)
	if err := w.svc.SyncAccounts(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(w.sessions()); n != 0 {
		t.Errorf("a disabled account keeps %d sessions", n)
	}
	if p := b.get("https://app.example.com/"); strings.HasPrefix(p.body, "hello") {
		t.Error("a disabled account is still in")
	}
	if _, err := w.store.Get(t.Context(), session.DirectoryUserType, "local/ada"); err == nil {
		t.Error("a disabled account keeps its groups")
	}
}

func TestProgramLogin(t *testing.T) {
	w := newWorld(t, nil)
	const api = "https://app.example.com/.pomerium/api/v1/login"
	client := w.browser() // the program itself
	for q, want := range map[string]int{
		"": 404, "?pomerium_redirect_uri=": 404, "?pomerium_redirect_uri=https://evil.example/": 400,
		"?pomerium_redirect_uri=http://localhost.evil.example/": 400, "?pomerium_redirect_uri=http://localhost:1/&pomerium_redirect_uri=http://localhost:2/": 400,
		"?pomerium_redirect_uri=%zz": 400, "?pomerium_redirect_uri=http%3A%2F%2F127.0.0.1%3A5000%2F": 200,
	} {
		if p := client.get(api + q); p.StatusCode != want {
			t.Errorf("%q: %d, want %d", q, p.StatusCode, want)
		}
	}
	if p := client.post(api+"?pomerium_redirect_uri=http://localhost/", nil, nil); p.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", p.StatusCode)
	}
	p := client.get(api + "?pomerium_redirect_uri=" + url.QueryEscape("http://127.0.0.1:5000/cb?a=b"))
	if ct := p.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain") {
		t.Errorf("type %s", ct)
	}
	link := p.body
	if u, err := url.Parse(link); err != nil || u.Host != "auth.example.com" || u.Query().Get("pomerium_programmatic") != "true" ||
		u.Query().Get("pomerium_callback_uri") != "https://app.example.com/.pomerium/callback/" {
		t.Fatalf("link %s", link)
	}
	// The person opens it: signs in, and is asked.
	b := w.browser()
	p = b.get(link)
	if p.StatusCode != 200 || p.Request.URL.Host != "auth.example.com" || !strings.Contains(p.body, "127.0.0.1:5000") || !strings.Contains(p.body, "ada@example.com") {
		t.Fatalf("%d at %s: %s", p.StatusCode, p.Request.URL, p.body)
	}
	to, form := p.form(t)
	// Without a click there is no token: cross-site posts, wrong tokens, other
	// browsers.
	form.Set("decision", "allow")
	if p := b.post(to, form, map[string]string{"Sec-Fetch-Site": "cross-site"}); p.StatusCode != http.StatusBadRequest {
		t.Errorf("cross-site: %d", p.StatusCode)
	}
	forged := url.Values{"csrf": {"AAAA"}, "decision": {"allow"}}
	if p := b.post(to, forged, nil); p.StatusCode != http.StatusBadRequest {
		t.Errorf("forged: %d", p.StatusCode)
	}
	if p := b.post(to, url.Values{"csrf": form["csrf"], "decision": {"refuse"}}, nil); p.StatusCode != http.StatusForbidden {
		t.Errorf("refused: %d", p.StatusCode)
	}
	if n := len(w.sessions()); n != 1 {
		t.Fatalf("%d sessions before the click", n)
	}
	p = b.post(to, form, nil)
	if p.Request.URL.Host != "127.0.0.1:5000" || p.Request.URL.Path != "/cb" || p.Request.URL.Query().Get("a") != "b" {
		t.Fatalf("%d at %s: %s", p.StatusCode, p.Request.URL, p.body)
	}
	token := p.Request.URL.Query().Get("pomerium_jwt")
	h, err := session.VerifyHandle(w.keys, token)
	if err != nil || strings.Join(h.Audience, " ") != "app.example.com" {
		t.Fatalf("%+v %v", h, err)
	}
	if b.cookie("app.example.com", w.svc.names.Session) != "" {
		t.Error("the browser was signed in at the application by a link that it did not begin")
	}
	var own, browsers *session.Session
	for _, s := range w.sessions() {
		if s.ID == h.ID {
			own = s
		} else {
			browsers = s
		}
	}
	if own == nil || browsers == nil || !own.Program || own.ParentSessionID != browsers.ID || own.OAuthToken.RefreshToken != "" || !own.RefreshDisabled {
		t.Fatalf("program's session %+v, browser's %+v", own, browsers)
	}
	// It ends with the session it was made from.
	if err := w.svc.EndSession(t.Context(), record.System("test"), browsers.ID); err != nil {
		t.Fatal(err)
	}
	if n := len(w.sessions()); n != 0 {
		t.Errorf("%d sessions outlive their parent", n)
	}
}

func TestSignOut(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	for _, host := range []string{"app.example.com", "other.example.com"} {
		if p := b.get("https://" + host + "/"); p.StatusCode != 200 {
			t.Fatal(p.StatusCode)
		}
	}
	kept := b.cookie("other.example.com", w.svc.names.Session)
	access := string(w.sessions()[0].OAuthToken.AccessToken)
	p := b.get("https://app.example.com/.pomerium/sign_out?pomerium_redirect_uri=https://evil.example/")
	if p.StatusCode != 200 || p.Request.URL.String() != "https://auth.example.com/.pomerium/signed_out" || !strings.Contains(p.body, "You are signed out") {
		t.Fatalf("%d at %s", p.StatusCode, p.Request.URL)
	}
	if len(w.sessions()) != 0 || b.cookie("app.example.com", w.svc.names.Session) != "" || b.cookie("auth.example.com", w.svc.names.SignIn) != "" {
		t.Error("the session or its cookies are still there")
	}
	if !strings.Contains(strings.Join(w.iss.Revoked, " "), access) {
		t.Error("the access token was not revoked")
	}
	var visited bool
	for _, r := range b.trail {
		if u, err := url.Parse(r.Header.Get("Location")); err == nil && u.Host == "idp.example.com" && u.Path == "/logout" {
			visited = true
			if u.Query().Get("id_token_hint") == "" || u.Query().Get("post_logout_redirect_uri") != "https://auth.example.com/.pomerium/signed_out" {
				t.Errorf("logout request %v", u.Query())
			}
		}
	}
	if !visited {
		t.Error("the provider was not left")
	}
	// security-cases: CVE-2026-34454, sign-out then replay.
	req, _ := http.NewRequest("GET", "https://other.example.com/", nil)
	req.Header.Set("Cookie", w.svc.names.Session+"="+kept)
	if resp, _ := w.RoundTrip(req); resp.StatusCode != http.StatusFound {
		t.Errorf("a kept cookie still counts: %d", resp.StatusCode)
	}
}

func TestSignOutRedirect(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.Config.SignoutRedirectURL = &url.URL{Scheme: "https", Host: "www.example.com", Path: "/bye"}
	})
	b := w.browser()
	b.get("https://app.example.com/")
	if p := b.get("https://app.example.com/.pomerium/sign_out?pomerium_redirect_uri=https://evil.example/"); p.Request.URL.String() != "https://www.example.com/bye" {
		t.Errorf("ended at %s", p.Request.URL)
	}
	w = newWorld(t, func(o *Options) { o.AllowAnySignOutRedirect = true })
	b = w.browser()
	b.get("https://app.example.com/")
	if p := b.get("https://app.example.com/.pomerium/sign_out?pomerium_redirect_uri=https://www.example.com/x"); p.Request.URL.String() != "https://www.example.com/x" {
		t.Errorf("ended at %s", p.Request.URL)
	}
}

// security-cases: upstream script as attacker; sign-out by <img>. What another
// site or a subresource began is asked about.
func TestSignOutAsksFirst(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	b.get("https://app.example.com/")
	try := func(raw string, header map[string]string) page {
		req, _ := http.NewRequest("GET", raw, nil)
		for k, v := range header {
			req.Header.Set(k, v)
		}
		return b.do(req)
	}
	const out = "https://app.example.com/.pomerium/sign_out"
	for name, p := range map[string]page{
		"image of another site":    try(out, map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"}),
		"image of the same site":   try(out, map[string]string{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "image"}),
		"fetch by an own script":   try(out, map[string]string{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "empty"}),
		"link on another site":     try(out, map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}),
		"sibling site":             try(out, map[string]string{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "document"}),
		"old browser, other page":  try(out, map[string]string{"Referer": "https://evil.example/x"}),
		"sign-in host, unsigned":   try("https://auth.example.com/.pomerium/sign_out", nil),
		"link made by a stranger":  b.get(w.browser().until(out, "https://auth.example.com/.pomerium/sign_out")),
		"unsigned with a redirect": try("https://auth.example.com/.pomerium/sign_out?pomerium_redirect_uri=https://evil.example/", nil),
	} {
		if p.StatusCode != 200 || p.Request.URL.Host != "auth.example.com" || !strings.Contains(p.body, "Sign out?") {
			t.Errorf("%s: %d at %s", name, p.StatusCode, p.Request.URL)
		}
		if strings.Contains(p.body, "evil.example") {
			t.Errorf("%s: the page leads away", name)
		}
	}
	if len(w.sessions()) != 1 || b.cookie("app.example.com", w.svc.names.Session) == "" {
		t.Fatal("signed out without being asked")
	}
	// Somebody else's signed-in link ends their session, not this one.
	w.iss.User = map[string]any{"sub": "mallory"}
	mallory := w.browser()
	mallory.get("https://app.example.com/")
	link := mallory.until(out, "https://auth.example.com/.pomerium/sign_out")
	if p := b.get(link); !strings.Contains(p.body, "Sign out?") {
		t.Errorf("mallory's link: %d at %s", p.StatusCode, p.Request.URL)
	}
	if ss := w.sessions(); len(ss) != 1 || ss[0].UserID != "u1" {
		t.Fatalf("sessions %v", ss)
	}
	// A cross-site post of the answer is refused; the click itself counts.
	p := try("https://auth.example.com/.pomerium/sign_out", nil)
	to, form := p.form(t)
	if p := b.post(to, form, map[string]string{"Sec-Fetch-Site": "cross-site"}); p.StatusCode != http.StatusBadRequest {
		t.Errorf("cross-site answer: %d", p.StatusCode)
	}
	if len(w.sessions()) != 1 {
		t.Fatal("signed out by another site")
	}
	if p := b.post(to, form, nil); len(w.sessions()) != 0 || p.StatusCode != 200 {
		t.Errorf("the click: %d at %s, %d sessions", p.StatusCode, p.Request.URL, len(w.sessions()))
	}
}

// Two kinds of token, two endpoints (wire-contract.md §2).
func TestVerifyTokens(t *testing.T) {
	w := newWorld(t, nil)
	w.browser().get("https://app.example.com/")
	s := w.sessions()[0]
	post := func(path, body string) (int, string) {
		req, _ := http.NewRequest("POST", "https://auth.example.com"+path, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		p := w.browser().do(req)
		return p.StatusCode, strings.TrimSpace(p.body)
	}
	id := `","identityProviderId":"` + w.idp.ID() + `"}`
	for _, c := range []struct {
		path, body string
		valid      bool
	}{
		{pathVerifyID, `{"identityToken":"` + string(s.IDToken.Raw) + id, true},
		{pathVerifyAccess, `{"accessToken":"` + string(s.OAuthToken.AccessToken) + id, true},
		{pathVerifyID, `{"identityToken":"` + string(s.OAuthToken.AccessToken) + id, false},
		{pathVerifyAccess, `{"accessToken":"x` + id, false},
		{pathVerifyAccess, `{"accessToken":"` + string(s.OAuthToken.AccessToken) + `","identityProviderId":"other"}`, false},
		{pathVerifyAccess, `{}`, false},
	} {
		status, body := post(c.path, c.body)
		if status != 200 || strings.Contains(body, `"valid":true`) != c.valid || strings.Contains(body, `"sub"`) != c.valid {
			t.Errorf("%s %.40s: %d %s", c.path, c.body, status, body)
		}
	}
	for _, bad := range []string{"", "x", "[]", `{"a":` + strings.Repeat(" ", maxForm) + `1}`} {
		if status, _ := post(pathVerifyID, bad); status != http.StatusBadRequest {
			t.Errorf("%.10q: %d", bad, status)
		}
	}
}
