package record_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/record"
	"postern/internal/store/memory"
)

const typ = "test.Thing"

var me = record.System("test")

type thing struct {
	Text string `json:"text"`
}

func decode(rec *record.Record) (*thing, error) {
	v := new(thing)
	return v, json.Unmarshal(rec.Data, v)
}

func doc(id, text string) *record.Record {
	data, _ := json.Marshal(thing{text})
	return &record.Record{Type: typ, ID: id, Data: data}
}

// link is a store behind a connection that can be cut.
type link struct {
	record.Store
	cut   atomic.Bool  // calls fail, streams break
	mute  atomic.Bool  // streams say nothing more, and nobody notices
	gets  atomic.Int64 // reads that went through
	slow  chan struct{}
	entry chan struct{}
}

var errCut = errors.New("connection lost")

func (l *link) Get(ctx context.Context, typ, id string) (*record.Record, error) {
	if l.cut.Load() {
		return nil, errCut
	}
	l.gets.Add(1)
	rec, err := l.Store.Get(ctx, typ, id)
	if l.slow != nil {
		l.entry <- struct{}{}
		<-l.slow
	}
	return rec, err
}

func (l *link) ServerVersion(ctx context.Context) (record.Versions, error) {
	if l.cut.Load() {
		return record.Versions{}, errCut
	}
	return l.Store.ServerVersion(ctx)
}

func (l *link) Watch(ctx context.Context, typ string, after record.Cursor) (record.Stream, error) {
	if l.cut.Load() {
		return nil, errCut
	}
	s, err := l.Store.Watch(ctx, typ, after)
	return &linkStream{Stream: s, l: l, done: make(chan struct{})}, err
}

type linkStream struct {
	record.Stream
	l    *link
	once sync.Once
	done chan struct{}
}

func (s *linkStream) Next(ctx context.Context) (record.Event, error) {
	ev, err := s.Stream.Next(ctx)
	if s.l.mute.Load() {
		select {
		case <-s.done:
		case <-ctx.Done():
		}
		return record.Event{}, errCut
	}
	if s.l.cut.Load() {
		return record.Event{}, errCut
	}
	return ev, err
}

func (s *linkStream) Close() error {
	s.once.Do(func() { close(s.done) })
	return s.Stream.Close()
}

// copyOf is a Replica or a Cache under test.
type copyOf interface {
	record.Lookup[thing]
	Run(context.Context) error
}

type world struct {
	*testing.T
	ctx  context.Context
	l    *link
	c    copyOf
	errs []string
	mu   sync.Mutex
}

var copies = map[string]func(*world) copyOf{
	"replica": func(w *world) copyOf {
		return record.NewReplica(w.l, typ, decode, record.ReplicaOptions{OnError: w.note})
	},
	"cache": func(w *world) copyOf {
		c, err := record.NewCache(w.l, typ, 1000, decode, record.ReplicaOptions{OnError: w.note})
		w.ok(err)
		return c
	},
}

// both runs a test with a Replica and with a Cache, since consumers must not
// be able to tell them apart.
func both(t *testing.T, f func(*world)) {
	for name := range copies {
		t.Run(name, func(t *testing.T) { in(t, name, f) })
	}
}

func in(t *testing.T, name string, f func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &world{T: t, ctx: ctx, l: &link{Store: memory.New()}}
		w.c = copies[name](w)
		var running sync.WaitGroup
		running.Go(func() {
			if err := w.c.Run(ctx); !errors.Is(err, context.Canceled) {
				w.Errorf("Run ended with %v", err)
			}
		})
		defer w.l.Store.Close()
		defer running.Wait()
		defer cancel()
		f(w)
	})
}

func (w *world) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err.Error())
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) put(id, text string) *record.Record {
	w.Helper()
	out, err := w.l.Put(w.ctx, me, doc(id, text))
	w.ok(err)
	return out[0]
}

func (w *world) delete(id string) {
	w.Helper()
	w.ok(w.l.Delete(w.ctx, me, typ, id))
}

// has wants this answer, and says how many reads of the store it took.
func (w *world) has(id string, min uint64, text string) (reads int64) {
	w.Helper()
	before := w.l.gets.Load()
	e, err := w.c.Lookup(w.ctx, id, min)
	w.ok(err)
	if e.Value.Text != text || e.ID != id || e.Version < min {
		w.Fatalf("Lookup gives %+v with %+v, want %q", e, e.Value, text)
	}
	return w.l.gets.Load() - before
}

func (w *world) refused(id string, min uint64, target error) {
	w.Helper()
	e, err := w.c.Lookup(w.ctx, id, min)
	if !errors.Is(err, target) {
		w.Fatalf("Lookup gives %+v, %v; want %v", e, err, target)
	}
	if target != record.ErrNotFound && errors.Is(err, record.ErrNotFound) {
		w.Fatalf("a failure looks like an answer: %v", err)
	}
}

