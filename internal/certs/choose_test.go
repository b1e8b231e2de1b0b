package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

func called(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject.CommonName = name }
}

func rsaKey(t testing.TB, bits int) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestChoice: ECDSA before RSA in whatever order they are configured, the
// expired last, and an address by itself where no name is sent.
func TestChoice(t *testing.T) {
	ca := newIssuer(t, "ca", nil)
	old := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.Subject.CommonName, c.NotAfter = name, time.Now().Add(-time.Minute)
		}
	}
	_, first := ca.issue(t, nil, called("first"), "first.test")
	_, rsaBoth := ca.issue(t, rsaKey(t, 2048), called("both-rsa"), "both.test")
	_, ecBoth := ca.issue(t, nil, called("both-ec"), "both.test")
	_, p384 := ca.issue(t, func() crypto.Signer { k, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader); return k }(), called("p384"), "p384.test")
	_, expired := ca.issue(t, nil, old("renew-old"), "renew.test")
	_, renewed := ca.issue(t, rsaKey(t, 2048), called("renew-new"), "renew.test")
	_, gone := ca.issue(t, nil, old("gone"), "gone.test")
	_, exactOld := ca.issue(t, nil, old("exact-old"), "app.wild.test")
	_, wild := ca.issue(t, nil, called("wild"), "*.wild.test")
	_, address := ca.issue(t, nil, func(c *x509.Certificate) {
		c.Subject.CommonName, c.IPAddresses = "address", []net.IP{net.IPv4(127, 0, 0, 1)}
	})
	_, plain := ca.issue(t, nil, called("Common.Test"))
	s := newSet(t, Options{Config: Config{Pairs: []KeyPair{first, rsaBoth, ecBoth, p384, expired, renewed, gone, exactOld, wild, address, plain}}})
	for sni, want := range map[string]string{
		"both.test": "both-ec", "p384.test": "p384", "renew.test": "renew-new", "gone.test": "gone",
		"app.wild.test": "wild", "x.wild.test": "wild", "": "address", "common.test": "Common.Test", "none.test": "first",
	} {
		got, _, err := shake(s.TLSConfig(nil), anyServer(sni))
		if err != nil || got.PeerCertificates[0].Subject.CommonName != want {
			t.Errorf("%q: %v, want %s", sni, err, want)
		}
	}
	if notes := strings.Join(s.Notes(), "\n"); !strings.Contains(notes, "no subject alternative name") {
		t.Errorf("notes %s", notes)
	}
}

// TestManaged: certificates that are obtained come after the configured ones
// that are current and before everything else; an ACME challenge is theirs
// alone, and asks for no client certificate.
func TestManaged(t *testing.T) {
	ca := newIssuer(t, "ca", nil)
	_, own := ca.issue(t, nil, called("configured"), "own.test", "both.test")
	_, stale := ca.issue(t, nil, func(c *x509.Certificate) {
		c.Subject.CommonName, c.NotAfter = "stale", time.Now().Add(-time.Hour)
	}, "stale.test")
	obtained, _ := ca.issue(t, nil, called("obtained"), "auto.test")
	managed := func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		switch h.ServerName {
		case "auto.test", "both.test", "stale.test":
			return obtained, nil
		case "fails.test":
			return nil, errors.New("the CA is out")
		}
		return nil, nil
	}
	s := newSet(t, Options{Config: Config{Pairs: []KeyPair{own, stale}, DownstreamMTLS: DownstreamMTLS{CA: ca.PEM, Enforcement: EnforceRejectConnection}}, Managed: managed})
	client, _ := ca.issue(t, nil, nil)
	config := s.TLSConfig([]string{"h2", "http/1.1"})
	for sni, want := range map[string]string{"own.test": "configured", "both.test": "configured", "auto.test": "obtained", "stale.test": "obtained", "none.test": "configured", "fails.test": ""} {
		c := anyServer(sni)
		c.Certificates = []tls.Certificate{*client}
		got, _, err := shake(config, c)
		if (err != nil) != (want == "") || err == nil && got.PeerCertificates[0].Subject.CommonName != want {
			t.Errorf("%s: %v, want %s", sni, err, want)
		}
	}
	c := anyServer("auto.test")
	c.NextProtos = []string{ALPNChallenge}
	got, _, err := shake(config, c)
	if err != nil || got.NegotiatedProtocol != ALPNChallenge || got.PeerCertificates[0].Subject.CommonName != "obtained" {
		t.Errorf("challenge: %v %q", err, got.NegotiatedProtocol)
	}
	c.NextProtos = []string{ALPNChallenge, "http/1.1"}
	if _, _, err := shake(config, c); err == nil {
		t.Error("a client that also speaks HTTP got around its certificate as an ACME server")
	}
	if _, _, err := shake(newSet(t, Options{Config: Config{Pairs: []KeyPair{own}}}).TLSConfig([]string{"http/1.1"}), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNChallenge}}); err == nil {
		t.Error("a challenge is answered although nothing is obtained")
	}
}

