package authz

import (
	"fmt"
	"testing"
	"testing/synctest"

	"postern/internal/route"
)

// next puts a generation of the same routes in place, one of them made anew
// if changed is set, and tells the engine.
func (s *street) next(t testing.TB, changed bool) {
	t.Helper()
	routes := s.table.Routes()
	if changed {
		routes = compileTable(t, chat).Routes()
	}
	o := s.options
	o.Generation++
	o.Routes, o.Previous = routes, s.env
	env, err := NewEnv(o)
	if err != nil {
		t.Fatal(err)
	}
	table, err := route.NewTable(routes, route.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.env, s.table, s.options = env, table, o
	s.gen.Store(&Current{Env: env, Match: table.Match})
	s.engine.Swapped()
}

// TestStreamsGoOver: a stream whose route did not change is not decided again
// by a change of configuration, goes on to follow its records, and lets go of
// the generation that it began under; any other is decided.
func TestStreamsGoOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet(t, chat)
		var cut cutter
		req := s.live("a", "a@corp.test", "chat.corp.test")
		st, d := s.engine.Open(t.Context(), req, cut.cut)
		if d.Outcome != Allow {
			t.Fatal(d.Outcome)
		}
		before := s.env
		asked := s.sessions.looked()
		s.next(t, false)
		synctest.Wait()
		if n := s.sessions.looked() - asked; n != 0 {
			t.Errorf("%d questions about a stream for which nothing changed", n)
		}
		st.mu.Lock()
		if st.req.Env == before || st.req.Env != s.env || st.req == req {
			t.Error("the stream keeps the generation that it began under")
		}
		st.mu.Unlock()
		s.next(t, true)
		synctest.Wait()
		if n := s.sessions.looked() - asked; n == 0 || cut.was() != "" {
			t.Errorf("%d questions after its route changed, cut: %q", n, cut.was())
		}
		// Another key, and everything is decided again.
		asked = s.sessions.looked()
		s.options.JWTEndpoint = true
		s.next(t, false)
		synctest.Wait()
		if n := s.sessions.looked() - asked; n == 0 {
			t.Error("not decided again under other global settings")
		}
		s.sessions.set("s-a", nil)
		s.users.set("a", nil)
		s.engine.changed(onSession, "s-a", false)
		synctest.Wait()
		if cut.was() == "" {
			t.Error("the stream no longer follows its session")
		}
		s.engine.CloseStream(st)
	})
}

// BenchmarkSwapped is what a change of configuration costs per open stream:
// same where nothing changed for it, changed where its route did.
func BenchmarkSwapped(b *testing.B) {
	for _, changed := range []bool{false, true} {
		for _, streams := range []int{500, 2000, 8000} {
			name := "same"
			if changed {
				name = "changed"
			}
			b.Run(fmt.Sprintf("%s/%d", name, streams), func(b *testing.B) {
				s := newStreet(b, chat)
				for i := range streams {
					id := fmt.Sprint("u", i)
					st, d := s.engine.Open(b.Context(), s.live(id, id+"@corp.test", "chat.corp.test"), func(string) {})
					if d.Outcome != Allow {
						b.Fatal(d.Outcome)
					}
					defer s.engine.CloseStream(st)
				}
				for b.Loop() {
					s.next(b, changed)
					for s.engine.pending() > 0 {
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(streams), "ns/stream")
			})
		}
	}
}

// pending counts streams that wait to be decided, and who decides.
func (e *Engine) pending() int {
	e.streams.mu.Lock()
	defer e.streams.mu.Unlock()
	return len(e.streams.queue) + e.streams.workers
}
