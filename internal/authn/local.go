package authn

import (
	"errors"
	"net/http"
	"net/url"
	"time"

	"postern/internal/identity"
	"postern/internal/pages"
	"postern/internal/session"
)

// Local answers /.pomerium/local at the sign-in host: the form of local
// accounts (decision 15). The sealed state is the form's token: it is good in
// the browser that it was made for, for five minutes.
func (s *Service) Local(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	if !methods(w, r, http.MethodGet, http.MethodHead, http.MethodPost) {
		return
	}
	var q url.Values
	var err error
	if r.Method == http.MethodPost {
		if err = crossOrigin(r); err == nil {
			q, err = postedForm(r)
		}
		if err == nil && !q.Has("state") {
			// The form may be posted to an address that carries the state.
			q.Set("state", r.URL.Query().Get("state"))
		}
	} else {
		q, err = url.ParseQuery(r.URL.RawQuery)
	}
	if err != nil {
		s.refuse(w, r, err.Error(), pages.ErrorPage{Kind: pages.BadRequest, RetryURL: s.origin + pathDashboard})
		return
	}
	raw, single := single(q, "state")
	if raw == "" && single && r.Method != http.MethodPost {
		s.goTo(w, r, s.origin+pathSignIn)
		return
	}
	st, stateErr := s.openState(raw)
	if !single || st == nil {
		s.refuse(w, r, "the form's state is not ours", pages.ErrorPage{Kind: pages.SignInFailed, Message: "This sign-in was not begun here.", RetryURL: s.origin + pathDashboard})
		return
	}
	p, checker := s.passwordProvider(st.IDP)
	if checker == nil {
		s.refuse(w, r, "the form's provider has no passwords", pages.ErrorPage{Kind: pages.SignInFailed, RetryURL: s.origin + pathDashboard})
		return
	}
	form := s.localForm(r, st, raw)
	nonce := s.nonce(cookieLines(r), r.Host)
	if stateErr != nil || !s.bound(st.Bind, nonce, r.Host) {
		if r.Method == http.MethodPost && nonce == "" {
			s.refuse(w, r, "the browser brought no nonce", pages.ErrorPage{
				Kind: pages.SignInFailed, RetryURL: s.origin + pathDashboard,
				Message: "Your browser did not bring back the cookie that was set when this sign-in began. It may block cookies for this site.",
			})
			return
		}
		// A renewed form, for this browser.
		form = s.localForm(r, st, s.sealState(p, s.ensureNonce(w, r), &st.Dest))
		if r.Method == http.MethodPost {
			form.Problem, form.Email = pages.LocalExpired, cut(q.Get("email"), 254)
		}
		s.pages.Local(w, r, form)
		return
	}
	if r.Method != http.MethodPost {
		s.pages.Local(w, r, form)
		return
	}
	form.Email = cut(q.Get("email"), 254)
	id, err := checker.CheckPassword(r.Context(), q.Get("email"), q.Get("password"), s.clientIP(r))
	var wait *identity.Throttled
	switch {
	case err == nil:
	case errors.As(err, &wait):
		form.Problem, form.Wait = pages.LocalWait, max(wait.RetryAfter, time.Second)
		s.log.WarnContext(r.Context(), "a password attempt was put off", "from", s.clientIP(r), "busy", wait.Busy)
		s.pages.Local(w, r, form)
		return
	case errors.Is(err, identity.ErrPassword):
		form.Problem = pages.LocalMismatch
		s.log.InfoContext(r.Context(), "a password did not match", "from", s.clientIP(r))
		s.pages.Local(w, r, form)
		return
	default:
		s.storeDown(w, r, err)
		return
	}
	if !s.used.spend(st.ID, s.now()) {
		form = s.localForm(r, st, s.sealState(p, nonce, &st.Dest))
		form.Problem = pages.LocalExpired
		s.pages.Local(w, r, form)
		return
	}
	s.complete(w, r, p, id, &st.Dest)
}

func (s *Service) passwordProvider(id string) (identity.Provider, identity.PasswordChecker) {
	p := s.byID[id]
	c, _ := p.(identity.PasswordChecker)
	return p, c
}

// localForm says where the person is going.
func (s *Service) localForm(r *http.Request, st *state, sealed string) pages.LocalPage {
	form := pages.LocalPage{
		Host: r.Host, Action: identity.LocalPath, Fields: []pages.Field{{Name: "state", Value: sealed}},
	}
	to, err := url.Parse(st.Dest.Redirect)
	if err != nil {
		return form
	}
	host := to.Host
	if st.Dest.Program {
		if cb, err := st.Dest.callback(); err == nil {
			host = cb.Host
		}
		form.FormOrigins = append(form.FormOrigins, st.Dest.Redirect)
	}
	form.FormOrigins = append(form.FormOrigins, "https://"+host)
	for _, more := range st.Dest.Hosts {
		form.FormOrigins = append(form.FormOrigins, "https://"+more)
	}
	if !s.isSignInHost(host) || s.shared {
		form.ReturnHost = host
		if s.appName != nil {
			form.Application = s.appName(host)
		}
	}
	return form
}
