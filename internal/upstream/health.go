package upstream

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// healthChecks asks the hosts of a target in intervals whether they are well
// (configuration.md §3.8). Each host has one timer per check and a goroutine
// only while a check is under way. A host is healthy while all checks say so.
type healthChecks struct {
	checks  []*healthCheck
	log     *slog.Logger
	changed func() // a host's state changed
	probers func(c *healthCheck, h *host) prober

	traffic atomic.Bool // the target ever had a request

	mu      sync.Mutex
	closed  bool
	checked map[*host][]*healthSession
}

// prober carries out one check of one host, never two at a time.
type prober interface {
	// probe asks once, bounded by ctx.
	probe(ctx context.Context) verdict
	// close lets go of connections that were kept. It is called once, after
	// the last probe.
	close()
}

// verdict is what came of one check.
type verdict struct {
	ok bool
	// atOnce makes a healthy host unhealthy whatever the threshold is.
	atOnce bool
	// reason says in the operator's words why ok is false.
	reason string
}

// healthSession is one check of one host. Its fields belong to healthChecks.mu.
type healthSession struct {
	m      *healthChecks
	c      *healthCheck
	h      *host
	prober prober
	ctx    context.Context
	cancel context.CancelFunc
	timer  *time.Timer

	under, closed bool // a check is under way; the session ended
	state         healthState
	reason        string    // of the last failure
	since         time.Time // of the last change
	ended         time.Time // of the last check; zero before it
	edge          bool      // the state has just changed
}

// healthState is the verdict over a host that single verdicts add up to.
type healthState struct {
	healthy bool
	known   bool   // was healthy before: thresholds apply
	streak  uint32 // verdicts in a row that speak against the state
}

// take adds a verdict and reports whether the state changed.
func (s *healthState) take(v verdict, healthyThreshold, unhealthyThreshold uint32) bool {
	if v.ok == s.healthy {
		s.streak = 0
		return false
	}
	s.streak++
	switch {
	case v.ok && s.known && s.streak < healthyThreshold:
		return false // the first success of a new host counts at once
	case !v.ok && !v.atOnce && s.streak < unhealthyThreshold:
		return false
	}
	s.healthy, s.known, s.streak = v.ok, true, 0
	return true
}

// newHealthChecks makes the checks of a target; nothing is sent before
// hostsChanged is called.
func newHealthChecks(t *Target, checks []HealthCheck, log *slog.Logger) (monitor, error) {
	m := &healthChecks{log: log, changed: t.changed, checked: map[*host][]*healthSession{}}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	for i := range checks {
		c, problems := compileHealthCheck(&checks[i])
		if len(problems) > 0 {
			p := problems[0]
			return nil, p.under("health_checks", i)
		}
		m.checks = append(m.checks, c)
	}
	m.probers = func(c *healthCheck, h *host) prober { return c.newProber(t, h) }
	return m, nil
}

// hostsChanged begins checking hosts that are new and ends checking those
// that are gone. A new host is unhealthy until its first success, unless it
// was healthy where a target of the previous configuration checked it: then
// a change of the route costs no request.
func (m *healthChecks) hostsChanged(now []*host) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	here := make(map[*host]bool, len(now))
	for _, h := range now {
		here[h] = true
		if m.checked[h] != nil {
			continue
		}
		h.unhealthy.Store(!h.wasWell)
		for _, c := range m.checks {
			s := &healthSession{m: m, c: c, h: h, prober: m.probers(c, h), since: time.Now()}
			s.state = healthState{healthy: h.wasWell, known: h.wasWell}
			s.ctx, s.cancel = context.WithCancel(context.Background())
			m.checked[h] = append(m.checked[h], s)
			s.timer = time.AfterFunc(randomUpTo(c.initialJitter), s.check)
		}
	}
	for h, list := range m.checked {
		if !here[h] {
			for _, s := range list {
				s.end()
			}
			delete(m.checked, h)
		}
	}
}

// observe notes the target's first request: from then on the usual intervals
// hold instead of those without traffic.
func (m *healthChecks) observe(*host, outcome) { m.asked() }

// wanted tells that a request came and found no host.
func (t *Target) wanted() {
	for _, m := range t.monitors {
		if c, ok := m.(*healthChecks); ok {
			c.asked()
		}
	}
}

