// Package issuertest is a small OpenID Connect provider for tests: discovery,
// authorization, token, UserInfo, revocation and sign-out, with PKCE, nonces,
// codes that are good once and refresh tokens that rotate. It answers as a
// real one does, including its errors, and can be told to misbehave.
//
// It keeps everything in memory and signs in whoever User names, without a
// form. It is not for production.
package issuertest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Issuer is the provider. Fields may be changed between requests while holding
// Lock (or before the first one).
type Issuer struct {
	sync.Mutex

	URL          string // issuer, set by the test once its server runs
	ClientID     string
	ClientSecret string

	// User holds the claims of whoever signs in next; sub is needed. They are
	// looked at when a code is issued, and again for UserInfo by sub (People).
	User map[string]any
	// People are the current claims by sub, for UserInfo; a missing one is
	// answered 401 and cannot refresh.
	People map[string]map[string]any

	TokenLife time.Duration // of access and identity tokens; 0: an hour
	Now       func() time.Time

	// Ways to misbehave.
	Down            bool                                // every answer is 503
	RefreshError    string                              // OAuth error code of the refresh grant
	RefreshStatus   int                                 // status of RefreshError; 0: 400
	NoRefreshTokens bool                                // issue none
	NoIDOnRefresh   bool                                // refresh without an identity token
	WrongNonce      bool                                //
	WrongAudience   bool                                //
	WrongSubject    bool                                // UserInfo is about somebody else
	IssParameter    string                              // iss in the answer; "" is none
	IssSupported    bool                                // metadata says that iss is always there
	Metadata        map[string]any                      // added to discovery
	Mangle          func(idClaims map[string]any)       // last change to identity token claims
	BeforeToken     func(grant string, form url.Values) // called without the lock

	// What was seen.
	Discoveries, TokenCalls, UserInfoCalls int
	Revoked                                []string
	Reused                                 int // refresh tokens used twice
	LastAuth                               url.Values

	key     *rsa.PrivateKey
	codes   map[string]grant
	access  map[string]string // token -> sub
	refresh map[string]grant  // live refresh tokens
	spent   map[string]bool
	serial  int
}

type grant struct {
	sub, nonce, challenge, redirect string
	claims                          map[string]any
}

// New gives an issuer; set URL before use.
func New() *Issuer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return &Issuer{
		ClientID: "client", ClientSecret: "client-secret", Now: time.Now, key: key,
		People: map[string]map[string]any{}, codes: map[string]grant{}, access: map[string]string{},
		refresh: map[string]grant{}, spent: map[string]bool{},
	}
}

func (i *Issuer) next(kind string) string {
	i.serial++
	b := make([]byte, 8)
	_, _ = rand.Read(b)
	return fmt.Sprintf("%s-%d-%x", kind, i.serial, b)
}

// ServeHTTP answers all endpoints.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.Lock()
	down := i.Down
	i.Unlock()
	if down {
		http.Error(w, "the issuer is down", http.StatusServiceUnavailable)
		return
	}
	base := ""
	if u, err := url.Parse(i.URL); err == nil {
		base = strings.TrimSuffix(u.Path, "/")
	}
	switch strings.TrimPrefix(r.URL.Path, base) {
	case "/.well-known/openid-configuration":
		i.discovery(w)
	case "/keys":
		i.keys(w)
	case "/auth":
		i.auth(w, r)
	case "/token":
		i.token(w, r)
	case "/userinfo":
		i.userinfo(w, r)
	case "/revoke":
		i.Lock()
		i.Revoked = append(i.Revoked, r.FormValue("token"))
		delete(i.refresh, r.FormValue("token"))
		delete(i.access, r.FormValue("token"))
		i.Unlock()
	case "/logout":
		http.Redirect(w, r, r.FormValue("post_logout_redirect_uri"), http.StatusFound)
	default:
		http.NotFound(w, r)
	}
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (i *Issuer) discovery(w http.ResponseWriter) {
	i.Lock()
	defer i.Unlock()
	i.Discoveries++
	base := strings.TrimSuffix(i.URL, "/")
	m := map[string]any{
		"issuer": i.URL, "authorization_endpoint": base + "/auth", "token_endpoint": base + "/token",
		"userinfo_endpoint": base + "/userinfo", "jwks_uri": base + "/keys", "revocation_endpoint": base + "/revoke",
		"end_session_endpoint": base + "/logout", "id_token_signing_alg_values_supported": []string{"RS256"},
		"token_endpoint_auth_methods_supported":          []string{"client_secret_basic"},
		"authorization_response_iss_parameter_supported": i.IssSupported,
	}
	maps.Copy(m, i.Metadata)
	reply(w, http.StatusOK, m)
}

func (i *Issuer) keys(w http.ResponseWriter) {
	pub := i.key.PublicKey
	b64 := base64.RawURLEncoding.EncodeToString
	reply(w, http.StatusOK, map[string]any{"keys": []any{map[string]any{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "one", "n": b64(pub.N.Bytes()), "e": b64(big.NewInt(int64(pub.E)).Bytes()),
	}}})
}