func TestKeyKindsRefused(t *testing.T) {
	ca := newIssuer(t, "ca", nil)
	t.Setenv("GODEBUG", "rsa1024min=0")
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	for says, key := range map[string]crypto.Signer{"1024 bits": rsaKey(t, 1024), "Ed25519": ed, "P-521": p521} {
		_, p := ca.issue(t, key, nil, "a.test")
		p.Source = "tls.crt"
		if _, err := New(Options{Config: Config{Pairs: []KeyPair{p}}}); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "ECDSA P-256") {
			t.Errorf("%s: %v", says, err)
		}
	}
}

// TestPairsOutliveGenerations: what did not change is parsed once, and
// forgotten when no generation needs it.
func TestPairsOutliveGenerations(t *testing.T) {
	ca := newIssuer(t, "ca", nil)
	_, a := ca.issue(t, nil, nil, "a.test")
	_, b := ca.issue(t, nil, nil, "b.test")
	again := func(p KeyPair) KeyPair { // as a reload reads it
		return KeyPair{Source: p.Source, CertPEM: bytes.Clone(p.CertPEM), KeyPEM: bytes.Clone(p.KeyPEM)}
	}
	one := newSet(t, Options{Config: Config{Pairs: []KeyPair{again(a), again(b)}}})
	two := newSet(t, Options{Config: Config{Pairs: []KeyPair{again(b)}}})
	if two.all[0] != one.all[1] {
		t.Error("an unchanged pair was parsed again")
	}
	_, other := ca.issue(t, nil, nil, "b.test")
	mixed := KeyPair{Source: "x", CertPEM: b.CertPEM, KeyPEM: other.KeyPEM}
	if err := mixed.Check(); err == nil {
		t.Error("a pair with another key is taken for one that was parsed before")
	}
	keys := func() int { pairs.mu.Lock(); defer pairs.mu.Unlock(); return len(pairs.held) }
	before := keys()
	runtime.KeepAlive(one)
	one, two = nil, nil
	deadline := time.Now().Add(10 * time.Second)
	for keys() > before-2 && time.Now().Before(deadline) {
		runtime.GC()
		runtime.Gosched()
	}
	if keys() > before-2 {
		t.Errorf("%d pairs held, %d before they were dropped", keys(), before)
	}
}

// BenchmarkReload10000 is a reload with 10,000 unchanged certificates.
func BenchmarkReload10000(b *testing.B) {
	list := manyPairs(b, 10000)
	load := func() *Set {
		fresh := make([]KeyPair, len(list))
		for i, p := range list {
			fresh[i] = KeyPair{Source: p.Source, CertPEM: p.CertPEM, KeyPEM: p.KeyPEM}
		}
		s, err := New(Options{Config: Config{Pairs: fresh}})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			pairs.mu.Lock()
			clear(pairs.held)
			pairs.mu.Unlock()
			b.StartTimer()
			load()
		}
	})
	held := load()
	b.Run("reload", func(b *testing.B) {
		for b.Loop() {
			load()
		}
	})
	runtime.KeepAlive(held)
}

func manyPairs(b *testing.B, n int) []KeyPair {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	keyDER, _ := x509.MarshalPKCS8PrivateKey(key)
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	list := make([]KeyPair, n)
	for i := range list {
		c := &x509.Certificate{SerialNumber: serial(), DNSNames: []string{fmt.Sprintf("h%d.test", i)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
		if err != nil {
			b.Fatal(err)
		}
		list[i] = KeyPair{Source: c.DNSNames[0], CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), KeyPEM: keyPEM}
	}
	return list
}
