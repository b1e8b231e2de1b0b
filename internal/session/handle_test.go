package session

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// testKeys makes fresh keys; nothing secret is kept in the repository.
func testKeys(t testing.TB, previous ...Secret) *Keys {
	t.Helper()
	k, err := NewKeys(randomSecret(), previous, Secret{})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func randomSecret() Secret {
	b := make([]byte, KeySize)
	rand.Read(b)
	return NewSecret(b)
}

func testHandle() *Handle {
	return &Handle{
		ID: "s1", UserID: "u1", Issuer: "auth.example.com", Audience: []string{"app.example.com"},
		IssuedAt: time.Unix(1700000000, 0).UTC(), IDPID: "idp", ServerVersion: 1<<53 - 1, RecordVersion: 1<<63 + 1,
	}
}

func TestHandleRoundTrip(t *testing.T) {
	k := testKeys(t)
	h := testHandle()
	tok := string(SignHandle(k, h))
	got, err := VerifyHandle(k, tok)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%#v", *got) != fmt.Sprintf("%#v", *h) {
		t.Fatalf("got %#v want %#v", *got, *h)
	}
	if len(tok) > 400 {
		t.Errorf("handle is %d bytes, want at most 400", len(tok))
	}
}

// A handle has no expiry: an exp would make the caches of command lines
// expire (wire-contract.md §15, trap 1).
func TestHandleHasNoExpiry(t *testing.T) {
	tok := string(SignHandle(testKeys(t), testHandle()))
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(tok, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"exp", "nbf"} {
		if _, has := claims[name]; has {
			t.Errorf("handle has %s", name)
		}
	}
	for _, name := range []string{"jti", "sub", "iss", "aud", "iat", "idp_id", "databroker_server_version", "databroker_record_version"} {
		if _, has := claims[name]; !has {
			t.Errorf("handle lacks %s", name)
		}
	}
}

// forge signs any header and payload with the handle key.
func forge(k *Keys, header, payload string) string {
	signed := rawURL64.EncodeToString([]byte(header)) + "." + rawURL64.EncodeToString([]byte(payload))
	return signed + "." + rawURL64.EncodeToString(hs256(k.Current(PurposeHandle), signed))
}

