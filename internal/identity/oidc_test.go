package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/identity/issuertest"
	"postern/internal/session"
)

// direct carries requests to a handler without a network, so that tests may
// run in a synctest bubble.
type direct struct {
	h     http.Handler
	delay time.Duration
}

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	if d.delay > 0 {
		time.Sleep(d.delay)
	}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	d.h.ServeHTTP(w, r)
	return w.Result(), nil
}

const callback = "https://auth.example.com/oauth2/callback"

func setup(t *testing.T, change func(*Settings)) (*issuertest.Issuer, *OIDC) {
	t.Helper()
	iss := issuertest.New()
	iss.URL = "https://idp.example.com"
	iss.User = map[string]any{"sub": "u1", "name": "Ada", "email": "Ada@example.com", "email_verified": true, "groups": []string{"a", "b"}}
	s := Settings{Provider: "oidc", URL: iss.URL, ClientID: iss.ClientID, ClientSecret: session.NewSecret([]byte(iss.ClientSecret)), AuthenticateURL: "https://auth.example.com"}
	if change != nil {
		change(&s)
	}
	p, err := New(s, Deps{Transport: direct{h: iss}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return iss, p.(*OIDC)
}

// login walks the browser's way and gives the answer's parameters.
func login(t *testing.T, iss *issuertest.Issuer, p Provider, verifier, nonce string) url.Values {
	t.Helper()
	to, err := p.AuthURL(t.Context(), AuthRequest{CallbackURL: callback, State: "st", Nonce: nonce, Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	iss.ServeHTTP(w, httptest.NewRequest("GET", to, nil))
	u, err := url.Parse(w.Header().Get("Location"))
	if err != nil || u.Query().Get("code") == "" {
		t.Fatalf("no code: %d %s %v", w.Code, w.Body, err)
	}
	return u.Query()
}

const verifier, nonce = "verifier-verifier-verifier-verifier-verifier", "nonce"

func exchange(t *testing.T, p Provider, q url.Values) (*Identity, error) {
	t.Helper()
	return p.Exchange(t.Context(), Return{CallbackURL: callback, Code: q.Get("code"), Issuer: q.Get("iss"), Nonce: nonce, Verifier: verifier})
}

func TestExchange(t *testing.T) {
	iss, p := setup(t, nil)
	iss.People["u1"] = map[string]any{"sub": "u1", "name": "Ada L.", "department": map[string]any{"name": "x"}}
	id, err := exchange(t, p, login(t, iss, p, verifier, nonce))
	if err != nil {
		t.Fatal(err)
	}
	if id.UserID != "u1" || id.Email != "ada@example.com" || id.Name != "Ada L." || id.Issuer != iss.URL || id.Subject != "u1" {
		t.Errorf("identity %+v", id)
	}
	if len(id.Claims["groups"]) != 2 || id.Claims.String("department.name") != "x" || id.Claims.String("name") != "Ada L." {
		t.Errorf("claims %v", id.Claims)
	}
	if id.OAuthToken.RefreshToken == "" || id.IDToken.Raw == "" || id.IDToken.ExpiresAt.IsZero() || id.OAuthToken.ExpiresAt.IsZero() {
		t.Error("tokens are incomplete")
	}
	q := iss.LastAuth
	if q.Get("scope") != "openid profile email offline_access" || q.Get("code_challenge_method") != "S256" || q.Get("nonce") != nonce {
		t.Errorf("authorization request %v", q)
	}
}

// security-cases: CVE-2024-23647, claim mutation matrix, PKCE, nonce, iss.
func TestExchangeRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		before func(*issuertest.Issuer)
		ret    func(*Return)
	}{
		"wrong nonce":          {before: func(i *issuertest.Issuer) { i.WrongNonce = true }},
		"wrong audience":       {before: func(i *issuertest.Issuer) { i.WrongAudience = true }},
		"UserInfo of another":  {before: func(i *issuertest.Issuer) { i.WrongSubject = true }},
		"other iss in answer":  {ret: func(r *Return) { r.Issuer = "https://evil.example" }},
		"iss missing":          {before: func(i *issuertest.Issuer) { i.IssSupported = true }},
		"no verifier":          {ret: func(r *Return) { r.Verifier = "" }},
		"no nonce":             {ret: func(r *Return) { r.Nonce = "" }},
		"wrong verifier":       {ret: func(r *Return) { r.Verifier += "x" }},
		"wrong code":           {ret: func(r *Return) { r.Code = "x" }},
		"wrong callback":       {ret: func(r *Return) { r.CallbackURL += "/x" }},
		"token of other iss":   {before: mangle("iss", "https://evil.example")},
		"token expired":        {before: mangle("exp", time.Now().Add(-time.Hour).Unix())},
		"token without exp":    {before: mangle("exp", nil)},
		"token without sub":    {before: mangle("sub", "")},
		"several, no azp":      {before: mangle("aud", []string{"client", "other"})},
		"at_hash of another":   {before: mangle("at_hash", "AAAAAAAAAAAAAAAAAAAAAA")},
		"control character":    {before: mangle("sub", "a\nb")},
		"looks like a local":   {before: func(i *issuertest.Issuer) { i.User["sub"] = "local/ada" }},
		"not yet valid by far": {before: mangle("nbf", time.Now().Add(time.Hour).Unix())},
	} {
		t.Run(name, func(t *testing.T) {
			iss, p := setup(t, nil)
			if c.before != nil {
				c.before(iss)
			}
			q := login(t, iss, p, verifier, nonce)
			ret := Return{CallbackURL: callback, Code: q.Get("code"), Issuer: q.Get("iss"), Nonce: nonce, Verifier: verifier}
			if c.ret != nil {
				c.ret(&ret)
			}
			id, err := p.Exchange(t.Context(), ret)
			if !IsPermanent(err) {
				t.Fatalf("got %v, %v; want a permanent refusal", id, err)
			}
		})
	}
}

func mangle(claim string, value any) func(*issuertest.Issuer) {
	return func(i *issuertest.Issuer) {
		i.Mangle = func(c map[string]any) {
			if value == nil {
				delete(c, claim)
			} else {
				c[claim] = value
			}
		}
	}
}

func TestIssuerParameterAccepted(t *testing.T) {
	iss, p := setup(t, nil)
	iss.IssSupported, iss.IssParameter = true, iss.URL
	if _, err := exchange(t, p, login(t, iss, p, verifier, nonce)); err != nil {
		t.Fatal(err)
	}
}

// security-cases: CVE-2026-71326. Parallel logins never cross.
func TestParallelLoginsNeverCross(t *testing.T) {
	iss, p := setup(t, nil)
	codes := make([]url.Values, 40)
	for i := range codes {
		iss.User = map[string]any{"sub": fmt.Sprint("u", i), "email": fmt.Sprintf("u%d@example.com", i)}
		codes[i] = login(t, iss, p, verifier, nonce)
	}
	var wg sync.WaitGroup
	for i, q := range codes {
		wg.Go(func() {
			id, err := exchange(t, p, q)
			if err != nil || id.UserID != fmt.Sprint("u", i) || id.Email != fmt.Sprintf("u%d@example.com", i) {
				t.Errorf("login %d became %+v, %v", i, id, err)
			}
		})
	}
	wg.Wait()
}

// security-cases: same sub at another IdP; unverified, two-@ e-mail.
func TestPersonRules(t *testing.T) {
	for name, c := range map[string]struct {
		claims map[string]any
		set    func(*Settings)
		email  string
		user   string
	}{
		"verified":           {claims: map[string]any{"email": "A@corp.com", "email_verified": true}, email: "a@corp.com", user: "u1"},
		"verified as text":   {claims: map[string]any{"email": "a@corp.com", "email_verified": "true"}, email: "a@corp.com", user: "u1"},
		"unverified":         {claims: map[string]any{"email": "a@corp.com", "email_verified": false}, user: "u1"},
		"unverified as text": {claims: map[string]any{"email": "a@corp.com", "email_verified": "false"}, user: "u1"},
		"verified is null":   {claims: map[string]any{"email": "a@corp.com", "email_verified": nil}, user: "u1"},
		"not said":           {claims: map[string]any{"email": "a@corp.com"}, email: "a@corp.com", user: "u1"},
		"two @":              {claims: map[string]any{"email": "a@evil@corp.com", "email_verified": true}, user: "u1"},
		"list":               {claims: map[string]any{"email": []any{"a@corp.com"}, "email_verified": true}, user: "u1"},
		"trusted domain":     {claims: map[string]any{"email": "a@corp.com", "email_verified": false}, set: func(s *Settings) { s.TrustedEmailDomains = []string{"corp.com"} }, email: "a@corp.com", user: "u1"},
		"other trusted":      {claims: map[string]any{"email": "a@corp.com.evil", "email_verified": false}, set: func(s *Settings) { s.TrustedEmailDomains = []string{"corp.com"} }, user: "u1"},
		"further provider":   {claims: map[string]any{}, set: func(s *Settings) { s.Name = "partner" }, user: "partner/u1"},
	} {
		t.Run(name, func(t *testing.T) {
			iss, p := setup(t, c.set)
			c.claims["sub"] = "u1"
			iss.User = c.claims
			id, err := exchange(t, p, login(t, iss, p, verifier, nonce))
			if err != nil {
				t.Fatal(err)
			}
			if id.Email != c.email || id.UserID != c.user {
				t.Errorf("email %q user %q, want %q %q", id.Email, id.UserID, c.email, c.user)
			}
			if id.Email == "" && len(id.Claims["email"]) > 0 {
				t.Errorf("the claim shows an address that does not count: %v", id.Claims["email"])
			}
		})
	}
}

func azureSetup(t *testing.T, tenants ...string) (*issuertest.Issuer, *OIDC) {
	iss := issuertest.New()
	iss.URL = "https://login.example.com/common/v2.0"
	iss.Metadata = map[string]any{"issuer": "https://login.example.com/{tenantid}/v2.0"}
	iss.User = map[string]any{"sub": "pairwise", "oid": "object-id", "tid": "t-1", "email": "a@corp.com"}
	iss.Mangle = func(c map[string]any) { c["iss"] = "https://login.example.com/" + fmt.Sprint(c["tid"]) + "/v2.0" }
	p, err := New(Settings{
		Provider: "azure", URL: iss.URL, ClientID: iss.ClientID, ClientSecret: session.NewSecret([]byte(iss.ClientSecret)),
		AuthenticateURL: "https://auth.example.com", AllowedTenants: tenants,
	}, Deps{Transport: direct{h: iss}})
	if err != nil {
		t.Fatal(err)
	}
	return iss, p.(*OIDC)
}

func TestAzure(t *testing.T) {
	iss, p := azureSetup(t)
	id, err := exchange(t, p, login(t, iss, p, verifier, nonce))
	if err != nil || id.UserID != "object-id" || id.Email != "" || id.Issuer != "https://login.example.com/t-1/v2.0" {
		t.Fatalf("any tenant, unproven address: %+v %v", id, err)
	}
	if iss.LastAuth.Get("prompt") != "select_account" {
		t.Error("prompt=select_account is not sent")
	}
	iss, p = azureSetup(t)
	iss.User["xms_edov"] = true
	if id, err := exchange(t, p, login(t, iss, p, verifier, nonce)); err != nil || id.Email != "a@corp.com" {
		t.Errorf("proven domain: %+v %v", id, err)
	}
	iss, p = azureSetup(t, "t-1")
	if id, err := exchange(t, p, login(t, iss, p, verifier, nonce)); err != nil || id.Email != "a@corp.com" {
		t.Errorf("listed tenant: %+v %v", id, err)
	}
	iss, p = azureSetup(t, "t-2")
	if _, err := exchange(t, p, login(t, iss, p, verifier, nonce)); !IsPermanent(err) {
		t.Errorf("a tenant that is not listed signed in: %v", err)
	}
	for _, bad := range []string{"https://evil.example/t-1/v2.0", "https://login.example.com/t-2/v2.0", "https://login.example.com/{tenantid}/v2.0"} {
		iss, p = azureSetup(t)
		iss.Mangle = func(c map[string]any) { c["iss"] = bad }
		if _, err := exchange(t, p, login(t, iss, p, verifier, nonce)); !IsPermanent(err) {
			t.Errorf("issuer %q was accepted: %v", bad, err)
		}
	}
	iss, p = azureSetup(t)
	delete(iss.User, "oid")
	if _, err := exchange(t, p, login(t, iss, p, verifier, nonce)); !IsPermanent(err) {
		t.Errorf("without oid: %v", err)
	}
}

func TestRefresh(t *testing.T) {
	iss, p := setup(t, nil)
	id, err := exchange(t, p, login(t, iss, p, verifier, nonce))
	if err != nil {
		t.Fatal(err)
	}
	next, err := p.Refresh(t.Context(), id.OAuthToken, "u1")
	if err != nil || next.OAuthToken.RefreshToken == id.OAuthToken.RefreshToken || next.IDToken == nil {
		t.Fatalf("refresh: %+v %v", next, err)
	}
	if _, err := p.Refresh(t.Context(), id.OAuthToken, "u1"); !IsPermanent(err) {
		t.Errorf("a spent refresh token: %v", err)
	}
	if _, err := p.Refresh(t.Context(), next.OAuthToken, "u2"); !IsPermanent(err) {
		t.Errorf("an identity token about somebody else: %v", err)
	}
	if _, err := p.Refresh(t.Context(), &session.OAuthToken{}, "u1"); !IsPermanent(err) {
		t.Errorf("no refresh token: %v", err)
	}
}

// wire-contract.md §15, trap 20: permanent and temporary are told apart.
func TestRefreshClassification(t *testing.T) {
	for _, c := range []struct {
		code   string
		status int
		want   Kind
	}{
		{"invalid_grant", 400, Permanent}, {"access_denied", 403, Permanent}, {"unauthorized_client", 400, Permanent},
		{"invalid_client", 401, Misconfigured}, {"temporarily_unavailable", 400, Temporary}, {"server_error", 500, Temporary},
		{"invalid_grant", 503, Temporary}, {"slow_down", 429, Temporary}, {"something_new", 400, Temporary},
	} {
		iss, p := setup(t, nil)
		id, err := exchange(t, p, login(t, iss, p, verifier, nonce))
		if err != nil {
			t.Fatal(err)
		}
		iss.RefreshError, iss.RefreshStatus = c.code, c.status
		_, err = p.Refresh(t.Context(), id.OAuthToken, "u1")
		var e *Error
		if !errors.As(err, &e) || e.Kind != c.want {
			t.Errorf("%s with %d: %v, want kind %d", c.code, c.status, err, c.want)
		}
		iss.RefreshError = ""
		iss.Down = true
		if _, err = p.Refresh(t.Context(), id.OAuthToken, "u1"); !errors.As(err, &e) || e.Kind != Temporary {
			t.Errorf("a dead provider: %v", err)
		}
	}
	// A page of a firewall is not the provider's word.
	iss, p := setup(t, nil)
	id, _ := exchange(t, p, login(t, iss, p, verifier, nonce))
	p.client = newClient(direct{h: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "<html>forbidden</html>", http.StatusForbidden)
	})})
	if _, err := p.Refresh(t.Context(), id.OAuthToken, "u1"); err == nil || IsPermanent(err) {
		t.Errorf("a firewall's page: %v", err)
	}
}

