package identity

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/identity/issuertest"
)

// CVE-2025-24806 and CVE-2026-47203: another spelling of an account is the
// same account, for the delay as for the sign-in.
func TestCVE_2025_24806_OneSubject(t *testing.T) {
	spellings := []string{"ada@example.com", "ADA@EXAMPLE.COM", "Ada@example.com", "ada@Example.Com", "aDa@eXample.com"}
	for _, spelling := range spellings {
		id, err := localProvider(t, 2).CheckPassword(t.Context(), spelling, "correct horse", "203.0.113.1")
		if err != nil || id.UserID != "local/ada" || id.Email != "ada@example.com" {
			t.Errorf("%s: %+v %v", spelling, id, err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		l := localProvider(t, 2)
		for i := range 3 * freePair {
			_, _ = l.CheckPassword(t.Context(), spellings[i%len(spellings)], "guess", "203.0.113.1")
		}
		for _, spelling := range spellings {
			var wait *Throttled
			if _, err := l.CheckPassword(t.Context(), spelling, "correct horse", "203.0.113.1"); !errors.As(err, &wait) {
				t.Errorf("%s: an alias evades the delay: %v", spelling, err)
			}
		}
	})
	for _, other := range []string{" ada@example.com", "ada@example.com ", "ada@example.com.", "ada@@example.com", "ada@example.com@evil.test", "ada%40example.com", "аda@example.com", "\"ada\"@example.com", "ada+x@example.com", "ada"} {
		if _, err := localProvider(t, 2).CheckPassword(t.Context(), other, "correct horse", "203.0.113.1"); !errors.Is(err, ErrPassword) {
			t.Errorf("%q signs in: %v", other, err)
		}
	}
}

// CVE-2026-55669 and GHSA-wxg7-w2v3-w38g: every claim of an identity token
// that says for whom, by whom and until when is checked, for programs' tokens
// as well as at sign-in.
func TestCVE_2026_55669_ClaimMutations(t *testing.T) {
	now := time.Now().Unix()
	for name, change := range map[string]func(map[string]any){
		"other aud":       func(c map[string]any) { c["aud"] = "other" },
		"aud list":        func(c map[string]any) { c["aud"] = []string{"other"} },
		"no aud":          func(c map[string]any) { delete(c, "aud") },
		"empty aud":       func(c map[string]any) { c["aud"] = "" },
		"aud with blank":  func(c map[string]any) { c["aud"] = "client " },
		"several, no azp": func(c map[string]any) { c["aud"] = []string{"client", "other"} },
		"other azp":       func(c map[string]any) { c["aud"] = []string{"client", "other"}; c["azp"] = "other" },
		"expired":         func(c map[string]any) { c["exp"] = now - 3600 },
		"no exp":          func(c map[string]any) { delete(c, "exp") },
		"exp as text":     func(c map[string]any) { c["exp"] = "never" },
		"not yet":         func(c map[string]any) { c["nbf"] = now + 3600 },
		"other iss":       func(c map[string]any) { c["iss"] = "https://evil.example" },
		"iss prefix":      func(c map[string]any) { c["iss"] = "https://idp.example.com.evil.test" },
		"iss with slash":  func(c map[string]any) { c["iss"] = "https://idp.example.com/" },
		"no iss":          func(c map[string]any) { delete(c, "iss") },
	} {
		iss, p := setup(t, nil)
		claims := map[string]any{"iss": iss.URL, "aud": "client", "sub": "u1", "exp": now + 3600, "iat": now}
		if _, err := p.VerifyIdentityToken(t.Context(), iss.Sign(claims)); err != nil {
			t.Fatalf("the unchanged token: %v", err)
		}
		change(claims)
		if got, err := p.VerifyIdentityToken(t.Context(), iss.Sign(claims)); !IsPermanent(err) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
		iss.Mangle = change
		q := login(t, iss, p, verifier, nonce)
		if got, err := exchange(t, p, q); !IsPermanent(err) {
			t.Errorf("%s at sign-in: got %v, %v", name, got, err)
		}
	}
	// A signature by a key that is not the provider's.
	iss, p := setup(t, nil)
	forged := issuertest.New().Sign(map[string]any{"iss": iss.URL, "aud": "client", "sub": "u1", "exp": now + 3600, "iat": now})
	if _, err := p.VerifyIdentityToken(t.Context(), forged); !IsPermanent(err) {
		t.Errorf("signed by a stranger: %v", err)
	}
}
