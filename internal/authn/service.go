// Package authn signs people in and out and keeps their sessions fresh.
//
// Only the stateful flow is built (wire-contract.md §1.5): a route host sends
// the browser to the sign-in host by a signed link; the sign-in host sends it
// to an identity provider with a sealed state; what comes back becomes a
// session record; and a sealed handle travels to the route host's own
// callback, which sets the cookie.
//
// A login ends in the browser that began it (decision 13). Every host gives a
// browser one random nonce in a __Host- cookie. The sealed state names the
// sign-in host's nonce, and the PKCE verifier and OpenID Connect nonce are
// derived from both, so that no flow needs a cookie of its own and fifty tabs
// may sign in at once. The link to the sign-in host names the route host's
// nonce, and the callback there takes a handle only for it.
//
// A Service belongs to one generation of the configuration. Its handlers are
// listed at [Service.Endpoints]; [Service.Run] does the work in the background.
package authn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"postern/internal/identity"
	"postern/internal/pages"
	"postern/internal/record"
	"postern/internal/session"
)

// Store is what sign-in needs of a record store.
type Store interface {
	record.Reader
	record.Writer
	record.Watcher
	record.Leaser
}

// Options are what a Service is built from.
type Options struct {
	Store Store
	Keys  *session.Keys
	// Providers sign people in; the first is the default one.
	Providers []identity.Provider
	Pages     *pages.Renderer
	Config    Config
	// SignInURL is the public URL of the sign-in host (decision 10), of which
	// scheme and host count.
	SignInURL *url.URL
	// SignInHostIsRoute says that the sign-in host also serves a route.
	SignInHostIsRoute bool
	// KnownHost says whether an authority is one that this generation serves;
	// browsers with a handle are sent nowhere else. nil knows none but the
	// sign-in host.
	KnownHost func(authority string) bool
	// ProviderFor gives the provider id of a route host, "" for the default;
	// nil: always the default.
	ProviderFor func(authority string) string
	// ApplicationName gives a route host's display name; nil: none.
	ApplicationName func(authority string) string
	// ClientIP gives a request's client address for throttling and session
	// lists; nil: the host of RemoteAddr.
	ClientIP func(*http.Request) string
	// AllowAnySignOutRedirect is the runtime flag
	// allow_any_sign_out_redirect_uri.
	AllowAnySignOutRedirect bool
	// RefreshAtIDTokenExpiry is the runtime flag
	// refresh_session_at_id_token_expiration.
	RefreshAtIDTokenExpiry bool
	// Used remembers spent states over generations; nil: this one's only.
	Used *UsedStates
	Now  func() time.Time
	Log  *slog.Logger
}

// Service is sign-in for one generation. It is safe for concurrent use.
type Service struct {
	store     Store
	keys      *session.Keys
	providers []identity.Provider
	byID      map[string]identity.Provider
	pages     *pages.Renderer
	cfg       Config
	names     session.CookieNames
	origin    string // https://A
	host      string // A, with port
	shared    bool
	known     func(string) bool
	idpFor    func(string) string
	appName   func(string) string
	clientIP  func(*http.Request) string
	anyAfter  bool
	atIDToken bool
	sameSite  http.SameSite
	nonceSite http.SameSite
	used      *UsedStates
	exchanges chan struct{}
	touched   *touched
	now       func() time.Time
	log       *slog.Logger
}

// Paths of the handlers (wire-contract.md §2).
const (
	pathSignIn        = "/.pomerium/sign_in"
	pathSignOut       = "/.pomerium/sign_out"
	pathSignedOut     = "/.pomerium/signed_out"
	pathCallback      = "/.pomerium/callback/"
	pathOAuth         = "/oauth2/callback"
	pathLogin         = "/.pomerium/api/v1/login"
	pathVerifyAccess  = "/.pomerium/verify-access-token"
	pathVerifyID      = "/.pomerium/verify-identity-token"
	pathDashboard     = "/.pomerium/"
	maxAdditional     = 5
	maxExchanges      = 64
	revokeTimeout     = 3 * time.Second
	discoveryPatience = 2 * time.Second
)