// security-cases: GHSA-w9mr style claim mutation matrix, token kind confusion.
func TestHandleStrictness(t *testing.T) {
	k := testKeys(t)
	const goodHeader = `{"alg":"HS256","typ":"JWT"}`
	const good = `{"jti":"s","sub":"u","aud":["h"],"iat":1}`
	if _, err := VerifyHandle(k, forge(k, goodHeader, good)); err != nil {
		t.Fatalf("good token refused: %v", err)
	}
	if _, err := VerifyHandle(k, forge(k, `{"typ":"JWT","alg":"HS256"}`, good)); err != nil {
		t.Fatalf("other member order refused: %v", err)
	}
	for name, tok := range map[string]string{
		"alg none":          forge(k, `{"alg":"none","typ":"JWT"}`, good),
		"alg HS512":         forge(k, `{"alg":"HS512","typ":"JWT"}`, good),
		"alg case":          forge(k, `{"alg":"hs256","typ":"JWT"}`, good),
		"alg doubled":       forge(k, `{"alg":"none","alg":"HS256","typ":"JWT"}`, good),
		"typ other":         forge(k, `{"alg":"HS256","typ":"at+jwt"}`, good),
		"kid":               forge(k, `{"alg":"HS256","typ":"JWT","kid":"x"}`, good),
		"crit":              forge(k, `{"alg":"HS256","typ":"JWT","crit":["b64"],"b64":false}`, good),
		"header not object": forge(k, `[]`, good),
		"no jti":            forge(k, goodHeader, `{"sub":"u","aud":["h"],"iat":1}`),
		"empty jti":         forge(k, goodHeader, `{"jti":"","sub":"u","aud":["h"],"iat":1}`),
		"jti number":        forge(k, goodHeader, `{"jti":1,"sub":"u","aud":["h"],"iat":1}`),
		"no aud":            forge(k, goodHeader, `{"jti":"s","sub":"u","iat":1}`),
		"aud string":        forge(k, goodHeader, `{"jti":"s","sub":"u","aud":"h","iat":1}`),
		"no iat":            forge(k, goodHeader, `{"jti":"s","sub":"u","aud":["h"]}`),
		"iat float":         forge(k, goodHeader, `{"jti":"s","sub":"u","aud":["h"],"iat":1.5}`),
		"iat negative":      forge(k, goodHeader, `{"jti":"s","sub":"u","aud":["h"],"iat":-1}`),
		"exp":               forge(k, goodHeader, `{"jti":"s","sub":"u","aud":["h"],"iat":1,"exp":99999999999}`),
		"duplicate":         forge(k, goodHeader, `{"jti":"s","jti":"t","sub":"u","aud":["h"],"iat":1}`),
		"escaped duplicate": forge(k, goodHeader, `{"jti":"s","\u006ati":"t","sub":"u","aud":["h"],"iat":1}`),
		"case of name":      forge(k, goodHeader, `{"JTI":"s","sub":"u","aud":["h"],"iat":1}`),
		"trailing":          forge(k, goodHeader, good+"{}"),
		"version float":     forge(k, goodHeader, `{"jti":"s","sub":"u","aud":["h"],"iat":1,"databroker_record_version":1e3}`),
		"not json":          forge(k, goodHeader, `x`),
		"empty":             "",
		"two parts":         "a.b",
		"four parts":        forge(k, goodHeader, good) + ".x",
		"space":             " " + forge(k, goodHeader, good),
		"padded":            forge(k, goodHeader, good) + "=",
		"too long":          forge(k, goodHeader, `{"jti":"`+strings.Repeat("s", MaxTokenSize)+`","sub":"u","aud":["h"],"iat":1}`),
		"other keys":        forge(testKeys(t), goodHeader, good),
	} {
		if _, err := VerifyHandle(k, tok); !errors.Is(err, ErrToken) {
			t.Errorf("%s: accepted (%v)", name, err)
		} else if tok != "" && len(tok) > 20 && strings.Contains(err.Error(), tok[10:20]) {
			t.Errorf("%s: the error holds the token", name)
		}
	}
}

// A flipped bit anywhere refuses; base64's spare bits count too.
func TestHandleEveryByteCounts(t *testing.T) {
	k := testKeys(t)
	tok := []byte(SignHandle(k, testHandle()))
	for i := range tok {
		for _, c := range []byte("A9-_=.z") {
			if c == tok[i] {
				continue
			}
			bad := bytes.Clone(tok)
			bad[i] = c
			if _, err := VerifyHandle(k, string(bad)); err == nil {
				t.Fatalf("accepted with byte %d changed to %q", i, c)
			}
		}
	}
}

func TestTokenKindsAreApart(t *testing.T) {
	shared := randomSecret()
	k, err := NewKeys(shared, nil, Secret{})
	if err != nil {
		t.Fatal(err)
	}
	sa := &ServiceAccount{ID: "sa1", UserID: "robot", IssuedAt: time.Unix(1700000000, 0)}
	tok, err := SignServiceAccount(k, sa)
	if err != nil {
		t.Fatal(err)
	}
	if id, user, err := VerifyServiceAccount(k, string(tok)); err != nil || id != "sa1" || user != "robot" {
		t.Fatalf("own token refused: %q %q %v", id, user, err)
	}
	if _, err := VerifyHandle(k, string(tok)); err == nil {
		t.Error("a service-account token passed as a handle")
	}
	if _, _, err := VerifyServiceAccount(k, string(SignHandle(k, testHandle()))); err == nil {
		t.Error("a handle passed as a service-account token")
	}
	// Forgery by somebody who holds the raw secret as the reference used it.
	signed := rawURL64.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + rawURL64.EncodeToString([]byte(`{"jti":"s","sub":"u","aud":["h"],"iat":1}`))
	raw := signed + "." + rawURL64.EncodeToString(hs256(shared.Reveal(), signed))
	if _, err := VerifyHandle(k, raw); err == nil {
		t.Error("a token signed with the raw shared secret passed as a handle")
	}
	for _, id := range []string{bootstrapID, strings.ToUpper(bootstrapID), ""} {
		if _, err := SignServiceAccount(k, &ServiceAccount{ID: id}); err == nil {
			t.Errorf("reserved id %q was signed", id)
		}
	}
	if _, err := SignServiceAccount(k, &ServiceAccount{ID: "x", UserID: "bootstrap-x.pomerium"}); err == nil {
		t.Error("a reserved user id was signed")
	}
}

