package file

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"

	"postern/internal/record"
)

func openAt(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// refused wants Open to fail with a message that says all of this.
func refused(t *testing.T, dir string, says ...string) {
	t.Helper()
	s, err := Open(dir, Options{})
	if err == nil {
		s.Close()
		t.Fatal("it opened")
	}
	if !errors.Is(err, record.ErrUnavailable) {
		t.Errorf("%v is not ErrUnavailable", err)
	}
	for _, w := range append(says, dir) {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func fill(t *testing.T, s *Store, n int) {
	t.Helper()
	for i := range n {
		if _, err := s.Put(t.Context(), me, doc(fmt.Sprint(i), strings.Repeat("v", i%2000))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := openAt(t, dir)
	fill(t, s, 5)
	for _, path := range []string{dir, filepath.Dir(dir)} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", path, fi.Mode(), err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if fi, err := e.Info(); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), fi.Mode(), err)
		}
	}
}

func TestSecondOpeningIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	fill(t, s, 3)
	refused(t, dir, fmt.Sprint("pid ", os.Getpid()), "stop it first")
	s.Close()
	openAt(t, dir).Close()
	// The same from another process, and after that one was killed.
	cmd := helper("holder", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, fmt.Sprint("pid ", cmd.Process.Pid))
	cmd.Process.Kill()
	cmd.Wait()
	openAt(t, dir)
}

func holder(dir string) {
	_, err := Open(dir, Options{})
	must(err)
	fmt.Println("open")
	select {}
}

// stranger tries as another user, since root may write anything.
func stranger(dir string) {
	if os.Getuid() == 0 {
		must(syscall.Setgid(65534))
		must(syscall.Setuid(65534))
	}
	_, err := Open(dir, Options{})
	fmt.Println(err)
	os.Exit(0)
}

func TestDirectoryWithoutAccess(t *testing.T) {
	base := t.TempDir()
	for p := base; p != os.TempDir() && len(p) > 1; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	readOnly := filepath.Join(base, "ro")
	if err := os.Mkdir(readOnly, 0o555); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(base, "locked")
	openAt(t, locked).Close() // its files are ours alone
	for _, path := range []string{locked, filepath.Join(locked, "lock")} {
		mode := os.FileMode(0o555)
		if path != locked {
			mode = 0o444
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{readOnly, filepath.Join(readOnly, "sub"), locked} {
		out, err := helper("stranger", dir).Output()
		if err != nil {
			t.Fatal(err)
		}
		if s := string(out); !strings.Contains(s, "permission denied") || !strings.Contains(s, "databroker_storage_connection_string") || !strings.Contains(s, dir) {
			t.Errorf("%s: %s", dir, s)
		}
	}
}

func TestExplanations(t *testing.T) {
	b := &backend{dir: "/data", path: "/data/records.db"}
	for err, says := range map[error]string{
		syscall.ENOSPC: "free disk space",
		syscall.EDQUOT: "free disk space",
		syscall.EROFS:  "write access to /data",
		syscall.EACCES: "write access to /data",
		syscall.EIO:    "check the disk",
	} {
		got := b.explain(&fs.PathError{Op: "write", Path: "x", Err: err})
		if !errors.Is(got, record.ErrUnavailable) || !errors.Is(got, err) || !strings.Contains(got.Error(), says) || !strings.Contains(got.Error(), "/data") {
			t.Errorf("%v: %v", err, got)
		}
	}
}

func TestNotADirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, path, "need a directory")
	refused(t, filepath.Join(path, "below"), "cannot be")
}

func TestForeignFiles(t *testing.T) {
	for name, content := range map[string][]byte{
		"empty":  {},
		"text":   []byte("hello, this is no database\n"),
		"zeroes": make([]byte, 64<<10),
		"noise":  noise(64 << 10),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "records.db"), content, 0o600); err != nil {
				t.Fatal(err)
			}
			refused(t, dir, "damaged", "backup")
		})
	}
	t.Run("another program's database", func(t *testing.T) {
		dir := t.TempDir()
		db, err := bolt.Open(filepath.Join(dir, "records.db"), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("theirs")); return err }); err != nil {
			t.Fatal(err)
		}
		db.Close()
		refused(t, dir, "another program")
	})
}

