package certs

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// pair is a certificate chain with its key, parsed, and the OCSP response that
// goes with it. Equal pairs are one, over all generations.
type pair struct {
	cert tls.Certificate // without staple
	leaf *x509.Certificate
	// names are lower-case DNS names and IP addresses.
	names      []string
	ecdsa      bool
	mustStaple bool
	// issuer and responder are where a staple comes from; either may be
	// missing, and then there is none.
	issuer    *x509.Certificate
	responder string

	staple    atomic.Pointer[staple]
	tried     chan struct{} // closed after the first attempt to get a staple
	triedOnce sync.Once
}

// staple is a verified OCSP response that says "good".
type staple struct {
	cert  *tls.Certificate // the pair's, with the response
	from  time.Time
	until time.Time
}

var pairs interned[pair]

// minRSA is the shortest RSA key in bits that clients accept.
const minRSA = 2048

// mustStaple is the TLS feature extension, and statusRequest the feature that
// demands a staple (RFC 7633).
var mustStaple = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

const statusRequest = 5

// Check says what is wrong with a certificate and its key; nil if it can serve.
// It keeps what it read for New.
func (p *KeyPair) Check() error {
	_, err := p.load()
	return err
}

func (p *KeyPair) load() (*pair, error) {
	if p.parsed != nil {
		return p.parsed, nil
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d:", len(p.CertPEM))
	h.Write(p.CertPEM)
	h.Write(p.KeyPEM)
	var key sumKey
	h.Sum(key[:0])
	var err error
	p.parsed, err = pairs.get(key, func() (*pair, error) { return parsePair(p.CertPEM, p.KeyPEM) })
	return p.parsed, err
}

func parsePair(certPEM, keyPEM []byte) (*pair, error) {
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		if strings.Contains(err.Error(), "does not match") {
			return nil, errors.New("the certificate does not match its key; give the two that were made together")
		}
		return nil, fmt.Errorf("certificate and key cannot be used: %s; give a PEM certificate chain, leaf first, and its unencrypted PEM key", strings.TrimPrefix(err.Error(), "tls: "))
	}
	p := &pair{cert: cert, leaf: cert.Leaf, tried: make(chan struct{})}
	if p.leaf == nil {
		if p.leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("the certificate cannot be read: %w; give a PEM certificate chain, leaf first", err)
		}
		p.cert.Leaf = p.leaf
	}
	switch key := p.leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSA {
			return nil, fmt.Errorf("the RSA key has %d bits, which clients refuse; use at least %d, or ECDSA P-256", n, minRSA)
		}
	case *ecdsa.PublicKey:
		if bits := key.Curve.Params().BitSize; bits != 256 && bits != 384 {
			return nil, fmt.Errorf("the key is on the curve %s, which browsers do not know; use ECDSA P-256", key.Curve.Params().Name)
		}
		p.ecdsa = true
	default:
		return nil, fmt.Errorf("the key is of the kind %s, which browsers do not know; use ECDSA P-256 or RSA", p.leaf.PublicKeyAlgorithm)
	}
	p.names = certificateNames(p.leaf)
	for _, e := range p.leaf.Extensions {
		var features []int
		if !e.Id.Equal(mustStaple) {
			continue
		}
		if _, err := asn1.Unmarshal(e.Value, &features); err != nil {
			return nil, fmt.Errorf("the certificate's TLS feature extension cannot be read: %w; have it issued anew", err)
		}
		for _, f := range features {
			p.mustStaple = p.mustStaple || f == statusRequest
		}
	}
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil && p.leaf.CheckSignatureFrom(c) == nil {
			p.issuer = c
			break
		}
	}
	for _, server := range p.leaf.OCSPServer {
		if u, err := url.Parse(server); err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
			p.responder = server
			break
		}
	}
	if p.mustStaple && !p.stapled() {
		missing := "names no OCSP responder"
		if p.responder != "" {
			missing = "comes without the certificate of its issuer, which an OCSP response is checked by"
		}
		return nil, fmt.Errorf("the certificate says must-staple and %s, so that there is no OCSP staple to send and browsers would refuse it; "+
			"give the whole chain, or have it issued without must-staple", missing)
	}
	return p, nil
}

// certificateNames are the names a certificate is served for. The common name
// counts only where there is no other, as clients of long ago had it.
func certificateNames(leaf *x509.Certificate) []string {
	names := make([]string, 0, len(leaf.DNSNames)+len(leaf.IPAddresses))
	for _, n := range leaf.DNSNames {
		names = append(names, strings.ToLower(strings.TrimSuffix(n, ".")))
	}
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	if cn := strings.ToLower(strings.TrimSuffix(leaf.Subject.CommonName, ".")); len(names) == 0 && cn != "" && !strings.Contains(cn, " ") {
		names = append(names, cn)
	}
	return names
}

// stapled says whether OCSP responses for the pair can be had.
func (p *pair) stapled() bool { return p.issuer != nil && p.responder != "" }

// serve is the certificate to serve now, with its staple if there is one; nil
// if it must not be served without, and there is none.
func (p *pair) serve(now time.Time) *tls.Certificate {
	if st := p.staple.Load(); st != nil && now.Before(st.until) {
		return st.cert
	}
	if p.mustStaple {
		return nil
	}
	return &p.cert
}

// current says whether the certificate is within its time.
func (p *pair) current(now time.Time) bool {
	return !now.Before(p.leaf.NotBefore) && !now.After(p.leaf.NotAfter)
}

// note says what the operator should look at; "" is nothing.
func (p *pair) note(now time.Time) string {
	name := strings.Join(p.names, ", ")
	switch leaf := p.leaf; {
	case now.After(leaf.NotAfter):
		return fmt.Sprintf("the certificate for %s expired on %s; renew it", name, leaf.NotAfter.Format(time.DateOnly))
	case now.Add(14 * 24 * time.Hour).After(leaf.NotAfter):
		return fmt.Sprintf("the certificate for %s expires on %s; renew it", name, leaf.NotAfter.Format(time.DateOnly))
	case now.Before(leaf.NotBefore):
		return fmt.Sprintf("the certificate for %s is not valid before %s; check this machine's clock", name, leaf.NotBefore.Format(time.RFC3339))
	case len(leaf.DNSNames)+len(leaf.IPAddresses) == 0:
		return fmt.Sprintf("the certificate for %s has no subject alternative name, and browsers refuse such; have it issued with one", leaf.Subject)
	}
	return ""
}
