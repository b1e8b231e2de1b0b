package keys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

// notified keeps what notification sockets were told, by path.
var notified sync.Map

// Certificates, made once: a CA, a server's, clients' (one revoked, one behind
// an intermediate), a revocation list, a signing key; base64 of PEM by name.
var made = sync.OnceValue(func() *keyMaterial {
	m := &keyMaterial{text: map[string]string{}, pairs: map[string]tls.Certificate{}}
	ca := m.issue("ca", nil, func(t *x509.Certificate) { t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign })
	m.issue("server", ca, func(t *x509.Certificate) {
		t.DNSNames = []string{"app.localhost", "upstream.test"}
		t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	client := func(t *x509.Certificate) {
		t.EmailAddresses = []string{"client@example.com"}
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	m.issue("client", ca, client)
	revoked := m.issue("revoked", ca, client)
	between := m.issue("between", ca, func(t *x509.Certificate) { t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign })
	deep := m.issue("deep", between, client)
	deep.Certificate = append(deep.Certificate, between.Certificate...)
	m.pairs["deep"] = *deep
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: revoked.Leaf.SerialNumber, RevocationTime: time.Now().Add(-time.Hour)}},
	}, ca.Leaf, ca.PrivateKey.(*ecdsa.PrivateKey))
	must(err)
	m.put("CRL", "X509 CRL", der)
	m.put("CA", "CERTIFICATE", ca.Certificate[0])
	for name, pair := range map[string]string{"server": "", "client": "CLIENT"} {
		c := m.pairs[name]
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		must(err)
		m.put(pair+"CERT", "CERTIFICATE", c.Certificate[0])
		m.put(pair+"KEY", "PRIVATE KEY", key)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	raw, err := x509.MarshalECPrivateKey(k)
	must(err)
	m.put("SIGNING", "EC PRIVATE KEY", raw)
	m.signing = k
	return m
})

type keyMaterial struct {
	text    map[string]string
	pairs   map[string]tls.Certificate
	signing *ecdsa.PrivateKey
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (m *keyMaterial) put(name, kind string, der []byte) {
	m.text[name] = base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func (m *keyMaterial) issue(name string, by *tls.Certificate, change func(*x509.Certificate)) *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	t := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(m.pairs) + 1)), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	change(t)
	parent, signer := t, key
	if by != nil {
		parent, signer = by.Leaf, by.PrivateKey.(*ecdsa.PrivateKey)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, signer)
	must(err)
	leaf, err := x509.ParseCertificate(der)
	must(err)
	c := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	m.pairs[name] = c
	return &c
}

// material is what configurations name as @CA@, @CERT@, @KEY@, @CLIENTCERT@,
// @CLIENTKEY@, @CRL@ and @SIGNING@, and finds as ca.pem and so on in @DIR@.
func material(t *testing.T) map[string]string {
	t.Helper()
	return made().text
}

func decoded(s string) string {
	b, err := base64.StdEncoding.DecodeString(s)
	must(err)
	return string(b)
}

func certificate(name string) tls.Certificate { return made().pairs[name] }

// withCertificate is a browser that shows a client certificate.
func (w *world) withCertificate(name string) *servertest.Agent {
	roots := x509.NewCertPool()
	roots.AddCert(w.CA.Certificate())
	return w.AgentWith(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate(name)}})
}
