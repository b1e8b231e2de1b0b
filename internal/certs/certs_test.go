package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/exchange"
	"postern/internal/route"
)

// issuer is a CA made for a test.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
	PEM  []byte
}

func newIssuer(t *testing.T, name string, parent *issuer) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	signer, signKey := c, crypto.Signer(key)
	if parent != nil {
		signer, signKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, signer, &key.PublicKey, signKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &issuer{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a leaf with the given names, changed as wanted.
func (i *issuer) issue(t *testing.T, key crypto.Signer, change func(*x509.Certificate), names ...string) (*tls.Certificate, KeyPair) {
	t.Helper()
	var err error
	if key == nil {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	c := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "leaf"}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(20 * 24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, i.cert, key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p := KeyPair{Source: "certificates[0]", CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		KeyPEM: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}
	pair, err := tls.X509KeyPair(p.CertPEM, p.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return &pair, p
}

func newSet(t *testing.T, o Options) *Set {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shake does a handshake with a server configuration and a byte each way, so
// that tickets and late alerts arrive.
func shake(server, client *tls.Config) (clientState, serverState tls.ConnectionState, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return clientState, serverState, err
	}
	defer ln.Close()
	done := make(chan tls.ConnectionState, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			done <- tls.ConnectionState{}
			return
		}
		defer raw.Close()
		c := tls.Server(raw, server)
		if c.Handshake() == nil {
			b := make([]byte, 1)
			c.Read(b)
			c.Write(b)
		}
		done <- c.ConnectionState()
	}()
	c, err := tls.Dial("tcp", ln.Addr().String(), client)
	if err == nil {
		defer c.Close()
		if _, err = c.Write([]byte("x")); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		clientState = c.ConnectionState()
	}
	return clientState, <-done, err
}

func anyServer(name string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: name}
}

func TestSelection(t *testing.T) {
	ca := newIssuer(t, "ca", nil)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, first := ca.issue(t, nil, func(c *x509.Certificate) { c.Subject.CommonName = "first" }, "first.example")
	_, wild := ca.issue(t, nil, func(c *x509.Certificate) { c.Subject.CommonName = "wild" }, "*.Example.com")
	_, exact := ca.issue(t, nil, func(c *x509.Certificate) { c.Subject.CommonName = "exact" }, "app.example.com")
	_, both := ca.issue(t, nil, func(c *x509.Certificate) { c.Subject.CommonName = "both-ec" }, "both.example")
	_, old := ca.issue(t, rsaKey, func(c *x509.Certificate) { c.Subject.CommonName = "both-rsa" }, "both.example")
	s := newSet(t, Options{Config: Config{Pairs: []KeyPair{first, wild, exact, both, old}}})
	for _, tc := range []struct{ sni, want string }{
		{"app.example.com", "exact"},
		{"APP.Example.COM", "exact"},
		{"app.example.com.", "exact"},
		{"other.example.com", "wild"},
		{"a.b.example.com", "first"},
		{"example.com", "first"},
		{"unknown.test", "first"},
		{"", "first"},
		{"both.example", "both-ec"},
	} {
		client := anyServer(tc.sni)
		got, _, err := shake(s.TLSConfig(nil), client)
		if err != nil {
			t.Errorf("%s: %v", tc.sni, err)
			continue
		}
		if cn := got.PeerCertificates[0].Subject.CommonName; cn != tc.want {
			t.Errorf("%q got %s, want %s", tc.sni, cn, tc.want)
		}
	}
	client := anyServer("both.example")
	client.MaxVersion = tls.VersionTLS12
	client.CipherSuites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	if got, _, err := shake(s.TLSConfig(nil), client); err != nil || got.PeerCertificates[0].Subject.CommonName != "both-rsa" {
		t.Errorf("client with RSA only: %v", err)
	}
}

func TestHandshakeParameters(t *testing.T) {
	_, p := newIssuer(t, "ca", nil).issue(t, nil, nil, "app.test")
	s := newSet(t, Options{Config: Config{Pairs: []KeyPair{p}}})
	got, _, err := shake(s.TLSConfig([]string{"h2", "http/1.1"}), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1", "h2"}})
	if err != nil || got.Version != tls.VersionTLS13 || got.NegotiatedProtocol != "h2" || got.CurveID != tls.X25519MLKEM768 {
		t.Errorf("%v version %x proto %q curve %v", err, got.Version, got.NegotiatedProtocol, got.CurveID)
	}
	for _, tc := range []struct {
		name   string
		client *tls.Config
	}{
		{"TLS 1.1", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}},
		{"CBC", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}},
		{"no common ALPN", &tls.Config{NextProtos: []string{"spdy/3"}}},
	} {
		tc.client.InsecureSkipVerify = true
		if _, _, err := shake(s.TLSConfig([]string{"h2", "http/1.1"}), tc.client); err == nil {
			t.Errorf("%s: accepted", tc.name)
		}
	}
}

func TestPairsRefused(t *testing.T) {
	ca := newIssuer(t, "ca", nil)
	_, good := ca.issue(t, nil, nil, "a.test")
	_, other := ca.issue(t, nil, nil, "a.test")
	staple, err := asn1.Marshal([]int{5})
	if err != nil {
		t.Fatal(err)
	}
	_, mustStaple := ca.issue(t, nil, func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: staple}}
	}, "a.test")
	for _, tc := range []struct {
		name, says string
		pair       KeyPair
	}{
		{"wrong key", "does not match", KeyPair{Source: "tls.crt", CertPEM: good.CertPEM, KeyPEM: other.KeyPEM}},
		{"no certificate", "PEM", KeyPair{Source: "tls.crt", CertPEM: []byte("nonsense"), KeyPEM: good.KeyPEM}},
		{"no key", "PEM", KeyPair{Source: "tls.crt", CertPEM: good.CertPEM, KeyPEM: nil}},
		{"swapped", "PEM", KeyPair{Source: "tls.crt", CertPEM: good.KeyPEM, KeyPEM: good.CertPEM}},
		{"must-staple", "must-staple", KeyPair{Source: "tls.crt", CertPEM: mustStaple.CertPEM, KeyPEM: mustStaple.KeyPEM}},
	} {
		_, err := New(Options{Config: Config{Pairs: []KeyPair{good, tc.pair}}})
		if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "tls.crt") {
			t.Errorf("%s: %v", tc.name, err)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE KEY") {
			t.Errorf("%s: the error shows a key", tc.name)
		}
	}
}

