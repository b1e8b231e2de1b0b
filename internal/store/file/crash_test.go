package file

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/internal/record"
)

// The test binary plays other processes when this variable says so.
const roleVariable = "POSTERN_FILE_TEST_ROLE"

func TestMain(m *testing.M) {
	role, dir, _ := strings.Cut(os.Getenv(roleVariable), ":")
	switch role {
	case "":
		os.Exit(m.Run())
	case "writer":
		crashingWriter(dir)
	case "full":
		fullDisk(dir)
	case "stranger":
		stranger(dir)
	case "holder":
		holder(dir)
	}
	os.Exit(3)
}

func helper(role, dir string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role+":"+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

const typ = "test.Thing"

var me = record.System("test")

func doc(id, text string) *record.Record {
	data, _ := json.Marshal(text)
	return &record.Record{Type: typ, ID: id, Data: data, Index: map[string]string{"text": text[:min(len(text), 40)]}}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "helper process:", err)
		os.Exit(2)
	}
}

// crashingWriter writes, updates and deletes until it is killed. It says
// "begin key value" before and "done key value" after each acknowledgement;
// an empty value is a deletion.
func crashingWriter(dir string) {
	s, err := Open(dir, Options{})
	must(err)
	must(s.SetOptions(context.Background(), typ, record.Options{Indexes: []string{"text"}, Tombstone: record.Forever}))
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(os.Stdout, format+"\n", args...)
	}
	say("ready - -")
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
			ctx := context.Background()
			for i := 0; ; i++ {
				// Ids of this life and worker, so that each key has one writer.
				id := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, r.IntN(1+i/4))
				value := strconv.Itoa(i) + strings.Repeat("x", r.IntN(3000))
				if r.IntN(6) == 0 {
					say("begin %s -", id)
					must(s.Delete(ctx, me, typ, id))
					say("done %s -", id)
					continue
				}
				say("begin %s %s", id, value)
				_, err := s.Put(ctx, me, doc(id, value), doc(id+"-twin", value))
				if errors.Is(err, record.ErrDeleted) {
					say("dead %s -", id)
					continue
				}
				must(err)
				say("done %s %s", id, value)
			}
		})
	}
	wg.Wait()
}

// ledger is what the writers reported about one key.
type ledger struct {
	acked   string // the last acknowledged value; "-" is a deletion
	known   bool   // anything was acknowledged
	pending string // begun and not acknowledged; "" for nothing
}

