package authn

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"postern/internal/identity"
	"postern/internal/pages"
	"postern/internal/record"
	"postern/internal/session"
)

// SignIn answers /.pomerium/sign_in at the sign-in host: on to the provider,
// or with a session back to the route (wire-contract.md §1.5, §1.6).
func (s *Service) SignIn(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	d, ok := s.signInDestination(w, r)
	if !ok {
		return
	}
	sess, err := s.signInSession(r)
	if err != nil {
		s.storeDown(w, r, err)
		return
	}
	p := s.provider(d.IDP)
	if p == nil {
		s.refuse(w, r, "the provider is not configured", pages.ErrorPage{
			Kind: pages.SignInFailed, RetryURL: d.Redirect,
			Message: "The identity provider that this link names is no longer configured.",
		})
		return
	}
	d.IDP = p.ID()
	good := sess != nil && sess.IDPID == p.ID()
	if !good && strings.EqualFold(r.Header.Get("X-Requested-With"), "XMLHttpRequest") {
		s.fail(w, r, pages.ErrorPage{Kind: pages.Unauthenticated})
		return
	}
	if !good && d.Returned {
		// The provider has just vouched, and the cookie did not come back.
		cause := pages.LoopSession
		if len(cookieValues(cookieLines(r), s.names.SignIn)) == 0 {
			cause = pages.LoopCookie
		}
		d.Bounce = d.Bounce.again(s.now(), int(cause))
	}
	d.Returned = false
	if d.Bounce.N >= maxBounces && s.now().Unix()-d.Bounce.First <= int64(bounceReset/time.Second) {
		s.stopLoop(w, r, d)
		return
	}
	if good {
		s.finish(w, r, d, sess)
		return
	}
	s.begin(w, r, p, d)
}

// signInDestination checks the link. Without any parameter the way leads to
// the person's own page.
func (s *Service) signInDestination(w http.ResponseWriter, r *http.Request) (*destination, bool) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err == nil && !q.Has(paramRedirect) && !q.Has(session.ParamSignature) {
		if r.Method == http.MethodPost {
			s.refuse(w, r, "post without a link", pages.ErrorPage{Kind: pages.BadRequest})
			return nil, false
		}
		return &destination{Redirect: s.origin + pathDashboard}, true
	}
	if err == nil {
		err = session.VerifyLink(s.keys, requestURL(r), s.now())
	}
	if errors.Is(err, session.ErrLinkExpired) {
		// Its signature was good: the way it names is a safe one to offer.
		p := pages.ErrorPage{Kind: pages.SignInFailed, Message: "This sign-in link has expired."}
		if d, derr := parseDestination(q); derr == nil && !d.Program {
			p.RetryURL = d.Redirect
		}
		s.refuse(w, r, err.Error(), p)
		return nil, false
	}
	var d *destination
	if err == nil {
		d, err = parseDestination(q)
	}
	if err == nil {
		err = s.checkDestination(d)
	}
	if err != nil {
		s.refuse(w, r, err.Error(), pages.ErrorPage{Kind: pages.BadRequest, Message: "This sign-in link is not valid. Go back to the application and try again."})
		return nil, false
	}
	return d, true
}

// checkDestination refuses addresses that a signature should never have been
// given to: a defence behind the signature.
func (s *Service) checkDestination(d *destination) error {
	if d.Program {
		if _, err := session.CheckProgramRedirect(d.Redirect, s.cfg.ProgrammaticRedirectDomainWhitelist); err != nil {
			return err
		}
		if d.Callback == "" {
			return errDestination
		}
	} else {
		u, err := session.ParseRedirect(d.Redirect)
		if err != nil {
			return err
		}
		if !s.mayVisit(u) {
			return errors.New("the link leads to a host that is not served here")
		}
		if d.Callback == "" && s.isSignInHost(u.Host) && !s.shared {
			return nil
		}
	}
	cb, err := d.callback()
	if err != nil {
		return err
	}
	if !s.mayVisit(cb) {
		return errors.New("the link's callback is on a host that is not served here")
	}
	return nil
}

