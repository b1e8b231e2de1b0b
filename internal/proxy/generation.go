package proxy

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/pages"
	"postern/internal/route"
	"postern/internal/session"
	"postern/internal/telemetry"
	"postern/internal/upstream"
)

// Authorizer decides requests. *authz.Engine is one.
type Authorizer interface {
	Decide(ctx context.Context, req *authz.Request) authz.Decision
}

// Streams follows open streams and cuts those that may not go on.
// *authz.Engine is one.
type Streams interface {
	Follow(req *authz.Request, d *authz.Decision, cut func(reason string)) *authz.Stream
	CloseStream(*authz.Stream)
}

// RouteHook lets a protocol built on HTTP (MCP) look into a request before it
// is decided and into the response before it begins (decision 1).
type RouteHook interface {
	// BeforeDecide may read the body and fill req.MCP. The body that it
	// returns goes upstream. An error is answered with 400 and its text.
	BeforeDecide(ctx context.Context, req *authz.Request, body exchange.BodySource) (exchange.BodySource, error)
	// OnResponse may change status and fields of the response head.
	OnResponse(ctx context.Context, req *authz.Request, status int, h []exchange.Field) (int, []exchange.Field)
}

// Endpoint is one of Postern's own pages.
type Endpoint struct {
	// Path is the exact canonical path. With Prefix, everything below it too:
	// Path then ends in "/".
	Path   string
	Prefix bool
	// SignInHostOnly hides the endpoint (404) on other hosts.
	SignInHostOnly bool
	// NeedsLogin turns anonymous callers away even if the Authorizer did not.
	NeedsLogin bool
	// Handler answers. The caller is never nil; r.Host and r.URL are canonical.
	Handler func(w http.ResponseWriter, r *http.Request, c *session.Caller)
}

// Endpoints finds an own page by path.
type Endpoints struct {
	exact    map[string]*Endpoint
	prefixes []*Endpoint // longest first
}

// NewEndpoints makes the list of own pages. /ping, /healthz and the sign-in
// host's /robots.txt are the door's own and need not be listed.
func NewEndpoints(list ...Endpoint) *Endpoints {
	e := &Endpoints{exact: make(map[string]*Endpoint, len(list))}
	for i := range list {
		p := &list[i]
		if !p.Prefix {
			e.exact[p.Path] = p
			continue
		}
		at := 0
		for at < len(e.prefixes) && len(e.prefixes[at].Path) >= len(p.Path) {
			at++
		}
		e.prefixes = append(e.prefixes[:at], append([]*Endpoint{p}, e.prefixes[at:]...)...)
	}
	return e
}

func (e *Endpoints) find(path string) *Endpoint {
	if e == nil {
		return nil
	}
	if p := e.exact[path]; p != nil {
		return p
	}
	for _, p := range e.prefixes {
		if strings.HasPrefix(path, p.Path) {
			return p
		}
	}
	return nil
}

// Generation is everything that requests are served from. It is immutable; a
// change of configuration makes a new one.
type Generation struct {
	Table     *route.Table
	Targets   []*Target // by route slot
	Settings  *Settings
	Endpoints *Endpoints

	Authorizer Authorizer
	Env        *authz.Env
	Streams    Streams // nil: streams are not followed

	// SignInURL is where a browser that must sign in is sent; StepUpURL where
	// it proves its device. Nil, or an error, answers 401 instead.
	// The cookies go with the redirect: they bind the login to this browser.
	SignInURL func(v exchange.View, rt *route.Route) (location string, cookies []*http.Cookie, err error)
	StepUpURL func(v exchange.View, rt *route.Route, deviceType string) (string, error)

	// Pages renders errors; required.
	Pages *pages.Renderer
	// Decorate adds links and names to an error page; d is nil where nothing
	// was decided. It may be nil.
	Decorate func(p *pages.ErrorPage, v exchange.View, rt *route.Route, d *authz.Decision)

	// ClientCertificate judges the presented chain for a route (nil: none).
	// It is asked for each request, so that a connection outlives no CA. Nil
	// means that no client CA is configured.
	ClientCertificate func(chain []*x509.Certificate, rt *route.Route) exchange.CertificateState

	// SameClientPolicy says whether a connection whose handshake named sni was
	// asked for every client certificate that host may need; if not, requests
	// for host are answered 421. Nil says that it was. CertificatesEverywhere
	// (reject_connection) extends that to own pages.
	SameClientPolicy       func(sni, host string) bool
	CertificatesEverywhere bool
	// RefusesConnection says why a connection whose handshake named sni and
	// showed chain would be refused today (reject_connection), for those that a
	// change of CA or CRL finds open. Nil refuses none.
	RefusesConnection func(sni string, chain []*x509.Certificate) error

	// Limiter counts for the rate limits of routes; nil enforces none.
	Limiter *Limiter

	// AccessLog is given each request once it is over. It may be nil.
	AccessLog func(*telemetry.AccessEntry)
	Metrics   *telemetry.Metrics
	Log       *slog.Logger

	lastingOnce sync.Once
	lastingPart *Generation
}

