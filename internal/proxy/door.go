// Package proxy is the HTTP door: every request comes in here, is brought to
// its canonical form, matched, decided, and then refused, answered by one of
// our own pages, or sent upstream.
//
//	handler := proxy.New(func() *proxy.Generation { return current.Load() })
//	err := proxy.Serve(ctx, listener, proxy.ServeOptions{Handler: handler, TLS: config})
//
// Everything below the adapter (view.go, exchange.go) works on exchange.View
// and exchange.Exchange, so that another codec can drive the same door. What
// policy judged is byte for byte what is forwarded: the path is normalised
// once, and that form is matched, judged, rewritten and sent.
//
// The guard (guard*.go) stands in front of net/http and reads HTTP/1.1 heads
// strictly.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/pages"
	"postern/internal/route"
	"postern/internal/telemetry"
	"postern/internal/upstream"
)

// New makes the door. current gives the generation to serve a request from;
// it is called once per request.
func New(current func() *Generation) http.Handler { return &door{current} }

type door struct{ current func() *Generation }

// call is one request on its way through the door.
type call struct {
	gen   *Generation
	began time.Time
	r     *http.Request
	w     http.ResponseWriter
	view  *request
	x     *response

	match    route.Match
	target   *Target
	ask      authz.Request
	decision authz.Decision
	decided  bool
	// standings is what the rate limits of the route say of this request.
	standings standings
	body      exchange.BodySource // what a hook left of the body; nil: x's own

	forwarded bool
	result    upstream.Result
	tunnel    atomic.Pointer[cuttable]
	cancel    context.CancelCauseFunc
	stream    following

	cluster, statName string
	details           string // response-code-details
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g := d.current()
	if g == nil {
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, "not configured yet; try again shortly", http.StatusServiceUnavailable)
		return
	}
	c := &call{gen: g, began: time.Now(), r: r, w: w, x: newResponse(w, r)}
	defer c.finish()
	c.serve()
}

// serve reads downwards; every return is an answer.
func (c *call) serve() {
	g := c.gen
	view, redirect, bad := newRequest(c.r, g.Settings)
	c.view = view
	if bad != nil {
		c.log(slog.LevelInfo, "request refused", "reason", bad.message)
		if c.r.ProtoMajor == 1 {
			// Somebody before us may read the refused head otherwise: then what
			// follows is no request either.
			c.w.Header().Set("Connection", "close")
		}
		c.fail(pages.ErrorPage{Kind: pages.BadRequest, Status: bad.status, Message: sentence(bad.message)}, bad.details)
		return
	}
	if redirect {
		c.redirectTo(http.StatusTemporaryRedirect, "https://"+view.authority+pathAndQuery(view), "path_normalization_redirect")
		return
	}
	c.match = g.Table.Match(view)
	rt := c.match.Route
	if g.ClientCertificate != nil {
		view.peer.CertificateState = g.ClientCertificate(view.peer.Certificates, rt)
	}
	if odd := unjudgeable(view.path); odd != "" && g.Table.HostHasPathRules(view.authority) {
		c.fail(pages.ErrorPage{Kind: pages.BadRequest, Message: "The address holds " + odd + ", which this application's rules cannot judge."},
			"path_normalization_failed")
		return
	}
	if view.Method() == http.MethodConnect && c.match.Own == route.OwnNone {
		rt = nil // tunnels are not carried yet
	}
	if c.misdirected() {
		c.details = "misdirected_request"
		c.local(func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "421 Misdirected Request: this host asks for a client certificate on a connection of its own", http.StatusMisdirectedRequest)
		})
		return
	}
	if c.connectionRefused() {
		return
	}
	if c.match.Own != route.OwnNone {
		c.own()
		return
	}
	if rt == nil {
		c.fail(pages.ErrorPage{Kind: pages.NotFound}, "route_not_found")
		return
	}
	if rt.Slot < len(g.Targets) {
		c.target = g.Targets[rt.Slot]
	}
	c.cluster, c.statName = rt.ClusterName, rt.StatName
	if c.statName == "" {
		c.statName = rt.Name
	}
	if c.target == nil || c.target.Route != rt {
		c.log(slog.LevelError, "route has no target", "route", rt.ID)
		c.fail(pages.ErrorPage{Kind: pages.Internal}, "no_cluster")
		return
	}

	if c.target.problem != "" {
		c.log(slog.LevelInfo, "route is not served", "route", rt.ID, "problem", c.target.problem)
		c.fail(pages.ErrorPage{Kind: pages.Misconfigured, Source: pages.FromProxy, Detail: c.target.problem}, "route_misconfigured")
		return
	}
	if !c.withinLimits(beforeDecision) {
		return
	}
	c.ask = authz.Request{View: view, Route: rt, SignInHost: c.match.SignIn, Env: g.Env}
	if hook := c.target.Hook; hook != nil {
		var err error
		if c.body, err = hook.BeforeDecide(c.r.Context(), &c.ask, c.x.Body()); err != nil {
			c.fail(pages.ErrorPage{Kind: pages.BadRequest, Message: sentence(err.Error())}, "bad_request_body")
			return
		}
	}
	c.decide()
	if at, counted := stageOf(c.decision.Outcome); counted && !c.withinLimits(at) {
		return
	}
	if c.decision.Outcome != authz.Allow {
		c.refuse()
		return
	}
	switch {
	case c.target.redirect != nil:
		c.redirectTo(c.target.redirect.status(), c.target.redirect.location(rt, view), "direct_response")
	case c.target.fixed != nil:
		c.respond(c.target.fixed)
	default:
		c.forward()
	}
}

