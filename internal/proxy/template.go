package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"postern/internal/authz"
	"postern/internal/exchange"
)

// Template is the value of one set_request_headers entry, compiled ahead of
// requests (configuration.md §3.6, wire-contract.md §4.5):
//
//	$name.name  ${ name.name }  ${name["literal key"]}  $$ (a literal "$")
//
// A reference that does not parse stays literal, one that is unknown renders
// as nothing.
type Template struct {
	parts []templatePart
}

type templatePart struct {
	ref  reference
	text string // literal text, or the header name of refHeader
}

// reference is something that a template can name.
type reference uint8

const (
	refLiteral reference = iota
	refUnknown
	refAccessToken
	refIDToken
	refJWT
	refCertFingerprint
	refCertDNS
	refCertEmail
	refHeader
)

var references = map[string]reference{
	"pomerium.access_token":            refAccessToken,
	"pomerium.id_token":                refIDToken,
	"pomerium.jwt":                     refJWT,
	"pomerium.client_cert_fingerprint": refCertFingerprint,
	"pomerium.client_cert_san_dns":     refCertDNS,
	"pomerium.client_cert_san_email":   refCertEmail,
}

// ParseTemplate compiles a header value. Every text is a template.
func ParseTemplate(s string) *Template {
	t := &Template{}
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			t.parts = append(t.parts, templatePart{refLiteral, lit.String()})
			lit.Reset()
		}
	}
	for i := 0; i < len(s); {
		if s[i] != '$' {
			j := strings.IndexByte(s[i:], '$')
			if j < 0 {
				j = len(s) - i
			}
			lit.WriteString(s[i : i+j])
			i += j
			continue
		}
		if strings.HasPrefix(s[i:], "$$") {
			lit.WriteByte('$')
			i += 2
			continue
		}
		path, n := scanReference(s[i+1:])
		if n == 0 {
			lit.WriteByte('$')
			i++
			continue
		}
		i += 1 + n
		if p := resolveReference(path); p.ref != refUnknown {
			flush()
			t.parts = append(t.parts, p)
		}
	}
	flush()
	return t
}

// scanReference reads what may follow a "$" and gives the names of the
// reference and the number of bytes read, 0 if there is no reference.
func scanReference(s string) (path []string, n int) {
	if s == "" || s[0] != '{' {
		return scanPath(s)
	}
	i := 1
	for i < len(s) && (s[i] == ' ' || s[i] == '\t') {
		i++
	}
	path, n = scanPath(s[i:])
	if n == 0 {
		return nil, 0
	}
	for i += n; i < len(s) && (s[i] == ' ' || s[i] == '\t'); {
		i++
	}
	if i == len(s) || s[i] != '}' {
		return nil, 0
	}
	return path, i + 1
}

// scanPath reads names joined by "." and ["..."].
func scanPath(s string) (path []string, n int) {
	end := scanName(s)
	if end == 0 {
		return nil, 0
	}
	path = append(path, s[:end])
	for end < len(s) {
		switch {
		case s[end] == '.':
			k := scanName(s[end+1:])
			if k == 0 {
				return path, end
			}
			path = append(path, s[end+1:end+1+k])
			end += 1 + k
		case strings.HasPrefix(s[end:], `["`):
			key, k, ok := scanKey(s[end+2:])
			if !ok {
				return path, end
			}
			path = append(path, key)
			end += 2 + k
		default:
			return path, end
		}
	}
	return path, end
}

func scanName(s string) int {
	i := 0
	for i < len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || (c == '-' && i > 0)) {
			break
		}
		i++
	}
	return i
}

// scanKey reads a key up to and with `"]`; a backslash takes the next byte as
// it is.
func scanKey(s string) (key string, n int, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case '"':
			if i+1 < len(s) && s[i+1] == ']' {
				return b.String(), i + 2, true
			}
			return "", 0, false
		default:
			b.WriteByte(s[i])
		}
	}
	return "", 0, false
}

func resolveReference(path []string) templatePart {
	if len(path) == 4 && path[0] == "pomerium" && path[1] == "request" && path[2] == "headers" {
		return templatePart{refHeader, path[3]}
	}
	if r, ok := references[strings.Join(path, ".")]; ok {
		return templatePart{ref: r}
	}
	return templatePart{ref: refUnknown}
}

// Credentials reports whether the template may render a credential of the
// caller.
func (t *Template) Credentials() bool {
	for _, p := range t.parts {
		switch p.ref {
		case refAccessToken, refIDToken, refJWT:
			return true
		}
	}
	return false
}

// Expand renders the template for an allowed request. A value that is one
// literal or one reference is rendered without allocating. An error means
// that the assertion could not be signed; the request must not go up.
func (t *Template) Expand(v exchange.View, d *authz.Decision) (string, error) {
	switch len(t.parts) {
	case 0:
		return "", nil
	case 1:
		return t.parts[0].expand(v, d)
	}
	var b strings.Builder
	for i := range t.parts {
		s, err := t.parts[i].expand(v, d)
		if err != nil {
			return "", err
		}
		b.WriteString(s)
	}
	return b.String(), nil
}

func (p *templatePart) expand(v exchange.View, d *authz.Decision) (string, error) {
	var s string
	switch p.ref {
	case refLiteral:
		return p.text, nil
	case refHeader:
		s = v.Header(p.text)
	case refJWT:
		var err error
		if s, err = d.Assertion(); err != nil {
			return "", err
		}
	case refAccessToken:
		if c := d.Caller; c != nil && c.Session != nil && c.Session.OAuthToken != nil {
			s = string(c.Session.OAuthToken.AccessToken)
		}
	case refIDToken:
		if c := d.Caller; c != nil && c.Session != nil && c.Session.IDToken != nil {
			s = string(c.Session.IDToken.Raw)
		}
	default:
		s = certificateReference(p.ref, v.Peer())
	}
	if !validHeaderValue(s) {
		return "", nil // nothing a provider or certificate says may break out
	}
	return s, nil
}

// certificateReference renders what the client certificate says. Names are
// only taken from a certificate that the client CA vouches for; the
// fingerprint claims nothing.
func certificateReference(ref reference, peer *exchange.Peer) string {
	if len(peer.Certificates) == 0 {
		return ""
	}
	leaf := peer.Certificates[0]
	if ref == refCertFingerprint {
		sum := sha256.Sum256(leaf.Raw)
		return hex.EncodeToString(sum[:])
	}
	if peer.CertificateState != exchange.CertificateValid {
		return ""
	}
	names := leaf.DNSNames
	if ref == refCertEmail {
		names = leaf.EmailAddresses
	}
	var kept []string
	for _, n := range names {
		if strings.IndexByte(n, ',') < 0 {
			kept = append(kept, n)
		}
	}
	return strings.Join(kept, ",")
}