func TestKeyRotation(t *testing.T) {
	old, fresh := randomSecret(), randomSecret()
	before, _ := NewKeys(old, nil, Secret{})
	after, err := NewKeys(fresh, []Secret{old}, Secret{})
	if err != nil {
		t.Fatal(err)
	}
	tok := string(SignHandle(before, testHandle()))
	if _, err := VerifyHandle(after, tok); err != nil {
		t.Errorf("handle of the previous secret refused: %v", err)
	}
	sealed := before.Seal(PurposeState, []byte("x"), []byte("ad"))
	if _, err := after.Open(PurposeState, sealed, []byte("ad")); err != nil {
		t.Errorf("state of the previous secret does not open: %v", err)
	}
	if _, err := VerifyHandle(before, string(SignHandle(after, testHandle()))); err == nil {
		t.Error("the previous secret was used to sign")
	}
	if _, err := before.Open(PurposeState, after.Seal(PurposeState, []byte("x"), nil), nil); err == nil {
		t.Error("the previous secret was used to seal")
	}
	if got := after.SigningKeys(); len(got) != 2 || !got[1].Equal(before.SigningKeys()[0]) {
		t.Error("the previous signing key is not kept for the key set")
	}
}

func TestDerivedKeys(t *testing.T) {
	s := randomSecret()
	a, _ := NewKeys(s, nil, Secret{})
	b, _ := NewKeys(s, nil, Secret{})
	if !a.SigningKeys()[0].Equal(b.SigningKeys()[0]) {
		t.Error("the signing key differs between two starts")
	}
	ha, err := a.HPKE()
	if err != nil {
		t.Fatal(err)
	}
	hb, _ := b.HPKE()
	if pub := ha.PublicKey().Bytes(); len(pub) != 32 || !bytes.Equal(pub, hb.PublicKey().Bytes()) {
		t.Error("the HPKE key is not a stable X25519 key")
	}
	seen := map[string]Purpose{}
	for _, p := range []Purpose{PurposeHandle, PurposeServiceAccount, PurposeSignedURL, PurposeCallback, PurposeRecords,
		PurposeIndex, PurposeState, PurposeCSRF, PurposeNonce, PurposePKCE, PurposeOIDCNonce} {
		key := string(a.Current(p))
		if key == string(s.Reveal()) {
			t.Errorf("%s uses the raw secret", p)
		}
		if other, dup := seen[key]; dup {
			t.Errorf("%s and %s share a key", p, other)
		}
		seen[key] = p
	}
	for _, n := range []int{0, 16, 31, 33, 64} {
		if _, err := NewKeys(NewSecret(make([]byte, n)), nil, Secret{}); err == nil {
			t.Errorf("a shared secret of %d bytes was taken", n)
		}
	}
	sealed := a.Seal(PurposeState, []byte("x"), []byte("one"))
	if _, err := a.Open(PurposeState, sealed, []byte("two")); err == nil {
		t.Error("associated data is not bound")
	}
	if _, err := a.Open(PurposeCallback, sealed, []byte("one")); err == nil {
		t.Error("opened for another purpose")
	}
	if a.CheckMAC(PurposeCSRF, a.MAC(PurposeCSRF, "ab", "c"), "a", "bc") {
		t.Error("MAC parts run into each other")
	}
}

