package authn

import (
	"encoding/base64"
	"errors"
	"html"
	"net/http"
	"net/url"

	"postern/internal/pages"
	"postern/internal/session"
)

var b64pad = base64.URLEncoding

// Callback answers /.pomerium/callback/ at a route host: it takes the handle
// that the sign-in host sealed for it, sets it as cookie in the browser that
// began there, and goes on to the next host or to where the person wanted to
// go (wire-contract.md §1.5).
func (s *Service) Callback(w http.ResponseWriter, r *http.Request, c *session.Caller) {
	if r.URL.Path != pathCallback {
		http.NotFound(w, r)
		return
	}
	if !methods(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	bad := func(why, message, retry string) {
		s.refuse(w, r, why, pages.ErrorPage{Kind: pages.BadRequest, Message: message, RetryURL: retry})
	}
	const again = "This sign-in link is not valid. Go back to the application and try again."
	home := "https://" + r.Host + "/"
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err == nil {
		err = session.VerifyLink(s.keys, requestURL(r), s.now())
	}
	if err != nil {
		if errors.Is(err, session.ErrLinkExpired) {
			bad(err.Error(), "This sign-in link has expired.", home)
		} else {
			bad("the callback link: "+err.Error(), again, home)
		}
		return
	}
	d, err := parseDestination(q)
	if err != nil {
		bad("the callback link: "+err.Error(), again, home)
		return
	}
	if begin, ok := single(q, paramBegin); ok && begin == "true" && !d.Program {
		s.beginHere(w, r, d)
		return
	}
	token, ok := s.openHop(r, q)
	if !ok {
		bad("the sealed handle does not open", again, home)
		return
	}
	if d.Program {
		s.handToProgram(w, r, d, token)
		return
	}
	to, err := session.ParseRedirect(d.Redirect)
	if err != nil || !s.mayVisit(to) {
		bad("the callback link leads elsewhere", again, home)
		return
	}
	nonce := s.nonce(cookieLines(r), r.Host)
	if !s.bound(d.Bind, nonce, r.Host) {
		s.notTheBrowser(w, r, c, d, nonce)
		return
	}
	h, err := session.VerifyHandle(s.keys, string(token))
	if err != nil {
		bad("the sealed handle: "+err.Error(), again, home)
		return
	}
	sess, err := s.readSession(r.Context(), h.ID)
	if err != nil {
		s.storeDown(w, r, err)
		return
	}
	if sess == nil {
		bad("the session is gone", "This session has ended in the meantime.", home)
		return
	}
	s.setSessionCookie(w, r, token, sess.ExpiresAt)
	s.setBounce(w, r.Host, d.Bounce)
	next := d.Redirect
	if len(d.Hosts) > 0 {
		if hop, ok := s.nextHost(d); ok {
			next = hop
		}
	}
	if s.sameSite == http.SameSiteStrictMode {
		s.stepInside(w, next)
		return
	}
	s.goTo(w, r, next)
}

// openHop opens the sealed handle, which must be for this host.
func (s *Service) openHop(r *http.Request, q url.Values) (session.Token, bool) {
	raw, ok := single(q, paramHandle)
	if !ok || raw == "" || len(raw) > 2*session.MaxTokenSize {
		return "", false
	}
	sealed, err := b64pad.Strict().DecodeString(raw)
	if err != nil {
		return "", false
	}
	plain, err := s.keys.Open(session.PurposeCallback, sealed, hopAD(r.Host))
	if err != nil {
		return "", false
	}
	h, err := session.VerifyHandle(s.keys, string(plain))
	if err != nil || !h.ForHost(r.Host, s.cfg.CookieDomain) {
		return "", false
	}
	return session.Token(plain), true
}

// notTheBrowser answers a hop in a browser that it was not made for. No cookie
// is set: a valid session wins, a browser that began here by itself begins
// again as itself, and any other is refused (decision 13).
func (s *Service) notTheBrowser(w http.ResponseWriter, r *http.Request, c *session.Caller, d *destination, nonce string) {
	switch {
	case !c.Anonymous():
		s.goTo(w, r, d.Redirect)
	case nonce == "":
		s.refuse(w, r, "the browser brought no nonce", pages.ErrorPage{
			Kind: pages.SignInFailed, RetryURL: d.Redirect,
			Message: "This sign-in was begun in another browser, or yours did not keep the cookie that was set when it began.",
		})
	case d.Restart >= maxRestarts:
		d.Bounce = bounce{N: maxBounces, First: s.now().Unix(), Cause: int(pages.LoopCookie)}
		s.stopLoop(w, r, d)
	default:
		next := *d
		next.Restart++
		next.Callback, next.Bind = "https://"+r.Host+pathCallback, s.bind(nonce, r.Host)
		s.goTo(w, r, s.signInLink(&next))
	}
}

// nextHost is the hop to the next of the additional hosts. The browser has no
// nonce there yet, so that host begins a flow of its own, which the session at
// the sign-in host finishes without a question.
func (s *Service) nextHost(d *destination) (string, bool) {
	u, err := session.ParseRedirect("https://" + d.Hosts[0] + "/")
	if err != nil || !s.mayVisit(u) {
		return "", false
	}
	next := *d
	next.Hosts, next.Callback, next.Bind, next.Bounce, next.Restart = d.Hosts[1:], "", "", bounce{}, 0
	q := next.query()
	q.Set(paramBegin, "true")
	return s.link("https://"+u.Host, pathCallback, q), true
}

// beginHere starts the flow of an additional host in this browser.
func (s *Service) beginHere(w http.ResponseWriter, r *http.Request, d *destination) {
	nonce := s.ensureNonce(w, r)
	next := *d
	next.Callback, next.Bind = "https://"+r.Host+pathCallback, s.bind(nonce, r.Host)
	s.goTo(w, r, s.signInLink(&next))
}

// stepInside goes on by way of a page of this host. With SameSite=Strict a
// browser keeps the new cookie back from a redirect that another site began.
func (s *Service) stepInside(w http.ResponseWriter, next string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Refresh", "0; url="+next)
	w.WriteHeader(http.StatusOK)
	esc := html.EscapeString(next)
	_, _ = w.Write([]byte(`<!doctype html><html lang="en"><title>Signed in</title><p>You are signed in. <a href="` + esc + `">Continue</a></p></html>` + "\n"))
}
