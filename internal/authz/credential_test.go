package authz

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"postern/internal/session"
)

// forge signs claims with HS256 under any key.
func forge(t testing.TB, key []byte, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding
	signed := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString(payload)
	m := hmac.New(sha256.New, key)
	m.Write([]byte(signed))
	return signed + "." + enc.EncodeToString(m.Sum(nil))
}

// TestTokenKindConfusion: "token kind confusion" and CVE-2024-47616 of the
// security cases: each kind of token counts only where it belongs.
func TestTokenKindConfusion(t *testing.T) {
	h := newHouse(t, app)
	h.person("alice", "alice@corp.test", "app.corp.test")
	h.put(&session.User{ID: "bot", Email: "bot@corp.test"}, &session.ServiceAccount{ID: "sa1", UserID: "bot", IssuedAt: time.Now()},
		&session.ServiceAccount{ID: "014e587b-3f4b-4fcf-90a9-f6ecdf8154af", UserID: "alice"})
	sa, err := session.SignServiceAccount(h.keys, &session.ServiceAccount{ID: "sa1", UserID: "bot", IssuedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	handleClaims := map[string]any{"jti": "s-alice", "sub": "alice", "iss": "auth.example.com", "aud": []string{"app.corp.test"}, "iat": now}
	saClaims := map[string]any{"jti": "sa1", "sub": "bot", "iat": now, "nbf": now}
	other, _ := newKeys(t)

	kinds := []struct {
		name            string
		token           string
		cookie, program bool // does it open as a cookie, as a program's token?
	}{
		{"handle", string(h.handle("s-alice", "alice", "app.corp.test")), true, true},
		{"service account", string(sa), false, true},
		{"handle under the raw shared secret", forge(t, h.secret, handleClaims), false, false},
		{"service account under the raw shared secret", forge(t, h.secret, saClaims), false, false},
		{"bootstrap token of the SDKs", forge(t, h.secret, map[string]any{"jti": "014e587b-3f4b-4fcf-90a9-f6ecdf8154af", "sub": "bootstrap-014e587b-3f4b-4fcf-90a9-f6ecdf8154af.pomerium", "iat": now}), false, false},
		{"RPC token", forge(t, h.secret, map[string]any{"exp": now + 3600}), false, false},
		{"handle claims under the service account key", forge(t, h.keys.Current(session.PurposeServiceAccount), handleClaims), false, false},
		{"service account claims under the handle key", forge(t, h.keys.Current(session.PurposeHandle), saClaims), false, false},
		{"handle of other keys", string(session.SignHandle(other, &session.Handle{ID: "s-alice", UserID: "alice", Audience: []string{"app.corp.test"}, IssuedAt: time.Now()})), false, false},
		{"handle for another host", string(h.handle("s-alice", "alice", "other.corp.test")), false, false},
		{"handle of the sign-in host", string(session.SignHandle(h.keys, &session.Handle{ID: "s-alice", UserID: "alice", Audience: []string{session.SignInAudience("app.corp.test")}, IssuedAt: time.Now()})), false, false},
		{"reserved service account", forge(t, h.keys.Current(session.PurposeServiceAccount), map[string]any{"jti": "014e587b-3f4b-4fcf-90a9-f6ecdf8154af", "sub": "alice", "iat": now}), false, false},
		{"alg none", base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + strings.Split(string(sa), ".")[1] + ".", false, false},
		{"empty", "", false, false},
		{"long", strings.Repeat("a", 5000), false, false},
	}
	for _, k := range kinds {
		carriers := []struct {
			name string
			view *view
			want bool
		}{
			{"cookie", request("GET", "https://app.corp.test/", "Cookie", cookie(session.Token(k.token))), k.cookie},
			{"X-Pomerium-Authorization", request("GET", "https://app.corp.test/", "X-Pomerium-Authorization", k.token), k.program},
			{"Authorization: Pomerium", request("GET", "https://app.corp.test/", "Authorization", "Pomerium "+k.token), k.program},
			{"Bearer Pomerium-", request("GET", "https://app.corp.test/", "Authorization", "Bearer Pomerium-"+k.token), k.program},
			{"query", request("GET", "https://app.corp.test/?pomerium_session="+k.token), k.program},
			{"plain bearer", request("GET", "https://app.corp.test/", "Authorization", "Bearer "+k.token), false},
			{"foreign cookie", request("GET", "https://app.corp.test/", "Cookie", "_pomerium="+k.token), false},
		}
		for _, c := range carriers {
			d := h.decide(c.view)
			if got := d.Outcome == Allow; got != c.want {
				t.Errorf("%s as %s: got %v, want allowed %v", k.name, c.name, d.Outcome, c.want)
			}
			// Own pages that need a session take exactly the same tokens.
			c.view.path = "/.pomerium/user"
			if got := h.decide(c.view).Outcome == Allow; got != c.want {
				t.Errorf("%s as %s at /.pomerium/user: allowed %v", k.name, c.name, got)
			}
			c.view.path = "/"
		}
	}
}

// TestDisabledServiceAccount: CVE-2025-64521 of the security cases.
func TestDisabledServiceAccount(t *testing.T) {
	h := newHouse(t, app)
	h.put(&session.User{ID: "bot", Email: "bot@corp.test"})
	a := &session.ServiceAccount{ID: "sa1", UserID: "bot", IssuedAt: time.Now()}
	token, err := session.SignServiceAccount(h.keys, a)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() Decision {
		return h.decide(request("GET", "https://app.corp.test/", "Authorization", "Bearer Pomerium-"+string(token)))
	}
	if d := ask(); d.Status != 401 {
		t.Errorf("no record: got %v %d", d.Outcome, d.Status)
	}
	h.put(a)
	if d := ask(); d.Outcome != Allow || d.Caller.ServiceAccount == nil || !d.Strip.Has("Authorization") {
		t.Errorf("usable: got %v %d, strips Authorization %v", d.Outcome, d.Status, d.Strip.Has("Authorization"))
	}
	a.Disabled = true
	h.put(a)
	if d := ask(); d.Status != 401 {
		t.Errorf("disabled: got %v %d", d.Outcome, d.Status)
	}
	a.Disabled, a.ExpiresAt = false, time.Now().Add(-time.Second)
	h.put(a)
	if d := ask(); d.Status != 401 {
		t.Errorf("expired: got %v %d", d.Outcome, d.Status)
	}
}

// TestCookieTossing: two cookies of our name that differ are none.
func TestCookieTossing(t *testing.T) {
	h := newHouse(t, app)
	alice := h.person("alice", "alice@corp.test", "app.corp.test")
	eve := h.person("eve", "eve@corp.test", "app.corp.test")
	for _, tt := range []struct {
		headers []string
		want    Outcome
	}{
		{[]string{"Cookie", cookie(alice) + "; " + cookie(eve)}, SignIn},
		{[]string{"Cookie", cookie(eve) + "; " + cookie(alice)}, SignIn},
		{[]string{"Cookie", cookie(alice), "Cookie", cookie(eve)}, SignIn},
		{[]string{"Cookie", cookie(alice) + "; " + cookie(alice)}, Allow},
		{[]string{"Cookie", cookie(alice) + "; __Host-_pomerium="}, SignIn},
		{[]string{"Cookie", "x__Host-_pomerium=1; " + cookie(alice) + ";"}, Allow},
		{[]string{"Cookie", strings.ToLower(cookie(alice))}, SignIn},
		{[]string{"Cookie", "; ;=;" + cookie(alice)}, Allow},
		{[]string{"X-Pomerium-Authorization", string(alice), "X-Pomerium-Authorization", string(eve)}, SignIn},
		{[]string{"Authorization", "Basic x", "Authorization", "Pomerium " + string(alice)}, Allow},
	} {
		if d := h.decide(request("GET", "https://app.corp.test/", tt.headers...)); d.Outcome != tt.want {
			t.Errorf("%.60q: got %v, want %v", tt.headers, d.Outcome, tt.want)
		}
	}
	if d := h.decide(request("GET", "https://app.corp.test/?pomerium_session="+string(alice)+"&pomerium_session="+string(eve))); d.Outcome != SignIn {
		t.Errorf("two tokens in the query: %v", d.Outcome)
	}
}

// TestHandleReplay: "handle replay" of the security cases.
func TestHandleReplay(t *testing.T) {
	specs := []routeSpec{{from: "https://app.corp.test", policy: staff}, {from: "https://two.corp.test", policy: staff}, {from: "https://*.wild.test", policy: staff}}
	h := newHouse(t, specs)
	alice := h.person("alice", "alice@corp.test", "app.corp.test")
	ask := func(host string, token session.Token) Outcome {
		return h.decide(request("GET", "https://"+host+"/", "Cookie", cookie(token))).Outcome
	}
	if ask("app.corp.test", alice) != Allow || ask("two.corp.test", alice) != SignIn {
		t.Error("a handle counts at another host")
	}
	if ask("a.wild.test", h.handle("s-alice", "alice", "a.wild.test")) != Allow ||
		ask("b.wild.test", h.handle("s-alice", "alice", "a.wild.test")) != SignIn {
		t.Error("wildcard hosts share handles")
	}
	domain := session.SignHandle(h.keys, &session.Handle{ID: "s-alice", UserID: "alice", Audience: []string{session.DomainAudience("corp.test")}, IssuedAt: time.Now()})
	if ask("app.corp.test", domain) != SignIn {
		t.Error("a domain handle counts without cookie_domain")
	}
	h.options.CookieDomain = "corp.test"
	h.options.Cookies = session.NewCookieNames("__Host-_pomerium", "corp.test")
	h.swap(specs)
	if ask("app.corp.test", domain) != Allow || ask("two.corp.test", domain) != Allow || ask("a.wild.test", domain) != SignIn {
		t.Error("cookie_domain does not decide where a domain handle counts")
	}
	h.options.AnyAudience = true
	h.swap(specs)
	if ask("two.corp.test", alice) != Allow {
		t.Error("handle_audience any does not act")
	}
}

func TestIdentityProviderOfHandle(t *testing.T) {
	h := newHouse(t, []routeSpec{
		{from: "https://app.corp.test", policy: staff, access: routeAccess("idp-1")},
	})
	h.person("alice", "alice@corp.test", "app.corp.test")
	for idp, want := range map[string]Outcome{"": Allow, "idp-1": Allow, "idp-2": SignIn} {
		token := session.SignHandle(h.keys, &session.Handle{ID: "s-alice", UserID: "alice", IDPID: idp, Audience: []string{"app.corp.test"}, IssuedAt: time.Now()})
		if d := h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(token))); d.Outcome != want {
			t.Errorf("idp_id %q: got %v, want %v", idp, d.Outcome, want)
		}
	}
}

