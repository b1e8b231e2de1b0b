// Package handover moves a record store from one process to its successor on
// the same machine, for the time of an upgrade:
//
//   - [Movable] is a store whose place can change: calls wait while it moves.
//   - [Handler] serves a store over a private connection.
//   - [Remote] is the store at the other end of one.
//
// So the file backend, which one process at a time may hold, goes to the new
// process at once, and the old one, which still has streams to end, reads and
// writes through it: a revocation reaches both.
package handover

import (
	"context"
	"fmt"
	"sync"
	"time"

	"postern/internal/record"
)

// Patience is how long a call waits for a store that moves.
const Patience = 15 * time.Second

// Movable is a record.Store in front of another that can be exchanged. It
// passes every call to the store of the moment.
type Movable struct {
	mu     sync.Mutex
	inner  record.Store
	paused chan struct{} // closed by Resume; nil while calls pass
	calls  int
	idle   chan struct{} // closed when calls is 0; nil unless Pause waits
	closed bool
}

var _ record.Store = (*Movable)(nil)

// NewMovable begins with a store, which it will close.
func NewMovable(inner record.Store) *Movable { return &Movable{inner: inner} }

// Pause holds back new calls and waits until those under way have ended. On
// error nothing is held back. It gives the store, for the caller to move.
func (m *Movable) Pause(ctx context.Context) (record.Store, error) {
	m.mu.Lock()
	if m.closed || m.paused != nil {
		m.mu.Unlock()
		return nil, fmt.Errorf("%w: it is closed or moves already", record.ErrUnavailable)
	}
	m.paused = make(chan struct{})
	idle := make(chan struct{})
	if m.calls == 0 {
		close(idle)
	} else {
		m.idle = idle
	}
	inner := m.inner
	m.mu.Unlock()
	select {
	case <-idle:
		return inner, nil
	case <-ctx.Done():
		m.Resume(inner)
		return nil, fmt.Errorf("%w: a call does not end: %w", record.ErrUnavailable, context.Cause(ctx))
	}
}

// Resume lets calls pass, to next. Watches of the store before must have been
// ended by closing it.
func (m *Movable) Resume(next record.Store) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inner, m.idle = next, nil
	if m.paused != nil {
		close(m.paused)
		m.paused = nil
	}
	if m.closed {
		next.Close()
	}
}

// enter gives the store of the moment; leave must follow.
func (m *Movable) enter(ctx context.Context) (record.Store, error) {
	var patience <-chan time.Time
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil, fmt.Errorf("%w: it was closed; the process is stopping", record.ErrUnavailable)
		}
		wait := m.paused
		if wait == nil {
			m.calls++
			inner := m.inner
			m.mu.Unlock()
			return inner, nil
		}
		m.mu.Unlock()
		if patience == nil {
			t := time.NewTimer(Patience)
			defer t.Stop()
			patience = t.C
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-patience:
			return nil, fmt.Errorf("%w: it moves to another process and does not arrive; try again", record.ErrUnavailable)
		}
	}
}

func (m *Movable) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.calls--; m.calls == 0 && m.idle != nil {
		close(m.idle)
		m.idle = nil
	}
}

func through[T any](ctx context.Context, m *Movable, f func(record.Store) (T, error)) (T, error) {
	inner, err := m.enter(ctx)
	if err != nil {
		var zero T
		return zero, err
	}
	defer m.leave()
	return f(inner)
}

func do(ctx context.Context, m *Movable, f func(record.Store) error) error {
	_, err := through(ctx, m, func(s record.Store) (struct{}, error) { return struct{}{}, f(s) })
	return err
}

// Get implements record.Reader.
func (m *Movable) Get(ctx context.Context, typ, id string) (*record.Record, error) {
	return through(ctx, m, func(s record.Store) (*record.Record, error) { return s.Get(ctx, typ, id) })
}

