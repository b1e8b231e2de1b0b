package certs

import (
	"crypto/x509"
	"encoding/asn1"
	"regexp"
)

// sanRule is one entry of match_subject_alt_names.
type sanRule struct {
	kind string
	re   *regexp.Regexp
}

// sanMatches says whether one of the rules, if there are any, matches one of
// the leaf's alternative names in full.
func (a *authority) sanMatches(leaf *x509.Certificate) bool {
	if len(a.sans) == 0 {
		return true
	}
	for _, r := range a.sans {
		for _, name := range alternativeNames(leaf, r.kind) {
			if r.re.MatchString(name) {
				return true
			}
		}
	}
	return false
}

func alternativeNames(leaf *x509.Certificate, kind string) []string {
	switch kind {
	case "dns":
		return leaf.DNSNames
	case "email":
		return leaf.EmailAddresses
	case "ip_address":
		out := make([]string, len(leaf.IPAddresses))
		for i, ip := range leaf.IPAddresses {
			out[i] = ip.String()
		}
		return out
	case "uri":
		out := make([]string, len(leaf.URIs))
		for i, u := range leaf.URIs {
			out[i] = u.String()
		}
		return out
	case "user_principal_name":
		return principalNames(leaf)
	}
	return nil
}

var (
	subjectAltName    = asn1.ObjectIdentifier{2, 5, 29, 17}
	userPrincipalName = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}
)

// principalNames reads the otherName entries that hold a user principal name
// (RFC 5280 §4.2.1.6; [MS-PKCA] for the OID).
func principalNames(leaf *x509.Certificate) []string {
	var out []string
	for _, e := range leaf.Extensions {
		if !e.Id.Equal(subjectAltName) {
			continue
		}
		var names asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return nil
		}
		for rest := names.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			var err error
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return out
			}
			if name.Class != asn1.ClassContextSpecific || name.Tag != 0 {
				continue
			}
			var oid asn1.ObjectIdentifier
			tail, err := asn1.Unmarshal(name.Bytes, &oid)
			if err != nil || !oid.Equal(userPrincipalName) {
				continue
			}
			var value, text asn1.RawValue
			if _, err := asn1.Unmarshal(tail, &value); err != nil {
				continue
			}
			if _, err := asn1.Unmarshal(value.Bytes, &text); err == nil {
				out = append(out, string(text.Bytes))
			}
		}
	}
	return out
}
