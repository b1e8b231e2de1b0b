package authz

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/record"
	"postern/internal/session"
)

// shelf is a copy of records changed by hand.
type shelf[T any] struct {
	mu    sync.Mutex
	m     map[string]*record.Entry[T]
	subs  []func(record.Change[T])
	stale bool // Ready fails
	down  bool // Lookup fails
	n     uint64
	asked int
	// hook runs inside Lookup, after the entry was read.
	hook func()
}

func (s *shelf[T]) Lookup(_ context.Context, id string, _ uint64) (*record.Entry[T], error) {
	s.mu.Lock()
	s.asked++
	e, down, hook := s.m[id], s.down, s.hook
	s.hook = nil
	s.mu.Unlock()
	if hook != nil {
		hook()
	}
	switch {
	case down:
		return nil, record.ErrUnavailable
	case e == nil:
		return nil, record.ErrNotFound
	}
	return e, nil
}

// looked counts questions.
func (s *shelf[T]) looked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *shelf[T]) OnChange(f func(record.Change[T])) func() {
	s.subs = append(s.subs, f)
	return func() {}
}

func (s *shelf[T]) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stale {
		return record.ErrUnavailable
	}
	return nil
}

// set changes a record (nil deletes it) and tells.
func (s *shelf[T]) set(id string, v *T) {
	s.mu.Lock()
	if s.m == nil {
		s.m = map[string]*record.Entry[T]{}
	}
	old := s.m[id]
	var e *record.Entry[T]
	if v == nil {
		delete(s.m, id)
	} else {
		s.n++
		e = &record.Entry[T]{ID: id, Version: s.n, Value: v}
		s.m[id] = e
	}
	s.mu.Unlock()
	for _, f := range s.subs {
		f(record.Change[T]{ID: id, Old: old, New: e})
	}
}

type street struct {
	*house
	sessions  shelf[session.Session]
	accounts  shelf[session.ServiceAccount]
	users     shelf[session.User]
	directory shelf[session.DirectoryUser]
	groups    shelf[session.DirectoryGroup]
}

func newStreet(t testing.TB, specs []routeSpec) *street {
	t.Helper()
	s := &street{house: &house{t: t}}
	s.log = &bytes.Buffer{}
	s.keys, s.secret = newKeys(t)
	var err error
	s.engine, err = New(Sources{Sessions: &s.sessions, ServiceAccounts: &s.accounts, Users: &s.users,
		DirectoryUsers: &s.directory, DirectoryGroups: &s.groups})
	if err != nil {
		t.Fatal(err)
	}
	s.options = Options{Keys: s.keys}
	s.engine.SetCurrent(func() Current { return *s.gen.Load() })
	s.swap(specs)
	return s
}

// live puts a session and its user on the shelves and gives a request of theirs.
func (s *street) live(id, email, host string) *Request {
	s.users.set(id, &session.User{ID: id, Email: email})
	s.sessions.set("s-"+id, &session.Session{ID: "s-" + id, UserID: id, ExpiresAt: time.Now().Add(time.Hour)})
	return s.request(request("GET", "https://"+host+"/ws", "Cookie", cookie(s.handle("s-"+id, id, host))))
}

type cutter struct {
	reason atomic.Pointer[string]
	times  atomic.Int32
}

func (c *cutter) cut(reason string) {
	c.reason.Store(&reason)
	c.times.Add(1)
}

func (c *cutter) was() string {
	if r := c.reason.Load(); r != nil {
		return *r
	}
	return ""
}

const byMail = `allow: {and: [{domain: corp.test}]}`

var chat = []routeSpec{{from: "https://chat.corp.test", policy: byMail}}