func TestHandleAudience(t *testing.T) {
	h := func(aud ...string) *Handle { return &Handle{Audience: aud} }
	for _, c := range []struct {
		h            *Handle
		host, domain string
		want         bool
	}{
		{h(HostAudience("App.example.com:8443")), "app.example.com", "", true},
		{h(HostAudience("app.example.com")), "app.example.com:443", "", true},
		{h(HostAudience("app.example.com")), "other.example.com", "", false},
		{h(HostAudience("app.example.com")), "x.app.example.com", "app.example.com", false},
		{h(DomainAudience("example.com")), "app.example.com", "example.com", true},
		{h(DomainAudience("example.com")), "example.com", ".example.com", true},
		{h(DomainAudience("example.com")), "app.example.com", "", false},
		{h(DomainAudience("example.com")), "evilexample.com", "example.com", false},
		{h(DomainAudience("evil.com")), "app.example.com", "example.com", false},
		{h(SignInAudience("auth.example.com")), "auth.example.com", "", false},
		{h(HostAudience("[::1]:8443")), "[::1]", "", true},
		{h(), "app.example.com", "", false},
		{h(""), "", "", false},
	} {
		if got := c.h.ForHost(c.host, c.domain); got != c.want {
			t.Errorf("%v at %q with domain %q: %v, want %v", c.h.Audience, c.host, c.domain, got, c.want)
		}
	}
	if !h(SignInAudience("Auth.example.com:8443")).ForSignIn("auth.example.com") || h(HostAudience("auth.example.com")).ForSignIn("auth.example.com") {
		t.Error("the sign-in host's audience is not its own")
	}
}

// security-cases: CVE-2024-39315. Secrets redact themselves however printed.
func TestSecretsRedact(t *testing.T) {
	const secret = "hunter2-hunter2"
	s := &Session{ID: "s1", UserID: "u1", IDToken: &IDToken{Raw: secret}, OAuthToken: &OAuthToken{AccessToken: secret, RefreshToken: secret}}
	var log bytes.Buffer
	l := slog.New(slog.NewJSONHandler(&log, nil))
	l.Info("x", "session", s, "token", Token(secret), "secret", NewSecret([]byte(secret)))
	l.Info("x", "handle", &Handle{ID: "s1"})
	out := log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		out += fmt.Sprintf(verb, s) + fmt.Sprintf(verb, Token(secret)) + fmt.Sprintf(verb, NewSecret([]byte(secret))) +
			fmt.Sprintf(verb, []any{s}) + fmt.Sprintf(verb, *s.OAuthToken) + fmt.Sprintf(verb, LocalAccount{PasswordHash: secret})
	}
	if strings.Contains(out, secret) || strings.Contains(out, fmt.Sprintf("%x", secret)) {
		t.Errorf("a secret was printed: %s", out)
	}
	if !strings.Contains(out, "s1") {
		t.Error("the session id is not printed")
	}
}

