package keys

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"postern/internal/certs"
	"postern/internal/server/servertest"
)

// Keys of certificates that Postern makes, and of Encrypted Client Hello
// (§2.2, ours).
var tlsExamples = []example{
	{keys: "tls_derive", config: `
tls_derive: Inside.Test # shown
routes:
  - from: https://app.localhost
    to: https://127.0.0.1:@PORT@
    tls_upstream_server_name: inside.test
    allow_public_unauthenticated_access: true`, with: derivedUpstream, shows: func(w *world) error {
		name := func(sni string) string {
			c, err := tls.Dial("tcp", w.Main, &tls.Config{ServerName: sni, InsecureSkipVerify: true})
			if err != nil {
				return err.Error()
			}
			defer c.Close()
			return c.ConnectionState().PeerCertificates[0].DNSNames[0]
		}
		return errors.Join(is(name("inside.test"), "inside.test"), is(name("stranger.test"), "*"), w.status(200, user))
	}},
	{keys: "certificates[].id", config: `
certificates:
  - cert: @DIR@/ends.pem
    key: @DIR@/ends.key.pem
    id: front door # shown`, with: soonOver, shows: func(w *world) error {
		return holds(w.Log.String(), "front door ("+w.Dir+"/ends.pem): the certificate for ends.test expires on")
	}},
	{keys: "ech_keys", config: `ech_keys: @ECH@ # shown`, with: echKeys, shows: acceptsECH},
	{keys: "ech_keys_file", config: `ech_keys_file: @DIR@/ech.pem # shown`, with: echKeys, shows: acceptsECH},
}

// derivedUpstream is an upstream whose certificate comes from the same shared
// secret.
func derivedUpstream(t *testing.T, o *servertest.Options) {
	secret, err := base64.StdEncoding.DecodeString("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=") // servertest's
	must(err)
	set, err := certs.New(certs.Options{Config: certs.Config{TLSDerive: "inside.test"}, Secret: secret})
	must(err)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusOK) }))
	s.TLS = set.TLSConfig([]string{"http/1.1"})
	s.StartTLS()
	t.Cleanup(s.Close)
	o.Vars["PORT"] = s.URL[strings.LastIndexByte(s.URL, ':')+1:]
}

// soonOver is a certificate that ends in a week.
func soonOver(_ *testing.T, o *servertest.Options) {
	m := &keyMaterial{text: map[string]string{}, pairs: map[string]tls.Certificate{}}
	c := m.issue("ends", nil, func(t *x509.Certificate) {
		t.DNSNames, t.NotAfter = []string{"ends.test"}, time.Now().Add(7*24*time.Hour)
	})
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	must(err)
	o.Files["ends.pem"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
	o.Files["ends.key.pem"] = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
}

func echKeys(_ *testing.T, o *servertest.Options) {
	k, err := certs.NewECHKey("cover.localhost", nil)
	must(err)
	text, err := k.PEM()
	must(err)
	o.Vars["ECH"] = base64.StdEncoding.EncodeToString(text)
	o.Vars["ECHLIST"] = base64.StdEncoding.EncodeToString(k.List)
	o.Files["ech.pem"] = string(text)
}

func acceptsECH(w *world) error {
	list, err := base64.StdEncoding.DecodeString(w.vars["ECHLIST"])
	must(err)
	roots := x509.NewCertPool()
	roots.AddCert(w.CA.Certificate())
	page, err := w.AgentWith(&tls.Config{RootCAs: roots, EncryptedClientHelloConfigList: list}).Request("GET", user)
	if err != nil {
		return err
	}
	return errors.Join(is(page.StatusCode, 200), is(page.TLS.ECHAccepted, true))
}