func TestStreamsFollowRecords(t *testing.T) {
	over := func(d time.Duration) *session.Session {
		return &session.Session{ID: "s-a", UserID: "a", ExpiresAt: time.Now().Add(d)}
	}
	tests := []struct {
		name   string
		change func(s *street)
		want   string // "" survives
	}{
		{"session deleted", func(s *street) { s.sessions.set("s-a", nil) }, CutSessionEnded},
		{"session shortened", func(s *street) { s.sessions.set("s-a", over(-time.Second)) }, CutSessionEnded},
		{"session touched", func(s *street) { s.sessions.set("s-a", over(time.Hour)) }, ""},
		{"session now another's", func(s *street) {
			s.users.set("x", &session.User{ID: "x", Email: "x@evil.test"})
			s.sessions.set("s-a", &session.Session{ID: "s-a", UserID: "x", ExpiresAt: time.Now().Add(time.Hour)})
		}, CutRefused},
		{"user deleted", func(s *street) { s.users.set("a", nil) }, CutRefused},
		{"e-mail changed", func(s *street) { s.users.set("a", &session.User{ID: "a", Email: "a@evil.test"}) }, CutRefused},
		{"name changed", func(s *street) { s.users.set("a", &session.User{ID: "a", Email: "a@corp.test", Name: "B"}) }, ""},
		{"directory says otherwise", func(s *street) {
			s.directory.set("a", &session.DirectoryUser{ID: "a", Email: "a@evil.test"})
		}, CutRefused},
		{"somebody else signs out", func(s *street) { s.sessions.set("s-b", nil) }, ""},
		{"policy changed", func(s *street) {
			s.swap([]routeSpec{{from: "https://chat.corp.test", policy: `allow: {and: [{domain: other.test}]}`}})
		}, CutRefused},
		{"policy the same", func(s *street) { s.swap(chat) }, ""},
		{"route gone", func(s *street) { s.swap([]routeSpec{{from: "https://x.corp.test", policy: byMail}}) }, CutNoRoute},
		{"everything may have changed", func(s *street) {
			s.sessions.mu.Lock()
			s.sessions.m = nil
			s.sessions.mu.Unlock()
			for _, f := range s.sessions.subs {
				f(record.Change[session.Session]{Everything: true})
			}
		}, CutSessionEnded},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStreet(t, chat)
				s.live("b", "b@corp.test", "chat.corp.test")
				var c cutter
				st, d := s.engine.Open(t.Context(), s.live("a", "a@corp.test", "chat.corp.test"), c.cut)
				if d.Outcome != Allow {
					t.Fatal(d.Outcome)
				}
				tt.change(s)
				synctest.Wait()
				if c.was() != tt.want || c.times.Load() > 1 {
					t.Errorf("cut %q (%d times), want %q", c.was(), c.times.Load(), tt.want)
				}
				if tt.want == "" {
					// It still follows.
					s.sessions.set("s-a", nil)
					synctest.Wait()
					if c.was() == "" {
						t.Error("the survivor follows no more")
					}
				}
				s.engine.CloseStream(st)
				s.engine.CloseStream(st)
				if n := s.engine.Streams(); n != 0 || len(s.engine.streams.byKey) != 0 {
					t.Errorf("%d streams left, %d keys", n, len(s.engine.streams.byKey))
				}
			})
		})
	}
}

// TestRevokedBetweenDecideAndRegister: "revocation races" of the security
// cases: the change falls between the decision's reading and the stream's
// registration, where no notice can reach the stream.
func TestRevokedBetweenDecideAndRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet(t, chat)
		req := s.live("a", "a@corp.test", "chat.corp.test")
		var c cutter
		// While Decide reads: the entry was read, then the session is deleted.
		s.sessions.hook = func() { s.sessions.set("s-a", nil) }
		st, d := s.engine.Open(t.Context(), req, c.cut)
		if d.Outcome != Allow {
			t.Fatal("the hook came too early for this test")
		}
		synctest.Wait()
		if c.was() != CutSessionEnded {
			t.Errorf("deleted while deciding: %q", c.was())
		}
		s.engine.CloseStream(st)

		// After Decide, before Follow.
		req = s.live("a", "a@corp.test", "chat.corp.test")
		d = s.engine.Decide(t.Context(), req)
		s.users.set("a", &session.User{ID: "a", Email: "a@evil.test"})
		var c2 cutter
		st = s.engine.Follow(req, &d, c2.cut)
		synctest.Wait()
		if c2.was() != CutRefused {
			t.Errorf("changed before registration: %q", c2.was())
		}
		s.engine.CloseStream(st)

		// During a re-decision: the second change must count too.
		req = s.live("a", "a@corp.test", "chat.corp.test")
		var c3 cutter
		st, _ = s.engine.Open(t.Context(), req, c3.cut)
		s.sessions.hook = func() { s.users.set("a", &session.User{ID: "a", Email: "a@evil.test"}) }
		s.sessions.set("s-a", &session.Session{ID: "s-a", UserID: "a", ExpiresAt: time.Now().Add(time.Hour)})
		synctest.Wait()
		if c3.was() != CutRefused {
			t.Errorf("changed during a re-decision: %q", c3.was())
		}
		s.engine.CloseStream(st)

		// During a re-decision that moves the stream to another user record:
		// that one changes before the stream is found under it.
		req = s.live("a", "a@corp.test", "chat.corp.test")
		s.users.set("x", &session.User{ID: "x", Email: "x@corp.test"})
		var c4 cutter
		st, _ = s.engine.Open(t.Context(), req, c4.cut)
		s.users.hook = func() { s.users.set("x", &session.User{ID: "x", Email: "x@evil.test"}) }
		s.sessions.set("s-a", &session.Session{ID: "s-a", UserID: "x", ExpiresAt: time.Now().Add(time.Hour)})
		synctest.Wait()
		if c4.was() != CutRefused {
			t.Errorf("the next user changed during a re-decision: %q", c4.was())
		}
		s.engine.CloseStream(st)
	})
}

