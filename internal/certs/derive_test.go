package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"
)

// TestDerived: replicas with one secret serve the same bytes, and trust each
// other by the CA that comes from it.
func TestDerived(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	now := time.Now()
	clock := func() time.Time { return now }
	set := func(secret []byte, c Config) *Set { return newSet(t, Options{Config: c, Secret: secret, Now: clock}) }
	serve := func(s *Set, sni string) *x509.Certificate {
		got, _, err := shake(s.TLSConfig(nil), anyServer(sni))
		if err != nil {
			t.Fatalf("%s: %v", sni, err)
		}
		return got.PeerCertificates[0]
	}
	c := Config{TLSDerive: "Postern.Internal"}
	for _, sni := range []string{"postern.internal", "stranger.test"} {
		one, two := serve(set(secret, c), sni), serve(set(secret, c), sni)
		if !bytes.Equal(one.Raw, two.Raw) {
			t.Errorf("%s: replicas differ", sni)
		}
		other := serve(set(bytes.Repeat([]byte{8}, 32), c), sni)
		if one.PublicKey.(*ecdsa.PublicKey).Equal(other.PublicKey) || one.SerialNumber.Cmp(other.SerialNumber) == 0 {
			t.Errorf("%s: another secret, the same key or number", sni)
		}
	}
	a, b := serve(set(secret, c), "postern.internal"), serve(set(secret, c), "x")
	if a.PublicKey.(*ecdsa.PublicKey).Equal(b.PublicKey) {
		t.Error("the internal leaf and the catch-all share a key")
	}

	trusting := Config{TLSDerive: "postern.internal", ExtraRoots: []byte("# others, without a line end")}
	if err := TrustDerived(&trusting, secret); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(trusting.ExtraRoots)
	if _, _, err := shake(set(secret, c).TLSConfig(nil), &tls.Config{RootCAs: roots, ServerName: "postern.internal"}); err != nil {
		t.Error("not trusted:", err)
	}
	if _, _, err := shake(set([]byte("another secret"), c).TLSConfig(nil), &tls.Config{RootCAs: roots, ServerName: "postern.internal"}); err == nil {
		t.Error("the leaf of another secret is trusted")
	}
	off := Config{}
	if err := TrustDerived(&off, secret); err != nil || off.ExtraRoots != nil {
		t.Error("trusted without tls_derive")
	}

	// Beside a configured certificate, names that it is not for get the
	// catch-all.
	_, p := newIssuer(t, "ca", nil).issue(t, nil, nil, "app.test")
	both := set(secret, Config{TLSDerive: "postern.internal", Pairs: []KeyPair{p}})
	for sni, want := range map[string]string{"app.test": "app.test", "postern.internal": "postern.internal", "stranger.test": "*"} {
		if got := serve(both, sni).DNSNames[0]; got != want {
			t.Errorf("%s gets %s", sni, got)
		}
	}
	if _, err := New(Options{Config: c}); err == nil {
		t.Error("derived from no secret")
	}

	// Leaves are renewed while the process runs, and never live long.
	s := set(secret, c)
	for range 12 {
		leaf := serve(s, "postern.internal")
		if now.Before(leaf.NotBefore) || leaf.NotAfter.Sub(now) < leafPeriod || leaf.NotAfter.Sub(leaf.NotBefore) > 825*24*time.Hour {
			t.Errorf("at %s: valid from %s to %s", now, leaf.NotBefore, leaf.NotAfter)
		}
		now = now.Add(leafPeriod / 3)
	}
}