// unjudgeable names what of a canonical path servers read differently, so that
// it may not stand where paths decide (decision 3); "" is nothing.
func unjudgeable(path string) string {
	switch {
	case exchange.HasEscapedSlash(path):
		return "an escaped slash"
	case exchange.HasDotParameter(path):
		return "a dot segment with a parameter"
	}
	return ""
}

func (c *call) decide() {
	c.decision = c.gen.Authorizer.Decide(c.r.Context(), &c.ask)
	c.decided = true
}

// own answers a request for one of Postern's own paths. It never reaches an
// upstream.
func (c *call) own() {
	c.cluster = "pomerium-control-plane-http"
	path := c.view.path
	switch {
	case path == "/ping" || path == "/healthz":
		c.local(servePing)
		return
	case path == "/robots.txt":
		c.local(pages.SendRobots)
		return
	}
	e := c.gen.Endpoints.find(path)
	if e == nil || (e.SignInHostOnly && !c.match.SignIn) {
		if strings.HasPrefix(path, "/.pomerium/api/") {
			c.details = "route_not_found"
			c.local(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "not found", http.StatusNotFound) })
			return
		}
		c.fail(pages.ErrorPage{Kind: pages.NotFound, Source: pages.FromEndpoint}, "route_not_found")
		return
	}
	c.ask = authz.Request{View: c.view, Route: c.match.Route, Internal: true, SignInHost: c.match.SignIn, Env: c.gen.Env}
	c.decide()
	if e.NeedsLogin && c.decision.Outcome == authz.Allow && c.decision.Caller.Anonymous() {
		c.decision = authz.Decision{Outcome: authz.SignIn, Status: http.StatusUnauthorized, Caller: c.decision.Caller}
	}
	if c.decision.Outcome != authz.Allow {
		c.refuse()
		return
	}
	c.local(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxOwnBody)
		e.Handler(w, r, c.decision.Caller)
	})
}

// maxOwnBody bounds what own pages read, in bytes.
const maxOwnBody = 1 << 20

func servePing(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	h.Set("Content-Length", "3")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write([]byte("OK\n"))
	}
}

// respond answers with the fixed response of a route.
func (c *call) respond(f *Response) {
	c.details = "direct_response"
	c.local(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		if len(h["Content-Type"]) == 0 {
			h.Set("Content-Type", "text/plain")
		}
		status := f.Status
		if status == 0 {
			status = http.StatusOK
		}
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			_, _ = w.Write([]byte(f.Body))
		}
	})
}