// A stream that somebody opened does not live on as nobody's, even where
// nobody would be let in.
func TestStreamKeepsItsPerson(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet(t, []routeSpec{{from: "https://open.corp.test", policy: `allow: {or: [{accept: true}]}`}})
		var c cutter
		st, _ := s.engine.Open(t.Context(), s.live("a", "a@corp.test", "open.corp.test"), c.cut)
		s.sessions.set("s-a", nil)
		synctest.Wait()
		if c.was() != CutSessionEnded {
			t.Errorf("cut %q", c.was())
		}
		s.engine.CloseStream(st)
	})
}

func TestStreamsAndTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet(t, []routeSpec{chat[0], {from: "https://open.corp.test", policy: `allow: {or: [{accept: true}]}`}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = s.engine.Run(ctx) }()
		defer func() { cancel(); <-done }()

		var ends, open cutter
		st, _ := s.engine.Open(ctx, s.live("a", "a@corp.test", "chat.corp.test"), ends.cut)
		pub, d := s.engine.Open(ctx, s.request(request("GET", "https://open.corp.test/ws")), open.cut)
		if d.Outcome != Allow {
			t.Fatal(d.Outcome)
		}
		time.Sleep(time.Hour - 2*time.Second)
		if ends.was() != "" {
			t.Errorf("cut before the end: %q", ends.was())
		}
		time.Sleep(4 * time.Second)
		if ends.was() != CutSessionEnded {
			t.Errorf("after the session's end: %q", ends.was())
		}
		s.engine.CloseStream(st)

		// The copy goes stale but the store answers: the stream stays. Then
		// the store is gone as well: it is cut, a public one is not.
		var c cutter
		st, _ = s.engine.Open(ctx, s.live("b", "b@corp.test", "chat.corp.test"), c.cut)
		s.users.mu.Lock()
		s.users.stale = true
		s.users.mu.Unlock()
		time.Sleep(5 * time.Second)
		if c.was() != "" {
			t.Errorf("stale, readable: %q", c.was())
		}
		s.users.mu.Lock()
		s.users.down = true
		s.users.mu.Unlock()
		time.Sleep(2 * time.Second)
		if c.was() != CutUndecided {
			t.Errorf("stale, unreadable: %q", c.was())
		}
		if open.was() != "" {
			t.Errorf("a public stream rests on no record, and was cut: %q", open.was())
		}
		s.engine.CloseStream(st)
		s.engine.CloseStream(pub)
	})
}

// TestManyStreams: ten thousand streams, one person signs out everywhere, and
// a reload: only that person's are cut.
func TestManyStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet(t, chat)
		const people, each = 1000, 10
		cuts := make([]cutter, people*each)
		var streams []*Stream
		for p := range people {
			req := s.live(fmt.Sprint("p", p), "p@corp.test", "chat.corp.test")
			for i := range each {
				st, d := s.engine.Open(t.Context(), req, cuts[p*each+i].cut)
				if d.Outcome != Allow {
					t.Fatal(d.Outcome)
				}
				streams = append(streams, st)
			}
		}
		s.sessions.set("s-p7", nil)
		synctest.Wait()
		s.swap(chat)
		synctest.Wait()
		for i := range cuts {
			if (cuts[i].was() != "") != (i/each == 7) {
				t.Fatalf("stream %d of person %d: %q", i%each, i/each, cuts[i].was())
			}
		}
		if n := s.engine.Streams(); n != people*each-each {
			t.Errorf("%d streams", n)
		}
		for _, st := range streams {
			s.engine.CloseStream(st)
		}
	})
}

// TestStreamsRace opens, revokes and closes at once; whatever the order, a
// stream of a deleted session is cut or closed.
func TestStreamsRace(t *testing.T) {
	s := newStreet(t, chat)
	var wg sync.WaitGroup
	for p := range 50 {
		req := s.live(fmt.Sprint("p", p), "p@corp.test", "chat.corp.test")
		wg.Go(func() {
			var c cutter
			st, d := s.engine.Open(context.Background(), req, c.cut)
			if st == nil {
				if d.Outcome == Allow {
					t.Error("allowed without a stream")
				}
				return
			}
			eventually(t, "a revoked stream is cut", func() bool { return c.was() != "" })
			s.engine.CloseStream(st)
		})
		wg.Go(func() { s.sessions.set(fmt.Sprint("s-p", p), nil) })
		wg.Go(func() { s.engine.Swapped() })
	}
	wg.Wait()
	if n := s.engine.Streams(); n != 0 {
		t.Errorf("%d streams left", n)
	}
}
