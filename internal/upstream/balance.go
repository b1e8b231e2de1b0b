package upstream

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// Values of Spec.Balancing (configuration.md §3.8); "" is RoundRobin.
const (
	RoundRobin   = "ROUND_ROBIN"
	LeastRequest = "LEAST_REQUEST"
	Random       = "RANDOM"
	RingHash     = "RING_HASH"
	Maglev       = "MAGLEV"
)

// defaultPanic is the percentage of usable hosts below which all are used.
const defaultPanic = 50

// balance chooses among the hosts of a target, as they were at one version.
// Choosing takes no lock and allocates nothing.
type balance struct {
	version uint64
	set     *hostSet
	kind    string
	// hosts are those to choose from: the usable ones, or all of them where so
	// few are usable that they would be overrun.
	hosts []*host
	// order lists indexes of hosts, each as often as its weight says and spread
	// out evenly; nil if all weigh the same.
	order []uint16
	turn  atomic.Uint64
	ring  *ring       // over all hosts of set, RingHash only
	slots maglevTable // over hosts, Maglev only
}

// pick chooses a host for a key (hashed already; 0 is none), which only
// RingHash and Maglev look at. not is left out if there is another one. nil:
// there is none.
func (t *Target) pick(key uint64, not *host) *host {
	b := t.balance.Load()
	if b == nil || b.version != t.version.Load() {
		b = t.rebalance()
	}
	return b.pick(key, not)
}

func (b *balance) pick(key uint64, not *host) *host {
	switch len(b.hosts) {
	case 0:
		return nil
	case 1:
		return b.hosts[0]
	}
	switch b.kind {
	case LeastRequest:
		return b.least(not)
	case RingHash:
		if key != 0 {
			return b.ring.pick(key, b, not)
		}
		return b.random(not)
	case Maglev:
		if key != 0 {
			return b.slots.pick(key, b.hosts, not)
		}
		return b.random(not)
	case Random:
		return b.random(not)
	}
	// Round robin. not may come several times in a row if it weighs much.
	for range len(b.hosts) + 16 {
		if h := b.at(b.turn.Add(1)); h != not {
			return h
		}
	}
	return b.other(not)
}

// at gives the host of a turn.
func (b *balance) at(turn uint64) *host {
	if b.order == nil {
		return b.hosts[turn%uint64(len(b.hosts))]
	}
	return b.hosts[b.order[turn%uint64(len(b.order))]]
}

func (b *balance) random(not *host) *host {
	for range 16 {
		if h := b.at(rand.Uint64()); h != not {
			return h
		}
	}
	return b.other(not)
}

// least chooses two at random, by weight, and of them the one with fewer
// exchanges under way for its weight: nearly as good as looking at all, and
// nobody is overrun when all see the same idle host.
func (b *balance) least(not *host) *host {
	one := b.random(not)
	for range 4 {
		two := b.random(one)
		if two == not {
			continue
		}
		// The choice has weighed them already: exchanges per weight would
		// count the weight twice while hosts are idle, so that they are equal.
		if uint64(two.inFlight.Load())*one.weight.Load() < uint64(one.inFlight.Load())*two.weight.Load() {
			return two
		}
		return one
	}
	return one
}

// other gives any host but not, the first after it.
func (b *balance) other(not *host) *host {
	i := slices.Index(b.hosts, not)
	return b.hosts[(i+1)%len(b.hosts)]
}

// rebalance looks at the hosts and their state anew.
func (t *Target) rebalance() *balance {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.balance.Load()
	b := &balance{version: t.version.Load(), kind: t.kind, set: t.hosts.Load()}
	if was != nil {
		if was.version == b.version {
			return was
		}
		b.turn.Store(was.turn.Load())
	}
	if b.set == nil {
		return b
	}
	all := b.set.hosts
	b.hosts = make([]*host, 0, len(all))
	for _, h := range all {
		if h.usable() {
			b.hosts = append(b.hosts, h)
		}
	}
	if len(b.hosts)*100 < t.panic*len(all) {
		b.hosts = all
	}
	same := was != nil && slices.Equal(was.hosts, b.hosts) && was.set == b.set
	switch {
	case same:
		b.order, b.ring, b.slots = was.order, was.ring, was.slots
	case len(b.hosts) < 2:
	case b.kind == Maglev:
		b.slots = newMaglev(b.hosts)
		b.order = weightedOrder(b.hosts)
	default:
		b.order = weightedOrder(b.hosts)
	}
	if b.kind == RingHash && b.ring == nil && len(all) > 1 {
		if was != nil && was.set == b.set && was.ring != nil {
			b.ring = was.ring
		} else {
			b.ring = newRing(b.set)
		}
	}
	t.balance.Store(b)
	return b
}

// maxOrder bounds the list of turns; weights that need more are rounded.
const maxOrder = 4096

// weightedOrder is a round of smooth weighted round robin: each host gets its
// share of turns, spread out evenly. nil: all weigh the same.
func weightedOrder(hosts []*host) []uint16 {
	weights := make([]uint64, len(hosts))
	var divisor, sum uint64
	equal := true
	for i, h := range hosts {
		weights[i] = h.weight.Load()
		divisor = gcd(divisor, weights[i])
		sum += weights[i]
		equal = equal && weights[i] == weights[0]
	}
	if equal || len(hosts) > maxOrder {
		return nil
	}
	rounds := 0
	for i := range weights {
		if sum/divisor > maxOrder {
			weights[i] = max(1, (weights[i]*maxOrder+sum/2)/sum)
		} else {
			weights[i] /= divisor
		}
		rounds += int(weights[i])
	}
	order := make([]uint16, rounds)
	current := make([]int, len(hosts))
	for turn := range order {
		best := 0
		for i, w := range weights {
			current[i] += int(w)
			if current[i] > current[best] {
				best = i
			}
		}
		current[best] -= rounds
		order[turn] = uint16(best)
	}
	return order
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// hashKey makes a balancing key of what identifies the caller. It is never 0
// unless that is empty.
func hashKey(of string) uint64 {
	if of == "" {
		return 0
	}
	var buf [128]byte
	sum := sha256.Sum256(append(buf[:0], of...))
	return max(1, binary.BigEndian.Uint64(sum[:8]))
}

// WantsAffinity reports whether Options.Affinity makes a difference.
func (t *Target) WantsAffinity() bool {
	return t != nil && (t.kind == RingHash || t.kind == Maglev)
}
