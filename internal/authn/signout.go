package authn

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"

	"postern/internal/identity"
	"postern/internal/pages"
	"postern/internal/record"
	"postern/internal/session"
)

// SignOut answers /.pomerium/sign_out. At a route host it takes the cookie
// away and goes to the sign-in host by a signed link that names the session;
// there the session ends. What another site began is asked about first
// (wire-contract.md §3.5, decision 16).
func (s *Service) SignOut(w http.ResponseWriter, r *http.Request, c *session.Caller) {
	if !methods(w, r, http.MethodGet, http.MethodHead, http.MethodPost) {
		return
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		s.refuse(w, r, "the query is malformed", pages.ErrorPage{Kind: pages.BadRequest})
		return
	}
	if !s.isSignInHost(r.Host) || s.shared && !q.Has(session.ParamSignature) && r.Method == http.MethodGet && q.Get("ask") == "" {
		s.signOutHere(w, r, c, q)
		return
	}
	s.signOutAll(w, r, q)
}

// signOutHere is the route host's part.
func (s *Service) signOutHere(w http.ResponseWriter, r *http.Request, c *session.Caller, q url.Values) {
	if !ownDeed(r) {
		// By an image, a frame or another site: the sign-in host asks.
		s.goTo(w, r, s.origin+pathSignOut+"?ask=1")
		return
	}
	s.clearSessionCookie(w)
	next := url.Values{}
	if after := s.afterSignOut(q); after != "" {
		next.Set(paramRedirect, after)
	}
	if c != nil && c.Session != nil && c.ID != "" {
		next.Set(paramSession, b64.EncodeToString(s.keys.Seal(session.PurposeCallback, []byte(c.ID), signOutAD)))
	}
	s.goTo(w, r, s.link(s.origin, pathSignOut, next))
}

var signOutAD = []byte("postern/1 sign out")

// afterSignOut is where the browser goes in the end: the operator's address;
// the caller's own only where a flag allows it.
func (s *Service) afterSignOut(q url.Values) string {
	if s.anyAfter {
		if v, ok := single(q, paramRedirect); ok && v != "" {
			if _, err := session.ParseRedirect(v); err == nil {
				return v
			}
		}
	}
	if u := s.cfg.SignoutRedirectURL; u != nil {
		return u.String()
	}
	return ""
}

// ownDeed says that a person does this in this site's own window: they typed
// it or followed a link of the same site. Fetch metadata tells; without it the
// Origin or Referer must not be another's, and a missing one is no accusation.
func ownDeed(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "":
	case "same-origin", "none":
		dest := r.Header.Get("Sec-Fetch-Dest")
		return dest == "" || dest == "document"
	default:
		return false
	}
	for _, name := range []string{"Origin", "Referer"} {
		if v := r.Header.Get(name); v != "" {
			u, err := url.Parse(v)
			return err == nil && u.Host == r.Host
		}
	}
	return true
}

// signOutAll is the sign-in host's part.
func (s *Service) signOutAll(w http.ResponseWriter, r *http.Request, q url.Values) {
	signed := q.Has(session.ParamSignature)
	if signed {
		if err := session.VerifyLink(s.keys, requestURL(r), s.now()); err != nil {
			s.refuse(w, r, err.Error(), pages.ErrorPage{Kind: pages.BadRequest, Message: "This sign-out link is not valid.", RetryURL: s.origin + pathSignOut})
			return
		}
	}
	if r.Method == http.MethodPost {
		if err := crossOrigin(r); err != nil {
			s.refuse(w, r, err.Error(), pages.ErrorPage{Kind: pages.BadRequest, RetryURL: s.origin + pathSignOut})
			return
		}
	}
	mine, err := s.signInSession(r)
	if err != nil {
		s.storeDown(w, r, err)
		return
	}
	var named string
	if signed {
		named = s.openSignOut(q)
	}
	after := ""
	if signed {
		after, _ = single(q, paramRedirect)
	} else {
		after = s.afterSignOut(q)
	}
	if mine != nil && mine.ID != named {
		// Nobody proved that this browser's session is meant. What the link
		// names ends all the same: its owner asked for that.
		if named != "" && !s.endNamed(w, r, named) {
			return
		}
		s.askSignOut(w, r, mine, after)
		return
	}
	target := mine
	if target == nil && named != "" {
		if target, err = s.readSession(r.Context(), named); err != nil {
			s.storeDown(w, r, err)
			return
		}
	}
	s.clearSignInCookie(w)
	if s.shared {
		s.clearSessionCookie(w)
	}
	to := after
	if target != nil {
		if err := s.EndSession(r.Context(), record.Actor{Kind: record.ActorUser, ID: target.UserID, Via: "sign_out"}, target.ID); err != nil {
			s.storeDown(w, r, err)
			return
		}
		s.log.InfoContext(r.Context(), "signed out", "user", target.UserID, "session-id", target.ID)
		if u := s.leaveProvider(r.Context(), target, after); u != "" {
			to = u
		}
	}
	if to == "" {
		to = s.origin + pathSignedOut
	}
	s.goTo(w, r, to)
}

