package authz

import (
	"encoding/base64"
	"encoding/json"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"postern/internal/exchange"
	"postern/internal/route"
	"postern/internal/session"
)

// verify checks an assertion the way an application does: with the key set
// that is served, and nothing else.
func verify(t testing.TB, h *house, jwt string) (claims map[string]any, header jose.Header) {
	t.Helper()
	w := httptest.NewRecorder()
	h.engine.Endpoints(h.env).Keys(w, httptest.NewRequest("GET", "/.well-known/pomerium/jwks.json", nil), nil)
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(w.Body.Bytes(), &set); err != nil {
		t.Fatal(err)
	}
	tok, err := jose.ParseSignedCompact(jwt, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	header = tok.Signatures[0].Header
	keys := set.Key(header.KeyID)
	if len(keys) != 1 || keys[0].Use != "sig" || keys[0].Algorithm != header.Algorithm {
		t.Fatalf("key %q: %d in the set", header.KeyID, len(keys))
	}
	payload, err := tok.Verify(keys[0].Key)
	if err != nil {
		t.Fatalf("the signature does not verify: %v", err)
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return claims, header
}

func passing(o *Options) { o.Config.PassIdentityHeaders = yes() }

func TestAssertion(t *testing.T) {
	h := newHouse(t, app, passing, func(o *Options) {
		o.Config.JWTClaimsHeaders = map[string]string{
			"X-Email": "email", "X-Team": "team", "X-Groups": "groups", "X-None": "none", "X-Bad": "bad", "X-Iss": "iss",
		}
	})
	h.put(&session.DirectoryGroup{ID: "g1", Name: "Engineers"}, &session.DirectoryGroup{ID: "g3"})
	s := &session.Session{ID: "s1", UserID: "u1", ExpiresAt: time.Now().Add(time.Hour), IssuedAt: time.Now(),
		Claims: session.Claims{"name": {"Ann", "Lee"}, "team": {"red", 7.0, true}, "bad": {"a\r\nX-Admin: 1"}, "sub": {"admin"}}}
	h.put(&session.User{ID: "u1", Email: "a@corp.test", Name: "User Ann"}, s, &session.DirectoryUser{ID: "u1", GroupIDs: []string{"g1", "g2", "g3"}})
	v := request("GET", "https://app.corp.test/", "Cookie", cookie(h.handle("s1", "u1", "app.corp.test")))
	before := time.Now().Unix()
	d := h.decide(v)
	if d.Outcome != Allow {
		t.Fatalf("%v %v", d.Outcome, d.Err)
	}
	jwt := d.field(HeaderAssertion)
	claims, header := verify(t, h, jwt)
	if header.Algorithm != "ES256" || header.ExtraHeaders["typ"] != "JWT" || len(header.KeyID) != 64 {
		t.Errorf("header %+v", header)
	}
	iat, exp := int64(claims["iat"].(float64)), int64(claims["exp"].(float64))
	if iat < before || iat > time.Now().Unix() || exp != iat+300 {
		t.Errorf("iat %d exp %d", iat, exp)
	}
	if jti := claims["jti"].(string); len(jti) != 36 {
		t.Errorf("jti %q", jti)
	}
	for _, k := range []string{"iat", "exp", "jti"} {
		delete(claims, k)
	}
	got, _ := json.Marshal(claims)
	const want = `{"aud":"app.corp.test","bad":"a\r\nX-Admin: 1","email":"a@corp.test","groups":["g1","g2","g3","Engineers"],` +
		`"iss":"app.corp.test","name":"Ann,Lee","sid":"s1","sub":"u1","team":"red,7,true","user":"u1"}`
	if string(got) != want {
		t.Errorf("claims\n got %s\nwant %s", got, want)
	}
	for name, want := range map[string]string{"X-Email": "a@corp.test", "X-Team": "red,7,true", "X-Groups": "g1,g2,g3,Engineers",
		"X-None": "", "X-Bad": "", "X-Iss": "app.corp.test"} {
		if !d.has(name) || d.field(name) != want {
			t.Errorf("%s: present %v, %q, want %q", name, d.has(name), d.field(name), want)
		}
	}
	if again := h.decide(v).field(HeaderAssertion); again != jwt {
		t.Error("a young assertion is signed anew")
	}
	if a, err := d.Assertion(); err != nil || a != jwt {
		t.Errorf("the template's assertion differs: %v", err)
	}
}

func TestAssertionEmptyIdentity(t *testing.T) {
	h := newHouse(t, []routeSpec{{from: "https://open.corp.test", policy: `allow: {or: [{accept: true}]}`}}, passing)
	d := h.decide(request("GET", "https://open.corp.test/"))
	claims, _ := verify(t, h, d.field(HeaderAssertion))
	for _, k := range []string{"sub", "user", "email", "sid", "name"} {
		if claims[k] != "" {
			t.Errorf("%s = %v, want empty", k, claims[k])
		}
	}
	raw := strings.Split(d.field(HeaderAssertion), ".")[1]
	if b, _ := base64.RawURLEncoding.DecodeString(raw); !strings.Contains(string(b), `"groups":[]`) {
		t.Errorf("groups is not []: %s", b)
	}
}

func TestAssertionFallbacks(t *testing.T) {
	h := newHouse(t, []routeSpec{{from: "https://app.corp.test", policy: `allow: {or: [{authenticated_user: true}]}`}}, passing)
	h.put(&session.User{ID: "u", Email: "user@corp.test", Name: "From User", Claims: session.Claims{"groups": {"ignored"}}},
		&session.Session{ID: "s", UserID: "u", ExpiresAt: time.Now().Add(time.Hour), Claims: session.Claims{"groups": {"a", "b"}}})
	v := request("GET", "https://app.corp.test/", "Cookie", cookie(h.handle("s", "u", "app.corp.test")))
	claims, _ := verify(t, h, h.decide(v).field(HeaderAssertion))
	if got, _ := json.Marshal(claims["groups"]); string(got) != `["a","b"]` {
		t.Errorf("without directory groups: %s", got)
	}
	if claims["name"] != "From User" || claims["email"] != "user@corp.test" {
		t.Errorf("name %v, email %v", claims["name"], claims["email"])
	}
	h.put(&session.DirectoryUser{ID: "u", Email: "dir@corp.test", GroupIDs: []string{"g"}})
	claims, _ = verify(t, h, h.decide(v).field(HeaderAssertion))
	if got, _ := json.Marshal(claims["groups"]); string(got) != `["g"]` || claims["email"] != "dir@corp.test" {
		t.Errorf("with a directory: groups %s, email %v", got, claims["email"])
	}
}

// TestCachedAssertion: "cached assertion" of the security cases, and
// CVE-2021-32701.
func TestCachedAssertion(t *testing.T) {
	specs := []routeSpec{
		{from: "https://*.corp.test", policy: `allow: {or: [{authenticated_user: true}]}`},
		{from: "https://uri.test", policy: `allow: {or: [{authenticated_user: true}]}`, access: route.Access{IssuerFormat: "uri"}},
	}
	h := newHouse(t, specs, passing, func(o *Options) {
		o.CookieDomain, o.Cookies = "corp.test", session.NewCookieNames("__Host-_pomerium", "corp.test")
	})
	h.person("alice", "alice@corp.test", "", "g1")
	h.person("bob", "bob@corp.test", "", "g1")
	// One token for the whole domain: the same person at both hosts.
	domain := session.SignHandle(h.keys, &session.Handle{ID: "s-alice", UserID: "alice", Audience: []string{session.DomainAudience("corp.test")}, IssuedAt: time.Now()})
	for _, host := range []string{"a.corp.test", "b.corp.test", "a.corp.test"} {
		d := h.decide(request("GET", "https://"+host+"/", "Cookie", cookie(domain)))
		if claims, _ := verify(t, h, d.field(HeaderAssertion)); claims["aud"] != host || claims["iss"] != host {
			t.Errorf("at %s: aud %v, iss %v", host, claims["aud"], claims["iss"])
		}
	}
	ask := func(who, host string) (string, map[string]any) {
		t.Helper()
		d := h.decide(request("GET", "https://"+host+"/", "Cookie", cookie(h.handle("s-"+who, who, host))))
		if d.Outcome != Allow {
			t.Fatalf("%s at %s: %v %v", who, host, d.Outcome, d.Err)
		}
		claims, _ := verify(t, h, d.field(HeaderAssertion))
		return d.field(HeaderAssertion), claims
	}
	_, a := ask("alice", "a.corp.test")
	_, b := ask("alice", "b.corp.test")
	_, bob := ask("bob", "a.corp.test")
	if a["aud"] != "a.corp.test" || b["aud"] != "b.corp.test" || bob["sub"] != "bob" {
		t.Errorf("aud %v, %v; sub %v", a["aud"], b["aud"], bob["sub"])
	}
	if _, u := ask("alice", "uri.test"); u["iss"] != "https://uri.test/" || u["aud"] != "uri.test" {
		t.Errorf("uri issuer: iss %v aud %v", u["iss"], u["aud"])
	}

	last, _ := ask("alice", "a.corp.test")
	fresh := func(what string) map[string]any {
		t.Helper()
		next, claims := ask("alice", "a.corp.test")
		if next == last {
			t.Errorf("%s changed, and the old assertion is given out", what)
		}
		last = next
		return claims
	}
	h.put(&session.User{ID: "alice", Email: "new@corp.test"})
	if c := fresh("the user"); c["email"] != "new@corp.test" {
		t.Errorf("email %v", c["email"])
	}
	h.put(&session.DirectoryUser{ID: "alice", GroupIDs: []string{"g1", "g2"}})
	if got, _ := json.Marshal(fresh("the groups")["groups"]); string(got) != `["g1","g2"]` {
		t.Errorf("groups %s", got)
	}
	h.put(&session.DirectoryGroup{ID: "g2", Name: "Two"})
	eventually(t, "the group's name arrives", func() bool {
		_, c := ask("alice", "a.corp.test")
		got, _ := json.Marshal(c["groups"])
		return string(got) == `["g1","g2","Two"]`
	})
	last, _ = ask("alice", "a.corp.test")
	s := &session.Session{ID: "s-alice", UserID: "alice", ExpiresAt: time.Now().Add(time.Hour), Claims: session.Claims{"name": {"Renamed"}}}
	h.put(s)
	if c := fresh("the session"); c["name"] != "Renamed" {
		t.Errorf("name %v", c["name"])
	}
	h.options.Config.SigningKey = ecPEM(t)
	h.swap(specs)
	fresh("the signing key")
	h.swap(specs)
	fresh("the generation")
}

func TestAssertionReuse(t *testing.T) {
	zero := time.Duration(0)
	h := newHouse(t, []routeSpec{
		{from: "https://cached.test", policy: staff},
		{from: "https://fresh.test", policy: staff, access: route.Access{AssertionReuse: &zero}},
	}, passing, func(o *Options) { o.Config.AssertionReuse = time.Hour })
	now := time.Now()
	h.engine.now = func() time.Time { return now }
	h.person("a", "a@corp.test", "")
	ask := func(host string) string {
		d := h.decide(request("GET", "https://"+host+"/", "Cookie", cookie(h.handle("s-a", "a", host))))
		return d.field(HeaderAssertion)
	}
	if one, two := ask("fresh.test"), ask("fresh.test"); one == two {
		t.Error("assertion_reuse 0s reuses")
	}
	first := ask("cached.test")
	now = now.Add(59 * time.Second)
	if ask("cached.test") != first {
		t.Error("59 s later it is signed anew")
	}
	now = now.Add(time.Second)
	second := ask("cached.test")
	if second == first {
		t.Error("an assertion is given out for longer than 60 s")
	}
	now = now.Add(-30 * time.Second) // the clock stepped back
	if ask("cached.test") == second {
		t.Error("an assertion from the future is given out")
	}
}

// Nothing is signed where nobody asks.
func TestNothingSignedUnasked(t *testing.T) {
	h := newHouse(t, app, func(o *Options) { o.Config.JWTClaimsHeaders = map[string]string{"X-Who": "email"} })
	token := h.person("a", "a@corp.test", "app.corp.test")
	d := h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(token), "X-Who", "root", HeaderAssertion, "forged"))
	if len(d.Identity) != 0 || h.env.assertions.EstimatedSize() != 0 {
		t.Errorf("identity %v, %d signed", d.Identity, h.env.assertions.EstimatedSize())
	}
	for _, name := range []string{"X-Who", "x_who", "X-Pomerium-Jwt-Assertion", "x_pomerium_jwt_assertion_for", "X-Pomerium-Claim-Email",
		"X-Original-Url", "X-HTTP-Method-Override", "X-Envoy-External-Address", "X-Pomerium-Authorization", "X-Pomerium-Reproxy-Policy"} {
		if !d.Strip.Has(name) {
			t.Errorf("%s passes from the client", name)
		}
	}
	for _, name := range []string{"Authorization", "Cookie", "X-Custom", "X-Forwarded-For"} {
		if d.Strip.Has(name) {
			t.Errorf("%s is stripped", name)
		}
	}
	if jwt, err := d.Assertion(); err != nil || jwt == "" {
		t.Errorf("a template gets no assertion: %v", err)
	}
}