// New checks options and builds a Service. It does no I/O.
func New(o Options) (*Service, error) {
	switch {
	case o.Store == nil || o.Keys == nil || o.Pages == nil:
		return nil, errors.New("sign-in needs a record store, keys and pages")
	case o.SignInURL == nil || o.SignInURL.Host == "":
		return nil, errors.New("there is no sign-in host: set authenticate_service_url or give a route an https address")
	case len(o.Providers) == 0:
		return nil, errors.New("there is no identity provider: set idp_provider")
	}
	if _, err := session.ParseRedirect("https://" + o.SignInURL.Host + "/"); err != nil {
		return nil, fmt.Errorf("authenticate_service_url has an unusual host %q: use a plain host name", o.SignInURL.Host)
	}
	cfg := o.Config
	if cfg.CookieExpire <= 0 {
		return nil, errors.New("cookie_expire must be longer than nothing: give a duration such as 14h")
	}
	name := cfg.CookieName
	if !cfg.CookieNameSet {
		name = ""
	}
	if strings.HasPrefix(name, session.HostPrefix) && cfg.CookieDomain != "" {
		return nil, errors.New("cookie_name begins with __Host-, which browsers refuse together with cookie_domain: change one of them")
	}
	s := &Service{
		store: o.Store, keys: o.Keys, providers: o.Providers, byID: map[string]identity.Provider{}, pages: o.Pages, cfg: cfg,
		names:  session.NewCookieNames(name, cfg.CookieDomain),
		origin: "https://" + withoutDefaultPort(o.SignInURL.Host), host: withoutDefaultPort(o.SignInURL.Host),
		shared: o.SignInHostIsRoute, known: o.KnownHost, idpFor: o.ProviderFor, appName: o.ApplicationName, clientIP: o.ClientIP,
		anyAfter: o.AllowAnySignOutRedirect, atIDToken: o.RefreshAtIDTokenExpiry, used: o.Used,
		exchanges: make(chan struct{}, maxExchanges), touched: newTouched(), now: o.Now, log: o.Log,
	}
	switch strings.ToLower(cfg.CookieSameSite) {
	case "":
	case "strict":
		s.sameSite = http.SameSiteStrictMode
	case "lax":
		s.sameSite = http.SameSiteLaxMode
	case "none":
		s.sameSite = http.SameSiteNoneMode
	default:
		return nil, fmt.Errorf("cookie_same_site %q is not known: use strict, lax or none", cfg.CookieSameSite)
	}
	s.nonceSite = http.SameSiteLaxMode
	if s.sameSite == http.SameSiteNoneMode {
		s.nonceSite = http.SameSiteNoneMode
	}
	for _, p := range o.Providers {
		if s.byID[p.ID()] != nil {
			return nil, errors.New("two identity providers are the same: give one of them another client id")
		}
		s.byID[p.ID()] = p
		if f, ok := p.(identity.FormPoster); ok && f.FormPost() {
			s.nonceSite = http.SameSiteNoneMode
		}
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if s.used == nil {
		s.used = NewUsedStates()
	}
	if s.clientIP == nil {
		s.clientIP = func(r *http.Request) string {
			if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
				return host
			}
			return r.RemoteAddr
		}
	}
	return s, nil
}

// CookieNames are the names of all cookies of this generation.
func (s *Service) CookieNames() session.CookieNames { return s.names }

// DefaultProvider is the id of the provider used where a route names none.
func (s *Service) DefaultProvider() string { return s.providers[0].ID() }

// Endpoint is one of sign-in's own addresses.
type Endpoint struct {
	Path           string
	Prefix         bool // everything below Path, which ends in "/", too
	SignInHostOnly bool
	Handler        func(http.ResponseWriter, *http.Request, *session.Caller)
}

// Endpoints lists the handlers. r.Host must be the canonical authority.
func (s *Service) Endpoints() []Endpoint {
	return []Endpoint{
		{Path: pathSignIn, SignInHostOnly: true, Handler: s.SignIn},
		{Path: identity.LocalPath, SignInHostOnly: true, Handler: s.Local},
		{Path: pathOAuth, SignInHostOnly: true, Handler: s.OAuthCallback},
		{Path: pathOAuth + "/", Prefix: true, SignInHostOnly: true, Handler: s.OAuthCallback},
		{Path: pathSignedOut, SignInHostOnly: true, Handler: s.SignedOut},
		{Path: pathVerifyAccess, SignInHostOnly: true, Handler: s.VerifyAccessToken},
		{Path: pathVerifyID, SignInHostOnly: true, Handler: s.VerifyIdentityToken},
		{Path: pathSignOut, Handler: s.SignOut},
		{Path: pathCallback, Handler: s.Callback},
		{Path: pathLogin, Handler: s.ProgramLogin},
	}
}

