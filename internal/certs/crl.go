package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// revocations is one certificate revocation list (RFC 5280 §5).
type revocations struct {
	*x509.RevocationList
	scope   []byte          // its issuing distribution point, as written
	revoked map[string]bool // by serial number, big-endian
}

var (
	// deltaList marks a CRL that holds changes only (RFC 5280 §5.2.4).
	deltaList = asn1.ObjectIdentifier{2, 5, 29, 27}
	// distributionPoint says which certificates a CRL is about (§5.2.5).
	distributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
	// entryIssuer names the CA of an entry of an indirect CRL (§5.3.3).
	entryIssuer = asn1.ObjectIdentifier{2, 5, 29, 29}
)

// parseCRLs reads downstream_mtls.crl, PEM or DER. Of several lists of one
// issuer about the same certificates only the newest is kept.
func parseCRLs(text []byte) ([]*revocations, error) {
	if len(text) == 0 {
		return nil, nil
	}
	var ders [][]byte
	for rest := text; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		ders = append(ders, b.Bytes)
	}
	if len(ders) == 0 {
		ders = [][]byte{text}
	}
	var out []*revocations
	for _, der := range ders {
		list, err := parseCRL(der)
		if err != nil {
			return nil, err
		}
		older := slices.IndexFunc(out, func(o *revocations) bool {
			return bytes.Equal(o.RawIssuer, list.RawIssuer) && bytes.Equal(o.AuthorityKeyId, list.AuthorityKeyId) && bytes.Equal(o.scope, list.scope)
		})
		switch {
		case older < 0:
			out = append(out, list)
		case list.ThisUpdate.After(out[older].ThisUpdate):
			out[older] = list
		}
	}
	return out, nil
}

func parseCRL(der []byte) (*revocations, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("downstream_mtls.crl cannot be read: %w; give revocation lists as PEM or DER", err)
	}
	r := &revocations{RevocationList: list, revoked: make(map[string]bool, len(list.RevokedCertificateEntries))}
	for _, e := range list.Extensions {
		switch {
		case e.Id.Equal(deltaList):
			// Taken for a whole list it would forgive what the base revokes.
			return nil, errors.New("downstream_mtls.crl holds a delta list: give complete revocation lists")
		case e.Id.Equal(distributionPoint):
			r.scope = e.Value
		case e.Critical:
			return nil, fmt.Errorf("downstream_mtls.crl holds a list with the critical extension %s, whose meaning is unknown: give plain revocation lists", e.Id)
		}
	}
	for _, e := range list.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Id.Equal(entryIssuer) {
				return nil, errors.New("downstream_mtls.crl holds an indirect list, which revokes certificates of other CAs: give each CA's own list")
			}
		}
		r.revoked[string(e.SerialNumber.Bytes())] = true
	}
	return r, nil
}

// signedBy says whether the list bears the signature of the issuer, or of one
// of the same name among the trusted: a CA that changed its key.
func (r *revocations) signedBy(issuer *x509.Certificate, trusted []*x509.Certificate) bool {
	if r.CheckSignatureFrom(issuer) == nil {
		return true
	}
	return slices.ContainsFunc(trusted, func(c *x509.Certificate) bool {
		return bytes.Equal(c.RawSubject, issuer.RawSubject) && r.CheckSignatureFrom(c) == nil
	})
}