func (c *call) redirectTo(status int, location, details string) {
	c.details = details
	c.local(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Location", location)
		h.Set("Content-Length", "0")
		w.WriteHeader(status)
	})
}

// local answers by a handler of ours, with the canonical request and the
// response headers that every answer carries.
func (c *call) local(handler func(http.ResponseWriter, *http.Request)) {
	h := c.w.Header()
	rules := c.gen.Settings.ResponseHeaders
	if c.target != nil && c.target.problem == "" {
		rules = c.target.response
	}
	for _, f := range rules.Fields() {
		h.Set(f.Name, f.Value)
	}
	h.Set("X-Request-Id", c.view.id)
	if alt := c.altSvc(); alt != "" && h["Alt-Svc"] == nil && c.details != "misdirected_request" {
		h.Set("Alt-Svc", alt)
	}
	c.showLimits(h)
	if c.x.body != nil && c.r.ProtoMajor == 1 && c.match.Own == route.OwnNone {
		// The body was not read and will not be: what follows it is unknown.
		h.Set("Connection", "close")
	}
	if c.details == "" {
		c.details = "via_upstream"
	}
	r := c.r.WithContext(c.r.Context()) // a copy
	r.Host = c.view.authority
	if ip := c.view.peer.ClientIP; ip.IsValid() {
		// Own pages throttle and list by the one client address (decision 4).
		r.RemoteAddr = netip.AddrPortFrom(ip, c.view.peer.Direct.Port()).String()
	}
	r.URL = &url.URL{Scheme: "https", Host: c.view.authority, RawQuery: c.view.rawQuery}
	r.URL.Path, r.URL.RawPath = c.view.path, ""
	if decoded, err := url.PathUnescape(c.view.path); err == nil && decoded != c.view.path {
		r.URL.Path, r.URL.RawPath = decoded, c.view.path
	}
	handler(&localWriter{c.w, c.x}, r)
	if !c.x.begun { // a handler that wrote nothing answers 200
		c.x.begun, c.x.status = true, http.StatusOK
	}
}

// localWriter counts what a handler of ours writes.
type localWriter struct {
	http.ResponseWriter
	x *response
}