func TestRecords(t *testing.T) {
	s := &Session{ID: "s1", UserID: "u1", IssuedAt: time.Unix(1, 0).UTC(), ExpiresAt: time.Unix(2, 5).UTC(),
		IDToken:      &IDToken{Issuer: "https://idp", Subject: "sub", Raw: "raw"},
		OAuthToken:   &OAuthToken{AccessToken: "at", RefreshToken: "rt"},
		Claims:       Claims{"groups": {"a", "b"}},
		IDPSessionID: "sid", ParentSessionID: "p"}
	rec, err := s.Record()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"userId":"u1"`, `"idToken"`, `"oauthToken"`, `"accessToken":"at"`, `"refreshToken":"rt"`, `"issuedAt":"1970-01-01T00:00:01Z"`} {
		if !strings.Contains(string(rec.Data), want) {
			t.Errorf("record lacks %s: %s", want, rec.Data)
		}
	}
	if rec.Index[IndexUser] != "u1" || rec.Index[IndexIssuerSID] != "https://idp\nsid" || rec.Index[IndexIssuerSubject] != "https://idp\nsub" || rec.Index[IndexParent] != "p" {
		t.Errorf("index values: %v", rec.Index)
	}
	rec.Version = 7
	back, err := DecodeSession(rec)
	if err != nil || back.RecordVersion != 7 || back.OAuthToken.RefreshToken != "rt" || !back.ExpiresAt.Equal(s.ExpiresAt) {
		t.Fatalf("decoded %v, %v", back, err)
	}
	rec.ID = "s2"
	if _, err := DecodeSession(rec); err == nil {
		t.Error("a record whose data names another id was taken")
	}
	rec.ID, rec.DeletedAt = "s1", time.Unix(3, 0)
	if _, err := DecodeSession(rec); err == nil {
		t.Error("a deleted record was taken")
	}
	d, _ := (&DirectoryUser{ID: "u"}).Record()
	if !strings.Contains(string(d.Data), `"group_ids":[]`) {
		t.Errorf("directory user: %s", d.Data)
	}
	for typ, o := range TypeOptions() {
		if err := o.Check(); err != nil {
			t.Errorf("%s: %v", typ, err)
		}
	}
}

func TestPatchDataKeepsOtherFields(t *testing.T) {
	out, err := PatchData([]byte(`{"id":"s","fromTheFuture":{"x":1},"claims":{"a":["b"]},"accessedAt":"2020-01-01T00:00:00Z"}`),
		map[string]any{"claims": Claims{"c": {"d"}}, "accessedAt": nil})
	if err != nil || string(out) != `{"claims":{"c":["d"]},"fromTheFuture":{"x":1},"id":"s"}` {
		t.Fatalf("%s %v", out, err)
	}
}

func TestFlattenClaims(t *testing.T) {
	var in map[string]any
	_ = json.Unmarshal([]byte(`{"sub":"s","n":1,"t":true,"null":null,"list":["a",2],"empty":[],"a":{"b":{"c":"d"},"e":["f"]},"a.e":"literal"}`), &in)
	got, _ := json.Marshal(FlattenClaims(in))
	want := `{"a.b.c":["d"],"a.e":["literal","f"],"empty":[],"list":["a",2],"n":[1],"sub":["s"],"t":[true]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	deep := map[string]any{"x": "y"}
	for range 1000 {
		deep = map[string]any{"k": deep}
	}
	if n := len(FlattenClaims(deep)); n != 0 {
		t.Errorf("a thousand levels gave %d claims", n)
	}
	renewed := Claims{"iss": {"old"}, "a": {"1"}, "b": {"2"}}.Renew(Claims{"iss": {"new"}, "sub": {"x"}, "exp": {1}, "iat": {1}, "b": {"3"}})
	if g, _ := json.Marshal(renewed); string(g) != `{"b":["3"],"iss":["old"]}` {
		t.Errorf("renewed %s", g)
	}
}

func FuzzHandle(f *testing.F) {
	k := testKeys(f)
	f.Add(string(SignHandle(k, testHandle())), "")
	f.Add(forge(k, `{"alg":"HS256"}`, `{}`), `{"jti":"x"}`)
	f.Fuzz(func(t *testing.T, tok, payload string) {
		if h, err := VerifyHandle(testKeys(t), tok); err == nil {
			t.Fatalf("a stranger's token was accepted: %v", h)
		}
		// Correctly signed rubbish never panics, and what is accepted is whole.
		if h, err := VerifyHandle(k, forge(k, `{"alg":"HS256","typ":"JWT"}`, payload)); err == nil && (h.ID == "" || len(h.Audience) == 0) {
			t.Fatalf("accepted without id or audience: %q", payload)
		}
	})
}

func BenchmarkVerifyHandle(b *testing.B) {
	k := testKeys(b)
	tok := string(SignHandle(k, testHandle()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := VerifyHandle(k, tok); err != nil {
			b.Fatal(err)
		}
	}
}
