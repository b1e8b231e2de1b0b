// Package upstream sends allowed requests to the places a route names, and
// their answers back.
//
// A Pool holds one Target per route slot and belongs to a generation of the
// configuration. Targets whose settings did not change keep their connections
// from one Pool to the next:
//
//	pool, failed := upstream.Build(specs, previous, log)
//	pool.Start() // health checks
//	...
//	result, err := upstream.RoundTrip(ctx, pool.Target(slot), edits, view, exchange, options)
//
// HTTP/1.1 is spoken by package http1, strictly; HTTP/2 by net/http's Transport
// and HTTP/3 by quic-go. A connection of HTTP/1.1 is used again only if its
// last exchange ended exactly.
package upstream

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Spec is what a route says about its upstream.
type Spec struct {
	// Endpoints are the places to send to; none means no target.
	Endpoints []Endpoint
	// WebSockets makes all exchanges HTTP/1.1 (configuration.md §3.2).
	WebSockets bool
	TLS        TLS
	// Guarded refuses loopback, link-local and metadata addresses outside
	// DialAllow, checked after name resolution: for routes that come from the
	// API or a cluster (decisions.md 27).
	Guarded   bool
	DialAllow []netip.Prefix
	// ID, if not empty, identifies everything in the spec: specs with the same
	// ID are the same. Without it, what they say is compared.
	ID string
	// Cluster is what the route is called, for health checks without a host.
	Cluster string
	// HealthChecks and Outlier judge the hosts; none and nil judge nothing.
	HealthChecks []HealthCheck
	Outlier      *Outlier
	// Balancing is RoundRobin or another of its kind; "" is RoundRobin.
	Balancing string
	// PanicThreshold is the percentage of usable hosts below which all are
	// used; nil is 50, 0 never.
	PanicThreshold *int32
	// Breakers limit what is under way; see MergeBreakers.
	Breakers Breakers
	DNS      DNS
	Bind     Bind
}

// Bind is where connections to upstreams come from.
type Bind struct {
	// Source is the local address; the system chooses if it is not valid.
	Source netip.Addr
	// Free allows a Source that this machine does not have (IP_FREEBIND).
	Free bool
}

// TLS is how to speak TLS with an upstream. All fields are optional.
type TLS struct {
	// SkipVerify accepts any certificate.
	SkipVerify bool
	// ServerName is the SNI and the expected name; a "*" in it stands for any
	// characters but dots, in which case the endpoint's host is the SNI.
	ServerName string
	// CustomCA (PEM) replaces system and extra roots.
	CustomCA []byte
	// ExtraRoots (PEM) are added to the system's (certificate_authority).
	ExtraRoots []byte
	// ClientCert and ClientKey (PEM) are shown to the upstream.
	ClientCert, ClientKey []byte
	// AllowRenegotiation lets a TLS 1.2 upstream renegotiate.
	AllowRenegotiation bool
}

// RouteContext is what else a Spec depends on, besides the settings that this
// package declares.
type RouteContext struct {
	// WebSockets: the route lets WebSockets through.
	WebSockets bool
	// ExtraRoots (PEM) are trusted besides the system's.
	ExtraRoots []byte
	// V4Only: names are resolved to IPv4 only, whatever is configured.
	V4Only bool
	// Cluster is what the route is called.
	Cluster string
}

