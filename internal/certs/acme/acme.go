// Package acme gets server certificates by ACME (RFC 8555), keeps them in a
// storage that replicas may share, and renews them.
//
//	plan, err := acme.Prepare(acme.Wanted{Config: cfg.Certs, Hosts: hosts})   // checks, touches nothing
//	m := acme.New(acme.Options{Records: store, Log: log})
//	m.Apply(plan)                       // with every generation; unchanged hosts go on undisturbed
//	cert, err := m.Certificate(hello)   // nil, nil: not one of ours; answers TLS-ALPN-01 (RFC 8737), too
//	handler := m.ChallengeHTTP(next)    // HTTP-01 on the plain listener
//
// Package certmagic keeps keys, certificates, OCSP staples and locks, and knows
// when one is due. Everything around it is ours: orders go through an issuer
// that never opens a port of its own, and one schedule paces first attempts,
// renewals and repeats, so that hosts can be added and taken away while it
// runs, and so that what the server says about waiting is obeyed.
//
// Nothing here happens on demand: a name that a stranger puts into a handshake
// is looked up among the hosts of the configuration, and that is all.
package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"

	"postern/internal/certs"
	"postern/internal/record"
)

// Timing are the moments of the schedule. The zero value is the one of the
// program; tests are in more of a hurry.
type Timing struct {
	// Check is the longest time between two looks at a certificate; 0 is ten
	// minutes (configuration.md §2.3).
	Check time.Duration
	// Retry is the wait after a first failure; it doubles up to an hour (ten
	// minutes while the server cannot be reached). 0 is one minute.
	Retry time.Duration
	// RenewRatio is the part of a certificate's life that is left when it is
	// renewed, unless the server asks for another moment (RFC 9773). 0 is a
	// third.
	RenewRatio float64
}

func (t Timing) withDefaults() Timing {
	if t.Check <= 0 {
		t.Check = 10 * time.Minute
	}
	if t.Retry <= 0 {
		t.Retry = time.Minute
	}
	if t.RenewRatio <= 0 {
		t.RenewRatio = 1.0 / 3
	}
	return t
}

// Options are what a Manager lives on.
type Options struct {
	// Records is the store of autocert_dir records://.
	Records record.Store
	// Log gets one line for each change; nil is silence.
	Log    *slog.Logger
	Timing Timing
	// Changed is called shortly after the state of any host changed; it may be
	// nil.
	Changed func()
}

// Manager keeps the certificates of a process. It serves all generations.
type Manager struct {
	o     Options
	log   *slog.Logger
	ctx   context.Context
	end   context.CancelFunc
	wg    sync.WaitGroup
	cache *certmagic.Cache
	wake  chan struct{}
	toCA  chan struct{} // slots for work that talks to the ACME server
	load  chan struct{} // slots for reading the storage

	challenges *challenges
	pace       *certmagic.RingBufferRateLimiter

	telling atomic.Bool

	mu       sync.RWMutex
	setup    *setup
	hosts    map[string]*host
	skipped  []HostStatus
	told     map[string]bool // skipped hosts that the log has named
	renewals uint64
}

// New makes a Manager without hosts. Close ends it.
func New(o Options) *Manager {
	o.Timing = o.Timing.withDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{
		o: o, log: o.Log, wake: make(chan struct{}, 1), toCA: make(chan struct{}, 4), load: make(chan struct{}, 16),
		hosts: map[string]*host{}, told: map[string]bool{}, challenges: newChallenges(),
		pace: certmagic.NewRateLimiter(paceOrders, paceWindow),
	}
	m.ctx, m.end = context.WithCancel(context.Background())
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		// Its own renewal is off (see setup.staples); what remains is OCSP.
		GetConfigForCert:   m.configFor,
		RenewCheckInterval: o.Timing.Check / 10,
		Logger:             quiet(o.Log),
	})
	m.wg.Add(1)
	go m.schedule()
	return m
}

var errNoSetup = errors.New("autocert is off")

func (m *Manager) configFor(certmagic.Certificate) (*certmagic.Config, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.setup == nil {
		return nil, errNoSetup
	}
	return m.setup.staples, nil
}

// Close ends all work and gives up locks.
func (m *Manager) Close() {
	m.end()
	m.wg.Wait()
	m.cache.Stop()
	m.pace.Stop()
}

// Apply makes a plan the one in force. A host that is in both the old and the
// new one goes on as it was, unless the settings differ: then it is looked at
// anew, while its present certificate goes on serving.
func (m *Manager) Apply(p *Plan) {
	m.mu.Lock()
	anew := false
	switch {
	case p == nil || !p.on:
		m.setup = nil
	case m.setup == nil || m.setup.key != p.key:
		m.setup, anew = m.newSetup(p), true
	}
	want := map[string]bool{}
	var gone []certmagic.SubjectIssuer
	if m.setup != nil {
		for _, name := range p.hosts {
			want[name] = true
			h := m.hosts[name]
			if h == nil {
				h = m.newHost(name)
				m.hosts[name] = h
			} else if anew {
				h.restart()
			}
		}
	}
	for name, h := range m.hosts {
		if !want[name] {
			h.cancel()
			delete(m.hosts, name)
			gone = append(gone, certmagic.SubjectIssuer{Subject: name})
		}
	}
	m.skipped = nil
	if m.setup != nil {
		m.skipped = p.skipped
		for _, s := range p.skipped {
			if s.State == StateSkipped && !m.told[s.Name] {
				m.told[s.Name] = true
				m.log.Warn("autocert: no certificate is asked for", "host", s.Name, "reason", s.Error)
			}
		}
	}
	m.mu.Unlock()
	if len(gone) > 0 {
		m.cache.RemoveManaged(gone)
	}
	m.poke()
	m.changed()
}

// changed tells of changes, many at once: a start with thousands of hosts has
// thousands.
func (m *Manager) changed() {
	if m.o.Changed == nil || !m.telling.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(100*time.Millisecond, func() {
		m.telling.Store(false)
		if m.ctx.Err() == nil {
			m.o.Changed()
		}
	})
}

// knows tells whether a name is a host of ours, itself or by a wildcard.
func (m *Manager) knows(name string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.hosts[name] != nil {
		return true
	}
	_, parent, ok := strings.Cut(name, ".")
	return ok && m.hosts["*."+parent] != nil
}

// Certificate gives the certificate for a handshake. Nil, nil means that there
// is none yet, or that the name is nothing to us. It waits for nothing, but
// where a validating server asks for the challenge of another replica.
func (m *Manager) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == certs.ALPNChallenge {
		return m.challengeCertificate(hello)
	}
	name := canonicalName(hello.ServerName)
	if name == "" || !m.knows(name) {
		return nil, nil
	}
	var best certmagic.Certificate
	for _, c := range m.cache.AllMatchingCertificates(name) {
		// While one replaces another both are there for a moment.
		if c.Leaf != nil && (best.Leaf == nil || c.Leaf.NotAfter.After(best.Leaf.NotAfter)) {
			best = c
		}
	}
	if best.Leaf == nil {
		return nil, nil
	}
	return &best.Certificate, nil
}

func canonicalName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