func TestNotes(t *testing.T) {
	ca := newIssuer(t, "ca", nil)
	for _, tc := range []struct {
		says   string
		change func(*x509.Certificate)
	}{
		{"", nil},
		{"expired on", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }},
		{"not valid before", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }},
		{"expires on", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(24 * time.Hour) }},
	} {
		_, p := ca.issue(t, nil, tc.change, "a.test")
		notes := strings.Join(newSet(t, Options{Config: Config{Pairs: []KeyPair{p}}}).Notes(), "\n")
		if (tc.says == "") != (notes == "") || !strings.Contains(notes, tc.says) {
			t.Errorf("want %q, got %q", tc.says, notes)
		}
	}
}

func TestLastResort(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("no certificate, no secret: accepted")
	}
	secret := bytes.Repeat([]byte{7}, 32)
	leaf := func(secret []byte) *x509.Certificate {
		got, _, err := shake(newSet(t, Options{Config: Config{}, Secret: secret}).TLSConfig(nil), anyServer("any.test"))
		if err != nil {
			t.Fatal(err)
		}
		return got.PeerCertificates[0]
	}
	one, two, three := leaf(secret), leaf(secret), leaf(bytes.Repeat([]byte{8}, 32))
	if !one.PublicKey.(*ecdsa.PublicKey).Equal(two.PublicKey) {
		t.Error("same secret, other key")
	}
	if one.PublicKey.(*ecdsa.PublicKey).Equal(three.PublicKey) {
		t.Error("other secret, same key")
	}
	if len(one.DNSNames) != 1 || one.DNSNames[0] != "*" {
		t.Errorf("names %v", one.DNSNames)
	}
}

