package authn

import (
	"container/heap"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"postern/internal/identity"
	"postern/internal/record"
	"postern/internal/session"
)

// Times of the refresh worker (wire-contract.md §3.4).
const (
	leaseName      = "identity_manager"
	leaseTTL       = 30 * time.Second
	leaseRenew     = 10 * time.Second
	refreshEarly   = time.Minute      // before a token ends
	refreshGap     = 10 * time.Second // at least, between two refreshes of one session
	infoInterval   = 10 * time.Minute
	retryLongest   = 5 * time.Minute
	accountsEvery  = 30 * time.Second
	refreshWorkers = 8
	// callBudget is the longest that one session's turn may take; the lease
	// must outlive it.
	callBudget = 15 * time.Second
)

// Run does the background work of sign-in until ctx ends: accessed_at
// batches on every node; refresh, expiry and local accounts on the one node
// that holds the lease identity_manager, so that a refresh token that is good
// once is used once.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.runTouch(ctx) })
	for ctx.Err() == nil {
		lease, err := s.store.Acquire(ctx, leaseName, leaseTTL)
		if err != nil {
			if !errors.Is(err, record.ErrLeaseHeld) && ctx.Err() == nil {
				s.log.WarnContext(ctx, "the lease for refreshing sessions cannot be had; check the databroker storage", "error", err)
			}
			pause(ctx, leaseRenew/2)
			continue
		}
		s.lead(ctx, lease)
	}
	wg.Wait()
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// lead works while the lease is held.
func (s *Service) lead(ctx context.Context, lease record.Lease) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	m := &manager{s: s, items: map[string]*item{}, users: map[string]time.Time{}, wake: make(chan struct{}, 1), lease: lease}
	wg.Go(func() { defer cancel(); m.renew(ctx) })
	wg.Go(func() { defer cancel(); m.watch(ctx) })
	wg.Go(func() { m.accounts(ctx) })
	m.work(ctx)
	cancel()
	wg.Wait()
	// Let the next one begin at once rather than when the lease runs out.
	release, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer done()
	_ = s.store.Release(release, m.held())
}

// manager is one reign: the schedule of all sessions, soonest first.
type manager struct {
	s     *Service
	mu    sync.Mutex
	lease record.Lease
	items map[string]*item
	queue queue
	users map[string]time.Time // when UserInfo was last asked, by provider and user
	wake  chan struct{}
}

// item is one session in the schedule.
type item struct {
	id       string
	due      time.Time
	at       int // place in the queue, -1 while at work
	last     time.Time
	failures int
	changed  bool // the record changed while at work
}

func (m *manager) held() record.Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lease
}

// renew keeps the lease; it ends when the lease is lost.
func (m *manager) renew(ctx context.Context) {
	for {
		pause(ctx, leaseRenew)
		if ctx.Err() != nil {
			return
		}
		l, err := m.s.store.Renew(ctx, m.held(), leaseTTL)
		switch {
		case err == nil:
			m.mu.Lock()
			m.lease = l
			m.mu.Unlock()
		case errors.Is(err, record.ErrLeaseLost) || !m.leaseGood():
			if ctx.Err() == nil {
				m.s.log.WarnContext(ctx, "the lease for refreshing sessions is lost; another node goes on", "error", err)
			}
			return
		}
	}
}

// leaseGood says that the lease outlives one more turn.
func (m *manager) leaseGood() bool { return time.Until(m.held().Expires) > callBudget }

// work takes sessions as they fall due.
func (m *manager) work(ctx context.Context) {
	slots := make(chan struct{}, refreshWorkers)
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		m.mu.Lock()
		var next *item
		wait := time.Hour
		if len(m.queue) > 0 {
			if wait = m.queue[0].due.Sub(m.s.now()); wait <= 0 {
				next = heap.Pop(&m.queue).(*item)
				next.at = -1
			}
		}
		m.mu.Unlock()
		if next == nil {
			t := time.NewTimer(wait)
			select {
			case <-m.wake:
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			m.turn(ctx, next)
		})
	}
}

// turn looks after one session and puts it back.
func (m *manager) turn(ctx context.Context, it *item) {
	outcome := tryLater
	if m.leaseGood() {
		// The work is finished even when the reign ends meanwhile: a token
		// that was renewed must be stored.
		tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callBudget)
		outcome = m.attend(tctx, it)
		cancel()
	}
	if outcome == over {
		m.mu.Lock()
		if m.items[it.id] == it {
			delete(m.items, it.id)
		}
		m.mu.Unlock()
		return
	}
	sess, err := m.s.readSession(context.WithoutCancel(ctx), it.id)
	m.mu.Lock()
	if m.items[it.id] != it {
		m.mu.Unlock()
		return // dropped, or another reign's
	}
	it.at, it.changed = -2, false
	switch outcome {
	case tryLater:
		it.failures++
		it.last = m.s.now()
	case done:
		it.failures = 0
	}
	if err != nil || sess == nil {
		it.due = m.s.now().Add(refreshGap)
		heap.Push(&m.queue, it)
		m.nudge()
		m.mu.Unlock()
		return
	}
	m.mu.Unlock()
	m.schedule(sess)
}

