// Package upstream sends allowed requests to the places a route names, and
// their answers back.
//
// A Pool holds one Target per route slot and belongs to a generation of the
// configuration. Targets whose settings did not change keep their connections
// from one Pool to the next:
//
//	pool, failed := upstream.Build(specs, previous)
//	...
//	result, err := upstream.RoundTrip(ctx, pool.Target(slot), edits, view, exchange, options)
//
// This is the reference path: net/http's Transport does the talking, behind a
// guard that reads every HTTP/1.1 response strictly before Transport does. A
// connection is used again only if its last exchange ended exactly.
package upstream

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"
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

// SpecOf reads a Spec out of a route's settings. webSockets and extraRoots
// come from elsewhere in the configuration.
func SpecOf(c RouteConfig, webSockets bool, extraRoots []byte) Spec {
	name := c.TLSUpstreamServerName
	if name == "" {
		name = c.TLSServerName
	}
	return Spec{
		Endpoints:  c.To,
		WebSockets: webSockets,
		TLS: TLS{
			SkipVerify:         c.TLSSkipVerify,
			ServerName:         name,
			CustomCA:           c.TLSCustomCA,
			ExtraRoots:         extraRoots,
			ClientCert:         c.TLSClientCert,
			ClientKey:          c.TLSClientKey,
			AllowRenegotiation: c.TLSUpstreamAllowRenegotiation,
		},
	}
}

