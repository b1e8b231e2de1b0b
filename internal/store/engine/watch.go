package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"postern/internal/record"
)

// bell wakes streams. A stream takes the channel of its type, reads, and then
// waits on the channel: what is written after the read closes it.
type bell struct {
	mu    sync.Mutex
	wires map[string]chan struct{}
}

func (b *bell) wait(typ string) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := b.wires[typ]
	if ch == nil {
		if b.wires == nil {
			b.wires = make(map[string]chan struct{})
		}
		ch = make(chan struct{})
		b.wires[typ] = ch
	}
	return ch
}

func (b *bell) ring(typ string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range []string{typ, ""} {
		if ch := b.wires[k]; ch != nil {
			close(ch)
			delete(b.wires, k)
		}
	}
}

func (b *bell) ringAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ch := range b.wires {
		close(ch)
	}
	clear(b.wires)
}

// streamBatch is how many records a stream reads in one transaction. Short
// reads keep an embedded database from holding on to old pages.
const streamBatch = 256

// stream walks the version order. It needs no queue of its own, so a slow
// consumer costs nothing and is never cut off, until what it has not seen
// yet is forgotten.
type stream struct {
	s      *Store
	typ    string
	server uint64
	after  uint64 // all up to here was queued
	head   uint64 // the first sync ends here
	base   uint64 // deletions up to here do not concern this stream
	first  bool   // this is a first sync, not a resumption
	synced bool
	begun  time.Time
	lately time.Time // when the last proof of freshness was queued
	queue  []record.Event
	err    error

	close sync.Once
	done  chan struct{}
}

// Watch implements record.Watcher.
func (s *Store) Watch(ctx context.Context, typ string, after record.Cursor) (record.Stream, error) {
	begun := time.Now()
	v, err := s.ServerVersion(ctx)
	if err != nil {
		return nil, err
	}
	st := &stream{begun: begun, s: s, typ: typ, server: v.Server, head: v.Latest, done: make(chan struct{})}
	if after == (record.Cursor{}) {
		st.first, st.base = true, v.Latest
		return st, nil
	}
	if after.Server != v.Server {
		return nil, record.ErrWrongServer
	}
	if after.Version > v.Latest {
		return nil, fmt.Errorf("%w: version %d was never written", record.ErrHistoryGone, after.Version)
	}
	st.after, st.base = after.Version, after.Version
	horizon := uint64(0)
	if err := s.view(ctx, func(tx Tx) (err error) {
		horizon, err = st.horizon(tx)
		return err
	}); err != nil {
		return nil, err
	}
	if horizon > after.Version {
		return nil, record.ErrHistoryGone
	}
	return st, nil
}

// tables are those that the stream follows.
func (st *stream) tables(tx Tx) (tabs []Table, err error) {
	types := []string{st.typ}
	if st.typ == "" {
		if types, err = tx.Types(); err != nil {
			return nil, err
		}
	}
	for _, typ := range types {
		if st.typ == "" && typ == record.KeyringType {
			continue
		}
		t, err := tx.Table(typ, false)
		if err != nil {
			return nil, err
		}
		if t != nil {
			tabs = append(tabs, t)
		}
	}
	return tabs, nil
}

func (st *stream) horizon(tx Tx) (h uint64, err error) {
	tabs, err := st.tables(tx)
	for _, t := range tabs {
		m, err := t.Meta()
		if err != nil {
			return 0, err
		}
		h = max(h, m.Horizon)
	}
	return h, err
}

// read queues the next events.
func (st *stream) read() error {
	asOf := time.Now()
	return st.s.b.View(func(tx Tx) error {
		state, err := tx.State()
		if err != nil {
			return err
		}
		if state.Server != st.server {
			return record.ErrWrongServer
		}
		horizon, err := st.horizon(tx)
		if err != nil {
			return err
		}
		if horizon > max(st.after, st.base) {
			return record.ErrHistoryGone
		}
		tabs, err := st.tables(tx)
		if err != nil {
			return err
		}
		var recs []*record.Record
		for _, t := range tabs {
			for _, dead := range []bool{false, true} {
				from, n := st.after, 0
				if dead {
					from = max(from, st.base)
				}
				if err := t.Ascend(dead, from, func(rec *record.Record) bool {
					recs = append(recs, rec)
					n++
					return n < streamBatch
				}); err != nil {
					return err
				}
			}
		}
		slices.SortFunc(recs, func(a, b *record.Record) int { return cmp.Compare(a.Version, b.Version) })
		// Each source gave its first streamBatch, so the first streamBatch of
		// the merged list are complete, and the rest may have gaps.
		all := len(recs) < streamBatch
		if !all {
			recs = recs[:streamBatch]
		}
		for _, rec := range recs {
			if !st.synced && rec.Version > st.head {
				// Newer records follow, so the proof is as old as the watch.
				st.sync(st.head, st.begun)
			}
			st.after = rec.Version
			st.queue = append(st.queue, record.Event{Kind: record.Changed, Record: rec, Cursor: st.cursor()})
		}
		if all {
			st.after = state.Latest
			switch {
			case !st.synced:
				st.sync(state.Latest, asOf)
				st.lately = asOf
			case len(recs) > 0 || asOf.Sub(st.lately) >= beat:
				st.queue = append(st.queue, record.Event{Kind: record.Progress, Cursor: st.cursor(), AsOf: asOf})
				st.lately = asOf
			}
		}
		return nil
	})
}

// sync queues the Synced mark.
func (st *stream) sync(version uint64, asOf time.Time) {
	st.synced, st.after = true, max(st.after, version)
	st.queue = append(st.queue, record.Event{Kind: record.Synced, Cursor: st.cursor(), AsOf: asOf})
}

func (st *stream) cursor() record.Cursor {
	if st.first && !st.synced {
		return record.Cursor{}
	}
	return record.Cursor{Server: st.server, Version: st.after}
}

// beat is how long a stream is silent before it proves its freshness; shorter
// than the contract's Heartbeat to leave room for scheduling.
const beat = record.Heartbeat / 2

// Next implements record.Stream.
func (st *stream) Next(ctx context.Context) (record.Event, error) {
	for {
		if err := ctx.Err(); err != nil {
			return record.Event{}, err
		}
		select {
		case <-st.done:
			return record.Event{}, fmt.Errorf("%w: the watch was closed", record.ErrUnavailable)
		default:
		}
		if st.err != nil {
			return record.Event{}, st.err
		}
		if len(st.queue) > 0 {
			ev := st.queue[0]
			st.queue = st.queue[1:]
			return ev, nil
		}
		wake := st.s.bell.wait(st.typ)
		if st.err = st.s.closed(); st.err != nil {
			continue
		}
		before := st.after
		if st.err = st.read(); st.err != nil || len(st.queue) > 0 || st.after != before {
			continue
		}
		timer := time.NewTimer(beat)
		select {
		case <-wake:
		case <-timer.C:
		case <-ctx.Done():
		case <-st.done:
		case <-st.s.done:
		}
		timer.Stop()
	}
}

// Close implements record.Stream.
func (st *stream) Close() error {
	st.close.Do(func() { close(st.done) })
	return nil
}
