package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/exchange"
	"postern/internal/upstream/http1"
)

// Options are what a route says about one exchange.
type Options struct {
	// Timeout bounds the wait for the response head, from when the request
	// was sent whole (timeout, default_upstream_timeout); 0 is no limit.
	Timeout time.Duration
	// IdleTimeout cuts an exchange or tunnel in which no byte of a body moves
	// in either direction (idle_timeout); 0 is no limit.
	IdleTimeout time.Duration
	// Upgrades are the protocols a request may upgrade to, in any case:
	// "websocket", "spdy/3.1".
	Upgrades []string
	// Affinity is what the policies RingHash and Maglev keep together: the id of
	// the session, else the client's address. "" is spread at random.
	Affinity string
	// OnResponse, if not nil, sees and may change the final response head
	// before the client does. An error ends the exchange with ErrBadResponse.
	OnResponse func(*ResponseHead) error
}

// ResponseHead is a response head on its way to the client, without
// hop-by-hop fields. Content-Length is among the fields only where no body
// follows it: answers to HEAD, and 304.
type ResponseHead struct {
	Status int
	Fields []exchange.Field
	// Length is the body's length in bytes, -1 if unknown. For HEAD it is what
	// the body would have.
	Length int64
}

// Get gives the first value of a field, or "".
func (h *ResponseHead) Get(name string) string {
	for _, f := range h.Fields {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// Del removes a field.
func (h *ResponseHead) Del(name string) {
	h.Fields = slices.DeleteFunc(h.Fields, func(f exchange.Field) bool { return strings.EqualFold(f.Name, name) })
}

// Set replaces a field.
func (h *ResponseHead) Set(name, value string) {
	h.Del(name)
	h.Add(name, value)
}

// Add appends a field.
func (h *ResponseHead) Add(name, value string) {
	h.Fields = append(h.Fields, exchange.Field{Name: name, Value: value})
}

// Result is what came of an exchange, complete also when it failed.
type Result struct {
	// Status is what was sent to the client, 0 if nothing was: then the caller
	// may still answer.
	Status int
	// Endpoint is where the request went, as configured.
	Endpoint string
	// RequestBytes and ResponseBytes count body bytes that moved.
	RequestBytes, ResponseBytes int64
	// Details is the response-code-details of the access log (wire-contract.md §12).
	Details string
	// Tunnel says that the exchange became a tunnel.
	Tunnel bool
	// Head is how long the response head took, 0 if none came.
	Head time.Duration
}

// Began reports whether a response was begun, after which no other can be sent.
func (r *Result) Began() bool { return r.Status != 0 }

// Causes of cancelling the request's context.
var (
	errTimeout = errors.New("timeout")
	errIdle    = errors.New("idle_timeout")
	errDone    = errors.New("exchange is over")
)

// RoundTrip sends a judged request to one of the target's endpoints and the
// answer to the client, streaming both ways; after an upgrade it carries the
// tunnel to its end. edits may be nil.
//
// The error is nil or an *Error. If the response had begun, the exchange was
// aborted; if not (Result.Began), the caller answers. Ending ctx cuts the
// exchange at any stage; its cause is the error's.
//
// RoundTrip calls x from its own goroutine, except Inform and, if a limit
// runs out while a write to the client blocks, Abort. A body that also
// implements io.Closer must interrupt a pending Read when closed.
func RoundTrip(ctx context.Context, t *Target, edits *exchange.HeaderEdits, v exchange.View, x exchange.Exchange, o Options) (Result, error) {
	if t == nil || len(t.endpoints) == 0 {
		return Result{Details: "no_healthy_upstream"}, &Error{Kind: ErrUnreachable, Detail: "the route has no upstream"}
	}
	if edits == nil {
		edits = &exchange.HeaderEdits{}
	}
	e := &trip{t: t, v: v, x: x, o: &o, isHead: v.Method() == http.MethodHead, began: time.Now()}
	e.ctx, e.cancel = context.WithCancelCause(ctx)
	defer e.cancel(errDone)
	interrupted := make(chan struct{})
	stop := context.AfterFunc(e.ctx, func() {
		defer close(interrupted)
		e.interrupt()
	})
	err := e.run(edits)
	e.stopClocks()
	if !stop() {
		<-interrupted
	}
	if e.upload != nil {
		e.result.RequestBytes = e.upload.moved()
	}
	if err != nil {
		err = e.failed(ctx, err)
	}
	if e.upload != nil {
		e.upload.finish()
	}
	return e.result, err
}

// trip is one exchange under way.
type trip struct {
	t      *Target
	v      exchange.View
	x      exchange.Exchange
	o      *Options
	ctx    context.Context
	cancel context.CancelCauseFunc
	began  time.Time
	isHead bool

	host    *host
	result  Result
	moved   atomic.Int64 // when bytes last moved, since began, in ns
	writing atomic.Bool  // a write to the client may be blocking

	clocks    sync.Mutex  // of the clocks, and for the assignment of upload and conn
	upload    upload      // the request's body; nil without one
	conn      *http1.Conn // of ours, in use
	cut       bool        // interrupt was called
	headClock *time.Timer
	idleClock *time.Timer
	headIn    bool

	settling sync.Mutex
	settled  bool          // the try has a connection, or needs none any more
	settles  chan struct{} // closed then; nil unless a dial waits for it
}

// settle notes whether the try still needs a connection.
func (e *trip) settle(settled bool) {
	e.settling.Lock()
	defer e.settling.Unlock()
	if e.settled = settled; settled && e.settles != nil {
		close(e.settles)
		e.settles = nil
	}
}

// settledChan is closed once the try needs no connection.
func (e *trip) settledChan() <-chan struct{} {
	e.settling.Lock()
	defer e.settling.Unlock()
	if e.settles == nil {
		e.settles = make(chan struct{})
		if e.settled {
			defer func() { close(e.settles); e.settles = nil }()
		}
	}
	return e.settles
}

// tripKey finds the *trip in the context of its dials by Transport.
type tripKey struct{}

// dialFor gives the context of a dial by Transport, which would go on with it
// after the exchange that it dials for, and a channel that is closed once that
// needs no connection; nil without one.
func dialFor(ctx context.Context) (_ context.Context, done func(), settled <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	e, _ := ctx.Value(tripKey{}).(*trip)
	if e == nil {
		return ctx, cancel, nil
	}
	stop := context.AfterFunc(e.ctx, cancel)
	return ctx, func() { stop(); cancel() }, e.settledChan()
}

// maxTries is how many hosts are tried until one accepts a connection.
const maxTries = 3

func (e *trip) run(edits *exchange.HeaderEdits) error {
	e.startIdleClock()
	t, b := e.t, &e.t.breaker
	if !take(&b.requests, b.maxRequests) {
		return overflow("max_requests", b.maxRequests)
	}
	defer b.requests.Add(-1)
	set, err := t.ready(e.ctx)
	if err != nil {
		return err
	}
	if !t.multiplexed.Load() || len(e.o.Upgrades) > 0 && (e.v.Protocol() != "" || e.v.Header("Upgrade") != "") {
		if err := b.slot(e.ctx); err != nil {
			return err
		}
		defer b.freeSlot()
	}
	var key uint64
	if t.WantsAffinity() {
		key = hashKey(e.o.Affinity)
	}
	h := t.pick(key, nil)
	if h == nil {
		t.wanted()
		return noHost(set)
	}
	again, err := e.try(h, edits)
	for tries := 1; again && tries < maxTries; tries++ {
		if !take(&b.retries, b.maxRetries) {
			break
		}
		next := t.pick(key, h)
		if again = next != nil && next != h; again {
			h = next
			again, err = e.try(h, edits)
		}
		b.retries.Add(-1)
	}
	return err
}

// noHost says why there is none to send to.
func noHost(set *hostSet) error {
	if len(set.hosts) > 0 || set.err == nil {
		return &Error{Kind: ErrUnreachable, Err: errNoHosts, Detail: "no endpoint of the route is healthy"}
	}
	return &Error{Kind: ErrUnreachable, Err: errNoHosts, Detail: explain(set.err)}
}

// try makes one attempt on a host, and reports whether another may follow.
func (e *trip) try(h *host, edits *exchange.HeaderEdits) (again bool, err error) {
	e.host = h
	e.settle(false)
	e.result.Endpoint = h.endpoint.name
	h.enter()
	defer h.leave()
	out, err := newRequest(h.endpoint, edits, e.v, e.o)
	if err != nil {
		return false, err
	}
	a, err := e.send(h, out)
	e.settle(true)
	if err != nil {
		e.observe(h, 0, err)
		// Another endpoint may take what this one did not even connect for.
		var connecting *connectError
		if !errors.As(err, &connecting) || e.ctx.Err() != nil {
			return false, err
		}
		if h.endpoint.dnsName != "" {
			e.t.suspect.Store(true)
		}
		return e.upload == nil || !e.upload.begun(), err
	}
	e.observe(h, a.status(), nil)
	if a.status() == http.StatusSwitchingProtocols {
		return false, e.tunnel(out, a)
	}
	defer a.close()
	return false, e.forward(a)
}

// observe tells the target's monitors how a try ended, unless it was the
// client or we who ended it.
func (e *trip) observe(h *host, status int, err error) {
	if len(e.t.monitors) == 0 {
		return
	}
	if err != nil {
		cause := context.Cause(e.ctx)
		if cause != nil && !errors.Is(cause, errTimeout) && !errors.Is(cause, errIdle) || e.bodyFailure() != nil {
			return
		}
	}
	e.t.observe(h, outcome{status: status, local: err != nil, gateway: status >= 502 && status <= 504})
}

// setUpload makes the body known to interrupt, which may have come first.
func (e *trip) setUpload(u upload) {
	e.clocks.Lock()
	defer e.clocks.Unlock()
	e.upload = u
	if e.cut {
		u.interrupt()
	}
}

func (e *trip) bodyFailure() error {
	if e.upload == nil {
		return nil
	}
	return e.upload.failure()
}

// setConn makes the connection known to interrupt; false if that came first.
func (e *trip) setConn(c *http1.Conn) bool {
	e.clocks.Lock()
	defer e.clocks.Unlock()
	e.conn = c
	return !e.cut
}

// releaseConn takes it back; false if it was interrupted.
func (e *trip) releaseConn() bool { return e.setConn(nil) }

// deadline sets one for reading, unless the exchange was interrupted.
func (e *trip) deadline(c *http1.Conn, at time.Time) {
	e.clocks.Lock()
	defer e.clocks.Unlock()
	if !e.cut {
		c.SetReadDeadline(at)
	}
}

// inform sends a 1xx answer, which may block as any write to the client.
func (e *trip) inform(status int, fields []exchange.Field) error {
	defer e.writes()()
	if err := e.ctx.Err(); err != nil {
		return err
	}
	if err := e.x.Inform(status, exchange.Fields(fields)); err != nil {
		return &clientError{err}
	}
	return nil
}

// writes says that a write to the client may be blocking, until the function
// that it gives is called. Only then look at whether the context has ended:
// from here on, interrupt aborts the exchange.
func (e *trip) writes() (done func()) {
	e.writing.Store(true)
	return func() { e.writing.Store(false) }
}

// send sends a request and waits for the head of the answer.
func (e *trip) send(h *host, out *outgoing) (response, error) {
	l, err := e.t.linksOf(h)
	if err != nil {
		return nil, err
	}
	if l.shared != nil && !l.http1.Load() && out.upgrade == "" {
		a, err := e.transport(l.shared, out)
		if !errors.Is(err, errSpeaksHTTP1) {
			return a, err
		}
	}
	if h.endpoint.scheme == "h3" {
		return nil, &Error{Kind: ErrUpgradeRefused, Detail: "an h3 endpoint carries no upgrades such as WebSockets; use https in to"}
	}
	a, err := e.direct(h, l, out)
	if err != nil && l.shared != nil && out.upgrade == "" && strings.Contains(err.Error(), "no application protocol") {
		// It chose HTTP/1.1 once, and does not speak it any more.
		l.http1.Store(false)
		if e.upload == nil {
			return e.transport(l.shared, out)
		}
	}
	return a, err
}

// transport sends a request over HTTP/2 or HTTP/3.
func (e *trip) transport(l link, out *outgoing) (response, error) {
	var body *requestBody
	if out.size != 0 {
		body = newRequestBody(e.x.Body(), out.size)
		body.touched, body.ended = e.touch, e.startHeadClock
		e.setUpload(body)
	} else {
		e.startHeadClock()
	}
	early := informer{e: e}
	trace := &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { e.settle(true) },
		Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
			e.touch()
			return early.add(status, http.Header(h))
		},
	}
	if out.expect {
		trace.GotFirstResponseByte = func() { body.spoke.Store(true) }
		trace.Got100Continue = func() { body.goAhead.Store(true) }
	}
	ctx := httptrace.WithClientTrace(context.WithValue(e.ctx, tripKey{}, e), trace)
	req, err := out.forTransport(ctx, body)
	if err != nil {
		return nil, err
	}
	resp, err := l.RoundTrip(req)
	if err == nil {
		e.spoke()
	}
	early.finish()
	if err != nil {
		return nil, err
	}
	return &transported{resp: resp, isHead: e.isHead}, nil
}

