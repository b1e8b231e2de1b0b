package authn

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/exchange"
	"postern/internal/identity"
	"postern/internal/identity/issuertest"
	"postern/internal/pages"
	"postern/internal/record"
	"postern/internal/session"
	"postern/internal/store/memory"
)

// world is a sign-in host, two applications and an identity provider, without
// a network: browsers reach them through RoundTrip.
type world struct {
	t     testing.TB
	store record.Store
	keys  *session.Keys
	iss   *issuertest.Issuer
	svc   *Service
	idp   identity.Provider
	log   *bytes.Buffer
	logMu sync.Mutex

	signIn string          // sign-in host
	apps   map[string]bool // application hosts
	// nobody makes applications see no session, whatever comes.
	nobody bool
	// strip removes cookies from what applications are sent.
	strip func(*http.Request)
	// routeIDP is what routes ask for.
	routeIDP   string
	additional []string
	now        func() time.Time
}

func newWorld(t testing.TB, change func(*Options)) *world {
	t.Helper()
	w := &world{
		t: t, store: memory.New(), iss: issuertest.New(), log: &bytes.Buffer{}, signIn: "auth.example.com",
		apps: map[string]bool{"app.example.com": true, "other.example.com": true, "third.example.com:8443": true}, now: time.Now,
	}
	t.Cleanup(func() { w.store.Close() })
	for typ, o := range session.TypeOptions() {
		if err := w.store.SetOptions(t.Context(), typ, o); err != nil {
			t.Fatal(err)
		}
	}
	secret := make([]byte, session.KeySize)
	rand.Read(secret)
	var err error
	if w.keys, err = session.NewKeys(session.NewSecret(secret), nil, session.Secret{}); err != nil {
		t.Fatal(err)
	}
	w.iss.URL = "https://idp.example.com"
	w.iss.User = map[string]any{"sub": "u1", "name": "Ada", "email": "ada@example.com", "email_verified": true}
	w.idp = w.provider("")
	w.build(change)
	return w
}

func (w *world) provider(name string) identity.Provider {
	p, err := identity.New(identity.Settings{
		Provider: "oidc", URL: w.iss.URL, ClientID: w.iss.ClientID, ClientSecret: session.NewSecret([]byte(w.iss.ClientSecret)),
		AuthenticateURL: "https://" + w.signIn, Name: name,
	}, identity.Deps{Transport: direct{w.iss}})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

type direct struct{ h http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	rec := httptest.NewRecorder()
	d.h.ServeHTTP(rec, r)
	return rec.Result(), nil
}

type lockedWriter struct {
	w  io.Writer
	mu *sync.Mutex
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (w *world) build(change func(*Options)) {
	w.t.Helper()
	r, err := pages.New(pages.Branding{})
	if err != nil {
		w.t.Fatal(err)
	}
	o := Options{
		Store: w.store, Keys: w.keys, Providers: []identity.Provider{w.idp}, Pages: r,
		Config:    Config{CookieHTTPOnly: true, CookieExpire: 14 * time.Hour, ProgrammaticRedirectDomainWhitelist: []string{"localhost"}},
		SignInURL: &url.URL{Scheme: "https", Host: w.signIn}, KnownHost: func(a string) bool { return w.apps[a] },
		RefreshAtIDTokenExpiry: true, Now: func() time.Time { return w.now() },
		Log: slog.New(slog.NewTextHandler(lockedWriter{w.log, &w.logMu}, nil)),
	}
	if change != nil {
		change(&o)
	}
	if w.svc, err = New(o); err != nil {
		w.t.Fatal(err)
	}
	w.signIn = w.svc.host
}

// logged gives the log so far.
func (w *world) logged() string {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.String()
}

// RoundTrip is the network.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	in := r.Clone(r.Context())
	in.Host, in.RemoteAddr, in.TLS = r.URL.Host, "192.0.2.7:1234", &tls.ConnectionState{}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	host := in.Host
	switch {
	case host == "idp.example.com":
		w.iss.ServeHTTP(rec, in)
	case host == w.signIn || w.apps[host]:
		w.serve(rec, in)
	default:
		rec.WriteHeader(http.StatusTeapot) // somewhere else: localhost, evil.example
	}
	resp := rec.Result()
	resp.Request = r
	return resp, nil
}

// serve does what the door does: own endpoints, else the application, to which
// a sign-in is the way.
func (w *world) serve(rec http.ResponseWriter, r *http.Request) {
	s := w.svc
	rec.Header().Set("X-Request-Id", "req-1")
	c := w.caller(r)
	for _, e := range s.Endpoints() {
		if (r.URL.Path == e.Path || e.Prefix && strings.HasPrefix(r.URL.Path, e.Path)) && (!e.SignInHostOnly || r.Host == w.signIn) {
			e.Handler(rec, r, c)
			return
		}
	}
	if r.Host == w.signIn && !w.apps[r.Host] {
		_, _ = io.WriteString(rec, "dashboard")
		return
	}
	if w.strip != nil {
		w.strip(r)
		c = w.caller(r)
	}
	if c.Anonymous() || w.nobody {
		red := s.SignInRedirect(view{r}, w.routeIDP, w.additional)
		for _, k := range red.Cookies {
			http.SetCookie(rec, k)
		}
		rec.Header().Set("Location", red.URL)
		rec.WriteHeader(http.StatusFound)
		return
	}
	_, _ = io.WriteString(rec, "hello "+c.UserID()+" at "+r.Host+r.URL.RequestURI())
}

// caller resolves the cookie as authz does.
func (w *world) caller(r *http.Request) *session.Caller {
	s := w.svc
	find := func(name string, good func(*session.Handle) bool) *session.Caller {
		v, _, ok := session.SingleValue(cookieValues(cookieLines(r), name))
		if !ok {
			return nil
		}
		h, err := session.VerifyHandle(w.keys, v)
		if err != nil || !good(h) {
			return nil
		}
		if h.IDPID != "" && w.routeIDP != "" && h.IDPID != w.routeIDP && !strings.HasPrefix(r.URL.Path, "/.pomerium") {
			return nil
		}
		sess, err := s.readSession(r.Context(), h.ID)
		if err != nil || sess == nil {
			return nil
		}
		return &session.Caller{ID: sess.ID, Handle: h, Session: sess}
	}
	if r.Host == w.signIn && strings.HasPrefix(r.URL.Path, "/.pomerium") {
		if c := find(s.names.SignIn, func(h *session.Handle) bool { return h.ForSignIn(r.Host) }); c != nil {
			return c
		}
	}
	return find(s.names.Session, func(h *session.Handle) bool { return h.ForHost(r.Host, s.cfg.CookieDomain) })
}

// browser is a person's browser: cookies, and every step it took.
type browser struct {
	w     *world
	jar   http.CookieJar
	mu    sync.Mutex
	trail []*http.Response
	// before may stop the browser ahead of a request.
	before func(*http.Request) error
}

func (w *world) browser() *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return &browser{w: w, jar: jar}
}

