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
	names    map[string]bool  // server names whose routes have a CA of their own
	patterns []*regexp.Regexp // the same for routes with a wildcard host
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
	why   error     // of CertificateInvalid, for the operator
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
	} else if len(rules.sans) > 0 && len(o.RouteCAs) == 0 {
		return nil, errors.New("downstream_mtls.match_subject_alt_names is set without downstream_mtls.ca, so that no certificate is ever asked for: set the CA")
	}
	for rt, text := range o.RouteCAs {
		a := rules
		if err := a.load("tls_downstream_client_ca", text); err != nil {
			return nil, err
		}
		if c.global != nil {
			a.crls = c.global.crls // lists are for whatever CA they name
		}
		c.routes[rt] = &a
		if host := strings.ToLower(rt.From.Host); strings.Contains(host, "*") {
			// As in from: a "*" crosses dots.
			c.patterns = append(c.patterns, regexp.MustCompile(`\A`+strings.ReplaceAll(regexp.QuoteMeta(host), `\*`, `.*`)+`\z`))
		} else {
			c.names[host] = true
		}
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
		for _, e := range list.Extensions {
			if e.Id.Equal(deltaList) {
				// Taken for a whole list it would forgive what the base revokes.
				return errors.New("downstream_mtls.crl holds a delta list: give complete revocation lists")
			}
		}
		a.crls = append(a.crls, list)
	}
	return nil
}

// deltaList marks a CRL that holds changes only (RFC 5280 §5.2.4).
var deltaList = asn1.ObjectIdentifier{2, 5, 29, 27}

func (c *clients) none() bool       { return c.global == nil && len(c.routes) == 0 }
func (c *clients) everywhere() bool { return c.global != nil }

// askedFor says whether a route at this server name has a CA of its own.
func (c *clients) askedFor(serverName string) bool {
	name := strings.ToLower(strings.TrimSuffix(serverName, "."))
	for _, p := range c.patterns {
		if p.MatchString(name) {
			return true
		}
	}
	return c.names[name]
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
			why := errors.New("no client certificate")
			for _, a := range c.all() {
				v := c.judge(a, s.PeerCertificates)
				if v.state == exchange.CertificateValid {
					return nil
				}
				if v.why != nil {
					why = v.why
				}
			}
			return why
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
	return s.judgeClient(chain, rt).state
}

// ExplainClient says for the operator why a presented chain is not valid on a
// route; nil if it is, or none was presented or asked for.
func (s *Set) ExplainClient(chain []*x509.Certificate, rt *route.Route) error {
	return s.judgeClient(chain, rt).why
}

func (s *Set) judgeClient(chain []*x509.Certificate, rt *route.Route) verdict {
	a := s.clients.global
	if own := s.clients.routes[rt]; own != nil {
		a = own
	}
	if a == nil {
		return verdict{state: exchange.CertificateNotAsked}
	}
	return s.clients.judge(a, chain)
}

// judge verifies a chain, or remembers what came of it.
func (c *clients) judge(a *authority, chain []*x509.Certificate) verdict {
	if len(chain) == 0 {
		return verdict{state: exchange.CertificateMissing}
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
		return v
	}
	v = a.verify(chain, now)
	c.mu.Lock()
	if len(c.verdict) >= maxVerdicts {
		clear(c.verdict)
	}
	c.verdict[key] = v
	c.mu.Unlock()
	return v
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
		if list.CheckSignatureFrom(issuer) != nil {
			return until, fmt.Errorf("the revocation list of %s does not bear its signature", issuer.Subject)
		}
		if a.strict && (now.Before(list.ThisUpdate) || !list.NextUpdate.IsZero() && now.After(list.NextUpdate)) {
			return until, fmt.Errorf("the revocation list of %s is out of date (%s to %s), so nothing of it is trusted", issuer.Subject,
				list.ThisUpdate.UTC().Format(time.RFC3339), list.NextUpdate.UTC().Format(time.RFC3339))
		}
		if a.strict && !list.NextUpdate.IsZero() && list.NextUpdate.Before(until) {
			until = list.NextUpdate
		}
		for _, e := range list.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
				return until, fmt.Errorf("the client certificate of %s is revoked", leaf.Subject)
			}
		}
	}
	return until, nil
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
