package certs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// responder is an OCSP responder under a test's control.
type responder struct {
	*httptest.Server
	ca *issuer

	mu     sync.Mutex
	answer func(*ocsp.Request) ([]byte, int)
	asked  int
}

func newResponder(t *testing.T, ca *issuer) *responder {
	r := &responder{ca: ca}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		q, err := ocsp.ParseRequest(b)
		if err != nil || req.Header.Get("Content-Type") != "application/ocsp-request" {
			t.Errorf("request: %v", err)
			return
		}
		r.mu.Lock()
		r.asked++
		answer := r.answer
		r.mu.Unlock()
		der, status := answer(q)
		w.Header().Set("Content-Type", "application/ocsp-response")
		w.WriteHeader(status)
		w.Write(der)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *responder) count() int { r.mu.Lock(); defer r.mu.Unlock(); return r.asked }

func (r *responder) set(answer func(*ocsp.Request) ([]byte, int)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

// says answers with a template, signed by the CA or by signer.
func (r *responder) says(t *testing.T, status int, from, until time.Time, signer *tls.Certificate) func(*ocsp.Request) ([]byte, int) {
	return func(q *ocsp.Request) ([]byte, int) {
		template := ocsp.Response{Status: status, SerialNumber: q.SerialNumber, ThisUpdate: from, NextUpdate: until, RevokedAt: from, IssuerHash: crypto.SHA1}
		key, cert := r.ca.key, r.ca.cert
		if signer != nil {
			key, cert = signer.PrivateKey.(crypto.Signer), signer.Leaf
			template.Certificate = cert
		}
		der, err := ocsp.CreateResponse(r.ca.cert, cert, template, key)
		if err != nil {
			t.Error(err)
		}
		return der, http.StatusOK
	}
}

// stapleable makes a pair whose certificate names a responder.
func stapleable(t *testing.T, ca *issuer, url string, must bool, names ...string) KeyPair {
	t.Helper()
	_, p := ca.issue(t, nil, func(c *x509.Certificate) {
		c.OCSPServer = []string{url}
		if must {
			value, _ := asn1.Marshal([]int{statusRequest})
			c.ExtraExtensions = []pkix.Extension{{Id: mustStaple, Value: value}}
		}
	}, names...)
	p.CertPEM = append(p.CertPEM, ca.PEM...)
	return p
}

// stapling runs a Stapler for a set.
func stapling(t *testing.T, set *Set, o StaplerOptions) *Stapler {
	s := NewStapler(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	s.Follow(set)
	return s
}

// until polls for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func served(t *testing.T, s *Set, sni string) []byte {
	t.Helper()
	got, _, err := shake(s.TLSConfig(nil), anyServer(sni))
	if err != nil {
		t.Fatalf("%s: %v", sni, err)
	}
	return got.OCSPResponse
}

type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *lines) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

type testClock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *testClock) now() time.Time          { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *testClock) forward(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.t = c.t.Add(d) }

