// Package recordtest is the contract of record.Store as a suite. Every store
// calls Run in its tests:
//
//	func TestContract(t *testing.T) {
//		recordtest.Run(t, func(t *testing.T) record.Store { return memory.New() })
//	}
package recordtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/record"
)

// Open makes an empty store for one test. Run closes it. Tests that need time
// to pass call it within a synctest bubble.
type Open func(t *testing.T) record.Store

// Run tests a store against the contract.
func Run(t *testing.T, open Open) {
	for _, c := range slices.Concat(writeCases, readCases, watchCases, leaseCases) {
		t.Run(c.name, func(t *testing.T) {
			body := func(t *testing.T) {
				s := open(t)
				t.Cleanup(func() { s.Close() })
				ctx, cancel := context.WithTimeout(t.Context(), c.limit())
				defer cancel()
				c.run(&suite{T: t, s: s, ctx: ctx})
			}
			if c.timed {
				synctest.Test(t, body)
			} else {
				body(t)
			}
		})
	}
	t.Run("random operations agree with a model", func(t *testing.T) { random(t, open) })
}

type testCase struct {
	name  string
	timed bool // runs in a bubble, where time passes when all wait
	run   func(*suite)
}

// limit ends a test that hangs; in a bubble time is free.
func (c testCase) limit() time.Duration {
	if c.timed {
		return 1000 * time.Hour
	}
	return time.Minute
}

type suite struct {
	*testing.T
	s   record.Store
	ctx context.Context
}

const (
	typ   = "type.googleapis.com/session.Session"
	other = "pomerium.io/DirectoryUser"
)

var me = record.Actor{Kind: record.ActorUser, ID: "u1", Via: "test"}

// doc is a record with a small document.
func doc(typ, id, text string) *record.Record {
	data, _ := json.Marshal(map[string]string{"text": text})
	return &record.Record{Type: typ, ID: id, Data: data}
}

func indexed(typ, id string, index map[string]string) *record.Record {
	r := doc(typ, id, id)
	r.Index = index
	return r
}

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) want(target, err error) {
	s.Helper()
	if !errors.Is(err, target) {
		s.Fatalf("error is %v, want %v", err, target)
	}
}

func (s *suite) put(recs ...*record.Record) []*record.Record {
	s.Helper()
	out, err := s.s.Put(s.ctx, me, recs...)
	s.ok(err)
	return out
}

func (s *suite) get(typ, id string) *record.Record {
	s.Helper()
	rec, err := s.s.Get(s.ctx, typ, id)
	s.ok(err)
	return rec
}

func (s *suite) missing(typ, id string) {
	s.Helper()
	rec, err := s.s.Get(s.ctx, typ, id)
	if !errors.Is(err, record.ErrNotFound) {
		s.Fatalf("Get gives %v, %v; want ErrNotFound", rec, err)
	}
}

func (s *suite) delete(typ string, ids ...string) {
	s.Helper()
	s.ok(s.s.Delete(s.ctx, me, typ, ids...))
}

func (s *suite) options(typ string, o record.Options) {
	s.Helper()
	s.ok(s.s.SetOptions(s.ctx, typ, o))
}

func (s *suite) versions() record.Versions {
	s.Helper()
	v, err := s.s.ServerVersion(s.ctx)
	s.ok(err)
	return v
}

func (s *suite) list(typ string, q record.Query) []string {
	s.Helper()
	page, err := s.s.List(s.ctx, typ, q)
	s.ok(err)
	return ids(page.Records)
}

func (s *suite) find(typ, index, value string) []string {
	s.Helper()
	recs, err := s.s.Find(s.ctx, typ, index, value)
	s.ok(err)
	return ids(recs)
}

func (s *suite) equal(got, want []string) {
	s.Helper()
	if !slices.Equal(got, want) {
		s.Fatalf("got %q, want %q", got, want)
	}
}

func ids(recs []*record.Record) []string {
	out := []string{}
	for _, r := range recs {
		out = append(out, r.ID)
	}
	return out
}

// same compares all but version and time.
func same(a, b *record.Record) error {
	if a.Type != b.Type || a.ID != b.ID || a.Namespace != b.Namespace || string(a.Data) != string(b.Data) || !maps.Equal(a.Index, b.Index) {
		return fmt.Errorf("got %+v, want %+v", a, b)
	}
	return nil
}

// watch opens a stream that the test's end closes.
func (s *suite) watch(typ string, after record.Cursor) *follower {
	s.Helper()
	st, err := s.s.Watch(s.ctx, typ, after)
	s.ok(err)
	s.Cleanup(func() { st.Close() })
	return &follower{suite: s, st: st}
}

type follower struct {
	*suite
	st     record.Stream
	cursor record.Cursor
	synced bool
}

// next is the next event; heartbeats are passed over.
func (f *follower) next() record.Event {
	f.Helper()
	for {
		ev, err := f.st.Next(f.ctx)
		f.ok(err)
		f.cursor = ev.Cursor
		if ev.Kind != record.Progress {
			return ev
		}
		if !f.synced {
			f.Fatal("a Progress came before Synced")
		}
	}
}

// changed expects a change of this id.
func (f *follower) changed(id string) *record.Record {
	f.Helper()
	ev := f.next()
	if ev.Kind != record.Changed || ev.Record.ID != id {
		f.Fatalf("event %+v (%+v), want a change of %q", ev, ev.Record, id)
	}
	return ev.Record
}

func (f *follower) gone(id string) {
	f.Helper()
	rec := f.changed(id)
	if !rec.Deleted() || rec.Data != nil || rec.Index != nil {
		f.Fatalf("%+v, want a deletion without contents", rec)
	}
}

// sync expects the Synced mark after exactly these records.
func (f *follower) sync(ids ...string) {
	f.Helper()
	for _, id := range ids {
		f.changed(id)
	}
	if ev := f.next(); ev.Kind != record.Synced || ev.AsOf.IsZero() {
		f.Fatalf("event %+v (%+v), want Synced", ev, ev.Record)
	}
	f.synced = true
}

// fails expects the stream to end with this error.
func (f *follower) fails(target error) {
	f.Helper()
	for {
		if _, err := f.st.Next(f.ctx); err != nil {
			f.want(target, err)
			return
		}
	}
}