func noise(n int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestNewerFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	openAt(t, dir).Close()
	db, err := bolt.Open(filepath.Join(dir, "records.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bolt.Tx) error { return putHeader(tx, header{Format: Format + 1, Database: "x"}) }); err != nil {
		t.Fatal(err)
	}
	db.Close()
	refused(t, dir, fmt.Sprint("format ", Format+1), "newer version")
}

// TestDamagedFiles cuts and garbles a database at many places. Opening and
// using it gives what was stored, or an error that says what to do: never a
// panic, a crash or other data.
func TestDamagedFiles(t *testing.T) {
	origin := t.TempDir()
	s := openAt(t, origin)
	if err := s.SetOptions(t.Context(), typ, record.Options{Indexes: []string{"text"}}); err != nil {
		t.Fatal(err)
	}
	fill(t, s, 150)
	for i := range 50 {
		if err := s.Delete(t.Context(), me, typ, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	whole, err := os.ReadFile(filepath.Join(origin, "records.db"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := newestMeta(bytes.NewReader(whole), int64(len(whole)))
	if err != nil {
		t.Fatal(err)
	}
	used := int(m.pages) * int(m.pageSize)
	whole = whole[:used]
	r := rand.New(rand.NewPCG(5, 6))
	dir := t.TempDir()
	var opened, refusals, wrong int
	try := func(image []byte) {
		for _, name := range []string{"place", "records.db.new"} {
			os.Remove(filepath.Join(dir, name))
		}
		if err := os.WriteFile(filepath.Join(dir, "records.db"), image, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, Options{})
		if err != nil {
			if !errors.Is(err, record.ErrUnavailable) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("refused without advice: %v", err)
			}
			refusals++
			return
		}
		defer s.Close()
		opened++
		for i := range 150 {
			rec, err := s.Get(t.Context(), typ, fmt.Sprint(i))
			switch {
			case errors.Is(err, record.ErrUnavailable):
				wrong++
			case err == nil && (rec.ID != fmt.Sprint(i) || string(rec.Data) != `"`+strings.Repeat("v", i%2000)+`"`):
				t.Fatalf("record %d came back as %+v", i, rec)
			}
		}
		s.List(t.Context(), typ, record.Query{})
		s.Find(t.Context(), typ, "text", "v")
		s.Put(t.Context(), me, doc("new", "x"))
		s.Delete(t.Context(), me, typ, "77")
	}
	for range 40 {
		try(whole[:r.IntN(len(whole))])
	}
	for range 150 {
		image := bytes.Clone(whole)
		switch at := r.IntN(len(image)); r.IntN(4) {
		case 0: // a bit
			image[at] ^= 1 << r.IntN(8)
		case 1: // a sector of zeroes
			at -= at % 512
			clear(image[at : at+512])
		case 2: // a page of noise
			at -= at % page
			copy(image[at:at+page], noise(page))
		case 3: // a page in the place of another
			from := r.IntN(len(image)/page) * page
			at -= at % page
			copy(image[at:at+page], whole[from:from+page])
		}
		try(image)
	}
	if opened == 0 || refusals == 0 {
		t.Fatalf("%d opened, %d refused: the damage is not varied", opened, refusals)
	}
	t.Logf("%d opened (%d records refused), %d refused", opened, wrong, refusals)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestRestoredBackupIsNoticed(t *testing.T) {
	const sessions = "test.Session"
	session := func(id string) *record.Record { r := doc(id, "x"); r.Type = sessions; return r }
	setup := func(t *testing.T) (dir string, server uint64, backup string) {
		dir, backup = t.TempDir(), t.TempDir()
		s := openAt(t, dir)
		if err := s.SetOptions(t.Context(), sessions, record.Options{EndsWithServer: true, Tombstone: record.Forever}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Put(t.Context(), me, session("s1"), doc("u1", "x")); err != nil {
			t.Fatal(err)
		}
		s.Close()
		for _, name := range []string{"records.db", "place"} {
			copyFile(t, filepath.Join(dir, name), filepath.Join(backup, name))
		}
		s = openAt(t, dir)
		if s.Restored() {
			t.Fatal("an ordinary opening looks like a restore")
		}
		if err := s.Delete(t.Context(), me, sessions, "s1"); err != nil { // revoked after the backup
			t.Fatal(err)
		}
		v, err := s.ServerVersion(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		return dir, v.Server, backup
	}
	for name, restore := range map[string]func(t *testing.T, dir, backup string) string{
		"file over the old one": func(t *testing.T, dir, backup string) string {
			copyFile(t, filepath.Join(backup, "records.db"), filepath.Join(dir, "records.db"))
			return dir
		},
		"both files replaced": func(t *testing.T, dir, backup string) string {
			for _, name := range []string{"records.db", "place"} {
				os.Rename(filepath.Join(dir, name), filepath.Join(dir, name+".old"))
				copyFile(t, filepath.Join(backup, name), filepath.Join(dir, name))
			}
			return dir
		},
		"another directory": func(t *testing.T, _, backup string) string { return backup },
		"database alone": func(t *testing.T, _, backup string) string {
			os.Remove(filepath.Join(backup, "place"))
			return backup
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, server, backup := setup(t)
			dir = restore(t, dir, backup)
			var log bytes.Buffer
			s, err := Open(dir, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			v, err := s.ServerVersion(t.Context())
			if err != nil || !s.Restored() || v.Server == server || !strings.Contains(log.String(), "sign in again") {
				t.Fatalf("restored %t, server %d after %d, %v, log %q", s.Restored(), v.Server, server, err, &log)
			}
			if _, err := s.Get(t.Context(), sessions, "s1"); !errors.Is(err, record.ErrNotFound) {
				t.Fatalf("the revoked session is back: %v", err)
			}
			if _, err := s.Put(t.Context(), me, session("s1")); !errors.Is(err, record.ErrDeleted) {
				t.Fatalf("the revoked session can be written: %v", err)
			}
			if _, err := s.Get(t.Context(), typ, "u1"); err != nil {
				t.Fatal(err)
			}
			s.Close()
			if s = openAt(t, dir); s.Restored() {
				t.Fatal("the restore is noticed twice")
			}
		})
	}
}

func TestHalfMadeDatabaseIsMadeAnew(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "records.db.new"), noise(5000), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, dir)
	fill(t, s, 3)
	if s.Restored() {
		t.Fatal("a new directory looks restored")
	}
}

func TestFencesSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	a, err := s.Acquire(t.Context(), "x", 1e12)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openAt(t, dir)
	b, err := s.Acquire(t.Context(), "x", 1e12) // its holder's process is gone
	if err != nil || b.Fence <= a.Fence {
		t.Fatalf("%+v after %+v, %v", b, a, err)
	}
	if _, err := s.Renew(t.Context(), a, 1e12); !errors.Is(err, record.ErrLeaseLost) {
		t.Fatal(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("id", encode(doc("id", "text")))
	f.Add("", []byte{})
	f.Fuzz(func(t *testing.T, id string, data []byte) {
		rec, err := decode(typ, id, data)
		if err == nil && !bytes.Equal(encode(rec), data) {
			t.Fatalf("%q decodes to %+v, which encodes otherwise", data, rec)
		}
		// With a right checksum the parser must hold as well.
		if len(data) > 4 {
			b := data[:len(data)-4]
			decode(typ, id, appendSum(b, checksum(typ, id, b)))
		}
	})
}

func appendSum(b []byte, sum uint32) []byte {
	return append(bytes.Clone(b), byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
}