func (w *localWriter) WriteHeader(status int) {
	if status >= 200 && !w.x.begun {
		w.x.begun, w.x.status = true, status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *localWriter) Write(p []byte) (int, error) {
	if !w.x.begun {
		w.x.begun, w.x.status = true, http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.x.size.Add(int64(n))
	return n, err
}

// Unwrap lets http.ResponseController find the codec.
func (w *localWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// refuse answers a Decision that is not an Allow (wire-contract.md §1.3, §1.4).
func (c *call) refuse() {
	d, rt := &c.decision, c.match.Route
	if c.view.path == "/robots.txt" && d.Outcome != authz.Error {
		c.details = "ext_authz_denied"
		c.local(pages.SendRobots)
		return
	}
	page := pages.ErrorPage{Source: pages.FromPolicy, Status: d.Status, Message: d.Message}
	switch d.Outcome {
	case authz.SignIn, authz.StepUp:
		if d.Redirect {
			if location, err := c.signInLocation(); err != nil {
				c.log(slog.LevelError, "no sign-in address", "error", err.Error())
			} else if location != "" {
				c.details = "ext_authz_denied"
				c.w.Header().Set("Cache-Control", "no-store")
				c.redirectTo(http.StatusFound, location, "ext_authz_denied")
				return
			}
		}
		page.Kind, page.Status = pages.Unauthenticated, http.StatusUnauthorized
	case authz.Error:
		page.Kind = pages.Internal
		switch d.Status {
		case http.StatusServiceUnavailable:
			page.Kind = pages.Unavailable
		case 0, http.StatusOK:
			page.Status = http.StatusInternalServerError
		}
		if d.Err != nil {
			c.log(slog.LevelError, "request could not be decided", "error", d.Err.Error())
		}
		c.failWith(page, "ext_authz_error")
		return
	default:
		page.Kind = denialKind(d.Status)
		if d.Status < 400 {
			page.Status = http.StatusForbidden
		}
		page.CertificateFailed = len(c.view.peer.Certificates) > 0
		if rt != nil && rt.ShowErrorDetails {
			page.ShowDetails = true
			page.Denial = DenialOf(d, false)
		}
	}
	c.failWith(page, "ext_authz_denied")
}

func (c *call) signInLocation() (string, error) {
	if c.decision.Outcome == authz.StepUp {
		if c.gen.StepUpURL == nil {
			return "", nil
		}
		return c.gen.StepUpURL(c.view, c.match.Route, c.decision.DeviceType)
	}
	if c.gen.SignInURL == nil {
		return "", nil
	}
	location, cookies, err := c.gen.SignInURL(c.view, c.match.Route)
	for _, k := range cookies {
		http.SetCookie(c.w, k)
	}
	return location, err
}

func denialKind(status int) pages.ErrorKind {
	switch status {
	case http.StatusBadRequest:
		return pages.BadRequest
	case http.StatusUnauthorized:
		return pages.Unauthenticated
	case http.StatusNotFound:
		return pages.NotFound
	case http.StatusTooManyRequests:
		return pages.TooMany
	case 495:
		return pages.ClientCertificate
	}
	return pages.Denied
}

// fail answers with an error that the door itself found.
func (c *call) fail(page pages.ErrorPage, details string) {
	if page.Source == pages.FromPolicy {
		page.Source = pages.FromProxy
	}
	c.failWith(page, details)
}

func (c *call) failWith(page pages.ErrorPage, details string) {
	c.details = details
	page.RequestID = c.view.id
	page.Time = c.began
	page.Host = c.view.authority
	rt := c.match.Route
	if rt != nil {
		page.Application = rt.Name
	}
	var d *authz.Decision
	if c.decided {
		d = &c.decision
		page.Who = d.Caller.Email()
	}
	if c.gen.Decorate != nil {
		c.gen.Decorate(&page, c.view, rt, d)
	}
	c.local(func(w http.ResponseWriter, r *http.Request) { c.gen.Pages.Error(w, r, page) })
}

// misdirected reports whether a request belongs on a connection of its own
// (RFC 9110 §15.5.20): browsers send requests for other hosts of the same
// certificate over a connection that they have, and these hosts may want a
// client certificate that its handshake did not ask for. A certificate that is
// valid here is welcome from any connection.
func (c *call) misdirected() bool {
	g, v := c.gen, c.view
	info := ConnInfoFrom(c.r.Context())
	if g.SameClientPolicy == nil || info == nil || info.TLS == nil || v.peer.ServerName == "" ||
		v.peer.CertificateState == exchange.CertificateValid {
		return false
	}
	if !g.CertificatesEverywhere && (c.match.Own != route.OwnNone || c.match.Route == nil) {
		return false // own pages need none
	}
	return !g.SameClientPolicy(v.peer.ServerName, v.hostname)
}

// connectionRefused answers 495 on a connection that would not be opened any
// more, and ends it: the pages of our own are no exception.
func (c *call) connectionRefused() bool {
	g, v := c.gen, c.view
	info := ConnInfoFrom(c.r.Context())
	if g.RefusesConnection == nil || info == nil || info.TLS == nil {
		return false
	}
	err := g.RefusesConnection(v.peer.ServerName, v.peer.Certificates)
	if err == nil {
		return false
	}
	c.log(slog.LevelInfo, "listener connection failure", "ip", v.peer.Direct.Addr().String(), "tls-sni-hostname", v.peer.ServerName,
		"downstream-transport-failure-reason", err.Error())
	c.w.Header().Set("Connection", "close")
	c.fail(pages.ErrorPage{Kind: pages.ClientCertificate, CertificateFailed: len(v.peer.Certificates) > 0}, "client_certificate_refused")
	return true
}

// altSvc tells a client on TCP that HTTP/3 is spoken here, too.
func (c *call) altSvc() string {
	info := ConnInfoFrom(c.r.Context())
	if info == nil || info.TLS == nil {
		return ""
	}
	return info.altSvc
}

// finish ends the request whatever happened: a panic is a 500 and never an
// allow, a broken exchange is visibly broken, and the access log gets a line.
func (c *call) finish() {
	p := recover()
	abort := false
	if p != nil {
		if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			abort = true
		} else {
			c.log(slog.LevelError, "panic while serving a request", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			c.details = "internal_error"
			if c.x.begun || c.x.tunneled {
				abort = true
			} else {
				c.panicked()
			}
		}
	}
	if c.x.aborted.Load() {
		abort = true
	}
	ConnInfoFrom(c.r.Context()).openTunnels().remove(c.tunnel.Load())
	if c.x.stream != nil {
		c.x.stream.detach()
	}
	c.record()
	if abort && (!c.x.tunneled || c.x.stream != nil) {
		panic(http.ErrAbortHandler)
	}
}

// panicked answers 500 with as little as possible, for what broke may break
// again.
func (c *call) panicked() {
	h := c.w.Header()
	clear(h)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if c.view != nil {
		h.Set("X-Request-Id", c.view.id)
	}
	if c.r.ProtoMajor == 1 {
		h.Set("Connection", "close")
	}
	c.x.begun, c.x.status = true, http.StatusInternalServerError
	c.w.WriteHeader(http.StatusInternalServerError)
	_, _ = c.w.Write([]byte("500 Internal Server Error\n"))
}

// record writes the access log line and counts.
func (c *call) record() {
	if c.view == nil {
		return
	}
	took := time.Since(c.began)
	v := c.view
	if c.gen.Metrics != nil {
		m := telemetry.HTTPRequest{
			Method: v.Method(), Status: c.x.status, Duration: took,
			InBytes: -1, OutBytes: c.x.size.Load(),
		}
		if rt := c.match.Route; rt != nil {
			m.Host = rt.From.Host // never a name of the client's choice
		}
		if c.forwarded {
			m.Cluster = c.statName
			if m.Cluster == "" {
				m.Cluster = c.cluster
			}
			m.InBytes = c.result.RequestBytes
			m.UpstreamStatus, m.UpstreamDuration = c.result.Status, c.result.Head
		}
		c.gen.Metrics.ObserveHTTP(&m)
	}
	if c.gen.AccessLog == nil {
		return
	}
	e := &telemetry.AccessEntry{
		Time: c.began, UpstreamCluster: c.cluster, ClusterStatName: c.statName,
		Method: v.Method(), Authority: v.authority, Path: v.path, Query: v.rawQuery,
		UserAgent: v.Header("User-Agent"), Referer: v.Header("Referer"),
		ForwardedFor: joined(v, "X-Forwarded-For"), RequestID: v.id, IP: v.peer.ClientIP,
		Duration: took, Size: c.x.size.Load(),
		ResponseCode: c.x.status, ResponseCodeDetails: c.details,
		Header: v.Header,
	}
	if e.Authority == "" {
		e.Authority = c.r.Host
	}
	if e.Path == "" {
		e.Path, _, _ = strings.Cut(c.r.RequestURI, "?")
	}
	if len(v.peer.Certificates) > 0 {
		e.Certificate = v.peer.Certificates[0]
	}
	c.gen.AccessLog(e)
}

func (c *call) log(level slog.Level, message string, args ...any) {
	if c.gen.Log == nil {
		return
	}
	if c.view != nil {
		args = append(args, "request-id", c.view.id)
	}
	c.gen.Log.Log(c.r.Context(), level, message, args...)
}

// sentence makes a message fit to be seen of an error text.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

func pathAndQuery(v exchange.View) string {
	if v.HasQuery() {
		return v.Path() + "?" + v.RawQuery()
	}
	return v.Path()
}
