package upstream

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"postern/internal/upstream/http1"
)

// idleFor is how long an unused connection to an upstream is kept.
const idleFor = 60 * time.Second

// link is a pool of connections to one host.
type link interface {
	http.RoundTripper
	CloseIdleConnections()
}

// links are the connections to one host. They are made in two ways: HTTP/1.1
// is spoken by this package over connections of which the unused ones wait in
// idle; HTTP/2 and HTTP/3 by shared.
type links struct {
	idle   idleConns
	shared link // nil if the target speaks HTTP/1.1 only
	// http1: the host was asked, and does not speak HTTP/2.
	http1 atomic.Bool
}

func (l *links) closeIdle(retire bool) {
	l.idle.close(retire)
	if l.shared != nil {
		l.shared.CloseIdleConnections()
	}
}

// linksOf gives the pools of a host. They are made when first used: most
// hosts of a large configuration rest.
func (t *Target) linksOf(h *host) (*links, error) {
	if l := h.links.Load(); l != nil {
		return l, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if l := h.links.Load(); l != nil {
		return l, nil
	}
	counted := !h.retired.Load() // one that is retired has little time left
	if counted && !take(&t.breaker.pools, t.breaker.maxPools) && !t.reclaimPool(h) {
		return nil, overflow("max_connection_pools", t.breaker.maxPools)
	}
	l := &links{}
	switch p := t.protocols; {
	case h.endpoint.scheme == "h3":
		var err error
		if l.shared, err = newH3Link(t, h); err != nil {
			if counted {
				t.breaker.pools.Add(-1)
			}
			return nil, err
		}
	case p.HTTP2() || p.UnencryptedHTTP2():
		l.shared = t.newTransport(h, l)
	}
	h.links.Store(l)
	return l, nil
}

// reclaimPool takes its place among max_connection_pools from a host that is
// not in use, and reports whether there was one.
func (t *Target) reclaimPool(for_ *host) bool {
	set := t.hosts.Load()
	if set == nil {
		return false
	}
	for _, h := range set.hosts {
		// Whoever holds the lock is making, or giving back, a place itself.
		if h == for_ || h.inFlight.Load() > 0 || !h.mu.TryLock() {
			continue
		}
		var l *links
		if !h.retired.Load() {
			l = h.links.Swap(nil)
		}
		h.mu.Unlock()
		if l != nil {
			l.closeIdle(true)
			return true
		}
	}
	return false
}

// newTransport makes what speaks HTTP/2 with a host.
func (t *Target) newTransport(h *host, l *links) *http.Transport {
	var p http.Protocols
	p.SetHTTP2(t.protocols.HTTP2())
	p.SetUnencryptedHTTP2(t.protocols.UnencryptedHTTP2())
	return &http.Transport{
		Protocols: &p,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, done, settled := dialFor(ctx)
			defer done()
			return t.connect(ctx, h, settled)
		},
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return t.dialHTTP2(ctx, h, l)
		},
		DisableCompression:     true,
		IdleConnTimeout:        idleFor,
		ExpectContinueTimeout:  continueFor,
		MaxResponseHeaderBytes: http1.MaxHeadBytes,
		HTTP2: &http.HTTP2Config{
			// Notice a dead connection before its streams time out.
			SendPingTimeout: 30 * time.Second,
			PingTimeout:     15 * time.Second,
		},
	}
}
