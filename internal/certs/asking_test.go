package certs

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"
	"time"

	"postern/internal/exchange"
	"postern/internal/route"
)

func routeAt(t testing.TB, from, serverName string) *route.Route {
	t.Helper()
	return mustRoute(t, route.Spec{From: from, DownstreamServerName: serverName})
}

func mustRoute(t testing.TB, spec route.Spec) *route.Route {
	t.Helper()
	spec.To = []string{"http://127.0.0.1"}
	rt, err := route.New(spec)
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

// TestWhoIsAsked: the CAs that a server name is told are those of its routes.
func TestWhoIsAsked(t *testing.T) {
	global, own, third := newIssuer(t, "global", nil), newIssuer(t, "own", nil), newIssuer(t, "third", nil)
	_, server := global.issue(t, nil, nil, "plain.test")
	plain, first, second := routeAt(t, "https://plain.test", ""), routeAt(t, "https://own.test:8443", ""), mustRoute(t, route.Spec{From: "https://own.test:8443", Prefix: "/x"})
	named, wild, hidden := routeAt(t, "https://inner.test", "Outer.Test"), routeAt(t, "https://*.wild.test", ""), routeAt(t, "https://open.wild.test", "")
	odd, tcp := routeAt(t, "https://a-*.odd.test", ""), routeAt(t, "tcp+https://gate.test/db.test:5432", "")
	routes := []*route.Route{plain, first, second, named, wild, hidden, odd, tcp}
	cas := map[*route.Route][]byte{first: own.PEM, named: own.PEM, wild: own.PEM, odd: third.PEM, tcp: third.PEM}
	ask := func(s *Set, sni string) (names []string) {
		client := anyServer(sni)
		asked := false
		client.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			for _, raw := range r.AcceptableCAs {
				var name pkix.RDNSequence
				if _, err := asn1.Unmarshal(raw, &name); err != nil {
					t.Error(err)
				}
				var n pkix.Name
				n.FillFromRDNSequence(&name)
				names = append(names, n.CommonName)
			}
			return &tls.Certificate{}, nil
		}
		if _, _, err := shake(s.TLSConfig(nil), client); err != nil {
			t.Errorf("%s: %v", sni, err)
		}
		if asked != (len(names) > 0) {
			t.Errorf("%s: asked without naming a CA", sni)
		}
		slices.Sort(names)
		return names
	}
	s := newSet(t, Options{Config: Config{Pairs: []KeyPair{server}}, Routes: routes, RouteCAs: cas, Unasked: []string{"auth.test:443"}})
	for sni, want := range map[string][]string{
		"plain.test": nil, "own.test": {"own"}, "OWN.test": {"own"}, "inner.test": {"own"}, "outer.test": {"own"},
		"a.wild.test": {"own"}, "a.b.wild.test": {"own"}, "open.wild.test": nil, "wild.test": nil, "a-x.odd.test": {"third"}, "b-x.odd.test": nil,
		"gate.test": {"third"}, "stranger.test": nil, "auth.test": nil, "": {"own", "third"},
	} {
		if got := ask(s, sni); !slices.Equal(got, want) {
			t.Errorf("%q is asked for %v, want %v", sni, got, want)
		}
	}
	withGlobal := Config{Pairs: []KeyPair{server}, DownstreamMTLS: DownstreamMTLS{CA: global.PEM}}
	s = newSet(t, Options{Config: withGlobal, Routes: routes, RouteCAs: cas, Unasked: []string{"auth.test:443"}})
	for sni, want := range map[string][]string{
		"plain.test": {"global"}, "own.test": {"global", "own"}, "inner.test": {"own"}, "open.wild.test": {"global"},
		"stranger.test": {"global"}, "auth.test": nil, "": {"global", "own", "third"},
	} {
		if got := ask(s, sni); !slices.Equal(got, want) {
			t.Errorf("with a global CA %q is asked for %v, want %v", sni, got, want)
		}
	}
	for _, tc := range []struct {
		sni, host string
		want      bool
	}{
		{"own.test", "own.test:8443", true}, {"OWN.test.", "own.test", true}, {"plain.test", "own.test", false}, {"own.test", "plain.test", true},
		{"auth.test", "plain.test", false}, {"plain.test", "auth.test", true}, {"inner.test", "plain.test", false}, {"outer.test", "inner.test", true},
		{"a.wild.test", "b.wild.test", true}, {"a.wild.test", "a-x.odd.test", false}, {"", "own.test", true}, {"stranger.test", "plain.test", true},
		{"plain.test", "a.wild.test", false}, {"gate.test", "db.test:5432", true}, {"plain.test", "db.test:5432", false},
	} {
		if got := s.SameClientPolicy(tc.sni, tc.host); got != tc.want {
			t.Errorf("SameClientPolicy(%q, %q) = %v", tc.sni, tc.host, got)
		}
	}
	// reject_connection shows nothing at all without a certificate.
	withGlobal.DownstreamMTLS.Enforcement = EnforceRejectConnection
	s = newSet(t, Options{Config: withGlobal, Routes: routes, RouteCAs: cas, Unasked: []string{"auth.test"}})
	for _, sni := range []string{"auth.test", "plain.test", "stranger.test", "own.test", "inner.test", ""} {
		if _, _, err := shake(s.TLSConfig(nil), anyServer(sni)); err == nil {
			t.Errorf("%q served without a certificate", sni)
		}
	}
	// A certificate of another route's CA opens no connection here.
	fromOwn, _ := own.issue(t, nil, nil)
	for sni, ok := range map[string]bool{"inner.test": true, "own.test": true, "plain.test": false, "auth.test": false, "": true} {
		client := anyServer(sni)
		client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return fromOwn, nil }
		_, _, err := shake(s.TLSConfig(nil), client)
		if (err == nil) != ok {
			t.Errorf("%q with a certificate of one route's CA: %v", sni, err)
		}
		if err := s.RefusesConnection(sni, []*x509.Certificate{fromOwn.Leaf}); (err == nil) != ok {
			t.Errorf("%q, open before: %v", sni, err)
		}
	}
}