func TestRevokeAndLogout(t *testing.T) {
	iss, p := setup(t, nil)
	id, err := exchange(t, p, login(t, iss, p, verifier, nonce))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Revoke(t.Context(), id.OAuthToken); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(iss.Revoked, " "); got != string(id.OAuthToken.RefreshToken)+" "+string(id.OAuthToken.AccessToken) {
		t.Errorf("revoked %s", got)
	}
	raw, err := p.LogoutURL(t.Context(), id.IDToken.Raw, "https://auth.example.com/.pomerium/signed_out")
	u, _ := url.Parse(raw)
	if err != nil || u.Host != "idp.example.com" || u.Query().Get("id_token_hint") != string(id.IDToken.Raw) ||
		u.Query().Get("client_id") != "client" || u.Query().Get("post_logout_redirect_uri") != "https://auth.example.com/.pomerium/signed_out" {
		t.Errorf("logout at %s, %v", raw, err)
	}
}

// A provider that is down is no error at the start; when it is back it works,
// and meanwhile a crowd costs it one call per pause.
func TestProviderDownAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		var mu sync.Mutex
		iss := issuertest.New()
		iss.URL, iss.Down = "https://idp.example.com", true
		counting := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			calls++
			mu.Unlock()
			iss.ServeHTTP(w, r)
		})
		pr, err := New(Settings{Provider: "oidc", URL: iss.URL, ClientID: "client"}, Deps{Transport: direct{counting, 100 * time.Millisecond}})
		if err != nil {
			t.Fatal(err)
		}
		p := pr.(*OIDC)
		ask := func() error {
			_, err := p.AuthURL(t.Context(), AuthRequest{CallbackURL: callback, State: "s", Nonce: nonce, Verifier: verifier})
			return err
		}
		crowd := func() {
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() {
					if ask() == nil {
						t.Error("a dead provider answered")
					}
				})
			}
			wg.Wait()
		}
		crowd()
		crowd()
		if calls != 1 {
			t.Errorf("two crowds made %d calls, want 1", calls)
		}
		for range 20 {
			time.Sleep(time.Second)
			_ = ask()
		}
		if calls > 8 {
			t.Errorf("%d calls in 20 seconds: no pause grows", calls)
		}
		iss.Lock()
		iss.Down = false
		iss.Unlock()
		time.Sleep(longestPause + time.Second)
		if err := ask(); err != nil {
			t.Errorf("the provider is back: %v", err)
		}
		// It dies again: what is known still serves.
		iss.Lock()
		iss.Down = true
		iss.Unlock()
		time.Sleep(2 * discoveryLife)
		for range 3 {
			if err := ask(); err != nil {
				t.Errorf("known metadata: %v", err)
			}
			time.Sleep(time.Minute)
		}
	})
}