func TestAssertionFor(t *testing.T) {
	h := newHouse(t, app, passing)
	token := h.person("a", "a@corp.test", "app.corp.test")
	for _, tt := range []struct {
		headers []string
		want    string
	}{
		{nil, ""},
		{[]string{HeaderAssertion, "outer"}, "outer"},
		{[]string{HeaderAssertionFor, "first", HeaderAssertion, "outer"}, "first"},
		{[]string{HeaderAssertionFor, "", HeaderAssertion, "outer"}, "outer"},
	} {
		d := h.decide(request("GET", "https://app.corp.test/", append([]string{"Cookie", cookie(token)}, tt.headers...)...))
		if got := d.field(HeaderAssertionFor); got != tt.want || d.has(HeaderAssertionFor) != (tt.want != "") {
			t.Errorf("%v: got %q", tt.headers, got)
		}
		if d.field(HeaderAssertion) == "outer" {
			t.Error("the inbound assertion became ours")
		}
	}
}

func TestGroupsFilter(t *testing.T) {
	h := newHouse(t, []routeSpec{{from: "https://app.corp.test", policy: staff, access: route.Access{GroupsFilter: []string{"g3"}}}},
		passing, func(o *Options) { o.Config.JWTGroupsFilter = []string{"g1"} })
	h.put(&session.DirectoryGroup{ID: "g1", Name: "One"}, &session.DirectoryGroup{ID: "g2", Name: "Two"}, &session.DirectoryGroup{ID: "g3", Name: "Three"})
	token := h.person("a", "a@corp.test", "app.corp.test", "g1", "g2", "g3")
	h.log.Reset()
	d := h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(token)))
	claims, _ := verify(t, h, d.field(HeaderAssertion))
	if got, _ := json.Marshal(claims["groups"]); string(got) != `["g1","g3","One","Three"]` {
		t.Errorf("groups %s", got)
	}
	if !strings.Contains(h.log.String(), `"removed-groups-count":1`) {
		t.Errorf("log %s", h.log)
	}
}

