package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"postern/internal/exchange"
	"postern/internal/route"
)

// clients judges client certificates (configuration.md §2.10).
type clients struct {
	global   *authority
	routes   map[*route.Route]*authority
	names    map[string]bool // server names whose routes have a CA of their own
	wildcard bool            // such a route has a wildcard host
	reject   bool
	now      func() time.Time

	mu      sync.Mutex
	verdict map[verdictKey]verdict
}

type verdictKey struct {
	chain [sha256.Size]byte
	ca    *authority
}

type verdict struct {
	state exchange.CertificateState
	until time.Time // when a certificate or CRL of the chain changes its mind
}

// maxVerdicts bounds the cache: strangers bring certificates.
const maxVerdicts = 4096

// authority is one client CA with the rules for what it vouches for.
type authority struct {
	pool   *x509.CertPool
	list   []*x509.Certificate
	crls   []*x509.RevocationList
	sans   []sanRule
	depth  int // 0: unlimited
	strict bool
}

type sanRule struct {
	kind string
	re   *regexp.Regexp
}

func newClients(o Options) (*clients, error) {
	m := &o.Config.DownstreamMTLS
	c := &clients{routes: map[*route.Route]*authority{}, names: map[string]bool{}, now: o.Now, verdict: map[verdictKey]verdict{},
		reject: m.Enforcement == EnforceRejectConnection}
	rules := authority{depth: 1, strict: c.reject}
	if m.MaxVerifyDepth != nil {
		rules.depth = int(*m.MaxVerifyDepth)
	}
	for _, s := range m.MatchSubjectAltNames {
		re, err := regexp.Compile(`\A(?:` + s.Pattern + `)\z`)
		if err != nil {
			return nil, fmt.Errorf("downstream_mtls.match_subject_alt_names: %s %q is not a regular expression: %w", s.Type, s.Pattern, err)
		}
		rules.sans = append(rules.sans, sanRule{s.Type, re})
	}
	if len(m.CA) > 0 {
		a := rules
		if err := a.load("downstream_mtls.ca", m.CA); err != nil {
			return nil, err
		}
		if err := a.loadCRL(m.CRL); err != nil {
			return nil, err
		}
		c.global = &a
	} else if len(m.CRL) > 0 {
		return nil, errors.New("downstream_mtls.crl is set without downstream_mtls.ca: set the CA whose certificates it revokes")
	}
	for rt, text := range o.RouteCAs {
		a := rules
		if err := a.load("tls_downstream_client_ca", text); err != nil {
			return nil, err
		}
		c.routes[rt] = &a
		c.names[rt.From.Host] = true
		c.wildcard = c.wildcard || strings.Contains(rt.From.Host, "*")
	}
	return c, nil
}

func (a *authority) load(key string, text []byte) error {
	a.pool = x509.NewCertPool()
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
	}
	if len(a.list) == 0 {
		return fmt.Errorf("%s holds no certificate: give PEM CA certificates", key)
	}
	return nil
}

func (a *authority) loadCRL(text []byte) error {
	if len(text) == 0 {
		return nil
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
	for _, der := range ders {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return fmt.Errorf("downstream_mtls.crl cannot be read: %w; give revocation lists as PEM or DER", err)
		}
		a.crls = append(a.crls, list)
	}
	return nil
}

func (c *clients) none() bool       { return c.global == nil && len(c.routes) == 0 }
func (c *clients) everywhere() bool { return c.global != nil || c.wildcard }

// askedFor says whether a route at this server name has a CA of its own.
func (c *clients) askedFor(serverName string) bool {
	return c.names[strings.ToLower(strings.TrimSuffix(serverName, "."))]
}

