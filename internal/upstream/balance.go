package upstream

import "sync/atomic"

// balance chooses among the hosts of a target, as they were at one version.
type balance struct {
	version uint64
	hosts   []*host
	turn    atomic.Uint64
}

// pick chooses a host; not is left out if there is another one. nil: there
// is none.
func (t *Target) pick(not *host) *host {
	b := t.balance.Load()
	if b == nil || b.version != t.version.Load() {
		b = t.rebalance()
	}
	n := uint64(len(b.hosts))
	if n == 0 {
		return nil
	}
	h := b.hosts[b.turn.Add(1)%n]
	if h == not {
		h = b.hosts[b.turn.Add(1)%n]
	}
	return h
}

func (t *Target) rebalance() *balance {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := &balance{version: t.version.Load()}
	if set := t.hosts.Load(); set != nil {
		for _, h := range set.hosts {
			if h.usable() {
				b.hosts = append(b.hosts, h)
			}
		}
		if len(b.hosts)*2 < len(set.hosts) {
			b.hosts = set.hosts
		}
	}
	t.balance.Store(b)
	return b
}