// clientRows are client certificates and what each is worth.
func TestClientCertificates(t *testing.T) {
	ca, stranger := newIssuer(t, "clients", nil), newIssuer(t, "stranger", nil)
	sub := newIssuer(t, "sub", ca)
	upnName, _ := asn1.MarshalWithParams("alice@corp.test", "utf8")
	upnValue, _ := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: upnName})
	oid, _ := asn1.Marshal(userPrincipalName)
	other, _ := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: append(oid, upnValue...)})
	san, _ := asn1.Marshal(asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSequence, IsCompound: true, Bytes: other})
	chain := func(i *issuer, change func(*x509.Certificate), more ...*issuer) []*x509.Certificate {
		c, _ := i.issue(t, nil, change)
		list := []*x509.Certificate{c.Leaf}
		for _, m := range more {
			list = append(list, m.cert)
		}
		return list
	}
	u, _ := url.Parse("spiffe://corp.test/app")
	named := func(c *x509.Certificate) {
		c.DNSNames, c.EmailAddresses = []string{"host.corp.test"}, []string{"alice@corp.test"}
		c.IPAddresses, c.URIs = []net.IP{net.IPv4(10, 0, 0, 7)}, []*url.URL{u}
	}
	depth := func(n uint32) *uint32 { return &n }
	mtls := func(f func(*DownstreamMTLS)) DownstreamMTLS {
		m := DownstreamMTLS{CA: ca.PEM, Enforcement: EnforcePolicy}
		if f != nil {
			f(&m)
		}
		return m
	}
	sans := func(kind, pattern string) DownstreamMTLS {
		return mtls(func(m *DownstreamMTLS) {
			m.MatchSubjectAltNames = []SANMatcher{{"dns", "never"}, {kind, pattern}}
		})
	}
	for _, tc := range []struct {
		name  string
		m     DownstreamMTLS
		chain []*x509.Certificate
		want  exchange.CertificateState
		why   string
	}{
		{"feature off", DownstreamMTLS{}, chain(ca, nil), exchange.CertificateNotAsked, ""},
		{"none", mtls(nil), nil, exchange.CertificateMissing, ""},
		{"good", mtls(nil), chain(ca, nil), exchange.CertificateValid, ""},
		{"stranger", mtls(nil), chain(stranger, nil), exchange.CertificateInvalid, "unknown CA"},
		{"stranger brings the CA along", mtls(nil), chain(stranger, nil, ca), exchange.CertificateInvalid, "unknown CA"},
		{"expired", mtls(nil), chain(ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), exchange.CertificateInvalid, "expired on"},
		{"not yet", mtls(nil), chain(ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), exchange.CertificateInvalid, "not valid before"},
		{"for servers", mtls(nil), chain(ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), exchange.CertificateInvalid, "not meant for clients"},
		{"unlimited usage", mtls(nil), chain(ca, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), exchange.CertificateValid, ""},
		{"intermediate, depth 1", mtls(nil), chain(sub, nil, sub), exchange.CertificateInvalid, "max_verify_depth"},
		{"intermediate, depth 2", mtls(func(m *DownstreamMTLS) { m.MaxVerifyDepth = depth(2) }), chain(sub, nil, sub), exchange.CertificateValid, ""},
		{"intermediate, unlimited", mtls(func(m *DownstreamMTLS) { m.MaxVerifyDepth = depth(0) }), chain(sub, nil, sub), exchange.CertificateValid, ""},
		{"intermediate left out", mtls(func(m *DownstreamMTLS) { m.MaxVerifyDepth = depth(0) }), chain(sub, nil), exchange.CertificateInvalid, "unknown CA"},
		{"intermediate is the CA", mtls(func(m *DownstreamMTLS) { m.CA = sub.PEM }), chain(sub, nil), exchange.CertificateValid, ""},
		{"dns", sans("dns", `host\.corp\.test`), chain(ca, named), exchange.CertificateValid, ""},
		{"dns in part", sans("dns", `corp\.test`), chain(ca, named), exchange.CertificateInvalid, "match_subject_alt_names"},
		{"dns, beginning only", sans("dns", `host`), chain(ca, named), exchange.CertificateInvalid, "match_subject_alt_names"},
		{"dns, one of two lines", sans("dns", `(?m)host\.corp\.test`), chain(ca, func(c *x509.Certificate) { c.EmailAddresses = []string{"x@y"} }), exchange.CertificateInvalid, "match_subject_alt_names"},
		{"email", sans("email", `.*@corp\.test`), chain(ca, named), exchange.CertificateValid, ""},
		{"ip", sans("ip_address", `10\..*`), chain(ca, named), exchange.CertificateValid, ""},
		{"uri", sans("uri", `spiffe://corp\.test/.*`), chain(ca, named), exchange.CertificateValid, ""},
		{"upn", sans("user_principal_name", `alice@corp\.test`), chain(ca, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: subjectAltName, Value: san}}
		}), exchange.CertificateValid, ""},
		{"upn, other user", sans("user_principal_name", `bob@corp\.test`), chain(ca, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: subjectAltName, Value: san}}
		}), exchange.CertificateInvalid, "match_subject_alt_names"},
		{"unknown kind", sans("favourite_colour", `.*`), chain(ca, named), exchange.CertificateInvalid, "match_subject_alt_names"},
	} {
		s := newSet(t, Options{Config: Config{DownstreamMTLS: tc.m}, Secret: []byte("secret")})
		for range 2 { // the second from memory
			if got := s.VerifyClient(tc.chain, nil); got != tc.want {
				t.Errorf("%s: state %d, want %d", tc.name, got, tc.want)
			}
		}
		why := s.ExplainClient(tc.chain, nil)
		if (why != nil) != (tc.want == exchange.CertificateInvalid) || why != nil && !strings.Contains(why.Error(), tc.why) {
			t.Errorf("%s: %v, want %q", tc.name, why, tc.why)
		}
	}
}