// forward sends an ordinary response.
func (e *trip) forward(a response) error {
	head := a.head()
	if e.o.OnResponse != nil {
		if err := e.o.OnResponse(&head); err != nil {
			return &Error{Kind: ErrBadResponse, Detail: err.Error(), Err: err}
		}
	}
	defer e.writes()()
	if err := e.ctx.Err(); err != nil {
		return err
	}
	e.result.Status = head.Status
	e.result.Details = "via_upstream"
	if err := e.x.Begin(head.Status, exchange.Fields(head.Fields), head.Length); err != nil {
		return &clientError{err}
	}
	if a.bodiless() {
		return e.finish(nil)
	}
	// Whoever does not know how long a body gets is likely streaming: what is
	// here goes out before more is waited for. Otherwise buffers fill up.
	streaming := head.Length < 0 || isStream(head.Get("Content-Type"))
	if streaming && !a.ready() {
		if err := e.x.Flush(); err != nil {
			return &clientError{err}
		}
	}
	for {
		data, err := a.next()
		if err == io.EOF {
			return e.finish(a.trailers())
		}
		if err != nil {
			return err
		}
		e.touch()
		if _, err := e.x.Write(data); err != nil {
			return &clientError{err}
		}
		if streaming && !a.ready() {
			if err := e.x.Flush(); err != nil {
				return &clientError{err}
			}
		}
		e.result.ResponseBytes += int64(len(data))
		e.touch()
	}
}

