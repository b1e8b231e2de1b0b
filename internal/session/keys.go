package session

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"
)

// Purpose names what a derived key is for. One key has one purpose, so that a
// thing made for one can never be taken for another (decision 11).
type Purpose string

// The purposes in use. State, CSRF and Nonce keys come from cookie_secret.
const (
	PurposeHandle         Purpose = "handle"          // HS256 of handles
	PurposeServiceAccount Purpose = "service-account" // HS256 of service-account tokens
	PurposeSignedURL      Purpose = "signed-url"      // links between our own hosts
	PurposeCallback       Purpose = "callback"        // the sealed handle on its way to a route host
	PurposeRecords        Purpose = "records"         // wraps the data keys of the store
	PurposeIndex          Purpose = "index"           // HMAC of index values at rest
	PurposeState          Purpose = "state"           // sealed OAuth state
	PurposeCSRF           Purpose = "csrf"            // form tokens
	PurposeNonce          Purpose = "nonce"           // the browser nonce cookie
	PurposePKCE           Purpose = "pkce"            // code verifiers
	PurposeOIDCNonce      Purpose = "oidc-nonce"      // OpenID Connect nonces
)

// KeySize is the length in bytes of shared_secret, cookie_secret and every
// derived key.
const KeySize = 32

// Keys derives a key per purpose from the configured secrets. What previous
// secrets made is still accepted; nothing new is made with them. It is safe
// for concurrent use.
type Keys struct {
	shared   []Secret // current first
	cookie   []Secret // current first
	mu       sync.RWMutex
	derived  map[Purpose][][]byte
	signing  []*ecdsa.PrivateKey
	hpkeOnce sync.Once
	hpke     hpke.PrivateKey
	hpkeErr  error
}

// NewKeys checks the secrets' lengths and derives. A zero cookie secret is
// replaced by one derived from shared, so that replicas agree on it.
func NewKeys(shared Secret, previous []Secret, cookie Secret) (*Keys, error) {
	if err := checkKey("shared_secret", shared); err != nil {
		return nil, err
	}
	k := &Keys{shared: []Secret{shared}, derived: map[Purpose][][]byte{}}
	for i, p := range previous {
		if err := checkKey(fmt.Sprintf("shared_secret_previous[%d]", i), p); err != nil {
			return nil, err
		}
		k.shared = append(k.shared, p)
	}
	if cookie.IsZero() {
		for _, s := range k.shared {
			k.cookie = append(k.cookie, Secret{derive(s, "postern/1/cookie-secret", KeySize)})
		}
	} else {
		if err := checkKey("cookie_secret", cookie); err != nil {
			return nil, err
		}
		k.cookie = []Secret{cookie}
	}
	for _, s := range k.shared {
		priv, err := deriveSigningKey(s)
		if err != nil {
			return nil, err
		}
		k.signing = append(k.signing, priv)
	}
	return k, nil
}

func checkKey(name string, s Secret) error {
	if n := len(s.b); n != KeySize {
		return fmt.Errorf("%s is %d bytes long, not %d: give 32 random bytes in base64, for example from `head -c32 /dev/urandom | base64`", name, n, KeySize)
	}
	return nil
}

// derive expands s by HKDF-SHA256 (RFC 5869) without salt.
func derive(s Secret, info string, n int) []byte {
	b, err := hkdf.Key(sha256.New, s.b, nil, info, n)
	if err != nil {
		panic("hkdf: " + err.Error()) // only for absurd lengths
	}
	return b
}

// All gives the keys for a purpose, the one to seal with first. The slices
// are shared and must not be changed.
func (k *Keys) All(p Purpose) [][]byte {
	k.mu.RLock()
	all := k.derived[p]
	k.mu.RUnlock()
	if all != nil {
		return all
	}
	from := k.shared
	switch p {
	case PurposeState, PurposeCSRF, PurposeNonce, PurposePKCE, PurposeOIDCNonce:
		from = k.cookie
	}
	for _, s := range from {
		all = append(all, derive(s, "postern/1/"+string(p), KeySize))
	}
	k.mu.Lock()
	k.derived[p] = all
	k.mu.Unlock()
	return all
}

// Current gives the key to seal and sign with.
func (k *Keys) Current(p Purpose) []byte { return k.All(p)[0] }

// MAC is HMAC-SHA-256 of the parts under the current key of p, each part
// preceded by its length so that parts cannot run into each other.
func (k *Keys) MAC(p Purpose, parts ...string) []byte {
	return macParts(k.Current(p), parts)
}