// TestReadYourWrites: a handle newer than the copy reads through (trap 23).
func TestReadYourWrites(t *testing.T) {
	h := newHouse(t, app)
	s := h.sources
	s.Sessions = direct[session.Session]{h.store, session.SessionType, session.DecodeSession}
	s.Users = behind[session.User]{}
	s.DirectoryUsers = behind[session.DirectoryUser]{}
	e, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	token := h.person("new", "new@corp.test", "app.corp.test")
	v := request("GET", "https://app.corp.test/", "Cookie", cookie(token))
	if d := e.Decide(t.Context(), h.request(v)); d.Outcome != Allow {
		t.Errorf("a session made a moment ago, user copy behind: %v %v", d.Outcome, d.Policy.Allow.Reasons.Names())
	}
	// The same without the store to ask: absent is believed of a synced copy.
	s.Store = nil
	if e, err = New(s); err != nil {
		t.Fatal(err)
	}
	if d := e.Decide(t.Context(), h.request(v)); d.Outcome != Deny {
		t.Errorf("user copy behind, nothing to ask: %v", d.Outcome)
	}
}

func TestMemoDoesNotOutliveRecords(t *testing.T) {
	h := newHouse(t, app)
	token := h.person("alice", "alice@corp.test", "app.corp.test")
	ask := func() Decision { return h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(token))) }
	first := ask()
	if first.Outcome != Allow || ask().who != first.who {
		t.Fatal("an unchanged person is put together twice")
	}
	// CVE-2021-41230 of the security cases: a changed claim counts at once.
	h.put(&session.User{ID: "alice", Email: "alice@evil.test"})
	if d := ask(); d.Outcome != Deny || d.who == first.who {
		t.Errorf("after the e-mail changed: %v", d.Outcome)
	}
	h.put(&session.DirectoryUser{ID: "alice", Email: "alice@corp.test"})
	if d := ask(); d.Outcome != Allow {
		t.Errorf("after the directory knew better: %v", d.Outcome)
	}
	h.remove(session.SessionType, "s-alice")
	eventually(t, "a deleted session is over", func() bool { return ask().Outcome == SignIn })
	for i := range 3 {
		if d := ask(); d.Outcome != SignIn {
			t.Errorf("ask %d after the deletion: %v", i, d.Outcome)
		}
	}
}