func (s *Service) stopLoop(w http.ResponseWriter, r *http.Request, d *destination) {
	host := s.host
	if u, err := url.Parse(d.Redirect); err == nil {
		host = u.Host
	}
	s.log.WarnContext(r.Context(), "a sign-in loop was stopped", "host", host, "bounces", d.Bounce.N, "cause", d.Bounce.Cause)
	p := pages.ErrorPage{
		Kind: pages.LoginLoop, Cause: pages.LoopCause(d.Bounce.Cause), Attempts: d.Bounce.N, CookieHost: hostName(host), Host: host,
		Within: max(0, s.now().Sub(time.Unix(d.Bounce.First, 0))),
	}
	if !d.Program {
		p.RetryURL = d.Redirect
	}
	s.fail(w, r, p)
}

// begin sends the browser to the provider.
func (s *Service) begin(w http.ResponseWriter, r *http.Request, p identity.Provider, d *destination) {
	nonce := s.ensureNonce(w, r)
	sealed := s.sealState(p, nonce, d)
	to, err := p.AuthURL(r.Context(), identity.AuthRequest{
		CallbackURL: s.callbackURL(p), State: sealed, Nonce: s.oidcNonce(sealed, nonce), Verifier: s.verifier(sealed, nonce),
	})
	if err != nil {
		s.providerFailed(w, r, err, d)
		return
	}
	if len(cookieValues(cookieLines(r), s.names.SignIn)) > 0 {
		s.clearSignInCookie(w)
	}
	s.goTo(w, r, to)
}

// providerFailed answers when a provider did not vouch: 400 for its final no,
// 503 while it cannot be asked.
func (s *Service) providerFailed(w http.ResponseWriter, r *http.Request, err error, d *destination) {
	p := pages.ErrorPage{Kind: pages.ProviderUnavailable, RetryAfter: 5 * time.Second}
	level := s.log.ErrorContext
	if identity.IsPermanent(err) {
		p = pages.ErrorPage{Kind: pages.SignInFailed, Message: "The identity provider did not confirm this sign-in."}
		level = s.log.InfoContext
	}
	if d != nil && !d.Program {
		p.RetryURL = d.Redirect
	}
	level(r.Context(), "sign-in failed", "error", err, "request-id", w.Header().Get("X-Request-Id"))
	s.fail(w, r, p)
}

// maxForm bounds a posted form in bytes.
const maxForm = 64 << 10

// callbackParams are the parameters of a provider's answer: of the query, or
// of the body where it posts.
func callbackParams(r *http.Request) (url.Values, error) {
	if r.Method != http.MethodPost {
		return url.ParseQuery(r.URL.RawQuery)
	}
	return postedForm(r)
}

func postedForm(r *http.Request) (url.Values, error) {
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "application/x-www-form-urlencoded" {
		return nil, errors.New("the form has an unexpected type")
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxForm+1))
	if err != nil || len(b) > maxForm {
		return nil, errors.New("the form is cut off or too long")
	}
	return url.ParseQuery(string(b))
}

