package session

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// MaxTokenSize bounds handles and service-account tokens in bytes; longer
// ones are refused before anything is decoded.
const MaxTokenSize = 4096

// Handle points to a session: the value of the session cookie and of a
// program's token (wire-contract.md §3.2). It is signed, not secret in
// content, and has no expiry of its own: the session record has. Anybody who
// holds the signed form is the user, so the signed form is a Token.
type Handle struct {
	ID            string    // jti: session id
	UserID        string    // sub
	Issuer        string    // iss: sign-in host
	Audience      []string  // aud: see HostAudience, DomainAudience, SignInAudience
	IssuedAt      time.Time // iat, whole seconds
	IDPID         string    // idp_id
	ServerVersion uint64    // databroker_server_version
	RecordVersion uint64    // databroker_record_version: read your own write
}

// LogValue shows the handle's session id only.
func (h *Handle) LogValue() slog.Value {
	if h == nil {
		return slog.StringValue("none")
	}
	return slog.StringValue(h.ID)
}

// HostAudience is the audience of a handle for one route host: the lower-case
// host name without port, since cookies do not tell ports apart.
func HostAudience(host string) string { return hostname(host) }

// DomainAudience is the audience of a handle set for a whole cookie_domain.
func DomainAudience(domain string) string {
	return "." + strings.TrimPrefix(strings.ToLower(domain), ".")
}

// SignInAudience is the audience of a handle kept by the sign-in host itself.
// It differs from HostAudience, so that a handle stolen at a route cannot
// sign in to others even where both share a host name.
func SignInAudience(host string) string { return hostname(host) + "/.pomerium" }

// ForHost says whether the handle was set for host (with or without port),
// either for it alone or for the configured cookie domain that covers it.
// cookieDomain is "" when cookies are host-only.
func (h *Handle) ForHost(host, cookieDomain string) bool {
	name := hostname(host)
	if name == "" {
		return false
	}
	domain := strings.TrimPrefix(strings.ToLower(cookieDomain), ".")
	for _, aud := range h.Audience {
		if aud == name {
			return true
		}
		if domain != "" && aud == "."+domain && (name == domain || strings.HasSuffix(name, "."+domain)) {
			return true
		}
	}
	return false
}

// ForSignIn says whether the handle is the sign-in host's own.
func (h *Handle) ForSignIn(host string) bool {
	want := SignInAudience(host)
	for _, aud := range h.Audience {
		if aud == want {
			return true
		}
	}
	return false
}

// hostname is the lower-case host without port, brackets and trailing dot.
func hostname(host string) string {
	if strings.HasPrefix(host, "[") {
		if i := strings.IndexByte(host, ']'); i > 0 {
			return strings.ToLower(host[1:i])
		}
		return ""
	}
	if i := strings.IndexByte(host, ':'); i >= 0 && i == strings.LastIndexByte(host, ':') {
		host = host[:i]
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

var (
	rawURL64    = base64.RawURLEncoding.Strict()
	jwtHeader   = rawURL64.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))
	errBadToken = errors.New("token is not one of ours")
)

// ErrToken is wrapped by every refusal of VerifyHandle and
// VerifyServiceAccount.
var ErrToken = errBadToken

func refuse(why string) error { return fmt.Errorf("%w: %s; sign in again", errBadToken, why) }

type handleClaims struct {
	ID       string   `json:"jti"`
	Subject  string   `json:"sub"`
	Issuer   string   `json:"iss"`
	Audience []string `json:"aud"`
	IssuedAt int64    `json:"iat"`
	IDPID    string   `json:"idp_id,omitempty"`
	Server   uint64   `json:"databroker_server_version,omitempty"`
	Record   uint64   `json:"databroker_record_version,omitempty"`
}

// SignHandle gives the compact JWS (HS256) of h under the handle key.
func SignHandle(k *Keys, h *Handle) Token {
	return signToken(k.Current(PurposeHandle), handleClaims{
		ID: h.ID, Subject: h.UserID, Issuer: h.Issuer, Audience: h.Audience,
		IssuedAt: h.IssuedAt.Unix(), IDPID: h.IDPID, Server: h.ServerVersion, Record: h.RecordVersion,
	})
}

// VerifyHandle checks form, algorithm and signature strictly and gives the
// handle. It says nothing about audience (ForHost, ForSignIn) or whether the
// session still exists. Errors wrap ErrToken and never hold the token.
func VerifyHandle(k *Keys, token string) (*Handle, error) {
	claims, err := verifyToken(k.All(PurposeHandle), token)
	if err != nil {
		return nil, err
	}
	h := &Handle{}
	for name, raw := range claims {
		var bad bool
		switch name {
		case "jti":
			bad = !stringClaim(raw, &h.ID)
		case "sub":
			bad = !stringClaim(raw, &h.UserID)
		case "iss":
			bad = !stringClaim(raw, &h.Issuer)
		case "idp_id":
			bad = !stringClaim(raw, &h.IDPID)
		case "aud":
			bad = json.Unmarshal(raw, &h.Audience) != nil
		case "iat":
			var iat uint64
			bad = !uintClaim(raw, &iat) || iat > 1<<40
			h.IssuedAt = time.Unix(int64(iat), 0).UTC()
		case "databroker_server_version":
			bad = !uintClaim(raw, &h.ServerVersion)
		case "databroker_record_version":
			bad = !uintClaim(raw, &h.RecordVersion)
		case "exp", "nbf":
			// A handle has no life of its own; one that claims to was not
			// made here.
			bad = true
		}
		if bad {
			return nil, refuse("claim " + strconv.Quote(name) + " is malformed")
		}
	}
	if h.ID == "" || len(h.Audience) == 0 || h.IssuedAt.IsZero() {
		return nil, refuse("a claim is missing")
	}
	return h, nil
}

