package authn

import (
	"fmt"
	"testing"
	"time"

	"postern/internal/record"
	"postern/internal/session"
)

// TestManySessionsEnd: somebody with more sessions than a batch may hold, or
// with as many programs, can be signed out all the same.
func TestManySessionsEnd(t *testing.T) {
	w := newWorld(t, nil)
	by := record.System("test")
	fill := func(parent string, n int) {
		t.Helper()
		for begin := 0; begin < n; begin += record.MaxBatch {
			var recs []*record.Record
			for i := begin; i < min(n, begin+record.MaxBatch); i++ {
				s := session.Session{ID: fmt.Sprintf("%s-%d", parent, i), UserID: "u1", ParentSessionID: parent, ExpiresAt: time.Now().Add(time.Hour)}
				rec, err := s.Record()
				if err != nil {
					t.Fatal(err)
				}
				recs = append(recs, rec)
			}
			if _, err := w.store.Put(t.Context(), by, recs...); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill("one", record.MaxBatch+5)
	if err := w.svc.EndSession(t.Context(), by, "one"); err != nil {
		t.Errorf("a session with many programs: %v", err)
	}
	if n := len(w.sessions()); n > 0 {
		t.Errorf("%d sessions are left of the first", n)
	}
	fill("", record.MaxBatch+5)
	if n, err := w.svc.EndUserSessions(t.Context(), by, "u1"); err != nil || n != record.MaxBatch+5 {
		t.Errorf("many sessions: %d, %v", n, err)
	}
	if n := len(w.sessions()); n > 0 {
		t.Errorf("%d sessions are left", n)
	}
}
