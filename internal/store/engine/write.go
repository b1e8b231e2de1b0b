package engine

import (
	"context"
	"fmt"
	"time"

	"postern/internal/record"
)

// writer is one write transaction: the next version, the time, the tables it
// touched.
type writer struct {
	tx     Tx
	state  State
	now    time.Time
	tables map[string]*target
}

// target is a table being written, with its options read once.
type target struct {
	Table
	typ  string
	opts record.Options
}

// write runs one atomic change. plan looks and refuses, apply changes; the
// two are apart since what was changed in a shared transaction cannot be
// undone alone.
func (s *Store) write(ctx context.Context, by record.Actor, plan func(*writer) error, apply func(*writer) error) error {
	if err := by.Check(); err != nil {
		return err
	}
	var w *writer
	err := s.update(ctx, func(tx Tx) error {
		w = &writer{tx: tx, now: time.Now().UTC().Round(0), tables: make(map[string]*target)}
		var err error
		if w.state, err = tx.State(); err != nil {
			return err
		}
		before := w.state
		if by.Lease != nil && !s.leases.holds(*by.Lease) {
			return fmt.Errorf("%w: %q; the write is refused", record.ErrLeaseLost, by.Lease.Name)
		}
		if err := plan(w); err != nil {
			return err
		}
		if err := apply(w); err != nil {
			return err
		}
		for _, t := range w.tables {
			if err := w.evict(t); err != nil {
				return err
			}
		}
		if w.state != before {
			return tx.SetState(w.state)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for typ := range w.tables {
		s.bell.ring(typ)
	}
	return nil
}

func (w *writer) table(typ string) (*target, error) {
	if t := w.tables[typ]; t != nil {
		return t, nil
	}
	tab, err := w.tx.Table(typ, true)
	if err != nil {
		return nil, err
	}
	m, err := tab.Meta()
	if err != nil {
		return nil, err
	}
	t := &target{Table: tab, typ: typ, opts: m.Options}
	w.tables[typ] = t
	return t, nil
}

func (w *writer) next() uint64 {
	w.state.Latest++
	w.state.NewestAt = w.now
	return w.state.Latest
}

// standing is what an id is at the moment of a write.
type standing int

const (
	absent  standing = iota // free to be written
	living                  // there, and not expired
	expires                 // there, but past its TTL: as good as deleted
	dead                    // a deletion that still forbids the id
)

func (w *writer) standing(t *target, rec *record.Record) standing {
	switch {
	case rec == nil:
		return absent
	case rec.Deleted():
		if t.opts.Tombstone > 0 && !past(w.now, rec.DeletedAt, t.opts.Tombstone) {
			return dead
		}
		return absent
	case t.opts.TTL > 0 && past(w.now, rec.ModifiedAt, t.opts.TTL):
		if t.opts.Tombstone > 0 {
			return dead
		}
		return expires
	}
	return living
}

func errDeleted(typ string) error {
	return fmt.Errorf("%w: an id of %s; make a new one under a new id", record.ErrDeleted, typ)
}

// kill writes a deletion of id in place of old, which may be nil.
func (w *writer) kill(t *target, old *record.Record, id string) error {
	return t.Put(old, &record.Record{Type: t.typ, ID: id, Version: w.next(), ModifiedAt: w.now, DeletedAt: w.now})
}

// remove deletes id if there is something to delete or to forbid.
func (w *writer) remove(t *target, id string) error {
	old, err := t.Get(id)
	if err != nil {
		return err
	}
	if old != nil && !old.Deleted() {
		return w.kill(t, old, id)
	}
	if t.opts.Tombstone > 0 && w.standing(t, old) != dead {
		return w.kill(t, old, id)
	}
	return nil
}

// evict enforces the capacity.
func (w *writer) evict(t *target) error {
	if t.opts.Capacity == 0 {
		return nil
	}
	m, err := t.Meta()
	if err != nil {
		return err
	}
	_, err = w.killOldest(t, m.Live-t.opts.Capacity, nil)
	return err
}

// killOldest deletes up to n living records, oldest first, while cond (if
// given) holds; it returns how many.
func (w *writer) killOldest(t *target, n int, cond func(*record.Record) bool) (int, error) {
	if n <= 0 {
		return 0, nil
	}
	var victims []*record.Record
	if err := t.Ascend(false, 0, func(rec *record.Record) bool {
		if cond != nil && !cond(rec) {
			return false
		}
		victims = append(victims, rec)
		return len(victims) < n
	}); err != nil {
		return 0, err
	}
	for _, rec := range victims {
		if err := w.kill(t, rec, rec.ID); err != nil {
			return 0, err
		}
	}
	return len(victims), nil
}

// Put implements record.Writer.
func (s *Store) Put(ctx context.Context, by record.Actor, recs ...*record.Record) ([]*record.Record, error) {
	if len(recs) > record.MaxBatch {
		return nil, fmt.Errorf("%w: %d records in one batch; give at most %d", record.ErrInvalid, len(recs), record.MaxBatch)
	}
	for _, rec := range recs {
		if err := s.check(rec); err != nil {
			return nil, err
		}
	}
	if len(recs) == 0 {
		return nil, by.Check()
	}
	out := make([]*record.Record, len(recs))
	type key struct{ typ, id string }
	err := s.write(ctx, by, func(w *writer) error {
		var gone map[key]bool // deleted earlier in this batch
		for _, rec := range recs {
			t, err := w.table(rec.Type)
			if err != nil {
				return err
			}
			k := key{rec.Type, rec.ID}
			if rec.Deleted() {
				if t.opts.Tombstone > 0 {
					if gone == nil {
						gone = make(map[key]bool)
					}
					gone[k] = true
				}
				continue
			}
			old, err := t.Get(rec.ID)
			if err != nil {
				return err
			}
			if gone[k] || w.standing(t, old) == dead {
				return errDeleted(rec.Type)
			}
		}
		return nil
	}, func(w *writer) error {
		for i, rec := range recs {
			t := w.tables[rec.Type]
			if rec.Deleted() {
				if err := w.remove(t, rec.ID); err != nil {
					return err
				}
				out[i] = &record.Record{Type: rec.Type, ID: rec.ID, Version: w.state.Latest, ModifiedAt: w.now, DeletedAt: w.now}
				continue
			}
			old, err := t.Get(rec.ID)
			if err != nil {
				return err
			}
			next := rec.Clone()
			next.Version, next.ModifiedAt = w.next(), w.now
			if err := t.Put(old, next); err != nil {
				return err
			}
			out[i] = next
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Update implements record.Writer.
func (s *Store) Update(ctx context.Context, by record.Actor, rec *record.Record) (*record.Record, error) {
	if err := s.check(rec); err != nil {
		return nil, err
	}
	if rec.Deleted() {
		return nil, fmt.Errorf("%w: an update cannot delete; use Delete", record.ErrInvalid)
	}
	var t *target
	var old, next *record.Record
	err := s.write(ctx, by, func(w *writer) (err error) {
		if t, err = w.table(rec.Type); err != nil {
			return err
		}
		if old, err = t.Get(rec.ID); err != nil {
			return err
		}
		switch st := w.standing(t, old); {
		case st == dead:
			return errDeleted(rec.Type)
		case st == living && old.Version != rec.Version:
			return fmt.Errorf("%w: a %s is at version %d, not %d; read it again", record.ErrConflict, rec.Type, old.Version, rec.Version)
		case st != living && rec.Version != 0:
			return record.ErrNotFound
		}
		return nil
	}, func(w *writer) error {
		next = rec.Clone()
		next.Version, next.ModifiedAt = w.next(), w.now
		return t.Put(old, next)
	})
	if err != nil {
		return nil, err
	}
	return next, nil
}

// Delete implements record.Writer.
func (s *Store) Delete(ctx context.Context, by record.Actor, typ string, ids ...string) error {
	if len(ids) > record.MaxBatch {
		return fmt.Errorf("%w: %d records in one batch; give at most %d", record.ErrInvalid, len(ids), record.MaxBatch)
	}
	for _, id := range ids {
		if err := s.check(&record.Record{Type: typ, ID: id, DeletedAt: time.Unix(1, 0)}); err != nil {
			return err
		}
	}
	return s.write(ctx, by, func(w *writer) error {
		_, err := w.table(typ)
		return err
	}, func(w *writer) error {
		for _, id := range ids {
			if err := w.remove(w.tables[typ], id); err != nil {
				return err
			}
		}
		return nil
	})
}

// SetOptions implements record.Writer.
func (s *Store) SetOptions(ctx context.Context, typ string, o record.Options) error {
	if err := o.Check(); err != nil {
		return err
	}
	if err := s.check(&record.Record{Type: typ, ID: "-", DeletedAt: time.Unix(1, 0)}); err != nil {
		return err
	}
	return s.write(ctx, record.System("options"), func(w *writer) error {
		_, err := w.table(typ)
		return err
	}, func(w *writer) error {
		t := w.tables[typ]
		if t.opts.Equal(o) {
			return nil
		}
		t.opts = o
		return t.SetOptions(o)
	})
}

// NewServerVersion implements record.Admin.
func (s *Store) NewServerVersion(ctx context.Context, by record.Actor) (record.Versions, error) {
	return s.restart(ctx, by, func(o record.Options) bool { return o.EndsWithServer })
}

// Clear implements record.Admin.
func (s *Store) Clear(ctx context.Context, by record.Actor) (record.Versions, error) {
	return s.restart(ctx, by, func(record.Options) bool { return true })
}

// restart begins a new server version and empties the tables that ends picks.
func (s *Store) restart(ctx context.Context, by record.Actor, ends func(record.Options) bool) (v record.Versions, err error) {
	err = s.write(ctx, by, func(*writer) error { return nil }, func(w *writer) error {
		types, err := w.tx.Types()
		if err != nil {
			return err
		}
		for _, typ := range types {
			if typ == record.KeyringType {
				continue
			}
			t, err := w.table(typ)
			if err != nil {
				return err
			}
			if !ends(t.opts) {
				continue
			}
			var all []*record.Record
			if err := t.Ascend(false, 0, func(rec *record.Record) bool {
				all = append(all, rec)
				return true
			}); err != nil {
				return err
			}
			for _, rec := range all {
				// No cursor outlives this moment, so only ids that must stay
				// forbidden need a trace.
				if t.opts.Tombstone > 0 {
					err = w.kill(t, rec, rec.ID)
				} else {
					err = t.Drop(rec)
				}
				if err != nil {
					return err
				}
			}
		}
		w.state.Server = newServer(w.state.Server)
		v = w.state.versions()
		return nil
	})
	if err != nil {
		return record.Versions{}, err
	}
	s.leases.void()
	s.bell.ringAll()
	return v, nil
}
