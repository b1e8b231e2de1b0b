package store

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/record"
	"postern/internal/record/recordtest"
	"postern/internal/store/file"
)

const (
	sessions = "type.googleapis.com/session.Session"
	users    = "type.googleapis.com/user.User"
)

var me = record.Actor{Kind: record.ActorUser, ID: "u1", Via: "test"}

func secret(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func fileOptions(dir string, secrets ...[]byte) Options {
	return Options{Type: "file", ConnectionString: "file://" + dir, Secrets: secrets}
}

func openAt(t *testing.T, o Options) record.Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s record.Store, recs ...*record.Record) []*record.Record {
	t.Helper()
	out, err := s.Put(t.Context(), me, recs...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func doc(typ, id, text string) *record.Record {
	data, _ := json.Marshal(map[string]string{"text": text})
	return &record.Record{Type: typ, ID: id, Data: data}
}

func TestContract(t *testing.T) {
	for _, typ := range []string{"memory", "file"} {
		t.Run(typ, func(t *testing.T) {
			recordtest.Run(t, func(t *testing.T) record.Store {
				s, err := Open(t.Context(), Options{Type: typ, DataDir: t.TempDir()})
				if err != nil {
					t.Fatal(err)
				}
				return s
			})
		})
	}
}

func TestOpenErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Type: "postgres", ConnectionString: "postgres://u:geheim@h/db"}, "not in this version"},
		{Options{Type: "redis"}, "use memory or file"},
		{Options{Type: "file"}, "databroker_storage_connection_string"},
		{Options{Type: "file", ConnectionString: "/var/lib/x"}, "file:///directory"},
		{Options{Type: "file", ConnectionString: "file://relative/x"}, "file:///directory"},
		{Options{Type: "file", ConnectionString: "postgres://u:geheim@h/db"}, "file:///directory"},
		{Options{Type: "file", ConnectionString: "file:///x?y=geheim"}, "file:///directory"},
		{Options{Type: "file", DataDir: t.TempDir(), Secrets: [][]byte{[]byte("geheim")}}, "at least 16"},
	} {
		s, err := Open(t.Context(), c.o)
		if err == nil {
			s.Close()
			t.Errorf("%+v opened", c.o)
		} else if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%+v: %v; want %q in it and no secret", c.o, err, c.want)
		}
	}
}

func TestRecordsSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	o := Options{Type: "file", DataDir: dir} // with a made secret
	s := openAt(t, o)
	rec := &record.Record{Type: users, ID: "u", Namespace: "ns", Data: json.RawMessage(`{"a":1}`), Index: map[string]string{"user": "u|1"}}
	kept := put(t, s, rec)[0]
	v, _ := s.ServerVersion(t.Context())
	s.Close()
	s = openAt(t, o)
	got, err := s.Get(t.Context(), users, "u")
	if err != nil || got.Version != kept.Version || !got.ModifiedAt.Equal(kept.ModifiedAt) || got.Namespace != "ns" || got.Index["user"] != "u|1" || string(got.Data) != `{"a":1}` {
		t.Fatalf("got %+v, %v; want %+v", got, err, kept)
	}
	if w, _ := s.ServerVersion(t.Context()); w != v {
		t.Fatalf("versions %+v became %+v", v, w)
	}
}