func TestStripSessionQuery(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "",
		"a=1&b=2":                       "a=1&b=2",
		"pomerium_session=x":            "",
		"a=1&pomerium_session=x&b=;%2f": "a=1&b=;%2f",
		"pomerium%5Fsession=x&c":        "c",
		"pomerium_session&d":            "d",
		"pomerium_session2=x":           "pomerium_session2=x",
		"%70omerium_session=x&%zz=1":    "%zz=1",
		"a=1&&pomerium_session=1&pomerium_session=2": "a=1",
	} {
		if got := StripSessionQuery(in); got != want && !(strings.Contains(in, "&&") && strings.Trim(got, "&") == want) {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	for _, q := range []string{"pomerium_session=x", "a&pomerium%5Fsession=x", "%70omerium_session=x"} {
		found := ""
		eachSessionParam(q, func(v string) { found = v })
		if found != "x" {
			t.Errorf("%q: the token is not found", q)
		}
	}
}

func FuzzCredential(f *testing.F) {
	h := newHouse(f, app)
	token := string(h.person("alice", "alice@corp.test", "app.corp.test"))
	f.Add("__Host-_pomerium="+token, "Pomerium x", "pomerium_session=y")
	f.Add("a; =b;;", "Bearer Pomerium-", "%%%&=")
	f.Add("", "", "")
	f.Fuzz(func(t *testing.T, cookies, authorization, query string) {
		if strings.Contains(cookies+authorization+query, token) {
			return // the good token itself
		}
		v := request("GET", "https://app.corp.test/", "Cookie", cookies, "Authorization", authorization)
		v.query = query
		if d := h.decide(v); d.Outcome == Allow {
			t.Fatalf("let in by %q %q %q", cookies, authorization, query)
		}
	})
}
