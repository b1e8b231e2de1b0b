package authn

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/record"
	"postern/internal/session"
)

// signedIn gives a world with one session, as right after signing in.
func signedIn(t *testing.T, change func(*world)) *world {
	t.Helper()
	w := newWorld(t, nil)
	if change != nil {
		change(w)
	}
	if p := w.browser().get("https://app.example.com/"); p.StatusCode != 200 {
		t.Fatalf("%d at %s: %s", p.StatusCode, p.Request.URL, p.body)
	}
	return w
}

// run starts the background work and gives its end.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.svc.Run(ctx) })
	return func() { cancel(); wg.Wait() }
}

func (w *world) calls() (token, info, reused int) {
	w.iss.Lock()
	defer w.iss.Unlock()
	return w.iss.TokenCalls, w.iss.UserInfoCalls, w.iss.Reused
}

// users-want 10: tokens that are good once are renewed a minute before their
// end, by one node, and never lost.
func TestRefreshRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := signedIn(t, func(w *world) { w.iss.TokenLife = 5 * time.Minute })
		first := *w.sessions()[0].OAuthToken
		stop := w.run()
		other := w.run() // a second node
		time.Sleep(3*time.Minute + 50*time.Second)
		if n, _, _ := w.calls(); n != 1 {
			t.Errorf("%d token calls before the time", n)
		}
		time.Sleep(20 * time.Second)
		if n, _, _ := w.calls(); n != 2 {
			t.Errorf("%d token calls at the time, want 2", n)
		}
		s := w.sessions()[0]
		if s.OAuthToken.RefreshToken == first.RefreshToken || s.OAuthToken.AccessToken == first.AccessToken || s.RefreshedAt.IsZero() {
			t.Error("the tokens are the old ones")
		}
		time.Sleep(2 * time.Hour)
		n, _, reused := w.calls()
		if reused != 0 || n < 25 || n > 40 {
			t.Errorf("after two hours: %d token calls, %d reused", n, reused)
		}
		// The first node goes; the second goes on.
		stop()
		time.Sleep(time.Hour)
		m, _, reused := w.calls()
		if m-n < 10 || reused != 0 {
			t.Errorf("after the first node went: %d more calls, %d reused", m-n, reused)
		}
		if len(w.sessions()) != 1 {
			t.Error("the session is lost")
		}
		other()
	})
}

// The session ends with cookie_expire, whatever the tokens say.
func TestSessionExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := signedIn(t, nil)
		stop := w.run()
		time.Sleep(14*time.Hour - time.Minute)
		if len(w.sessions()) != 1 {
			t.Error("ended early")
		}
		time.Sleep(2 * time.Minute)
		if len(w.sessions()) != 0 {
			t.Error("an expired session is still a record")
		}
		stop()
	})
}

// users-want 12: the provider's final word ends the session, trouble does not.
func TestRefreshFailures(t *testing.T) {
	for name, c := range map[string]struct {
		fail  func(*world)
		ended bool
	}{
		"user gone":          {func(w *world) { delete(w.iss.People, "u1") }, true},
		"invalid_grant":      {func(w *world) { w.iss.RefreshError = "invalid_grant" }, true},
		"provider down":      {func(w *world) { w.iss.Down = true }, false},
		"our client refused": {func(w *world) { w.iss.RefreshError, w.iss.RefreshStatus = "invalid_client", 401 }, false},
		"overloaded":         {func(w *world) { w.iss.RefreshError, w.iss.RefreshStatus = "slow_down", 429 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := signedIn(t, func(w *world) { w.iss.TokenLife = 5 * time.Minute })
				stop := w.run()
				w.iss.Lock()
				c.fail(w)
				w.iss.Unlock()
				time.Sleep(10 * time.Minute)
				if ended := len(w.sessions()) == 0; ended != c.ended {
					t.Errorf("ended %v, want %v; log:\n%s", ended, c.ended, w.logged())
				}
				if n, _, _ := w.calls(); n > 20 {
					t.Errorf("%d token calls in ten minutes", n)
				}
				if !c.ended {
					w.iss.Lock()
					w.iss.Down, w.iss.RefreshError = false, ""
					w.iss.Unlock()
					time.Sleep(6 * time.Minute)
					if s := w.sessions(); len(s) != 1 || !s[0].OAuthToken.ExpiresAt.After(time.Now()) {
						t.Error("not renewed after the trouble")
					}
				}
				if strings.Contains(w.logged(), "refresh-") || strings.Contains(w.logged(), "access-") {
					t.Error("a token is in the log")
				}
				stop()
			})
		})
	}
}

// security-cases: CVE-2021-41230. A changed claim counts without a new
// sign-in, and one that is gone is gone.
func TestClaimsFollowUserInfo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := signedIn(t, func(w *world) {
			w.iss.User["email_verified"] = true
			w.iss.People["u1"] = map[string]any{"sub": "u1", "groups": []string{"admins"}, "email": "ada@example.com", "email_verified": true}
		})
		if got := w.sessions()[0].Claims["groups"]; len(got) != 1 {
			t.Fatalf("claims %v", w.sessions()[0].Claims)
		}
		stop := w.run()
		w.iss.Lock()
		w.iss.People["u1"] = map[string]any{"sub": "u1", "email": "ada@example.com", "email_verified": false}
		w.iss.Unlock()
		time.Sleep(infoInterval + time.Minute)
		s := w.sessions()[0]
		if len(s.Claims["groups"]) != 0 || s.Claims.String("sub") != "u1" {
			t.Errorf("claims %v", s.Claims)
		}
		rec, err := w.store.Get(context.Background(), session.UserType, "u1")
		if err != nil {
			t.Fatal(err)
		}
		if u, _ := session.DecodeUser(rec); u.Email != "" || u.Name != "Ada" {
			t.Errorf("user %+v: an address that is no longer verified still counts", u)
		}
		if _, n, _ := w.calls(); n > 4 {
			t.Errorf("%d UserInfo calls in eleven minutes", n)
		}
		stop()
	})
}

