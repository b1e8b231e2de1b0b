package server

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"postern/internal/authn"
	"postern/internal/authz"
	"postern/internal/config"
	"postern/internal/exchange"
	"postern/internal/identity"
	"postern/internal/pages"
	"postern/internal/portal"
	"postern/internal/proxy"
	"postern/internal/route"
	"postern/internal/session"
)

type cookie = *http.Cookie

// endpoints are all of Postern's own pages (wire-contract.md §2). /ping,
// /healthz and robots.txt are the door's.
func (s *Server) endpoints(cfg *config.Config, c *compiled, service *authn.Service, env *authz.Env, keys *session.Keys, renderer *pages.Renderer) *proxy.Endpoints {
	own := s.engine.Endpoints(env)
	list := []proxy.Endpoint{
		{Path: "/.well-known/pomerium", Handler: own.Discovery},
		{Path: "/.well-known/pomerium/", Handler: own.Discovery},
		{Path: "/.well-known/pomerium/jwks.json", Handler: own.Keys},
		{Path: "/.well-known/pomerium/hpke-public-key", Handler: own.HPKEKey},
		{Path: "/.pomerium/jwt", NeedsLogin: true, Handler: own.JWT},
		{Path: "/", SignInHostOnly: true, Handler: func(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
			http.Redirect(w, r, "/.pomerium/", http.StatusFound)
		}},
	}
	for _, e := range service.Endpoints() {
		list = append(list, proxy.Endpoint{Path: e.Path, Prefix: e.Prefix, SignInHostOnly: e.SignInHostOnly, Handler: e.Handler})
	}
	for _, path := range renderer.AssetPaths() {
		list = append(list, proxy.Endpoint{Path: path, Handler: func(w http.ResponseWriter, r *http.Request, _ *session.Caller) { renderer.ServeAsset(w, r) }})
	}
	list = append(list, s.explainEndpoint(c, renderer))
	list = append(list, s.portal(cfg, c, env, keys, renderer)...)
	return proxy.NewEndpoints(list...)
}

// decorate adds to an error page what only the wiring knows: where the
// visitor can go, and for administrators (admin_policy) why they were refused,
// whatever the route tells others.
func (s *Server) decorate(c *compiled) func(*pages.ErrorPage, exchange.View, *route.Route, *authz.Decision) {
	return func(p *pages.ErrorPage, v exchange.View, rt *route.Route, d *authz.Decision) {
		if d == nil || d.Caller.Anonymous() {
			return
		}
		p.PortalURL = portal.PathRoutes
		p.AccountURL = portal.PathAccount
		p.OtherAccountURL = "/.pomerium/sign_out"
		if p.Kind != pages.Denied && p.Detail == "" || !authz.Satisfies(c.admin, d.Caller, time.Now()) {
			return
		}
		p.Administrator = true
		if p.Kind == pages.Denied {
			p.ShowDetails, p.Denial = true, proxy.DenialOf(d, true)
		}
	}
}

// portal are the pages for the person signed in.
func (s *Server) portal(cfg *config.Config, c *compiled, env *authz.Env, keys *session.Keys, renderer *pages.Renderer) []proxy.Endpoint {
	p := portal.New(portal.Options{
		Pages: renderer, Routes: c.table.Routes(), Enabled: cfg.Flag("routes_portal"),
		Claims: func(r *http.Request, who *session.Caller) map[string]any {
			return env.IdentityClaims(who, c.table.Find(r.Host, "/").Route)
		},
		VerifyLink: func(r *http.Request) error {
			u := url.URL{Scheme: "https", Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
			return session.VerifyLink(keys, &u, time.Now())
		},
		// A page that needs a login leads through it and back.
		SignInURL:    func(*http.Request) string { return portal.PathRoutes },
		ProviderName: func(string) string { return providerName(cfg) },
		GroupsFrom:   func(context.Context, *session.Caller) (string, time.Time) { return "", time.Time{} },
	})
	return []proxy.Endpoint{
		{Path: "/.pomerium", Handler: p.Account},
		{Path: portal.PathAccount, Handler: p.Account},
		{Path: portal.PathUser, NeedsLogin: true, Handler: p.User},
		{Path: portal.PathRoutes, NeedsLogin: true, Handler: p.Routes},
		{Path: portal.PathAPI, NeedsLogin: true, Handler: p.RoutesAPI},
	}
}

// providerName is the identity provider as people know it.
func providerName(cfg *config.Config) string {
	switch k := cfg.Identity.IDPProvider; k {
	case "", "hosted", identity.LocalName:
		return "a local account"
	case "oidc":
		if u, err := url.Parse(cfg.Identity.IDPProviderURL); err == nil {
			return u.Hostname()
		}
		return "your identity provider"
	default:
		return k
	}
}