// lasting is what an exchange still needs of its generation once its answer
// has begun: to be counted and logged when it ends.
func (g *Generation) lasting() *Generation {
	g.lastingOnce.Do(func() {
		g.lastingPart = &Generation{
			Settings: g.Settings, Pages: g.Pages, Limiter: g.Limiter, AccessLog: g.AccessLog, Metrics: g.Metrics, Log: g.Log, Streams: g.Streams,
		}
		g.lastingPart.lastingOnce.Do(func() {})
		g.lastingPart.lastingPart = g.lastingPart
	})
	return g.lastingPart
}

// Target is what the door does with the requests of one route.
type Target struct {
	Route    *route.Route
	Upstream *upstream.Target
	Hook     RouteHook

	redirect  *Redirect
	fixed     *Response
	request   requestRules
	response  *ResponseRules
	rewriting rewriting
	upgrades  []string
	limits    *rateLimits // nil: none
	problem   string      // why the route is not served; ""

	timeout     time.Duration
	timeoutKey  string
	idleTimeout time.Duration
}

// TargetOptions is what a Target needs besides the keys of its route.
type TargetOptions struct {
	// Upstream is required unless the route redirects or responds by itself.
	Upstream *upstream.Target
	// FirstTo is the route's first destination; its path is an implicit
	// prefix_rewrite.
	FirstTo *url.URL
	// PassIdentityHeaders is the global value; the route's own wins.
	PassIdentityHeaders bool
	// ClaimHeaders are the names of jwt_claims_headers: on a route that does
	// not pass identity they are withheld from the upstream, whoever set them.
	ClaimHeaders []string
	Hook         RouteHook
}

// BrokenTarget stands in for a route whose settings hold a mistake, problem:
// whoever asks for it is answered 503 (config_bad_route: isolate). Nothing
// is decided, for its policy may be the mistake.
func BrokenTarget(rt *route.Route, problem string) *Target {
	if problem == "" {
		problem = "its settings hold a mistake"
	}
	return &Target{Route: rt, problem: problem}
}

// NewTarget compiles the keys of one route. c.Resolved must be filled.
func NewTarget(rt *route.Route, c RouteConfig, o TargetOptions) (*Target, error) {
	t := &Target{
		Route: rt, Upstream: o.Upstream, Hook: o.Hook,
		redirect: c.Redirect, fixed: c.Response,
		timeout: c.Resolved.Timeout, timeoutKey: "default_upstream_timeout",
		idleTimeout: c.Resolved.IdleTimeout,
		upgrades:    c.Resolved.Upgrades,
	}
	if c.Timeout != nil {
		t.timeoutKey = "timeout"
	}
	pass := o.PassIdentityHeaders
	if rt.PassIdentityHeaders != nil {
		pass = *rt.PassIdentityHeaders
	}
	var withhold []string
	if !pass {
		withhold = append([]string{authz.HeaderAssertion, authz.HeaderAssertionFor}, plainNames(o.ClaimHeaders)...)
	}
	var err error
	if t.request, err = newRequestRules(c.SetRequestHeaders, c.RemoveRequestHeaders, withhold); err != nil {
		return nil, err
	}
	if t.response, err = NewResponseRules(c.Resolved.ResponseHeaders, c.RewriteResponseHeaders); err != nil {
		return nil, err
	}
	toPath := ""
	if o.FirstTo != nil && o.FirstTo.Scheme != "unix" && o.FirstTo.Scheme != "https+unix" {
		toPath = o.FirstTo.EscapedPath()
	}
	if t.limits, err = newRateLimits(rt, c.Resolved.RateLimit); err != nil {
		return nil, err
	}
	t.rewriting, err = newRewriting(&c, toPath)
	return t, err
}
