package engine

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"postern/internal/record"
)

// Options of an engine.
type Options struct {
	// Opaque says that a layer above has checked the records and sealed what
	// is in them, so that Data is not JSON.
	Opaque bool
}

// Store is a record.Store over a Backend.
type Store struct {
	b      Backend
	opts   Options
	bell   bell
	leases leases

	close  sync.Once
	done   chan struct{}
	sweeps sync.WaitGroup
}

var _ record.Store = (*Store)(nil)

// sweepEvery is how often expired records and old deletions are looked for.
const sweepEvery = time.Second

// sweepBatch bounds how many records one sweep transaction removes, so that
// writers do not wait long.
const sweepBatch = 1000

// New begins to serve a backend, which it will close. An empty backend gets
// its first server version.
func New(b Backend, o Options) (*Store, error) {
	s := &Store{b: b, opts: o, done: make(chan struct{})}
	s.leases.held = make(map[string]record.Lease)
	var fresh bool
	if err := b.View(func(tx Tx) error {
		st, err := tx.State()
		fresh = st.Server == 0
		return err
	}); err != nil {
		return nil, err
	}
	if fresh {
		if err := b.Update(context.Background(), func(tx Tx) error {
			st, err := tx.State()
			if err != nil {
				return err
			}
			st.Server = newServer(st.Server)
			return tx.SetState(st)
		}); err != nil {
			return nil, err
		}
	}
	s.sweeps.Go(s.sweep)
	return s, nil
}

// newServer draws a server version: random, so that histories never meet, and
// below 2^53, so that it survives JSON readers that keep numbers as floats.
func newServer(old uint64) uint64 {
	for {
		var b [8]byte
		rand.Read(b[:])
		if v := binary.BigEndian.Uint64(b[:]) >> 11; v != 0 && v != old {
			return v
		}
	}
}

func (s *Store) closed() error {
	select {
	case <-s.done:
		return fmt.Errorf("%w: it was closed; the process is stopping", record.ErrUnavailable)
	default:
		return nil
	}
}

func (s *Store) view(ctx context.Context, f func(Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.closed(); err != nil {
		return err
	}
	return s.b.View(f)
}

func (s *Store) update(ctx context.Context, f func(Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.closed(); err != nil {
		return err
	}
	return s.b.Update(ctx, f)
}

// Close implements record.Store.
func (s *Store) Close() error {
	var err error
	s.close.Do(func() {
		close(s.done)
		s.sweeps.Wait()
		err = s.b.Close()
	})
	return err
}

// ServerVersion implements record.Reader.
func (s *Store) ServerVersion(ctx context.Context) (v record.Versions, err error) {
	err = s.view(ctx, func(tx Tx) error {
		st, err := tx.State()
		v = st.versions()
		return err
	})
	return v, err
}

func (st State) versions() record.Versions {
	return record.Versions{Server: st.Server, Latest: st.Latest, NewestAt: st.NewestAt}
}

// past tells whether d has gone by since t.
func past(now, t time.Time, d time.Duration) bool {
	return d != record.Forever && now.Sub(t) >= d
}

func expired(m Meta, rec *record.Record, now time.Time) bool {
	return m.Options.TTL > 0 && past(now, rec.ModifiedAt, m.Options.TTL)
}

// Get implements record.Reader.
func (s *Store) Get(ctx context.Context, typ, id string) (rec *record.Record, err error) {
	err = s.view(ctx, func(tx Tx) error {
		t, err := tx.Table(typ, false)
		if err != nil || t == nil {
			return orNotFound(err)
		}
		if rec, err = t.Get(id); err != nil {
			return err
		}
		if rec == nil || rec.Deleted() {
			return record.ErrNotFound
		}
		m, err := t.Meta()
		if err == nil && expired(m, rec, time.Now()) {
			err = record.ErrNotFound
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return rec, nil
}

func orNotFound(err error) error {
	if err == nil {
		return record.ErrNotFound
	}
	return err
}

// List implements record.Reader.
func (s *Store) List(ctx context.Context, typ string, q record.Query) (page record.Page, err error) {
	err = s.view(ctx, func(tx Tx) error {
		st, err := tx.State()
		if err != nil {
			return err
		}
		page.At = st.versions()
		t, err := tx.Table(typ, false)
		if err != nil || t == nil {
			return err
		}
		m, err := t.Meta()
		if err != nil {
			return err
		}
		now, n := time.Now(), 0
		return errors.Join(t.Ascend(false, 0, func(rec *record.Record) bool {
			if n++; n%1024 == 0 && ctx.Err() != nil {
				return false
			}
			if expired(m, rec, now) || !q.Keeps(rec) {
				return true
			}
			if page.Total >= q.Offset && (q.Limit <= 0 || len(page.Records) < q.Limit) {
				page.Records = append(page.Records, rec)
			}
			page.Total++
			return true
		}), ctx.Err())
	})
	if err != nil {
		return record.Page{}, err
	}
	return page, nil
}

// Find implements record.Reader.
func (s *Store) Find(ctx context.Context, typ, index, value string) (recs []*record.Record, err error) {
	err = s.view(ctx, func(tx Tx) error {
		t, err := tx.Table(typ, false)
		if err != nil {
			return err
		}
		var m Meta
		if t != nil {
			if m, err = t.Meta(); err != nil {
				return err
			}
		}
		if !slices.Contains(m.Options.Indexes, index) {
			return fmt.Errorf("%w: %q of %s; declare it with SetOptions", record.ErrNoIndex, index, typ)
		}
		now := time.Now()
		return t.Find(index, value, func(rec *record.Record) bool {
			if !expired(m, rec, now) {
				recs = append(recs, rec)
			}
			return true
		})
	})
	if err != nil {
		return nil, err
	}
	return recs, nil
}

// Types implements record.Reader.
func (s *Store) Types(ctx context.Context) (types []string, err error) {
	err = s.view(ctx, func(tx Tx) error {
		all, err := tx.Types()
		for _, typ := range all {
			t, err := tx.Table(typ, false)
			if err != nil {
				return err
			}
			m, err := t.Meta()
			if err != nil {
				return err
			}
			if m.Live > 0 && typ != record.KeyringType {
				types = append(types, typ)
			}
		}
		return err
	})
	return types, err
}

// Options implements record.Reader.
func (s *Store) Options(ctx context.Context, typ string) (o record.Options, err error) {
	err = s.view(ctx, func(tx Tx) error {
		t, err := tx.Table(typ, false)
		if err != nil || t == nil {
			return err
		}
		m, err := t.Meta()
		o = m.Options
		return err
	})
	return o, err
}

func (s *Store) check(rec *record.Record) error {
	if s.opts.Opaque {
		return nil // the layer above looked before it sealed
	}
	return rec.Check()
}
