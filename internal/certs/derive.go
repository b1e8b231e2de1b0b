package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"strconv"
	"sync"
	"time"
)

// DerivedCA is a certificate authority that all replicas have in common
// without talking to each other: its key comes from the shared secret. It signs
// the certificate of last resort and, with tls_derive, an internal one.
// Certificates are the same bytes everywhere, because signatures are
// deterministic (RFC 6979).
type DerivedCA struct {
	secret []byte
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// leafPeriod is how often derived leaves change. They are valid from one
// period before to two periods after the beginning of theirs, which stays
// below the 825 days that some clients allow at most.
const leafPeriod = 180 * 24 * time.Hour

// DeriveCA makes the CA of a shared secret.
func DeriveCA(secret []byte) (*DerivedCA, error) {
	if len(secret) == 0 {
		return nil, errors.New("there is no shared_secret to derive a certificate from: configure certificates, or shared_secret")
	}
	d := &DerivedCA{secret: secret, leaves: map[string]*tls.Certificate{}}
	var err error
	if d.key, err = derivedKey(secret, "postern/1/tls-ca"); err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: d.serial("ca"),
		Subject:      pkix.Name{CommonName: "Postern derived CA", Organization: []string{"Postern"}},
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA:         true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &d.key.PublicKey, steadySigner{d.key})
	if err != nil {
		return nil, err
	}
	d.cert, err = x509.ParseCertificate(der)
	return d, err
}

// PEM is the certificate of the CA, for those who are to trust it.
func (d *DerivedCA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.cert.Raw})
}

// leaf is the certificate for a name at a time; "*" is the one of last resort.
func (d *DerivedCA) leaf(name string, now time.Time) (*tls.Certificate, error) {
	period := now.Unix() / int64(leafPeriod/time.Second)
	id := "postern/1/tls-leaf/" + name
	d.mu.Lock()
	defer d.mu.Unlock()
	begins := time.Unix(period*int64(leafPeriod/time.Second), 0).UTC()
	if c := d.leaves[name]; c != nil && c.Leaf.NotBefore.Equal(begins.Add(-leafPeriod)) {
		return c, nil
	}
	key, err := derivedKey(d.secret, id)
	if err != nil {
		return nil, err
	}
	subject := name
	if name == "*" {
		subject = "Postern without a certificate"
	}
	t := &x509.Certificate{
		SerialNumber: d.serial(id + "/" + strconv.FormatInt(period, 10)),
		Subject:      pkix.Name{CommonName: shortName(subject)},
		DNSNames:     []string{name},
		NotBefore:    begins.Add(-leafPeriod), NotAfter: begins.Add(2 * leafPeriod),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, d.cert, &key.PublicKey, steadySigner{d.key})
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der, d.cert.Raw}, PrivateKey: key, Leaf: leaf}
	d.leaves[name] = c
	return c, nil
}

// serial derives a serial number; one CA never uses one twice.
func (d *DerivedCA) serial(what string) *big.Int {
	b, _ := hkdf.Key(sha256.New, d.secret, nil, "postern/1/tls-serial/"+what, 16) // 16 bytes are always to be had
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

// derivedKey makes an ECDSA P-256 key from the shared secret (FIPS 186-5
// appendix A.2.1, with 64 extra bits and more).
func derivedKey(secret []byte, info string) (*ecdsa.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, secret, nil, info, 48)
	if err != nil {
		return nil, err
	}
	n := elliptic.P256().Params().N
	d := new(big.Int).SetBytes(seed)
	d.Mod(d, new(big.Int).Sub(n, big.NewInt(1))).Add(d, big.NewInt(1))
	return ecdsa.ParseRawPrivateKey(elliptic.P256(), d.FillBytes(make([]byte, 32)))
}

// steadySigner signs the same the same way (RFC 6979).
type steadySigner struct{ *ecdsa.PrivateKey }

func (s steadySigner) Sign(_ io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return s.PrivateKey.Sign(nil, digest, o)
}

// TrustDerived adds the CA derived from the shared secret to the roots for
// upstreams, where tls_derive says so.
func TrustDerived(c *Config, secret []byte) error {
	if c.TLSDerive == "" {
		return nil
	}
	d, err := DeriveCA(secret)
	if err != nil {
		return err
	}
	c.ExtraRoots = append(append(append([]byte(nil), c.ExtraRoots...), '\n'), d.PEM()...)
	return nil
}
