package identity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/session"
)

func localProvider(t *testing.T, slots int) *Local {
	t.Helper()
	hash, err := hashWith("correct horse", argonParams{memory: 64, passes: 1, threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Settings{Provider: "local", AuthenticateURL: "https://auth.example.com"}, Deps{HashSlots: slots, LocalUsers: []session.LocalAccount{
		{ID: "ada", Email: "ada@example.com", Name: "Ada", Groups: []string{"admins"}, Claims: map[string]any{"team": "x"}, PasswordHash: session.Token(hash)},
		{ID: "bob", Email: "bob@example.com", PasswordHash: session.Token(hash), Disabled: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return p.(*Local)
}

func TestLocal(t *testing.T) {
	l := localProvider(t, 2)
	id, err := l.CheckPassword(t.Context(), "ADA@example.com", "correct horse", "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if id.UserID != "local/ada" || id.Email != "ada@example.com" || id.Claims.String("team") != "x" ||
		strings.Join(id.Directory.GroupIDs, ",") != "admins" || id.Directory.ID != "local/ada" {
		t.Errorf("identity %+v %+v", id, id.Directory)
	}
	for name, c := range map[string][2]string{
		"wrong password": {"ada@example.com", "wrong"},
		"unknown":        {"eve@example.com", "correct horse"},
		"disabled":       {"bob@example.com", "correct horse"},
		"malformed":      {"ada@example.com@evil", "correct horse"},
		"empty":          {"", ""},
		"by id":          {"ada", "correct horse"},
		"too long":       {"ada@example.com", strings.Repeat("x", maxPassword+1)},
	} {
		if _, err := l.CheckPassword(t.Context(), c[0], c[1], "10.0.0.2"); !errors.Is(err, ErrPassword) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A stranger's attempt takes the same road as a member's: one hash of the same
// cost, the same answer, the same throttling.
func TestUnknownAccountsCostTheSame(t *testing.T) {
	l := localProvider(t, 1)
	real, err := parsePHC(string(l.users["ada@example.com"].PasswordHash))
	if err != nil {
		t.Fatal(err)
	}
	dummy, err := parsePHC(l.dummy)
	if err != nil || dummy.params != real.params || len(dummy.sum) != len(real.sum) {
		t.Errorf("the dummy hash costs %+v, a real one %+v (%v)", dummy.params, real.params, err)
	}
	if matches(l.dummy, "") || matches(l.dummy, "x") {
		t.Error("the dummy hash has an easy password")
	}
	outcomes := map[string]string{}
	for _, email := range []string{"ada@example.com", "nobody@example.com"} {
		for range freePair + 3 {
			_, err := l.CheckPassword(t.Context(), email, "wrong", "10.0.0.9")
			var wait *Throttled
			outcomes[email] += fmt.Sprintf("%v,%v;", errors.Is(err, ErrPassword), errors.As(err, &wait))
		}
	}
	if outcomes["ada@example.com"] != outcomes["nobody@example.com"] {
		t.Errorf("known and unknown accounts differ: %v", outcomes)
	}
}

// Guessing is slowed per account and source, and nobody can keep somebody else
// out.
func TestThrottleNeverLocksOthersOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := localProvider(t, 2)
		var wait *Throttled
		for range 1000 {
			_, _ = l.CheckPassword(t.Context(), "ada@example.com", "guess", "203.0.113.1")
		}
		if _, err := l.CheckPassword(t.Context(), "ada@example.com", "correct horse", "203.0.113.1"); !errors.As(err, &wait) {
			t.Errorf("the guesser does not wait: %v", err)
		}
		if _, err := l.CheckPassword(t.Context(), "ada@example.com", "correct horse", "10.0.0.1"); err != nil {
			t.Errorf("the owner is kept out by somebody else's guesses: %v", err)
		}
		time.Sleep(wait.RetryAfter)
		if _, err := l.CheckPassword(t.Context(), "ada@example.com", "correct horse", "203.0.113.1"); err != nil {
			t.Errorf("after the wait: %v", err)
		}
		// A source that sprays over accounts is slow, not shut out.
		for i := range 40 {
			_, _ = l.CheckPassword(t.Context(), fmt.Sprintf("u%d@example.com", i), "guess", "203.0.113.2")
		}
		before := time.Now()
		if _, err := l.CheckPassword(t.Context(), "ada@example.com", "correct horse", "203.0.113.2"); err != nil {
			t.Errorf("a neighbour of a guesser is shut out: %v", err)
		}
		if d := time.Since(before); d == 0 || d > slowestSource {
			t.Errorf("a spraying source waits %v", d)
		}
	})
}

func TestThrottleTablesAreBounded(t *testing.T) {
	tr := newThrottle()
	now := time.Now()
	for i := range 3 * throttleTable {
		tr.failed(fmt.Sprint("a", i), fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), now)
	}
	if n := len(tr.pairs.entries) + len(tr.sources.entries); n > 2*throttleTable {
		t.Errorf("%d entries", n)
	}
	if tr.pairs.order.Len() != len(tr.pairs.entries) {
		t.Error("list and map differ")
	}
	if a, b := sourceKey("2001:db8::1"), sourceKey("2001:db8::ffff"); a != b {
		t.Errorf("one /64 is two sources: %s %s", a, b)
	}
	if a, b := sourceKey("::ffff:10.0.0.1"), sourceKey("10.0.0.1"); a != b {
		t.Errorf("one IPv4 address is two sources: %s %s", a, b)
	}
}

// No more hashes at once than slots; the rest are sent away.
func TestHashBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHasher(2)
		var held []func()
		for range 2 {
			release, err := h.acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, release)
		}
		var mu sync.Mutex
		busy, at := 0, map[time.Duration]int{}
		start := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				_, err := h.acquire(t.Context())
				var wait *Throttled
				mu.Lock()
				defer mu.Unlock()
				if errors.As(err, &wait) && wait.Busy {
					busy++
					at[time.Since(start)]++
				}
			})
		}
		wg.Wait()
		if busy != 100 || at[0] != 100-8 || at[hashPatience] != 8 {
			t.Errorf("%d busy, at %v", busy, at)
		}
		held[0]()
		if _, err := h.acquire(t.Context()); err != nil {
			t.Errorf("a free slot: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.acquire(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("a gone client: %v", err)
		}
	})
}