// provider finds a provider by id; "" is the default one.
func (s *Service) provider(id string) identity.Provider {
	if id == "" {
		return s.providers[0]
	}
	return s.byID[id]
}

// callbackURL is where a provider sends the browser back to: further
// providers have an address of their own (decision 13).
func (s *Service) callbackURL(p identity.Provider) string {
	if p.ID() == s.providers[0].ID() {
		return s.origin + pathOAuth
	}
	return s.origin + pathOAuth + "/" + p.ID()
}

// isSignInHost says whether an authority is the sign-in host.
// Where it is configured without a port, any incoming port is meant.
func (s *Service) isSignInHost(authority string) bool {
	return withoutDefaultPort(authority) == s.host || !strings.Contains(s.host, ":") && hostName(authority) == s.host
}

// withoutDefaultPort is an authority as browsers send it (wire-contract.md
// §15, trap 11).
func withoutDefaultPort(authority string) string {
	return strings.TrimSuffix(strings.ToLower(authority), ":443")
}

// mayVisit says whether a browser may be sent to this address with what a
// login gives.
func (s *Service) mayVisit(u *url.URL) bool {
	return u.Scheme == "https" && (s.isSignInHost(u.Host) || s.known != nil && s.known(u.Host))
}

// requestURL is a request's address as links are signed over it: https, the
// Host header as received, path and query (wire-contract.md §15, trap 11).
func requestURL(r *http.Request) *url.URL {
	return &url.URL{Scheme: "https", Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
}

// link builds a signed link.
func (s *Service) link(origin, path string, q url.Values) string {
	u, err := url.Parse(origin + path)
	if err != nil {
		return s.origin + pathDashboard // origins were parsed before
	}
	u.RawQuery = q.Encode()
	return session.SignLink(s.keys, u, s.now()).String()
}

// single gives the one value of a parameter; ok is false if there are several.
func single(q url.Values, name string) (value string, ok bool) {
	switch v := q[name]; len(v) {
	case 0:
		return "", true
	case 1:
		return v[0], true
	}
	return "", false
}

// goTo sends the browser on. After a POST it must not post again.
func (s *Service) goTo(w http.ResponseWriter, r *http.Request, to string) {
	code := http.StatusFound
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		code = http.StatusSeeOther
	}
	h := w.Header()
	h.Set("Location", to)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	w.WriteHeader(code)
}

// fail answers with an error page.
func (s *Service) fail(w http.ResponseWriter, r *http.Request, p pages.ErrorPage) {
	p.Source = pages.FromEndpoint
	p.RequestID = w.Header().Get("X-Request-Id")
	p.Time = s.now()
	if p.Host == "" {
		p.Host = r.Host
	}
	s.pages.Error(w, r, p)
}

// refuse answers a malformed or forged request and says so in the log.
func (s *Service) refuse(w http.ResponseWriter, r *http.Request, why string, p pages.ErrorPage) {
	s.log.InfoContext(r.Context(), "sign-in refused", "why", why, "host", r.Host, "path", r.URL.Path, "request-id", w.Header().Get("X-Request-Id"))
	s.fail(w, r, p)
}

// storeDown answers when records cannot be read or written.
func (s *Service) storeDown(w http.ResponseWriter, r *http.Request, err error) {
	s.log.ErrorContext(r.Context(), "sign-in cannot reach its records; check the databroker storage", "error", err)
	s.fail(w, r, pages.ErrorPage{Kind: pages.Unavailable})
}

// methods answers 405 for anything but the named methods.
func methods(w http.ResponseWriter, r *http.Request, allowed ...string) bool {
	for _, m := range allowed {
		if r.Method == m {
			return true
		}
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	http.Error(w, "method not allowed: use "+strings.Join(allowed, " or "), http.StatusMethodNotAllowed)
	return false
}

// crossOrigin refuses state-changing requests that another site began, by
// Fetch metadata or Origin (wire-contract.md §1.6).
func crossOrigin(r *http.Request) error {
	return http.NewCrossOriginProtection().Check(r)
}

// readSession gives the living session of an id, nil if there is none.
func (s *Service) readSession(ctx context.Context, id string) (*session.Session, error) {
	rec, err := s.store.Get(ctx, session.SessionType, id)
	if errors.Is(err, record.ErrNotFound) || errors.Is(err, record.ErrDeleted) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out, err := session.DecodeSession(rec)
	if err != nil {
		s.log.Error("a session record cannot be read and counts as none", "error", err)
		return nil, nil
	}
	if out.Expired(s.now()) {
		return nil, nil
	}
	return out, nil
}