// TestClientCAFailsClosed: what cannot be read admits nobody, because nothing
// starts with it.
func TestClientCAFailsClosed(t *testing.T) {
	ca := newIssuer(t, "clients", nil)
	_, leaf := ca.issue(t, nil, nil, "a")
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("nonsense")})
	rt := &route.Route{}
	for name, o := range map[string]Options{
		"text":           {Config: Config{DownstreamMTLS: DownstreamMTLS{CA: []byte("nonsense")}}},
		"key instead":    {Config: Config{DownstreamMTLS: DownstreamMTLS{CA: leaf.KeyPEM}}},
		"broken block":   {Config: Config{DownstreamMTLS: DownstreamMTLS{CA: append(append([]byte(nil), ca.PEM...), broken...)}}},
		"crl text":       {Config: Config{DownstreamMTLS: DownstreamMTLS{CA: ca.PEM, CRL: []byte("nonsense")}}},
		"crl is a CA":    {Config: Config{DownstreamMTLS: DownstreamMTLS{CA: ca.PEM, CRL: ca.PEM}}},
		"crl without CA": {Config: Config{DownstreamMTLS: DownstreamMTLS{CRL: revoke(t, ca, nil)}}},
		"delta crl": {Config: Config{DownstreamMTLS: DownstreamMTLS{CA: ca.PEM, CRL: revoke(t, ca, func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: deltaList, Critical: true, Value: []byte{2, 1, 1}}}
		})}}},
		"names without CA": {Config: Config{DownstreamMTLS: DownstreamMTLS{MatchSubjectAltNames: []SANMatcher{{"dns", "x"}}}}},
		"bad pattern":      {Config: Config{DownstreamMTLS: DownstreamMTLS{CA: ca.PEM, MatchSubjectAltNames: []SANMatcher{{"dns", "("}}}}},
		"route":            {RouteCAs: map[*route.Route][]byte{rt: []byte("nonsense")}},
	} {
		o.Secret = []byte("secret")
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "downstream") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// revoke makes a revocation list of a CA over some serials.
func revoke(t *testing.T, ca *issuer, change func(*x509.RevocationList), serials ...*big.Int) []byte {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, n := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now()})
	}
	if change != nil {
		change(l)
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func TestRevocation(t *testing.T) {
	ca, other := newIssuer(t, "clients", nil), newIssuer(t, "others", nil)
	namesake := newIssuer(t, "clients", nil)
	good, _ := ca.issue(t, nil, nil)
	bad, _ := ca.issue(t, nil, nil)
	same, _ := other.issue(t, nil, func(c *x509.Certificate) { c.SerialNumber = bad.Leaf.SerialNumber })
	outdated := func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	early := func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	}
	der, _ := pem.Decode(revoke(t, ca, nil, bad.Leaf.SerialNumber))
	for _, tc := range []struct {
		name        string
		crl         []byte
		enforcement string
		good, bad   exchange.CertificateState
	}{
		{"current", revoke(t, ca, nil, bad.Leaf.SerialNumber), EnforcePolicy, exchange.CertificateValid, exchange.CertificateInvalid},
		{"DER", der.Bytes, EnforcePolicy, exchange.CertificateValid, exchange.CertificateInvalid},
		{"two lists", append(revoke(t, other, nil), revoke(t, ca, nil, bad.Leaf.SerialNumber)...), EnforcePolicy, exchange.CertificateValid, exchange.CertificateInvalid},
		{"outdated, policy", revoke(t, ca, outdated, bad.Leaf.SerialNumber), EnforcePolicyWithDefaultDeny, exchange.CertificateValid, exchange.CertificateInvalid},
		{"outdated, reject", revoke(t, ca, outdated), EnforceRejectConnection, exchange.CertificateInvalid, exchange.CertificateInvalid},
		{"early, reject", revoke(t, ca, early), EnforceRejectConnection, exchange.CertificateInvalid, exchange.CertificateInvalid},
		{"signed by a namesake", revoke(t, namesake, nil), EnforcePolicy, exchange.CertificateInvalid, exchange.CertificateInvalid},
	} {
		m := DownstreamMTLS{CA: append(append([]byte(nil), ca.PEM...), other.PEM...), CRL: tc.crl, Enforcement: tc.enforcement}
		s := newSet(t, Options{Config: Config{DownstreamMTLS: m}, Secret: []byte("secret")})
		if got := s.VerifyClient([]*x509.Certificate{good.Leaf}, nil); got != tc.good {
			t.Errorf("%s: good one %d, want %d (%v)", tc.name, got, tc.good, s.ExplainClient([]*x509.Certificate{good.Leaf}, nil))
		}
		if got := s.VerifyClient([]*x509.Certificate{bad.Leaf}, nil); got != tc.bad {
			t.Errorf("%s: revoked one %d, want %d", tc.name, got, tc.bad)
		}
		if got := s.VerifyClient([]*x509.Certificate{same.Leaf}, nil); got != exchange.CertificateValid {
			t.Errorf("%s: another CA's certificate of the same number %d", tc.name, got)
		}
	}
}

