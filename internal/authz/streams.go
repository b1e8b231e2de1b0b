package authz

import (
	"context"
	"crypto/x509"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"postern/internal/exchange"
	"postern/internal/route"
)

// Why a stream was cut, for the log and for what the client can be told.
const (
	CutSessionEnded = "the session has ended"
	CutRefused      = "access is no longer allowed"
	CutNoRoute      = "the route no longer exists"
	CutUndecided    = "access could not be decided again"
)

// Current is the configuration of this moment, against which streams are
// decided again: its Env, and how it matches a request.
type Current struct {
	Env   *Env
	Match func(exchange.View) route.Match
	// ClientCertificate judges the presented chain for a route, so that no
	// stream outlives the CA of its certificate. Nil leaves it at what it was
	// worth when the stream was opened.
	ClientCertificate func(chain []*x509.Certificate, rt *route.Route) exchange.CertificateState
}

// certificate is what the client certificate of a request is worth now on a
// route.
func (c *Current) certificate(req *Request, rt *route.Route) exchange.CertificateState {
	if peer := req.View.Peer(); c.ClientCertificate != nil && peer != nil {
		return c.ClientCertificate(peer.Certificates, rt)
	}
	return req.certificateState()
}

// Stream is an open stream that follows what its Decision rested on.
type Stream struct {
	cut func(reason string)

	mu     sync.Mutex // held while the stream is decided again, and by Close
	req    *Request
	own    bool // req is the stream's: nobody else reads it
	closed bool

	// Guarded by streams.mu.
	depends Depends
	queued  bool
	gone    bool
}

// streamKey names a record that streams depend on.
type streamKey struct {
	kind uint8
	id   string
}

const (
	onSession uint8 = iota // session or service account
	onUser                 // user or directory user
)

// streams are all open streams, found by what they depend on.
//
// A change is never missed: a Decision carries the change counter from before
// it read anything, a stream enters the index before it compares the counter,
// and a change moves the counter before it looks in the index. So whoever
// comes second sees the first.
type streams struct {
	engine  *Engine
	mu      sync.Mutex
	all     map[*Stream]struct{}
	byKey   map[streamKey]map[*Stream]struct{}
	queue   []*Stream
	workers int
	current func() Current
}

const (
	// maxWorkers decide streams again at once; each waits at most redecideTime.
	maxWorkers   = 16
	redecideTime = 2 * time.Second
	// sweepEvery is how often all streams are decided again without a cause,
	// for what nobody announces: time windows, scripts (decision 7).
	sweepEvery = 60 * time.Second
)

func (s *streams) init(e *Engine) {
	s.engine = e
	s.all = map[*Stream]struct{}{}
	s.byKey = map[streamKey]map[*Stream]struct{}{}
}

// Follow registers an open stream under the decision that let it in. cut is
// called at most once, from another goroutine, when the stream may not go on;
// it must end the stream visibly and must not call Close. If anything changed
// between the decision and now, the stream is decided again at once. Close
// must be called when the stream ends; req must stay valid until then.
func (e *Engine) Follow(req *Request, d *Decision, cut func(reason string)) *Stream {
	st := &Stream{cut: cut, req: req, depends: d.Depends}
	s := &e.streams
	s.mu.Lock()
	s.all[st] = struct{}{}
	s.index(st)
	if e.changes.Load() != d.Depends.seq || d.Outcome != Allow {
		s.enqueue(st)
	}
	s.mu.Unlock()
	return st
}

// Open registers a stream and decides it, in the order that leaves no gap. If
// the Decision is not an Allow, the stream is nil and nothing is followed.
func (e *Engine) Open(ctx context.Context, req *Request, cut func(reason string)) (*Stream, Decision) {
	d := e.Decide(ctx, req)
	if d.Outcome != Allow {
		return nil, d
	}
	return e.Follow(req, &d, cut), d
}

// CloseStream ends the following. It waits for a decision in progress, after
// which the request is no longer used. It may be called more than once, and
// with nil.
func (e *Engine) CloseStream(st *Stream) {
	if st == nil {
		return
	}
	s := &e.streams
	s.mu.Lock()
	s.forget(st)
	s.mu.Unlock()
	st.mu.Lock()
	st.closed = true
	st.req = nil
	st.mu.Unlock()
}

