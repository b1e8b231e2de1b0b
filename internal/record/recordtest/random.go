package recordtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"postern/internal/record"
)

// random runs a seeded sequence of operations against the store and a simple
// model of it, with watchers that break off and resume, and compares.
func random(t *testing.T, open Open) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // heartbeats cost nothing
				s := &suite{T: t, s: open(t), ctx: t.Context()}
				t.Cleanup(func() { s.s.Close() })
				newWalk(s, seed).run(400)
			})
		})
	}
	t.Run("many writers and watchers", func(t *testing.T) {
		s := &suite{T: t, s: open(t), ctx: t.Context()}
		t.Cleanup(func() { s.s.Close() })
		crowd(s)
	})
}

type modelRecord struct {
	*record.Record
	dead bool
}

type walk struct {
	*suite
	r     *rand.Rand
	model map[string]modelRecord // of typ
	order record.Options
	seen  map[string]*record.Record // what the watcher knows
	f     *follower
}

func newWalk(s *suite, seed uint64) *walk {
	w := &walk{suite: s, r: rand.New(rand.NewPCG(seed, 7)), model: make(map[string]modelRecord), seen: make(map[string]*record.Record)}
	w.order = record.Options{Indexes: []string{"user"}, Capacity: 12}
	if seed%2 == 1 {
		w.order.Tombstone = record.Forever
	}
	s.options(typ, w.order)
	w.f = s.watch(typ, record.Cursor{})
	return w
}

func (w *walk) id() string { return fmt.Sprint("id", w.r.IntN(24)) }

func (w *walk) rec() *record.Record {
	return indexed(typ, w.id(), map[string]string{"user": fmt.Sprint("u", w.r.IntN(4))})
}

func (w *walk) forbidden(id string) bool { return w.order.Tombstone > 0 && w.model[id].dead }

func (w *walk) kill(id string) { w.model[id] = modelRecord{dead: true} }

func (w *walk) living() []*record.Record {
	var out []*record.Record
	for _, m := range w.model {
		if !m.dead {
			out = append(out, m.Record)
		}
	}
	slices.SortFunc(out, func(a, b *record.Record) int { return cmp.Compare(a.Version, b.Version) })
	return out
}

func (w *walk) evict() {
	live := w.living()
	for _, r := range live[:max(0, len(live)-w.order.Capacity)] {
		w.kill(r.ID)
	}
}

func (w *walk) run(steps int) {
	for range steps {
		switch w.r.IntN(10) {
		case 0, 1, 2:
			w.putSome()
		case 3, 4, 5:
			w.update()
		case 6:
			id := w.id()
			w.delete(typ, id)
			if m, ok := w.model[id]; ok && !m.dead || w.order.Tombstone > 0 {
				w.kill(id)
			}
		case 7:
			w.put(doc(other, w.id(), ""))
		case 8:
			w.follow(w.r.IntN(6))
			if w.r.IntN(2) == 0 && w.f.cursor != (record.Cursor{}) {
				w.f.st.Close()
				at := w.f.cursor
				w.f = w.watch(typ, at)
			}
		default:
			w.compare()
		}
	}
	w.compare()
	at := w.f.cursor
	if at == (record.Cursor{}) { // half a first sync cannot be resumed
		clear(w.seen)
	}
	w.f.st.Close()
	w.f = w.watch(typ, at)
	for synced := false; !synced; {
		synced = w.step()
	}
	for id, m := range w.model {
		if got := w.seen[id]; m.dead != (got == nil) || got != nil && (got.Version != m.Version || same(got, m.Record) != nil) {
			w.Fatalf("the watcher has %+v for %s, the model %+v", got, id, m)
		}
	}
}

func (w *walk) putSome() {
	var recs []*record.Record
	refused := false
	for range 1 + w.r.IntN(3) {
		r := w.rec()
		refused = refused || w.forbidden(r.ID)
		recs = append(recs, r)
	}
	out, err := w.s.Put(w.ctx, me, recs...)
	if refused {
		w.want(record.ErrDeleted, err)
		return
	}
	w.ok(err)
	for _, r := range out {
		w.model[r.ID] = modelRecord{Record: r}
	}
	w.evict()
}