type outcome uint8

const (
	done outcome = iota
	tryLater
	over // the session is gone
)

// attend does what a session needs now.
func (m *manager) attend(ctx context.Context, it *item) outcome {
	s := m.s
	rec, err := s.store.Get(ctx, session.SessionType, it.id)
	if gone(err) {
		return over
	}
	if err != nil {
		s.log.WarnContext(ctx, "a session could not be read for its refresh", "error", err)
		return tryLater
	}
	sess, err := session.DecodeSession(rec)
	if err != nil {
		return tryLater
	}
	now := s.now()
	if sess.Expired(now) {
		return m.end(ctx, sess, "it has expired", nil)
	}
	p := s.byID[sess.IDPID]
	if p == nil {
		return m.end(ctx, sess, "its identity provider is no longer configured", nil)
	}
	m.mu.Lock()
	asked := m.users[sess.IDPID+"\n"+sess.UserID]
	last := it.last
	m.mu.Unlock()
	refresh := false
	if at := s.nextRefresh(sess, last); !at.IsZero() && !now.Before(at) {
		refresh = true
	}
	if refresh {
		return m.refresh(ctx, p, sess)
	}
	if s.asksUserInfo(sess) && !now.Before(asked.Add(infoInterval)) {
		return m.userInfo(ctx, p, sess, nil, true)
	}
	return done
}

// end deletes a session for good.
func (m *manager) end(ctx context.Context, sess *session.Session, why string, cause error) outcome {
	s := m.s
	by := record.System("refresh")
	lease := m.held()
	by.Lease = &lease
	if err := s.EndSession(ctx, by, sess.ID); err != nil {
		s.log.WarnContext(ctx, "a session could not be ended", "session-id", sess.ID, "error", err)
		return tryLater
	}
	s.log.InfoContext(ctx, "a session was ended", "session-id", sess.ID, "user", sess.UserID, "why", why, "error", cause)
	return over
}

var errOvertaken = errors.New("somebody else renewed the tokens")

// refresh uses the refresh token. The new tokens are stored before anything
// else is done with them, as often as it takes: the old ones may be void.
func (m *manager) refresh(ctx context.Context, p identity.Provider, sess *session.Session) outcome {
	s := m.s
	rf, ok := p.(identity.Refresher)
	if !ok {
		return done
	}
	subject := ""
	if sess.IDToken != nil {
		subject = sess.IDToken.Subject
	}
	callCtx, cancel := context.WithTimeout(ctx, callBudget*2/3)
	tokens, err := rf.Refresh(callCtx, sess.OAuthToken, subject)
	cancel()
	if identity.IsPermanent(err) {
		return m.end(ctx, sess, "the identity provider refused to renew it", err)
	}
	if err != nil {
		s.log.WarnContext(ctx, "a session could not be renewed; it is kept and tried again", "session-id", sess.ID, "error", err)
		return tryLater
	}
	used := sess.OAuthToken.RefreshToken
	now := s.now()
	keep, cancelKeep := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancelKeep()
	for {
		err = s.patchSession(keep, record.System("refresh"), sess.ID, func(cur *session.Session) (map[string]any, error) {
			if cur.OAuthToken == nil || cur.OAuthToken.RefreshToken != used {
				return nil, errOvertaken
			}
			set := map[string]any{"oauthToken": tokens.OAuthToken, "refreshedAt": now.UTC()}
			if tokens.IDToken != nil {
				set["idToken"] = tokens.IDToken
			}
			return set, nil
		})
		if err == nil || gone(err) || errors.Is(err, errOvertaken) || keep.Err() != nil {
			break
		}
		s.log.WarnContext(ctx, "renewed tokens could not be stored yet; it is tried again", "session-id", sess.ID, "error", err)
		pause(keep, 500*time.Millisecond)
	}
	switch {
	case gone(err):
		// Signed out meanwhile. What was just issued must not live on.
		if rv, ok := p.(identity.Revoker); ok {
			_ = rv.Revoke(keep, tokens.OAuthToken)
		}
		return over
	case errors.Is(err, errOvertaken):
		return done
	case err != nil:
		s.log.ErrorContext(ctx, "renewed tokens could not be stored; this session will need a new sign-in", "session-id", sess.ID, "error", err)
		return tryLater
	}
	fresh := *sess
	fresh.OAuthToken, fresh.RefreshedAt = tokens.OAuthToken, now
	if tokens.IDToken != nil {
		fresh.IDToken = tokens.IDToken
	}
	return m.userInfo(keep, p, &fresh, tokens.IDClaims, false)
}