// page is where a browser ended.
type page struct {
	*http.Response
	body string
}

func (b *browser) do(req *http.Request) page {
	b.w.t.Helper()
	client := &http.Client{Jar: b.jar, Transport: b.w, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		b.mu.Lock()
		b.trail = append(b.trail, r.Response)
		b.mu.Unlock()
		if b.before != nil {
			if err := b.before(r); err != nil {
				return err
			}
		}
		if len(via) > 60 {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		b.w.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.w.t.Fatal(err)
	}
	return page{resp, string(body)}
}

func (b *browser) get(raw string) page {
	b.w.t.Helper()
	req, err := http.NewRequest("GET", raw, nil)
	if err != nil {
		b.w.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	return b.do(req)
}

func (b *browser) post(raw string, form url.Values, header map[string]string) page {
	b.w.t.Helper()
	req, err := http.NewRequest("POST", raw, strings.NewReader(form.Encode()))
	if err != nil {
		b.w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	for k, v := range header {
		req.Header.Set(k, v)
	}
	return b.do(req)
}

// until follows redirects up to the first request whose URL has the prefix and
// gives that URL instead of visiting it.
func (b *browser) until(start, prefix string) string {
	b.w.t.Helper()
	var hit string
	b.before = func(r *http.Request) error {
		if strings.HasPrefix(r.URL.String(), prefix) {
			hit = r.URL.String()
			return http.ErrUseLastResponse
		}
		return nil
	}
	defer func() { b.before = nil }()
	p := b.get(start)
	if hit == "" {
		b.w.t.Fatalf("never came to %s; ended %d at %s: %.300s", prefix, p.StatusCode, p.Request.URL, p.body)
	}
	return hit
}

// cookie gives a cookie that the browser holds for a host.
func (b *browser) cookie(host, name string) string {
	for _, c := range b.jar.Cookies(&url.URL{Scheme: "https", Host: host, Path: "/"}) {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

var (
	hidden = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)"`)
	action = regexp.MustCompile(`<form[^>]* action="([^"]*)"`)
)

// form reads the hidden fields and action of a page's form.
func (p page) form(t testing.TB) (string, url.Values) {
	t.Helper()
	out := url.Values{}
	for _, m := range hidden.FindAllStringSubmatch(p.body, -1) {
		out.Set(m[1], unescape(m[2]))
	}
	a := action.FindStringSubmatch(p.body)
	if a == nil {
		t.Fatalf("no form on the page (%d): %.500s", p.StatusCode, p.body)
	}
	to, err := p.Request.URL.Parse(unescape(a[1]))
	if err != nil {
		t.Fatal(err)
	}
	return to.String(), out
}

func unescape(s string) string {
	return strings.NewReplacer("&amp;", "&", "&#43;", "+", "&#34;", `"`, "&#39;", "'", "&lt;", "<", "&gt;", ">").Replace(s)
}

// sessions lists the session records.
func (w *world) sessions() []*session.Session {
	w.t.Helper()
	page, err := w.store.List(context.Background(), session.SessionType, record.Query{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []*session.Session
	for _, rec := range page.Records {
		s, err := session.DecodeSession(rec)
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// view shows an http.Request as the door's codecs do.
type view struct{ r *http.Request }

func (v view) Method() string            { return v.r.Method }
func (v view) Scheme() string            { return "https" }
func (v view) Proto() exchange.Proto     { return exchange.HTTP11 }
func (v view) Protocol() string          { return "" }
func (v view) Authority() string         { return v.r.Host }
func (v view) Hostname() string          { return hostName(v.r.Host) }
func (v view) RawTarget() string         { return v.r.RequestURI }
func (v view) Path() string              { return v.r.URL.EscapedPath() }
func (v view) RawQuery() string          { return v.r.URL.RawQuery }
func (v view) HasQuery() bool            { return v.r.URL.RawQuery != "" }
func (v view) Header(name string) string { return v.r.Header.Get(name) }
func (v view) Values(name string) iter.Seq[string] {
	return slices.Values(v.r.Header.Values(name))
}
func (v view) Headers() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for k, vs := range v.r.Header {
			for _, x := range vs {
				if !yield(k, x) {
					return
				}
			}
		}
	}
}
func (v view) BodySize() int64      { return 0 }
func (v view) RequestID() string    { return "req-1" }
func (v view) Peer() *exchange.Peer { return &exchange.Peer{} }
