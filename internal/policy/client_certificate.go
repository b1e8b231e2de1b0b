package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var clientCertificate = &Criterion{
	Name:    "client_certificate",
	Doc:     "True if the certificate that the client presented matches. It does not say that the certificate is trusted; combine it with invalid_client_certificate under deny.",
	Value:   "certificate matcher: fingerprint, spki_hash, san_dns, san_email, san_uri",
	Matcher: certificateKind,
	Example: `
policy:
  - allow:
      or:
        - client_certificate: {san_dns: {ends_with: .laptops.example.com}}
cases:
  - {name: no certificate, expect: deny, reasons: [client-certificate-unauthorized]}
`,
	Compile: compileClientCertificate,
}

// clientCertificateKeys are the keys of the certificate matcher (§6).
var clientCertificateKeys = []string{"fingerprint", "spki_hash", "san_dns", "san_email", "san_uri"}

func compileClientCertificate(s *Scope, n *yaml.Node) test {
	entries, ok := s.object(n, "", "certificate key", clientCertificateKeys)
	if !ok || len(entries) < len(n.Content)/2 {
		return nil
	}
	if len(entries) == 0 {
		s.Warnf(n, "", "an empty matcher holds for any certificate, trusted or not")
	}
	var parts []func(*x509.Certificate) bool
	for _, e := range entries {
		var part func(*x509.Certificate) bool
		switch e.name {
		case "fingerprint":
			part = s.digests(e.value, e.name, parseFingerprint, func(c *x509.Certificate) []byte { return c.Raw })
		case "spki_hash":
			part = s.digests(e.value, e.name, parseKeyHash, func(c *x509.Certificate) []byte { return c.RawSubjectPublicKeyInfo })
		case "san_dns":
			part = s.names(e.value, e.name, func(c *x509.Certificate) []string { return c.DNSNames })
		case "san_email":
			part = s.names(e.value, e.name, func(c *x509.Certificate) []string { return c.EmailAddresses })
		case "san_uri":
			part = s.names(e.value, e.name, func(c *x509.Certificate) []string {
				uris := make([]string, len(c.URIs))
				for i, u := range c.URIs {
					uris[i] = u.String()
				}
				return uris
			})
		}
		if part == nil {
			ok = false
			continue
		}
		parts = append(parts, part)
	}
	if !ok {
		return nil
	}
	good, bad := ReasonClientCertificateOK.set(), ReasonClientCertificateUnauthorized.set()
	return func(in *Input) verdict {
		if in.Certificate == nil {
			return verdict{why: bad}
		}
		for _, part := range parts {
			if !part(in.Certificate) {
				return verdict{why: bad}
			}
		}
		return verdict{ok: true, why: good}
	}
}

// digests compiles a list of SHA-256 digests of a part of the certificate.
func (s *Scope) digests(n *yaml.Node, key string, parse func(string) ([sha256.Size]byte, string), of func(*x509.Certificate) []byte) func(*x509.Certificate) bool {
	list, nodes, ok := s.texts(n, key, key)
	set := make(map[[sha256.Size]byte]struct{}, len(list))
	for i, t := range list {
		digest, wrong := parse(t)
		if wrong != "" {
			sub := key
			if nodes[i] != n {
				sub += "[" + strconv.Itoa(indexOf(n, nodes[i])) + "]"
			}
			s.Errorf(nodes[i], sub, "%s", wrong)
			ok = false
			continue
		}
		set[digest] = struct{}{}
	}
	if !ok {
		return nil
	}
	if len(list) == 0 {
		s.Warnf(n, key, "an empty list of %s never matches", key)
	}
	return func(c *x509.Certificate) bool {
		_, listed := set[sha256.Sum256(of(c))]
		return listed
	}
}

// parseFingerprint reads 64 lower-case hexadecimal digits, or 32 upper-case
// pairs joined by colons as openssl prints them; nothing else.
func parseFingerprint(t string) (digest [sha256.Size]byte, wrong string) {
	if t == "" {
		return digest, "the fingerprint is empty; give the SHA-256 of the certificate"
	}
	digits := ""
	switch {
	case len(t) == 64 && strings.ToLower(t) == t:
		digits = t
	case len(t) == 95 && strings.ToUpper(t) == t:
		pairs := strings.Split(t, ":")
		if len(pairs) == sha256.Size {
			digits = strings.Join(pairs, "")
		}
		for _, p := range pairs {
			if len(p) != 2 {
				digits = ""
			}
		}
	}
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != sha256.Size {
		return digest, quote(t) + " is not a fingerprint; give the SHA-256 of the certificate as 64 lower-case hexadecimal digits, or as 32 upper-case pairs joined by colons"
	}
	return [sha256.Size]byte(b), ""
}

// parseKeyHash reads standard base64 of a SHA-256.
func parseKeyHash(t string) (digest [sha256.Size]byte, wrong string) {
	b, err := base64.StdEncoding.Strict().DecodeString(t)
	if err != nil || len(b) != sha256.Size || strings.ContainsAny(t, "\r\n") {
		return digest, quote(t) + " is not an spki_hash; give the SHA-256 of the public key info (32 bytes) in standard base64"
	}
	return [sha256.Size]byte(b), ""
}

// names compiles a string matcher over the alternative names of one kind.
// Each operator may be satisfied by a different name; not_in looks at all.
func (s *Scope) names(n *yaml.Node, key string, of func(*x509.Certificate) []string) func(*x509.Certificate) bool {
	ops, ok := s.stringMatcherOperators(n, key)
	if !ok {
		return nil
	}
	return func(c *x509.Certificate) bool {
		names := of(c)
		for _, op := range ops {
			all, some := true, false
			for _, name := range names {
				if op.holds(name) {
					some = true
				} else {
					all = false
				}
			}
			if op.name == "not_in" && !all || op.name != "not_in" && !some {
				return false
			}
		}
		return true
	}
}
