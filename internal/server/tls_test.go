package server_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"postern/internal/server/servertest"
)

// pairFiles writes a certificate for app.localhost, with its CA behind it, and
// its key.
func pairFiles(t *testing.T, dir string, number int64, responder string) (ca, leaf *x509.Certificate, caKey *ecdsa.PrivateKey) {
	t.Helper()
	issue := func(c, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if parent == nil {
			parent, signer = c, key
		}
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(90*24*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		out, _ := x509.ParseCertificate(der)
		return out, key
	}
	ca, caKey = issue(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true}, nil, nil)
	c := &x509.Certificate{SerialNumber: big.NewInt(number), DNSNames: []string{"app.localhost"}}
	if responder != "" {
		c.OCSPServer = []string{responder}
	}
	leaf, key := issue(c, ca, caKey)
	raw, _ := x509.MarshalPKCS8PrivateKey(key)
	chain := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})...)
	// The key first, as many tools do: for a moment the two do not match.
	for name, b := range map[string][]byte{"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), "tls.crt": chain} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ca, leaf, caKey
}

// TestCertificatesAreReplaced: new files serve the next handshake, and nobody
// who is connected notices.
func TestCertificatesAreReplaced(t *testing.T) {
	dir := t.TempDir()
	_, first, _ := pairFiles(t, dir, 2, "")
	p := servertest.Start(t, fmt.Sprintf("certificates: [{cert: %[1]s/tls.crt, key: %[1]s/tls.key}]\n", dir))
	open := func() (*tls.Conn, *bufio.Reader) {
		c, err := tls.Dial("tcp", p.Main, &tls.Config{ServerName: "app.localhost", InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, bufio.NewReader(c)
	}
	ask := func(c *tls.Conn, r *bufio.Reader) error {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n")
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		io.Copy(io.Discard, res.Body)
		if res.StatusCode != http.StatusOK || res.Close {
			return fmt.Errorf("%s, closing %v", res.Status, res.Close)
		}
		return nil
	}
	old, r := open()
	if err := ask(old, r); err != nil || !bytes.Equal(old.ConnectionState().PeerCertificates[0].Raw, first.Raw) {
		t.Fatal(err)
	}
	_, second, _ := pairFiles(t, dir, 3, "")
	if err := servertest.Eventually(func() error { // nobody says that they changed
		c, _ := open()
		defer c.Close()
		if err := ask(old, r); err != nil {
			t.Fatalf("the open connection: %v", err)
		}
		if bytes.Equal(c.ConnectionState().PeerCertificates[0].Raw, first.Raw) {
			return errors.New("the old certificate is served")
		}
		if !bytes.Equal(c.ConnectionState().PeerCertificates[0].Raw, second.Raw) {
			t.Fatal("neither the old nor the new certificate is served")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := ask(old, r); err != nil {
		t.Errorf("the open connection: %v", err)
	}
}

// TestStaplesAreServed: the certificates of the configuration come with the
// word of their CA, which is kept in the data directory.
func TestStaplesAreServed(t *testing.T) {
	dir := t.TempDir()
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	responder := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		q, err := ocsp.ParseRequest(b)
		if err != nil {
			t.Error(err)
			return
		}
		der, err := ocsp.CreateResponse(ca, ca, ocsp.Response{Status: ocsp.Good, SerialNumber: q.SerialNumber, ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}, caKey)
		if err != nil {
			t.Error(err)
		}
		w.Write(der)
	}))
	defer responder.Close()
	ca, _, caKey = pairFiles(t, dir, 2, responder.URL)
	p := servertest.Start(t, fmt.Sprintf("certificates: [{cert: %[1]s/tls.crt, key: %[1]s/tls.key}]\n", dir))
	if err := servertest.Eventually(func() error {
		c, err := tls.Dial("tcp", p.Main, &tls.Config{ServerName: "app.localhost", InsecureSkipVerify: true})
		if err != nil {
			return err
		}
		defer c.Close()
		if c.OCSPResponse() == nil {
			return errors.New("no staple")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := servertest.Eventually(func() error {
		if kept, _ := filepath.Glob(filepath.Join(p.Dir, "data", "ocsp", "*.der")); len(kept) != 1 {
			return fmt.Errorf("kept: %v", kept)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestProvidersByPrivateCA: the identity provider may have its certificate from
// certificate_authority.
func TestProvidersByPrivateCA(t *testing.T) {
	var asked atomic.Int32
	provider := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusNotFound)
	}))
	provider.Config.ErrorLog = log.New(io.Discard, "", 0)
	provider.StartTLS()
	defer provider.Close()
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: provider.Certificate().Raw}))
	for key, want := range map[string]bool{"certificate_authority: " + ca: true, "": false} {
		p := servertest.Start(t, fmt.Sprintf("%s\nidp_provider: oidc\nidp_provider_url: %s\nidp_client_id: x\nidp_client_secret: y\nroutes:\n  - {from: https://app.localhost, to: @APP@, allow_any_authenticated_user: true}\n", key, provider.URL))
		before := asked.Load()
		a, at := p.Agent(), "https://app.localhost/"
		for range 4 {
			page := a.Get(at, "Accept: text/html")
			next, err := page.Location()
			if err != nil {
				break
			}
			at = next.String()
		}
		if got := asked.Load() > before; got != want {
			t.Errorf("%.25q: the provider was asked: %v\n%v", key, got, a.Hops)
		}
	}
}