// security-cases: revocation races. A session signed out while it is being
// renewed stays gone, and what was issued for it is revoked.
func TestSignOutDuringRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := signedIn(t, func(w *world) { w.iss.TokenLife = 5 * time.Minute })
		id := w.sessions()[0].ID
		w.iss.BeforeToken = func(grant string, _ url.Values) {
			if grant == "refresh_token" {
				if err := w.svc.EndSession(context.Background(), record.System("test"), id); err != nil {
					t.Error(err)
				}
			}
		}
		stop := w.run()
		time.Sleep(10 * time.Minute)
		if len(w.sessions()) != 0 {
			t.Error("the session came back")
		}
		w.iss.Lock()
		if len(w.iss.Revoked) == 0 {
			t.Error("the tokens issued meanwhile live on")
		}
		w.iss.Unlock()
		s := &session.Session{ID: id, UserID: "u1", ExpiresAt: time.Now().Add(time.Hour)}
		rec, _ := s.Record()
		if _, err := w.store.Put(context.Background(), record.System("test"), rec); !errors.Is(err, record.ErrDeleted) {
			t.Errorf("a deleted session id was written again: %v", err)
		}
		stop()
	})
}

// flaky fails writes of sessions while it is told to.
type flaky struct {
	record.Store
	mu   sync.Mutex
	down bool
}

func (f *flaky) Update(ctx context.Context, by record.Actor, rec *record.Record) (*record.Record, error) {
	f.mu.Lock()
	down := f.down
	f.mu.Unlock()
	if down && rec.Type == session.SessionType {
		return nil, record.ErrUnavailable
	}
	return f.Store.Update(ctx, by, rec)
}

// A rotated token is kept through a store that fails for a while, and is not
// used before it is stored.
func TestRotatedTokenSurvivesStoreTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		f := &flaky{Store: w.store}
		w.build(func(o *Options) { o.Store = f })
		w.iss.TokenLife = 5 * time.Minute
		if p := w.browser().get("https://app.example.com/"); p.StatusCode != 200 {
			t.Fatal(p.StatusCode)
		}
		_, infoBefore, _ := w.calls()
		stop := w.run()
		f.mu.Lock()
		f.down = true
		f.mu.Unlock()
		time.Sleep(4*time.Minute + 10*time.Second)
		if n, info, _ := w.calls(); n != 2 || info != infoBefore {
			t.Errorf("%d token calls and %d UserInfo calls while nothing can be stored", n, info-infoBefore)
		}
		f.mu.Lock()
		f.down = false
		f.mu.Unlock()
		time.Sleep(time.Hour)
		if _, _, reused := w.calls(); reused != 0 || len(w.sessions()) != 1 {
			t.Errorf("%d reused, %d sessions", reused, len(w.sessions()))
		}
		stop()
	})
}

// A field-masked write leaves what somebody else wrote.
func TestRefreshKeepsOtherFields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := signedIn(t, func(w *world) { w.iss.TokenLife = 5 * time.Minute })
		id := w.sessions()[0].ID
		_, err := record.Modify(context.Background(), w.store, record.System("test"), session.SessionType, id, func(rec *record.Record) error {
			data, err := session.PatchData(rec.Data, map[string]any{"deviceCredentials": []any{map[string]any{"typeId": "any", "id": "c"}}, "fromTheFuture": 1})
			rec.Data = data
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		stop := w.run()
		time.Sleep(5 * time.Minute)
		rec, err := w.store.Get(context.Background(), session.SessionType, id)
		if err != nil || !strings.Contains(string(rec.Data), `"fromTheFuture":1`) || !strings.Contains(string(rec.Data), `"deviceCredentials"`) || rec.Index[session.IndexUser] != "u1" {
			t.Errorf("%v %v", rec, err)
		}
		if n, _, _ := w.calls(); n < 2 {
			t.Error("it was not renewed at all")
		}
		stop()
	})
}

// A session whose provider is no longer configured ends when its turn comes,
// one without refresh token lives to its own end.
func TestNoProviderAndNoRefreshToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := signedIn(t, func(w *world) { w.iss.NoRefreshTokens, w.iss.TokenLife = true, 5*time.Minute })
		stop := w.run()
		time.Sleep(13 * time.Hour)
		if len(w.sessions()) != 1 {
			t.Errorf("a session without refresh token ended early:\n%s", w.logged())
		}
		time.Sleep(2 * time.Hour)
		if len(w.sessions()) != 0 {
			t.Error("it did not end")
		}
		stop()
	})
}

func TestAccessedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := signedIn(t, nil)
		s := w.sessions()[0]
		stop := w.run()
		time.Sleep(time.Minute)
		seen := time.Now()
		for range 1000 {
			w.svc.Touch(&session.Caller{ID: s.ID, Session: s})
		}
		w.svc.Touch(nil)
		w.svc.Touch(&session.Caller{ID: "gone", Session: s})
		time.Sleep(touchInterval + time.Second)
		got := w.sessions()[0]
		if !got.AccessedAt.Equal(seen) {
			t.Errorf("accessed at %v, want %v", got.AccessedAt, seen)
		}
		version := got.RecordVersion
		time.Sleep(time.Minute)
		if w.sessions()[0].RecordVersion != version {
			t.Error("written again without an access")
		}
		w.svc.Touch(&session.Caller{ID: s.ID, Session: s})
		last := time.Now()
		stop()
		if got := w.sessions()[0]; !got.AccessedAt.Equal(last) {
			t.Error("the last batch is lost at the end")
		}
	})
}
