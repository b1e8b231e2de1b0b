package recordtest

import (
	"encoding/json"
	"fmt"
	"time"

	"postern/internal/record"
)

var readCases = []testCase{
	{"list", false, func(s *suite) {
		s.equal(s.list(typ, record.Query{}), []string{})
		for _, id := range []string{"z", "a", "m", "b"} {
			s.put(doc(typ, id, "text "+id))
		}
		s.put(doc(typ, "z", "Changed"), doc(other, "o", ""))
		s.equal(s.list(typ, record.Query{}), []string{"a", "m", "b", "z"})
		for _, c := range []struct {
			q     record.Query
			want  []string
			total int
		}{
			{record.Query{Limit: 2}, []string{"a", "m"}, 4},
			{record.Query{Offset: 1, Limit: 2}, []string{"m", "b"}, 4},
			{record.Query{Offset: 3}, []string{"z"}, 4},
			{record.Query{Offset: 9}, []string{}, 4},
			{record.Query{Text: "TEXT"}, []string{"a", "m", "b"}, 3},
			{record.Query{Text: "changed", Limit: 5}, []string{"z"}, 1},
			{record.Query{Text: "text", Offset: 1, Limit: 1}, []string{"m"}, 3},
			{record.Query{Match: func(r *record.Record) bool { return r.ID > "a" }, Limit: 1}, []string{"m"}, 3},
			{record.Query{Text: "m", Match: func(r *record.Record) bool { return r.ID != "m" }}, []string{}, 0},
		} {
			page, err := s.s.List(s.ctx, typ, c.q)
			s.ok(err)
			s.equal(ids(page.Records), c.want)
			if page.Total != c.total || page.At != s.versions() {
				s.Fatalf("%+v: total %d at %+v, want %d at %+v", c.q, page.Total, page.At, c.total, s.versions())
			}
		}
		for _, rec := range func() []*record.Record { p, _ := s.s.List(s.ctx, typ, record.Query{}); return p.Records }() {
			s.ok(same(rec, s.get(typ, rec.ID)))
		}
	}},
	{"text searches values, at every depth", false, func(s *suite) {
		s.put(&record.Record{Type: typ, ID: "a", Data: json.RawMessage(`{"key":{"inner":["x",{"deep":"Needle"}]},"n":5,"t":true}`)})
		s.equal(s.list(typ, record.Query{Text: "needle"}), []string{"a"})
		s.equal(s.list(typ, record.Query{Text: "deep"}), []string{}) // a key
		s.equal(s.list(typ, record.Query{Text: "5"}), []string{})    // no string
	}},
	{"find", false, func(s *suite) {
		_, err := s.s.Find(s.ctx, typ, "user", "u")
		s.want(record.ErrNoIndex, err)
		both := func(user, sid string) map[string]string { return map[string]string{"user": user, "sid": sid} }
		s.put(indexed(typ, "early", both("u", "1")))
		_, err = s.s.Find(s.ctx, typ, "user", "u")
		s.want(record.ErrNoIndex, err)
		s.options(typ, record.Options{Indexes: []string{"user", "sid"}}) // covers what is there
		s.put(indexed(typ, "b", both("u", "2")), indexed(typ, "a", both("u", "3")), indexed(typ, "c", both("v", "4")), doc(typ, "none", ""))
		s.put(indexed(other, "o", both("u", "1")))
		s.equal(s.find(typ, "user", "u"), []string{"early", "b", "a"})
		s.equal(s.find(typ, "sid", "4"), []string{"c"})
		s.equal(s.find(typ, "sid", "u"), []string{})
		s.equal(s.find(typ, "user", "U"), []string{})
		s.equal(s.find(typ, "user", ""), []string{})
		_, err = s.s.Find(s.ctx, typ, "idp", "u")
		s.want(record.ErrNoIndex, err)
		s.put(indexed(typ, "b", both("v", "2")), doc(typ, "early", "no index any more"))
		s.equal(s.find(typ, "user", "u"), []string{"a"})
		s.equal(s.find(typ, "user", "v"), []string{"c", "b"})
		s.delete(typ, "c")
		s.equal(s.find(typ, "user", "v"), []string{"b"})
		recs, err := s.s.Find(s.ctx, typ, "user", "v")
		s.ok(err)
		s.ok(same(recs[0], s.get(typ, "b")))
		s.options(typ, record.Options{Indexes: []string{"sid"}})
		_, err = s.s.Find(s.ctx, typ, "user", "v")
		s.want(record.ErrNoIndex, err)
	}},
	{"types and options", false, func(s *suite) {
		types, err := s.s.Types(s.ctx)
		s.ok(err)
		s.equal(types, nil)
		o, err := s.s.Options(s.ctx, typ)
		s.ok(err)
		if !o.Equal(record.Options{}) {
			s.Fatalf("options %+v before any were set", o)
		}
		want := record.Options{TTL: time.Hour, Capacity: 5, Indexes: []string{"a", "b"}, Tombstone: record.Forever, EndsWithServer: true}
		s.options(typ, want)
		if o, err = s.s.Options(s.ctx, typ); err != nil || !o.Equal(want) {
			s.Fatalf("options %+v, %v; want %+v", o, err, want)
		}
		s.put(doc(typ, "a", ""), doc(other, "a", ""), doc("gone", "a", ""))
		s.delete("gone", "a")
		types, err = s.s.Types(s.ctx)
		s.ok(err)
		s.equal(types, []string{other, typ})
	}},
	{"a read sees every acknowledged write", false, func(s *suite) {
		done := make(chan error, 4)
		for w := range 4 {
			go func() {
				for i := range 25 {
					id := fmt.Sprint(w, "-", i)
					out, err := s.s.Put(s.ctx, me, doc(typ, id, ""))
					if err == nil {
						var got *record.Record
						if got, err = s.s.Get(s.ctx, typ, id); err == nil && got.Version != out[0].Version {
							err = fmt.Errorf("wrote %d, read %d", out[0].Version, got.Version)
						}
					}
					if err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		for range 4 {
			s.ok(<-done)
		}
		if n := len(s.list(typ, record.Query{})); n != 100 {
			s.Fatalf("%d records, want 100", n)
		}
	}},
}