// TestStapling is the life of a staple: got, kept over a reload and a restart,
// renewed at half of its life, served on through an outage until its end.
func TestStapling(t *testing.T) {
	ca := newIssuer(t, "ca", nil)
	r := newResponder(t, ca)
	clock := &testClock{t: time.Now().Truncate(time.Second)}
	begin := clock.now()
	r.set(r.says(t, ocsp.Good, begin.Add(-time.Minute), begin.Add(59*time.Minute), nil))
	p := stapleable(t, ca, r.URL, false, "a.test")
	_, bare := ca.issue(t, nil, nil, "bare.test")
	config := Config{Pairs: []KeyPair{p, bare}}
	one := newSet(t, Options{Config: config, Now: clock.now})
	var log lines
	dir := t.TempDir()
	o := StaplerOptions{Dir: dir, Now: clock.now, Log: slog.New(slog.NewTextHandler(&log, nil))}
	s := stapling(t, one, o)
	eventually(t, "a staple", func() bool { return len(served(t, one, "a.test")) > 0 })
	if served(t, one, "bare.test") != nil {
		t.Error("a staple from nowhere")
	}
	first := served(t, one, "a.test")
	answer, err := ocsp.ParseResponseForCert(first, one.all[0].leaf, ca.cert)
	if err != nil || answer.Status != ocsp.Good {
		t.Errorf("what is served: %v", err)
	}

	// A reload, from the same files.
	config.Pairs = []KeyPair{{Source: p.Source, CertPEM: p.CertPEM, KeyPEM: p.KeyPEM}}
	two := newSet(t, Options{Config: config, Now: clock.now})
	s.Follow(two)
	if !bytes.Equal(served(t, two, "a.test"), first) || r.count() != 1 {
		t.Errorf("after a reload: asked %d times", r.count())
	}

	eventually(t, "a kept response", func() bool { list, _ := filepath.Glob(filepath.Join(dir, "ocsp", "*.der")); return len(list) == 1 })

	// A restart, while the responder is out.
	out := func(*ocsp.Request) ([]byte, int) { return nil, http.StatusServiceUnavailable }
	r.set(out)
	pairs.mu.Lock()
	clear(pairs.held) // as in a new process
	pairs.mu.Unlock()
	config.Pairs = []KeyPair{{Source: p.Source, CertPEM: p.CertPEM, KeyPEM: p.KeyPEM}}
	three := newSet(t, Options{Config: config, Now: clock.now})
	if three.all[0] == two.all[0] {
		t.Fatal("not a new process")
	}
	s = stapling(t, three, o)
	eventually(t, "the kept staple", func() bool { return bytes.Equal(served(t, three, "a.test"), first) })
	if r.count() != 1 {
		t.Errorf("asked %d times although half of the life is left", r.count())
	}
	nudge := func() { s.Follow(three) }

	// Half of the life: renewed, in vain.
	clock.forward(30 * time.Minute)
	nudge()
	eventually(t, "a renewal", func() bool { return r.count() == 2 })
	if !bytes.Equal(served(t, three, "a.test"), first) {
		t.Error("an outage took the staple away")
	}
	eventually(t, "a word in the log", func() bool {
		return strings.Contains(log.String(), "503") && strings.Contains(log.String(), "good until")
	})
	// Its end: no staple rather than a bad one.
	clock.forward(30 * time.Minute)
	if served(t, three, "a.test") != nil {
		t.Error("served past its end")
	}
	// Back again.
	now := clock.now()
	r.set(r.says(t, ocsp.Good, now, now.Add(time.Hour), nil))
	clock.forward(2 * time.Minute) // the responder is not asked in a hurry
	nudge()
	eventually(t, "a new staple", func() bool { b := served(t, three, "a.test"); return b != nil && !bytes.Equal(b, first) })
	eventually(t, "a word in the log", func() bool { return strings.Contains(log.String(), "answers again") })
	// Revoked: clients are not told otherwise.
	clock.forward(40 * time.Minute)
	r.set(r.says(t, ocsp.Revoked, clock.now(), clock.now().Add(time.Hour), nil))
	nudge()
	eventually(t, "no staple", func() bool { return served(t, three, "a.test") == nil })
	eventually(t, "a word in the log", func() bool { return strings.Contains(log.String(), "revoked") })
}