func (w *walk) update() {
	r := w.rec()
	m, known := w.model[r.ID]
	alive := known && !m.dead
	if alive && w.r.IntN(4) > 0 {
		r.Version = m.Version
	} else if w.r.IntN(3) == 0 {
		r.Version = 1 + w.r.Uint64N(w.versions().Latest+1)
	}
	out, err := w.s.Update(w.ctx, me, r)
	switch {
	case w.forbidden(r.ID):
		w.want(record.ErrDeleted, err)
	case alive && r.Version != m.Version:
		w.want(record.ErrConflict, err)
	case !alive && r.Version != 0:
		w.want(record.ErrNotFound, err)
	default:
		w.ok(err)
		w.model[r.ID] = modelRecord{Record: out}
		w.evict()
	}
}

// follow takes in up to n events, without waiting for more than there are.
func (w *walk) follow(n int) {
	for range n {
		if w.f.synced && w.f.cursor.Version == w.versions().Latest {
			return
		}
		w.step()
	}
}

func (w *walk) step() (synced bool) {
	ev, err := w.f.st.Next(w.ctx)
	w.ok(err)
	w.f.cursor = ev.Cursor
	switch {
	case ev.Kind == record.Synced:
		w.f.synced = true
		return true
	case ev.Kind == record.Changed && ev.Record.Deleted():
		delete(w.seen, ev.Record.ID)
	case ev.Kind == record.Changed:
		w.seen[ev.Record.ID] = ev.Record
	}
	return false
}

func (w *walk) compare() {
	live := w.living()
	w.equal(w.list(typ, record.Query{}), ids(live))
	byUser := make(map[string][]string)
	for _, r := range live {
		byUser[r.Index["user"]] = append(byUser[r.Index["user"]], r.ID)
	}
	for i := range 4 {
		u := fmt.Sprint("u", i)
		w.equal(w.find(typ, "user", u), byUser[u])
	}
	id := w.id()
	got, err := w.s.Get(w.ctx, typ, id)
	if m, ok := w.model[id]; !ok || m.dead {
		w.want(record.ErrNotFound, err)
	} else if w.ok(err); got.Version != m.Version || same(got, m.Record) != nil {
		w.Fatalf("got %+v, want %+v", got, m.Record)
	}
}

// crowd lets many write and delete while others watch, and wants all watchers
// to agree with the store in the end, in version order all the way.
func crowd(s *suite) {
	const writers, watchers, rounds = 6, 4, 40
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	var writing, watching sync.WaitGroup
	target := make(chan struct{})
	var last uint64
	views := make([]map[string]uint64, watchers)
	for i := range watchers {
		st, err := s.s.Watch(ctx, typ, record.Cursor{})
		s.ok(err)
		watching.Go(func() {
			defer st.Close()
			view, version := make(map[string]uint64), uint64(0)
			views[i] = view
			for {
				ev, err := st.Next(ctx)
				if err != nil {
					s.Error(err)
					return
				}
				if ev.Kind == record.Changed {
					if ev.Record.Version <= version {
						s.Errorf("version %d after %d", ev.Record.Version, version)
					}
					version = ev.Record.Version
					if ev.Record.Deleted() {
						delete(view, ev.Record.ID)
					} else {
						view[ev.Record.ID] = version
					}
				}
				select {
				case <-target:
					if ev.Cursor.Version >= last {
						return
					}
				default:
				}
			}
		})
	}
	for i := range writers {
		writing.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range rounds {
				id := fmt.Sprint(r.IntN(30))
				var err error
				switch r.IntN(3) {
				case 0:
					err = s.s.Delete(ctx, me, typ, id)
				case 1:
					_, err = record.Modify(ctx, s.s, me, typ, id, func(*record.Record) error { return nil })
				default:
					_, err = s.s.Put(ctx, me, doc(typ, id, ""), doc(typ, id+"x", ""))
				}
				if err != nil && !errors.Is(err, record.ErrNotFound) {
					s.Error(err)
				}
			}
		})
	}
	writing.Wait()
	last = s.versions().Latest
	close(target)
	watching.Wait()
	want := make(map[string]uint64)
	page, err := s.s.List(s.ctx, typ, record.Query{})
	s.ok(err)
	for _, r := range page.Records {
		want[r.ID] = r.Version
	}
	for i, view := range views {
		if !maps.Equal(view, want) {
			s.Fatalf("watcher %d sees %v, want %v", i, view, want)
		}
	}
}