// TestVerdictsFollowTheClock: what was valid a moment ago is not for ever.
func TestVerdictsFollowTheClock(t *testing.T) {
	ca := newIssuer(t, "clients", nil)
	c, _ := ca.issue(t, nil, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(time.Minute), time.Now().Add(2*time.Minute)
	})
	now := time.Now()
	s := newSet(t, Options{Config: Config{DownstreamMTLS: DownstreamMTLS{CA: ca.PEM}}, Secret: []byte("s"), Now: func() time.Time { return now }})
	chain := []*x509.Certificate{c.Leaf}
	for _, step := range []struct {
		after time.Duration
		want  exchange.CertificateState
	}{{0, exchange.CertificateInvalid}, {90 * time.Second, exchange.CertificateValid}, {180 * time.Second, exchange.CertificateInvalid}} {
		at := now
		now = now.Add(step.after)
		if got := s.VerifyClient(chain, nil); got != step.want {
			t.Errorf("after %v: %d, want %d", step.after, got, step.want)
		}
		now = at
	}
}

// TestRouteCAs: the CA of the route judged, not of the name in the handshake.
func TestRouteCAs(t *testing.T) {
	global, own := newIssuer(t, "global", nil), newIssuer(t, "own", nil)
	a := &route.Route{From: route.From{Host: "a.test"}}
	b := &route.Route{From: route.From{Host: "b.test"}}
	w := &route.Route{From: route.From{Host: "*.wild.test"}}
	fromGlobal, _ := global.issue(t, nil, nil)
	fromOwn, _ := own.issue(t, nil, nil)
	_, server := global.issue(t, nil, nil, "a.test")
	s := newSet(t, Options{Config: Config{Pairs: []KeyPair{server}, DownstreamMTLS: DownstreamMTLS{CA: global.PEM}}, RouteCAs: map[*route.Route][]byte{b: own.PEM}})
	for _, tc := range []struct {
		rt   *route.Route
		cert *tls.Certificate
		want exchange.CertificateState
	}{
		{a, fromGlobal, exchange.CertificateValid}, {a, fromOwn, exchange.CertificateInvalid},
		{b, fromGlobal, exchange.CertificateInvalid}, {b, fromOwn, exchange.CertificateValid},
		{nil, fromGlobal, exchange.CertificateValid},
	} {
		if got := s.VerifyClient([]*x509.Certificate{tc.cert.Leaf}, tc.rt); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.rt, got, tc.want)
		}
	}

	// Without a global CA, only names whose route has one are asked.
	s = newSet(t, Options{Config: Config{Pairs: []KeyPair{server}}, RouteCAs: map[*route.Route][]byte{b: own.PEM, w: own.PEM}})
	if got := s.VerifyClient([]*x509.Certificate{fromOwn.Leaf}, a); got != exchange.CertificateNotAsked {
		t.Errorf("route without CA: %d", got)
	}
	for sni, asked := range map[string]bool{"a.test": false, "b.test": true, "B.Test": true, "x.wild.test": true, "x.y.wild.test": true, "wild.test": false, "": true} {
		was := false
		client := anyServer(sni)
		client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			was = true
			return fromOwn, nil
		}
		_, state, err := shake(s.TLSConfig(nil), client)
		if err != nil || was != asked || (len(state.PeerCertificates) == 1) != asked {
			t.Errorf("%q: %v, asked %v", sni, err, was)
		}
	}
}

