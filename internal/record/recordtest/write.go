package recordtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/record"
)

var writeCases = []testCase{
	{"put and get", false, func(s *suite) {
		s.missing(typ, "a")
		given := indexed(typ, "a", map[string]string{"user": "u|1"})
		given.Namespace = "ns"
		before := time.Now().Add(-time.Minute)
		out := s.put(given, doc(other, "a", "another type"))
		if given.Version != 0 {
			s.Fatal("Put changed its argument")
		}
		got := s.get(typ, "a")
		s.ok(same(got, given))
		if got.Version != out[0].Version || out[1].Version != out[0].Version+1 {
			s.Fatalf("versions %d, %d, then read %d", out[0].Version, out[1].Version, got.Version)
		}
		if got.ModifiedAt.Before(before) || got.Deleted() || !got.ModifiedAt.Equal(out[0].ModifiedAt) {
			s.Fatalf("times of %+v", got)
		}
		v := s.versions()
		if v.Server == 0 || v.Server >= 1<<53 || v.Latest != out[1].Version || !v.NewestAt.Equal(out[1].ModifiedAt) {
			s.Fatalf("versions %+v after %+v", v, out[1])
		}
		again := s.put(doc(typ, "a", "new"))[0]
		if again.Version <= out[1].Version {
			s.Fatalf("version %d after %d", again.Version, out[1].Version)
		}
		if got := s.get(typ, "a"); got.Index != nil || got.Namespace != "" {
			s.Fatalf("an upsert kept old fields: %+v", got)
		}
	}},
	{"arguments are not shared", false, func(s *suite) {
		given := indexed(typ, "a", map[string]string{"user": "u"})
		want := given.Clone()
		s.put(given)
		given.Data[2], given.Index["user"] = 'X', "X"
		s.ok(same(s.get(typ, "a"), want))
	}},
	{"odd names", false, func(s *suite) {
		s.options(typ, record.Options{Indexes: []string{"i"}})
		for _, id := range []string{" ", "a/b", "a\x00b", "\xff\xfe", "ä@例.test", strings.Repeat("x", record.MaxIDBytes)} {
			s.put(indexed(typ, id, map[string]string{"i": id}))
			if got := s.get(typ, id); got.ID != id {
				s.Fatalf("id %q became %q", id, got.ID)
			}
			s.equal(s.find(typ, "i", id), []string{id})
		}
		s.equal(s.find(typ, "i", ""), []string{})
	}},
	{"what cannot be stored is refused", false, func(s *suite) {
		for _, rec := range []*record.Record{
			nil,
			doc("", "a", ""),
			doc(typ, "", ""),
			doc(strings.Repeat("t", record.MaxTypeBytes+1), "a", ""),
			doc(typ, strings.Repeat("i", record.MaxIDBytes+1), ""),
			{Type: typ, ID: "a"},
			{Type: typ, ID: "a", Data: json.RawMessage("{")},
			indexed(typ, "a", map[string]string{"": "v"}),
			indexed(typ, "a", map[string]string{"n": strings.Repeat("v", record.MaxIndexBytes+1)}),
		} {
			_, err := s.s.Put(s.ctx, me, doc(typ, "good", ""), rec)
			s.want(record.ErrInvalid, err)
			_, err = s.s.Update(s.ctx, me, rec)
			s.want(record.ErrInvalid, err)
		}
		s.missing(typ, "good")
		s.want(record.ErrInvalid, s.s.Delete(s.ctx, me, typ, ""))
		s.want(record.ErrInvalid, s.s.SetOptions(s.ctx, typ, record.Options{TTL: -1}))
		s.want(record.ErrInvalid, s.s.SetOptions(s.ctx, typ, record.Options{Indexes: []string{""}}))
		s.want(record.ErrInvalid, s.s.SetOptions(s.ctx, "", record.Options{}))
	}},
	{"a write names its actor", false, func(s *suite) {
		_, err := s.s.Put(s.ctx, record.Actor{}, doc(typ, "a", ""))
		s.want(record.ErrInvalid, err)
		_, err = s.s.Update(s.ctx, record.Actor{ID: "x"}, doc(typ, "a", ""))
		s.want(record.ErrInvalid, err)
		s.want(record.ErrInvalid, s.s.Delete(s.ctx, record.Actor{}, typ, "a"))
		_, err = s.s.Clear(s.ctx, record.Actor{})
		s.want(record.ErrInvalid, err)
		_, err = s.s.NewServerVersion(s.ctx, record.Actor{})
		s.want(record.ErrInvalid, err)
		s.missing(typ, "a")
	}},
	{"a batch is all or nothing", false, func(s *suite) {
		s.options(typ, record.Options{Tombstone: record.Forever})
		s.delete(typ, "dead")
		v := s.versions()
		_, err := s.s.Put(s.ctx, me, doc(other, "a", ""), doc(typ, "b", ""), doc(typ, "dead", ""))
		s.want(record.ErrDeleted, err)
		s.missing(other, "a")
		s.missing(typ, "b")
		// Also within one batch the dead stay dead.
		_, err = s.s.Put(s.ctx, me, doc(typ, "c", ""), &record.Record{Type: typ, ID: "c", DeletedAt: time.Now()}, doc(typ, "c", ""))
		s.want(record.ErrDeleted, err)
		s.missing(typ, "c")
		if got := s.versions(); got.Latest != v.Latest {
			s.Fatalf("refused writes moved the version from %d to %d", v.Latest, got.Latest)
		}
		out := s.put()
		if len(out) != 0 {
			s.Fatal("an empty batch gave records")
		}
	}},
	{"a batch may delete", false, func(s *suite) {
		s.put(doc(typ, "a", ""), doc(typ, "b", ""))
		out := s.put(doc(typ, "c", ""), &record.Record{Type: typ, ID: "a", DeletedAt: time.Now()})
		if !out[1].Deleted() || out[1].Version <= out[0].Version {
			s.Fatalf("deletion came back as %+v", out[1])
		}
		s.equal(s.list(typ, record.Query{}), []string{"b", "c"})
	}},
	{"update compares and sets", false, func(s *suite) {
		_, err := s.s.Update(s.ctx, me, &record.Record{Type: typ, ID: "a", Version: 7, Data: json.RawMessage("1")})
		s.want(record.ErrNotFound, err)
		one, err := s.s.Update(s.ctx, me, doc(typ, "a", "1"))
		s.ok(err)
		_, err = s.s.Update(s.ctx, me, doc(typ, "a", "again"))
		s.want(record.ErrConflict, err)
		next := doc(typ, "a", "2")
		next.Version = one.Version
		two, err := s.s.Update(s.ctx, me, next)
		s.ok(err)
		if two.Version <= one.Version || next.Version != one.Version {
			s.Fatalf("update gave version %d after %d and left %d", two.Version, one.Version, next.Version)
		}
		_, err = s.s.Update(s.ctx, me, next)
		s.want(record.ErrConflict, err)
		s.ok(same(s.get(typ, "a"), doc(typ, "a", "2")))
		s.delete(typ, "a")
		next.Version = two.Version
		_, err = s.s.Update(s.ctx, me, next)
		s.want(record.ErrNotFound, err)
		_, err = s.s.Update(s.ctx, me, doc(typ, "a", "new life")) // no tombstone asked for
		s.ok(err)
	}},
	{"racing updates lose nothing", false, func(s *suite) {
		s.put(&record.Record{Type: typ, ID: "n", Data: json.RawMessage(`{"n":0,"keep":"x"}`)})
		const workers, rounds = 8, 12
		var wg sync.WaitGroup
		var conflicts atomic.Int64
		for range workers {
			wg.Go(func() {
				for range rounds {
					_, err := record.Modify(s.ctx, s.s, me, typ, "n", func(rec *record.Record) error {
						conflicts.Add(1)
						var d struct {
							N    int    `json:"n"`
							Keep string `json:"keep"`
						}
						err := json.Unmarshal(rec.Data, &d)
						d.N++
						rec.Data, _ = json.Marshal(d)
						return err
					})
					if err != nil {
						s.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if got, want := string(s.get(typ, "n").Data), fmt.Sprintf(`{"n":%d,"keep":"x"}`, workers*rounds); got != want {
			s.Fatalf("got %s, want %s (after %d attempts)", got, want, conflicts.Load())
		}
	}},
	{"one of many creators wins", false, func(s *suite) {
		var wg sync.WaitGroup
		var won atomic.Int64
		for i := range 16 {
			wg.Go(func() {
				_, err := s.s.Update(s.ctx, me, doc(typ, "a", fmt.Sprint(i)))
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, record.ErrConflict) {
					s.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			s.Fatalf("%d creators won", won.Load())
		}
	}},
	{"patch changes only what the mask names", false, func(s *suite) {
		s.put(&record.Record{Type: typ, ID: "a", Index: map[string]string{"user": "u"},
			Data: json.RawMessage(`{"userId":"u","oauthToken":{"accessToken":"old","refreshToken":"r"},"claims":{"x":["1"]},"big":12345678901234567890}`)})
		rec, err := record.Patch(s.ctx, s.s, me, typ, "a", []string{"oauth_token.access_token", "claims", "idToken"},
			json.RawMessage(`{"oauthToken":{"accessToken":"new","refreshToken":"ignored"},"userId":"ignored"}`))
		s.ok(err)
		want := `{"big":12345678901234567890,"oauthToken":{"accessToken":"new","refreshToken":"r"},"userId":"u"}`
		if string(rec.Data) != want || rec.Index["user"] != "u" {
			s.Fatalf("got %s %v, want %s", rec.Data, rec.Index, want)
		}
		_, err = record.Patch(s.ctx, s.s, me, typ, "missing", []string{"claims"}, json.RawMessage(`{}`))
		s.want(record.ErrNotFound, err)
		_, err = record.Patch(s.ctx, s.s, me, typ, "a", []string{"claims..x"}, json.RawMessage(`{}`))
		s.want(record.ErrInvalid, err)
	}},
	{"delete", false, func(s *suite) {
		s.put(doc(typ, "a", ""), doc(typ, "b", ""), doc(typ, "c", ""))
		s.delete(typ, "a", "c", "never was")
		s.delete(typ, "a")
		s.delete("unknown type", "a")
		s.missing(typ, "a")
		s.equal(s.list(typ, record.Query{}), []string{"b"})
		s.put(doc(typ, "a", "")) // allowed: the type keeps no tombstones
		s.equal(s.list(typ, record.Query{}), []string{"b", "a"})
	}},
	{"gone is gone", false, func(s *suite) {
		s.options(typ, record.Options{Tombstone: record.Forever})
		rec := s.put(doc(typ, "a", ""))[0]
		s.delete(typ, "a", "overtaken")
		for _, id := range []string{"a", "overtaken"} {
			_, err := s.s.Put(s.ctx, me, doc(typ, id, ""))
			s.want(record.ErrDeleted, err)
			for _, v := range []uint64{0, rec.Version, s.versions().Latest} {
				next := doc(typ, id, "")
				next.Version = v
				_, err = s.s.Update(s.ctx, me, next)
				s.want(record.ErrDeleted, err)
			}
			_, err = record.Modify(s.ctx, s.s, me, typ, id, func(*record.Record) error { return nil })
			s.want(record.ErrNotFound, err)
			s.missing(typ, id)
		}
		_, err := s.s.NewServerVersion(s.ctx, me)
		s.ok(err)
		_, err = s.s.Clear(s.ctx, me)
		s.ok(err)
		_, err = s.s.Put(s.ctx, me, doc(typ, "a", ""))
		s.want(record.ErrDeleted, err)
	}},
	{"a refresh that races a deletion never revives", false, func(s *suite) {
		s.options(typ, record.Options{Tombstone: record.Forever})
		for i := range 20 {
			id := fmt.Sprint("s", i)
			s.put(doc(typ, id, ""))
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for range 3 {
						_, err := record.Modify(s.ctx, s.s, me, typ, id, func(*record.Record) error { return nil })
						if err == nil {
							_, err = s.s.Put(s.ctx, me, doc(typ, id, "put"))
						}
						if err != nil && !errors.Is(err, record.ErrNotFound) && !errors.Is(err, record.ErrDeleted) && !errors.Is(err, record.ErrConflict) {
							s.Error(err)
						}
					}
				})
			}
			wg.Go(func() {
				if err := s.s.Delete(s.ctx, me, typ, id); err != nil {
					s.Error(err)
				}
				for range 3 {
					if _, err := s.s.Get(s.ctx, typ, id); !errors.Is(err, record.ErrNotFound) {
						s.Errorf("after the deletion: %v", err)
					}
				}
			})
			wg.Wait()
			s.missing(typ, id)
		}
	}},
	{"tombstones end when they are old enough", true, func(s *suite) {
		s.options(typ, record.Options{Tombstone: 10 * time.Minute})
		s.options(other, record.Options{Tombstone: record.Forever})
		s.put(doc(typ, "a", ""), doc(other, "a", ""))
		s.delete(typ, "a")
		s.delete(other, "a")
		time.Sleep(9 * time.Minute)
		_, err := s.s.Put(s.ctx, me, doc(typ, "a", ""))
		s.want(record.ErrDeleted, err)
		time.Sleep(2 * time.Minute)
		s.put(doc(typ, "a", ""))
		time.Sleep(2 * time.Hour)
		_, err = s.s.Put(s.ctx, me, doc(other, "a", ""))
		s.want(record.ErrDeleted, err)
	}},
	{"ttl", true, func(s *suite) {
		time.Sleep(300 * time.Millisecond) // out of step with any sweeping by the second
		s.options(typ, record.Options{TTL: 10 * time.Minute, Indexes: []string{"user"}, Tombstone: 24 * time.Hour})
		s.put(indexed(typ, "a", map[string]string{"user": "u"}), indexed(typ, "b", map[string]string{"user": "u"}))
		s.put(doc(other, "kept", ""))
		f := s.watch(typ, record.Cursor{})
		f.sync("a", "b")
		time.Sleep(5 * time.Minute)
		b := s.put(indexed(typ, "b", map[string]string{"user": "u"}))[0] // a write begins its time anew
		f.changed("b")
		time.Sleep(5*time.Minute - time.Millisecond)
		s.get(typ, "a")
		time.Sleep(time.Millisecond)
		// At this instant, whether or not anything was swept.
		s.missing(typ, "a")
		s.equal(s.find(typ, "user", "u"), []string{"b"})
		s.equal(s.list(typ, record.Query{}), []string{"b"})
		_, err := s.s.Put(s.ctx, me, doc(typ, "a", ""))
		s.want(record.ErrDeleted, err)
		f.gone("a")
		if got := s.get(typ, "b"); got.Version != b.Version {
			s.Fatalf("b is at %d, want %d", got.Version, b.Version)
		}
		time.Sleep(10 * time.Minute)
		f.gone("b")
		s.get(other, "kept")
		// Without tombstones an expired id is free.
		s.options(other, record.Options{TTL: time.Minute})
		time.Sleep(2 * time.Minute)
		s.missing(other, "kept")
		_, err = s.s.Update(s.ctx, me, doc(other, "kept", ""))
		s.ok(err)
	}},
	{"an expired record is no longer updated", true, func(s *suite) {
		s.options(typ, record.Options{TTL: time.Minute})
		time.Sleep(300 * time.Millisecond)
		rec := s.put(doc(typ, "a", ""))[0]
		time.Sleep(time.Minute)
		next := rec.Clone()
		_, err := s.s.Update(s.ctx, me, next)
		s.want(record.ErrNotFound, err)
		next.Version = 0
		_, err = s.s.Update(s.ctx, me, next)
		s.ok(err)
	}},
	{"capacity", false, func(s *suite) {
		s.options(typ, record.Options{Capacity: 3})
		for _, id := range []string{"a", "b", "c"} {
			s.put(doc(typ, id, ""))
		}
		f := s.watch(typ, record.Cursor{})
		f.sync("a", "b", "c")
		s.put(doc(typ, "a", "again")) // now b is the oldest
		f.changed("a")
		s.put(doc(typ, "d", ""), doc(other, "x", ""))
		f.changed("d")
		f.gone("b")
		s.equal(s.list(typ, record.Query{}), []string{"c", "a", "d"})
		s.put(doc(typ, "e", ""), doc(typ, "f", ""), doc(typ, "g", ""), doc(typ, "h", ""))
		s.equal(s.list(typ, record.Query{}), []string{"f", "g", "h"})
		s.options(typ, record.Options{Capacity: 1})
		s.equal(s.list(typ, record.Query{}), []string{"h"})
		s.options(typ, record.Options{})
		s.put(doc(typ, "i", ""), doc(typ, "j", ""))
		s.equal(s.list(typ, record.Query{}), []string{"h", "i", "j"})
	}},
	{"a cancelled write is refused", false, func(s *suite) {
		ctx, cancel := context.WithCancel(s.ctx)
		cancel()
		_, err := s.s.Put(ctx, me, doc(typ, "a", ""))
		s.want(context.Canceled, err)
		s.missing(typ, "a")
	}},
	{"new server version", false, func(s *suite) {
		s.options(typ, record.Options{EndsWithServer: true, Tombstone: record.Forever, Indexes: []string{"user"}})
		s.put(indexed(typ, "session", map[string]string{"user": "u"}), doc(other, "user", ""))
		old := s.versions()
		v, err := s.s.NewServerVersion(s.ctx, me)
		s.ok(err)
		if v.Server == old.Server || v.Server == 0 || v.Latest < old.Latest || s.versions() != v {
			s.Fatalf("%+v, then %+v, then %+v", old, v, s.versions())
		}
		s.missing(typ, "session")
		s.equal(s.find(typ, "user", "u"), []string{})
		_, err = s.s.Put(s.ctx, me, doc(typ, "session", ""))
		s.want(record.ErrDeleted, err)
		s.get(other, "user")
	}},
	{"clear", false, func(s *suite) {
		s.options(typ, record.Options{Tombstone: record.Forever, Indexes: []string{"user"}})
		s.put(indexed(typ, "a", map[string]string{"user": "u"}), doc(other, "b", ""))
		old := s.versions()
		v, err := s.s.Clear(s.ctx, me)
		s.ok(err)
		if v.Server == old.Server {
			s.Fatal("the server version stayed")
		}
		s.missing(typ, "a")
		s.missing(other, "b")
		s.equal(s.find(typ, "user", "u"), []string{})
		_, err = s.s.Put(s.ctx, me, doc(typ, "a", ""))
		s.want(record.ErrDeleted, err)
		if got := s.put(doc(other, "b", ""))[0]; got.Version <= old.Latest {
			s.Fatalf("versions went back from %d to %d", old.Latest, got.Version)
		}
		f := s.watch("", record.Cursor{})
		f.sync("b")
	}},
	{"closed", false, func(s *suite) {
		s.put(doc(typ, "a", ""))
		f := s.watch(typ, record.Cursor{})
		f.sync("a")
		s.ok(s.s.Close())
		f.fails(record.ErrUnavailable)
		_, err := s.s.Get(s.ctx, typ, "a")
		s.want(record.ErrUnavailable, err)
		_, err = s.s.Put(s.ctx, me, doc(typ, "b", ""))
		s.want(record.ErrUnavailable, err)
		_, err = s.s.Watch(s.ctx, typ, record.Cursor{})
		s.want(record.ErrUnavailable, err)
		_, err = s.s.Acquire(s.ctx, "l", time.Second)
		s.want(record.ErrUnavailable, err)
		s.ok(s.s.Close())
	}},
}