// Streams counts the streams that are followed.
func (e *Engine) Streams() int {
	e.streams.mu.Lock()
	defer e.streams.mu.Unlock()
	return len(e.streams.all)
}

// SetCurrent gives the engine the current generation, by which streams are
// decided again. It must be set before the first stream is followed.
func (e *Engine) SetCurrent(current func() Current) {
	e.streams.mu.Lock()
	defer e.streams.mu.Unlock()
	e.streams.current = current
}

// Swapped is called after a new generation was put in place: every stream goes
// over to it, and is decided again if its route, or what all decisions rest
// on, says something else. The older generation is let go.
func (e *Engine) Swapped() {
	e.changes.Add(1)
	s := &e.streams
	s.mu.Lock()
	current := s.current
	list := slices.Collect(maps.Keys(s.all))
	s.mu.Unlock()
	if current == nil {
		s.again()
		return
	}
	c := current()
	var changed []*Stream
	sameBasis := map[*Env]bool{} // few: the generation before, mostly
	for _, st := range list {
		if !st.goOver(&c, sameBasis) {
			changed = append(changed, st)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range changed {
		s.enqueue(st)
	}
}

// goOver takes the stream to another generation under which it would be
// decided as it was, and reports whether that is so. What it rests on besides
// is watched by record and clock as before.
func (st *Stream) goOver(c *Current, sameBasis map[*Env]bool) bool {
	if !st.mu.TryLock() {
		return false // it is being decided, maybe under the one before
	}
	defer st.mu.Unlock()
	if st.closed {
		return true
	}
	before := st.req.Env
	if before == nil {
		return false
	}
	same, known := sameBasis[before]
	if !known {
		same = c.Env.sameBasis(before)
		sameBasis[before] = same
	}
	m := c.Match(st.req.View)
	if !same || m.Route == nil || !m.Route.SameContent(st.req.Route) ||
		st.req.Internal != (m.Own != route.OwnNone) || st.req.SignInHost != m.SignIn ||
		c.certificate(st.req, m.Route) != st.req.certificateState() {
		return false
	}
	if !st.own {
		req := *st.req
		st.req, st.own = &req, true
	}
	st.req.Env, st.req.Route = c.Env, m.Route
	return true
}

// changed is told of a change of one record, or of everything.
func (e *Engine) changed(kind uint8, id string, everything bool) {
	e.changes.Add(1)
	s := &e.streams
	if everything {
		s.again()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.byKey[streamKey{kind, id}] {
		s.enqueue(st)
	}
}

// again queues every stream.
func (s *streams) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.all {
		s.enqueue(st)
	}
}

func (d *Depends) keys(yield func(streamKey)) {
	for _, id := range []string{d.SessionID, d.ImpersonatedID, d.ParentID} {
		if id != "" {
			yield(streamKey{onSession, id})
		}
	}
	if d.UserID != "" {
		yield(streamKey{onUser, d.UserID})
	}
}

func (s *streams) index(st *Stream) {
	st.depends.keys(func(k streamKey) {
		m := s.byKey[k]
		if m == nil {
			m = map[*Stream]struct{}{}
			s.byKey[k] = m
		}
		m[st] = struct{}{}
	})
}

func (s *streams) unindex(st *Stream) {
	st.depends.keys(func(k streamKey) {
		if m := s.byKey[k]; m != nil {
			delete(m, st)
			if len(m) == 0 {
				delete(s.byKey, k)
			}
		}
	})
}

func (s *streams) forget(st *Stream) {
	if !st.gone {
		st.gone = true
		delete(s.all, st)
		s.unindex(st)
	}
}

// enqueue has a stream decided again soon. s.mu is held.
func (s *streams) enqueue(st *Stream) {
	if st.queued || st.gone {
		return
	}
	st.queued = true
	s.queue = append(s.queue, st)
	if s.workers < maxWorkers && s.workers < len(s.queue) {
		s.workers++
		go s.work()
	}
}

// work decides queued streams until there are none.
func (s *streams) work() {
	for {
		s.mu.Lock()
		n := len(s.queue)
		if n == 0 {
			s.workers--
			s.mu.Unlock()
			return
		}
		st := s.queue[n-1]
		s.queue[n-1] = nil
		s.queue = s.queue[:n-1]
		if n == 1 {
			s.queue = nil // a burst's memory is not kept
		}
		st.queued = false // a change from here on queues it once more
		s.mu.Unlock()
		s.redecide(st)
	}
}

// redecide judges a stream under the current generation and cuts it if it is
// refused, or if that cannot be told.
func (s *streams) redecide(st *Stream) {
	st.mu.Lock()
	if st.closed {
		st.mu.Unlock()
		return
	}
	d, reason, req := s.judge(st)
	if reason != "" {
		st.closed = true
		st.req = nil
	} else {
		st.req, st.own = req, true
	}
	st.mu.Unlock()

	s.mu.Lock()
	gone := st.gone
	if reason != "" {
		s.forget(st)
	} else if !gone {
		// It may rest on other records now.
		s.unindex(st)
		st.depends = d.Depends
		s.index(st)
		if s.engine.changes.Load() != d.Depends.seq {
			s.enqueue(st)
		}
	}
	s.mu.Unlock()
	if reason != "" && !gone {
		st.cut(reason)
	}
}

// judge decides again and says why the stream must be cut, or "".
func (s *streams) judge(st *Stream) (d Decision, reason string, req *Request) {
	e := s.engine
	s.mu.Lock()
	current := s.current
	before := st.depends
	s.mu.Unlock()
	next := *st.req
	if current != nil {
		c := current()
		m := c.Match(next.View)
		if m.Route == nil && m.Own == route.OwnNone {
			return d, CutNoRoute, nil
		}
		next.Env, next.Route = c.Env, m.Route
		next.Internal, next.SignInHost = m.Own != route.OwnNone, m.SignIn
		state := c.certificate(&next, m.Route)
		next.certificate = &state
	}
	ctx, cancel := context.WithTimeout(context.Background(), redecideTime)
	defer cancel()
	now := e.now()
	d = e.judge(ctx, &next, now)
	if d.Outcome == Allow {
		if d.Depends.SessionID == before.SessionID {
			return d, "", &next
		}
		// Another person than the one who opened it: not the same stream.
		d.Outcome, d.Status = SignIn, http.StatusUnauthorized
	}
	e.writeLog(&next, &d, now)
	switch {
	case d.Outcome == Error:
		return d, CutUndecided, nil
	case before.SessionID != "" && d.Depends.SessionID != before.SessionID:
		return d, CutSessionEnded, nil
	}
	return d, CutRefused, nil
}

// Run watches the clock for streams until ctx ends: it cuts those whose
// session is over, decides all again every minute, and decides all again (and
// so cuts them) when the records can no longer be proven fresh.
func (e *Engine) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	swept := e.now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now := e.now()
		e.streams.expire(now)
		switch {
		case e.Ready() != nil:
			// Whoever can still be read through is decided that way; where
			// that fails too, nobody can be shown to be allowed any more.
			if err := e.readable(ctx); err != nil {
				e.logger.LogAttrs(ctx, slog.LevelError, "open streams cannot be decided again and are cut", slog.Any("error", err))
				e.streams.cutPersonal(CutUndecided)
				continue
			}
			swept = now
			e.streams.again()
		case now.Sub(swept) >= sweepEvery:
			swept = now
			e.streams.again()
		}
	}
}

// readable tries each record type whose copy is not fresh.
func (e *Engine) readable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, redecideTime)
	defer cancel()
	for _, p := range e.probes {
		if err := p(ctx); err != nil {
			return err
		}
	}
	return nil
}

// cutPersonal cuts every stream that rests on records, without asking.
func (s *streams) cutPersonal(reason string) {
	var cut []*Stream
	s.mu.Lock()
	for st := range s.all {
		if st.depends.SessionID != "" {
			s.forget(st)
			cut = append(cut, st)
		}
	}
	s.mu.Unlock()
	for _, st := range cut {
		st.cut(reason)
	}
}

// expire queues the streams whose time is over.
func (s *streams) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.all {
		if u := st.depends.Until; !u.IsZero() && !now.Before(u) {
			s.enqueue(st)
		}
	}
}

// Ready is nil while all records that decisions rest on are copied and fresh.
func (e *Engine) Ready() error {
	for _, ready := range []func() error{e.sessions.Ready, e.accounts.Ready, e.users.Ready, e.directory.Ready, e.groups.Ready} {
		if err := ready(); err != nil {
			return err
		}
	}
	return nil
}
