package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"postern/internal/exchange"
	"postern/internal/route"
)

// clients judges client certificates (configuration.md §2.10).
type clients struct {
	global *authority
	routes map[*route.Route]*authority
	asks   *askings
	reject bool
	now    func() time.Time

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

func newClients(o Options) (*clients, error) {
	m := &o.Config.DownstreamMTLS
	c := &clients{routes: map[*route.Route]*authority{}, now: o.Now, verdict: map[verdictKey]verdict{},
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
		var err error
		if rules.crls, err = parseCRLs(m.CRL); err != nil {
			return nil, err
		}
		a := rules
		if err := a.load("downstream_mtls.ca", m.CA); err != nil {
			return nil, err
		}
		c.global = &a
	} else if len(m.CRL) > 0 {
		return nil, errors.New("downstream_mtls.crl is set without downstream_mtls.ca: set the CA whose certificates it revokes")
	} else if len(rules.sans) > 0 && len(o.RouteCAs) == 0 {
		return nil, errors.New("downstream_mtls.match_subject_alt_names is set without downstream_mtls.ca, so that no certificate is ever asked for: set the CA")
	}
	routes := o.Routes
	same := map[string]*authority{} // many routes, few CAs
	for rt, text := range o.RouteCAs {
		a := same[string(text)]
		if a == nil {
			own := rules // the lists too: they are for whatever CA they name
			if err := own.load("tls_downstream_client_ca", text); err != nil {
				return nil, err
			}
			a, same[string(text)] = &own, &own
		}
		c.routes[rt] = a
		if o.Routes == nil {
			routes = append(routes, rt)
		}
	}
	unasked := o.Unasked
	if c.reject {
		unasked = nil // nothing at all is shown without a certificate
	}
	c.asks = newAskings(c, routes, unasked)
	return c, nil
}

// of is the CA of a route (nil: of no route), nil if it has none.
func (c *clients) of(rt *route.Route) *authority {
	if own := c.routes[rt]; own != nil {
		return own
	}
	return c.global
}

// configure makes a listener's settings ask for certificates, naming the CAs.
func (c *clients) configure(t *tls.Config, ask *asking) {
	if ask.none() {
		return
	}
	t.ClientAuth = tls.RequestClientCert
	t.ClientCAs = x509.NewCertPool()
	for _, a := range ask.list {
		for _, cert := range a.list {
			t.ClientCAs.AddCert(cert)
		}
	}
	if c.reject {
		t.ClientAuth = tls.RequireAnyClientCert
		// VerifyConnection runs on resumed connections too.
		t.VerifyConnection = func(s tls.ConnectionState) error { return c.refuses(ask, s.PeerCertificates) }
	}
}

// refuses says why no CA of ask vouches for a chain; nil if one does.
func (c *clients) refuses(ask *asking, chain []*x509.Certificate) error {
	if ask.none() {
		return nil
	}
	why := errors.New("no client certificate was presented")
	for _, a := range ask.list {
		v := c.judge(a, chain)
		if v.state == exchange.CertificateValid {
			return nil
		}
		if v.why != nil {
			why = v.why
		}
	}
	return why
}

// RefusesConnection says, where enforcement is reject_connection, why nothing
// may be served on a connection that was opened with the server name sni and
// showed chain; nil if it may. New connections are refused in the handshake:
// this is for those that a change of CA or CRL finds open.
func (s *Set) RefusesConnection(sni string, chain []*x509.Certificate) error {
	if !s.clients.reject {
		return nil
	}
	return s.clients.refuses(s.clients.asks.at(sni), chain)
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

// ClientIssuers names the CAs whose certificates a route (nil: no route) asks
// for. Handshakes tell them to everybody.
func (s *Set) ClientIssuers(rt *route.Route) []string {
	a := s.clients.of(rt)
	if a == nil {
		return nil
	}
	names := make([]string, len(a.list))
	for i, cert := range a.list {
		if names[i] = cert.Subject.CommonName; names[i] == "" {
			names[i] = cert.Subject.String()
		}
	}
	return names
}

func (s *Set) judgeClient(chain []*x509.Certificate, rt *route.Route) verdict {
	a := s.clients.of(rt)
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