func TestLookup(t *testing.T) {
	both(t, func(w *world) {
		v1 := w.put("a", "1").Version
		w.has("a", v1, "1") // before any sync, from the store
		synctest.Wait()
		w.ok(w.c.Ready())
		w.has("a", 0, "1")
		if reads := w.has("a", 0, "1"); reads != 0 {
			w.Fatalf("a fresh copy asked the store %d times", reads)
		}
		v2 := w.put("a", "2").Version
		w.has("a", v2, "2") // also before the watch brought it
		synctest.Wait()
		if reads := w.has("a", v2, "2"); reads != 0 {
			w.Fatalf("a fresh copy asked the store %d times", reads)
		}
		w.delete("a")
		synctest.Wait()
		w.refused("a", 0, record.ErrNotFound)
		w.refused("a", v2, record.ErrNotFound)
		w.refused("never", 0, record.ErrNotFound)
	})
}

func TestNotReadyBeforeTheFirstSync(t *testing.T) {
	w := &world{T: t, l: &link{Store: memory.New()}, ctx: t.Context()}
	defer w.l.Store.Close()
	w.put("a", "1")
	for name, make := range copies { // and never run
		w.c = make(w)
		if err := w.c.Ready(); !errors.Is(err, record.ErrUnavailable) {
			t.Fatalf("%s: ready before the first sync: %v", name, err)
		}
		for range 2 {
			if reads := w.has("a", 0, "1"); reads != 1 {
				t.Fatalf("%s: %d reads of the store", name, reads)
			}
		}
	}
}

func TestLookupOfVersionThatNeverWas(t *testing.T) {
	both(t, func(w *world) {
		v := w.put("a", "1").Version
		synctest.Wait()
		w.refused("a", v+100, record.ErrWrongServer)
		w.has("a", v, "1")
	})
}

func TestStaleIsReadThroughOrRefused(t *testing.T) {
	both(t, func(w *world) {
		w.put("a", "1")
		synctest.Wait()
		w.has("a", 0, "1")
		// The watch dies silently; others change and delete.
		w.l.mute.Store(true)
		time.Sleep(record.Heartbeat)
		w.put("a", "2")
		w.put("b", "1")
		time.Sleep(record.DefaultMaxStale)
		if err := w.c.Ready(); !errors.Is(err, record.ErrUnavailable) {
			w.Fatalf("ready though stale: %v", err)
		}
		if reads := w.has("a", 0, "2"); reads != 1 {
			w.Fatalf("a stale copy asked the store %d times", reads)
		}
		w.has("b", 0, "1")
		w.delete("a")
		w.refused("a", 0, record.ErrNotFound)
		w.l.cut.Store(true)
		for _, id := range []string{"a", "b", "never"} {
			w.refused(id, 0, record.ErrUnavailable)
		}
		w.l.cut.Store(false)
		w.l.mute.Store(false)
		time.Sleep(10 * time.Second) // the dead stream is noticed and replaced
		w.ok(w.c.Ready())
		w.has("b", 0, "1")
		if reads := w.has("b", 0, "1"); reads != 0 {
			w.Fatalf("recovered, yet it asks the store %d times", reads)
		}
	})
}

func TestFreshForExactlyMaxStale(t *testing.T) {
	in(t, "replica", func(w *world) {
		w.put("a", "1")
		synctest.Wait()
		w.l.cut.Store(true) // no more proofs from here on
		time.Sleep(record.DefaultMaxStale)
		w.ok(w.c.Ready())
		w.has("a", 0, "1")
		w.refused("never", 0, record.ErrNotFound)
		time.Sleep(time.Nanosecond)
		w.refused("a", 0, record.ErrUnavailable)
		w.refused("never", 0, record.ErrUnavailable)
		if _, ok := w.c.(*record.Replica[thing]).Get("a"); ok {
			w.Fatal("Get answers from a stale copy")
		}
	})
}