// TestForgedStaples: only what the CA, or whom it named for that, says now
// about this certificate is handed to clients.
func TestForgedStaples(t *testing.T) {
	ca, stranger := newIssuer(t, "ca", nil), newIssuer(t, "ca", nil)
	r := newResponder(t, ca)
	now := time.Now()
	good := func(signer *tls.Certificate) func(*ocsp.Request) ([]byte, int) {
		return r.says(t, ocsp.Good, now.Add(-time.Minute), now.Add(time.Hour), signer)
	}
	usage := func(u x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{u} }
	}
	delegate, _ := ca.issue(t, nil, usage(x509.ExtKeyUsageOCSPSigning))
	website, _ := ca.issue(t, nil, usage(x509.ExtKeyUsageServerAuth), "website.test")
	expired, _ := ca.issue(t, nil, func(c *x509.Certificate) {
		usage(x509.ExtKeyUsageOCSPSigning)(c)
		c.NotAfter = now.Add(-time.Minute)
	})
	foreign, _ := stranger.issue(t, nil, usage(x509.ExtKeyUsageOCSPSigning))
	other, _ := ca.issue(t, nil, nil)
	for _, tc := range []struct {
		name   string
		answer func(*ocsp.Request) ([]byte, int)
		says   string // "" is accepted
	}{
		{"the CA", good(nil), ""},
		{"its delegate", good(delegate), ""},
		{"another certificate of the CA", good(website), "may not sign"},
		{"a delegate out of date", good(expired), "out of date"},
		{"another CA's delegate", good(foreign), "verify"},
		{"another certificate", func(q *ocsp.Request) ([]byte, int) {
			q.SerialNumber = other.Leaf.SerialNumber
			return good(nil)(q)
		}, "verify"},
		{"past", r.says(t, ocsp.Good, now.Add(-2*time.Hour), now.Add(-time.Hour), nil), "out of date"},
		{"future", r.says(t, ocsp.Good, now.Add(time.Hour), now.Add(2*time.Hour), nil), "future"},
		{"unknown", r.says(t, ocsp.Unknown, now.Add(-time.Minute), now.Add(time.Hour), nil), "does not know"},
		{"revoked", r.says(t, ocsp.Revoked, now.Add(-time.Minute), now.Add(time.Hour), nil), "revoked"},
		{"try later", func(*ocsp.Request) ([]byte, int) { return ocsp.TryLaterErrorResponse, 200 }, "verify"},
		{"garbage", func(*ocsp.Request) ([]byte, int) { return []byte("garbage"), 200 }, "verify"},
		{"endless", func(*ocsp.Request) ([]byte, int) { return make([]byte, maxOCSPResponse+1), 200 }, "bytes"},
		{"500", func(*ocsp.Request) ([]byte, int) { return nil, 500 }, "500"},
	} {
		r.set(tc.answer)
		k := stapleable(t, ca, r.URL, false, "a.test")
		p, err := k.load()
		if err != nil {
			t.Fatal(err)
		}
		err = NewStapler(StaplerOptions{}).fetch(context.Background(), p)
		if tc.says == "" && (err != nil || p.staple.Load() == nil) || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says) || p.staple.Load() != nil) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// TestMustStaple: never served without a staple; a handshake waits for the
