package authn

import (
	"context"
	"errors"
	"sync"
	"time"

	"postern/internal/record"
	"postern/internal/session"
)

// touchInterval is how often accessed_at is written, in batches, and
// maxTouched how many ids a batch may hold (wire-contract.md §3.1).
const (
	touchInterval = 10 * time.Second
	maxTouched    = 100_000
)

type touchKey struct{ typ, id string }

type touched struct {
	mu  sync.Mutex
	ids map[touchKey]time.Time
}

func newTouched() *touched { return &touched{ids: map[touchKey]time.Time{}} }

// Touch notes that a caller has just been here. It does not wait.
func (s *Service) Touch(c *session.Caller) {
	if c.Anonymous() || c.ID == "" {
		return
	}
	k := touchKey{session.SessionType, c.ID}
	if c.Session == nil {
		k.typ = session.ServiceAccountType
	}
	s.touched.mu.Lock()
	defer s.touched.mu.Unlock()
	if _, has := s.touched.ids[k]; !has && len(s.touched.ids) >= maxTouched {
		return
	}
	s.touched.ids[k] = s.now()
}

var errFreshEnough = errors.New("it was written a moment ago")

// flushTouched writes accessed_at of all that were seen.
func (s *Service) flushTouched(ctx context.Context) {
	s.touched.mu.Lock()
	ids := s.touched.ids
	s.touched.ids = map[touchKey]time.Time{}
	s.touched.mu.Unlock()
	for k, at := range ids {
		_, err := record.Modify(ctx, s.store, record.System("accessed"), k.typ, k.id, func(rec *record.Record) error {
			var was time.Time
			if k.typ == session.SessionType {
				cur, err := session.DecodeSession(rec)
				if err != nil {
					return err
				}
				was = cur.AccessedAt
			} else {
				cur, err := session.DecodeServiceAccount(rec)
				if err != nil {
					return err
				}
				was = cur.AccessedAt
			}
			if at.Sub(was) < touchInterval/2 {
				return errFreshEnough // another node wrote it
			}
			data, err := session.PatchData(rec.Data, map[string]any{"accessedAt": at.UTC()})
			rec.Data = data
			return err
		})
		if err != nil && !gone(err) && !errors.Is(err, errFreshEnough) {
			s.log.WarnContext(ctx, "accessed_at could not be written", "error", err)
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// runTouch writes batches until ctx ends, and a last one then.
func (s *Service) runTouch(ctx context.Context) {
	t := time.NewTicker(touchInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.flushTouched(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			s.flushTouched(last)
			cancel()
			return
		}
	}
}