func TestRejectConnection(t *testing.T) {
	ca, stranger := newIssuer(t, "clients", nil), newIssuer(t, "stranger", nil)
	_, server := ca.issue(t, nil, nil, "a.test")
	good, _ := ca.issue(t, nil, nil)
	bad, _ := stranger.issue(t, nil, nil)
	for enforcement, open := range map[string]bool{EnforcePolicy: true, EnforcePolicyWithDefaultDeny: true, EnforceRejectConnection: false} {
		s := newSet(t, Options{Config: Config{Pairs: []KeyPair{server}, DownstreamMTLS: DownstreamMTLS{CA: ca.PEM, Enforcement: enforcement}}})
		for name, cert := range map[string]*tls.Certificate{"good": good, "bad": bad, "none": {}} {
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				client := anyServer("a.test")
				client.MaxVersion = version
				client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
				_, _, err := shake(s.TLSConfig(nil), client)
				if ok := open || name == "good"; (err == nil) != ok {
					t.Errorf("%s, %s, %x: %v", enforcement, name, version, err)
				}
			}
		}
	}
}

// TestResumption: a session is not resumed past a change of what is asked, and
// one that is resumed still knows its certificate.
func TestResumption(t *testing.T) {
	ca := newIssuer(t, "clients", nil)
	_, server := ca.issue(t, nil, nil, "a.test", "b.test")
	cert, _ := ca.issue(t, nil, nil)
	b := &route.Route{From: route.From{Host: "b.test"}}
	config := Config{Pairs: []KeyPair{server}}
	without := newSet(t, Options{Config: config, RouteCAs: map[*route.Route][]byte{b: ca.PEM}})
	config.DownstreamMTLS.CA = ca.PEM
	with := newSet(t, Options{Config: config})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		current := without.TLSConfig(nil)
		// As the listener does: one outer configuration over all generations.
		outer := &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if current.GetConfigForClient != nil {
				if c, err := current.GetConfigForClient(h); c != nil || err != nil {
					return c, err
				}
			}
			return current, nil
		}}
		cache := sharedCache{tls.NewLRUClientSessionCache(8)}
		connect := func(sni string) (resumed bool, certs int) {
			client := anyServer(sni)
			client.MaxVersion = version
			client.ClientSessionCache = cache
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
			_, state, err := shake(outer, client)
			if err != nil {
				t.Fatal(err)
			}
			return state.DidResume, len(state.PeerCertificates)
		}
		if resumed, n := connect("a.test"); resumed || n != 0 {
			t.Errorf("%x: first: %v %d", version, resumed, n)
		}
		if resumed, n := connect("a.test"); !resumed || n != 0 {
			t.Errorf("%x: again: %v %d", version, resumed, n)
		}
		if resumed, n := connect("b.test"); resumed || n != 1 {
			t.Errorf("%x: other name, which asks: %v %d", version, resumed, n)
		}
		if resumed, n := connect("b.test"); !resumed || n != 1 {
			t.Errorf("%x: resumed with certificate: %v %d", version, resumed, n)
		}
		connect("a.test")
		current = with.TLSConfig(nil) // a reload
		if resumed, n := connect("a.test"); resumed || n != 1 {
			t.Errorf("%x: after the CA was added: %v %d", version, resumed, n)
		}
	}
}

// sharedCache offers a session to whatever name: a client that tries.
type sharedCache struct{ tls.ClientSessionCache }

