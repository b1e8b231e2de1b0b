// Package portal is the door for the person behind the credential: who they
// are to us and which routes they may open.
//
//	p := portal.New(portal.Options{Pages: pages, Routes: table.Routes(), Claims: claims, Enabled: true})
//	endpoints = append(endpoints, proxy.Endpoint{Path: "/.pomerium/routes", NeedsLogin: true, Handler: p.Routes}, ...)
//
// It only shows. What changes sessions lives on the sign-in host, in authn.
// No token, handle or session id is ever handed to a page.
//
// Source: wire-contract.md §2.
package portal

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"postern/internal/pages"
	"postern/internal/route"
	"postern/internal/session"
)

// The paths served here.
const (
	PathAccount = "/.pomerium/"
	PathUser    = "/.pomerium/user"
	PathRoutes  = "/.pomerium/routes"
	PathAPI     = "/.pomerium/api/v1/routes"

	pathSignOut = "/.pomerium/sign_out"
)

// Options are what a Portal shows and whom it asks. Pages is required.
type Options struct {
	Pages *pages.Renderer
	// Routes are all routes of the generation, in the order they are tried.
	Routes []*route.Route
	// Enabled is the runtime flag routes_portal.
	Enabled bool
	// Claims gives what the assertion says about c on the host of r, without
	// iss, aud, exp, iat and jti. nil: nothing is known.
	Claims func(r *http.Request, c *session.Caller) map[string]any
	// VerifyLink checks a signed link to the account page. nil: every link
	// that claims a signature is refused.
	VerifyLink func(r *http.Request) error
	// SignInURL is where an anonymous visitor signs in; nil or "" shows no
	// button.
	SignInURL func(r *http.Request) string
	// ProviderName names an identity provider by its id, as people know it.
	ProviderName func(idpID string) string
	// GroupsFrom tells where the groups of c come from and when they were
	// last read.
	GroupsFrom func(ctx context.Context, c *session.Caller) (source string, at time.Time)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Portal answers the endpoints of one generation. It is immutable.
type Portal struct{ o Options }

// New makes a Portal.
func New(o Options) *Portal {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Portal{o: o}
}

// get refuses what is not a GET or HEAD, and says whether to go on.
func (p *Portal) get(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	p.fail(w, r, pages.ErrorPage{Kind: pages.BadRequest, Status: http.StatusMethodNotAllowed, Message: "This page can only be read."})
	return false
}

func (p *Portal) fail(w http.ResponseWriter, r *http.Request, e pages.ErrorPage) {
	e.Source = pages.FromEndpoint
	e.RequestID = requestID(w)
	e.Time = p.o.Now()
	e.Host = r.Host
	p.o.Pages.Error(w, r, e)
}

// requestID is what the proxy door set before it called.
func requestID(w http.ResponseWriter) string { return w.Header().Get("X-Request-Id") }

// Account is GET /.pomerium and /.pomerium/: who the caller is, their session,
// groups and claims; for anybody else, that they are not signed in.
func (p *Portal) Account(w http.ResponseWriter, r *http.Request, c *session.Caller) {
	if !p.get(w, r) {
		return
	}
	// A link that claims to be ours must be (wire-contract.md §1.6).
	if q := r.URL.Query(); q.Has("pomerium_signature") || q.Has("pomerium_redirect_uri") {
		if p.o.VerifyLink == nil || p.o.VerifyLink(r) != nil {
			p.fail(w, r, pages.ErrorPage{Kind: pages.BadRequest, Message: "This link is not valid or too old."})
			return
		}
	}
	if c.Anonymous() {
		a := pages.AnonymousPage{RequestID: requestID(w)}
		if p.o.SignInURL != nil {
			a.SignInURL = p.o.SignInURL(r)
		}
		p.o.Pages.Anonymous(w, r, a)
		return
	}
	now := p.o.Now()
	a := pages.AccountPage{
		Bar: p.bar(c), Now: now, Name: name(c), Email: c.Email(), UserID: c.UserID(),
		Groups: groupNames(c), Claims: claimsOf(c), RequestID: requestID(w),
	}
	one := pages.SessionView{ThisOne: true, SignOutURL: pathSignOut}
	switch {
	case c.ServiceAccount != nil:
		a.ServiceAccount = true
		if a.Name == "" {
			a.Name = c.ServiceAccount.Description
		}
		one.SignOutURL, one.Program = "", true
		one.SignedInAt, one.UsedAt, one.EndsAt = c.ServiceAccount.IssuedAt, c.ServiceAccount.AccessedAt, c.ServiceAccount.ExpiresAt
	case c.Session != nil:
		one.Program = c.Session.Program
		one.SignedInAt, one.UsedAt, one.EndsAt = c.Session.IssuedAt, c.Session.AccessedAt, c.Session.ExpiresAt
		if p.o.ProviderName != nil {
			a.Provider = p.o.ProviderName(c.Session.IDPID)
		}
	}
	a.Sessions = []pages.SessionView{one}
	if c.ImpersonatedBy != nil {
		a.ImpersonatedBy = c.ImpersonatedBy.UserID
		if e := c.ImpersonatedBy.Claims["email"]; len(e) > 0 {
			a.ImpersonatedBy = fmt.Sprint(e[0])
		}
	}
	if p.o.GroupsFrom != nil && len(a.Groups) > 0 {
		a.GroupsSource, a.GroupsSynced = p.o.GroupsFrom(r.Context(), c)
	}
	p.o.Pages.Account(w, r, a)
}

// User is GET /.pomerium/user: the claims of the assertion as JSON, 404 for a
// caller without a subject.
func (p *Portal) User(w http.ResponseWriter, r *http.Request, c *session.Caller) {
	if !p.get(w, r) {
		return
	}
	var claims map[string]any
	if p.o.Claims != nil && !c.Anonymous() {
		claims = p.o.Claims(r, c)
	}
	if sub, _ := claims["sub"].(string); sub == "" {
		p.fail(w, r, pages.ErrorPage{Kind: pages.NotFound, Message: "Nobody with a name of their own is signed in."})
		return
	}
	shown := make(map[string]any, len(claims))
	for k, v := range claims {
		switch k {
		case "iss", "aud", "exp", "iat", "jti":
		default:
			shown[k] = v
		}
	}
	p.json(w, r, shown)
}

// Routes is GET /.pomerium/routes: the applications the caller may open.
func (p *Portal) Routes(w http.ResponseWriter, r *http.Request, c *session.Caller) {
	if !p.get(w, r) {
		return
	}
	if !p.o.Enabled {
		p.fail(w, r, pages.ErrorPage{Kind: pages.NotFound})
		return
	}
	if c.Anonymous() {
		p.fail(w, r, pages.ErrorPage{Kind: pages.Unauthenticated})
		return
	}
	page := pages.PortalPage{Bar: p.bar(c), Path: PathRoutes, Query: strings.TrimSpace(r.URL.Query().Get("q"))}
	if len(page.Query) > 200 {
		page.Query = strings.ToValidUTF8(page.Query[:200], "")
	}
	for _, rt := range p.selected(c) {
		app, ok := appOf(rt)
		if !ok {
			continue
		}
		page.Total++
		if app.Matches(page.Query) {
			page.Apps = append(page.Apps, app)
		}
	}
	p.o.Pages.Portal(w, r, page)
}

// apiRoute is a route in the portal's JSON (wire-contract.md §2).
type apiRoute struct {
	ID             string `json:"id"`
	Name           string `json:"name"`
	Type           string `json:"type"`
	From           string `json:"from"`
	Description    string `json:"description"`
	ConnectCommand string `json:"connect_command,omitempty"`
	LogoURL        string `json:"logo_url"`
}

// RoutesAPI is GET /.pomerium/api/v1/routes: the same list for programs.
func (p *Portal) RoutesAPI(w http.ResponseWriter, r *http.Request, c *session.Caller) {
	if !p.o.Enabled {
		p.Unknown(w, r, c)
		return
	}
	if !p.get(w, r) {
		return
	}
	if c.Anonymous() {
		p.fail(w, r, pages.ErrorPage{Kind: pages.Unauthenticated})
		return
	}
	list := []apiRoute{}
	for _, rt := range p.selected(c) {
		list = append(list, apiRoute{
			ID: rt.ID, Name: displayName(rt), Type: apiType(rt), From: rt.From.Raw, Description: rt.Description,
			ConnectCommand: connectCommand("pomerium-cli", rt), LogoURL: rt.LogoURL,
		})
	}
	p.json(w, r, struct {
		Routes []apiRoute `json:"routes"`
	}{list})
}

// Asset serves stylesheet, script and icons at pages.Renderer.AssetPaths.
func (p *Portal) Asset(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	p.o.Pages.ServeAsset(w, r)
}

// Unknown answers for paths below /.pomerium/ that nobody serves: plain text
// for the API, a page for people.
func (p *Portal) Unknown(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	if strings.HasPrefix(r.URL.Path, "/.pomerium/api/") {
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	p.fail(w, r, pages.ErrorPage{Kind: pages.NotFound})
}

func (p *Portal) json(w http.ResponseWriter, r *http.Request, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		p.fail(w, r, pages.ErrorPage{Kind: pages.Internal})
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(append(body, '\n'))
	}
}

func (p *Portal) bar(c *session.Caller) pages.Bar {
	b := pages.Bar{Person: name(c), AccountURL: PathAccount}
	for _, other := range []string{c.Email(), c.UserID()} {
		if b.Person == "" {
			b.Person = other
		}
	}
	if p.o.Enabled {
		b.PortalURL = PathRoutes
	}
	if c.Session != nil {
		b.SignOutURL = pathSignOut
	}
	return b
}

// name is the display name of the caller, or "".
func name(c *session.Caller) string {
	switch {
	case c.Directory != nil && c.Directory.DisplayName != "":
		return c.Directory.DisplayName
	case c.User != nil && c.User.Name != "":
		return c.User.Name
	case c.Session != nil && len(c.Session.Claims["name"]) > 0:
		s, _ := c.Session.Claims["name"][0].(string)
		return s
	}
	return ""
}

// groupNames are the names of the caller's groups, their ids where the
// directory gives no name, sorted.
func groupNames(c *session.Caller) []string {
	if c.Directory == nil {
		return nil
	}
	names := make(map[string]string, len(c.Groups))
	for _, g := range c.Groups {
		if g != nil && g.Name != "" {
			names[g.ID] = g.Name
		}
	}
	var out []string
	for _, id := range c.Directory.GroupIDs {
		if n := names[id]; n != "" {
			id = n
		}
		out = append(out, id)
	}
	sort.Strings(out)
	return slices.Compact(out)
}

// claimsOf lists the claims that applications may learn: those of the session
// and, where it has none of the name, those of the user. pages withholds what
// looks like a credential.
func claimsOf(c *session.Caller) []pages.Claim {
	all := map[string][]any{}
	if c.User != nil {
		for k, v := range c.User.Claims {
			all[k] = v
		}
	}
	if c.Session != nil {
		for k, v := range c.Session.Claims {
			all[k] = v
		}
	}
	out := make([]pages.Claim, 0, len(all)+1)
	if id := c.UserID(); id != "" && all["sub"] == nil {
		out = append(out, pages.Claim{Name: "sub", Values: []string{id}})
	}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		one := pages.Claim{Name: k}
		for _, v := range all[k] {
			one.Values = append(one.Values, claimText(v))
		}
		out = append(out, one)
	}
	return out
}

// claimText writes a claim's value as JSON would, strings without quotes.
func claimText(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "(not shown)"
	}
	return string(b)
}