func (e *trip) finish(trailers []exchange.Field) error {
	var fields exchange.HeaderSeq
	if len(trailers) > 0 {
		fields = exchange.Fields(trailers)
	}
	if err := e.x.Finish(fields); err != nil {
		return &clientError{err}
	}
	return nil
}

// clientError marks errors of writing to the client.
type clientError struct{ err error }

func (e *clientError) Error() string { return e.err.Error() }
func (e *clientError) Unwrap() error { return e.err }

func isStream(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	return kind == "text/event-stream" || kind == "application/x-ndjson" || strings.HasPrefix(kind, "application/grpc")
}

// touch notes that bytes moved.
func (e *trip) touch() { e.moved.Store(int64(time.Since(e.began))) }

// startHeadClock starts the limit on the response head. It is called once the
// request is out, possibly after the head came.
func (e *trip) startHeadClock() {
	e.clocks.Lock()
	defer e.clocks.Unlock()
	if e.o.Timeout > 0 && !e.headIn && e.headClock == nil {
		e.headClock = time.AfterFunc(e.o.Timeout, func() { e.cancel(errTimeout) })
	}
}

// spoke notes that the final head arrived.
func (e *trip) spoke() {
	e.touch()
	e.result.Head = time.Since(e.began)
	e.clocks.Lock()
	defer e.clocks.Unlock()
	e.headIn = true
	if e.headClock != nil {
		e.headClock.Stop()
	}
}

