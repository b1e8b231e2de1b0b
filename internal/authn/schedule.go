package authn

import (
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"postern/internal/identity"
	"postern/internal/record"
	"postern/internal/session"
)

// watch keeps the schedule in step with the session records.
func (m *manager) watch(ctx context.Context) {
	var at record.Cursor
	for ctx.Err() == nil {
		err := m.watchOnce(ctx, &at)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, record.ErrHistoryGone) || errors.Is(err, record.ErrWrongServer) {
			at = record.Cursor{}
			m.mu.Lock()
			m.items, m.queue = map[string]*item{}, nil
			m.mu.Unlock()
		} else {
			m.s.log.WarnContext(ctx, "watching sessions was interrupted; it is tried again", "error", err)
		}
		pause(ctx, time.Second)
	}
}

func (m *manager) watchOnce(ctx context.Context, at *record.Cursor) error {
	stream, err := m.s.store.Watch(ctx, session.SessionType, *at)
	if err != nil {
		return err
	}
	defer stream.Close()
	for {
		ev, err := stream.Next(ctx)
		if err != nil {
			return err
		}
		if ev.Kind == record.Changed {
			if ev.Record.Deleted() {
				m.drop(ev.Record.ID)
			} else if sess, err := session.DecodeSession(ev.Record); err == nil {
				m.schedule(sess)
			} else {
				m.s.log.ErrorContext(ctx, "a session record cannot be read and is not refreshed", "error", err)
			}
		}
		*at = ev.Cursor
	}
}

func (m *manager) drop(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if it := m.items[id]; it != nil {
		delete(m.items, id)
		if it.at >= 0 {
			heap.Remove(&m.queue, it.at)
		}
	}
}

// schedule puts a session where it belongs in the queue.
func (m *manager) schedule(sess *session.Session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it := m.items[sess.ID]
	if it == nil {
		it = &item{id: sess.ID, at: -2}
		m.items[sess.ID] = it
	}
	if it.at == -1 {
		it.changed = true // whoever works on it puts it back
		return
	}
	if sess.RefreshedAt.After(it.last) {
		it.last, it.failures = sess.RefreshedAt, 0
	}
	it.due = m.due(sess, it)
	if it.at < 0 {
		heap.Push(&m.queue, it)
	} else {
		heap.Fix(&m.queue, it.at)
	}
	m.nudge()
}

func (m *manager) nudge() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// due is when a session needs attention: its end, its tokens' renewal, or the
// next question about its user. The caller holds mu.
func (m *manager) due(sess *session.Session, it *item) time.Time {
	due := sess.ExpiresAt
	earlier := func(t time.Time) {
		if t.Before(due) {
			due = t
		}
	}
	if at := m.s.nextRefresh(sess, it.last); !at.IsZero() {
		if it.failures > 0 {
			if back := it.last.Add(min(retryLongest, refreshGap<<min(it.failures-1, 10))); at.Before(back) {
				at = back
			}
		}
		earlier(at)
	}
	if m.s.asksUserInfo(sess) {
		key := sess.IDPID + "\n" + sess.UserID
		last, known := m.users[key]
		if !known {
			// Spread first questions, so that a new leader does not put them
			// all at once.
			last = m.s.now().Add(-rand.N(infoInterval / 2))
			if sess.IssuedAt.After(last) {
				last = sess.IssuedAt
			}
			m.users[key] = last
		}
		earlier(last.Add(infoInterval))
	}
	return due
}

// nextRefresh is min(OAuth expiry, ID-token expiry) - 1 min, at least 10 s
// after the last refresh; zero for a session that cannot be refreshed
// (wire-contract.md §3.4).
func (s *Service) nextRefresh(sess *session.Session, last time.Time) time.Time {
	if sess.RefreshDisabled || sess.OAuthToken == nil || sess.OAuthToken.RefreshToken == "" {
		return time.Time{}
	}
	var at time.Time
	earlier := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if t := sess.OAuthToken.ExpiresAt; !t.IsZero() {
		earlier(t.Add(-refreshEarly))
	}
	if t := sess.IDToken; s.atIDToken && t != nil && !t.ExpiresAt.IsZero() {
		earlier(t.ExpiresAt.Add(-refreshEarly))
	}
	if sess.RefreshedAt.After(last) {
		last = sess.RefreshedAt
	}
	if sess.IssuedAt.After(last) {
		last = sess.IssuedAt
	}
	if gap := last.Add(refreshGap); !at.IsZero() && at.Before(gap) {
		at = gap
	}
	return at
}

// asksUserInfo says whether the provider can be asked about this session's
// user: with an access token that is still good.
func (s *Service) asksUserInfo(sess *session.Session) bool {
	if sess.RefreshDisabled || sess.OAuthToken == nil || sess.OAuthToken.AccessToken == "" {
		return false
	}
	if _, ok := s.byID[sess.IDPID].(identity.UserInfoer); !ok {
		return false
	}
	return sess.OAuthToken.ExpiresAt.IsZero() || s.now().Before(sess.OAuthToken.ExpiresAt) || sess.OAuthToken.RefreshToken != ""
}

// queue orders items by when they are due.
type queue []*item

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}
func (q *queue) Push(x any) {
	it := x.(*item)
	it.at = len(*q)
	*q = append(*q, it)
}
func (q *queue) Pop() any {
	old := *q
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	it.at = -2
	return it
}
