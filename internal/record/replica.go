package record

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"sync"
	"sync/atomic"
	"time"
)

// Replica is a local copy of all records of one type, kept fresh by watching
// while Run runs. Its reads allocate nothing and wait for nobody.
type Replica[T any] struct {
	src    Source
	typ    string
	decode Decode[T]
	opts   ReplicaOptions

	proof  proof
	table  atomic.Pointer[table[T]]
	subs   subscribers[T]
	synced chan struct{} // closed by the first sync
	once   sync.Once
}

var _ Lookup[struct{}] = (*Replica[struct{}])(nil)

// NewReplica prepares a copy of the records of typ; Run fills it.
func NewReplica[T any](src Source, typ string, decode Decode[T], o ReplicaOptions) *Replica[T] {
	r := &Replica[T]{src: src, typ: typ, decode: decode, opts: o, synced: make(chan struct{})}
	r.proof.init(o)
	r.table.Store(newTable[T]())
	return r
}

// proof is what a copy knows about its own freshness.
type proof struct {
	base     time.Time // monotonic origin
	maxStale time.Duration
	asOf     atomic.Int64  // nanoseconds since base, plus one; 0: not synced
	server   atomic.Uint64 // the place up to which the copy is complete
	version  atomic.Uint64
}

func (p *proof) init(o ReplicaOptions) {
	p.base, p.maxStale = time.Now(), cmp.Or(o.MaxStale, DefaultMaxStale)
}

// fresh tells whether the last proof is at most maxStale old.
func (p *proof) fresh() bool {
	at := p.asOf.Load()
	return at != 0 && int64(time.Since(p.base))-(at-1) <= int64(p.maxStale)
}

func (p *proof) set(at Cursor, asOf time.Time) {
	p.server.Store(at.Server)
	p.version.Store(at.Version)
	p.asOf.Store(max(int64(asOf.Sub(p.base)), 0) + 1)
}

func (p *proof) cursor() Cursor {
	return Cursor{Server: p.server.Load(), Version: p.version.Load()}
}

func (p *proof) ready(typ string) error {
	at := p.asOf.Load()
	if at == 0 {
		return fmt.Errorf("%w: the records of %s are not yet copied; wait, or check the record store", ErrUnavailable, typ)
	}
	if !p.fresh() {
		return fmt.Errorf("%w: the copy of %s is %s old; check the connection to the record store", ErrUnavailable, typ,
			(time.Since(p.base) - time.Duration(at-1)).Round(time.Second))
	}
	return nil
}

// slot is an entry, or the reason why there is none to give.
type slot[T any] struct {
	Entry[T]
	err error
}

func decodeSlot[T any](rec *Record, decode Decode[T]) *slot[T] {
	s := &slot[T]{Entry: Entry[T]{ID: rec.ID, Version: rec.Version, ModifiedAt: rec.ModifiedAt, Namespace: rec.Namespace}}
	v, err := decode(rec)
	if err == nil && v == nil {
		err = errors.New("it decodes to nothing")
	}
	if err != nil {
		s.err = fmt.Errorf("%w: a record of %s at version %d cannot be read: %v; delete it or restore it from a backup", ErrUnavailable, rec.Type, rec.Version, err)
		return s
	}
	s.Value = v
	return s
}

// entry is what may be shown of a slot.
func (s *slot[T]) entry() *Entry[T] {
	if s == nil || s.err != nil {
		return nil
	}
	return &s.Entry
}

// table is a map in shards, so that a change holds up few readers.
type table[T any] struct {
	seed   maphash.Seed
	shards [64]shard[T]
}

type shard[T any] struct {
	mu sync.RWMutex
	m  map[string]*slot[T]
	_  [32]byte // a cache line each, so that readers of two shards do not meet
}

func newTable[T any]() *table[T] {
	t := &table[T]{seed: maphash.MakeSeed()}
	for i := range t.shards {
		t.shards[i].m = make(map[string]*slot[T])
	}
	return t
}

