// Package certs knows which certificate a server name gets, and what a
// client's certificate is worth.
//
//	set, err := certs.New(certs.Options{Config: cfg.Certs, Secret: secret})
//	listener := tls.NewListener(ln, set.TLSConfig([]string{"h2", "http/1.1"}))
//	state := set.VerifyClient(chain, route)
//
// A Set belongs to one generation of the configuration and is immutable.
// Client certificates are only asked for in the handshake; what they are
// worth is judged for each request, so that no connection outlives a change of
// CA (except in reject_connection, which also refuses the handshake).
package certs

import (
	"crypto/tls"
	"fmt"
	"strings"
	"sync"
	"time"

	"postern/internal/route"
)

// Options are what a Set is made from.
type Options struct {
	Config Config
	// Secret is the shared secret, from which the certificate of last resort
	// is derived, the same on all replicas.
	Secret []byte
	// LocalCA, if not nil, mints certificates for names that no configured one
	// serves.
	LocalCA *LocalCA
	// RouteCAs are the client CAs of single routes (PEM); they replace the
	// global one there.
	RouteCAs map[*route.Route][]byte
	// Routes are all routes, so that only server names that need a client
	// certificate are asked for one. Nil: those of RouteCAs.
	Routes []*route.Route
	// Unasked are hosts without applications, at which no client certificate
	// is asked for except in reject_connection: the sign-in host.
	Unasked []string
	// Managed, if not nil, gives certificates that are obtained rather than
	// configured (ACME): for names that no configured one serves, before the
	// certificate of last resort. Nil, nil is "not mine"; an error ends the
	// handshake.
	Managed func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Set is all server certificates and client CAs of one generation.
type Set struct {
	exact    map[string][]*pair
	wildcard map[string][]*pair // by ".example.com"
	all      []*pair
	derived  *DerivedCA
	internal string // tls_derive: the name of the derived certificate
	local    *LocalCA
	managed  func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	ech      []tls.EncryptedClientHelloKey
	clients  *clients
	now      func() time.Time
	notes    []string
}

// New reads certificates, keys and CAs. Errors name the setting and say what
// to do.
func New(o Options) (*Set, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Set{
		exact: map[string][]*pair{}, wildcard: map[string][]*pair{},
		local: o.LocalCA, managed: o.Managed, internal: strings.ToLower(o.Config.TLSDerive), now: o.Now,
	}
	for i := range o.Config.Pairs {
		if err := s.add(&o.Config.Pairs[i]); err != nil {
			return nil, err
		}
	}
	var err error
	if s.internal != "" || len(s.all) == 0 && o.LocalCA == nil {
		if s.derived, err = DeriveCA(o.Secret); err != nil {
			return nil, err
		}
	}
	if err = s.loadECH(o.Config.ECHKeys); err != nil {
		return nil, err
	}
	s.clients, err = newClients(o)
	return s, err
}

// Notes are what the operator should look at although everything works:
// certificates that have expired or soon will.
func (s *Set) Notes() []string { return s.notes }

func (s *Set) add(k *KeyPair) error {
	p, err := k.load()
	if err != nil {
		return fmt.Errorf("%s: %w", k.Source, err)
	}
	if note := p.note(s.now()); note != "" {
		s.notes = append(s.notes, k.Source+": "+note)
	}
	s.all = append(s.all, p)
	for _, name := range p.names {
		if suffix, ok := strings.CutPrefix(name, "*"); ok && strings.HasPrefix(suffix, ".") {
			s.wildcard[suffix] = append(s.wildcard[suffix], p)
			continue
		}
		s.exact[name] = append(s.exact[name], p)
	}
	return nil
}

// TLSConfig gives the settings of a listener: TLS 1.2 or 1.3, ECDHE with AEAD
// only, post-quantum key exchange as Go has it (X25519MLKEM768), no early
// data. Client certificates are asked for where a client CA is configured for
// the name.
//
// An ACME server that looks for the answer to its challenge (RFC 8737) is asked
// for no client certificate: whoever serves the connection must close it if
// ALPNChallenge was agreed on.
func (s *Set) TLSConfig(protocols []string) *tls.Config {
	base := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     protocols,
		GetCertificate: s.Certificate,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
	if s.ech != nil {
		base.GetEncryptedClientHelloKeys = s.echKeys
	}
	asks := s.clients.asks
	// One configuration for each list of CAs, made when first asked for.
	var made sync.Map
	of := func(ask *asking) *tls.Config {
		if t, ok := made.Load(ask.key); ok {
			return t.(*tls.Config)
		}
		t := base.Clone()
		s.clients.configure(t, ask)
		sealTickets(t, ask)
		first, _ := made.LoadOrStore(ask.key, t)
		return first.(*tls.Config)
	}
	outer := of(asks.all).Clone()
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if s.managed != nil && challenge(hello) {
			return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{ALPNChallenge}, GetCertificate: s.managed, SessionTicketsDisabled: true}, nil
		}
		return of(asks.at(hello.ServerName)), nil
	}
	return outer
}
