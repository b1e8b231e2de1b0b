package identity

import (
	"container/list"
	"context"
	"net/netip"
	"sync"
	"time"
)

// throttle slows down guessing. Failures count for an account from one
// source, which is then told to wait, and for a source over all accounts,
// whose attempts are then merely slow: neighbours behind one address can delay
// each other by seconds, and nobody can keep another person out. Tables are
// bounded: the entry longest unused makes room.
type throttle struct {
	mu      sync.Mutex
	pairs   *tally // account and source
	sources *tally
	held    int // attempts being slowed down
}

// Free failures before waiting begins, the first wait (doubled each time) and
// the longest; how many slow attempts are held at once. An entry is forgotten an hour after its last failure.
const (
	freePair      = 4
	freeSource    = 20
	firstWait     = time.Second
	longestWait   = time.Minute
	slowestSource = 5 * time.Second
	maxHeld       = 64
	throttleLife  = time.Hour
	throttleTable = 8192
)

func newThrottle() *throttle {
	return &throttle{pairs: newTally(freePair, longestWait), sources: newTally(freeSource, slowestSource)}
}

// admit refuses an account and source that must wait, and holds an attempt of
// a source that guesses a lot.
func (t *throttle) admit(ctx context.Context, account, source string, now time.Time) error {
	source = sourceKey(source)
	t.mu.Lock()
	if wait := t.pairs.wait(account+"\n"+source, now); wait > 0 {
		t.mu.Unlock()
		return &Throttled{RetryAfter: wait}
	}
	slow := t.sources.wait(source, now)
	if slow <= 0 {
		t.mu.Unlock()
		return nil
	}
	if t.held >= maxHeld {
		t.mu.Unlock()
		return &Throttled{RetryAfter: slow, Busy: true}
	}
	t.held++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		t.held--
		t.mu.Unlock()
	}()
	timer := time.NewTimer(slow)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *throttle) failed(account, source string, now time.Time) {
	source = sourceKey(source)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pairs.failed(account+"\n"+source, now)
	t.sources.failed(source, now)
}

// succeeded forgets the pair. The source keeps its count: a guesser may own an
// account.
func (t *throttle) succeeded(account, source string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pairs.forget(account + "\n" + sourceKey(source))
}

// sourceKey is an IPv4 address or the /64 of an IPv6 one, which is what one
// subscriber gets.
func sourceKey(source string) string {
	ip, err := netip.ParseAddr(source)
	if err != nil {
		return source
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	if p, err := ip.Prefix(64); err == nil {
		return p.String()
	}
	return source
}

type tally struct {
	free    int
	longest time.Duration
	entries map[string]*list.Element
	order   *list.List // most recently failed first
}

type tallyEntry struct {
	key      string
	failures int
	last     time.Time
	until    time.Time
}

func newTally(free int, longest time.Duration) *tally {
	return &tally{free: free, longest: longest, entries: map[string]*list.Element{}, order: list.New()}
}

func (t *tally) wait(key string, now time.Time) time.Duration {
	el, ok := t.entries[key]
	if !ok {
		return 0
	}
	e := el.Value.(*tallyEntry)
	if now.Sub(e.last) > throttleLife {
		t.forget(key)
		return 0
	}
	return max(0, e.until.Sub(now))
}

func (t *tally) failed(key string, now time.Time) {
	el, ok := t.entries[key]
	if !ok {
		if t.order.Len() >= throttleTable {
			t.forget(t.order.Back().Value.(*tallyEntry).key)
		}
		el = t.order.PushFront(&tallyEntry{key: key})
		t.entries[key] = el
	}
	t.order.MoveToFront(el)
	e := el.Value.(*tallyEntry)
	if now.Sub(e.last) > throttleLife {
		e.failures = 0
	}
	e.failures++
	e.last = now
	if over := e.failures - t.free; over > 0 {
		wait := t.longest
		if over < 7 {
			wait = min(wait, firstWait<<(over-1))
		}
		e.until = now.Add(wait)
	}
}

func (t *tally) forget(key string) {
	if el, ok := t.entries[key]; ok {
		t.order.Remove(el)
		delete(t.entries, key)
	}
}