type serviceAccountClaims struct {
	ID        string `json:"jti"`
	Subject   string `json:"sub"`
	IssuedAt  int64  `json:"iat"`
	NotBefore int64  `json:"nbf"`
	Expires   int64  `json:"exp,omitempty"`
}

// SignServiceAccount gives the token of a service account, under a key of its
// own (decision 17). It refuses reserved ids.
func SignServiceAccount(k *Keys, a *ServiceAccount) (Token, error) {
	if a.ID == "" || ReservedServiceAccount(a.ID, a.UserID) {
		return "", fmt.Errorf("service account id %q is reserved or empty: choose another", a.ID)
	}
	c := serviceAccountClaims{ID: a.ID, Subject: a.UserID, IssuedAt: a.IssuedAt.Unix(), NotBefore: a.IssuedAt.Unix()}
	if !a.ExpiresAt.IsZero() {
		c.Expires = a.ExpiresAt.Unix()
	}
	return signToken(k.Current(PurposeServiceAccount), c), nil
}

// VerifyServiceAccount checks form and signature and gives the account's id
// and user id. Validity in time is the record's, not the token's
// (wire-contract.md §6.4).
func VerifyServiceAccount(k *Keys, token string) (id, userID string, err error) {
	claims, err := verifyToken(k.All(PurposeServiceAccount), token)
	if err != nil {
		return "", "", err
	}
	if !stringClaim(claims["jti"], &id) || !stringClaim(claims["sub"], &userID) || id == "" || ReservedServiceAccount(id, userID) {
		return "", "", refuse("a claim is missing or reserved")
	}
	return id, userID, nil
}

// bootstrapID is the identity that SDKs mint from the shared secret.
const bootstrapID = "014e587b-3f4b-4fcf-90a9-f6ecdf8154af"

// ReservedServiceAccount says that an id or user id belongs to the bootstrap
// identity and can never be an account's.
func ReservedServiceAccount(id, userID string) bool {
	id, userID = strings.ToLower(id), strings.ToLower(userID)
	return id == bootstrapID || strings.HasPrefix(userID, "bootstrap-") && strings.HasSuffix(userID, ".pomerium")
}

func signToken(key []byte, claims any) Token {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic("token claims: " + err.Error()) // plain structs always encode
	}
	signed := jwtHeader + "." + rawURL64.EncodeToString(payload)
	return Token(signed + "." + rawURL64.EncodeToString(hs256(key, signed)))
}

func hs256(key []byte, signed string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = io.WriteString(h, signed)
	return h.Sum(nil)
}

// verifyToken accepts exactly: three parts of canonical unpadded base64url,
// header alg HS256 (typ JWT if any, nothing else), a signature by one of keys,
// and a payload object without duplicate names. The signature is checked
// before the payload is looked at.
func verifyToken(keys [][]byte, token string) (map[string]json.RawMessage, error) {
	if len(token) > MaxTokenSize {
		return nil, refuse("it is too long")
	}
	i, j := strings.IndexByte(token, '.'), strings.LastIndexByte(token, '.')
	if i <= 0 || j <= i+1 || strings.IndexByte(token[i+1:j], '.') >= 0 {
		return nil, refuse("it is not a compact JWS")
	}
	if token[:i] != jwtHeader && !acceptableHeader(token[:i]) {
		return nil, refuse("its header is not ours")
	}
	mac, err := rawURL64.DecodeString(token[j+1:])
	if err != nil || len(mac) != sha256.Size {
		return nil, refuse("its signature is malformed")
	}
	good := false
	for _, key := range keys {
		if hmac.Equal(mac, hs256(key, token[:j])) {
			good = true
			break
		}
	}
	if !good {
		return nil, refuse("its signature is wrong")
	}
	payload, err := rawURL64.DecodeString(token[i+1 : j])
	if err != nil {
		return nil, refuse("its payload is malformed")
	}
	claims, ok := strictObject(payload)
	if !ok {
		return nil, refuse("its payload is malformed")
	}
	return claims, nil
}

// acceptableHeader allows another member order than ours, nothing more.
func acceptableHeader(part string) bool {
	b, err := rawURL64.DecodeString(part)
	if err != nil {
		return false
	}
	h, ok := strictObject(b)
	if !ok {
		return false
	}
	var alg, typ string
	if !stringClaim(h["alg"], &alg) || alg != "HS256" {
		return false
	}
	delete(h, "alg")
	if raw, has := h["typ"]; has {
		if !stringClaim(raw, &typ) || typ != "JWT" {
			return false
		}
		delete(h, "typ")
	}
	return len(h) == 0
}

// strictObject reads one JSON object, refusing duplicate names and anything
// after it. Names are exact, unlike those of encoding/json structs.
func strictObject(b []byte) (map[string]json.RawMessage, bool) {
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, false
	}
	out := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, false
		}
		name, ok := t.(string)
		if !ok {
			return nil, false
		}
		if _, dup := out[name]; dup {
			return nil, false
		}
		var raw json.RawMessage
		if dec.Decode(&raw) != nil {
			return nil, false
		}
		out[name] = raw
	}
	if _, err := dec.Token(); err != nil {
		return nil, false
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, false
	}
	return out, true
}

func stringClaim(raw json.RawMessage, into *string) bool {
	return len(raw) > 0 && raw[0] == '"' && json.Unmarshal(raw, into) == nil
}

func uintClaim(raw json.RawMessage, into *uint64) bool {
	n, err := strconv.ParseUint(string(raw), 10, 64)
	*into = n
	return err == nil
}