func TestPasswordHash(t *testing.T) {
	h, err := HashPassword("a good password")
	if err != nil || !strings.HasPrefix(string(h), "$argon2id$v=19$m=19456,t=3,p=1$") {
		t.Fatalf("%.40s %v", string(h), err)
	}
	if !matches(string(h), "a good password") || matches(string(h), "another") {
		t.Error("the hash does not tell passwords apart")
	}
	if _, err := HashPassword("short"); err == nil {
		t.Error("a short password was taken")
	}
	for _, bad := range []string{
		"", "plain", "$argon2i$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$argon2id$v=16$m=64,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=64,t=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$argon2id$v=19$t=1,m=64,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=0,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$argon2id$v=19$m=4294967295,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=64,t=9999,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$argon2id$v=19$m=64,t=1,p=255$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=64,t=1,p=1$$", "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$aGFz",
	} {
		if matches(bad, "") {
			t.Errorf("%q matches", bad)
		}
		if _, err := parsePHC(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestUsersFile(t *testing.T) {
	hash, _ := hashWith("x", argonParams{64, 1, 1})
	good := "users:\n- id: ada\n  email: Ada@example.com\n  name: Ada\n  groups: [a, b]\n  claims: {team: x}\n  password_hash: " + hash + "\n"
	got, err := ParseUsers([]byte(good))
	if err != nil || len(got) != 1 || got[0].Email != "ada@example.com" || got[0].Groups[1] != "b" || got[0].Claims["team"] != "x" {
		t.Fatalf("%v %v", got, err)
	}
	again, err := FormatUsers(got)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := ParseUsers(again); err != nil || fmt.Sprintf("%#v", back) != fmt.Sprintf("%#v", got) {
		t.Errorf("not stable: %v %v", back, err)
	}
	if _, err := ParseUsers([]byte(`[{"id":"ada","email":"a@b.c","password_hash":"` + hash + `"}]`)); err != nil {
		t.Errorf("a JSON list: %v", err)
	}
	if u, err := ParseUsers(nil); err != nil || len(u) != 0 {
		t.Errorf("an empty file: %v %v", u, err)
	}
	one := func(id, email, hash string) string {
		return fmt.Sprintf("- {id: %q, email: %q, password_hash: %q}\n", id, email, hash)
	}
	for name, text := range map[string]string{
		"unknown field": "- {id: a, email: a@b.c, passwd: x}\n",
		"bad id":        one("a/b", "a@b.c", hash),
		"no id":         one("", "a@b.c", hash),
		"bad email":     one("a", "a@b@c", hash),
		"bad hash":      one("a", "a@b.c", "plain"),
		"same id":       one("a", "a@b.c", hash) + one("a", "b@b.c", hash),
		"same email":    one("a", "a@b.c", hash) + one("b", "A@B.C", hash),
		"not a list":    "hello",
		"two documents": one("a", "a@b.c", hash) + "---\n" + one("b", "b@b.c", hash),
	} {
		if _, err := ParseUsers([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), hash) {
			t.Errorf("%s: the error holds the hash", name)
		}
	}
}

func FuzzUsersFile(f *testing.F) {
	f.Add("users:\n- id: a\n  email: a@b.c\n  password_hash: $argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseUsers([]byte(text))
		if err != nil {
			return
		}
		for _, a := range got {
			if !GoodAccountID(a.ID) || session.CanonicalEmail(a.Email) != a.Email {
				t.Fatalf("accepted %q %q", a.ID, a.Email)
			}
		}
	})
}
