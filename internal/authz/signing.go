package authz

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/fnv"
	"math/big"
	"strings"

	"postern/internal/session"
)

// signingKey signs identity assertions, and is published by its public half.
type signingKey struct {
	alg    string // ES256 or RS256 (RFC 7518 §3.1)
	kid    string
	ec     *ecdsa.PrivateKey
	rsa    *rsa.PrivateKey
	jwk    jwk
	header string // encoded protected header, with the dot after it
}

// jwk is one published key (RFC 7517).
type jwk struct {
	Kty string `json:"kty"`
	Crv string `json:"crv,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
	Use string `json:"use"`
	Alg string `json:"alg"`
	Kid string `json:"kid"`
}

var b64 = base64.RawURLEncoding

// signingKeys reads the configured keys, or takes those derived from the
// shared secrets. The first signs.
func signingKeys(configured []byte, keys *session.Keys) ([]*signingKey, error) {
	var out []*signingKey
	if len(configured) > 0 {
		privs, err := ParseSigningKeys(configured)
		if err != nil {
			return nil, err
		}
		for _, p := range privs {
			k, err := newSigningKey(p)
			if err != nil {
				return nil, err
			}
			out = append(out, k)
		}
		return out, nil
	}
	for _, p := range keys.SigningKeys() {
		k, err := newSigningKey(p)
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no key to sign assertions with: set signing_key or shared_secret")
	}
	return out, nil
}

// ParseSigningKeys reads signing_key: one or more PEM blocks with private
// keys, or the base64 of that. Accepted are EC P-256 and RSA of at least 2048
// bits, in PKCS #8, SEC 1 or PKCS #1 form. Errors never hold key material.
func ParseSigningKeys(text []byte) ([]crypto.Signer, error) {
	rest := []byte(strings.TrimSpace(string(text)))
	if block, _ := pem.Decode(rest); block == nil {
		decoded, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(rest)), ""))
		if err != nil {
			return nil, errors.New("signing_key is neither PEM nor base64 of PEM: write a private key, for example from `openssl ecparam -genkey -name prime256v1 -noout`")
		}
		rest = decoded
	}
	var out []crypto.Signer
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		var key any
		var err error
		switch block.Type {
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PARAMETERS":
			continue // openssl writes them in front of the key
		default:
			return nil, fmt.Errorf("signing_key holds a PEM block %q: only unencrypted private keys belong there", block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("signing_key holds a %s that cannot be read: make a new one", block.Type)
		}
		s, ok := key.(crypto.Signer)
		if !ok {
			return nil, errors.New("signing_key holds a key that cannot sign: use EC P-256 or RSA")
		}
		if _, err := newSigningKey(s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, errors.New("signing_key holds no private key: write one in PEM")
	}
	return out, nil
}

func newSigningKey(priv crypto.Signer) (*signingKey, error) {
	k := &signingKey{}
	var thumb string // RFC 7638 §3: required members, sorted, no blanks
	switch p := priv.(type) {
	case *ecdsa.PrivateKey:
		if p.Curve != elliptic.P256() {
			return nil, fmt.Errorf("signing_key is on curve %s: use P-256 (prime256v1)", p.Params().Name)
		}
		pub, err := p.PublicKey.Bytes()
		if err != nil || len(pub) != 65 {
			return nil, errors.New("signing_key is not a point of P-256: make a new one")
		}
		k.alg, k.ec = "ES256", p
		k.jwk = jwk{Kty: "EC", Crv: "P-256", X: b64.EncodeToString(pub[1:33]), Y: b64.EncodeToString(pub[33:])}
		thumb = `{"crv":"P-256","kty":"EC","x":"` + k.jwk.X + `","y":"` + k.jwk.Y + `"}`
	case *rsa.PrivateKey:
		if p.N.BitLen() < 2048 {
			return nil, fmt.Errorf("signing_key is RSA of %d bits: use at least 2048", p.N.BitLen())
		}
		k.alg, k.rsa = "RS256", p
		k.jwk = jwk{Kty: "RSA", N: b64.EncodeToString(p.N.Bytes()), E: b64.EncodeToString(big.NewInt(int64(p.E)).Bytes())}
		thumb = `{"e":"` + k.jwk.E + `","kty":"RSA","n":"` + k.jwk.N + `"}`
	default:
		return nil, errors.New("signing_key is of a kind that cannot sign assertions: use EC P-256 or RSA")
	}
	sum := sha256.Sum256([]byte(thumb))
	k.kid = hex.EncodeToString(sum[:])
	k.jwk.Use, k.jwk.Alg, k.jwk.Kid = "sig", k.alg, k.kid
	k.header = b64.EncodeToString([]byte(`{"alg":"`+k.alg+`","kid":"`+k.kid+`","typ":"JWT"}`)) + "."
	return k, nil
}

// sign gives the compact JWS (RFC 7515 §7.1) of a JSON payload.
func (k *signingKey) sign(payload []byte) (string, error) {
	input := make([]byte, 0, len(k.header)+b64.EncodedLen(len(payload))+400)
	input = append(input, k.header...)
	input = b64.AppendEncode(input, payload)
	sum := sha256.Sum256(input)
	var sig []byte
	if k.ec != nil {
		r, s, err := ecdsa.Sign(rand.Reader, k.ec, sum[:])
		if err != nil {
			return "", fmt.Errorf("the assertion cannot be signed: %w", err)
		}
		sig = make([]byte, 64) // R || S (RFC 7518 §3.4)
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
	} else {
		var err error
		if sig, err = rsa.SignPKCS1v15(rand.Reader, k.rsa, crypto.SHA256, sum[:]); err != nil {
			return "", fmt.Errorf("the assertion cannot be signed: %w", err)
		}
	}
	input = append(input, '.')
	return string(b64.AppendEncode(input, sig)), nil
}

// document is a small public answer with its validator.
type document struct {
	body []byte
	etag string
}

func newDocument(body []byte) document {
	h := fnv.New64a()
	_, _ = h.Write(body)
	return document{body, fmt.Sprintf(`"%x"`, h.Sum64())}
}

func keySet(keys []*signingKey) (document, error) {
	set := struct {
		Keys []jwk `json:"keys"`
	}{Keys: []jwk{}}
	seen := map[string]bool{}
	for _, k := range keys {
		if !seen[k.kid] {
			seen[k.kid] = true
			set.Keys = append(set.Keys, k.jwk)
		}
	}
	b, err := json.Marshal(set)
	if err != nil {
		return document{}, fmt.Errorf("the key set cannot be encoded: %w", err)
	}
	return newDocument(b), nil
}