// OAuthCallback answers /oauth2/callback and, for further providers,
// /oauth2/callback/<id>.
func (s *Service) OAuthCallback(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	if !methods(w, r, http.MethodGet, http.MethodPost) {
		return
	}
	bad := func(why, message, retry string) {
		s.refuse(w, r, why, pages.ErrorPage{Kind: pages.SignInFailed, Message: message, RetryURL: retry})
	}
	q, err := callbackParams(r)
	if err != nil {
		bad("the answer is malformed", "The identity provider's answer is malformed.", s.origin+pathDashboard)
		return
	}
	val := map[string]string{}
	for _, name := range []string{"state", "code", "error", "iss"} {
		v, ok := single(q, name)
		if !ok {
			bad(name+" is doubled", "The identity provider's answer is malformed.", s.origin+pathDashboard)
			return
		}
		val[name] = v
	}
	st, stateErr := s.openState(val["state"])
	retry := s.origin + pathDashboard
	if st != nil {
		d := st.Dest
		d.Restart = 0
		retry = s.signInLink(&d)
	}
	if code := val["error"]; code != "" {
		p := pages.ErrorPage{Kind: pages.SignInFailed, RetryURL: retry, Message: "The identity provider answered with an error."}
		if code == "access_denied" || code == "unauthorized_client" {
			p.Status, p.Message = http.StatusUnauthorized, "The identity provider refused this sign-in."
		}
		s.refuse(w, r, "the provider answered "+logWord(code), p)
		return
	}
	if stateErr != nil {
		message := "This sign-in was not begun here."
		if errors.Is(stateErr, errStateExpired) {
			message = "This sign-in took too long and has expired."
		}
		bad(stateErr.Error(), message, retry)
		return
	}
	p := s.byID[st.IDP]
	if p == nil || r.URL.Path != strings.TrimPrefix(s.callbackURL(p), s.origin) {
		bad("the answer came to another provider's address", "This answer belongs to another identity provider.", retry)
		return
	}
	nonce := s.nonce(cookieLines(r), r.Host)
	if nonce == "" {
		bad("the browser brought no nonce", "Your browser did not bring back the cookie that was set when this sign-in began. It may block cookies for this site.", retry)
		return
	}
	sess, err := s.signInSession(r)
	if err != nil {
		s.storeDown(w, r, err)
		return
	}
	if !s.bound(st.Bind, nonce, r.Host) {
		// Another tab began at the same moment and its nonce was kept, or the
		// answer is another browser's. Either way it is worth nothing here:
		// this browser goes on as itself.
		s.restart(w, r, st, sess)
		return
	}
	if !s.used.spend(st.ID, s.now()) {
		if sess != nil && sess.IDPID == p.ID() {
			s.goTo(w, r, retry)
			return
		}
		bad("the state was used before", "This sign-in was already finished once.", retry)
		return
	}
	if val["code"] == "" {
		bad("the answer has no code", "The identity provider's answer is incomplete.", retry)
		return
	}
	id, err := s.exchange(r.Context(), p, identity.Return{
		CallbackURL: s.callbackURL(p), Code: val["code"], Issuer: val["iss"],
		Nonce: s.oidcNonce(val["state"], nonce), Verifier: s.verifier(val["state"], nonce),
	})
	if err != nil {
		s.providerFailed(w, r, err, &st.Dest)
		return
	}
	s.complete(w, r, p, id, &st.Dest)
}