// hash identifies everything that makes two specs different.
func (s *Spec) hash() string {
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

// Pool holds the targets of one generation.
type Pool struct {
	targets []*Target
	closed  atomic.Bool
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
func Build(specs []Spec, previous *Pool) (*Pool, []SpecError) {
	known := map[string]*Target{}
	if previous != nil {
		for _, t := range previous.targets {
			if t != nil && t.id != "" {
				known[t.id] = t
			}
		}
	}
	p := &Pool{targets: make([]*Target, len(specs))}
	var failed []SpecError
	for i := range specs {
		if len(specs[i].Endpoints) == 0 {
			continue
		}
		id := specs[i].hash()
		t := known[id]
		if t == nil || !t.retain() {
			var err error
			if t, err = newTarget(&specs[i], id); err != nil {
				failed = append(failed, SpecError{i, err})
				continue
			}
			known[id] = t
		}
		p.targets[i] = t
	}
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
	endpoints []*endpoint
	byAddr    map[string]*endpoint
	guard     *dialGuard

	// plain carries ordinary exchanges; upgrades opens a connection per
	// exchange and speaks HTTP/1.1 only.
	plain, upgrades *http.Transport

	refs atomic.Int64

	mu     sync.Mutex // of the weights
	single bool
}

// endpoint is one place to send to.
type endpoint struct {
	name    string // as the operator wrote it
	scheme  string // http or https, for Transport
	addr    string // host:port, the key of Transport's pools
	host    string // Host header unless the route sets one
	tlsName string
	network string // tcp or unix
	dial    string // host:port or socket path

	weight, current int // smooth weighted round robin
}

// Endpoints gives the target's endpoints as configured, for status pages.
func (t *Target) Endpoints() []string {
	names := make([]string, len(t.endpoints))
	for i, e := range t.endpoints {
		names[i] = e.name
	}
	return names
}

func newTarget(s *Spec, id string) (*Target, error) {
	t := &Target{id: id, byAddr: map[string]*endpoint{}}
	t.refs.Store(1)
	if s.Guarded {
		t.guard = &dialGuard{allow: s.DialAllow}
	}
	var clear, h2c, secure int
	for i, e := range s.Endpoints {
		ep, err := newEndpoint(e, i)
		if err != nil {
			return nil, err
		}
		if ep.network == "unix" {
			if len(s.Endpoints) > 1 {
				return nil, fmt.Errorf("to: %s is a socket and must be the only endpoint", ep.name)
			}
			if s.Guarded {
				return nil, fmt.Errorf("to: %s is a socket, which this kind of route may not use", ep.name)
			}
		}
		if (e.Weight == 0) != (s.Endpoints[0].Weight == 0) {
			return nil, errors.New("to: give all endpoints a weight or none")
		}
		switch {
		case ep.scheme == "https":
			secure++
		case e.URL.Scheme == "h2c":
			h2c++
		default:
			clear++
		}
		t.endpoints = append(t.endpoints, ep)
		t.byAddr[ep.addr] = ep
	}
	t.single = len(t.endpoints) == 1

	configs, err := s.TLS.clientConfig()
	if err != nil {
		return nil, err
	}
	// configuration.md §3.2: all TLS: ALPN chooses; all h2c: HTTP/2; any
	// mixture, or WebSockets: HTTP/1.1.
	var protocols http.Protocols
	switch n := len(t.endpoints); {
	case s.WebSockets:
		protocols.SetHTTP1(true)
	case secure == n:
		protocols.SetHTTP1(true)
		protocols.SetHTTP2(true)
	case h2c == n:
		protocols.SetUnencryptedHTTP2(true)
	default:
		protocols.SetHTTP1(true)
	}
	t.plain = t.newTransport(protocols, configs)
	var h1 http.Protocols
	h1.SetHTTP1(true)
	t.upgrades = t.newTransport(h1, configs)
	t.upgrades.DisableKeepAlives = true
	return t, nil
}

// newEndpoint reads one URL of `to`.
func newEndpoint(e Endpoint, index int) (*endpoint, error) {
	if e.URL == nil {
		return nil, errors.New("to: empty endpoint; write a URL such as https://app:8443")
	}
	u := e.URL
	ep := &endpoint{name: u.Redacted(), weight: max(int(e.Weight), 1), network: "tcp"}
	port := "80"
	switch u.Scheme {
	case "http", "h2c":
		ep.scheme = "http"
	case "https":
		ep.scheme, port = "https", "443"
	case "unix", "http+unix", "https+unix":
		ep.network = "unix"
		ep.scheme = "http"
		if u.Scheme == "https+unix" {
			ep.scheme = "https"
		}
		if ep.dial = socketPath(u); ep.dial == "" {
			return nil, fmt.Errorf("to: %s names no socket; write %s:///path/to/socket", ep.name, u.Scheme)
		}
		// A name that resolves nowhere: only our own dialler knows it.
		ep.host, ep.tlsName = "localhost", "localhost"
		ep.addr = fmt.Sprintf("socket-%d.invalid:%s", index, port)
		return ep, nil
	case "tcp", "udp", "ssh":
		return nil, fmt.Errorf("to: %s: %s upstreams are not served yet; remove the route or use an http, https, h2c or unix upstream", ep.name, u.Scheme)
	default:
		return nil, fmt.Errorf("to: %s has an unknown scheme; use http, https, h2c, unix or https+unix", ep.name)
	}
	host := u.Hostname()
	if host == "" {
		return nil, fmt.Errorf("to: %s names no host", ep.name)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	ep.host, ep.tlsName = u.Host, host
	ep.addr = net.JoinHostPort(strings.ToLower(host), port)
	ep.dial = ep.addr
	if strings.EqualFold(host, "localhost") {
		ep.dial = net.JoinHostPort("127.0.0.1", port) // configuration.md §2.15
	}
	return ep, nil
}

// socketPath reads unix:///run/app.sock, and unix:/run/app.sock.
func socketPath(u *url.URL) string {
	p := u.Path
	if p == "" {
		p = u.Opaque
	}
	if p == "" || u.Host != "" && u.Host != "." {
		return ""
	}
	return path.Clean(p)
}

func (t *Target) newTransport(p http.Protocols, tlsFor *tlsSettings) *http.Transport {
	alpn := []string{"http/1.1"}
	if p.HTTP2() {
		alpn = []string{"h2", "http/1.1"}
	}
	return &http.Transport{
		Protocols: &p,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			c, err := t.dial(ctx, addr)
			if err != nil || p.UnencryptedHTTP2() {
				return c, err
			}
			return newResponseGuard(c), nil
		},
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return t.dialTLS(ctx, addr, tlsFor, alpn)
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    1024,
		IdleConnTimeout:        60 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeadBytes + 4096, // the guard counts first
		HTTP2: &http.HTTP2Config{
			// Notice a dead connection before its streams time out.
			SendPingTimeout: 30 * time.Second,
			PingTimeout:     15 * time.Second,
		},
	}
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
	if t.refs.Add(-1) == 0 {
		t.plain.CloseIdleConnections()
		t.upgrades.CloseIdleConnections()
	}
}

// pick chooses the next endpoint by smooth weighted round robin: each gets
// its share, spread out evenly. not is left out if there is another one.
func (t *Target) pick(not *endpoint) *endpoint {
	if t.single {
		return t.endpoints[0]
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var best *endpoint
	total := 0
	for _, e := range t.endpoints {
		if e == not {
			continue
		}
		total += e.weight
		e.current += e.weight
		if best == nil || e.current > best.current {
			best = e
		}
	}
	best.current -= total
	return best
}