// security-cases: CVE-2026-26998. Every read is capped.
func TestAnswersAreCapped(t *testing.T) {
	endless := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(`{"issuer":"`))
		b := []byte(strings.Repeat("x", 1<<16))
		for range 64 {
			w.Write(b)
		}
	})
	p, err := New(Settings{Provider: "oidc", URL: "https://idp.example.com", ClientID: "c"}, Deps{Transport: direct{h: endless}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.AuthURL(t.Context(), AuthRequest{})
	if err == nil || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("four megabytes of metadata: %v", err)
	}
	if len(err.Error()) > 1000 {
		t.Errorf("the error is %d bytes long", len(err.Error()))
	}
}

func TestSettings(t *testing.T) {
	for name, c := range map[string]struct {
		s    Settings
		want string
	}{
		"unknown":      {Settings{Provider: "myspace"}, "not known"},
		"later":        {Settings{Provider: "github"}, "not yet in this version"},
		"no url":       {Settings{Provider: "okta", ClientID: "c"}, "idp_provider_url is missing"},
		"bad url":      {Settings{Provider: "oidc", URL: "https://u:p@x", ClientID: "c"}, "idp_provider_url"},
		"no client":    {Settings{Provider: "google"}, "idp_client_id is missing"},
		"core param":   {Settings{Provider: "google", ClientID: "c", Params: map[string]string{"redirect_uri": "x"}}, "redirect_uri"},
		"local nohost": {Settings{Provider: "local"}, "sign-in host"},
	} {
		if _, err := New(c.s, Deps{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, name := range Names() {
		p, err := New(Settings{Provider: name, URL: "https://idp.example.com", ClientID: "c", AuthenticateURL: "https://a"}, Deps{})
		if err != nil || p.ID() == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, _ := New(Settings{Provider: "google", ClientID: "c", ClientSecret: session.NewSecret([]byte("1"))}, Deps{})
	b, _ := New(Settings{Provider: "google", ClientID: "c", ClientSecret: session.NewSecret([]byte("2"))}, Deps{})
	c, _ := New(Settings{Provider: "google", ClientID: "d"}, Deps{})
	if a.ID() != b.ID() || a.ID() == c.ID() {
		t.Error("the provider id depends on the secret, or not on the client")
	}
	if got := a.(*OIDC).params["access_type"]; got != "offline" {
		t.Errorf("google's access_type is %q", got)
	}
	d, _ := New(Settings{Provider: "google", ClientID: "c", Params: map[string]string{}}, Deps{})
	if len(d.(*OIDC).params) != 0 {
		t.Error("{} does not clear the defaults")
	}
}

func TestVerifyTokens(t *testing.T) {
	iss, p := setup(t, nil)
	id, err := exchange(t, p, login(t, iss, p, verifier, nonce))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := p.VerifyIdentityToken(context.Background(), string(id.IDToken.Raw)); err != nil || c["sub"] != "u1" {
		t.Errorf("identity token: %v %v", c, err)
	}
	if c, err := p.VerifyAccessToken(context.Background(), string(id.OAuthToken.AccessToken)); err != nil || c["sub"] != "u1" {
		t.Errorf("access token: %v %v", c, err)
	}
	for _, bad := range []string{"", "x", string(id.OAuthToken.AccessToken), issuertest.New().Sign(map[string]any{"iss": iss.URL, "aud": "client", "sub": "u1", "exp": 1 << 40})} {
		if _, err := p.VerifyIdentityToken(context.Background(), bad); !IsPermanent(err) {
			t.Errorf("identity token %.10q: %v", bad, err)
		}
	}
	if _, err := p.VerifyAccessToken(context.Background(), "x"); !IsPermanent(err) {
		t.Errorf("access token: %v", err)
	}
}
