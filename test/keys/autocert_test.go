package keys

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/certs/acme"
	"postern/internal/server/servertest"
)

// withACME names the server in a configuration: @ACME@ is its URL, @ACMECA@
// the file that vouches for it, @ACMECAB64@ the same inline.
func withACME(o servertest.ACMEOptions) func(*testing.T, *servertest.Options) {
	return func(t *testing.T, so *servertest.Options) {
		a := servertest.StartACME(t, o)
		b, err := os.ReadFile(a.CA)
		if err != nil {
			t.Fatal(err)
		}
		so.Vars["ACME"], so.Vars["ACMECA"], so.Vars["ACMECAB64"] = a.Directory, a.CA, base64.StdEncoding.EncodeToString(b)
		so.Vars["HTTPPORT"] = a.HTTPPort
		so.Autocert = acme.Timing{Retry: time.Hour}
	}
}

var lenient = withACME(servertest.ACMEOptions{AlwaysValid: true})

// acmeHost is who gets a certificate in the examples.
const acmeHost = "app.zt.test"

const acmeRoute = `
routes:
  - from: https://app.zt.test
    to: @APP@
    allow_public_unauthenticated_access: true
`

// settled waits for the outcome of the first attempt.
func settled(w *world) (acme.HostStatus, error) {
	deadline := time.Now().Add(15 * time.Second)
	for {
		found := false
		for _, s := range w.Status().Certificates {
			if s.Name != acmeHost {
				continue
			}
			found = true
			if s.State != acme.StatePending {
				return s, nil
			}
		}
		if !found || time.Now().After(deadline) {
			return acme.HostStatus{}, errors.New("nothing is done for " + acmeHost)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// obtained shows that a certificate came from the ACME server.
func obtained(w *world) (*x509.Certificate, error) {
	s, err := settled(w)
	if err != nil {
		return nil, err
	}
	if s.State != acme.StateValid {
		return nil, fmt.Errorf("%s: %s", s.State, s.Error)
	}
	c, err := tls.Dial("tcp", w.Main, &tls.Config{ServerName: acmeHost, InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	leaf := c.ConnectionState().PeerCertificates[0]
	return leaf, holds(leaf.Issuer.CommonName, "Pebble")
}

func isObtained(w *world) error { _, err := obtained(w); return err }

// Keys of certificates by ACME (§2.3).
var autocertExamples = []example{
	{keys: "autocert autocert_ca autocert_trusted_ca_file", with: lenient, shows: isObtained, config: `
autocert: true # shown
autocert_ca: @ACME@ # shown
autocert_trusted_ca_file: @ACMECA@ # shown
autocert_dir: @DIR@/autocert` + acmeRoute},
	// Without it the server would be a public one, which vouches for no .test.
	{keys: "autocert_ca", with: lenient, shows: isObtained, config: `
autocert: true
autocert_ca: @ACME@ # shown
autocert_trusted_ca_file: @ACMECA@
autocert_dir: @DIR@/autocert` + acmeRoute},
	{keys: "autocert_trusted_ca_file", with: lenient, shows: isObtained, config: `
autocert: true
autocert_ca: @ACME@
autocert_trusted_ca_file: @ACMECA@ # shown
autocert_dir: @DIR@/autocert` + acmeRoute},
	{keys: "autocert_trusted_ca", with: lenient, shows: isObtained, config: `
autocert: true
autocert_ca: @ACME@
autocert_trusted_ca: @ACMECAB64@ # shown
autocert_dir: @DIR@/autocert` + acmeRoute},
	{keys: "autocert_email autocert_dir", with: lenient, config: `
autocert: true
autocert_ca: @ACME@
autocert_trusted_ca_file: @ACMECA@
autocert_email: Ops@example.net # shown
autocert_dir: @DIR@/kept # shown
autocert_dir: @DIR@/elsewhere # instead` + acmeRoute, shows: func(w *world) error {
		if err := isObtained(w); err != nil {
			return err
		}
		accounts, err := filepath.Glob(filepath.Join(w.Dir, "kept", "acme", "*", "users", "ops@example.net", "ops.key"))
		certificates, err2 := filepath.Glob(filepath.Join(w.Dir, "kept", "certificates", "*", acmeHost, acmeHost+".key"))
		return errors.Join(err, err2, is(len(accounts), 1), is(len(certificates), 1))
	}},
	{keys: "autocert_use_staging", config: `
autocert_use_staging: true # shown
certificate: @CERT@
certificate_key: @KEY@`, shows: func(w *world) error {
		page, err := w.AgentWith(&tls.Config{InsecureSkipVerify: true}).Request("GET", user)
		if err != nil {
			return err
		}
		return is(page.Header.Get("Strict-Transport-Security"), "")
	}},
	{keys: "autocert_eab_key_id autocert_eab_mac_key", with: withACME(servertest.ACMEOptions{AlwaysValid: true, EAB: map[string]string{"kid": "c2VjcmV0LW1hYy1rZXktb2YtdGhlLXRlc3QtMzItYnl0ZXMtbG9uZw"}}), shows: isObtained, config: `
autocert: true
autocert_ca: @ACME@
autocert_trusted_ca_file: @ACMECA@
autocert_eab_key_id: kid # shown
autocert_eab_mac_key: c2VjcmV0LW1hYy1rZXktb2YtdGhlLXRlc3QtMzItYnl0ZXMtbG9uZw # shown
autocert_dir: @DIR@/autocert` + acmeRoute},
	{keys: "autocert_must_staple", with: lenient, config: `
autocert: true
autocert_ca: @ACME@
autocert_trusted_ca_file: @ACMECA@
autocert_must_staple: true # shown
autocert_dir: @DIR@/autocert` + acmeRoute, shows: func(w *world) error {
		leaf, err := obtained(w)
		if err != nil {
			return err
		}
		for _, e := range leaf.Extensions {
			if e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}) {
				return nil
			}
		}
		return errors.New("the certificate does not say must-staple")
	}},
	// The port of http_redirect_addr is not 80, and nobody answers for TLS
	// where the server asks.
	{keys: "autocert_challenges", with: withACME(servertest.ACMEOptions{}), shows: isObtained, config: `
autocert: true
autocert_ca: @ACME@
autocert_trusted_ca_file: @ACMECA@
autocert_challenges: [http-01] # shown
http_redirect_addr: 127.0.0.1:@HTTPPORT@
autocert_dir: @DIR@/autocert` + acmeRoute},
	{keys: "autocert_profile", with: lenient, config: `
autocert: true
autocert_ca: @ACME@
autocert_trusted_ca_file: @ACMECA@
autocert_profile: unheard-of # shown
autocert_dir: @DIR@/autocert` + acmeRoute, shows: func(w *world) error {
		s, err := settled(w)
		return errors.Join(err, is(s.State, acme.StateFailing), holds(strings.ToLower(s.Error), "profile"))
	}},
}
