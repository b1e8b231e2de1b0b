// Package authz decides: from the credential in a request to the session, from
// the session to the policy, from the policy to a Decision. Every request and
// every open stream is judged here, and an open stream is judged again when
// anything that its Decision rested on changes.
//
//	engine, err := authz.New(authz.Sources{Sessions: sessions, ...})
//	env, err := authz.NewEnv(authz.Options{Keys: keys, Routes: table.Routes(), ...})
//	d := engine.Decide(ctx, &authz.Request{View: v, Route: rt, Env: env})
//	if d.Outcome == authz.Allow { ... forward with d.Identity and d.Strip ... }
//
// The zero Decision refuses, an error refuses, and a record that cannot be read
// is never taken for one that does not exist.
package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/exchange"
	"postern/internal/policy"
	"postern/internal/record"
	"postern/internal/session"
	"postern/internal/telemetry"
)

// Sources are what an Engine reads. All five lookups are required.
type Sources struct {
	Sessions        record.Lookup[session.Session]
	ServiceAccounts record.Lookup[session.ServiceAccount]
	Users           record.Lookup[session.User]
	DirectoryUsers  record.Lookup[session.DirectoryUser]
	DirectoryGroups record.Lookup[session.DirectoryGroup]

	// Store, if set, is read where a session is so young that the copies of
	// the user and directory records written with it may not have arrived.
	Store record.Reader
	// Devices finds the device credentials of a caller in order; nil: those
	// that the session names, not enrolled and not approved.
	Devices func(context.Context, *session.Caller) ([]policy.Device, error)
	// Touched is told the session or service account behind every allowed
	// request. It must not block. It may be nil.
	Touched func(c *session.Caller)

	// Now is the clock; nil is time.Now.
	Now     func() time.Time
	Logger  *slog.Logger       // nil: none
	Metrics *telemetry.Metrics // nil: none
}

// Engine decides. It is safe for concurrent use and lives as long as the
// process; what changes with the configuration is in Env.
type Engine struct {
	sessions  record.Lookup[session.Session]
	accounts  record.Lookup[session.ServiceAccount]
	users     record.Lookup[session.User]
	directory record.Lookup[session.DirectoryUser]
	groups    record.Lookup[session.DirectoryGroup]
	store     record.Reader
	devices   func(context.Context, *session.Caller) ([]policy.Device, error)
	explain   bool                // details of every decision, for test cases
	external  func(*policy.Input) // adds external records to the input; nil: none
	touched   func(*session.Caller)
	now       func() time.Time
	logger    *slog.Logger
	metrics   *telemetry.Metrics

	// changes counts every change of any record or generation. Whoever read it
	// before reading records can tell later whether something happened since.
	changes     atomic.Uint64
	groupsEpoch atomic.Uint64
	streams     streams
	cancel      []func()
	// probes say whether a record type can be read now, by one attempt.
	probes []func(context.Context) error
}

// New makes an engine and subscribes it to changes. Run must run for streams
// to be cut in time; Close ends the subscriptions.
func New(s Sources) (*Engine, error) {
	if s.Sessions == nil || s.ServiceAccounts == nil || s.Users == nil || s.DirectoryUsers == nil || s.DirectoryGroups == nil {
		return nil, errors.New("authz: a record source is missing: give lookups of sessions, service accounts, users, directory users and directory groups")
	}
	e := &Engine{
		sessions: s.Sessions, accounts: s.ServiceAccounts, users: s.Users,
		directory: s.DirectoryUsers, groups: s.DirectoryGroups,
		store: s.Store, devices: s.Devices, touched: s.Touched,
		now: s.Now, logger: s.Logger, metrics: s.Metrics,
	}
	if e.now == nil {
		e.now = time.Now
	}
	if e.logger == nil {
		e.logger = slog.New(slog.DiscardHandler)
	}
	e.streams.init(e)
	e.cancel = []func(){
		s.Sessions.OnChange(func(c record.Change[session.Session]) { e.changed(onSession, c.ID, c.Everything) }),
		s.ServiceAccounts.OnChange(func(c record.Change[session.ServiceAccount]) { e.changed(onSession, c.ID, c.Everything) }),
		s.Users.OnChange(func(c record.Change[session.User]) { e.changed(onUser, c.ID, c.Everything) }),
		s.DirectoryUsers.OnChange(func(c record.Change[session.DirectoryUser]) { e.changed(onUser, c.ID, c.Everything) }),
		s.DirectoryGroups.OnChange(func(record.Change[session.DirectoryGroup]) {
			// Policies look at group ids, which the user's record holds; a
			// group's own record changes what upstreams are told.
			e.groupsEpoch.Add(1)
			e.changes.Add(1)
		}),
	}
	e.probes = []func(context.Context) error{
		probe(s.Sessions), probe(s.ServiceAccounts), probe(s.Users), probe(s.DirectoryUsers), probe(s.DirectoryGroups),
	}
	return e, nil
}