func (t *table[T]) shard(id string) *shard[T] {
	return &t.shards[maphash.String(t.seed, id)%uint64(len(t.shards))]
}

func (t *table[T]) get(id string) *slot[T] {
	sh := t.shard(id)
	sh.mu.RLock()
	s := sh.m[id]
	sh.mu.RUnlock()
	return s
}

// set puts a slot (nil deletes) and returns the one before.
func (t *table[T]) set(id string, s *slot[T]) *slot[T] {
	sh := t.shard(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	old := sh.m[id]
	if s == nil {
		delete(sh.m, id)
	} else {
		sh.m[id] = s
	}
	return old
}

// all gives the slots of one moment per shard, without holding a lock while
// the consumer works.
func (t *table[T]) all(yield func(*slot[T]) bool) {
	var buf []*slot[T]
	for i := range t.shards {
		sh := &t.shards[i]
		buf = buf[:0]
		sh.mu.RLock()
		for _, s := range sh.m {
			buf = append(buf, s)
		}
		sh.mu.RUnlock()
		for _, s := range buf {
			if !yield(s) {
				return
			}
		}
	}
}

// Get returns the record if the copy is fresh and holds it, without ever
// asking the store. What rests on absence must use Lookup.
func (r *Replica[T]) Get(id string) (*Entry[T], bool) {
	if !r.proof.fresh() {
		return nil, false
	}
	e := r.table.Load().get(id).entry()
	return e, e != nil
}

// Lookup implements [Lookup].
func (r *Replica[T]) Lookup(ctx context.Context, id string, minVersion uint64) (*Entry[T], error) {
	if r.proof.fresh() {
		applied := r.proof.version.Load() // before the table, which is then at least as new
		s := r.table.Load().get(id)
		switch {
		case s != nil && s.Version >= minVersion:
			if s.err != nil {
				return nil, s.err
			}
			return &s.Entry, nil
		case s == nil && applied >= minVersion:
			return nil, ErrNotFound
		}
	}
	s, err := readThrough(ctx, r.src, r.typ, id, minVersion, r.decode)
	if err != nil {
		return nil, err
	}
	return &s.Entry, nil
}

func readThrough[T any](ctx context.Context, src Source, typ, id string, minVersion uint64, decode Decode[T]) (*slot[T], error) {
	rec, err := src.Get(ctx, typ, id)
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrUnavailable):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: reading a %s: %w", ErrUnavailable, typ, err)
	case rec.Version < minVersion:
		return nil, fmt.Errorf("%w: version %d of a %s was asked for, but the store holds %d", ErrWrongServer, minVersion, typ, rec.Version)
	}
	s := decodeSlot(rec, decode)
	return s, s.err
}

// All gives the records that the copy holds, in no order, fresh or not; check
// Ready where that matters.
func (r *Replica[T]) All() iter.Seq[*Entry[T]] {
	return func(yield func(*Entry[T]) bool) {
		r.table.Load().all(func(s *slot[T]) bool { return s.err != nil || yield(&s.Entry) })
	}
}

// Len counts the records that the copy holds.
func (r *Replica[T]) Len() (n int) {
	t := r.table.Load()
	for i := range t.shards {
		t.shards[i].mu.RLock()
		n += len(t.shards[i].m)
		t.shards[i].mu.RUnlock()
	}
	return n
}

// OnChange implements [Lookup].
func (r *Replica[T]) OnChange(f func(Change[T])) (cancel func()) { return r.subs.add(f) }

// Ready implements [Lookup].
func (r *Replica[T]) Ready() error { return r.proof.ready(r.typ) }

// At is the place in the store's history up to which the copy is complete;
// zero before the first sync.
func (r *Replica[T]) At() Cursor { return r.proof.cursor() }

// WaitSynced waits for the first sync.
func (r *Replica[T]) WaitSynced(ctx context.Context) error {
	select {
	case <-r.synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: the records of %s were not copied in time: %w", ErrUnavailable, r.typ, ctx.Err())
	}
}