// Write what must stay secret, then read every byte that reached the disk.
func TestNothingIsInClearOnDisk(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, fileOptions(dir, secret(1)))
	if err := s.SetOptions(t.Context(), sessions, record.Options{Indexes: []string{"user", "sid"}, Tombstone: record.Forever}); err != nil {
		t.Fatal(err)
	}
	needles := []string{"ya29.access-token-kvjq", "1//refresh-token-wpxz", "eyJhbGciOi.id.token", "alice@corp.example", "subject-4711", "https://issuer.example|sid-0815", "ns-finance"}
	for i := range 300 {
		id := fmt.Sprintf("session-id-%04d-fghz", i)
		data := fmt.Sprintf(`{"oauthToken":{"accessToken":%q,"refreshToken":%q},"idToken":{"raw":%q},"claims":{"email":[%q]}}`, needles[0], needles[1], needles[2], needles[3])
		rec := put(t, s, &record.Record{Type: sessions, ID: id, Namespace: needles[6], Data: json.RawMessage(data),
			Index: map[string]string{"user": needles[4], "sid": needles[5]}})[0]
		if _, err := s.Update(t.Context(), me, rec); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := s.Delete(t.Context(), me, sessions, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if recs, err := s.Find(t.Context(), sessions, "sid", needles[5]); err != nil || len(recs) != 200 {
		t.Fatalf("found %d, %v", len(recs), err)
	}
	scan := func(when string) {
		total := 0
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			if fi, err := e.Info(); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v, %v; want 0600", path, fi.Mode(), err)
			}
			data, err := os.ReadFile(path)
			total += len(data)
			for _, n := range append(needles, "session-id-", "accessToken", string(secret(1)), base64.StdEncoding.EncodeToString([]byte(needles[0])), hex.EncodeToString([]byte(needles[0]))) {
				if bytes.Contains(data, []byte(n)) {
					t.Errorf("%s: %q is in %s", when, n, filepath.Base(path))
				}
			}
			return err
		})
		if err != nil || total < 100_000 {
			t.Fatalf("scanned %d bytes: %v", total, err)
		}
	}
	scan("while open")
	s.Close()
	scan("after closing")
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	sealedBy := func(s record.Store) string { // the data key of new records
		id := s.(*guarded).ring.keys.Load().current
		return hex.EncodeToString(id[:])
	}
	s := openAt(t, fileOptions(dir, secret(1)))
	if err := s.SetOptions(t.Context(), users, record.Options{Indexes: []string{"user"}}); err != nil {
		t.Fatal(err)
	}
	rec := doc(users, "old", "old text")
	rec.Index = map[string]string{"user": "u"}
	put(t, s, rec)
	key := sealedBy(s)
	s.Close()

	_, err := Open(t.Context(), fileOptions(dir, secret(2)))
	if err == nil || !strings.Contains(err.Error(), "shared_secret_previous") {
		t.Fatalf("opened by a stranger's secret: %v", err)
	}
	check := func(s record.Store, ids ...string) {
		t.Helper()
		page, err := s.List(t.Context(), users, record.Query{Text: "text"})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range page.Records {
			got = append(got, r.ID)
		}
		if !slices.Equal(got, ids) {
			t.Fatalf("records %q, want %q", got, ids)
		}
		if recs, err := s.Find(t.Context(), users, "user", "u"); err != nil || len(recs) != 1 || recs[0].ID != "old" {
			t.Fatalf("find: %v, %v", recs, err)
		}
	}
	s = openAt(t, fileOptions(dir, secret(2), secret(1)))
	check(s, "old")
	put(t, s, doc(users, "new", "new text"))
	if sealedBy(s) == key {
		t.Fatal("a new secret goes on sealing with a key that the old one wrapped")
	}
	key = sealedBy(s)
	s.Close()

	// From now on the previous secret is neither needed nor able.
	s = openAt(t, fileOptions(dir, secret(2)))
	check(s, "old", "new")
	if sealedBy(s) != key {
		t.Fatal("an opening without rotation made a new key")
	}
	s.Close()
	if s, err := Open(t.Context(), fileOptions(dir, secret(1))); err == nil {
		s.Close()
		t.Fatal("the previous secret still opens the store")
	}
	s = openAt(t, fileOptions(dir, secret(3), secret(1), secret(2)))
	check(s, "old", "new")
}