// ask makes a listener ask for certificates, naming the CAs.
func (c *clients) ask(t *tls.Config) {
	t.ClientAuth = tls.RequestClientCert
	t.ClientCAs = x509.NewCertPool()
	add := func(a *authority) {
		for _, cert := range a.list {
			t.ClientCAs.AddCert(cert)
		}
	}
	if c.global != nil {
		add(c.global)
	}
	for _, a := range c.routes {
		add(a)
	}
	if c.reject {
		t.ClientAuth = tls.RequireAnyClientCert
		// VerifyConnection runs on resumed connections too.
		t.VerifyConnection = func(s tls.ConnectionState) error {
			for _, a := range c.all() {
				if c.judge(a, s.PeerCertificates) == exchange.CertificateValid {
					return nil
				}
			}
			return errors.New("the client certificate is not from a configured client CA")
		}
	}
}

func (c *clients) all() []*authority {
	var out []*authority
	if c.global != nil {
		out = append(out, c.global)
	}
	for _, a := range c.routes {
		out = append(out, a)
	}
	return out
}

// VerifyClient says what a presented chain (leaf first; nil: none) is worth on
// a route (nil: no route). Only where a CA is configured is anything asked.
func (s *Set) VerifyClient(chain []*x509.Certificate, rt *route.Route) exchange.CertificateState {
	c := s.clients
	a := c.global
	if own := c.routes[rt]; own != nil {
		a = own
	}
	if a == nil {
		return exchange.CertificateNotAsked
	}
	return c.judge(a, chain)
}

// judge verifies a chain, or remembers what came of it.
func (c *clients) judge(a *authority, chain []*x509.Certificate) exchange.CertificateState {
	if len(chain) == 0 {
		return exchange.CertificateMissing
	}
	h := sha256.New()
	for _, cert := range chain {
		h.Write(cert.Raw)
	}
	key := verdictKey{ca: a}
	h.Sum(key.chain[:0])
	now := c.now()
	c.mu.Lock()
	v, known := c.verdict[key]
	c.mu.Unlock()
	if known && now.Before(v.until) {
		return v.state
	}
	v = a.verify(chain, now)
	c.mu.Lock()
	if len(c.verdict) >= maxVerdicts {
		clear(c.verdict)
	}
	c.verdict[key] = v
	c.mu.Unlock()
	return v.state
}

// invalidFor is how long a refusal is remembered: a certificate that is not
// valid yet becomes so.
const invalidFor = 10 * time.Second

func (a *authority) verify(chain []*x509.Certificate, now time.Time) verdict {
	invalid := verdict{exchange.CertificateInvalid, now.Add(invalidFor)}
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	leaf := chain[0]
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: a.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil || !a.sanMatches(leaf) {
		return invalid
	}
	for _, ch := range chains {
		if a.depth > 0 && len(ch)-1 > a.depth {
			continue
		}
		until, ok := a.notRevoked(ch, now)
		if !ok {
			continue
		}
		for _, cert := range ch {
			if cert.NotAfter.Before(until) {
				until = cert.NotAfter
			}
		}
		return verdict{exchange.CertificateValid, until}
	}
	return invalid
}

// notRevoked looks the leaf up in the lists of its issuer. A list whose
// signature is not its issuer's revokes everything of that issuer, because
// nobody knows what it should have said.
func (a *authority) notRevoked(chain []*x509.Certificate, now time.Time) (until time.Time, ok bool) {
	until = now.Add(time.Hour)
	if len(chain) < 2 {
		return until, true
	}
	leaf, issuer := chain[0], chain[1]
	for _, list := range a.crls {
		if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
			continue
		}
		if list.CheckSignatureFrom(issuer) != nil {
			return until, false
		}
		if a.strict && (now.Before(list.ThisUpdate) || !list.NextUpdate.IsZero() && now.After(list.NextUpdate)) {
			return until, false
		}
		if a.strict && !list.NextUpdate.IsZero() && list.NextUpdate.Before(until) {
			until = list.NextUpdate
		}
		for _, e := range list.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
				return until, false
			}
		}
	}
	return until, true
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