// CheckMAC compares mac in constant time with what each key of p gives.
func (k *Keys) CheckMAC(p Purpose, mac []byte, parts ...string) bool {
	return k.checkMAC(p, mac, sha256.Size, parts)
}

// CheckShortMAC is CheckMAC for the first 16 bytes of a MAC, where room in a
// link or cookie is short.
func (k *Keys) CheckShortMAC(p Purpose, mac []byte, parts ...string) bool {
	return k.checkMAC(p, mac, 16, parts)
}

func (k *Keys) checkMAC(p Purpose, mac []byte, size int, parts []string) bool {
	ok := false
	for _, key := range k.All(p) {
		if hmac.Equal(mac, macParts(key, parts)[:size]) {
			ok = true
		}
	}
	return ok
}

func macParts(key []byte, parts []string) []byte {
	h := hmac.New(sha256.New, key)
	var n [8]byte
	for _, part := range parts {
		l := uint64(len(part))
		for i := range n {
			n[i] = byte(l >> (8 * i))
		}
		h.Write(n[:])
		h.Write([]byte(part))
	}
	return h.Sum(nil)
}

// ErrSealed says that sealed data does not open: it was damaged, made for
// another purpose, or by a key that is no longer configured.
var ErrSealed = errors.New("sealed data does not open with any configured key")

// Seal encrypts with XChaCha20-Poly1305; the random nonce is appended after
// ciphertext and tag (wire-contract.md, notation). ad is bound, not stored.
func (k *Keys) Seal(p Purpose, plain, ad []byte) []byte {
	aead, err := chacha20poly1305.NewX(k.Current(p))
	if err != nil {
		panic("xchacha20poly1305: " + err.Error()) // the key length is fixed
	}
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails (crypto/rand)
	return append(aead.Seal(nil, nonce, plain, ad), nonce...)
}

// Open reverses Seal with the current or a previous key.
func (k *Keys) Open(p Purpose, sealed, ad []byte) ([]byte, error) {
	at := len(sealed) - chacha20poly1305.NonceSizeX
	if at < chacha20poly1305.Overhead {
		return nil, ErrSealed
	}
	for _, key := range k.All(p) {
		aead, err := chacha20poly1305.NewX(key)
		if err != nil {
			return nil, ErrSealed
		}
		if plain, err := aead.Open(nil, sealed[at:], sealed[:at], ad); err == nil {
			return plain, nil
		}
	}
	return nil, ErrSealed
}

// SigningKeys are the ECDSA P-256 keys derived from the shared secrets for
// signing assertions where no signing_key is configured: the current one
// first, previous ones for the key set only (wire-contract.md §2, JWKS).
func (k *Keys) SigningKeys() []*ecdsa.PrivateKey { return k.signing }

// deriveSigningKey maps 48 bytes of HKDF-SHA256 output (info
// "derived-jwt-signing-key") to a scalar in [1, n-1]; with 128 bits more than
// the order the bias is negligible (FIPS 186-5, A.2.1). Any derivation that
// is stable across restarts and replicas satisfies the contract.
func deriveSigningKey(s Secret) (*ecdsa.PrivateKey, error) {
	curve := elliptic.P256()
	d := new(big.Int).SetBytes(derive(s, "derived-jwt-signing-key", 48))
	nMinus1 := new(big.Int).Sub(curve.Params().N, big.NewInt(1))
	d.Mod(d, nMinus1).Add(d, big.NewInt(1))
	priv, err := ecdsa.ParseRawPrivateKey(curve, d.FillBytes(make([]byte, 32)))
	if err != nil {
		return nil, fmt.Errorf("signing key cannot be derived from shared_secret: %w; use another secret", err)
	}
	return priv, nil
}

// HPKE is the X25519 key pair derived from the shared secret whose public half
// is published (wire-contract.md §1.7).
func (k *Keys) HPKE() (hpke.PrivateKey, error) {
	k.hpkeOnce.Do(func() {
		ikm := derive(k.shared[0], "pomerium/hpke", KeySize)
		k.hpke, k.hpkeErr = hpke.DHKEM(ecdh.X25519()).DeriveKeyPair(ikm)
	})
	return k.hpke, k.hpkeErr
}

// SharedSecrets are the raw secrets, current first. They verify internal RPC
// and the SDKs' bootstrap token and serve nothing else.
func (k *Keys) SharedSecrets() []Secret { return k.shared }
