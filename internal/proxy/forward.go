package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/pages"
	"postern/internal/upstream"
)

// Why the door itself ends an exchange; causes of its context.
var (
	errRouteTimeout = errors.New("the whole response took longer than the route allows")
	errStreamLife   = errors.New("the stream reached timeout_write")
)

// cutError ends a stream that may not go on, and says why.
type cutError struct{ reason string }

func (e *cutError) Error() string { return e.reason }

// followAfter is how long an exchange lives before it is followed as an open
// stream. Most never get there. Nothing is missed: following compares the
// state of the records with the one that the decision was made from.
const followAfter = time.Second

// forward sends the allowed request upstream and its answer back.
func (c *call) forward() {
	t, v, d := c.target, c.view, &c.decision
	edits := &exchange.HeaderEdits{Cookie: stripCookies(c.gen.Settings.Cookies)}
	up := newUpward(v, d)
	path, query, err := t.rewriting.upstreamPath(t.Route, v.path)
	if err != nil {
		c.fail(pages.ErrorPage{Kind: pages.BadRequest, Message: "This address cannot be forwarded."}, "path_rewrite_failed")
		return
	}
	edits.Path, edits.RawQuery, edits.HasQuery = path, up.query, up.hasQuery
	if query != "" {
		if edits.RawQuery != "" {
			query += "&" + edits.RawQuery
		}
		edits.RawQuery, edits.HasQuery = query, true
	}
	host, rewritten := t.rewriting.host(v)
	edits.Host = host
	edits.Set = c.gen.Settings.appendForwarding(make([]exchange.Field, 0, 8+len(t.request.set)), v)
	if rewritten {
		edits.Set = append(edits.Set,
			exchange.Field{Name: "X-Forwarded-Host", Value: v.authority},
			exchange.Field{Name: "X-Pomerium-Original-Host", Value: v.authority})
	}
	if err := t.request.edit(edits, v, d); err != nil {
		c.log(slog.LevelError, "identity headers could not be made", "error", err.Error())
		c.fail(pages.ErrorPage{Kind: pages.Internal}, "ext_authz_error")
		return
	}

	ctx, cancel := context.WithCancelCause(c.r.Context())
	c.cancel = cancel
	defer cancel(nil)
	var clock watch
	defer clock.stop()
	clock.after(c.gen.Settings.TimeoutWrite, func() { c.end(errStreamLife, "this connection has reached its time limit") })
	if c.gen.Streams != nil {
		c.stream.streams = c.gen.Streams
		clock.after(followAfter, c.follow)
		defer c.unfollow()
	}
	startTimeout := func() { clock.after(t.timeout, func() { cancel(errRouteTimeout) }) }
	if c.x.body == nil || d.Bare {
		startTimeout()
	} else {
		c.x.body.ended, c.x.body.left = startTimeout, c.r.ContentLength
		c.x.body.hide = up.strip.Has
		if c.r.ProtoMajor == 1 {
			// Answer while the client still sends: an upload may be refused
			// early, and a stream goes both ways.
			c.x.rc.EnableFullDuplex()
		}
	}
	if d.Bare && c.x.body != nil && c.r.ProtoMajor == 1 {
		c.w.Header().Set("Connection", "close") // its body stays unread
	}

	c.forwarded = true
	c.result, err = upstream.RoundTrip(ctx, t.Upstream, edits, up, &forwarding{c.x, c}, upstream.Options{
		IdleTimeout: t.idleTimeout,
		Upgrades:    t.upgrades,
		Affinity:    c.affinity(),
		OnResponse:  c.onResponse,
	})
	c.details = c.result.Details
	if b := c.x.body; b != nil && c.r.ProtoMajor == 1 && (b.err != io.EOF || b.closed.Load()) {
		ConnInfoFrom(c.r.Context()).abandon()
	}
	if err != nil {
		c.failed(err, context.Cause(ctx))
	} else if t := c.tunnel.Load(); t != nil && t.reason.Load() != nil && !t.politely() {
		c.x.Abort(errCut) // its ends closed before the cut reached RoundTrip
	}
}

