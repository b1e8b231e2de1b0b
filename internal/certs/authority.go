package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"postern/internal/exchange"
)

// authority is one client CA with the rules for what it vouches for.
type authority struct {
	sum    [sha256.Size]byte // of its certificates
	pool   *x509.CertPool
	list   []*x509.Certificate
	crls   []*revocations
	sans   []sanRule
	depth  int // 0: unlimited
	strict bool
}

func (a *authority) load(key string, text []byte) error {
	a.pool = x509.NewCertPool()
	h := sha256.New()
	for rest := text; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return fmt.Errorf("%s holds a certificate that cannot be read: %w; give PEM CA certificates", key, err)
		}
		a.pool.AddCert(cert)
		a.list = append(a.list, cert)
		h.Write(cert.Raw)
	}
	if len(a.list) == 0 {
		return fmt.Errorf("%s holds no certificate: give PEM CA certificates", key)
	}
	h.Sum(a.sum[:0])
	return nil
}

// invalidFor is how long a refusal is remembered: a certificate that is not
// valid yet becomes so.
const invalidFor = 10 * time.Second

func (a *authority) verify(chain []*x509.Certificate, now time.Time) verdict {
	invalid := func(why error) verdict { return verdict{exchange.CertificateInvalid, now.Add(invalidFor), why} }
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	leaf := chain[0]
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: a.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return invalid(explain(leaf, err, now))
	}
	if !a.sanMatches(leaf) {
		return invalid(fmt.Errorf("no alternative name of the client certificate of %s matches match_subject_alt_names", leaf.Subject))
	}
	var why error
	for _, ch := range chains {
		if a.depth > 0 && len(ch)-1 > a.depth {
			why = fmt.Errorf("the chain of the client certificate of %s has %d certificates below the CA, and max_verify_depth is %d", leaf.Subject, len(ch)-1, a.depth)
			continue
		}
		until, err := a.notRevoked(ch, now)
		if err != nil {
			why = err
			continue
		}
		for _, cert := range ch {
			if cert.NotAfter.Before(until) {
				until = cert.NotAfter
			}
		}
		return verdict{state: exchange.CertificateValid, until: until}
	}
	return invalid(why)
}

// explain says in the operator's words why a chain does not verify.
func explain(leaf *x509.Certificate, err error, now time.Time) error {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.Before(invalid.Cert.NotBefore):
		return fmt.Errorf("the client certificate of %s is not valid before %s", invalid.Cert.Subject, invalid.Cert.NotBefore.UTC().Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the client certificate of %s expired on %s", invalid.Cert.Subject, invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return fmt.Errorf("the client certificate of %s is not meant for clients (extended key usage)", leaf.Subject)
	case errors.As(err, &unknown):
		return fmt.Errorf("the client certificate of %s is signed by an unknown CA (%s)", leaf.Subject, leaf.Issuer)
	}
	return fmt.Errorf("the client certificate of %s does not verify: %w", leaf.Subject, err)
}

// notRevoked looks the leaf up in the lists of its issuer. A list whose
// signature is not its issuer's revokes everything of that issuer, because
// nobody knows what it should have said.
func (a *authority) notRevoked(chain []*x509.Certificate, now time.Time) (until time.Time, err error) {
	until = now.Add(time.Hour)
	if len(chain) < 2 {
		return until, nil // the leaf itself is trusted
	}
	leaf, issuer := chain[0], chain[1]
	for _, list := range a.crls {
		if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
			continue
		}
		if !list.signedBy(issuer, a.list) {
			return until, fmt.Errorf("the revocation list of %s does not bear its signature", issuer.Subject)
		}
		if a.strict && (now.Before(list.ThisUpdate) || !list.NextUpdate.IsZero() && now.After(list.NextUpdate)) {
			return until, fmt.Errorf("the revocation list of %s is out of date (%s to %s), so nothing of it is trusted", issuer.Subject,
				list.ThisUpdate.UTC().Format(time.RFC3339), list.NextUpdate.UTC().Format(time.RFC3339))
		}
		if a.strict && !list.NextUpdate.IsZero() && list.NextUpdate.Before(until) {
			until = list.NextUpdate
		}
		if list.revoked[string(leaf.SerialNumber.Bytes())] {
			return until, fmt.Errorf("the client certificate of %s is revoked", leaf.Subject)
		}
	}
	return until, nil
}