// TestLiveConnections: what a connection showed is judged by the generation of
// the moment.
func TestLiveConnections(t *testing.T) {
	before, after := newIssuer(t, "before", nil), newIssuer(t, "after", nil)
	c, _ := before.issue(t, nil, nil)
	chain := []*x509.Certificate{c.Leaf}
	for name, m := range map[string]DownstreamMTLS{
		"other CA": {CA: after.PEM},
		"revoked":  {CA: before.PEM, CRL: revoke(t, before, nil, c.Leaf.SerialNumber)},
	} {
		for _, enforcement := range []string{EnforcePolicyWithDefaultDeny, EnforceRejectConnection} {
			open := newSet(t, Options{Config: Config{DownstreamMTLS: DownstreamMTLS{CA: before.PEM, Enforcement: enforcement}}, Secret: []byte("s")})
			if open.VerifyClient(chain, nil) != exchange.CertificateValid || open.RefusesConnection("a.test", chain) != nil {
				t.Fatal("refused before the reload")
			}
			m.Enforcement = enforcement
			reloaded := newSet(t, Options{Config: Config{DownstreamMTLS: m}, Secret: []byte("s")})
			if got := reloaded.VerifyClient(chain, nil); got != exchange.CertificateInvalid {
				t.Errorf("%s, %s: %d", name, enforcement, got)
			}
			if err := reloaded.RefusesConnection("a.test", chain); (err != nil) != (enforcement == EnforceRejectConnection) {
				t.Errorf("%s, %s: %v", name, enforcement, err)
			}
		}
	}
}

// TestAskedAgain: who had no certificate is asked again at the next handshake,
// although its session could be resumed.
func TestAskedAgain(t *testing.T) {
	ca := newIssuer(t, "clients", nil)
	_, server := ca.issue(t, nil, nil, "a.test")
	cert, _ := ca.issue(t, nil, nil)
	s := newSet(t, Options{Config: Config{Pairs: []KeyPair{server}, DownstreamMTLS: DownstreamMTLS{CA: ca.PEM}}})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := tls.NewLRUClientSessionCache(4)
		have := &tls.Certificate{}
		for i, want := range []int{0, 0, 1, 1} {
			if i == 2 {
				have = cert
			}
			client := anyServer("a.test")
			client.MaxVersion, client.ClientSessionCache = version, cache
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return have, nil }
			_, state, err := shake(s.TLSConfig(nil), client)
			if err != nil || len(state.PeerCertificates) != want || state.DidResume != (i == 3) {
				t.Errorf("%x, connection %d: %v, %d certificates, resumed %v", version, i, err, len(state.PeerCertificates), state.DidResume)
			}
		}
	}
}