// onResponse edits the response head before the client sees it.
func (c *call) onResponse(head *upstream.ResponseHead) error {
	fields := make([]exchange.Field, 0, len(head.Fields)+len(c.target.response.Fields())+2)
	if alt := c.altSvc(); alt != "" {
		// What the upstream says of itself is not true of us.
		head.Del("Alt-Svc")
		if !holdsName(c.target.response.Fields(), "Alt-Svc") {
			fields = append(fields, exchange.Field{Name: "Alt-Svc", Value: alt})
		}
	}
	fields = c.target.response.appendTo(fields, exchange.Fields(head.Fields), c.gen.Settings.Cookies)
	kept := fields[:0]
	for _, f := range fields {
		if !strings.EqualFold(f.Name, "X-Request-Id") {
			kept = append(kept, f)
		}
	}
	head.Fields = append(kept, exchange.Field{Name: "X-Request-Id", Value: c.view.id})
	head.Fields = c.standings.appendTo(head.Fields, c.target.limits)
	if hook := c.target.Hook; hook != nil {
		head.Status, head.Fields = hook.OnResponse(c.r.Context(), &c.ask, head.Status, head.Fields)
	}
	c.settled()
	return nil
}

// failed answers for an exchange that upstream could not finish.
func (c *call) failed(err, cause error) {
	var ue *upstream.Error
	if !errors.As(err, &ue) {
		ue = &upstream.Error{Kind: upstream.ErrUnreachable, Detail: err.Error(), Err: err}
	}
	var cut *cutError
	answer := pages.ErrorPage{Kind: pages.Unreachable, Source: pages.FromProxy}
	waited := time.Since(c.began)
	switch {
	case errors.As(cause, &cut):
		c.details = "stream_cut"
		answer.Kind, answer.Status, answer.Source = pages.Unauthenticated, http.StatusUnauthorized, pages.FromPolicy
		answer.Message = sentence(cut.reason)
	case cause == errRouteTimeout:
		c.details = "response_timeout"
		answer.Kind, answer.TimeoutKey, answer.Waited = pages.Timeout, c.target.timeoutKey, waited
	case cause == errStreamLife:
		c.details = "max_duration_timeout"
		answer.Kind, answer.TimeoutKey, answer.Waited = pages.Timeout, "timeout_write", waited
	case c.x.body != nil && c.x.body.timedOut():
		c.details = "request_overall_timeout"
		answer.Kind, answer.Status = pages.BadRequest, http.StatusRequestTimeout
		answer.Message = "The request took too long to arrive (timeout_read)."
	case ue.Kind == upstream.ErrClientGone && c.x.body != nil && c.x.body.malformed():
		c.details = "request_body_malformed"
		answer.Kind, answer.Message = pages.BadRequest, "The request's body is malformed."
	case ue.Kind == upstream.ErrClientGone:
		c.x.Abort(err)
		return
	case ue.Kind == upstream.ErrTimeout && ue.Key != "":
		answer.Kind, answer.TimeoutKey, answer.Waited = pages.Timeout, ue.Key, waited
	case ue.Kind == upstream.ErrBadResponse:
		answer.Kind = pages.BadAnswer
	case ue.Kind == upstream.ErrBadRequest:
		answer.Kind, answer.Message = pages.BadRequest, ue.Public()
	case ue.Kind == upstream.ErrOverflow:
		answer.Kind, answer.TimeoutKey = pages.Busy, ue.Key
	case c.details == "no_healthy_upstream":
		answer.Kind, answer.Brief = pages.NoHealthy, "No server of the application is in use: their names do not resolve, or they fail."
	case ue.Kind == upstream.ErrUnreachable && untrusted(ue) != "":
		answer.Kind, answer.Brief = pages.Untrusted, untrusted(ue)
	case ue.Kind == upstream.ErrUpgradeRefused:
		answer.Kind, answer.Message = pages.Denied, ue.Public()
	}
	c.log(slog.LevelInfo, "upstream exchange failed", "error", ue.Error(), "route", c.target.Route.ID, "details", c.details)
	if c.x.tunneled || c.x.begun {
		if t := c.tunnel.Load(); t == nil || !t.politely() {
			c.x.Abort(err)
		}
		return
	}
	switch answer.Kind {
	case pages.Unreachable, pages.BadAnswer, pages.NoHealthy, pages.Untrusted, pages.Busy:
		answer.Detail = ue.Error() // for administrators alone
	}
	answer.ShowDetails = c.target.Route.ShowErrorDetails
	c.failWith(answer, c.details)
}