// probe asks for a record that does not exist: a fresh copy or a reachable
// store says so.
func probe[T any](in record.Lookup[T]) func(context.Context) error {
	return func(ctx context.Context) error {
		if in.Ready() == nil {
			return nil
		}
		_, err := entry(ctx, in, "the records", "postern-probe", 0)
		return err
	}
}

// Close ends the subscriptions. Open streams are not cut.
func (e *Engine) Close() {
	for _, c := range e.cancel {
		c()
	}
}

var (
	errNotAllowed      = errors.New("an assertion is given only for an allowed request")
	errNoImpersonation = errors.New("the caller has no e-mail address to impersonate at the Kubernetes API server; give the user one, or refuse such users by policy")
	errNoEnv           = errors.New("the request names no generation")
)

// Decide answers one request, writes the authorize log and counts. It never
// panics, and never allows what policy did not allow.
func (e *Engine) Decide(ctx context.Context, req *Request) Decision {
	began := e.now()
	d := e.judge(ctx, req, began)
	if req != nil && req.Env != nil {
		e.writeLog(req, &d, began)
	}
	verdict := telemetry.VerdictDeny
	switch d.Outcome {
	case Allow:
		verdict = telemetry.VerdictAllow
		if e.touched != nil && !d.Caller.Anonymous() {
			e.touched(d.Caller)
		}
	case Error:
		verdict = telemetry.VerdictError
		e.logger.LogAttrs(ctx, slog.LevelError, "decision failed", slog.Int("status", d.Status), slog.Any("error", d.Err))
	}
	if d.Shadow.Evaluated {
		e.metrics.ObserveShadow(d.Depends.RouteID, d.Shadow.WouldAllow(), d.Shadow.WouldDeny())
	}
	if e.metrics != nil {
		e.metrics.ObserveDecision(verdict, e.now().Sub(began))
	}
	return d
}

// scratch is the working memory of one decision.
type scratch struct {
	in     policy.Input
	view   exchange.View
	env    *Env
	engine *Engine
	ctx    context.Context
	// Made once with the scratch, so that a decision makes no closure.
	header     func(string) string
	eachHeader func(func(name, value string) bool)
	recordByID func(typ, id string) (map[string]any, error)
}

var scratchPool = sync.Pool{New: func() any {
	s := &scratch{}
	s.header = func(name string) string { return s.view.Header(name) }
	s.eachHeader = s.scriptHeaders
	s.recordByID = func(typ, id string) (map[string]any, error) { return s.engine.recordByID(s.ctx, typ, id) }
	return s
}}

// fill describes a request to the policy.
func (s *scratch) fill(ctx context.Context, e *Engine, req *Request, w *who, now time.Time) {
	s.view, s.env, s.engine, s.ctx = req.View, req.Env, e, ctx
	fillInput(&s.in, req, w, now)
	s.in.RawQuery = foreignQuery(s.in.RawQuery)
	s.in.Header, s.in.EachHeader, s.in.RecordByID = s.header, s.eachHeader, s.recordByID
	if e.external != nil {
		e.external(&s.in)
	}
}