// exchange asks the provider, with no more such calls at once than the budget
// allows. Calls are never shared: two people must not get one answer.
func (s *Service) exchange(ctx context.Context, p identity.Provider, ret identity.Return) (*identity.Identity, error) {
	select {
	case s.exchanges <- struct{}{}:
		defer func() { <-s.exchanges }()
	case <-time.After(5 * time.Second):
		return nil, &identity.Error{Kind: identity.Temporary, Doing: "exchange the code", Err: errors.New("too many sign-ins at once")}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return p.Exchange(ctx, ret)
}

// restart begins the flow of st again in the browser that is here now.
func (s *Service) restart(w http.ResponseWriter, r *http.Request, st *state, sess *session.Session) {
	d := st.Dest
	d.Restart++
	if d.Restart > maxRestarts {
		d.Bounce = bounce{N: maxBounces, First: s.now().Unix(), Cause: int(pages.LoopCookie)}
		s.stopLoop(w, r, &d)
		return
	}
	s.goTo(w, r, s.signInLink(&d))
}

// complete makes user and session records, sets the sign-in host's cookie and
// goes back to sign_in, which finds the session.
func (s *Service) complete(w http.ResponseWriter, r *http.Request, p identity.Provider, id *identity.Identity, d *destination) {
	now := s.now()
	sess := &session.Session{
		ID: uuid.NewString(), UserID: id.UserID, IssuedAt: now, AccessedAt: now, ExpiresAt: now.Add(s.cfg.CookieExpire),
		IDToken: id.IDToken, OAuthToken: id.OAuthToken, Claims: id.Claims, IDPID: p.ID(), IDPSessionID: id.SessionID,
		UserAgent: cut(r.UserAgent(), 256), RemoteIP: cut(s.clientIP(r), 64),
	}
	by := record.Actor{Kind: record.ActorUser, ID: id.UserID, Via: "sign_in"}
	version, err := s.writeSignIn(r.Context(), by, sess, id)
	if err != nil {
		s.storeDown(w, r, err)
		return
	}
	handle, err := s.handle(r.Context(), sess, version, session.SignInAudience(r.Host))
	if err != nil {
		s.storeDown(w, r, err)
		return
	}
	s.log.InfoContext(r.Context(), "signed in", "user", id.UserID, "session-id", sess.ID, "request-id", w.Header().Get("X-Request-Id"))
	s.setSignInCookie(w, handle, sess.ExpiresAt)
	next := *d
	next.Returned = true
	s.goTo(w, r, s.signInLink(&next))
}

// writeSignIn stores who signed in and gives the version of the session record.
func (s *Service) writeSignIn(ctx context.Context, by record.Actor, sess *session.Session, id *identity.Identity) (uint64, error) {
	if err := s.putUser(ctx, by, sess.IDPID, id); err != nil {
		return 0, err
	}
	var recs []*record.Record
	if dir := id.Directory; dir != nil {
		more, err := directoryRecords(dir)
		if err != nil {
			return 0, err
		}
		recs = append(recs, more...)
	}
	rec, err := sess.Record()
	if err != nil {
		return 0, err
	}
	rec.Version = 0
	out, err := s.store.Put(ctx, by, append(recs, rec)...)
	if err != nil {
		return 0, err
	}
	return out[len(out)-1].Version, nil
}

// putUser creates the user record or renews name, address and claims in it,
// leaving what others keep there.
func (s *Service) putUser(ctx context.Context, by record.Actor, idp string, id *identity.Identity) error {
	user := &session.User{ID: id.UserID, Name: id.Name, Email: id.Email, Claims: id.Claims, IDPID: idp}
	for {
		_, err := record.Modify(ctx, s.store, by, session.UserType, id.UserID, func(rec *record.Record) error {
			set := map[string]any{"claims": id.Claims, "idpId": idp, "name": nil, "email": nil}
			if id.Name != "" {
				set["name"] = id.Name
			}
			if id.Email != "" {
				set["email"] = id.Email
			}
			data, err := session.PatchData(rec.Data, set)
			rec.Data = data
			return err
		})
		if !errors.Is(err, record.ErrNotFound) {
			return err
		}
		rec, err := user.Record()
		if err != nil {
			return err
		}
		rec.Version = 0
		if _, err = s.store.Update(ctx, by, rec); !errors.Is(err, record.ErrConflict) {
			return err
		}
	}
}

// handle signs a pointer to sess for one audience.
func (s *Service) handle(ctx context.Context, sess *session.Session, version uint64, audience ...string) (session.Token, error) {
	at, err := s.store.ServerVersion(ctx)
	if err != nil {
		return "", err
	}
	return session.SignHandle(s.keys, &session.Handle{
		ID: sess.ID, UserID: sess.UserID, Issuer: hostName(s.host), Audience: audience, IssuedAt: s.now(),
		IDPID: sess.IDPID, ServerVersion: at.Server, RecordVersion: version,
	}), nil
}

// finish hands a session to the route: by its callback, or directly for the
// sign-in host's own pages.
func (s *Service) finish(w http.ResponseWriter, r *http.Request, d *destination, sess *session.Session) {
	if d.Program {
		s.confirmProgram(w, r, d, sess)
		return
	}
	to, err := url.Parse(d.Redirect)
	if err == nil && d.Callback == "" && s.isSignInHost(to.Host) && !s.shared {
		s.goTo(w, r, d.Redirect)
		return
	}
	hop, err := s.hop(r.Context(), d, sess)
	if err != nil {
		s.storeDown(w, r, err)
		return
	}
	s.goTo(w, r, hop)
}

// hop is the signed link to the route's callback, with the handle sealed for
// that host.
func (s *Service) hop(ctx context.Context, d *destination, sess *session.Session) (string, error) {
	cb, err := d.callback()
	if err != nil {
		return "", err
	}
	audience := session.HostAudience(cb.Host)
	if domain := strings.TrimPrefix(strings.ToLower(s.cfg.CookieDomain), "."); domain != "" && !d.Program {
		if name := hostName(cb.Host); name == domain || strings.HasSuffix(name, "."+domain) {
			audience = session.DomainAudience(domain)
		}
	}
	token, err := s.handle(ctx, sess, sess.RecordVersion, audience)
	if err != nil {
		return "", err
	}
	q := d.query()
	q.Del(paramCallback)
	q.Del(paramReturned)
	q.Set(paramHandle, b64pad.EncodeToString(s.keys.Seal(session.PurposeCallback, []byte(string(token)), hopAD(cb.Host))))
	return s.link("https://"+cb.Host, pathCallback, q), nil
}

func hopAD(authority string) []byte { return []byte("postern/1 handle for " + hostName(authority)) }

func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}

// logWord makes a foreign word fit for a log line.
func logWord(s string) string {
	s = cut(s, 64)
	return strings.Map(func(c rune) rune {
		if c <= ' ' || c >= 0x7f {
			return '?'
		}
		return c
	}, s)
}