// userInfo asks who the person is now and lets it count: in the user record
// and in all sessions of the same person with the same provider.
func (m *manager) userInfo(ctx context.Context, p identity.Provider, sess *session.Session, idClaims map[string]any, poll bool) outcome {
	s := m.s
	ui, ok := p.(identity.UserInfoer)
	if !ok || sess.OAuthToken == nil {
		return done
	}
	m.mu.Lock()
	m.users[sess.IDPID+"\n"+sess.UserID] = s.now()
	m.mu.Unlock()
	if idClaims == nil && sess.IDToken != nil {
		idClaims = payloadClaims(string(sess.IDToken.Raw))
	}
	subject := ""
	if sess.IDToken != nil {
		subject = sess.IDToken.Subject
	}
	callCtx, cancel := context.WithTimeout(ctx, callBudget*2/3)
	id, err := ui.UserInfo(callCtx, sess.OAuthToken, subject, idClaims)
	cancel()
	if identity.IsPermanent(err) {
		if poll && sess.OAuthToken.RefreshToken != "" {
			// The access token may merely be used up; renewing it decides.
			return m.refresh(ctx, p, sess)
		}
		if exp := sess.OAuthToken.ExpiresAt; poll && !exp.IsZero() && !s.now().Before(exp) {
			return done
		}
		return m.end(ctx, sess, "the identity provider no longer knows its user", err)
	}
	if err != nil {
		s.log.WarnContext(ctx, "the identity provider could not be asked about a user; the session is kept", "session-id", sess.ID, "error", err)
		if poll {
			return done // the next question comes in its time
		}
		return tryLater
	}
	if id.UserID != sess.UserID {
		return m.end(ctx, sess, "the identity provider now names another user", nil)
	}
	if err := s.applyIdentity(ctx, p, sess, id); err != nil {
		s.log.WarnContext(ctx, "a user's claims could not be stored", "session-id", sess.ID, "error", err)
		return tryLater
	}
	return done
}

// applyIdentity stores what a provider says about a person now.
func (s *Service) applyIdentity(ctx context.Context, p identity.Provider, sess *session.Session, id *identity.Identity) error {
	by := record.System("refresh")
	rec, err := s.store.Get(ctx, session.UserType, id.UserID)
	if err != nil && !gone(err) {
		return err
	}
	merged := *id
	if rec != nil {
		if user, err := session.DecodeUser(rec); err == nil {
			merged.Claims = user.Claims.Renew(id.Claims)
			if !id.EmailSaid {
				merged.Email = user.Email
			}
			if id.Name == "" {
				merged.Name = user.Name
			}
			if user.Name == merged.Name && user.Email == merged.Email && sameClaims(user.Claims, merged.Claims) {
				rec = nil
			}
		}
	}
	if rec != nil {
		if err := s.putUser(ctx, by, p.ID(), &merged); err != nil {
			return err
		}
	}
	recs, err := s.store.Find(ctx, session.SessionType, session.IndexUser, id.UserID)
	if err != nil && !gone(err) {
		return err
	}
	for _, rec := range recs {
		other, err := session.DecodeSession(rec)
		if err != nil || other.IDPID != sess.IDPID || sameClaims(other.Claims, other.Claims.Renew(id.Claims)) {
			continue
		}
		err = s.patchSession(ctx, by, other.ID, func(cur *session.Session) (map[string]any, error) {
			return map[string]any{"claims": cur.Claims.Renew(id.Claims)}, nil
		})
		if err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// payloadClaims reads the claims of an identity token that was verified when
// it was stored.
func payloadClaims(raw string) map[string]any {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	var claims map[string]any
	if json.Unmarshal(b, &claims) != nil {
		return nil
	}
	return claims
}

// accounts keeps local accounts' records in step while the lease is held.
func (m *manager) accounts(ctx context.Context) {
	for ctx.Err() == nil {
		if err := m.s.SyncAccounts(ctx); err != nil && ctx.Err() == nil {
			m.s.log.WarnContext(ctx, "local accounts could not be matched with their records; it is tried again", "error", err)
		}
		pause(ctx, accountsEvery)
	}
}
