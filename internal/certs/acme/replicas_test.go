package acme_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"postern/internal/certs"
	"postern/internal/certs/acme"
	"postern/internal/proxy"
	"postern/internal/record"
	"postern/internal/server/servertest"
	"postern/internal/store/memory"
)

// replica is one process of several that share a record store.
type replica struct {
	*acme.Manager
	t *testing.T
}

func newReplica(t *testing.T, store record.Store, a *servertest.ACME, timing acme.Timing, more func(*certs.Config), hosts ...string) *replica {
	t.Helper()
	ca, err := os.ReadFile(a.CA)
	if err != nil {
		t.Fatal(err)
	}
	c := certs.Config{Autocert: true, AutocertCA: a.Directory, AutocertTrustedCA: ca, AutocertDir: "records://"}
	if more != nil {
		more(&c)
	}
	p, err := acme.Prepare(acme.Wanted{Config: c, Hosts: hosts, PlainListener: "127.0.0.1:" + a.HTTPPort})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{acme.New(acme.Options{Records: store, Timing: timing}), t}
	t.Cleanup(r.Close)
	r.Apply(p)
	return r
}

// listen answers the ACME server's questions, as the program's listeners do.
func (r *replica) listen(a *servertest.ACME) {
	secure, err := net.Listen("tcp", "127.0.0.1:"+a.TLSPort)
	if err != nil {
		r.t.Fatal(err)
	}
	plain, err := net.Listen("tcp", "127.0.0.1:"+a.HTTPPort)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { secure.Close(); plain.Close() })
	go func() { _ = http.Serve(plain, r.ChallengeHTTP(proxy.RedirectHandler())) }()
	go func() {
		for {
			c, err := secure.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = tls.Server(c, &tls.Config{GetCertificate: r.Certificate, NextProtos: []string{certs.ALPNChallenge}}).Handshake()
			}()
		}
	}()
}

func (r *replica) leaf(name string) *x509.Certificate {
	c, err := r.Certificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		r.t.Fatal(err)
	}
	if c == nil {
		return nil
	}
	return c.Leaf
}

func (r *replica) wait(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: %+v", what, r.Status())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Replicas share one account and one certificate for each host, and any of
// them answers the challenges of the others.
func TestReplicas(t *testing.T) {
	t.Parallel()
	for _, challenge := range []string{"tls-alpn-01", "http-01"} {
		t.Run(challenge, func(t *testing.T) {
			t.Parallel()
			a := servertest.StartACME(t, servertest.ACMEOptions{})
			store := memory.New()
			t.Cleanup(func() { store.Close() })
			only := func(c *certs.Config) { c.AutocertChallenges = []string{challenge} }
			hosts := []string{"a.zt.test", "b.zt.test", "c.zt.test"}
			// The server reaches the first one only.
			first := newReplica(t, store, a, hurry, only, hosts...)
			others := []*replica{newReplica(t, store, a, hurry, only, hosts...), newReplica(t, store, a, hurry, only, hosts...)}
			first.listen(a)
			for _, name := range hosts {
				for _, r := range append(others, first) {
					r.wait("a certificate for "+name, func() bool { return r.leaf(name) != nil })
				}
				for _, r := range others {
					if r.leaf(name).SerialNumber.Cmp(first.leaf(name).SerialNumber) != 0 {
						t.Errorf("replicas have different certificates for %s", name)
					}
				}
			}
			if a.Issued() != len(hosts) || a.Accounts() != 1 {
				t.Errorf("%d certificates, %d accounts", a.Issued(), a.Accounts())
			}
		})
	}
}

// A challenge is answered where another replica put it up: here the one that
// orders cannot be reached at all.
func TestChallengeOfAnotherReplica(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{})
	store := memory.New()
	t.Cleanup(func() { store.Close() })
	orders := newReplica(t, store, a, hurry, nil, "a.zt.test")
	// It knows the host, and its own attempts wait for the lock.
	answers := newReplica(t, store, a, acme.Timing{Check: time.Hour, Retry: time.Hour}, nil, "a.zt.test")
	answers.listen(a)
	orders.wait("a certificate", func() bool { return orders.leaf("a.zt.test") != nil })
	if a.Issued() != 1 {
		t.Errorf("%d certificates", a.Issued())
	}
}

// Renewed once, by whoever is first; the others load it.
func TestReplicasRenewOnce(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{Life: 120 * time.Second})
	store := memory.New()
	t.Cleanup(func() { store.Close() })
	timing := hurry
	timing.RenewRatio = 0.97 // after 3.6 seconds
	one := newReplica(t, store, a, timing, nil, "a.zt.test")
	one.listen(a)
	one.wait("a certificate", func() bool { return one.leaf("a.zt.test") != nil })
	two := newReplica(t, store, a, timing, nil, "a.zt.test")
	two.wait("a certificate", func() bool { return two.leaf("a.zt.test") != nil })
	first := one.leaf("a.zt.test").SerialNumber
	for _, r := range []*replica{one, two} {
		r.wait("a renewal", func() bool { return r.leaf("a.zt.test").SerialNumber.Cmp(first) != 0 })
	}
	// Every certificate after the first is one renewal for both.
	one.wait("as many certificates as renewals", func() bool {
		n := uint64(a.Issued() - 1)
		return n == one.Counts().Renewals && n == two.Counts().Renewals
	})
}

// Strangers can make a replica look into the shared storage for challenges;
// what they cause is bounded, and for names of others it is nothing.
func TestChallengeLookupsAreBounded(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{})
	store := &countingStore{Store: memory.New()}
	t.Cleanup(func() { store.Close() })
	r := newReplica(t, store, a, acme.Timing{Check: time.Hour, Retry: time.Hour}, nil, "a.zt.test")
	r.listen(a)
	r.wait("a certificate", func() bool { return r.leaf("a.zt.test") != nil })
	before := store.gets.Load()
	ask := func(name string) {
		if c, err := r.Certificate(&tls.ClientHelloInfo{ServerName: name, SupportedProtos: []string{certs.ALPNChallenge}}); err == nil {
			t.Fatal(fmt.Sprint("answered ", c))
		}
	}
	for i := range 500 {
		ask(fmt.Sprintf("x%d.zt.test", i))
	}
	if n := store.gets.Load() - before; n != 0 {
		t.Errorf("%d lookups for names of others", n)
	}
	for range 5000 {
		ask("a.zt.test")
	}
	if n := store.gets.Load() - before; n == 0 || n > 500 {
		t.Errorf("%d lookups for 5000 questions", n)
	}
}
