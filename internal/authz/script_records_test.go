package authz

import (
	"testing"
	"time"

	"postern/internal/session"
)

func TestScriptsSeeNoCredentials(t *testing.T) {
	names := session.NewCookieNames("", "")
	for header, want := range map[string]string{
		"a=1; " + names.Session + "=secret; b=2":            "a=1; b=2",
		names.Session + "=secret":                           "",
		names.Nonce + "=secret;" + names.SignIn + "=secret": "",
		"": "",
	} {
		if got := foreignCookies(header, &names); got != want {
			t.Errorf("%q: %q", header, got)
		}
	}
	for query, want := range map[string]string{
		"a=1&pomerium_session=secret&b=2":   "a=1&b=2",
		"a=1&pomerium%5Fsession=secret":     "a=1",
		"pomerium_sessions=x&a=%20":         "pomerium_sessions=x&a=%20",
		"pomerium_session=secret&a=1&a=1&&": "a=1&a=1&&",
	} {
		if got := foreignQuery(query); got != want {
			t.Errorf("%q: %q", query, got)
		}
	}
}

func TestScriptRecords(t *testing.T) {
	s := &session.Session{ID: "s1", UserID: "u1", ExpiresAt: time.Now(),
		Claims:     session.Claims{"teamName": {"core"}, "raw": {"x"}},
		IDToken:    &session.IDToken{Issuer: "https://idp", Raw: "secret"},
		OAuthToken: &session.OAuthToken{AccessToken: "secret"}}
	rec, err := s.Record()
	if err != nil {
		t.Fatal(err)
	}
	view, err := scriptView(rec.Data)
	if err != nil {
		t.Fatal(err)
	}
	if view["user_id"] != "u1" || view["oauth_token"] != nil || view["id_token"].(map[string]any)["raw"] != nil {
		t.Errorf("%v", view)
	}
	claims := view["claims"].(map[string]any)
	if claims["teamName"] == nil || claims["raw"] == nil {
		t.Errorf("names of claims are changed: %v", claims)
	}
}
