package engine

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"postern/internal/record"
)

// leases live in memory: an embedded store has one process, and when that
// ends nobody holds anything. Only the fence must survive, in State.
type leases struct {
	mu   sync.Mutex
	held map[string]record.Lease
}

func (ls *leases) holds(l record.Lease) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	h, ok := ls.held[l.Name]
	return ok && l.ID != "" && h.ID == l.ID && time.Now().Before(h.Expires)
}

func (ls *leases) drop(l record.Lease) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if h, ok := ls.held[l.Name]; ok && l.ID != "" && h.ID == l.ID {
		delete(ls.held, l.Name)
	}
}

func (ls *leases) void() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	clear(ls.held)
}

// free forgets leases that ran out and tells whether name can be taken.
func (ls *leases) free(name string) bool {
	now := time.Now()
	for k, h := range ls.held {
		if !now.Before(h.Expires) {
			delete(ls.held, k)
		}
	}
	_, held := ls.held[name]
	return !held
}

func checkLease(name string, ttl time.Duration) error {
	if name == "" || len(name) > record.MaxIDBytes || ttl <= 0 {
		return fmt.Errorf("%w: a lease needs a name of at most %d bytes and a time to live above 0", record.ErrInvalid, record.MaxIDBytes)
	}
	return nil
}

// Acquire implements record.Leaser.
func (s *Store) Acquire(ctx context.Context, name string, ttl time.Duration) (record.Lease, error) {
	if err := checkLease(name, ttl); err != nil {
		return record.Lease{}, err
	}
	l := record.Lease{Name: name, ID: rand.Text()}
	err := s.update(ctx, func(tx Tx) error {
		st, err := tx.State()
		if err != nil {
			return err
		}
		s.leases.mu.Lock()
		defer s.leases.mu.Unlock()
		if !s.leases.free(name) {
			return fmt.Errorf("%w: %q", record.ErrLeaseHeld, name)
		}
		st.Fence++
		l.Fence, l.Expires = st.Fence, time.Now().Add(ttl)
		s.leases.held[name] = l // before the commit, so that no other can slip in
		return tx.SetState(st)
	})
	if err != nil {
		s.leases.drop(l)
		return record.Lease{}, err
	}
	return l, nil
}

// Renew implements record.Leaser.
func (s *Store) Renew(ctx context.Context, l record.Lease, ttl time.Duration) (record.Lease, error) {
	if err := checkLease(l.Name, ttl); err != nil {
		return record.Lease{}, err
	}
	if err := ctx.Err(); err != nil {
		return record.Lease{}, err
	}
	if err := s.closed(); err != nil {
		return record.Lease{}, err
	}
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	h, ok := s.leases.held[l.Name]
	if !ok || l.ID == "" || h.ID != l.ID || !time.Now().Before(h.Expires) {
		return record.Lease{}, fmt.Errorf("%w: %q; stop the work it guards", record.ErrLeaseLost, l.Name)
	}
	h.Expires = time.Now().Add(ttl)
	s.leases.held[l.Name] = h
	return h, nil
}

// Release implements record.Leaser.
func (s *Store) Release(ctx context.Context, l record.Lease) error {
	if err := s.closed(); err != nil {
		return err
	}
	s.leases.drop(l)
	return nil
}
