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

	"github.com/go-jose/go-jose/v4"

	"postern/internal/session"
)

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
