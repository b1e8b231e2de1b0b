package memory

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"postern/internal/record"
	"postern/internal/record/recordtest"
)

func TestContract(t *testing.T) {
	recordtest.Run(t, func(*testing.T) record.Store { return New() })
}

// What is carried to another process keeps versions, deletions and indexes, and
// a watch resumes.
func TestCarry(t *testing.T) {
	ctx, by := t.Context(), record.System("test")
	old := New()
	defer old.Close()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(s record.Store, id string) (*record.Record, error) {
		recs, err := s.Put(ctx, by, &record.Record{Type: "a", ID: id, Data: []byte(`{"x":1}`), Index: map[string]string{"user": "u"}})
		if err != nil {
			return nil, err
		}
		return recs[0], nil
	}
	ok(old.SetOptions(ctx, "a", record.Options{Indexes: []string{"user"}, Tombstone: record.Forever}))
	_, err := put(old, "gone")
	ok(err)
	kept, err := put(old, "kept")
	ok(err)
	before, err := old.ServerVersion(ctx)
	ok(err)
	ok(old.Delete(ctx, by, "a", "gone"))

	var carried bytes.Buffer
	ok(old.(interface{ Dump(io.Writer) error }).Dump(&carried))
	next, err := Restore(&carried)
	ok(err)
	defer next.Close()
	rec, err := next.Get(ctx, "a", "kept")
	ok(err)
	if rec.Version != kept.Version || string(rec.Data) != `{"x":1}` || !rec.ModifiedAt.Equal(kept.ModifiedAt) {
		t.Errorf("%+v", rec)
	}
	if _, err := put(next, "gone"); !errors.Is(err, record.ErrDeleted) {
		t.Errorf("a deleted id came back: %v", err)
	}
	if recs, err := next.Find(ctx, "a", "user", "u"); err != nil || len(recs) != 1 {
		t.Error(recs, err)
	}
	if page, err := next.List(ctx, "a", record.Query{}); err != nil || page.Total != 1 {
		t.Error(page, err)
	}
	w, err := next.Watch(ctx, "a", record.Cursor{Server: before.Server, Version: before.Latest})
	ok(err)
	defer w.Close()
	ev, err := w.Next(ctx)
	ok(err)
	if ev.Kind != record.Changed || ev.Record.ID != "gone" || !ev.Record.Deleted() {
		t.Errorf("%+v", ev)
	}
	if more, err := put(next, "more"); err != nil || more.Version <= kept.Version+1 {
		t.Error(more, err)
	}
	if _, err := Restore(strings.NewReader("nonsense")); err == nil {
		t.Error("nonsense was restored")
	}
}