func (s *Service) endNamed(w http.ResponseWriter, r *http.Request, id string) bool {
	if err := s.EndSession(r.Context(), record.Actor{Kind: record.ActorUser, Via: "sign_out"}, id); err != nil {
		s.storeDown(w, r, err)
		return false
	}
	return true
}

func (s *Service) openSignOut(q url.Values) string {
	raw, ok := single(q, paramSession)
	if !ok || raw == "" || len(raw) > 512 {
		return ""
	}
	sealed, err := b64.DecodeString(raw)
	if err != nil {
		return ""
	}
	id, err := s.keys.Open(session.PurposeCallback, sealed, signOutAD)
	if err != nil {
		return ""
	}
	return string(id)
}

// askSignOut shows the question; its answer is a signed link that names the
// session.
func (s *Service) askSignOut(w http.ResponseWriter, r *http.Request, mine *session.Session, after string) {
	q := url.Values{paramSession: {b64.EncodeToString(s.keys.Seal(session.PurposeCallback, []byte(mine.ID), signOutAD))}}
	if after != "" {
		q.Set(paramRedirect, after)
	}
	p := pages.SignOutPage{Who: s.who(r, mine), Action: s.link(s.origin, pathSignOut, q), StayURL: s.origin + pathDashboard}
	if after != "" {
		p.FormOrigins = append(p.FormOrigins, after)
	}
	if l, ok := s.byID[mine.IDPID].(identity.Logouter); ok {
		ctx, cancel := context.WithTimeout(r.Context(), discoveryPatience)
		defer cancel()
		if u, err := l.LogoutURL(ctx, "", ""); err == nil && u != "" {
			p.FormOrigins = append(p.FormOrigins, u)
		}
	}
	s.pages.ConfirmSignOut(w, r, p)
}

// leaveProvider revokes tokens and gives the provider's own sign-out address,
// or "". The session is gone already, so trouble here keeps nobody signed in.
func (s *Service) leaveProvider(ctx context.Context, sess *session.Session, after string) string {
	p := s.byID[sess.IDPID]
	if p == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	if rv, ok := p.(identity.Revoker); ok && sess.OAuthToken != nil {
		if err := rv.Revoke(ctx, sess.OAuthToken); err != nil {
			s.log.WarnContext(ctx, "tokens could not be revoked at the provider", "error", err, "session-id", sess.ID)
		}
	}
	l, ok := p.(identity.Logouter)
	if !ok {
		return ""
	}
	if after == "" {
		after = s.origin + pathSignedOut
	}
	var hint session.Token
	if sess.IDToken != nil {
		hint = sess.IDToken.Raw
	}
	u, err := l.LogoutURL(ctx, hint, after)
	if err != nil {
		s.log.WarnContext(ctx, "the provider's sign-out address is not known", "error", err)
		return ""
	}
	return u
}

// EndSession deletes a session and those of programs made from it. Every
// cookie and token that names one of them is void at once, everywhere.
func (s *Service) EndSession(ctx context.Context, by record.Actor, id string) error {
	children, err := s.store.Find(ctx, session.SessionType, session.IndexParent, id)
	if err != nil && !errors.Is(err, record.ErrNotFound) {
		return err
	}
	ids := []string{id}
	for _, rec := range children {
		ids = append(ids, rec.ID)
	}
	return s.deleteSessions(ctx, by, ids)
}

// deleteSessions deletes however many sessions there are, in batches.
func (s *Service) deleteSessions(ctx context.Context, by record.Actor, ids []string) error {
	for batch := range slices.Chunk(ids, record.MaxBatch) {
		if err := s.store.Delete(ctx, by, session.SessionType, batch...); err != nil {
			return err
		}
	}
	return nil
}

// EndUserSessions deletes every session of a user and says how many there
// were.
func (s *Service) EndUserSessions(ctx context.Context, by record.Actor, userID string) (int, error) {
	recs, err := s.store.Find(ctx, session.SessionType, session.IndexUser, userID)
	if err != nil && !errors.Is(err, record.ErrNotFound) {
		return 0, err
	}
	ids := make([]string, 0, len(recs))
	for _, rec := range recs {
		ids = append(ids, rec.ID)
	}
	return len(ids), s.deleteSessions(ctx, by, ids)
}

// SignedOut answers /.pomerium/signed_out.
func (s *Service) SignedOut(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	if !methods(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	s.pages.SignedOut(w, r, pages.SignedOutPage{SignInURL: s.origin + pathDashboard})
}
