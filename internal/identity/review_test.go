package identity

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"postern/internal/identity/issuertest"
	"postern/internal/session"
)

// TestSharedEndpointProvesTheDomain: where every tenant is answered for, a
// claim that any tenant's administrator can have issued proves no address.
func TestSharedEndpointProvesTheDomain(t *testing.T) {
	for name, c := range map[string]struct {
		claims  map[string]any
		tenants []string
		want    string
	}{
		"called verified":     {claims: map[string]any{"email_verified": true}},
		"domain proven":       {claims: map[string]any{"xms_edov": true}, want: "a@corp.com"},
		"proven, then denied": {claims: map[string]any{"xms_edov": true, "email_verified": false}},
		"listed tenant":       {tenants: []string{"t-1"}, want: "a@corp.com"},
		"listed, denied":      {claims: map[string]any{"email_verified": false}, tenants: []string{"t-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			iss, p := azureSetup(t, c.tenants...)
			for k, v := range c.claims {
				iss.User[k] = v
			}
			id, err := exchange(t, p, login(t, iss, p, verifier, nonce))
			if err != nil {
				t.Fatal(err)
			}
			if id.Email != c.want || c.want == "" && len(id.Claims["email"]) > 0 {
				t.Errorf("email %q, claim %v, want %q", id.Email, id.Claims["email"], c.want)
			}
		})
	}
}

// countKeys counts how often the key set is fetched.
type countKeys struct {
	next http.RoundTripper
	n    atomic.Int64
}

func (c *countKeys) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err == nil && !strings.Contains(r.URL.Path, "well-known") && r.Method == http.MethodGet && r.Header.Get("Authorization") == "" {
		c.n.Add(1)
	}
	return resp, err
}

// TestKeysAreFetchedOnce: neither sign-ins nor strangers' tokens make a call
// for keys each.
func TestKeysAreFetchedOnce(t *testing.T) {
	iss := issuertest.New()
	iss.URL = "https://issuer.example.com"
	iss.User = map[string]any{"sub": "u1", "email": "ada@example.com", "email_verified": true}
	count := &countKeys{next: direct{h: iss}}
	p, err := New(Settings{
		Provider: "oidc", URL: iss.URL, ClientID: iss.ClientID, ClientSecret: session.NewSecret([]byte(iss.ClientSecret)),
		AuthenticateURL: "https://auth.example.com",
	}, Deps{Transport: count})
	if err != nil {
		t.Fatal(err)
	}
	var raw string
	for range 5 {
		id, err := exchange(t, p.(*OIDC), login(t, iss, p.(*OIDC), verifier, nonce))
		if err != nil {
			t.Fatal(err)
		}
		raw = string(id.IDToken.Raw)
	}
	for range 20 {
		if _, err := p.(TokenVerifier).VerifyIdentityToken(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
	}
	if n := count.n.Load(); n != 1 {
		t.Errorf("the keys were fetched %d times", n)
	}
}