// SpecOf reads a Spec out of the global settings and those of a route.
func SpecOf(global *Config, c *RouteConfig, more RouteContext) Spec {
	name := c.TLSUpstreamServerName
	if name == "" {
		name = c.TLSServerName
	}
	source, _ := netip.ParseAddr(global.BindSourceAddress) // checked by package config
	s := Spec{
		Endpoints:  c.To,
		WebSockets: more.WebSockets,
		TLS: TLS{
			SkipVerify:         c.TLSSkipVerify,
			ServerName:         name,
			CustomCA:           c.TLSCustomCA,
			ExtraRoots:         more.ExtraRoots,
			ClientCert:         c.TLSClientCert,
			ClientKey:          c.TLSClientKey,
			AllowRenegotiation: c.TLSUpstreamAllowRenegotiation,
		},
		HealthChecks:   c.HealthChecks,
		Outlier:        c.OutlierDetection,
		Balancing:      c.LoadBalancingPolicy,
		PanicThreshold: c.HealthyPanicThreshold,
		Breakers:       MergeBreakers(global.CircuitBreakerSettings, c.CircuitBreakers),
		DNS:            dnsOf(global),
		Bind:           Bind{Source: source, Free: global.BindFreebind != nil && *global.BindFreebind},
	}
	if more.V4Only {
		s.DNS.Family = "V4_ONLY"
	}
	if len(s.HealthChecks) > 0 {
		s.Cluster = more.Cluster // only then: without, equal upstreams are shared
	}
	if s.Outlier == nil {
		s.Outlier = &Outlier{} // unset is as {}: the defaults (configuration.md §3.8)
	}
	return s
}

func dnsOf(c *Config) DNS {
	duration := func(d *time.Duration) time.Duration {
		if d == nil {
			return 0
		}
		return *d
	}
	d := DNS{
		Family:         c.DNSLookupFamily,
		Refresh:        duration(c.DNSRefreshRate),
		FailureRefresh: duration(c.DNSFailureRefreshRate),
		QueryTimeout:   duration(c.DNSQueryTimeout).Truncate(time.Second),
		UDPMaxQueries:  defaultUDPMaxQueries,
		TCP:            c.DNSUseTCP != nil && *c.DNSUseTCP,
		Resolvers:      c.DNSResolvers,
	}
	if c.DNSQueryTries != nil {
		d.Tries = *c.DNSQueryTries
	}
	if c.DNSUDPMaxQueries != nil {
		d.UDPMaxQueries = *c.DNSUDPMaxQueries
	}
	return d
}

// hash identifies everything that makes two specs different.
func (s *Spec) hash() string {
	if s.ID != "" {
		return "id:" + s.ID
	}
	endpoints := make([]string, len(s.Endpoints))
	for i, e := range s.Endpoints {
		endpoints[i] = fmt.Sprintf("%s,%d", e.URL, e.Weight)
	}
	plain := *s
	plain.Endpoints = nil
	b, err := json.Marshal(struct {
		Spec
		To []string
	}{plain, endpoints})
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Identified is s with an ID made of what it says, so that a spec that stays
// is compared without being looked through again.
func (s Spec) Identified() Spec {
	if len(s.Endpoints) > 0 && s.ID == "" {
		s.ID = s.hash()
	}
	return s
}

// Pool holds the targets of one generation.
type Pool struct {
	targets  []*Target
	parts    *parts
	trusting []int
	closed   atomic.Bool
}

// SpecError says which spec could not be built.
type SpecError struct {
	Slot int
	Err  error
}

func (e SpecError) Error() string { return e.Err.Error() }
func (e SpecError) Unwrap() error { return e.Err }

// Build makes a pool of targets by slot. Specs without endpoints get no
// target. Targets of previous (which may be nil) whose spec is the same are
// shared with it. On failure every spec at fault is reported and nothing is
// left open; previous is untouched in either case.
func Build(specs []Spec, previous *Pool, log *slog.Logger) (*Pool, []SpecError) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	known := map[string]*Target{}
	if previous != nil {
		for _, t := range previous.targets {
			if t != nil && t.id != "" {
				known[t.id] = t
			}
		}
	}
	p := &Pool{targets: make([]*Target, len(specs)), parts: newParts(previous)}
	var failed []SpecError
	made := map[*Target]bool{} // that skip verification
	for i := range specs {
		if len(specs[i].Endpoints) == 0 {
			continue
		}
		id := specs[i].hash()
		t := known[id]
		if t == nil || !t.retain() {
			var err error
			if t, err = newTarget(&specs[i], id, p.parts, log); err != nil {
				failed = append(failed, SpecError{i, err})
				continue
			}
			known[id] = t
			if specs[i].TLS.SkipVerify && t.encrypted() {
				made[t] = true
			}
		}
		if made[t] {
			p.trusting = append(p.trusting, i)
		}
		p.parts.adopt(t)
		p.targets[i] = t
	}
	p.parts.before, p.parts.well = nil, nil
	if failed != nil {
		p.Close()
		return nil, failed
	}
	return p, nil
}

