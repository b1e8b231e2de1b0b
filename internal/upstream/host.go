package upstream

import (
	"sync"
	"sync/atomic"
	"time"
)

// host is one address of an endpoint: a place to connect to. It lives as long
// as DNS keeps naming its address, over any number of refreshes.
type host struct {
	endpoint *endpoint
	addr     string // what is dialled: IP:port, or the path of a socket

	weight     atomic.Uint64 // its share of the traffic, relative to the target's other hosts
	inFlight   atomic.Int64  // exchanges under way
	unhealthy  atomic.Bool   // set by health checks
	ejected    atomic.Bool   // set by outlier detection
	hadTraffic atomic.Bool   // a request was sent here since the last health check looked
	retired    atomic.Bool   // no longer named, or the target was released
	outlier    outlierState  // of outlier detection
	wasWell    bool          // begins healthy: it passed the checks of a target that its own replaces

	mu    sync.Mutex // for making the links
	links atomic.Pointer[links]
}

// usable reports whether a balancer should choose the host.
func (h *host) usable() bool { return !h.unhealthy.Load() && !h.ejected.Load() }

// retire closes the host's connections as they become idle, and gives back
// its place among max_connection_pools. Exchanges under way go on.
func (h *host) retire(b *breaker) {
	h.mu.Lock()
	l := h.links.Load()
	if !h.retired.Swap(true) && l != nil {
		b.pools.Add(-1)
	}
	h.mu.Unlock()
	if l != nil {
		l.closeIdle(true)
	}
}

func (h *host) closeIdle() {
	if l := h.links.Load(); l != nil {
		l.closeIdle(false)
	}
}

func (h *host) enter() {
	h.inFlight.Add(1)
	if !h.hadTraffic.Load() {
		h.hadTraffic.Store(true)
	}
}

func (h *host) leave() {
	if h.inFlight.Add(-1) == 0 && h.retired.Load() {
		h.closeIdle()
	}
}

// hostSet is the hosts of a target at one time. It is never changed.
type hostSet struct {
	hosts []*host // by endpoint, each endpoint's as its resolver ordered them
	made  time.Time
	// due is when names are to be resolved again, zero if never; late is when
	// the answers are too old to be used while that is done.
	due, late time.Time
	// err is why endpoints are without hosts, if any are.
	err error
}

// outcome is how one try ended, for monitors.
type outcome struct {
	// status is the upstream's; 0 if none came.
	status int
	// local: it could not be connected to, timed out, or broke off before an
	// answer.
	local bool
	// gateway: the status is 502, 503 or 504.
	gateway bool
}

// monitor judges the hosts of a target: health checks and outlier detection.
// It flips host.unhealthy or host.ejected and then calls Target.changed.
//
// Making one starts nothing: hostsChanged begins its work, the first time when
// the generation starts, then whenever DNS changes the hosts. No call may
// block. close ends its work and waits for nothing; it comes also where
// hostsChanged never did, and no call follows it.
type monitor interface {
	// hostsChanged gives all hosts of now. New ones are unhealthy if the
	// target has health checks.
	hostsChanged(now []*host)
	// observe tells how a try on a host ended, once per try, from any
	// goroutine. Tries that the client gave up are not told.
	observe(h *host, o outcome)
	// trouble tells why a host is unhealthy or ejected and since when, "" if
	// it is not.
	trouble(h *host) (reason string, since time.Time)
	close()
}

// changed makes the balancer look at hosts again: call it after flipping
// unhealthy or ejected.
func (t *Target) changed() { t.version.Add(1) }

// observe tells the monitors how a try ended.
func (t *Target) observe(h *host, o outcome) {
	for _, m := range t.monitors {
		m.observe(h, o)
	}
}