// TestTicketsOutliveGenerations: a change that concerns no client certificate
// costs nobody a handshake.
func TestTicketsOutliveGenerations(t *testing.T) {
	ca, other := newIssuer(t, "clients", nil), newIssuer(t, "others", nil)
	_, server := ca.issue(t, nil, nil, "a.test")
	cert, _ := ca.issue(t, nil, nil)
	cache := tls.NewLRUClientSessionCache(4)
	connect := func(s *Set) bool {
		client := anyServer("a.test")
		client.ClientSessionCache = cache
		client.Certificates = []tls.Certificate{*cert}
		_, state, err := shake(s.TLSConfig(nil), client)
		if err != nil {
			t.Fatal(err)
		}
		return state.DidResume
	}
	config := Config{Pairs: []KeyPair{server}, DownstreamMTLS: DownstreamMTLS{CA: ca.PEM}}
	one := newSet(t, Options{Config: config})
	configB := config
	configB.DownstreamMTLS.CA = append(append([]byte(nil), ca.PEM...), other.PEM...)
	connect(one)
	for i, tc := range []struct {
		set  *Set
		want bool
	}{{one, true}, {newSet(t, Options{Config: config}), true}, {newSet(t, Options{Config: configB}), false}} {
		if got := connect(tc.set); got != tc.want {
			t.Errorf("generation %d: resumed %v", i, got)
		}
	}
}

// TestRevocationLists: which list counts, and lists that cannot be.
func TestRevocationLists(t *testing.T) {
	ca := newIssuer(t, "clients", nil)
	rekeyed := newIssuer(t, "clients", nil)
	good, _ := ca.issue(t, nil, nil)
	bad, _ := ca.issue(t, nil, nil)
	chain := func(c *tls.Certificate) []*x509.Certificate { return []*x509.Certificate{c.Leaf} }
	at := func(hours int) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ThisUpdate = time.Now().Add(time.Duration(hours) * time.Hour)
			l.NextUpdate = l.ThisUpdate.Add(3 * time.Hour)
			l.Number = big.NewInt(int64(100 + hours))
		}
	}
	join := func(lists ...[]byte) (out []byte) { return slices.Concat(lists...) }
	for _, tc := range []struct {
		name string
		crl  []byte
		want exchange.CertificateState
	}{
		{"an old list beside the current one", join(revoke(t, ca, at(-9), bad.Leaf.SerialNumber), revoke(t, ca, at(-1), bad.Leaf.SerialNumber)), exchange.CertificateValid},
		{"the other way round", join(revoke(t, ca, at(-1), bad.Leaf.SerialNumber), revoke(t, ca, at(-9), bad.Leaf.SerialNumber)), exchange.CertificateValid},
		{"only the old one", revoke(t, ca, at(-9), bad.Leaf.SerialNumber), exchange.CertificateInvalid},
		{"of the CA's new key", revoke(t, rekeyed, at(-1), bad.Leaf.SerialNumber), exchange.CertificateValid},
	} {
		m := DownstreamMTLS{CA: append(append([]byte(nil), ca.PEM...), rekeyed.PEM...), CRL: tc.crl, Enforcement: EnforceRejectConnection}
		s := newSet(t, Options{Config: Config{DownstreamMTLS: m}, Secret: []byte("s")})
		if got := s.VerifyClient(chain(good), nil); got != tc.want {
			t.Errorf("%s: good one %d (%v)", tc.name, got, s.ExplainClient(chain(good), nil))
		}
		if got := s.VerifyClient(chain(bad), nil); got != exchange.CertificateInvalid {
			t.Errorf("%s: revoked one %d", tc.name, got)
		}
	}
	for name, change := range map[string]func(*x509.RevocationList){
		"indirect": func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(1), RevocationTime: time.Now(),
				ExtraExtensions: []pkix.Extension{{Id: entryIssuer, Critical: true, Value: []byte{0x30, 0}}}}}
		},
		"unknown critical extension": func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		},
	} {
		if _, err := New(Options{Config: Config{DownstreamMTLS: DownstreamMTLS{CA: ca.PEM, CRL: revoke(t, ca, change)}}, Secret: []byte("s")}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
