package authn

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/google/uuid"

	"postern/internal/pages"
	"postern/internal/record"
	"postern/internal/session"
)

// ProgramLogin answers /.pomerium/api/v1/login at a route host: the address
// that a program opens in the person's browser to get a token
// (wire-contract.md §6.1).
func (s *Service) ProgramLogin(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	if !methods(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	plain := func(status int, text string) {
		h := w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		plain(http.StatusBadRequest, "the query is malformed: give pomerium_redirect_uri, percent-encoded\n")
		return
	}
	raw, ok := single(q, paramRedirect)
	switch {
	case !ok:
		plain(http.StatusBadRequest, "pomerium_redirect_uri is doubled: give it once\n")
		return
	case raw == "":
		plain(http.StatusNotFound, "pomerium_redirect_uri is missing: give the address that the token is to be sent to\n")
		return
	}
	if _, err := session.CheckProgramRedirect(raw, s.cfg.ProgrammaticRedirectDomainWhitelist); err != nil {
		plain(http.StatusBadRequest, err.Error()+"\n")
		return
	}
	d := &destination{
		Redirect: raw, Callback: "https://" + r.Host + pathCallback, Program: true, IDP: s.DefaultProvider(),
	}
	if s.idpFor != nil {
		if id := s.idpFor(r.Host); id != "" {
			d.IDP = id
		}
	}
	plain(http.StatusOK, s.signInLink(d))
}

// confirmProgram asks the person, at the sign-in host, before a program gets a
// token (decision 13). The answer is posted back to the same link.
func (s *Service) confirmProgram(w http.ResponseWriter, r *http.Request, d *destination, sess *session.Session) {
	nonce := s.ensureNonce(w, r)
	signature := r.URL.Query().Get(session.ParamSignature)
	if r.Method == http.MethodPost {
		s.programAnswer(w, r, d, sess, nonce, signature)
		return
	}
	cb, err := d.callback()
	to, err2 := url.Parse(d.Redirect)
	if err != nil || err2 != nil {
		s.refuse(w, r, "the program's link is malformed", pages.ErrorPage{Kind: pages.BadRequest})
		return
	}
	ip, ipErr := netip.ParseAddr(to.Hostname())
	app := cb.Host
	if s.appName != nil {
		if name := s.appName(cb.Host); name != "" {
			app = name
		}
	}
	s.pages.ConfirmProgram(w, r, pages.ProgramPage{
		Application: app, Destination: to.Host, Local: to.Hostname() == "localhost" || ipErr == nil && ip.Unmap().IsLoopback(),
		Who: s.who(r, sess), Until: sess.ExpiresAt, Action: requestURL(r).String(),
		Fields:      []pages.Field{{Name: "csrf", Value: b64.EncodeToString(s.keys.MAC(session.PurposeCSRF, "program", nonce, sess.ID, signature))}},
		FormOrigins: []string{"https://" + cb.Host, d.Redirect},
	})
}

func (s *Service) programAnswer(w http.ResponseWriter, r *http.Request, d *destination, sess *session.Session, nonce, signature string) {
	form, err := postedForm(r)
	if err == nil {
		err = crossOrigin(r)
	}
	if err == nil {
		mac, derr := b64.DecodeString(form.Get("csrf"))
		if derr != nil || !s.keys.CheckMAC(session.PurposeCSRF, mac, "program", nonce, sess.ID, signature) {
			err = errors.New("the form was not made for this browser")
		}
	}
	if err != nil {
		s.refuse(w, r, err.Error(), pages.ErrorPage{Kind: pages.BadRequest, Message: "This form had grown too old or came from elsewhere. Start the program's sign-in again."})
		return
	}
	if form.Get("decision") != "allow" {
		s.refuse(w, r, "the person refused a program", pages.ErrorPage{
			Kind: pages.SignInFailed, Status: http.StatusForbidden, Message: "You refused the program, and nothing was given to it.",
		})
		return
	}
	own, err := s.programSession(r, sess)
	if err != nil {
		s.storeDown(w, r, err)
		return
	}
	hop, err := s.hop(r.Context(), d, own)
	if err != nil {
		s.storeDown(w, r, err)
		return
	}
	s.log.InfoContext(r.Context(), "a program was given a session", "user", own.UserID, "session-id", own.ID, "parent-session-id", sess.ID)
	s.goTo(w, r, hop)
}

// programSession makes the program's own record. It holds no refresh token,
// which two sessions would burn for each other; it ends with the session it
// was made from.
func (s *Service) programSession(r *http.Request, sess *session.Session) (*session.Session, error) {
	now := s.now()
	own := *sess
	own.ID, own.ParentSessionID, own.Program = uuid.NewString(), sess.ID, true
	own.IssuedAt, own.AccessedAt, own.RefreshedAt = now, now, now
	own.ExpiresAt = sess.ExpiresAt
	own.RefreshDisabled, own.RecordVersion = true, 0
	own.UserAgent, own.RemoteIP = cut(r.UserAgent(), 256), cut(s.clientIP(r), 64)
	own.DeviceCredentials = nil
	if t := sess.OAuthToken; t != nil {
		c := *t
		c.RefreshToken = ""
		own.OAuthToken = &c
	}
	rec, err := own.Record()
	if err != nil {
		return nil, err
	}
	out, err := s.store.Put(r.Context(), record.Actor{Kind: record.ActorUser, ID: sess.UserID, Via: "program"}, rec)
	if err != nil {
		return nil, err
	}
	own.RecordVersion = out[0].Version
	// The parent may have ended between reading and writing: then this one
	// must not live either.
	if parent, err := s.readSession(r.Context(), sess.ID); err != nil || parent == nil {
		_ = s.store.Delete(r.Context(), record.System("sign_in"), session.SessionType, own.ID)
		if err == nil {
			err = errors.New("the session ended in the meantime")
		}
		return nil, err
	}
	return &own, nil
}

// handToProgram ends a program's login at the route host. The browser itself
// gets no cookie: a link that another browser began must not sign it in.
func (s *Service) handToProgram(w http.ResponseWriter, r *http.Request, d *destination, token session.Token) {
	to, err := session.CheckProgramRedirect(d.Redirect, s.cfg.ProgrammaticRedirectDomainWhitelist)
	if err != nil {
		s.refuse(w, r, err.Error(), pages.ErrorPage{Kind: pages.BadRequest})
		return
	}
	q := to.Query()
	q.Set(paramToken, string(token))
	to.RawQuery = q.Encode()
	s.goTo(w, r, to.String())
}

// who names the person of a session for a page.
func (s *Service) who(r *http.Request, sess *session.Session) string {
	if rec, err := s.store.Get(r.Context(), session.UserType, sess.UserID); err == nil {
		if u, err := session.DecodeUser(rec); err == nil {
			if u.Email != "" {
				return u.Email
			}
			if u.Name != "" {
				return u.Name
			}
		}
	}
	return ""
}