// release gives the memory back, empty.
func (s *scratch) release() {
	s.in, s.view, s.env, s.engine, s.ctx = policy.Input{}, nil, nil, nil, nil
	scratchPool.Put(s)
}

// judge is Decide without log and counters.
func (e *Engine) judge(ctx context.Context, req *Request, now time.Time) (d Decision) {
	defer func() {
		if p := recover(); p != nil {
			// The panic's value may quote data of the request.
			e.logger.LogAttrs(ctx, slog.LevelError, "panic while deciding", slog.String("type", fmt.Sprintf("%T", p)), slog.String("stack", string(debug.Stack())))
			d = failed(http.StatusInternalServerError, errors.New("the decision panicked; the log holds the stack"))
		}
	}()
	d.Caller = anonymous.caller
	d.Depends.seq = e.changes.Load()
	if req == nil || req.View == nil || req.Env == nil {
		return failed(http.StatusInternalServerError, errNoEnv)
	}
	env := req.Env
	set := env.settings(req.Route)
	d.engine, d.req, d.who, d.began = e, req, anonymous, now
	d.Strip = set.strip
	d.Depends.Generation = env.generation
	if req.Route != nil {
		d.Depends.RouteID = req.Route.ID
	}
	switch {
	case req.Internal:
		e.judgeInternal(ctx, req, now, &d)
		return d
	case req.Route == nil:
		d.Policy.Allow.Reasons = policy.ReasonsOf(policy.ReasonRouteNotFound)
		d.choose(req)
		return d
	case req.Route.AuthorizationOff:
		d.Outcome, d.Status = Allow, http.StatusOK
		d.Policy.Allow.Value = true
		return d
	case set.route != req.Route:
		return failed(http.StatusInternalServerError, fmt.Errorf("route %s is not of this generation", req.Route.ID))
	}

	if req.Route.MCPServer && req.View.Method() == http.MethodOptions {
		// Answered without upstream and before any policy (policy-language.md
		// §9). It is no Allow, so that nothing is ever forwarded by mistake.
		d.Status, d.Preflight = http.StatusNoContent, true
		return d
	}
	w, ok := e.authenticate(ctx, req, now, &d)
	if !ok {
		return d
	}
	s := scratchPool.Get().(*scratch)
	defer s.release()
	s.fill(ctx, e, req, w, now)
	set.set.Evaluate(&s.in, &d.Policy)
	d.judged = true
	d.choose(req)
	if set.shadow != nil {
		d.Shadow = e.shadow(ctx, set, &s.in, d.Outcome == Allow)
	}
	if d.Outcome != Allow && req.Route.ShowErrorDetails || e.explain {
		d.Details = set.set.Details(&s.in)
	}
	if d.Outcome != Allow {
		return d
	}
	if d.Policy.Allow.Reasons.Has(policy.ReasonCORSRequest) {
		// A preflight goes up bare (decision 6): it needs nothing, and what it
		// carries was not asked for by any browser.
		d.Bare = true
		d.Strip = set.stripAuth
		return d
	}
	fields, err := env.identity(now, req, w)
	switch {
	case errors.Is(err, errNoImpersonation):
		d.Outcome, d.Status, d.Message = Deny, http.StatusForbidden, err.Error()
	case err != nil:
		return failed(http.StatusInternalServerError, err)
	default:
		d.Identity = fields
	}
	return d
}

func failed(status int, err error) Decision {
	d := Decision{Outcome: Error, Status: status, Err: err, Caller: anonymous.caller, who: anonymous}
	d.Message = "The request could not be decided."
	if status == http.StatusServiceUnavailable {
		d.Message = "The records that the decision needs are not available now. Try again in a moment."
	}
	return d
}

