package record_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/record"
	"postern/internal/store/memory"
)

// An answer that was read before a change, and arrives after it, must not
// stay in the cache: nothing would ever correct it.
func TestCacheDropsOvertakenAnswers(t *testing.T) {
	in(t, "cache", func(w *world) {
		w.put("a", "1")
		time.Sleep(time.Second)
		w.l.entry, w.l.slow = make(chan struct{}), make(chan struct{})
		var answered sync.WaitGroup
		answered.Go(func() { w.has("a", 0, "1") }) // as of when it asked
		<-w.l.entry
		w.put("a", "2")
		synctest.Wait() // the change has passed the cache
		close(w.l.slow)
		answered.Wait()
		w.l.slow = nil
		w.has("a", 0, "2")
	})
}

func TestCacheIsBounded(t *testing.T) {
	s := memory.New()
	defer s.Close()
	c, err := record.NewCache(s, typ, 100, decode, record.ReplicaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	for c.Ready() != nil {
		time.Sleep(time.Millisecond)
	}
	for i := range 5000 {
		id := fmt.Sprint(i)
		if _, err := s.Put(ctx, me, doc(id, id)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if e, err := c.Lookup(ctx, id, 0); err != nil || e.Value.Text != id {
				t.Fatalf("%s: %+v, %v", id, e, err)
			}
		}
	}
	for c.Len() > 200 { // eviction is lazy
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
}

func TestReplicaAllAndLen(t *testing.T) {
	in(t, "replica", func(w *world) {
		r := w.c.(*record.Replica[thing])
		for i := range 200 {
			w.put(fmt.Sprint(i), "x")
		}
		w.ok(r.WaitSynced(w.ctx))
		synctest.Wait()
		seen := make(map[string]bool)
		for e := range r.All() {
			seen[e.ID] = true
		}
		if len(seen) != 200 || r.Len() != 200 {
			w.Fatalf("%d seen, %d counted", len(seen), r.Len())
		}
		for range r.All() {
			break
		}
		if v, _ := w.l.ServerVersion(w.ctx); r.At() != (record.Cursor{Server: v.Server, Version: v.Latest}) {
			w.Fatalf("at %+v, store at %+v", r.At(), v)
		}
	})
}

func TestWaitSyncedEnds(t *testing.T) {
	r := record.NewReplica(&link{}, typ, decode, record.ReplicaOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.WaitSynced(ctx); !errors.Is(err, record.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func running(tb testing.TB, n int) *record.Replica[thing] {
	s := memory.New()
	for i := range n {
		if _, err := s.Put(tb.Context(), me, doc(fmt.Sprint("session-", i), "x")); err != nil {
			tb.Fatal(err)
		}
	}
	r := record.NewReplica(s, typ, decode, record.ReplicaOptions{MaxStale: time.Hour})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	tb.Cleanup(func() { cancel(); <-done; s.Close() })
	if err := r.WaitSynced(ctx); err != nil {
		tb.Fatal(err)
	}
	return r
}

func TestReadsAllocateNothing(t *testing.T) {
	r := running(t, 100)
	ctx := t.Context()
	s := memory.New()
	defer s.Close()
	if _, err := s.Put(ctx, me, doc("session-7", "x")); err != nil {
		t.Fatal(err)
	}
	c, err := record.NewCache(s, typ, 100, decode, record.ReplicaOptions{MaxStale: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { c.Run(run); close(done) }()
	for c.Ready() != nil {
		time.Sleep(time.Millisecond)
	}
	c.Lookup(ctx, "session-7", 1)
	cancel() // a heartbeat would count as ours
	<-done
	for name, f := range map[string]func(){
		"Get":           func() { r.Get("session-7") },
		"Lookup":        func() { r.Lookup(ctx, "session-7", 1) },
		"Lookup absent": func() { r.Lookup(ctx, "nobody", 0) },
		"Cache.Lookup":  func() { c.Lookup(ctx, "session-7", 1) },
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkReplicaLookup(b *testing.B) {
	r := running(b, 10_000)
	ctx := b.Context()
	ids := make([]string, 1024)
	for i := range ids {
		ids[i] = fmt.Sprint("session-", i*9)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, err := r.Lookup(ctx, ids[i%len(ids)], 1); err != nil {
				b.Fatal(err)
			}
		}
	})
}