// first one, another certificate is taken, or it fails.
func TestMustStaple(t *testing.T) {
	ca := newIssuer(t, "ca", nil)
	r := newResponder(t, ca)
	now := time.Now()
	good := r.says(t, ocsp.Good, now.Add(-time.Minute), now.Add(time.Hour), nil)
	release := make(chan struct{})
	r.set(func(q *ocsp.Request) ([]byte, int) { <-release; return good(q) })
	both := stapleable(t, ca, r.URL, true, "both.test")
	alone := stapleable(t, ca, r.URL, true, "alone.test")
	_, other := ca.issue(t, rsaKey(t, 2048), called("plain"), "both.test")
	s := newSet(t, Options{Config: Config{Pairs: []KeyPair{alone, both, other}}})
	var log lines
	stapling(t, s, StaplerOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
	eventually(t, "the responder is asked", func() bool { return r.count() > 0 })
	got, _, err := shake(s.TLSConfig(nil), anyServer("both.test"))
	if err != nil || got.PeerCertificates[0].Subject.CommonName != "plain" {
		t.Errorf("with another certificate: %v", err)
	}
	answered := make(chan error, 1)
	go func() {
		got, _, err := shake(s.TLSConfig(nil), anyServer("alone.test"))
		if err == nil && len(got.OCSPResponse) == 0 {
			err = fmt.Errorf("served without a staple")
		}
		answered <- err
	}()
	close(release)
	if err := <-answered; err != nil {
		t.Errorf("a handshake before the first staple: %v", err)
	}
	// A responder that is out from the beginning.
	r.set(func(*ocsp.Request) ([]byte, int) { return nil, 503 })
	alone = stapleable(t, ca, r.URL, true, "alone.test")
	s = newSet(t, Options{Config: Config{Pairs: []KeyPair{alone, other}}})
	stapling(t, s, StaplerOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
	eventually(t, "a word in the log", func() bool { return strings.Contains(log.String(), "must-staple") })
	if got, _, err := shake(s.TLSConfig(nil), anyServer("alone.test")); err == nil {
		t.Errorf("served without a staple: %s", got.PeerCertificates[0].Subject)
	}
	if got, _, err := shake(s.TLSConfig(nil), anyServer("stranger.test")); err != nil || got.PeerCertificates[0].Subject.CommonName != "plain" {
		t.Errorf("a stranger's name: %v", err)
	}
	// What can never have one is refused at once.
	for says, change := range map[string]func(*KeyPair){
		"whole chain":       func(k *KeyPair) { k.CertPEM = k.CertPEM[:len(k.CertPEM)-len(ca.PEM)] },
		"no OCSP responder": func(k *KeyPair) { *k = stapleable(t, ca, "ldap://x", true, "a.test") },
	} {
		k := stapleable(t, ca, r.URL, true, "a.test")
		change(&k)
		if err := k.Check(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}

// TestResponderOutage: one dead responder costs a try, not one for each of its
// certificates.
func TestResponderOutage(t *testing.T) {
	ca := newIssuer(t, "ca", nil)
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	alive := newResponder(t, ca)
	now := time.Now()
	alive.set(alive.says(t, ocsp.Good, now.Add(-time.Minute), now.Add(time.Hour), nil))
	var list []KeyPair
	for i := range 40 {
		list = append(list, stapleable(t, ca, dead.URL, false, fmt.Sprintf("a%d.test", i)))
	}
	list = append(list, stapleable(t, ca, alive.URL, false, "z.test"))
	s := newSet(t, Options{Config: Config{Pairs: list}})
	var log lines
	stapling(t, s, StaplerOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
	eventually(t, "the other responder's staple", func() bool { return len(served(t, s, "z.test")) > 0 })
	eventually(t, "all were tried", func() bool {
		for _, p := range s.all {
			select {
			case <-p.tried:
			default:
				return false
			}
		}
		return true
	})
	if n := strings.Count(log.String(), "does not answer"); n == 0 || n > ocspRequests {
		t.Errorf("%d complaints about one responder", n)
	}
}

// TestOpenSSLResponder: responses as OpenSSL makes them, with a delegated
// signer, good and then revoked.
func TestOpenSSLResponder(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is not installed: make deps")
	}
	ca := newIssuer(t, "ca", nil)
	signer, signerPair := ca.issue(t, nil, func(c *x509.Certificate) {
		c.Subject.CommonName, c.ExtKeyUsage = "responder", []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	})
	_ = signer
	dir := t.TempDir()
	put := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caFile, certFile, keyFile := put("ca.pem", ca.PEM), put("ocsp.pem", signerPair.CertPEM), put("ocsp.key", signerPair.KeyPEM)
	r := newResponder(t, ca)
	k := stapleable(t, ca, r.URL, true, "a.test")
	p, err := k.load()
	if err != nil {
		t.Fatal(err)
	}
	index := func(state string) string {
		revoked := ""
		if state == "R" {
			revoked = "260101000000Z"
		}
		return put("index.txt", fmt.Appendf(nil, "%s\t%s\t%s\t%X\tunknown\t/CN=leaf\n", state, p.leaf.NotAfter.UTC().Format("060102150405Z"), revoked, p.leaf.SerialNumber))
	}
	r.set(func(q *ocsp.Request) ([]byte, int) {
		raw, _ := q.Marshal()
		in, out := put("request.der", raw), filepath.Join(dir, "response.der")
		text, err := exec.Command(openssl, "ocsp", "-index", filepath.Join(dir, "index.txt"), "-rsigner", certFile, "-rkey", keyFile, "-CA", caFile,
			"-reqin", in, "-respout", out, "-nmin", "60").CombinedOutput()
		if err != nil {
			t.Errorf("openssl: %v\n%s", err, text)
		}
		der, _ := os.ReadFile(out)
		return der, 200
	})
	index("V")
	s := newSet(t, Options{Config: Config{Pairs: []KeyPair{k}}})
	stapling(t, s, StaplerOptions{})
	got, _, err := shake(s.TLSConfig(nil), anyServer("a.test"))
	if err != nil || len(got.OCSPResponse) == 0 {
		t.Fatalf("no staple: %v", err)
	}
	// What a strict client makes of it.
	staple := put("staple.der", got.OCSPResponse)
	leaf := put("leaf.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.leaf.Raw}))
	text, err := exec.Command(openssl, "ocsp", "-respin", staple, "-issuer", caFile, "-cert", leaf, "-CAfile", caFile, "-no_nonce").CombinedOutput()
	if err != nil || !strings.Contains(string(text), "leaf.pem: good") || !strings.Contains(string(text), "Response verify OK") {
		t.Errorf("openssl does not take the staple: %v\n%s", err, text)
	}
	index("R")
	if err := NewStapler(StaplerOptions{}).fetch(context.Background(), p); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("revoked: %v", err)
	}
	if _, _, err := shake(s.TLSConfig(nil), anyServer("a.test")); err == nil {
		t.Error("a revoked must-staple certificate is served")
	}
}
