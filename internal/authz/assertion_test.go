package authz

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
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
	tok, err := jose.ParseSigned(jwt, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
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
	if ask("fresh.test") == ask("fresh.test") {
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

func ecPEM(t testing.TB) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

func pkcs8(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestSigningKeys(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec := ecPEM(t)
	rsaPEM := pkcs8(t, rsaKey)
	both := slices.Concat(rsaPEM, ec)
	for name, text := range map[string][]byte{
		"EC": ec, "RSA": rsaPEM, "RSA PKCS1": pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}),
		"several": both, "base64": []byte(base64.StdEncoding.EncodeToString(both) + "\n"),
	} {
		h := newHouse(t, app, passing, func(o *Options) { o.Config.SigningKey = text })
		token := h.person("a", "a@corp.test", "app.corp.test")
		_, header := verify(t, h, h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(token))).field(HeaderAssertion))
		want := "RS256"
		if name == "EC" {
			want = "ES256"
		}
		if header.Algorithm != want {
			t.Errorf("%s: signed with %s, want %s", name, header.Algorithm, want)
		}
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	weak, _ := rsa.GenerateKey(rand.Reader, 1024)
	bad := map[string][]byte{"Ed25519": pkcs8(t, ed), "P-384": pkcs8(t, p384), "text": []byte("not a key"), "base64 of text": []byte("bm90IGEga2V5"),
		"a broken block": []byte("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"),
		"a certificate":  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})}
	if weak != nil {
		bad["a short RSA key"] = pkcs8(t, weak)
	}
	for name, text := range bad {
		if _, err := ParseSigningKeys(text); err == nil || !strings.HasPrefix(err.Error(), "signing_key ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The key id is the RFC 7638 thumbprint, by another implementation.
func TestKeyID(t *testing.T) {
	h := newHouse(t, app)
	for _, k := range h.env.signing {
		var pub any
		if k.ec != nil {
			pub = &k.ec.PublicKey
		}
		j := jose.JSONWebKey{Key: pub}
		sum, err := j.Thumbprint(5) // crypto.SHA256
		if err != nil {
			t.Fatal(err)
		}
		if got := hexOf(sum); got != k.kid {
			t.Errorf("kid %s, thumbprint %s", k.kid, got)
		}
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

func TestPreviousKeysStayPublished(t *testing.T) {
	old, oldSecret := newKeys(t)
	_, secret := newKeys(t)
	keys, err := session.NewKeys(session.NewSecret(secret), []session.Secret{session.NewSecret(oldSecret)}, session.Secret{})
	if err != nil {
		t.Fatal(err)
	}
	before, err := NewEnv(Options{Keys: old})
	if err != nil {
		t.Fatal(err)
	}
	after, err := NewEnv(Options{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	if len(after.signing) != 2 || after.signing[1].kid != before.signing[0].kid || after.signing[0].kid == before.signing[0].kid {
		t.Error("after a rotation the old signing key is not the second in the set")
	}
}

func TestEndpoints(t *testing.T) {
	h := newHouse(t, app, func(o *Options) {
		o.SignInURL, _ = url.Parse("https://auth.corp.test:8443")
	})
	p := h.engine.Endpoints(h.env)
	get := func(f func(http.ResponseWriter, *http.Request, *session.Caller), c *session.Caller, method string, headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, "https://app.corp.test:9443/x", nil)
		for i := 0; i+1 < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		f(w, r, c)
		return w
	}
	w := get(p.Discovery, nil, "GET")
	var d map[string]string
	if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{
		"issuer":                           "https://app.corp.test:9443/",
		"authentication_callback_endpoint": "https://auth.corp.test:8443/oauth2/callback",
		"jwks_uri":                         "https://app.corp.test:9443/.well-known/pomerium/jwks.json",
		"frontchannel_logout_uri":          "https://app.corp.test:9443/.pomerium/sign_out",
	}; !maps.Equal(d, want) {
		t.Errorf("discovery %v", d)
	}
	if w.Header().Get("Access-Control-Allow-Origin") != "*" {
		t.Error("discovery lacks CORS")
	}

	for name, f := range map[string]func(http.ResponseWriter, *http.Request, *session.Caller){"jwks": p.Keys, "hpke": p.HPKEKey} {
		w := get(f, nil, "GET")
		etag := w.Header().Get("ETag")
		if w.Code != 200 || w.Header().Get("Cache-Control") != "max-age=60" || w.Header().Get("Access-Control-Allow-Origin") != "*" || len(etag) < 10 {
			t.Errorf("%s: %d %v", name, w.Code, w.Header())
		}
		if w := get(f, nil, "GET", "If-None-Match", `"zzz", W/`+etag); w.Code != 304 || w.Body.Len() != 0 {
			t.Errorf("%s: conditional GET %d", name, w.Code)
		}
		if w := get(f, nil, "GET", "If-None-Match", `"zzz"`); w.Code != 200 {
			t.Errorf("%s: another tag %d", name, w.Code)
		}
		if w := get(f, nil, "HEAD"); w.Code != 200 || w.Body.Len() != 0 {
			t.Errorf("%s: HEAD %d", name, w.Code)
		}
		if w := get(f, nil, "POST"); w.Code != 405 {
			t.Errorf("%s: POST %d", name, w.Code)
		}
	}
	if w := get(p.HPKEKey, nil, "GET"); w.Body.Len() != 32 || w.Header().Get("Content-Type") != "application/octet-stream" {
		t.Errorf("hpke: %d bytes, %s", w.Body.Len(), w.Header().Get("Content-Type"))
	}
	if body := get(p.Keys, nil, "GET").Body.String(); strings.Contains(body, `"d"`) {
		t.Error("the key set holds a private key")
	}

	token := h.person("a", "a@corp.test", "app.corp.test", "g1")
	caller := h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(token))).Caller
	if w := get(p.JWT, caller, "GET"); w.Code != 404 {
		t.Errorf("jwt endpoint is on by default: %d", w.Code)
	}
	h.options.JWTEndpoint = true
	h.swap(app)
	p = h.engine.Endpoints(h.env)
	w = get(p.JWT, caller, "GET")
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/jwt" || w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Fatalf("jwt: %d %v", w.Code, w.Header())
	}
	claims, _ := verify(t, h, w.Body.String())
	if claims["aud"] != "app.corp.test" || claims["sub"] != "a" || claims["email"] != "a@corp.test" {
		t.Errorf("claims %v", claims)
	}
	if w := get(p.JWT, nil, "GET"); w.Code != 401 {
		t.Errorf("nobody's jwt: %d", w.Code)
	}
	own := h.env.IdentityClaims(caller, nil)
	for _, k := range []string{"iss", "aud", "exp", "iat", "jti"} {
		if _, ok := own[k]; ok {
			t.Errorf("user info holds %s", k)
		}
	}
	if own["sub"] != "a" || own["sid"] != "s-a" {
		t.Errorf("user info %v", own)
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