func (m *healthChecks) asked() {
	if !m.traffic.Load() && m.traffic.CompareAndSwap(false, true) {
		m.hurry()
	}
}

// hurry sets the timers again, by the intervals that hold now.
func (m *healthChecks) hurry() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, list := range m.checked {
		for _, s := range list {
			if !s.under && !s.closed && !s.ended.IsZero() {
				s.timer.Reset(max(0, time.Until(s.ended.Add(s.wait()))))
			}
		}
	}
}

func (m *healthChecks) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, list := range m.checked {
		for _, s := range list {
			s.end()
		}
	}
	clear(m.checked)
}

// end stops a session. A check under way is cancelled and cleans up itself.
func (s *healthSession) end() {
	s.closed = true
	s.timer.Stop()
	s.cancel()
	if !s.under {
		s.prober.close()
	}
}

// check runs when the timer fires.
func (s *healthSession) check() {
	m := s.m
	m.mu.Lock()
	if s.closed || s.under {
		m.mu.Unlock()
		return
	}
	s.under = true
	m.mu.Unlock()

	ctx, cancel := context.WithTimeout(s.ctx, s.c.timeout)
	v := s.prober.probe(ctx)
	if !v.ok && ctx.Err() == context.DeadlineExceeded {
		v = verdict{reason: "no answer within " + s.c.timeout.String()}
	}
	cancel()

	m.mu.Lock()
	s.under = false
	if s.closed {
		m.mu.Unlock()
		s.prober.close()
		return
	}
	changed := s.take(v)
	s.timer.Reset(s.wait())
	m.mu.Unlock()
	if v.ok {
		s.h.passedHealthCheck()
	}
	if changed {
		m.changed()
	}
}

// take adds up a verdict, logs what is to be logged, and reports whether the
// host's state changed.
func (s *healthSession) take(v verdict) bool {
	first := s.ended.IsZero()
	s.ended = time.Now()
	s.edge = s.state.take(v, s.c.healthyThreshold, s.c.unhealthyThreshold)
	if !v.ok {
		s.reason = v.reason
	}
	if s.edge {
		s.since = s.ended
	}
	log := s.m.log.With("endpoint", s.h.endpoint.name, "address", s.h.addr, "check", s.c.kind)
	switch {
	case s.edge && v.ok:
		log.Info("upstream host is healthy")
	case s.edge:
		log.Warn("upstream host is unhealthy", "reason", v.reason)
	case first && !v.ok:
		log.Warn("upstream host is unhealthy from the start", "reason", v.reason)
	case v.ok && s.c.logSuccesses:
		log.Info("upstream health check passed")
	case !v.ok && s.c.logFailures:
		log.Warn("upstream health check failed", "reason", v.reason)
	}
	unhealthy := false
	for _, other := range s.m.checked[s.h] {
		unhealthy = unhealthy || !other.state.healthy
	}
	return s.h.unhealthy.Swap(unhealthy) != unhealthy
}

// wait is how long after a check the next one comes, jitter included.
func (s *healthSession) wait() time.Duration {
	d := s.c.wait(s.state.healthy, s.edge, s.m.traffic.Load())
	return d + randomUpTo(s.c.intervalJitter) + randomUpTo(d/100*time.Duration(s.c.intervalJitterPercent))
}

// wait is the interval for a state. The intervals without traffic beat all
// others; edge says that the state has just changed.
func (c *healthCheck) wait(healthy, edge, traffic bool) time.Duration {
	switch {
	case !traffic && healthy:
		return c.noTrafficHealthyInterval
	case !traffic:
		return c.noTrafficInterval
	case healthy && edge:
		return c.healthyEdgeInterval
	case healthy:
		return c.interval
	case edge:
		return c.unhealthyEdgeInterval
	}
	return c.unhealthyInterval
}

// trouble is why a host is not healthy and since when; "" if it is.
func (m *healthChecks) trouble(h *host) (reason string, since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.checked[h] {
		if !s.state.healthy {
			if reason = s.reason; s.ended.IsZero() {
				reason = "not checked yet"
			}
			return s.c.kind + " check: " + reason, s.since
		}
	}
	return "", time.Time{}
}

// randomUpTo is a random duration below limit.
func randomUpTo(limit time.Duration) time.Duration {
	if limit <= 0 {
		return 0
	}
	return rand.N(limit)
}