// untrusted says, without a name, why the certificate of an upstream was not
// accepted; "" is some other failure.
func untrusted(err error) string {
	var invalid x509.CertificateInvalidError
	var hostname x509.HostnameError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "The certificate of the application has expired, or is not valid yet."
	case errors.As(err, &invalid):
		return "The certificate of the application cannot be used."
	case errors.As(err, &hostname):
		return "The certificate of the application is for another name."
	case errors.As(err, &unknown):
		return "The certificate of the application is from an unknown certificate authority."
	}
	return ""
}

// end cuts the exchange from another goroutine: a tunnel is told why.
func (c *call) end(cause error, reason string) {
	if t := c.tunnel.Load(); t != nil {
		code := uint16(policyClosure)
		if reason == authz.CutNoRoute {
			code = goingAwayClosure // nobody's fault: there may be a new address
		}
		t.cut(code, reason)
	}
	c.cancel(cause)
}

// following is the registration of an open stream.
type following struct {
	streams Streams
	mu      sync.Mutex
	stream  *authz.Stream
	ended   bool
	settled bool
}

// follow registers the exchange as an open stream, once.
func (c *call) follow() {
	f := &c.stream
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.streams == nil || f.ended || f.stream != nil {
		return
	}
	ask := c.ask // the stream's own: it goes over to later generations
	f.stream = f.streams.Follow(&ask, &c.decision, func(reason string) { c.end(&cutError{reason}, reason) })
	c.letGo()
}

// settled is called once the answer has begun: what may last for days must
// not keep the generation that it began under.
func (c *call) settled() {
	f := &c.stream
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settled = true
	c.gen = c.gen.lasting()
	c.letGo()
}

// letGo forgets the generation once nobody asks it any more: the answer has
// begun and the stream is followed. f.mu is held.
func (c *call) letGo() {
	if f := &c.stream; f.settled && f.stream != nil {
		c.ask.Env = nil
	}
}

func (c *call) unfollow() {
	f := &c.stream
	f.mu.Lock()
	f.ended = true
	st := f.stream
	f.mu.Unlock()
	if f.streams != nil {
		f.streams.CloseStream(st)
	}
}

// forwarding is the exchange as upstream drives it.
type forwarding struct {
	*response
	c *call
}

func (f *forwarding) Body() exchange.BodySource {
	switch {
	case f.c.decision.Bare:
		return nil
	case f.c.body != nil:
		return f.c.body
	}
	return f.response.Body()
}

// Tunnel hands over a connection that can be cut and is followed before the
// first byte passes.
func (f *forwarding) Tunnel(status int, h exchange.HeaderSeq) (net.Conn, error) {
	f.c.follow()
	conn, err := f.response.Tunnel(status, h)
	if err != nil {
		return nil, err
	}
	t := &cuttable{Conn: conn, websocket: upgradesToWebSocket(f.c.view)}
	f.c.tunnel.Store(t)
	ConnInfoFrom(f.c.r.Context()).openTunnels().add(t)
	return t, nil
}

func upgradesToWebSocket(v exchange.View) bool {
	return v.Protocol() == "websocket" || hasToken(v, "Upgrade", "websocket")
}

// timedOut reports whether reading the body ended at timeout_read.
func (b *requestBody) timedOut() bool {
	return !b.closed.Load() && errors.Is(b.err, os.ErrDeadlineExceeded)
}

// malformed reports whether the head guard found broken chunked framing.
func (b *requestBody) malformed() bool {
	var bad *HeadError
	return errors.As(b.err, &bad)
}