// List implements record.Reader.
func (m *Movable) List(ctx context.Context, typ string, q record.Query) (record.Page, error) {
	return through(ctx, m, func(s record.Store) (record.Page, error) { return s.List(ctx, typ, q) })
}

// Find implements record.Reader.
func (m *Movable) Find(ctx context.Context, typ, index, value string) ([]*record.Record, error) {
	return through(ctx, m, func(s record.Store) ([]*record.Record, error) { return s.Find(ctx, typ, index, value) })
}

// Types implements record.Reader.
func (m *Movable) Types(ctx context.Context) ([]string, error) {
	return through(ctx, m, func(s record.Store) ([]string, error) { return s.Types(ctx) })
}

// Options implements record.Reader.
func (m *Movable) Options(ctx context.Context, typ string) (record.Options, error) {
	return through(ctx, m, func(s record.Store) (record.Options, error) { return s.Options(ctx, typ) })
}

// ServerVersion implements record.Reader.
func (m *Movable) ServerVersion(ctx context.Context) (record.Versions, error) {
	return through(ctx, m, func(s record.Store) (record.Versions, error) { return s.ServerVersion(ctx) })
}

// Put implements record.Writer.
func (m *Movable) Put(ctx context.Context, by record.Actor, recs ...*record.Record) ([]*record.Record, error) {
	return through(ctx, m, func(s record.Store) ([]*record.Record, error) { return s.Put(ctx, by, recs...) })
}

// Update implements record.Writer.
func (m *Movable) Update(ctx context.Context, by record.Actor, rec *record.Record) (*record.Record, error) {
	return through(ctx, m, func(s record.Store) (*record.Record, error) { return s.Update(ctx, by, rec) })
}

// Delete implements record.Writer.
func (m *Movable) Delete(ctx context.Context, by record.Actor, typ string, ids ...string) error {
	return do(ctx, m, func(s record.Store) error { return s.Delete(ctx, by, typ, ids...) })
}

// SetOptions implements record.Writer.
func (m *Movable) SetOptions(ctx context.Context, typ string, o record.Options) error {
	return do(ctx, m, func(s record.Store) error { return s.SetOptions(ctx, typ, o) })
}

// Watch implements record.Watcher. The stream ends when the store moves; it
// can be resumed from its cursor.
func (m *Movable) Watch(ctx context.Context, typ string, after record.Cursor) (record.Stream, error) {
	return through(ctx, m, func(s record.Store) (record.Stream, error) { return s.Watch(ctx, typ, after) })
}

// Acquire implements record.Leaser. Leases do not move with the store.
func (m *Movable) Acquire(ctx context.Context, name string, ttl time.Duration) (record.Lease, error) {
	return through(ctx, m, func(s record.Store) (record.Lease, error) { return s.Acquire(ctx, name, ttl) })
}

// Renew implements record.Leaser.
func (m *Movable) Renew(ctx context.Context, l record.Lease, ttl time.Duration) (record.Lease, error) {
	return through(ctx, m, func(s record.Store) (record.Lease, error) { return s.Renew(ctx, l, ttl) })
}

// Release implements record.Leaser.
func (m *Movable) Release(ctx context.Context, l record.Lease) error {
	return do(ctx, m, func(s record.Store) error { return s.Release(ctx, l) })
}

// NewServerVersion implements record.Admin.
func (m *Movable) NewServerVersion(ctx context.Context, by record.Actor) (record.Versions, error) {
	return through(ctx, m, func(s record.Store) (record.Versions, error) { return s.NewServerVersion(ctx, by) })
}

// Clear implements record.Admin.
func (m *Movable) Clear(ctx context.Context, by record.Actor) (record.Versions, error) {
	return through(ctx, m, func(s record.Store) (record.Versions, error) { return s.Clear(ctx, by) })
}

// Close implements record.Store. A store that moves is closed where it
// arrives.
func (m *Movable) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	if m.paused != nil {
		return nil
	}
	return m.inner.Close()
}