// Target gives the target of a slot, or nil.
func (p *Pool) Target(slot int) *Target {
	if p == nil || slot < 0 || slot >= len(p.targets) {
		return nil
	}
	return p.targets[slot]
}

// Start begins the health checks of targets that no earlier pool has started.
// A pool that is only built, to see whether it can be, touches no network.
func (p *Pool) Start() {
	if p == nil {
		return
	}
	for _, t := range p.targets {
		if t != nil {
			t.start()
		}
	}
}

// Unverified gives the slots whose upstream may show any certificate, without
// those that the previous pool had already: each is told once.
func (p *Pool) Unverified() []int { return p.trusting }

// Close lets go of the pool's targets. Those that no other pool shares close
// their idle connections; exchanges under way are not disturbed.
func (p *Pool) Close() {
	if p == nil || p.closed.Swap(true) {
		return
	}
	for _, t := range p.targets {
		if t != nil {
			t.release()
		}
	}
}

// Target is the compiled `to` of a route. It is safe for concurrent use.
type Target struct {
	id        string
	cluster   string
	log       *slog.Logger
	endpoints []*endpoint
	guard     *dialGuard
	bind      Bind
	tls       *tlsSettings
	resolver  *resolver
	kind      string          // of balancing
	panic     int             // percent
	protocols http.Protocols  // of ordinary exchanges
	checked   bool            // has health checks
	well      map[string]bool // hosts that passed others' checks before it was made
	monitors  []monitor
	breaker   breaker

	refs atomic.Int64

	hosts   atomic.Pointer[hostSet] // nil until names were first resolved
	version atomic.Uint64           // counts changes to hosts and their state
	balance atomic.Pointer[balance]

	suspect    atomic.Bool // an address of DNS does not accept connections
	refreshing atomic.Bool // a lookup is under way

	// multiplexed: exchanges share connections, as far as is known. h1Seen: a
	// host that could have, did not.
	multiplexed, h1Seen atomic.Bool

	mu      sync.Mutex // of changes to hosts and balance, and of the flags below
	started bool
	closed  bool
	stop    chan struct{} // of keepResolved, nil unless it runs
}

// Endpoints gives the target's endpoints as configured, for status pages.
func (t *Target) Endpoints() []string {
	names := make([]string, len(t.endpoints))
	for i, e := range t.endpoints {
		names[i] = e.name
	}
	return names
}

func newTarget(s *Spec, id string, shared *parts, log *slog.Logger) (*Target, error) {
	t := &Target{
		id: id, cluster: s.Cluster, log: log, bind: s.Bind, kind: s.Balancing, panic: defaultPanic,
		checked: len(s.HealthChecks) > 0, breaker: newBreaker(s.Breakers),
	}
	t.refs.Store(1)
	switch s.Balancing {
	case "", RoundRobin, LeastRequest, Random, RingHash, Maglev:
	default:
		return nil, fmt.Errorf("load_balancing_policy: unknown policy %s; use ROUND_ROBIN, LEAST_REQUEST, RANDOM, RING_HASH or MAGLEV", s.Balancing)
	}
	if s.PanicThreshold != nil {
		t.panic = int(*s.PanicThreshold)
	}
	if s.Guarded {
		t.guard = &dialGuard{allow: s.DialAllow}
	}
	if err := t.addEndpoints(s); err != nil {
		return nil, err
	}
	var err error
	if t.tls, err = shared.tlsSettings(&s.TLS); err != nil {
		return nil, err
	}
	if t.resolver, err = shared.resolver(s.DNS); err != nil {
		return nil, err
	}
	if t.checked {
		m, err := newHealthChecks(t, s.HealthChecks, log)
		if err != nil {
			return nil, fmt.Errorf("health_checks: %w", err)
		}
		if m != nil {
			t.monitors = append(t.monitors, m)
		}
	}
	if s.Outlier != nil {
		m, err := newOutlierDetector(t, s.Outlier)
		if err != nil {
			return nil, fmt.Errorf("outlier_detection: %w", err)
		}
		if m != nil {
			t.monitors = append(t.monitors, m)
		}
	}
	if t.checked {
		t.well = shared.well()
	}
	t.fixHosts()
	return t, nil
}