func (c sharedCache) Get(string) (*tls.ClientSessionState, bool) {
	return c.ClientSessionCache.Get("x")
}
func (c sharedCache) Put(_ string, s *tls.ClientSessionState) { c.ClientSessionCache.Put("x", s) }

func TestLocalCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := LoadOrCreateLocalCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.pem", "ca-key.pem"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	os.Chmod(filepath.Join(dir, "ca-key.pem"), 0o644)
	again, err := LoadOrCreateLocalCA(dir)
	if err != nil || !again.Certificate().Equal(ca.Certificate()) {
		t.Fatalf("not reused: %v", err)
	}
	if info, _ := os.Stat(filepath.Join(dir, "ca-key.pem")); info.Mode().Perm() != 0o600 {
		t.Errorf("key left open: %v", info.Mode())
	}

	s := newSet(t, Options{LocalCA: again})
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	for _, name := range []string{"localhost", "app.localhost", "a.b.localhost", "App.LOCALHOST"} {
		if _, _, err := shake(s.TLSConfig(nil), &tls.Config{RootCAs: roots, ServerName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"example.com", "localhost.example.com", "notlocalhost", "127.0.0.1", "a_b.localhost"} {
		got, _, err := shake(s.TLSConfig(nil), anyServer(name))
		if err != nil || got.PeerCertificates[0].DNSNames[0] != "localhost" {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := shake(s.TLSConfig(nil), &tls.Config{RootCAs: roots, ServerName: name}); err == nil {
			t.Errorf("%s: vouched for", name)
		}
	}

	// Whoever gets hold of the key can vouch for localhost and nothing else.
	for name, change := range map[string]func(*x509.Certificate){
		"bank.test": func(c *x509.Certificate) { c.DNSNames = []string{"bank.test"} },
		"10.0.0.1":  func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} },
		"::1":       func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv6loopback} },
	} {
		thief := &issuer{cert: ca.cert, key: ca.key}
		leaf, _ := thief.issue(t, nil, change)
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err == nil {
			t.Errorf("%s can be vouched for", name)
		}
	}

	// A stranger may ask for any number of names.
	for i := range 3 * maxLeaves {
		if _, err := ca.leaf("n" + big.NewInt(int64(i)).String() + ".localhost"); err != nil {
			t.Fatal(err)
		}
	}
	if len(ca.leaves) > maxLeaves {
		t.Errorf("%d leaves kept", len(ca.leaves))
	}
}

func TestLocalCATrouble(t *testing.T) {
	fresh := func() string {
		dir := t.TempDir()
		if _, err := LoadOrCreateLocalCA(dir); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	// Renewed before its end.
	dir := fresh()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	c := &x509.Certificate{SerialNumber: serial(), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(renewBefore / 2),
		IsCA: true, BasicConstraintsValid: true, PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{"localhost"}}
	write := func(dir string) {
		der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := x509.MarshalPKCS8PrivateKey(key)
		os.WriteFile(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
		os.WriteFile(filepath.Join(dir, "ca-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600)
	}
	write(dir)
	ca, err := LoadOrCreateLocalCA(dir)
	if err != nil || time.Until(ca.Certificate().NotAfter) < renewBefore {
		t.Errorf("not renewed: %v", err)
	}
	// Not constrained: refused, not used.
	c.NotAfter, c.PermittedDNSDomains = time.Now().Add(caLife), nil
	c.PermittedDNSDomainsCritical = false
	write(dir)
	if _, err := LoadOrCreateLocalCA(dir); err == nil || !strings.Contains(err.Error(), "localhost") {
		t.Errorf("a CA for everything: %v", err)
	}
	// Broken, or of two halves.
	dir = fresh()
	os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("nonsense"), 0o600)
	if _, err := LoadOrCreateLocalCA(dir); err == nil || !strings.Contains(err.Error(), "delete") {
		t.Errorf("broken: %v", err)
	}
	dir, other := fresh(), fresh()
	b, _ := os.ReadFile(filepath.Join(other, "ca-key.pem"))
	os.WriteFile(filepath.Join(dir, "ca-key.pem"), b, 0o600)
	if _, err := LoadOrCreateLocalCA(dir); err == nil {
		t.Error("key of another CA accepted")
	}
	// Nowhere to write.
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	if _, err := LoadOrCreateLocalCA(filepath.Join(file, "ca")); err == nil {
		t.Error("made in a file")
	}
}
