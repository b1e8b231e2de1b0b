package keys

import (
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"postern/internal/server/servertest"
	"postern/internal/session"
)

const identified = "pass_identity_headers: true\n"

// claims are what the assertion says of Ada, verified by nobody here.
func claims(w *world) (map[string]any, error) {
	_, s, err := w.signedIn()
	if err != nil {
		return nil, err
	}
	return claimsOf(s)
}

func claimsOf(s servertest.Seen) (map[string]any, error) {
	parts := strings.Split(s.Header("X-Pomerium-Jwt-Assertion"), ".")
	if len(parts) != 3 {
		return nil, errors.New("there is no assertion")
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, err
	}
	var c map[string]any
	return c, json.Unmarshal(b, &c)
}

func claim(name, want string) func(w *world) error {
	return func(w *world) error {
		c, err := claims(w)
		return errors.Join(err, is(fmt.Sprint(c[name]), want))
	}
}

// published are the keys at the JWKS endpoint.
func published(w *world) (jose.JSONWebKeySet, error) {
	var set jose.JSONWebKeySet
	page, err := w.Agent().Request("GET", app+"/.well-known/pomerium/jwks.json")
	if err != nil {
		return set, err
	}
	return set, json.Unmarshal([]byte(page.Body), &set)
}

// publishes tells whether the key derived from a secret is among them.
func publishes(secret string) func(w *world) error {
	return func(w *world) error {
		raw, err := base64.StdEncoding.DecodeString(secret)
		if err != nil {
			return err
		}
		keys, err := session.NewKeys(session.NewSecret(raw), nil, session.Secret{})
		if err != nil {
			return err
		}
		return hasKey(w, &keys.SigningKeys()[0].PublicKey)
	}
}

func hasKey(w *world, want *ecdsa.PublicKey) error {
	set, err := published(w)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(set.Keys, func(k jose.JSONWebKey) bool { p, ok := k.Key.(*ecdsa.PublicKey); return ok && want.Equal(p) }) {
		return fmt.Errorf("the key is not among the %d published", len(set.Keys))
	}
	return nil
}

const (
	otherSecret = "QAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	noSecret    = "shared_secret: UAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
)

// groupsAre compares the groups that the assertion names: ids, then names.
func groupsAre(want string) func(w *world) error { return claim("groups", want) }

// Keys of what upstreams are told, and of secrets (§2.4, §2.7, §3.11).
var identityExamples = []example{
	{keys: "pass_identity_headers", config: `pass_identity_headers: true # shown` + signedInRoute(), shows: claim("email", servertest.Ada.Email)},
	{keys: "routes[].pass_identity_headers", config: signedInRoute(`pass_identity_headers: true # shown`), shows: claim("email", servertest.Ada.Email)},
	{keys: "jwt_claims_headers", config: identified + `jwt_claims_headers: {X-Team: team} # shown` + signedInRoute(), shows: func(w *world) error {
		_, s, err := w.signedIn()
		return errors.Join(err, is(s.Header("X-Team"), "stars"))
	}},
	{keys: "jwt_issuer_format", config: identified + `jwt_issuer_format: uri # shown` + signedInRoute(), shows: claim("iss", "https://app.localhost/")},
	{keys: "routes[].jwt_issuer_format", config: identified + signedInRoute(`jwt_issuer_format: uri # shown`), shows: claim("iss", "https://app.localhost/")},
	{keys: "jwt_groups_filter", config: identified + `jwt_groups_filter: [staff] # shown` + signedInRoute(), shows: groupsAre("[staff]")},
	{keys: "routes[].jwt_groups_filter", config: identified + signedInRoute(`jwt_groups_filter: [astronomy] # shown`), shows: groupsAre("[astronomy]")},
	{keys: "assertion_reuse", config: identified + `assertion_reuse: 0s # shown` + signedInRoute(), shows: signsAfresh},
	{keys: "routes[].assertion_reuse", config: identified + signedInRoute(`assertion_reuse: 0s # shown`), shows: signsAfresh},
	{keys: "signing_key", config: `signing_key: @SIGNING@ # shown`, shows: func(w *world) error { return hasKey(w, &made().signing.PublicKey) }},
	{keys: "signing_key_file", config: `signing_key_file: @DIR@/signing.pem # shown`, shows: func(w *world) error { return hasKey(w, &made().signing.PublicKey) }},
	{keys: "shared_secret", config: "shared_secret: " + otherSecret + " # shown\n" + strings.TrimSpace(noSecret) + " # instead", shows: publishes(otherSecret)},
	{keys: "shared_secret_file", config: noSecret + "shared_secret_file: @DIR@/secret # shown", with: secretFile, shows: publishes(otherSecret)},
	{keys: "shared_secret_previous", config: noSecret + "shared_secret_previous: " + otherSecret + " # shown", shows: publishes(otherSecret)},
	{keys: "shared_secret_previous_file", config: noSecret + "shared_secret_previous_file: @DIR@/secret # shown", with: secretFile, shows: publishes(otherSecret)},
}

// signsAfresh tells whether two requests carry two assertions.
func signsAfresh(w *world) error {
	a, s, err := w.signedIn()
	if err != nil {
		return err
	}
	page, err := a.Request("GET", user)
	if err != nil {
		return err
	}
	second, err := page.Echo()
	if err != nil {
		return err
	}
	one, two := s.Header("X-Pomerium-Jwt-Assertion"), second.Header("X-Pomerium-Jwt-Assertion")
	if one == "" || one == two {
		return errors.New("the assertion is used again")
	}
	return nil
}

func secretFile(t *testing.T, o *servertest.Options) { o.Files["secret"] = otherSecret + "\n" }
