package certs

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"

	"postern/internal/route"
)

func echKey(t testing.TB, others ...ECHKey) *ECHKey {
	t.Helper()
	k, err := NewECHKey("Cover.Test", others)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func echText(t testing.TB, keys ...*ECHKey) []byte {
	t.Helper()
	var out []byte
	for _, k := range keys {
		b, err := k.PEM()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

// outermost is what a listener does: the hello is decrypted before the
// generation is asked.
func outermost(s *Set) *tls.Config {
	return &tls.Config{
		GetConfigForClient: s.TLSConfig([]string{"h2", "http/1.1"}).GetConfigForClient,
		GetEncryptedClientHelloKeys: func(*tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
			return s.ECHKeys(), nil
		},
	}
}

// TestEncryptedClientHello: the name that counts is the encrypted one, for the
// certificate and for what a client is asked; old keys serve on, and a client
// with an unknown one is told the current key by the public name.
func TestEncryptedClientHello(t *testing.T) {
	ca, clients := newIssuer(t, "ca", nil), newIssuer(t, "clients", nil)
	_, app := ca.issue(t, nil, nil, "app.test")
	_, asks := ca.issue(t, nil, nil, "asks.test")
	_, cover := ca.issue(t, nil, nil, "cover.test")
	cert, _ := clients.issue(t, nil, nil)
	current := echKey(t)
	older := echKey(t, *current)
	gone := echKey(t, *current, *older)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	rt := routeAt(t, "https://asks.test", "")
	options := Options{Config: Config{Pairs: []KeyPair{app, asks, cover}, ECHKeys: echText(t, current, older)},
		Routes: []*route.Route{rt}, RouteCAs: map[*route.Route][]byte{rt: clients.PEM}}
	s := newSet(t, options)
	if len(s.Notes()) > 0 {
		t.Errorf("notes %v", s.Notes())
	}
	client := func(sni string, list []byte) *tls.Config {
		return &tls.Config{RootCAs: roots, ServerName: sni, EncryptedClientHelloConfigList: list, MinVersion: tls.VersionTLS13,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }}
	}
	for name, key := range map[string]*ECHKey{"current": current, "older": older} {
		for sni, asked := range map[string]bool{"app.test": false, "asks.test": true} {
			got, at, err := shake(outermost(s), client(sni, key.List))
			if err != nil || !got.ECHAccepted || !at.ECHAccepted || at.ServerName != sni || got.PeerCertificates[0].DNSNames[0] != sni {
				t.Errorf("%s key, %s: %v, accepted %v, server saw %q", name, sni, err, got.ECHAccepted, at.ServerName)
			}
			if (len(at.PeerCertificates) > 0) != asked {
				t.Errorf("%s key, %s: %d client certificates", name, sni, len(at.PeerCertificates))
			}
		}
	}
	_, _, err := shake(outermost(s), client("asks.test", gone.List))
	var rejected *tls.ECHRejectionError
	if !errors.As(err, &rejected) {
		t.Fatalf("an unknown key: %v", err)
	}
	if string(rejected.RetryConfigList) != string(current.List) {
		t.Error("the retry configuration is not the current key alone")
	}
	if _, at, err := shake(outermost(s), client("asks.test", rejected.RetryConfigList)); err != nil || !at.ECHAccepted || len(at.PeerCertificates) != 1 {
		t.Errorf("the second try: %v", err)
	}
	// Without keys, and after they were taken away: no retry, the client goes on in the clear.
	options.Config.ECHKeys = nil
	_, _, err = shake(outermost(newSet(t, options)), client("app.test", current.List))
	if !errors.As(err, &rejected) || len(rejected.RetryConfigList) != 0 {
		t.Errorf("without keys: %v", err)
	}
	// Clients that know nothing of it.
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		if _, at, err := shake(outermost(s), &tls.Config{RootCAs: roots, ServerName: "app.test", MaxVersion: version}); err != nil || at.ECHAccepted {
			t.Errorf("%x without: %v", version, err)
		}
	}
	// A public name without a certificate is a trap for later.
	options.Config.ECHKeys, options.Config.Pairs = echText(t, current), []KeyPair{app}
	if notes := strings.Join(newSet(t, options).Notes(), ""); !strings.Contains(notes, "cover.test") {
		t.Errorf("notes %q", notes)
	}
}

func TestECHKeys(t *testing.T) {
	one, two := echKey(t), echKey(t)
	text := echText(t, one, two)
	keys, err := ParseECHKeys(text)
	if err != nil || len(keys) != 2 || keys[0].PublicName != "cover.test" || string(keys[0].List) != string(one.List) || string(keys[1].Config) != string(two.Config) {
		t.Fatalf("%v %v", keys, err)
	}
	if rec := one.Record("app.example.com"); rec != "app.example.com. IN HTTPS 1 . ech="+base64.StdEncoding.EncodeToString(one.List) {
		t.Error(rec)
	}
	ids := map[uint8]bool{}
	var all []ECHKey
	for range 200 {
		k := echKey(t, all...)
		if ids[k.id] {
			t.Fatalf("the id %d twice", k.id)
		}
		ids[k.id], all = true, append(all, *k)
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	first, rest := pem.Decode(text)
	second, _ := pem.Decode(rest)
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ecDER, _ := x509.MarshalPKCS8PrivateKey(ec)
	p256, _ := ecdh.P256().GenerateKey(rand.Reader)
	p256DER, _ := x509.MarshalPKCS8PrivateKey(p256)
	var nine []*ECHKey
	for range maxECHKeys + 1 {
		nine = append(nine, echKey(t))
	}
	changed := func(at int, to ...byte) []byte {
		b := slices.Clone(one.List)
		copy(b[at:], to)
		return append(block("PRIVATE KEY", first.Bytes), block("ECHCONFIG", b)...)
	}
	for says, text := range map[string][]byte{
		"no key":               []byte("nonsense"),
		"does not follow":      block("ECHCONFIG", second.Bytes),
		"not followed":         block("PRIVATE KEY", first.Bytes),
		"is not followed":      append(block("PRIVATE KEY", first.Bytes), text...),
		"cannot be read":       append(block("PRIVATE KEY", []byte("x")), block("ECHCONFIG", second.Bytes)...),
		"X25519":               append(block("PRIVATE KEY", ecDER), block("ECHCONFIG", second.Bytes)...),
		"the kind X25519":      append(block("PRIVATE KEY", p256DER), block("ECHCONFIG", second.Bytes)...),
		"not for the PRIVATE":  append(block("PRIVATE KEY", first.Bytes), block("ECHCONFIG", two.List)...),
		"malformed":            append(block("PRIVATE KEY", first.Bytes), block("ECHCONFIG", one.List[:20])...),
		"does not belong":      append(text, block("CERTIFICATE", []byte("x"))...),
		"8 are the most":       echText(t, nine...),
		"is malformed":         changed(2, 0xfe, 0x09), // another version alone
		"an ECHCONFIG is malf": append(block("PRIVATE KEY", first.Bytes), block("ECHCONFIG", append(slices.Clone(one.List), 0))...),
		"public name":          changed(len(one.List)-2-len("cover.test"), []byte("cover_test")...),
		"host name":            changed(len(one.List)-2-len("cover.test"), []byte("10.20.30.4")...),
		"cipher suite":         changed(2+4+1+2+2+32+2, 0, 9),
	} {
		_, err := ParseECHKeys(text)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), ";") {
			t.Errorf("%s: %v", says, err)
		}
	}
	for _, name := range []string{"", "a..b", "-a.test", "a_b.test", "1.2.3.4", "x.1", strings.Repeat("a", 64) + ".test", "ö.test"} {
		if _, err := NewECHKey(name, nil); err == nil {
			t.Errorf("public name %q accepted", name)
		}
	}
}

// FuzzECHKeys: whatever stands in the file, it is refused or it serves.
func FuzzECHKeys(f *testing.F) {
	k, _ := NewECHKey("cover.test", nil)
	text, _ := k.PEM()
	f.Add(text, uint16(7), byte(1))
	f.Fuzz(func(t *testing.T, text []byte, at uint16, to byte) {
		if b, rest := pem.Decode(text); b != nil {
			if c, _ := pem.Decode(rest); c != nil && len(c.Bytes) > 0 {
				c.Bytes[int(at)%len(c.Bytes)] = to
				text = append(pem.EncodeToMemory(b), pem.EncodeToMemory(c)...)
			}
		}
		keys, err := ParseECHKeys(text)
		if err == nil && (len(keys) == 0 || checkPublicName(keys[0].PublicName) != nil) {
			t.Errorf("accepted: %v", keys)
		}
	})
}