func TestKubernetes(t *testing.T) {
	h := newHouse(t, []routeSpec{{from: "https://k8s.corp.test", policy: `allow: {or: [{accept: true}]}`,
		access: route.Access{Kubernetes: true, KubernetesToken: "sa-token"}}})
	token := h.person("a", "a@corp.test", "k8s.corp.test", "g1", "g2")
	d := h.decide(request("GET", "https://k8s.corp.test/api", "Cookie", cookie(token), "Impersonate-User", "system:admin"))
	var lines []string
	for _, f := range d.Identity {
		lines = append(lines, f.Name+": "+f.Value)
	}
	want := []string{"Authorization: Bearer sa-token", "Impersonate-User: a@corp.test", "Impersonate-Group: g1", "Impersonate-Group: g2"}
	if !slices.Equal(lines, want) {
		t.Errorf("got %q", lines)
	}
	for _, name := range []string{"impersonate-user", "Impersonate_Group", "Impersonate-Extra-Scopes", "Impersonate-Uid", "authorization"} {
		if !d.Strip.Has(name) {
			t.Errorf("%s passes from the client", name)
		}
	}
	// Without a person to impersonate, the token would be the service account itself.
	if d := h.decide(request("GET", "https://k8s.corp.test/api")); d.Outcome != Deny || len(d.Identity) != 0 {
		t.Errorf("nobody: %v %v", d.Outcome, d.Identity)
	}
}

func TestPreflightGoesUpBare(t *testing.T) {
	h := newHouse(t, []routeSpec{{from: "https://app.corp.test",
		policy: `allow: {or: [{cors_preflight: true}, {domain: corp.test}]}`}}, passing)
	token := h.person("a", "a@corp.test", "app.corp.test")
	d := h.decide(request("OPTIONS", "https://app.corp.test/", "Origin", "https://x.test", "Access-Control-Request-Method", "GET",
		"Cookie", cookie(token), "Authorization", "Basic x"))
	if d.Outcome != Allow || !d.Bare || len(d.Identity) != 0 || !d.Strip.Has("Authorization") {
		t.Errorf("got %v bare %v identity %v", d.Outcome, d.Bare, d.Identity)
	}
}

func TestRouteSetsAreStripped(t *testing.T) {
	h := newHouse(t, app, func(o *Options) {
		o.RouteSets = func(*route.Route) []string { return []string{"X-User"} }
	})
	token := h.person("a", "a@corp.test", "app.corp.test")
	d := h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(token)))
	if !d.Strip.Has("X_User") || !exchange.NewNameSet(StripNames(&h.options.Config, nil)...).Has("x-pomerium-anything") {
		t.Error("a name that the route sets passes from the client")
	}
}
