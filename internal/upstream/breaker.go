package upstream

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of a target where nothing is configured (configuration.md §2.16).
const (
	defaultConnections = 1024
	defaultPending     = 1024
	defaultRequests    = 1024
	defaultRetries     = 3
	unlimited          = 1<<32 - 1
)

// pendingFor bounds the wait for a connection: as long as connecting may take.
const pendingFor = connectTimeout

// MergeBreakers gives the limits of a route: its own, field by field, else the
// global ones. Both may be nil.
func MergeBreakers(global, route *Breakers) Breakers {
	var out Breakers
	for _, b := range []*Breakers{global, route} {
		if b == nil {
			continue
		}
		for _, f := range []struct{ to, from **uint32 }{
			{&out.MaxConnections, &b.MaxConnections},
			{&out.MaxPendingRequests, &b.MaxPendingRequests},
			{&out.MaxRequests, &b.MaxRequests},
			{&out.MaxRetries, &b.MaxRetries},
			{&out.MaxConnectionPools, &b.MaxConnectionPools},
		} {
			if *f.from != nil {
				*f.to = *f.from
			}
		}
	}
	return out
}

// breaker counts what a target has under way and refuses more than its limits.
type breaker struct {
	maxConnections, maxPending, maxRequests, maxRetries, maxPools uint32

	requests atomic.Int64 // under way
	retries  atomic.Int64 // under way
	pools    atomic.Int64 // hosts with connections
	open     atomic.Int64 // connections that stand or are being made
	slots    atomic.Int64 // exchanges that have a connection to themselves

	// Those that wait for a slot, first come, first served.
	waiters atomic.Int64
	mu      sync.Mutex
	queue   list.List
	closed  chan struct{} // of open: a connection was closed; nil if nobody waits
}

func newBreaker(b Breakers) breaker {
	or := func(p *uint32, d uint32) uint32 {
		if p != nil {
			return *p
		}
		return d
	}
	return breaker{
		maxConnections: or(b.MaxConnections, defaultConnections),
		maxPending:     or(b.MaxPendingRequests, defaultPending),
		maxRequests:    or(b.MaxRequests, defaultRequests),
		maxRetries:     or(b.MaxRetries, defaultRetries),
		maxPools:       or(b.MaxConnectionPools, unlimited),
	}
}

// take adds one to a count unless that is at its limit.
func take(count *atomic.Int64, limit uint32) bool {
	for {
		n := count.Load()
		if n >= int64(limit) {
			return false
		}
		if count.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// overflow is the error of a limit that is reached.
func overflow(key string, limit uint32) error {
	return &Error{Kind: ErrOverflow, Key: key,
		Detail: fmt.Sprintf("circuit_breaker_thresholds.%s (%d) of the route is reached; raise it or add capacity", key, limit)}
}

// waiter is an exchange in the queue for a slot.
type waiter struct {
	granted chan struct{}
	place   *list.Element // nil once granted
}

// slot waits for room for one more connection in use, in order of arrival.
func (b *breaker) slot(ctx context.Context) error {
	if b.waiters.Load() == 0 && take(&b.slots, b.maxConnections) {
		return nil
	}
	b.mu.Lock()
	if b.queue.Len() == 0 && take(&b.slots, b.maxConnections) {
		b.mu.Unlock()
		return nil
	}
	if b.maxConnections == 0 {
		b.mu.Unlock()
		return overflow("max_connections", 0)
	}
	if int64(b.queue.Len()) >= int64(b.maxPending) {
		b.mu.Unlock()
		return overflow("max_pending_requests", b.maxPending)
	}
	w := &waiter{granted: make(chan struct{})}
	w.place = b.queue.PushBack(w)
	b.waiters.Add(1)
	b.grant() // who left before waiters was counted did not look for us
	b.mu.Unlock()
	clock := time.NewTimer(pendingFor)
	defer clock.Stop()
	var err error
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-clock.C:
		err = overflow("max_connections", b.maxConnections)
	}
	b.mu.Lock()
	if w.place == nil {
		b.mu.Unlock()
		b.freeSlot() // granted meanwhile
		return err
	}
	b.dequeue(w)
	b.mu.Unlock()
	return err
}

func (b *breaker) dequeue(w *waiter) {
	b.queue.Remove(w.place)
	w.place = nil
	b.waiters.Add(-1)
}

// grant gives free slots to those who wait; with mu held.
func (b *breaker) grant() {
	for e := b.queue.Front(); e != nil && take(&b.slots, b.maxConnections); e = b.queue.Front() {
		w := e.Value.(*waiter)
		b.dequeue(w)
		close(w.granted)
	}
}

// grantAll lets everybody pass: the target turned out to need no connection
// for each exchange.
func (b *breaker) grantAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for e := b.queue.Front(); e != nil; e = b.queue.Front() {
		w := e.Value.(*waiter)
		b.dequeue(w)
		b.slots.Add(1)
		close(w.granted)
	}
}

func (b *breaker) freeSlot() {
	b.slots.Add(-1)
	if b.waiters.Load() > 0 {
		b.mu.Lock()
		b.grant()
		b.mu.Unlock()
	}
}

// connection waits for room for one more open connection. makeRoom closes idle
// ones; settled ends the wait of a connection that nobody needs any more.
func (b *breaker) connection(ctx context.Context, settled <-chan struct{}, makeRoom func()) error {
	if take(&b.open, b.maxConnections) {
		return nil
	}
	for {
		b.mu.Lock()
		if b.closed == nil {
			b.closed = make(chan struct{})
		}
		closed := b.closed
		b.mu.Unlock()
		makeRoom()
		if take(&b.open, b.maxConnections) {
			return nil
		}
		// A connection that was made for nobody is idle without telling.
		look := time.NewTimer(50 * time.Millisecond)
		select {
		case <-closed:
		case <-look.C:
		case <-settled:
			return &connectError{context.Canceled}
		case <-ctx.Done():
			look.Stop()
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
				return cause // the client left, or we cut it
			}
			return overflow("max_connections", b.maxConnections)
		}
		look.Stop()
	}
}

func (b *breaker) connectionClosed() {
	b.open.Add(-1)
	b.mu.Lock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	b.mu.Unlock()
}