func (i *Issuer) auth(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	i.Lock()
	defer i.Unlock()
	i.LastAuth = q
	if q.Get("client_id") != i.ClientID || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" {
		http.Error(w, "bad authorization request", http.StatusBadRequest)
		return
	}
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil {
		http.Error(w, "bad redirect_uri", http.StatusBadRequest)
		return
	}
	out := url.Values{"state": {q.Get("state")}}
	if i.IssParameter != "" {
		out.Set("iss", i.IssParameter)
	}
	if sub, _ := i.User["sub"].(string); sub == "" {
		out.Set("error", "access_denied")
	} else {
		code := i.next("code")
		i.codes[code] = grant{sub, q.Get("nonce"), q.Get("code_challenge"), q.Get("redirect_uri"), maps.Clone(i.User)}
		if i.People[sub] == nil {
			i.People[sub] = maps.Clone(i.User)
		}
		out.Set("code", code)
	}
	back.RawQuery = out.Encode()
	http.Redirect(w, r, back.String(), http.StatusFound)
}

func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	if i.BeforeToken != nil {
		i.BeforeToken(r.Form.Get("grant_type"), r.Form)
	}
	i.Lock()
	defer i.Unlock()
	i.TokenCalls++
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.Form.Get("client_id"), r.Form.Get("client_secret")
	}
	refuse := func(status int, code string) { reply(w, status, map[string]string{"error": code}) }
	if id != i.ClientID || secret != i.ClientSecret {
		refuse(http.StatusUnauthorized, "invalid_client")
		return
	}
	switch r.Form.Get("grant_type") {
	case "authorization_code":
		code := r.Form.Get("code")
		g, ok := i.codes[code]
		delete(i.codes, code)
		sum := sha256.Sum256([]byte(r.Form.Get("code_verifier")))
		if !ok || g.redirect != r.Form.Get("redirect_uri") || g.challenge != base64.RawURLEncoding.EncodeToString(sum[:]) {
			refuse(http.StatusBadRequest, "invalid_grant")
			return
		}
		i.issue(w, g, true)
	case "refresh_token":
		if i.RefreshError != "" {
			status := i.RefreshStatus
			if status == 0 {
				status = http.StatusBadRequest
			}
			refuse(status, i.RefreshError)
			return
		}
		tok := r.Form.Get("refresh_token")
		g, ok := i.refresh[tok]
		delete(i.refresh, tok)
		if i.spent[tok] {
			i.Reused++
		}
		i.spent[tok] = true
		if !ok || i.People[g.sub] == nil {
			refuse(http.StatusBadRequest, "invalid_grant")
			return
		}
		g.claims, g.nonce = maps.Clone(i.People[g.sub]), ""
		i.issue(w, g, !i.NoIDOnRefresh)
	default:
		refuse(http.StatusBadRequest, "unsupported_grant_type")
	}
}

func (i *Issuer) issue(w http.ResponseWriter, g grant, withID bool) {
	life := i.TokenLife
	if life == 0 {
		life = time.Hour
	}
	now := i.Now()
	access := i.next("access")
	i.access[access] = g.sub
	out := map[string]any{"access_token": access, "token_type": "Bearer", "expires_in": int(life.Seconds())}
	if !i.NoRefreshTokens {
		rt := i.next("refresh")
		i.refresh[rt] = g
		out["refresh_token"] = rt
	}
	if withID {
		claims := maps.Clone(g.claims)
		claims["iss"], claims["aud"], claims["sub"] = i.URL, i.ClientID, g.sub
		claims["iat"], claims["exp"] = now.Unix(), now.Add(life).Unix()
		if g.nonce != "" {
			claims["nonce"] = g.nonce
		}
		if i.WrongNonce {
			claims["nonce"] = "another"
		}
		if i.WrongAudience {
			claims["aud"] = "another-client"
		}
		if i.Mangle != nil {
			i.Mangle(claims)
		}
		out["id_token"] = i.Sign(claims)
	}
	reply(w, http.StatusOK, out)
}

// Sign gives an RS256 token of this issuer.
func (i *Issuer) Sign(claims map[string]any) string {
	b64 := base64.RawURLEncoding.EncodeToString
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	signed := b64([]byte(`{"alg":"RS256","kid":"one","typ":"JWT"}`)) + "." + b64(payload)
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(nil, i.key, crypto.SHA256, sum[:])
	if err != nil {
		panic(errors.Join(errors.New("issuertest cannot sign"), err))
	}
	return signed + "." + b64(sig)
}

func (i *Issuer) userinfo(w http.ResponseWriter, r *http.Request) {
	i.Lock()
	defer i.Unlock()
	i.UserInfoCalls++
	sub, ok := i.access[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	person := i.People[sub]
	if !ok || person == nil {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		http.Error(w, "invalid token", http.StatusUnauthorized)
		return
	}
	out := maps.Clone(person)
	out["sub"] = sub
	if i.WrongSubject {
		out["sub"] = "somebody-else"
	}
	reply(w, http.StatusOK, out)
}