func TestIdleCopyStaysFresh(t *testing.T) {
	both(t, func(w *world) {
		w.put("a", "1")
		synctest.Wait()
		w.has("a", 0, "1")
		for range 40 {
			time.Sleep(7 * time.Second)
			w.ok(w.c.Ready())
			if reads := w.has("a", 0, "1"); reads != 0 {
				w.Fatal("an idle copy went stale")
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.errs) != 0 {
			w.Fatalf("an idle watch was broken off: %q", w.errs)
		}
	})
}

func TestAbsenceIsBelievedOnlyWhenSynced(t *testing.T) {
	in(t, "replica", func(w *world) {
		w.l.cut.Store(true)
		time.Sleep(time.Minute)
		w.refused("a", 0, record.ErrUnavailable)
		w.l.cut.Store(false)
		v := w.put("a", "1").Version
		time.Sleep(time.Minute)
		before := w.l.gets.Load()
		w.refused("b", v, record.ErrNotFound)
		if w.l.gets.Load() != before {
			w.Fatal("a synced copy asked the store for what is absent")
		}
		w.refused("b", v+1, record.ErrNotFound) // newer than the copy: the store is asked
		if w.l.gets.Load() != before+1 {
			w.Fatal("absence was believed of a copy that is behind")
		}
	})
}

func TestRevocationArrivesWithinASecondAfterABreak(t *testing.T) {
	both(t, func(w *world) {
		w.put("a", "1")
		time.Sleep(time.Minute)
		w.has("a", 0, "1")
		w.l.cut.Store(true)
		w.delete("a") // the link is cut for readers only
		time.Sleep(300 * time.Millisecond)
		w.l.cut.Store(false)
		time.Sleep(time.Second)
		w.refused("a", 0, record.ErrNotFound)
	})
}

func TestNewServerVersion(t *testing.T) {
	both(t, func(w *world) {
		w.ok(w.l.SetOptions(w.ctx, typ, record.Options{EndsWithServer: true}))
		old := w.put("a", "1").Version
		time.Sleep(time.Second)
		w.has("a", 0, "1")
		_, err := w.l.NewServerVersion(w.ctx, me)
		w.ok(err)
		synctest.Wait() // at once, before anything is copied anew
		w.refused("a", 0, record.ErrNotFound)
		time.Sleep(time.Second)
		w.ok(w.c.Ready())
		w.refused("a", 0, record.ErrNotFound)
		w.refused("a", old, record.ErrNotFound)
		w.put("b", "1")
		synctest.Wait()
		w.has("b", 0, "1")
	})
}

func TestResyncAfterHistoryIsGone(t *testing.T) {
	both(t, func(w *world) {
		w.put("a", "1")
		w.put("b", "1")
		time.Sleep(time.Second)
		w.has("a", 0, "1")
		w.l.cut.Store(true)
		w.delete("a")
		w.put("b", "2")
		w.put("c", "1")
		time.Sleep(2 * record.History)
		var mu sync.Mutex
		changes := make(map[string]bool)
		defer w.c.OnChange(func(c record.Change[thing]) {
			mu.Lock()
			defer mu.Unlock()
			changes[fmt.Sprintf("%s/%t/%t/%t", c.ID, c.Old != nil, c.New != nil, c.Everything)] = true
		})()
		w.l.cut.Store(false)
		time.Sleep(5 * time.Second)
		w.refused("a", 0, record.ErrNotFound)
		w.has("b", 0, "2")
		w.has("c", 0, "1")
		mu.Lock()
		defer mu.Unlock()
		if _, ok := w.c.(*record.Cache[thing]); ok {
			if !changes["/false/false/true"] {
				w.Fatalf("changes %v, want one of everything", changes)
			}
		} else if len(changes) != 3 || !changes["a/true/false/false"] || !changes["b/true/true/false"] || !changes["c/false/true/false"] {
			w.Fatalf("changes %v", changes)
		}
	})
}

func TestOnChange(t *testing.T) {
	both(t, func(w *world) {
		synctest.Wait()
		var got []string
		cancel := w.c.OnChange(func(c record.Change[thing]) {
			s := c.ID + ":"
			if c.Old != nil {
				s += c.Old.Value.Text
			}
			s += ">"
			if c.New != nil {
				s += c.New.Value.Text
			}
			// The copy shows the new state already.
			switch e, err := w.c.Lookup(w.ctx, c.ID, 0); {
			case c.New == nil && !errors.Is(err, record.ErrNotFound), c.New != nil && (err != nil || e.Version < c.New.Version):
				s += " but Lookup lags"
			}
			got = append(got, s)
		})
		w.put("a", "1")
		synctest.Wait()
		w.has("a", 0, "1") // so that the cache holds it
		w.put("a", "2")
		synctest.Wait()
		w.delete("a")
		synctest.Wait()
		cancel()
		w.put("a", "3")
		synctest.Wait()
		if s := strings.Join(got, " "); s != "a:>1 a:1>2 a:2>" {
			w.Fatalf("changes %q", s)
		}
	})
}

func TestUndecodableRecordIsRefusedAlone(t *testing.T) {
	both(t, func(w *world) {
		synctest.Wait()
		w.put("a", "1")
		_, err := w.l.Put(w.ctx, me, &record.Record{Type: typ, ID: "bad", Data: json.RawMessage(`{"text":5}`)})
		w.ok(err)
		synctest.Wait()
		w.has("a", 0, "1")
		w.refused("bad", 0, record.ErrUnavailable)
		w.put("bad", "good again")
		synctest.Wait()
		w.has("bad", 0, "good again")
		// Also when it goes bad while held.
		_, err = w.l.Put(w.ctx, me, &record.Record{Type: typ, ID: "a", Data: json.RawMessage(`[]`)})
		w.ok(err)
		synctest.Wait()
		w.refused("a", 0, record.ErrUnavailable)
	})
}
