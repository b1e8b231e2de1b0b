package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// LocalCA is a certificate authority of this machine, for trying out. It can
// vouch for localhost and names below it only (name constraints, RFC 5280
// §4.2.1.10), so that trusting it in a browser risks nothing else. Leaves are
// minted for each name asked for, because browsers refuse *.localhost.
type LocalCA struct {
	file string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

const (
	caLife   = 5 * 365 * 24 * time.Hour
	leafLife = 90 * 24 * time.Hour
	// renewBefore is how long before their end CA and leaves are made anew.
	renewBefore = 30 * 24 * time.Hour
	maxLeaves   = 1000
)

// LocalName says whether the local CA can vouch for a (lower-case) name.
func LocalName(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost") && !strings.ContainsAny(name, "*_ ") && len(name) <= 253
}

// LoadOrCreateLocalCA takes the CA in dir, or makes one there: ca.pem to hand
// out and ca-key.pem, which only its owner may read.
func LoadOrCreateLocalCA(dir string) (*LocalCA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the local CA has no place: %w; name a directory that can be written", err)
	}
	ca := &LocalCA{file: filepath.Join(dir, "ca.pem"), leaves: map[string]*tls.Certificate{}}
	pair, err := tls.LoadX509KeyPair(ca.file, filepath.Join(dir, "ca-key.pem"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("the local CA in %s cannot be used: %w; delete the directory to get a new one", dir, err)
	default:
		cert, err := x509.ParseCertificate(pair.Certificate[0])
		key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
		if err != nil || !ok || !cert.IsCA {
			return nil, fmt.Errorf("the local CA in %s is not one that Postern made; delete the directory to get a new one", dir)
		}
		if !cert.PermittedDNSDomainsCritical || len(cert.PermittedDNSDomains) != 1 || cert.PermittedDNSDomains[0] != "localhost" {
			return nil, fmt.Errorf("the local CA in %s may vouch for more than localhost; delete the directory to get a new one", dir)
		}
		if err := os.Chmod(filepath.Join(dir, "ca-key.pem"), 0o600); err != nil {
			return nil, fmt.Errorf("the key of the local CA cannot be kept private: %w", err)
		}
		if time.Now().Add(renewBefore).Before(cert.NotAfter) {
			ca.cert, ca.key = cert, key
			return ca, nil
		}
	}
	return ca, ca.create(dir)
}

func (ca *LocalCA) create(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: "Postern demo CA " + now.Format(time.DateOnly), Organization: []string{"Postern, for localhost only"}},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{"localhost"},
		// Names of other kinds are not covered by that, addresses above all.
		ExcludedIPRanges: []*net.IPNet{{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return err
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	ca.key = key
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// The key first: a certificate without its key would be taken for broken.
	if err := os.Remove(ca.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the local CA cannot be replaced: %w", err)
	}
	if err := writeAside(filepath.Join(dir, "ca-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})); err != nil {
		return err
	}
	return writeAside(ca.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// writeAside writes a file for its owner alone and puts it in place by rename.
func writeAside(file string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

// File is the CA certificate as PEM, for clients to trust.
func (ca *LocalCA) File() string { return ca.file }

// Certificate is the CA's own certificate.
func (ca *LocalCA) Certificate() *x509.Certificate { return ca.cert }

// leaf gives the certificate for a name, minted on first use.
func (ca *LocalCA) leaf(name string) (*tls.Certificate, error) {
	if !LocalName(name) {
		return nil, fmt.Errorf("the local CA does not vouch for %q", name)
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if c := ca.leaves[name]; c != nil && time.Now().Add(renewBefore).Before(c.Leaf.NotAfter) {
		return c, nil
	}
	if len(ca.leaves) >= maxLeaves { // a stranger may ask for any name
		clear(ca.leaves)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	end := now.Add(leafLife)
	if end.After(ca.cert.NotAfter) {
		end = ca.cert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: shortName(name)}, DNSNames: []string{name},
		NotBefore: now.Add(-time.Hour), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}
	ca.leaves[name] = c
	return c, nil
}

// shortName fits the 64 characters that a common name may have.
func shortName(name string) string {
	if len(name) > 64 {
		return "localhost"
	}
	return name
}
