package recordtest

import (
	"context"
	"fmt"
	"time"

	"postern/internal/record"
)

var watchCases = []testCase{
	{"watch", false, func(s *suite) {
		s.put(doc(typ, "b", "1"), doc(typ, "a", "1"), doc(typ, "dead", ""), doc(other, "o", ""))
		s.put(doc(typ, "b", "2"))
		s.delete(typ, "dead")
		f := s.watch(typ, record.Cursor{})
		s.ok(same(f.changed("a"), doc(typ, "a", "1")))
		if f.cursor != (record.Cursor{}) {
			s.Fatalf("half a first sync has cursor %+v", f.cursor)
		}
		f.sync("b") // the deletion before the watch is nobody's business
		v := s.versions()
		if f.cursor != (record.Cursor{Server: v.Server, Version: v.Latest}) {
			s.Fatalf("cursor %+v at %+v", f.cursor, v)
		}
		s.put(doc(typ, "c", ""))
		got := f.changed("c")
		if want := s.get(typ, "c"); same(got, want) != nil || got.Version != want.Version || f.cursor.Version != got.Version {
			s.Fatalf("got %+v, want %+v", got, want)
		}
		s.put(doc(other, "p", ""))
		s.delete(typ, "a")
		f.gone("a")
		s.put(doc(typ, "a", "again"))
		s.ok(same(f.changed("a"), doc(typ, "a", "again")))
	}},
	{"an empty store syncs at once", false, func(s *suite) {
		f := s.watch(typ, record.Cursor{})
		f.sync()
		s.put(doc(typ, "a", ""))
		f.changed("a")
	}},
	{"watch all types", false, func(s *suite) {
		s.put(doc(typ, "a", ""), doc(other, "b", ""), doc("third", "c", ""))
		f := s.watch("", record.Cursor{})
		f.sync("a", "b", "c")
		s.put(doc("new type", "d", ""))
		f.changed("d")
		s.delete(other, "b")
		s.put(doc(typ, "e", ""))
		f.gone("b")
		f.changed("e")
		g := s.watch("", f.cursor)
		g.sync()
		s.put(doc("third", "f", ""))
		g.changed("f")
	}},
	{"resume", false, func(s *suite) {
		s.put(doc(typ, "a", ""), doc(typ, "b", ""), doc(typ, "c", ""))
		f := s.watch(typ, record.Cursor{})
		f.sync("a", "b", "c")
		at := f.cursor
		s.ok(f.st.Close())
		s.put(doc(typ, "d", ""))
		s.delete(typ, "a")
		s.put(doc(typ, "b", "1"))
		s.put(doc(typ, "b", "2"))
		s.put(doc(other, "o", ""))
		g := s.watch(typ, at)
		g.changed("d")
		middle := g.cursor
		g.gone("a")
		s.ok(same(g.changed("b"), doc(typ, "b", "2")))
		g.sync()
		h := s.watch(typ, middle)
		h.gone("a")
		h.changed("b")
		h.sync()
		k := s.watch(typ, h.cursor)
		k.sync()
		s.put(doc(typ, "e", ""))
		k.changed("e")
	}},
	{"large first sync", false, func(s *suite) {
		var recs []*record.Record
		for i := range 3000 {
			recs = append(recs, doc(typ, fmt.Sprint(i), ""))
		}
		s.put(recs...)
		f := s.watch(typ, record.Cursor{})
		// What happens during the sync is not lost, whatever it touches.
		f.changed("0")
		s.delete(typ, "0", "1", "2999")
		s.put(doc(typ, "5", "moved"), doc(typ, "new", ""))
		have := map[string]bool{"0": true}
		synced := false
		for i := 0; !synced || have["0"] || have["2999"] || !have["new"]; i++ {
			switch ev := f.next(); {
			case i > 4000:
				s.Fatal("the stream does not converge")
			case ev.Kind == record.Synced:
				synced, f.synced = true, true
			case ev.Record.Deleted():
				delete(have, ev.Record.ID)
			default:
				have[ev.Record.ID] = true
			}
		}
		if have["1"] || len(have) != 2998 {
			s.Fatalf("%d records, want 2998", len(have))
		}
	}},
	{"cursors of another history", false, func(s *suite) {
		s.put(doc(typ, "a", ""))
		f := s.watch(typ, record.Cursor{})
		f.sync("a")
		old := s.versions()
		_, err := s.s.Watch(s.ctx, typ, record.Cursor{Server: old.Server + 1, Version: 1})
		s.want(record.ErrWrongServer, err)
		_, err = s.s.Watch(s.ctx, typ, record.Cursor{Server: old.Server, Version: old.Latest + 1})
		s.want(record.ErrHistoryGone, err)
		_, err = s.s.NewServerVersion(s.ctx, me)
		s.ok(err)
		f.fails(record.ErrWrongServer)
		_, err = s.s.Watch(s.ctx, typ, record.Cursor{Server: old.Server, Version: old.Latest})
		s.want(record.ErrWrongServer, err)
	}},
	{"history is bounded, and says so", true, func(s *suite) {
		s.options(other, record.Options{Tombstone: 5 * time.Hour})
		s.put(doc(typ, "a", ""), doc(typ, "b", ""), doc(other, "a", ""))
		f := s.watch(typ, record.Cursor{})
		g := s.watch(other, record.Cursor{})
		all := s.watch("", record.Cursor{})
		f.sync("a", "b")
		g.sync("a")
		all.sync("a", "b", "a")
		at := f.cursor
		s.delete(typ, "a")
		s.delete(other, "a")
		time.Sleep(record.History - time.Minute)
		h := s.watch(typ, at)
		h.gone("a")
		h.sync()
		time.Sleep(2 * time.Minute)
		_, err := s.s.Watch(s.ctx, typ, at)
		s.want(record.ErrHistoryGone, err)
		_, err = s.s.Watch(s.ctx, "", at)
		s.want(record.ErrHistoryGone, err)
		s.watch(typ, h.cursor).sync() // had seen the deletion
		s.watch(other, at).gone("a")  // remembers for longer
		// A stream that slept through it must not go on as if nothing was.
		f.fails(record.ErrHistoryGone)
		all.fails(record.ErrHistoryGone)
		g.gone("a")
	}},
	{"heartbeats prove freshness", true, func(s *suite) {
		s.put(doc(typ, "a", ""))
		f := s.watch(typ, record.Cursor{})
		f.sync("a")
		last := time.Now()
		for i := range 20 {
			if i%3 == 0 { // writes to another type must not silence it
				s.put(doc(other, "o", fmt.Sprint(i)))
			}
			ev, err := f.st.Next(s.ctx)
			s.ok(err)
			if ev.Kind != record.Progress {
				s.Fatalf("event %+v", ev)
			}
			now := time.Now()
			if now.Sub(last) > record.Heartbeat {
				s.Fatalf("silent for %s", now.Sub(last))
			}
			if age := now.Sub(ev.AsOf); age < 0 || age > record.Heartbeat/2 {
				s.Fatalf("the proof is %s old", age)
			}
			if v := s.versions(); ev.Cursor != (record.Cursor{Server: v.Server, Version: v.Latest}) {
				s.Fatalf("cursor %+v at %+v", ev.Cursor, v)
			}
			last = now
		}
		// A proof is only as new as what was delivered before it.
		s.put(doc(typ, "b", ""))
		wrote := time.Now()
		for seen := false; ; {
			ev, err := f.st.Next(s.ctx)
			s.ok(err)
			if ev.Kind == record.Changed {
				seen = true
			} else if ev.AsOf.After(wrote) || ev.AsOf.Equal(wrote) && ev.Cursor.Version == s.versions().Latest {
				if !seen {
					s.Fatal("a proof came before the change it covers")
				}
				break
			}
		}
	}},
	{"ends of a stream", false, func(s *suite) {
		f := s.watch(typ, record.Cursor{})
		f.sync()
		ctx, cancel := context.WithCancel(s.ctx)
		cancel()
		_, err := f.st.Next(ctx)
		s.want(context.Canceled, err)
		g := s.watch(typ, record.Cursor{})
		g.sync()
		ended := make(chan error)
		go func() {
			for {
				if _, err := g.st.Next(s.ctx); err != nil {
					ended <- err
					return
				}
			}
		}()
		s.ok(g.st.Close())
		s.ok(g.st.Close())
		s.want(record.ErrUnavailable, <-ended)
	}},
}
