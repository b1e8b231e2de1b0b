package engine

import (
	"context"
	"time"

	"postern/internal/record"
)

// sweep removes expired records and forgets old deletions until the store is
// closed. Failures (a full disk) are left to the next round: reads refuse
// expired records by themselves.
func (s *Store) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		for {
			due, err := s.due()
			if err != nil || len(due) == 0 {
				break
			}
			if err := s.sweepOnce(due); err != nil || s.closed() != nil {
				break
			}
		}
	}
}

// due lists the types that have something to sweep.
func (s *Store) due() (types []string, err error) {
	err = s.b.View(func(tx Tx) error {
		all, err := tx.Types()
		if err != nil {
			return err
		}
		now := time.Now()
		for _, typ := range all {
			t, err := tx.Table(typ, false)
			if err != nil {
				return err
			}
			m, err := t.Meta()
			if err != nil {
				return err
			}
			found := false
			if m.Options.TTL > 0 {
				err = t.Ascend(false, 0, func(rec *record.Record) bool {
					found = expired(m, rec, now)
					return false
				})
			}
			if err == nil && !found {
				err = t.Ascend(true, 0, func(rec *record.Record) bool {
					found = past(now, rec.DeletedAt, m.Options.Retention())
					return false
				})
			}
			if err != nil {
				return err
			}
			if found {
				types = append(types, typ)
			}
		}
		return nil
	})
	return types, err
}

func (s *Store) sweepOnce(types []string) error {
	return s.write(context.Background(), record.System("expiry"), func(*writer) error { return nil }, func(w *writer) error {
		for _, typ := range types {
			t, err := w.table(typ)
			if err != nil {
				return err
			}
			if t.opts.TTL > 0 {
				if _, err := w.killOldest(t, sweepBatch, func(rec *record.Record) bool {
					return past(w.now, rec.ModifiedAt, t.opts.TTL)
				}); err != nil {
					return err
				}
			}
			if err := w.forget(t, t.opts.Retention()); err != nil {
				return err
			}
		}
		return nil
	})
}

// forget drops deletions that are older than keep and moves the horizon.
func (w *writer) forget(t *target, keep time.Duration) error {
	var old []*record.Record
	if err := t.Ascend(true, 0, func(rec *record.Record) bool {
		if !past(w.now, rec.DeletedAt, keep) {
			return false
		}
		old = append(old, rec)
		return len(old) < sweepBatch
	}); err != nil || len(old) == 0 {
		return err
	}
	for _, rec := range old {
		if err := t.Drop(rec); err != nil {
			return err
		}
	}
	return t.SetHorizon(old[len(old)-1].Version)
}
