// Package memory keeps records in memory: for tests, and for a single node
// whose people may sign in again after a restart. Nothing is written to disk.
package memory

import (
	"context"
	"maps"
	"slices"
	"sort"
	"sync"

	"postern/internal/record"
	"postern/internal/store/engine"
)

// New returns an empty store. Close ends its background work.
func New() record.Store { return serve(&backend{tables: make(map[string]*table)}) }

func serve(b *backend) record.Store {
	s, err := engine.New(b, engine.Options{})
	if err != nil {
		panic("memory: " + err.Error()) // a backend in memory has no way to fail
	}
	return &store{s, b}
}

type store struct {
	*engine.Store
	b *backend
}

type backend struct {
	mu     sync.RWMutex
	state  engine.State
	tables map[string]*table
}

func (b *backend) View(f func(engine.Tx) error) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return f(b)
}

func (b *backend) Update(_ context.Context, f func(engine.Tx) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return f(b)
}

func (b *backend) Close() error { return nil }

// The backend is its own transaction: the lock gives isolation, and the
// engine refuses before it changes, so there is nothing to roll back.

func (b *backend) State() (engine.State, error)   { return b.state, nil }
func (b *backend) SetState(st engine.State) error { b.state = st; return nil }
func (b *backend) Types() ([]string, error)       { return slices.Sorted(maps.Keys(b.tables)), nil }
func (b *backend) Table(typ string, create bool) (engine.Table, error) {
	t := b.tables[typ]
	if t == nil {
		if !create {
			return nil, nil
		}
		t = &table{byID: make(map[string]*record.Record), index: make(map[indexKey][]*record.Record)}
		t.living.holder, t.dead.holder = t, t
		b.tables[typ] = t
	}
	return t, nil
}

type indexKey struct{ name, value string }

type table struct {
	meta         engine.Meta
	byID         map[string]*record.Record
	living, dead order
	index        map[indexKey][]*record.Record // each in version order
}

func (t *table) Meta() (engine.Meta, error)            { return t.meta, nil }
func (t *table) SetOptions(o record.Options) error     { t.meta.Options = o; return nil }
func (t *table) SetHorizon(v uint64) error             { t.meta.Horizon = v; return nil }
func (t *table) Get(id string) (*record.Record, error) { return t.byID[id], nil }

func (t *table) Put(old, next *record.Record) error {
	t.unlink(old)
	t.byID[next.ID] = next
	t.living.trim()
	t.dead.trim()
	if next.Deleted() {
		t.dead.add(next)
		return nil
	}
	t.living.add(next)
	t.meta.Live++
	for name, value := range next.Index {
		k := indexKey{name, value}
		t.index[k] = append(t.index[k], next)
	}
	return nil
}

func (t *table) Drop(rec *record.Record) error {
	t.unlink(rec)
	delete(t.byID, rec.ID)
	t.living.trim()
	t.dead.trim()
	return nil
}

func (t *table) unlink(old *record.Record) {
	if old == nil {
		return
	}
	if old.Deleted() {
		t.dead.stale++
		return
	}
	t.living.stale++
	t.meta.Live--
	for name, value := range old.Index {
		k := indexKey{name, value}
		recs := t.index[k]
		if i := sort.Search(len(recs), func(i int) bool { return recs[i].Version >= old.Version }); i < len(recs) && recs[i] == old {
			recs = slices.Delete(recs, i, i+1)
		}
		if len(recs) == 0 {
			delete(t.index, k)
		} else {
			t.index[k] = recs
		}
	}
}

func (t *table) Ascend(dead bool, after uint64, yield func(*record.Record) bool) error {
	if dead {
		t.dead.ascend(after, yield)
	} else {
		t.living.ascend(after, yield)
	}
	return nil
}

func (t *table) Find(index, value string, yield func(*record.Record) bool) error {
	for _, rec := range t.index[indexKey{index, value}] {
		if !yield(rec) {
			break
		}
	}
	return nil
}

// order is records in version order. Versions only grow, so adding is
// appending; what was replaced stays as a stale entry, skipped when walking,
// until half of the list is stale and it is swept.
type order struct {
	holder *table
	recs   []*record.Record
	stale  int
}

func (o *order) current(rec *record.Record) bool { return o.holder.byID[rec.ID] == rec }

func (o *order) add(rec *record.Record) {
	if o.stale > 32 && o.stale > len(o.recs)/2 {
		kept := make([]*record.Record, 0, len(o.recs)-o.stale+1)
		for _, r := range o.recs {
			if o.current(r) {
				kept = append(kept, r)
			}
		}
		o.recs, o.stale = kept, 0
	}
	o.recs = append(o.recs, rec)
}

// trim drops stale entries at the old end, where capacity and expiry remove,
// so that they need not walk over what they removed before.
func (o *order) trim() {
	for len(o.recs) > 0 && !o.current(o.recs[0]) {
		o.recs[0] = nil
		o.recs = o.recs[1:]
		o.stale--
	}
}

func (o *order) ascend(after uint64, yield func(*record.Record) bool) {
	from := sort.Search(len(o.recs), func(i int) bool { return o.recs[i].Version > after })
	for _, rec := range o.recs[from:] {
		if o.current(rec) && !yield(rec) {
			return
		}
	}
}