// startIdleClock starts the limit on silence. The timer is not reset by each
// byte; when it fires it looks at when bytes last moved.
func (e *trip) startIdleClock() { e.setIdle(e.o.IdleTimeout) }

func (e *trip) setIdle(limit time.Duration) {
	e.clocks.Lock()
	defer e.clocks.Unlock()
	if e.idleClock != nil {
		e.idleClock.Stop()
		e.idleClock = nil
	}
	if limit <= 0 {
		return
	}
	var clock *time.Timer
	clock = time.AfterFunc(limit, func() {
		left := limit - (time.Since(e.began) - time.Duration(e.moved.Load()))
		e.clocks.Lock()
		mine := e.idleClock == clock
		if mine && left > 0 {
			clock.Reset(left)
		}
		e.clocks.Unlock()
		if mine && left <= 0 {
			e.cancel(errIdle)
		}
	})
	e.idleClock = clock
}

func (e *trip) stopClocks() {
	e.clocks.Lock()
	defer e.clocks.Unlock()
	e.headIn = true
	if e.headClock != nil {
		e.headClock.Stop()
	}
	if e.idleClock != nil {
		e.idleClock.Stop()
		e.idleClock = nil
	}
}

// interrupt runs when the exchange's context ends and unblocks what no
// context reaches: whoever waits for the client's body, our own connection,
// and our own write to a client that reads nothing.
func (e *trip) interrupt() {
	e.clocks.Lock()
	e.cut = true
	if e.upload != nil {
		e.upload.interrupt()
	}
	if e.conn != nil {
		e.conn.Interrupt()
	}
	e.clocks.Unlock()
	if e.writing.Load() {
		e.x.Abort(context.Cause(e.ctx))
	}
}
