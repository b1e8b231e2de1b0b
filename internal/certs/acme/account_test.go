package acme_test

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"postern/internal/certs/acme"
	"postern/internal/server/servertest"
)

// A server that wants accounts bound takes ours, and no other.
func TestExternalAccount(t *testing.T) {
	t.Parallel()
	const mac = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	a := servertest.StartACME(t, servertest.ACMEOptions{EAB: map[string]string{"kid-1": mac}})
	p := servertest.Start(t, settings(a, "", "app.zt.test"), servertest.Options{Autocert: hurry})
	eventually(t, "a refusal", p, func() error {
		if s := state(p, "app.zt.test"); !strings.Contains(s.Error, "externalAccountRequired") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	p.Change(settings(a, "autocert_eab_key_id: kid-1\nautocert_eab_mac_key: "+mac, "app.zt.test"))
	serves(t, p, a, "app.zt.test")
	if strings.Contains(p.Log.String(), mac) {
		t.Error("the log holds the key")
	}
}

// The profile is asked for.
func TestProfile(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{})
	p := servertest.Start(t, settings(a, "autocert_profile: unknown", "app.zt.test"), servertest.Options{Autocert: hurry})
	eventually(t, "a refusal", p, func() error {
		if s := state(p, "app.zt.test"); !strings.Contains(s.Error, "profile") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	p.Change(settings(a, "autocert_profile: ordinary", "app.zt.test"))
	serves(t, p, a, "app.zt.test")
}

// A must-staple certificate is served with a staple of the responder it names.
func TestMustStaple(t *testing.T) {
	t.Parallel()
	var a *servertest.ACME
	asked := 0
	responder := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		req, err := ocsp.ParseRequest(b)
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		asked++
		cert, key := intermediate(t, a)
		now := time.Now()
		out, err := ocsp.CreateResponse(cert, cert, ocsp.Response{Status: ocsp.Good, SerialNumber: req.SerialNumber, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}, key)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(out)
	}))
	t.Cleanup(responder.Close)
	a = servertest.StartACME(t, servertest.ACMEOptions{OCSP: responder.URL})
	p := servertest.Start(t, settings(a, "autocert_must_staple: true", "app.zt.test"))
	cert := serves(t, p, a, "app.zt.test")
	must := false
	for _, e := range cert.Extensions {
		must = must || e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24})
	}
	if !must {
		t.Error("the certificate does not say must-staple")
	}
	c, err := tls.Dial("tcp", p.Main, &tls.Config{ServerName: "app.zt.test", RootCAs: a.Roots()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	issuer, _ := intermediate(t, a)
	if res, err := ocsp.ParseResponseForCert(c.OCSPResponse(), cert, issuer); err != nil || res.Status != ocsp.Good {
		t.Errorf("the staple: %v, %v (asked %d times)", res, err, asked)
	}
}

// intermediate is the ACME server's issuing CA with its key.
func intermediate(t *testing.T, a *servertest.ACME) (*x509.Certificate, crypto.Signer) {
	var blocks [2]*pem.Block
	for i, path := range []string{"/intermediates/0", "/intermediate-keys/0"} {
		b, err := a.Get(path)
		if err != nil {
			t.Fatal(err)
		}
		if blocks[i], _ = pem.Decode(bytes.TrimSpace(b)); blocks[i] == nil {
			t.Fatalf("%s: %s", path, b)
		}
	}
	cert, err := x509.ParseCertificate(blocks[0].Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS1PrivateKey(blocks[1].Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// A refused name says why, and does not keep others from theirs.
func TestRefusedName(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{Refused: []string{"bad.zt.test"}})
	p := servertest.Start(t, settings(a, "", "bad.zt.test", "good.zt.test"))
	serves(t, p, a, "good.zt.test")
	eventually(t, "a reason", p, func() error {
		if s := state(p, "bad.zt.test"); s.State != acme.StateFailing || !strings.Contains(s.Error, "rejectedIdentifier") || !s.Next.After(time.Now()) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// Everything lies in a bucket, if that is wanted.
func TestInABucket(t *testing.T) {
	t.Parallel()
	bucket := servertest.StartTool(t, "s3")
	a := servertest.StartACME(t, servertest.ACMEOptions{})
	text := settings(a, "autocert_dir: s3://key:hunter2@"+bucket+"/certificates/postern", "app.zt.test")
	p := servertest.Start(t, text)
	first := serves(t, p, a, "app.zt.test")
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	a.Stop()
	p = servertest.Start(t, text)
	if c, err := leaf(p, "app.zt.test", nil); err != nil || c.SerialNumber.Cmp(first.SerialNumber) != 0 {
		t.Errorf("%v, %v", c, err)
	}
	if strings.Contains(p.Log.String(), "hunter2") {
		t.Error("the log holds the password")
	}
}

// Everything lies in the record store, sealed, if that is wanted.
func TestInTheRecordStore(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{})
	text := settings(a, "autocert_dir: records://\ndatabroker_storage_type: file\ndatabroker_storage_connection_string: file://@DIR@/records", "app.zt.test")
	p := servertest.Start(t, text)
	first := serves(t, p, a, "app.zt.test")
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	a.Stop()
	p = servertest.Start(t, text, servertest.Options{Dir: p.Dir})
	if c, err := leaf(p, "app.zt.test", nil); err != nil || c.SerialNumber.Cmp(first.SerialNumber) != 0 {
		t.Errorf("%v, %v", c, err)
	}
}