// TestKilledAtAnyMoment kills a writing process again and again. After each
// kill the store opens, holds what was acknowledged, and nothing that was not
// at least begun. POSTERN_TEST_KILLS sets how often.
func TestKilledAtAnyMoment(t *testing.T) {
	kills := 30
	if n, err := strconv.Atoi(os.Getenv("POSTERN_TEST_KILLS")); err == nil && n > 0 {
		kills = n
	}
	dir := t.TempDir()
	keys := make(map[string]*ledger)
	acked := 0
	var server uint64
	for round := range kills {
		cmd := helper("writer", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		// Most kills come while it writes, after some number of acknowledged
		// writes, however slow the machine is; some come while it opens.
		kill := func(within int) {
			time.AfterFunc(time.Duration(rand.IntN(within))*time.Microsecond, func() { cmd.Process.Kill() })
		}
		after := 5 + rand.IntN(60)
		if round%5 == 0 {
			after = -1
			kill(30_000)
		}
		for lines.Scan() {
			f := strings.Fields(lines.Text())
			if len(f) != 3 {
				continue // cut off by the kill
			}
			k := keys[f[1]]
			if k == nil {
				k = new(ledger)
				keys[f[1]] = k
			}
			switch f[0] {
			case "begin":
				k.pending = f[2]
			case "done":
				k.acked, k.known, k.pending = f[2], true, ""
				acked++
				if after--; after == 0 {
					kill(3_000)
				}
			case "dead":
				k.pending = ""
			}
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("round %d: the writer ended by itself: %v", round, err)
		}
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		v, err := s.ServerVersion(t.Context())
		if err != nil || server != 0 && v.Server != server || s.Restored() {
			t.Fatalf("round %d: %+v, %v, restored %t; server was %d", round, v, err, s.Restored(), server)
		}
		server = v.Server
		for id, k := range keys {
			if err := k.check(t, s, id); err != nil {
				t.Fatalf("round %d: %s: %v", round, id, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if acked < 10*kills {
		t.Fatalf("only %d writes were acknowledged over %d kills; the test does not test", acked, kills)
	}
	t.Logf("%d acknowledged writes over %d kills", acked, kills)
}

func (k *ledger) check(t *testing.T, s *Store, id string) error {
	if id == "-" || !k.known && k.pending == "" {
		return nil
	}
	value := func(id string) (string, error) {
		rec, err := s.Get(t.Context(), typ, id)
		if errors.Is(err, record.ErrNotFound) {
			return "-", nil
		}
		if err != nil {
			return "", err
		}
		var text string
		if err := json.Unmarshal(rec.Data, &text); err != nil {
			return "", err
		}
		found, err := s.Find(t.Context(), typ, "text", text[:min(len(text), 40)])
		for _, f := range found {
			if f.ID == id && f.Version == rec.Version {
				return text, err
			}
		}
		return "", fmt.Errorf("the index does not lead to it: %v", err)
	}
	got, err := value(id)
	if err != nil {
		return err
	}
	switch {
	case k.known && got == k.acked:
	case !k.known && got == "-": // never written, or written and deleted untold
	case k.pending != "" && got == k.pending:
		k.acked, k.known = got, true // it was written, only not told
	default:
		return fmt.Errorf("holds %.20q, acknowledged was %.20q (%t), pending %.20q", got, k.acked, k.known, k.pending)
	}
	k.pending = ""
	if got != "-" { // a batch is whole or absent
		if twin, err := value(id + "-twin"); err != nil || twin != got {
			return fmt.Errorf("holds %.20q but its twin %.20q, %v", got, twin, err)
		}
	}
	if k.known && k.acked == "-" {
		if _, err := s.Put(t.Context(), me, doc(id, "revived")); !errors.Is(err, record.ErrDeleted) {
			return fmt.Errorf("the dead could be written: %v", err)
		}
	}
	return nil
}

// TestTornWrites builds what a power cut can leave: bbolt first writes and
// syncs data pages, then writes one meta page. So either any part of the
// changed data pages is there and the meta is old, or all of them are and the
// meta is torn at any byte.
func TestTornWrites(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "records.db")
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	image := func() []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	text := func(i int) string { return fmt.Sprint(i, strings.Repeat("y", i%7*700)) }
	write := func(i int) {
		if _, err := s.Put(t.Context(), me, doc(fmt.Sprint(i%40), text(i))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 60 {
		write(i)
	}
	tried := 0
	for i := 60; i < 90; i++ {
		before := image()
		write(i)
		after := image()
		for variant := range 8 {
			torn := tear(r, before, after, variant)
			there := checkImage(t, torn, func(c *Store) (string, error) {
				rec, err := c.Get(t.Context(), typ, fmt.Sprint(i%40))
				if err != nil {
					return "", err
				}
				var got string
				return got, json.Unmarshal(rec.Data, &got)
			})
			if there != text(i) && there != text(i-40) {
				t.Fatalf("write %d, variant %d: holds %.20q", i, variant, there)
			}
			tried++
		}
	}
	s.Close()
	t.Logf("%d torn images", tried)
}

const page = 4096

func tear(r *rand.Rand, before, after []byte, variant int) []byte {
	size := max(len(before), len(after))
	pad := func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, size-len(b))...) }
	old, next := pad(before), pad(after)
	torn := bytes.Clone(old)
	if variant < 5 {
		// Some of the data, in any order, each page also torn within.
		for p := 2 * page; p+page <= size; p += page {
			switch r.IntN(3) {
			case 0:
				copy(torn[p:p+page], next[p:p+page])
			case 1:
				copy(torn[p:p+r.IntN(page)], next[p:])
			}
		}
		return torn
	}
	copy(torn[2*page:], next[2*page:])
	for p := 0; p < 2*page; p += page {
		if bytes.Equal(old[p:p+page], next[p:p+page]) {
			continue
		}
		cut := 16 + r.IntN(64) // within the meta
		copy(torn[p:p+cut], next[p:p+cut])
	}
	return torn
}

// checkImage opens a copy of a database and asks it something.
func checkImage(t *testing.T, image []byte, ask func(*Store) (string, error)) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "records.db"), image, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := ask(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), me, doc("after", "x")); err != nil {
		t.Fatal(err)
	}
	return got
}

// fullDisk runs into a file size limit, which fails writes as a full disk
// does, and out of it again.
func fullDisk(dir string) {
	signal.Ignore(syscall.SIGXFSZ)
	ctx := context.Background()
	s, err := Open(dir, Options{})
	must(err)
	var was syscall.Rlimit
	must(syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was))
	limit := was
	limit.Cur = 600 << 10
	must(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit))
	big := strings.Repeat("z", 900)
	acked := 0
	for ; err == nil; acked++ {
		if acked > 5000 {
			must(errors.New("the limit never struck"))
		}
		_, err = s.Put(ctx, me, doc(fmt.Sprint(acked), big))
	}
	acked--
	fmt.Println(err)
	// Reading goes on, and writing as soon as there is room.
	if _, err := s.Get(ctx, typ, "0"); err != nil {
		must(err)
	}
	if _, err := s.Put(ctx, me, doc("big", strings.Repeat(big, 50))); err == nil {
		must(errors.New("the limit does not hold"))
	}
	must(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was))
	if _, err = s.Put(ctx, me, doc("after", "x")); err != nil {
		must(err)
	}
	page, err := s.List(ctx, typ, record.Query{})
	must(err)
	must(s.Close())
	fmt.Println(acked, page.Total)
	os.Exit(0)
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	out, err := helper("full", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "free disk space") || !strings.Contains(lines[0], dir) {
		t.Fatalf("got %q", lines)
	}
	var acked, total int
	if _, err := fmt.Sscan(lines[1], &acked, &total); err != nil || acked < 10 || total < acked+1 {
		t.Fatalf("%d acknowledged, %d there, %v", acked, total, err)
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range acked {
		if _, err := s.Get(t.Context(), typ, fmt.Sprint(i)); err != nil {
			t.Fatalf("acknowledged %d: %v", i, err)
		}
	}
}