// authenticate finds who is asking; ok is false if d is already the answer.
func (e *Engine) authenticate(ctx context.Context, req *Request, now time.Time, d *Decision) (w *who, ok bool) {
	if req.as != nil {
		return e.stand(req.as, d), true
	}
	c := openCredential(req)
	d.Carrier = c.Carrier
	set := req.Env.settings(req.Route)
	// Ours must not go upstream, even where another credential won.
	if authorizationIsOurs(req.View) {
		d.Strip = set.stripAuth
	}
	eachSessionParam(req.View.RawQuery(), func(string) { d.StripQuery = true })
	if c.Refuse != 0 {
		d.Outcome, d.Status, d.Message = Deny, c.Refuse, c.Message
		return nil, false
	}
	w, err := e.resolve(ctx, &c, now)
	switch {
	case errors.Is(err, errAnonymous):
		w = anonymous
	case err != nil:
		strip, query := d.Strip, d.StripQuery
		*d = failed(http.StatusServiceUnavailable, err)
		d.Strip, d.StripQuery = strip, query
		return nil, false
	}
	d.who, d.Caller = w, w.caller
	d.Depends.SessionID, d.Depends.UserID, d.Depends.Until = w.id, w.userID, w.until
	if w.impersonated != nil {
		d.Depends.ImpersonatedID = w.impersonated.ID
	}
	if w.parent != nil {
		d.Depends.ParentID = w.parent.ID
	}
	return w, true
}

func openCredential(req *Request) Credential {
	for _, open := range req.Env.openers {
		if c, ok := open(req); ok {
			return c
		}
	}
	return Credential{}
}

// choose turns the policy's result into the outcome (policy-language.md §8).
func (d *Decision) choose(req *Request) {
	client := policy.Client{
		MCPRoute: req.Route != nil && req.Route.MCPServer,
		MCPCall:  req.MCP != nil,
		Robots:   req.View.Path() == "/robots.txt",
	}
	c := policy.Choose(&d.Policy, client)
	if c.Outcome == policy.Login || c.Outcome == policy.Enroll {
		client.Follows = follows(req.View)
		c = policy.Choose(&d.Policy, client)
	}
	d.Why, d.Status = c.Reasons, c.Status
	switch c.Outcome {
	case policy.Allow:
		d.Outcome = Allow
		return
	case policy.Login:
		d.Outcome = SignIn
	case policy.Enroll:
		d.Outcome, d.DeviceType = StepUp, c.DeviceType
	case policy.Error:
		d.Outcome, d.Err = Error, d.Policy.Err
		d.Message = "The policy of this route could not be evaluated."
	default:
		d.Outcome = Deny
	}
	d.Redirect = d.Status == http.StatusFound
}

// follows reports whether the client can follow a redirect (wire-contract.md §1.4).
func follows(v exchange.View) bool {
	accept := v.Header("Accept")
	n := 0
	for line := range v.Values("Accept") {
		if n++; n > 1 {
			accept += "," + line
		}
	}
	return policy.Follows(v.Header("Content-Type"), accept, carriesSession(v))
}

// fillInput describes the request to the policy.
func fillInput(in *policy.Input, req *Request, w *who, now time.Time) {
	v := req.View
	peer := v.Peer()
	in.Now = now
	in.Method = v.Method()
	in.Host = v.Authority()
	in.RawPath = v.Path()
	in.Path = policy.DecodePath(in.RawPath)
	in.RawQuery = v.RawQuery()
	if peer != nil {
		in.ClientIP = peer.ClientIP
		if len(peer.Certificates) > 0 {
			in.Certificate, in.Intermediates = peer.Certificates[0], peer.Certificates[1:]
		}
		switch req.certificateState() {
		case exchange.CertificateNotAsked, exchange.CertificateValid:
			in.CertificateState = policy.CertificateOK
		case exchange.CertificateMissing:
			in.CertificateState = policy.CertificateMissing
		default:
			in.CertificateState = policy.CertificateInvalid
		}
	} else {
		in.CertificateState = policy.CertificateMissing
	}
	in.MCP = req.MCP
	if w == anonymous {
		return
	}
	in.HasSession = true
	in.SessionID, in.UserID, in.Email = w.id, w.userID, w.email
	in.Claims, in.Groups, in.HasDirectory = w.claims, w.groups, w.directory != nil
	in.Devices = w.devices
}