// Another process rotates; this one meets a key it does not know.
func TestUnknownKeyIsLearnt(t *testing.T) {
	dir := t.TempDir()
	inner, err := file.Open(dir, file.Options{Opaque: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	one, err := openRing(t.Context(), inner, [][]byte{secret(2), secret(1)})
	if err != nil {
		t.Fatal(err)
	}
	// What a node with another current secret among the same two would do.
	two, err := openRing(t.Context(), inner, [][]byte{secret(1), secret(2)})
	if err != nil {
		t.Fatal(err)
	}
	a, b := guard(inner, one, nil), guard(inner, two, nil)
	put(t, b, doc(users, "x", "text"))
	if got, err := a.Get(t.Context(), users, "x"); err != nil || string(got.Data) != `{"text":"text"}` {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestSealIsBoundToTypeAndID(t *testing.T) {
	dir := t.TempDir()
	inner, err := file.Open(dir, file.Options{Opaque: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	r, err := openRing(t.Context(), inner, [][]byte{secret(1)})
	if err != nil {
		t.Fatal(err)
	}
	s := guard(inner, r, nil)
	if err := s.SetOptions(t.Context(), users, record.Options{Indexes: []string{"user"}}); err != nil {
		t.Fatal(err)
	}
	put(t, s, doc(users, "mallory", "evil"), doc(users, "admin", "good"), doc(sessions, "admin", "other"))
	hidden := func(typ, id string) *record.Record {
		kept, err := inner.Get(t.Context(), typ, r.keys.Load().names.hideID(typ, id))
		if err != nil {
			t.Fatal(err)
		}
		return kept.Clone()
	}
	mallory, session := hidden(users, "mallory"), hidden(sessions, "admin")
	for name, forge := range map[string]func(*record.Record){
		"another id's data":   func(k *record.Record) { k.Data = mallory.Data },
		"another type's data": func(k *record.Record) { k.Data = session.Data },
		"a flipped bit":       func(k *record.Record) { k.Data[len(k.Data)-3] ^= 1 },
		"another nonce":       func(k *record.Record) { k.Data[6] ^= 1 },
		"another key":         func(k *record.Record) { k.Data[2] ^= 1 },
		"another format":      func(k *record.Record) { k.Data[0]++ },
		"cut off":             func(k *record.Record) { k.Data = k.Data[:20] },
		"nothing":             func(k *record.Record) { k.Data = nil },
		"clear text":          func(k *record.Record) { k.Data = json.RawMessage(`{"text":"evil"}`) },
	} {
		k := hidden(users, "admin")
		good := k.Clone()
		forge(k)
		if _, err := inner.Put(t.Context(), me, k); err != nil {
			t.Fatal(err)
		}
		got, err := s.Get(t.Context(), users, "admin")
		if !errors.Is(err, record.ErrUnavailable) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
		if _, err := s.List(t.Context(), users, record.Query{}); !errors.Is(err, record.ErrUnavailable) {
			t.Errorf("%s: list: %v", name, err)
		}
		// A watch goes on for the others, and shows this one without data.
		st, err := s.Watch(t.Context(), users, record.Cursor{})
		if err != nil {
			t.Fatal(err)
		}
		data := make(map[string]string)
		for {
			ev, err := st.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if ev.Kind == record.Synced {
				break
			}
			data[ev.Record.ID] = string(ev.Record.Data)
		}
		st.Close()
		if len(data) != 2 || data["mallory"] != `{"text":"evil"}` || data["admin"] != "" {
			t.Errorf("%s: watch gives %q", name, data)
		}
		if _, err := inner.Put(t.Context(), me, good); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Get(t.Context(), users, "admin"); err != nil || string(got.Data) != `{"text":"good"}` {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestKeyringIsGuarded(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, fileOptions(dir, secret(1)))
	put(t, s, doc(users, "u", "text"))
	ctx := t.Context()
	ring := doc(record.KeyringType, ringID, "mine")
	_, err := s.Put(ctx, me, ring)
	_, err2 := s.Update(ctx, me, ring)
	_, err3 := s.Watch(ctx, record.KeyringType, record.Cursor{})
	_, err4 := s.List(ctx, record.KeyringType, record.Query{})
	for i, err := range []error{err, err2, err3, err4, s.Delete(ctx, me, record.KeyringType, ringID), s.SetOptions(ctx, record.KeyringType, record.Options{TTL: 1})} {
		if !errors.Is(err, record.ErrInvalid) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if types, err := s.Types(ctx); err != nil || !slices.Equal(types, []string{users}) {
		t.Errorf("types %q, %v", types, err)
	}
	if _, err := s.Clear(ctx, me); err != nil {
		t.Fatal(err)
	}
	put(t, s, doc(users, "u", "text"))
	s.Close()
	s = openAt(t, fileOptions(dir, secret(1)))
	if _, err := s.Get(ctx, users, "u"); err != nil {
		t.Fatalf("after Clear and reopening: %v", err)
	}
	s.Close()
	// Records without their keyring are an error, not a new keyring.
	inner, err := file.Open(dir, file.Options{Opaque: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := inner.Delete(ctx, me, record.KeyringType, ringID); err != nil {
		t.Fatal(err)
	}
	inner.Close()
	if _, err := Open(ctx, fileOptions(dir, secret(1))); !errors.Is(err, record.ErrUnavailable) || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("opened without keys: %v", err)
	}
}

func TestEveryWriteIsTold(t *testing.T) {
	var mu sync.Mutex
	var got []string
	s := openAt(t, Options{OnWrite: func(_ context.Context, ws []record.Write) {
		mu.Lock()
		defer mu.Unlock()
		for _, w := range ws {
			if w.Actor != me || w.At.IsZero() {
				t.Errorf("%+v", w)
			}
			got = append(got, fmt.Sprint(w.Op, " ", w.ID))
		}
	}})
	ctx := t.Context()
	rec := put(t, s, doc(users, "a", ""), &record.Record{Type: users, ID: "b", DeletedAt: time.Now()})[0]
	if _, err := s.Update(ctx, me, rec); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(ctx, me, rec); err == nil {
		t.Fatal("a stale update passed")
	}
	if err := s.Delete(ctx, me, users, "a", "c"); err != nil {
		t.Fatal(err)
	}
	s.NewServerVersion(ctx, me)
	s.Clear(ctx, me)
	want := []string{"put a", "delete b", "update a", "delete a", "delete c", "new_version ", "clear "}
	if !slices.Equal(got, want) {
		t.Fatalf("told %q, want %q", got, want)
	}
}

func TestMadeSecret(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dir")
	var mu sync.Mutex
	var wg sync.WaitGroup
	made := make(map[string]bool)
	for range 8 {
		wg.Go(func() {
			s, err := LoadOrCreateSecret(dir)
			if err != nil || len(s) != 32 {
				t.Errorf("%d bytes, %v", len(s), err)
			}
			mu.Lock()
			defer mu.Unlock()
			made[string(s)] = true
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Fatalf("%d secrets were made", len(made))
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 {
		t.Fatalf("left behind: %v", entries)
	}
	path := filepath.Join(dir, secretFile)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", fi.Mode(), err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", fi.Mode(), err)
	}
	again, err := LoadOrCreateSecret(dir)
	if err != nil || !made[string(again)] {
		t.Fatalf("another secret the second time: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateSecret(dir); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Fatalf("a readable secret is taken: %v", err)
	}
	for _, bad := range []string{"", "short", base64.StdEncoding.EncodeToString([]byte("short"))} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chmod(path, 0o600)
		if _, err := LoadOrCreateSecret(dir); err == nil || !strings.Contains(err.Error(), "backup") {
			t.Fatalf("%q is taken: %v", bad, err)
		}
	}
}
