package upstream

import (
	"context"
	"net"
	"net/http"
	"time"
)

// idleFor is how long an unused connection to an upstream is kept.
const idleFor = 60 * time.Second

// link is a pool of connections to one host.
type link interface {
	http.RoundTripper
	CloseIdleConnections()
}

// links are the pools of one host: plain for ordinary exchanges; upgrades
// opens a connection per exchange and speaks HTTP/1.1 only.
type links struct{ plain, upgrades link }

func (l *links) closeIdle() {
	l.plain.CloseIdleConnections()
	l.upgrades.CloseIdleConnections()
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
	if !take(&t.breaker.pools, t.breaker.maxPools) && !t.reclaimPool(h) {
		return nil, overflow("max_connection_pools", t.breaker.maxPools)
	}
	var h1 http.Protocols
	h1.SetHTTP1(true)
	upgrades := t.newTransport(h, h1)
	upgrades.DisableKeepAlives = true
	l := &links{upgrades: upgrades}
	if h.endpoint.scheme == "h3" {
		var err error
		if l.plain, err = newH3Link(t, h); err != nil {
			t.breaker.pools.Add(-1)
			return nil, err
		}
		l.upgrades = noUpgrades{}
	} else {
		l.plain = t.newTransport(h, t.protocols)
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
		if h == for_ || h.inFlight.Load() > 0 {
			continue
		}
		if l := h.links.Swap(nil); l != nil {
			l.closeIdle()
			return true
		}
	}
	return false
}

func (t *Target) newTransport(h *host, p http.Protocols) *http.Transport {
	alpn := []string{"http/1.1"}
	if p.HTTP2() {
		alpn = []string{"h2", "http/1.1"}
	}
	return &http.Transport{
		Protocols: &p,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := t.connect(ctx, h)
			if err != nil || p.UnencryptedHTTP2() {
				return c, err
			}
			return newResponseGuard(c), nil
		},
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return t.dialTLS(ctx, h, alpn)
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    1024,
		IdleConnTimeout:        idleFor,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeadBytes + 4096, // the guard counts first
		HTTP2: &http.HTTP2Config{
			// Notice a dead connection before its streams time out.
			SendPingTimeout: 30 * time.Second,
			PingTimeout:     15 * time.Second,
		},
	}
}
