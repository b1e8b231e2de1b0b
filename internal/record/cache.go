package record

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
)

// Cache is a bounded copy of part of a type, for types too large to copy
// whole. What it holds is kept fresh by the same watch as a [Replica]; what
// it does not hold is read from the store. It never remembers absence.
type Cache[T any] struct {
	src    Source
	typ    string
	decode Decode[T]
	opts   ReplicaOptions

	proof proof
	held  *otter.Cache[string, *slot[T]]
	subs  subscribers[T]

	// changes counts the events seen, by hash of the id. A reader remembers
	// the count, asks the store, and keeps the answer only if the count is
	// still the same: otherwise the change may be the newer one, and nothing
	// would ever correct the entry.
	seed    maphash.Seed
	changes [1024]atomic.Uint64
	// placed is set once there is a cursor from which all later changes will
	// be seen; before that nothing may be kept.
	placed atomic.Bool
}

var _ Lookup[struct{}] = (*Cache[struct{}])(nil)

// NewCache prepares a cache of at most capacity records of typ; Run keeps it
// fresh. Without Run each Lookup asks the store.
func NewCache[T any](src Source, typ string, capacity int, decode Decode[T], o ReplicaOptions) (*Cache[T], error) {
	held, err := otter.New(&otter.Options[string, *slot[T]]{MaximumSize: max(capacity, 1)})
	if err != nil {
		return nil, fmt.Errorf("cache of %s: %w", typ, err)
	}
	c := &Cache[T]{src: src, typ: typ, decode: decode, opts: o, held: held, seed: maphash.MakeSeed()}
	c.proof.init(o)
	return c, nil
}

func (c *Cache[T]) count(id string) *atomic.Uint64 {
	return &c.changes[maphash.String(c.seed, id)%uint64(len(c.changes))]
}

// Lookup implements [Lookup].
func (c *Cache[T]) Lookup(ctx context.Context, id string, minVersion uint64) (*Entry[T], error) {
	if c.proof.fresh() {
		if s, ok := c.held.GetIfPresent(id); ok && s.Version >= minVersion {
			return &s.Entry, nil
		}
	}
	placed, seen := c.placed.Load(), c.count(id).Load()
	s, err := readThrough(ctx, c.src, c.typ, id, minVersion, c.decode)
	if err != nil {
		return nil, err
	}
	if placed {
		c.held.Compute(id, func(old *slot[T], found bool) (*slot[T], otter.ComputeOp) {
			if c.count(id).Load() != seen || found && old.Version >= s.Version {
				return old, otter.CancelOp
			}
			return s, otter.WriteOp
		})
	}
	return &s.Entry, nil
}

// OnChange implements [Lookup].
func (c *Cache[T]) OnChange(f func(Change[T])) (cancel func()) { return c.subs.add(f) }

// Ready implements [Lookup].
func (c *Cache[T]) Ready() error { return c.proof.ready(c.typ) }

// Len is about how many records are held.
func (c *Cache[T]) Len() int { return c.held.EstimatedSize() }

// Run keeps the cache fresh until ctx ends, and returns ctx's error.
func (c *Cache[T]) Run(ctx context.Context) error {
	defer c.held.StopAllGoroutines()
	var at Cursor
	from := func() (Cursor, error) {
		if at != (Cursor{}) {
			return at, nil
		}
		v, err := c.src.ServerVersion(ctx)
		if err != nil {
			return Cursor{}, err
		}
		at = Cursor{Server: v.Server, Version: v.Latest}
		// First the place, then the emptying: an answer that was read before
		// the place is refused by its count, one read later is watched over.
		for i := range c.changes {
			c.changes[i].Add(1)
		}
		c.held.InvalidateAll()
		if c.placed.Swap(true) {
			c.subs.tell(Change[T]{Everything: true})
		}
		return at, nil
	}
	return follow(ctx, c.src, c.typ, c.opts, from,
		func() { at = Cursor{}; c.proof.asOf.Store(0) },
		func(next func() (Event, error)) error {
			for {
				ev, err := next()
				if err != nil {
					return err
				}
				if ev.Kind == Changed {
					c.apply(ev.Record)
					at = ev.Cursor
					continue
				}
				at = ev.Cursor
				c.proof.set(at, ev.AsOf)
			}
		})
}

// apply takes one change in.
func (c *Cache[T]) apply(rec *Record) {
	c.count(rec.ID).Add(1)
	var s *slot[T]
	if !rec.Deleted() && (c.subs.any() || c.holds(rec.ID)) {
		s = decodeSlot(rec, c.decode)
		if s.err != nil {
			c.opts.report(s.err)
		}
	}
	var old *slot[T]
	c.held.Compute(rec.ID, func(was *slot[T], found bool) (*slot[T], otter.ComputeOp) {
		switch {
		case !found:
			return was, otter.CancelOp
		case was.Version > rec.Version: // read ahead of the watch
			old = was
			return was, otter.CancelOp
		}
		old = was
		if s.entry() == nil {
			return nil, otter.InvalidateOp
		}
		return s, otter.WriteOp
	})
	c.subs.tell(Change[T]{ID: rec.ID, Old: old.entry(), New: s.entry()})
}

func (c *Cache[T]) holds(id string) bool {
	_, ok := c.held.GetEntryQuietly(id)
	return ok
}
