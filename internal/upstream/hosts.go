package upstream

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	// staleFor bounds how long an answer of DNS is used on after its time
	// while a new one is on its way.
	staleFor = 30 * time.Second
	// staleWait bounds the wait for an answer where an old one is at hand.
	staleWait = time.Second
	// suspectAfter is how old an answer must be to be doubted because a host
	// it names does not accept connections.
	suspectAfter = time.Second
)

// weightUnit is a weight of 1, shared by the addresses of an endpoint: it
// divides by every number up to 16.
const weightUnit = 720720

// fixHosts makes the hosts of a target that needs no DNS.
func (t *Target) fixHosts() {
	for _, e := range t.endpoints {
		if e.fixed == "" {
			return
		}
	}
	set := &hostSet{hosts: make([]*host, len(t.endpoints))}
	for i, e := range t.endpoints {
		set.hosts[i] = t.newHost(e, e.fixed)
		set.hosts[i].setWeight(1)
	}
	t.hosts.Store(set)
}

func (t *Target) newHost(e *endpoint, addr string) *host {
	h := &host{endpoint: e, addr: addr}
	h.wasWell = t.well[h.name()]
	h.unhealthy.Store(t.checked && !h.wasWell)
	return h
}

// setWeight gives the host its part of its endpoint's weight. Where none is
// configured, every address weighs the same.
func (h *host) setWeight(addresses int) {
	w := uint64(1)
	if h.endpoint.weight > 0 {
		w = max(1, uint64(h.endpoint.weight)*weightUnit/uint64(addresses))
	}
	h.weight.Store(w)
}

// ready gives the hosts of now. Names are resolved when first needed, and
// again when their time has come and they are used: by one caller, while the
// others go on with what is known, unless that is too old.
func (t *Target) ready(ctx context.Context) (*hostSet, error) {
	set := t.hosts.Load()
	if set != nil && set.due.IsZero() {
		return set, nil
	}
	now := time.Now()
	if set != nil && now.Before(set.due) && !(t.suspect.Load() && now.After(set.made.Add(suspectAfter))) {
		return set, nil
	}
	known := set != nil && len(set.hosts) > 0
	if known && now.Before(set.late) {
		if t.refreshing.CompareAndSwap(false, true) {
			go func() {
				defer t.refreshing.Store(false)
				t.refresh(context.Background())
			}()
		}
		return set, nil
	}
	wait := connectTimeout
	if known {
		wait = staleWait
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	switch fresh := t.refresh(waiting); {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case fresh != nil:
		return fresh, nil
	case known:
		return set, nil
	}
	return nil, &Error{Kind: ErrUnreachable, Detail: "the names in to were not resolved in time; check the DNS servers", Err: errNoHosts}
}

// refresh resolves the target's names and takes over what changed. It gives
// nil if ctx ended before anything was known.
func (t *Target) refresh(ctx context.Context) *hostSet {
	notBefore := time.Time{}
	if t.suspect.Swap(false) {
		notBefore = time.Now().Add(-suspectAfter)
	}
	// All at once, then wait for each.
	lookups := make([]*lookup, len(t.endpoints))
	for i, e := range t.endpoints {
		if e.dnsName != "" {
			lookups[i] = t.resolver.start(e.dnsName, notBefore)
		}
	}
	answers := make([]*answer, len(t.endpoints))
	any := false
	for i, l := range lookups {
		if l == nil {
			continue
		}
		select {
		case <-l.done:
			answers[i], any = l.answer, true
		case <-ctx.Done():
			select {
			case <-l.done:
				answers[i], any = l.answer, true
			default:
			}
		}
	}
	if !any {
		return nil
	}
	return t.apply(answers)
}

// apply makes the target's hosts what the answers say. Hosts whose address
// stays keep their state; endpoints without an answer keep their hosts, also
// if DNS failed.
func (t *Target) apply(answers []*answer) *hostSet {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.hosts.Load()
	now := time.Now()
	set := &hostSet{made: now}
	for i, e := range t.endpoints {
		if e.fixed != "" {
			set.add(t, was, e, e.fixed)
			continue
		}
		a := answers[i]
		if a == nil {
			a = &answer{due: now.Add(suspectAfter), late: now.Add(staleFor)}
			set.keep(was, e)
		} else if a.err != nil && len(a.addrs) == 0 && !a.gone {
			set.keep(was, e)
		}
		for _, ip := range a.addrs {
			set.add(t, was, e, net.JoinHostPort(ip.String(), e.dnsPort))
		}
		if set.err == nil {
			set.err = a.err
		}
		if set.due.IsZero() || a.due.Before(set.due) {
			set.due = a.due
		}
		if set.late.IsZero() || a.late.Before(set.late) {
			set.late = a.late
		}
	}
	if t.closed {
		return set // it serves this exchange, and nobody else
	}
	same := was != nil && slices.Equal(was.hosts, set.hosts)
	if same {
		set.hosts = was.hosts
	} else {
		count := map[*endpoint]int{}
		for _, h := range set.hosts {
			count[h.endpoint]++
		}
		for _, h := range set.hosts {
			h.setWeight(count[h.endpoint])
		}
	}
	t.hosts.Store(set)
	if same {
		return set
	}
	t.changed()
	if was != nil {
		for _, h := range was.hosts {
			if !slices.Contains(set.hosts, h) {
				h.retire(&t.breaker)
			}
		}
	}
	if t.started {
		for _, m := range t.monitors {
			m.hostsChanged(set.hosts)
		}
	}
	return set
}

// add appends the host of an address, the one that was if there is one.
func (s *hostSet) add(t *Target, was *hostSet, e *endpoint, addr string) {
	if was != nil {
		for _, h := range was.hosts {
			if h.endpoint == e && h.addr == addr {
				s.hosts = append(s.hosts, h)
				return
			}
		}
	}
	s.hosts = append(s.hosts, t.newHost(e, addr))
}

// keep appends the hosts that an endpoint had.
func (s *hostSet) keep(was *hostSet, e *endpoint) {
	if was == nil {
		return
	}
	for _, h := range was.hosts {
		if h.endpoint == e {
			s.hosts = append(s.hosts, h)
		}
	}
}

// keepResolved resolves names again as their time comes, whether they are used
// or not: for hosts that are being checked.
func (t *Target) keepResolved(stop <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-stop
		cancel()
	}()
	for {
		wait := suspectAfter
		if set := t.refresh(ctx); set != nil {
			wait = max(time.Millisecond, time.Until(set.due))
		}
		clock := time.NewTimer(wait)
		select {
		case <-clock.C:
		case <-stop:
			clock.Stop()
			return
		}
	}
}

// sortAddrs orders and dedupes addresses, so that equal answers are equal.
func sortAddrs(addrs []netip.Addr) []netip.Addr {
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}
