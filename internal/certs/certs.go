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
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
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
	exact    map[string][]*tls.Certificate
	wildcard map[string][]*tls.Certificate // by ".example.com"
	all      []*tls.Certificate
	fallback *tls.Certificate
	local    *LocalCA
	managed  func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	clients  *clients
	notes    []string
}

// New reads certificates, keys and CAs. Errors name the setting and say what
// to do.
func New(o Options) (*Set, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Set{exact: map[string][]*tls.Certificate{}, wildcard: map[string][]*tls.Certificate{}, local: o.LocalCA, managed: o.Managed}
	for _, p := range o.Config.Pairs {
		if err := s.add(p, o.Now()); err != nil {
			return nil, err
		}
	}
	var err error
	if len(s.all) == 0 && o.LocalCA == nil {
		if s.fallback, err = derivedLeaf(o.Secret); err != nil {
			return nil, err
		}
	}
	s.clients, err = newClients(o)
	return s, err
}

// Notes are what the operator should look at although everything works:
// certificates that have expired or soon will.
func (s *Set) Notes() []string { return s.notes }

// mustStaple is the TLS feature extension (RFC 7633).
var mustStaple = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

func (s *Set) add(p KeyPair, now time.Time) error {
	pair, err := tls.X509KeyPair(p.CertPEM, p.KeyPEM)
	if err != nil {
		hint := "give a PEM certificate chain, leaf first, and its unencrypted PEM key"
		if strings.Contains(err.Error(), "does not match") {
			hint = "this key belongs to another certificate; give the two that were made together"
		}
		return fmt.Errorf("%s: %w; %s", p.Source, err, hint)
	}
	leaf := pair.Leaf
	if leaf == nil {
		if leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return fmt.Errorf("%s: %w; give a PEM certificate chain, leaf first", p.Source, err)
		}
		pair.Leaf = leaf
	}
	for _, e := range leaf.Extensions {
		if e.Id.Equal(mustStaple) && len(pair.OCSPStaple) == 0 {
			return fmt.Errorf("%s: the certificate says must-staple, and there is no OCSP staple to send; browsers would refuse it: use one without", p.Source)
		}
	}
	switch {
	case now.After(leaf.NotAfter):
		s.notes = append(s.notes, fmt.Sprintf("%s: the certificate for %s expired on %s; renew it", p.Source, strings.Join(leaf.DNSNames, ", "), leaf.NotAfter.Format(time.DateOnly)))
	case now.Add(14 * 24 * time.Hour).After(leaf.NotAfter):
		s.notes = append(s.notes, fmt.Sprintf("%s: the certificate for %s expires on %s; renew it", p.Source, strings.Join(leaf.DNSNames, ", "), leaf.NotAfter.Format(time.DateOnly)))
	case now.Before(leaf.NotBefore):
		s.notes = append(s.notes, fmt.Sprintf("%s: the certificate for %s is not valid before %s; check this machine's clock", p.Source, strings.Join(leaf.DNSNames, ", "), leaf.NotBefore.Format(time.RFC3339)))
	}
	s.all = append(s.all, &pair)
	names := leaf.DNSNames
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	for _, name := range names {
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		if suffix, ok := strings.CutPrefix(name, "*"); ok && strings.HasPrefix(suffix, ".") {
			s.wildcard[suffix] = append(s.wildcard[suffix], &pair)
			continue
		}
		s.exact[name] = append(s.exact[name], &pair)
	}
	return nil
}

// Has tells whether a configured certificate serves a name, so that none need
// be got for it.
func (s *Set) Has(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if len(s.exact[name]) > 0 {
		return true
	}
	i := strings.IndexByte(name, '.')
	return i >= 0 && len(s.wildcard[name[i:]]) > 0
}

// Certificate gives the certificate for a handshake: for the exact name, a
// wildcard, obtained, from the local CA, or else the first one configured.
// Among several for one name, the first whose key type the client supports.
func (s *Set) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if c := supported(s.exact[name], hello); c != nil {
		return c, nil
	}
	if i := strings.IndexByte(name, '.'); i > 0 {
		if c := supported(s.wildcard[name[i:]], hello); c != nil {
			return c, nil
		}
	}
	if s.managed != nil {
		if c, err := s.managed(hello); c != nil || err != nil {
			return c, err
		}
	}
	if s.local != nil && LocalName(name) {
		return s.local.leaf(name)
	}
	if c := supported(s.all, hello); c != nil {
		return c, nil
	}
	switch {
	case s.fallback != nil:
		return s.fallback, nil
	case len(s.all) > 0:
		return s.all[0], nil
	case s.local != nil:
		return s.local.leaf("localhost") // no name, or a stranger's
	}
	return nil, fmt.Errorf("there is no certificate for %q", hello.ServerName)
}

func supported(list []*tls.Certificate, hello *tls.ClientHelloInfo) *tls.Certificate {
	for _, c := range list {
		// SupportsCertificate also compares names; a name was matched before,
		// and for the certificate of last resort it does not matter.
		named := *hello
		named.ServerName = ""
		if named.SupportsCertificate(c) == nil {
			return c
		}
	}
	return nil
}

// TLSConfig gives the settings of a listener: TLS 1.2 or 1.3, ECDHE with AEAD
// only, post-quantum key exchange as Go has it (X25519MLKEM768), no early
// data. Client certificates are asked for where a client CA is configured for
// the name.
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
	asks := s.clients.asks
	if asks.nobody() {
		sealTickets(base)
		return base
	}
	// One configuration for each list of CAs, made when first asked for.
	var made sync.Map
	of := func(ask *asking) *tls.Config {
		if t, ok := made.Load(ask.key); ok {
			return t.(*tls.Config)
		}
		t := base.Clone()
		s.clients.configure(t, ask)
		sealTickets(t)
		first, _ := made.LoadOrStore(ask.key, t)
		return first.(*tls.Config)
	}
	outer := of(asks.all).Clone()
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		return of(asks.at(hello.ServerName)), nil
	}
	return outer
}

// sealTickets gives a configuration tickets of its own. A session is resumed
// only where the same was asked of the client: one begun without a certificate,
// because its name or an earlier generation asked for none, would go on
// without. (crypto/tls itself seals tickets with the keys of the listener's
// outermost configuration, which outlives generations.)
func sealTickets(t *tls.Config) {
	keys := &tls.Config{} // rotates its keys by itself
	t.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		return keys.EncryptTicket(state, session)
	}
	t.UnwrapSession = func(identity []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		return keys.DecryptTicket(identity, state)
	}
}

// derivedLeaf is the certificate of last resort, served where none is
// configured: for every name, signed by itself, derived from the shared secret.
func derivedLeaf(secret []byte) (*tls.Certificate, error) {
	if len(secret) == 0 {
		return nil, errors.New("there is no certificate and no shared_secret to derive one from: configure certificates")
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "postern/1/tls-fallback", 48)
	if err != nil {
		return nil, err
	}
	n := elliptic.P256().Params().N
	d := new(big.Int).SetBytes(seed)
	d.Mod(d, new(big.Int).Sub(n, big.NewInt(1))).Add(d, big.NewInt(1))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d.FillBytes(make([]byte, 32)))
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(seed[:15]),
		Subject:      pkix.Name{CommonName: "Postern without a certificate"},
		DNSNames:     []string{"*"},
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