// Run keeps the copy fresh until ctx ends, and returns ctx's error. When the
// watch breaks it resumes; when it cannot resume it copies all anew, and
// until that is done the copy does not answer by itself.
func (r *Replica[T]) Run(ctx context.Context) error {
	var at Cursor
	return follow(ctx, r.src, r.typ, r.opts, func() (Cursor, error) { return at, nil },
		func() { at = Cursor{}; r.proof.asOf.Store(0) },
		func(stream func() (Event, error)) error { return r.apply(&at, stream) })
}

// apply consumes one stream.
func (r *Replica[T]) apply(at *Cursor, next func() (Event, error)) error {
	var building *table[T] // a first sync in the making
	if *at == (Cursor{}) {
		building = newTable[T]()
	}
	for {
		ev, err := next()
		if err != nil {
			return err
		}
		switch ev.Kind {
		case Changed:
			var s *slot[T]
			if !ev.Record.Deleted() {
				s = decodeSlot(ev.Record, r.decode)
				if s.err != nil {
					r.opts.report(s.err)
				}
			}
			if building != nil {
				building.set(ev.Record.ID, s)
				continue
			}
			old := r.table.Load().set(ev.Record.ID, s)
			*at = ev.Cursor
			r.proof.version.Store(at.Version)
			if old != nil || s != nil {
				r.subs.tell(Change[T]{ID: ev.Record.ID, Old: old.entry(), New: s.entry()})
			}
		case Synced:
			if *at = ev.Cursor; building == nil {
				r.proof.set(*at, ev.AsOf)
				continue
			}
			before := r.table.Swap(building)
			r.proof.set(*at, ev.AsOf)
			r.once.Do(func() { close(r.synced) })
			r.tellDifference(before, building)
			building = nil
		case Progress:
			*at = ev.Cursor
			r.proof.set(*at, ev.AsOf)
		}
	}
}

func (r *Replica[T]) tellDifference(before, after *table[T]) {
	before.all(func(old *slot[T]) bool {
		if after.get(old.ID) == nil {
			r.subs.tell(Change[T]{ID: old.ID, Old: old.entry()})
		}
		return true
	})
	after.all(func(s *slot[T]) bool {
		if old := before.get(s.ID); old == nil || old.Version != s.Version || !old.ModifiedAt.Equal(s.ModifiedAt) {
			r.subs.tell(Change[T]{ID: s.ID, Old: old.entry(), New: s.entry()})
		}
		return true
	})
}

func (o ReplicaOptions) report(err error) {
	if o.OnError != nil {
		o.OnError(err)
	}
}

// subscribers are the functions to tell of changes. The list is replaced, not
// changed, so that telling needs no lock.
type subscribers[T any] struct {
	mu   sync.Mutex
	list atomic.Pointer[[]*func(Change[T])]
}

func (s *subscribers[T]) add(f func(Change[T])) (cancel func()) {
	me := &f
	s.edit(func(list []*func(Change[T])) []*func(Change[T]) { return append(list, me) })
	return func() {
		s.edit(func(list []*func(Change[T])) []*func(Change[T]) {
			kept := list[:0]
			for _, g := range list {
				if g != me {
					kept = append(kept, g)
				}
			}
			return kept
		})
	}
}

func (s *subscribers[T]) edit(f func([]*func(Change[T])) []*func(Change[T])) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*func(Change[T])
	if old := s.list.Load(); old != nil {
		list = append(list, *old...)
	}
	list = f(list)
	s.list.Store(&list)
}

func (s *subscribers[T]) any() bool {
	list := s.list.Load()
	return list != nil && len(*list) > 0
}

func (s *subscribers[T]) tell(c Change[T]) {
	if list := s.list.Load(); list != nil {
		for _, f := range *list {
			(*f)(c)
		}
	}
}