func (t *Target) addEndpoints(s *Spec) error {
	var h2c, secure, h3 int
	for i, e := range s.Endpoints {
		ep, err := newEndpoint(e, i)
		if err != nil {
			return err
		}
		if ep.network == "unix" {
			if len(s.Endpoints) > 1 {
				return fmt.Errorf("to: %s is a socket and must be the only endpoint", ep.name)
			}
			if s.Guarded {
				return fmt.Errorf("to: %s is a socket, which this kind of route may not use", ep.name)
			}
		}
		if (e.Weight == 0) != (s.Endpoints[0].Weight == 0) {
			return errors.New("to: give all endpoints a weight or none")
		}
		switch {
		case ep.scheme == "https":
			secure++
		case ep.scheme == "h3":
			h3++
		case ep.cleartxt:
			h2c++
		}
		t.endpoints = append(t.endpoints, ep)
	}
	// configuration.md §3.2: all TLS: ALPN chooses; all h2c: HTTP/2; any
	// mixture, or WebSockets: HTTP/1.1.
	n := len(t.endpoints)
	if h3 != 0 && h3 != n {
		return errors.New("to: h3 endpoints cannot be mixed with others")
	}
	switch {
	case s.WebSockets && h3 == 0:
		t.protocols.SetHTTP1(true)
	case secure == n:
		t.protocols.SetHTTP1(true)
		t.protocols.SetHTTP2(true)
	case h2c == n:
		t.protocols.SetUnencryptedHTTP2(true)
		t.multiplexed.Store(true)
	case h3 == n:
		t.multiplexed.Store(true)
	default:
		t.protocols.SetHTTP1(true)
	}
	return nil
}

// start begins health checks, once.
func (t *Target) start() {
	if len(t.monitors) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.started || t.closed {
		return
	}
	t.started = true
	if set := t.hosts.Load(); set != nil {
		for _, m := range t.monitors {
			m.hostsChanged(set.hosts)
		}
	}
	if t.checked && t.named() {
		t.stop = make(chan struct{})
		go t.keepResolved(t.stop)
	}
}

// encrypted reports whether any endpoint is spoken to over TLS.
func (t *Target) encrypted() bool {
	for _, e := range t.endpoints {
		if e.scheme != "http" {
			return true
		}
	}
	return false
}

// named reports whether any endpoint is resolved by DNS.
func (t *Target) named() bool {
	for _, e := range t.endpoints {
		if e.dnsName != "" {
			return true
		}
	}
	return false
}

// retain takes another reference; false if the target is closed already.
func (t *Target) retain() bool {
	for {
		n := t.refs.Load()
		if n <= 0 {
			return false
		}
		if t.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (t *Target) release() {
	if t.refs.Add(-1) != 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.stop != nil {
		close(t.stop)
	}
	for _, m := range t.monitors {
		m.close()
	}
	if set := t.hosts.Load(); set != nil {
		for _, h := range set.hosts {
			h.retire(&t.breaker)
		}
	}
}
