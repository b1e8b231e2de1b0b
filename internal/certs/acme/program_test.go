package acme_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/certs/acme"
	"postern/internal/server/servertest"
)

// These tests run the whole program against a real ACME server.

// hurry makes a schedule of seconds.
var hurry = acme.Timing{Check: 500 * time.Millisecond, Retry: 100 * time.Millisecond}

// settings is a configuration that gets certificates from a server. Lines of
// more come first.
func settings(a *servertest.ACME, more string, hosts ...string) string {
	text := "address: 127.0.0.1:" + a.TLSPort + "\nautocert: true\nautocert_trusted_ca_file: " + a.CA + "\n"
	for key, value := range map[string]string{"autocert_ca": a.Directory, "autocert_dir": "@DIR@/autocert"} {
		if !strings.Contains(more, key+":") {
			text += key + ": " + value + "\n"
		}
	}
	text += more + "\nroutes:\n"
	for _, h := range hosts {
		text += "  - {from: 'https://" + h + "', to: @APP@, allow_public_unauthenticated_access: true}\n"
	}
	return text
}

const patience = 20 * time.Second

// eventually polls.
func eventually(t *testing.T, what string, p *servertest.Program, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v\n%s", what, err, said(p))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// said is what the log says about certificates.
func said(p *servertest.Program) string {
	var out []string
	for line := range strings.SplitSeq(p.Log.String(), "\n") {
		if strings.Contains(line, "autocert") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// leaf is what the program serves for a name; it must be of the CA if roots
// are given.
func leaf(p *servertest.Program, name string, roots *x509.CertPool) (*x509.Certificate, error) {
	c, err := tls.Dial("tcp", p.Main, &tls.Config{ServerName: name, RootCAs: roots, InsecureSkipVerify: roots == nil})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

func serves(t *testing.T, p *servertest.Program, a *servertest.ACME, name string) *x509.Certificate {
	t.Helper()
	var got *x509.Certificate
	roots := a.Roots()
	eventually(t, "a certificate for "+name, p, func() (err error) {
		got, err = leaf(p, name, roots)
		return err
	})
	return got
}

func state(p *servertest.Program, name string) acme.HostStatus {
	for _, s := range p.Status().Certificates {
		if s.Name == name {
			return s
		}
	}
	return acme.HostStatus{}
}

func TestCertificateByTLSALPN(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{})
	p := servertest.Start(t, settings(a, "autocert_email: ops@example.net", "app.zt.test", "app.localhost", "127.0.0.1", "*.wild.zt.test")+
		"  - {from: 'tcp+https://db.zt.test:5432', to: 'tcp://127.0.0.1:1'}\n", servertest.Options{NoLocalCA: true})
	cert := serves(t, p, a, "app.zt.test")
	if k, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		t.Errorf("the key is a %T", cert.PublicKey)
	}
	serves(t, p, a, "db.zt.test") // a tunnel's host is one, too
	// Names of strangers cause no order, nor does a challenge that nobody asked for.
	issued := a.Issued()
	for _, name := range []string{"stranger.zt.test", "x.wild.zt.test", "app.localhost", ""} {
		if c, err := leaf(p, name, nil); err != nil || strings.Contains(c.Issuer.CommonName, "Pebble") {
			t.Errorf("%q: %v, %v", name, c, err)
		}
	}
	if _, err := tls.Dial("tcp", p.Main, &tls.Config{ServerName: "app.zt.test", NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true}); err == nil {
		t.Error("a challenge is answered that is not open")
	}
	if n := a.Issued(); n != issued || n != 2 {
		t.Errorf("%d certificates were issued", n)
	}
	if n := a.Accounts(); n != 1 {
		t.Errorf("%d accounts", n)
	}
	for name, want := range map[string]string{"app.zt.test": acme.StateValid, "app.localhost": acme.StateSkipped, "127.0.0.1": acme.StateSkipped, "*.wild.zt.test": acme.StateSkipped} {
		if s := state(p, name); s.State != want {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if n := strings.Count(p.Log.String(), "no certificate is asked for"); n != 3 {
		t.Errorf("%d lines about skipped hosts\n%s", n, said(p))
	}
	if left, _ := filepath.Glob(filepath.Join(p.Dir, "autocert", "acme", "*", "challenge_tokens", "*", "*")); len(left) > 0 {
		t.Errorf("challenges were left behind: %v", left)
	}
	// A start finds what is there: served from the first connection on.
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	a.Stop()
	roots := x509.NewCertPool()
	_ = roots
	p = servertest.Start(t, settings(a, "autocert_email: ops@example.net", "app.zt.test"), servertest.Options{NoLocalCA: true, Dir: p.Dir})
	if again, err := leaf(p, "app.zt.test", nil); err != nil || again.SerialNumber.Cmp(cert.SerialNumber) != 0 {
		t.Errorf("after a restart without the CA: %v, %v", again, err)
	}
}

func TestCertificateByHTTP(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{})
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	// The TLS port that the CA would ask is not ours.
	text := strings.Replace(settings(a, "autocert_challenges: [http-01]\nhttp_redirect_addr: 127.0.0.1:"+a.HTTPPort, "app.zt.test"), a.TLSPort, port, 1)
	p := servertest.Start(t, text)
	serves(t, p, a, "app.zt.test")
	// What is no open token is a redirect.
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, path := range []string{"/", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/abcdefghijklmnopqrstuvwxyz"} {
		req, _ := http.NewRequest("GET", "http://127.0.0.1:"+a.HTTPPort+path, nil)
		req.Host = "app.zt.test"
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 301 || res.Header.Get("Location") != "https://app.zt.test"+path {
			t.Errorf("%s: %s %s", path, res.Status, res.Header.Get("Location"))
		}
	}
}

// A certificate is renewed while a connection stays open.
func TestRenewal(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{Life: 60 * time.Second})
	timing := hurry
	timing.RenewRatio = 0.95 // three seconds after it was issued
	p := servertest.Start(t, settings(a, "", "app.zt.test"), servertest.Options{Autocert: timing})
	first := serves(t, p, a, "app.zt.test")
	c, err := tls.Dial("tcp", p.Main, &tls.Config{ServerName: "app.zt.test", RootCAs: a.Roots(), NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	ask := func() {
		t.Helper()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: app.zt.test\r\n\r\n")
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		if res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
	}
	ask()
	eventually(t, "another certificate", p, func() error {
		ask()
		now, err := leaf(p, "app.zt.test", a.Roots())
		if err == nil && now.SerialNumber.Cmp(first.SerialNumber) == 0 {
			err = fmt.Errorf("it is the first one still")
		}
		return err
	})
	ask()
	eventually(t, "a line in the log", p, func() error {
		if !strings.Contains(p.Log.String(), "autocert: certificate renewed") {
			return fmt.Errorf("there is none")
		}
		return nil
	})
	if n := a.Accounts(); n != 1 {
		t.Errorf("%d accounts", n)
	}
}

// Without the CA the program starts and serves; a certificate that is there
// stays; renewal goes on trying, and the log says each change once.
func TestOutage(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{Life: 60 * time.Second})
	a.Stop()
	timing := hurry
	timing.RenewRatio = 0.95
	p := servertest.Start(t, settings(a, "", "app.zt.test"), servertest.Options{Autocert: timing, NoLocalCA: true})
	if c, err := leaf(p, "app.zt.test", nil); err != nil || c.Subject.CommonName != "Postern without a certificate" {
		t.Errorf("%v, %v", c, err)
	}
	eventually(t, "several attempts", p, func() error {
		s := state(p, "app.zt.test")
		if s.State != acme.StateFailing || !strings.Contains(s.Error, "connection refused") || !strings.Contains(p.Status().Checks["autocert"], "app.zt.test") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	a.Restart()
	first := serves(t, p, a, "app.zt.test")
	if n := strings.Count(p.Log.String(), "no certificate could be obtained"); n != 1 {
		t.Errorf("%d lines about one outage\n%s", n, said(p))
	}
	a.Stop()
	eventually(t, "a failed renewal", p, func() error {
		if s := state(p, "app.zt.test"); s.State != acme.StateFailing {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if c, err := leaf(p, "app.zt.test", nil); err != nil || c.SerialNumber.Cmp(first.SerialNumber) != 0 {
		t.Errorf("the certificate did not stay: %v", err)
	}
	a.Restart() // it has forgotten the account
	eventually(t, "a renewal", p, func() error {
		c, err := leaf(p, "app.zt.test", a.Roots())
		if err == nil && c.SerialNumber.Cmp(first.SerialNumber) == 0 {
			err = fmt.Errorf("it is the first one still")
		}
		return err
	})
	if n := strings.Count(p.Log.String(), "it goes on serving"); n != 1 {
		t.Errorf("%d lines about the second outage\n%s", n, said(p))
	}
}

// Reloads leave unchanged hosts alone; another CA issues anew while the old
// certificate serves; a host that leaves is let go.
func TestChanges(t *testing.T) {
	t.Parallel()
	a, b := servertest.StartACME(t, servertest.ACMEOptions{}), servertest.StartACME(t, servertest.ACMEOptions{})
	p := servertest.Start(t, settings(a, "", "one.zt.test", "two.zt.test"))
	one := serves(t, p, a, "one.zt.test")
	serves(t, p, a, "two.zt.test")
	for i := range 3 {
		p.Change(settings(a, fmt.Sprintf("timeout_idle: %dm", i+1), "one.zt.test", "three.zt.test"))
	}
	serves(t, p, a, "three.zt.test")
	if c := serves(t, p, a, "one.zt.test"); c.SerialNumber.Cmp(one.SerialNumber) != 0 || a.Issued() != 3 {
		t.Errorf("%d certificates were issued", a.Issued())
	}
	if c, err := leaf(p, "two.zt.test", a.Roots()); err == nil {
		t.Errorf("a host that left is served %v", c.DNSNames)
	}
	if n := a.Accounts(); n != 1 {
		t.Errorf("%d accounts", n)
	}
	// The port stays: the other CA must ask there.
	relay(t, b.TLSPort, p.Main)
	both, err := os.ReadFile(b.CA)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.Dir, "b.pem"), both, 0o600); err != nil {
		t.Fatal(err)
	}
	p.Change(strings.Replace(settings(a, "autocert_ca: "+b.Directory, "one.zt.test"), a.CA, "@DIR@/b.pem", 1))
	serves(t, p, b, "one.zt.test")
	if b.Issued() != 1 || a.Issued() != 3 {
		t.Errorf("%d and %d certificates were issued", a.Issued(), b.Issued())
	}
	p.Change(strings.Replace(settings(a, "", "one.zt.test"), "autocert: true", "autocert: false", 1))
	if len(p.Status().Certificates) != 0 {
		t.Error("autocert is off, and hosts are left")
	}
}

// What the server says about coming again is obeyed.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{})
	var refusals, orders atomic.Int64
	refusals.Store(1)
	front := limited(t, a, &refusals, &orders)
	began := time.Now()
	p := servertest.Start(t, settings(a, "autocert_ca: "+front, "app.zt.test"), servertest.Options{Autocert: hurry})
	serves(t, p, a, "app.zt.test")
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("asked again after %s", took)
	}
	if n := orders.Load(); n < 2 {
		t.Errorf("%d orders", n)
	}
	if !strings.Contains(p.Log.String(), "limits how often it is asked") {
		t.Errorf("the log does not say so\n%s", said(p))
	}
}

// limited is an ACME server that refuses some orders for two seconds.
func limited(t *testing.T, a *servertest.ACME, refusals, orders *atomic.Int64) string {
	t.Helper()
	to, err := url.Parse(a.Directory)
	if err != nil {
		t.Fatal(err)
	}
	to.Path = ""
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(a.CA)
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Addr: "127.0.0.1:" + port, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "order-plz") {
			orders.Add(1)
			if refusals.Add(-1) >= 0 {
				w.Header().Set("Retry-After", "2")
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(429)
				fmt.Fprint(w, `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many certificates","status":429}`)
				return
			}
		}
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = s.ListenAndServeTLS(a.CA, filepath.Join(filepath.Dir(a.CA), "key.pem")) }()
	t.Cleanup(func() { s.Close() })
	return "https://127.0.0.1:" + port + "/dir"
}
