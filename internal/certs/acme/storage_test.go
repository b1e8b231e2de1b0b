package acme

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"postern/internal/store/memory"
)

var quietLog = slog.New(slog.DiscardHandler)

// startS3 runs the S3 server of test/tools and gives the settings of its bucket.
func startS3(t *testing.T) storageURL {
	t.Helper()
	bin, err := filepath.Abs("../../../.bin/s3")
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Dir = "../../../test/tools/s3"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the S3 server cannot be built: %v\n%s", err, out)
	}
	cmd := exec.Command(bin)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	u, err := parseStorage("s3://key:secret@" + strings.TrimSpace(addr) + "/certificates/some/place")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestStorages(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		testStorage(t, &certmagic.FileStorage{Path: t.TempDir()})
	})
	t.Run("records", func(t *testing.T) {
		store := memory.New()
		defer store.Close()
		testStorage(t, newRecordStorage(store, "", quietLog))
		testStorage(t, newRecordStorage(store, "apart", quietLog))
		other := newRecordStorage(store, "else", quietLog)
		if _, err := other.List(t.Context(), "", true); !errors.Is(err, fs.ErrNotExist) {
			t.Error("prefixes are not apart", err)
		}
	})
	t.Run("s3", func(t *testing.T) {
		u := startS3(t)
		o, err := newS3(u)
		if err != nil {
			t.Fatal(err)
		}
		s := newObjectStorage(o, u.prefix, quietLog)
		testStorage(t, s)
		testExpiry(t, s, newObjectStorage(o, u.prefix, quietLog))
		u.bucket = "missing"
		if o, err = newS3(u); err != nil {
			t.Fatal(err)
		}
		if err := newObjectStorage(o, "", quietLog).Store(t.Context(), "a", nil); err == nil || !strings.Contains(err.Error(), "does not exist; make it") {
			t.Error(err)
		}
	})
}

// testStorage is the contract of certmagic.Storage, as far as it is used.
func testStorage(t *testing.T, s certmagic.Storage) {
	t.Helper()
	ctx := t.Context()
	value := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	for _, k := range []string{"certificates/ca/a.test/a.test.crt", "certificates/ca/a.test/a.test.key", "certificates/ca/a.test.other/x", "acme/ca/users/default/default.json"} {
		if err := s.Store(ctx, k, append([]byte(k), value...)); err != nil {
			t.Fatal(err)
		}
	}
	const key = "certificates/ca/a.test/a.test.key"
	if err := s.Store(ctx, key, value); err != nil { // over what is there
		t.Fatal(err)
	}
	if b, err := s.Load(ctx, key); err != nil || !bytes.Equal(b, value) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	for _, k := range []string{"certificates/ca/a.test/none", "none", "certificates/ca/a"} {
		if _, err := s.Load(ctx, k); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Load %s: %v", k, err)
		}
		if _, err := s.Stat(ctx, k); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat %s: %v", k, err)
		}
		if s.Exists(ctx, k) {
			t.Errorf("%s exists", k)
		}
	}
	if st, err := s.Stat(ctx, key); err != nil || !st.IsTerminal || st.Size != int64(len(value)) || time.Since(st.Modified).Abs() > time.Hour {
		t.Errorf("%+v, %v", st, err)
	}
	if st, err := s.Stat(ctx, "certificates/ca"); err != nil || st.IsTerminal {
		t.Errorf("%+v, %v", st, err)
	}
	if !s.Exists(ctx, key) || !s.Exists(ctx, "certificates/ca/a.test") {
		t.Error("what is there does not exist")
	}
	list, err := s.List(ctx, "certificates/ca", false)
	if slices.Sort(list); err != nil || !slices.Equal(list, []string{"certificates/ca/a.test", "certificates/ca/a.test.other"}) {
		t.Errorf("%q, %v", list, err)
	}
	list, err = s.List(ctx, "certificates/ca/a.test", true)
	if slices.Sort(list); err != nil || !slices.Equal(list, []string{"certificates/ca/a.test/a.test.crt", key}) {
		t.Errorf("%q, %v", list, err)
	}
	if err := s.Delete(ctx, "certificates/ca/a.test"); err != nil {
		t.Error(err)
	}
	if s.Exists(ctx, key) || !s.Exists(ctx, "certificates/ca/a.test.other") {
		t.Error("the wrong things were deleted")
	}
	if err := s.Delete(ctx, "certificates/ca/a.test"); err != nil {
		t.Error("what is gone cannot be deleted again:", err)
	}
	testLocks(t, s)
}

func testLocks(t *testing.T, s certmagic.Storage) {
	t.Helper()
	var inside, most atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := s.Lock(t.Context(), "issue_cert_*.a.test"); err != nil {
				t.Error(err)
				return
			}
			if n := inside.Add(1); n > most.Load() {
				most.Store(n)
			}
			time.Sleep(5 * time.Millisecond)
			inside.Add(-1)
			if err := s.Unlock(t.Context(), "issue_cert_*.a.test"); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d held one lock", most.Load())
	}
	if err := s.Lock(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if err := s.Lock(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Lock(ctx, "one"); err == nil {
		t.Error("a held lock was given")
	}
	for _, name := range []string{"one", "other"} {
		if err := s.Unlock(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if err := s.Lock(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	_ = s.Unlock(t.Context(), "one")
}

// testExpiry: the lock of a process that is gone is taken over, that of one
// that lives is not.
func testExpiry(t *testing.T, s, other *objectStorage) {
	t.Helper()
	s.ttl, other.ttl = 300*time.Millisecond, 300*time.Millisecond
	if err := s.Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*s.ttl)
	defer cancel()
	if err := other.Lock(ctx, "x"); err == nil {
		t.Fatal("a lock that is prolonged was taken")
	}
	s.locks["x"].stop() // as if the process were gone
	if err := other.Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if err := s.Unlock(t.Context(), "x"); err != nil {
		t.Error(err)
	}
	if err := other.Unlock(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}
