package store

import (
	"bytes"
	"crypto/cipher"
	"fmt"
	"strings"
	"testing"

	"postern/internal/record"
)

func newKeys(t testing.TB) *keys {
	n, err := newNames(secret(7))
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWrapper(secret(8))
	if err != nil {
		t.Fatal(err)
	}
	k := &keys{names: n, current: [4]byte{1, 2, 3, 4}}
	k.data = map[[4]byte]cipher.AEAD{k.current: w.aead}
	return k
}

func TestHiddenNames(t *testing.T) {
	k := newKeys(t)
	seen := make(map[string]string)
	for _, typ := range []string{"a", "ab"} {
		for _, id := range []string{"x", "bx", "xx", strings.Repeat("long", 200)} {
			h := k.names.hideID(typ, id)
			if h != k.names.hideID(typ, id) {
				t.Fatal("hiding is not constant")
			}
			if old, dup := seen[h]; dup {
				t.Fatalf("%s/%s hides like %s", typ, id, old)
			}
			seen[h] = typ + "/" + id
			if got, err := k.names.showID(typ, h); err != nil || got != id {
				t.Fatalf("%q, %v", got, err)
			}
			if got, err := k.names.showID(typ+"!", h); err == nil {
				t.Fatalf("shown under another type as %q", got)
			}
			for _, i := range []int{0, 15, 16, len(h) - 1} {
				b := []byte(h)
				b[i] ^= 1
				if got, err := k.names.showID(typ, string(b)); err == nil {
					t.Fatalf("altered, yet shown as %q", got)
				}
			}
		}
	}
	if k.names.hideValue("t", "i", "v") == k.names.hideValue("t", "iv", "") || k.names.hideValue("t", "i", "v") == k.names.hideValue("u", "i", "v") {
		t.Fatal("index values of different places look alike")
	}
}

// FuzzOpen: whatever the disk holds, opening it gives a record or an error.
func FuzzOpen(f *testing.F) {
	k := newKeys(f)
	rec := doc(users, "u", "text")
	rec.Index = map[string]string{"a": "b"}
	rec.Namespace = "ns"
	sealed := k.seal(rec)
	f.Add([]byte(sealed.Data), sealed.ID, users)
	f.Add([]byte{}, "", "")
	f.Add([]byte{sealFormat, 1, 2, 3, 4}, "0123456789abcdef", users)
	f.Fuzz(func(t *testing.T, data []byte, id, typ string) {
		kept := &record.Record{Type: typ, ID: id, Data: data}
		got, err := k.open(kept, "u")
		if err == nil && (typ != users || !bytes.Equal(got.Data, rec.Data) || got.Namespace != "ns" || got.Index["a"] != "b") {
			t.Fatalf("forged: %+v", got)
		}
		if shown, err := k.names.showID(typ, id); err == nil && k.names.hideID(typ, shown) != id {
			t.Fatalf("%q shows as %q, which hides differently", id, shown)
		}
		// The same contents, properly sealed, must not break the parser within.
		inside := &record.Record{Type: typ, ID: "u", Data: sealWith(k.data[k.current], append([]byte{sealFormat}, k.current[:]...), data, sealAD(k.current, typ, "u"))}
		k.open(inside, "u")
	})
}

func BenchmarkSealedPut(b *testing.B) {
	s, err := Open(b.Context(), Options{Type: "file", DataDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	rec := doc(sessions, "id", strings.Repeat("x", 1500))
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			r := *rec
			r.ID = fmt.Sprintf("%p-%d", pb, i%1000)
			if _, err := s.Put(b.Context(), me, &r); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSealedGet(b *testing.B) {
	s, err := Open(b.Context(), Options{Type: "file", DataDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Put(b.Context(), me, doc(sessions, "id", strings.Repeat("x", 1500))); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Get(b.Context(), sessions, "id"); err != nil {
			b.Fatal(err)
		}
	}
}
