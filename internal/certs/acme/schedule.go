package acme

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// The states of a host.
const (
	// StatePending: there is no certificate yet.
	StatePending = "pending"
	// StateValid: there is one.
	StateValid = "valid"
	// StateFailing: the last attempt failed; what was there goes on serving.
	StateFailing = "failing"
	// StateConfigured: a configured certificate serves it.
	StateConfigured = "configured"
	// StateSkipped: it cannot have one.
	StateSkipped = "skipped"
)

// HostStatus is how one host is.
type HostStatus struct {
	Name  string `json:"name"`
	State string `json:"state"`
	// NotAfter is the end of the present certificate; zero: there is none.
	NotAfter time.Time `json:"not_after,omitzero"`
	// Next is when it is renewed, or tried again.
	Next time.Time `json:"next,omitzero"`
	// Error says why the last attempt failed, or why none is made.
	Error string `json:"error,omitempty"`
}

// host is the state of one name. Guarded by Manager.mu.
type host struct {
	name     string
	ctx      context.Context
	cancel   context.CancelFunc
	due      time.Time
	busy     bool
	again    bool // settings changed while busy
	loaded   bool // the storage has been asked
	cert     kept
	renewAt  time.Time
	looked   time.Time // when the storage was last asked
	failures int
	problem  string // kind of the last failure, so that the log says it once
	err      string
}

func (m *Manager) newHost(name string) *host {
	h := &host{name: name, due: time.Now()}
	h.ctx, h.cancel = context.WithCancel(m.ctx)
	return h
}

// restart looks at a host anew under changed settings.
func (h *host) restart() {
	h.loaded, h.failures, h.problem, h.err, h.due = false, 0, "", "", time.Now()
	h.renewAt = time.Time{} // what there is may be another server's
	h.again = h.busy
}

func (h *host) status(now time.Time) HostStatus {
	s := HostStatus{Name: h.name, State: StatePending, Error: h.err, Next: h.due}
	if h.cert.Leaf != nil {
		s.State, s.NotAfter = StateValid, h.cert.Leaf.NotAfter
		if h.failures == 0 {
			s.Next = h.renewAt
		}
	}
	if h.failures > 0 {
		s.State = StateFailing
	}
	return s
}

// Status tells how all hosts are, by name.
func (m *Manager) Status() []HostStatus {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := slices.Clone(m.skipped)
	now := time.Now()
	for _, h := range m.hosts {
		out = append(out, h.status(now))
	}
	slices.SortFunc(out, func(a, b HostStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Counts are the numbers for metrics.
type Counts struct {
	// Valid, Pending and Failing count hosts; a failing host may still have a
	// valid certificate.
	Valid, Pending, Failing int
	// Certificates counts those that are there.
	Certificates int
	// Renewals counts certificates got in the place of another.
	Renewals uint64
	// NextExpiry is the earliest end of a certificate; zero: there is none.
	NextExpiry time.Time
}

// Counts counts.
func (m *Manager) Counts() Counts {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c := Counts{Renewals: m.renewals}
	for _, h := range m.hosts {
		switch {
		case h.failures > 0:
			c.Failing++
		case h.cert.Leaf == nil:
			c.Pending++
		default:
			c.Valid++
		}
		if h.cert.Leaf != nil {
			c.Certificates++
			if c.NextExpiry.IsZero() || h.cert.Leaf.NotAfter.Before(c.NextExpiry) {
				c.NextExpiry = h.cert.Leaf.NotAfter
			}
		}
	}
	return c
}

// Problem says in one line which hosts have no certificate, or fail to renew
// it; nil if all is well.
func (m *Manager) Problem() error {
	var names []string
	var first string
	for _, s := range m.Status() {
		if s.State == StatePending || s.State == StateFailing {
			names = append(names, s.Name)
			if first == "" {
				first = s.Error
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	what := fmt.Sprintf("%d hosts wait for a certificate: ", len(names))
	if len(names) == 1 {
		what = "one host waits for a certificate: "
	}
	if len(names) > 5 {
		names = append(names[:5], "...")
	}
	what += strings.Join(names, ", ")
	if first != "" {
		what += "; " + first
	}
	return errors.New(what)
}

// WaitLoaded waits until the storage has been asked for every host, so that a
// start does not answer without certificates that are there. It does not wait
// for the ACME server.
func (m *Manager) WaitLoaded(ctx context.Context) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		m.mu.RLock()
		missing := false
		for _, h := range m.hosts {
			missing = missing || !h.loaded
		}
		m.mu.RUnlock()
		if !missing {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// schedule starts the work of hosts that are due, a bounded number at once.
func (m *Manager) schedule() {
	defer m.wg.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now, next := time.Now(), time.Hour
		m.mu.Lock()
		for _, h := range m.hosts {
			if h.busy {
				continue
			}
			if wait := h.due.Sub(now); wait > 0 {
				next = min(next, wait)
				continue
			}
			slots := m.toCA
			if !h.loaded {
				slots = m.load
			}
			select {
			case slots <- struct{}{}:
				h.busy = true
				m.wg.Add(1)
				go m.work(h, m.setup, slots)
			default: // whoever frees a slot pokes
			}
		}
		m.mu.Unlock()
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-m.wake:
		case <-m.ctx.Done():
			return
		}
	}
}

// lookEvery is how many checks pass between two looks into the storage.
const lookEvery = 36

// work does the next step for a host: ask the storage, or the ACME server.
func (m *Manager) work(h *host, s *setup, slots chan struct{}) {
	defer m.wg.Done()
	m.mu.RLock()
	loaded, had := h.loaded, h.cert
	now := time.Now()
	// Between renewals the storage is asked a few times a day, for what other
	// replicas did and for what the server wants.
	rest := loaded && had.Leaf != nil && now.Before(h.renewAt) && now.Sub(h.looked) < lookEvery*m.o.Timing.Check
	m.mu.RUnlock()
	var cert kept
	var err error
	switch {
	case rest:
		cert = had
	case !loaded:
		cert, err = s.load(h.ctx, h.name)
	default:
		cert, err = s.obtain(h.ctx, h.name, had)
	}
	<-slots
	if !rest {
		m.mu.Lock()
		h.looked = now
		m.mu.Unlock()
	}
	m.finish(h, loaded, cert, err)
	m.poke()
	m.changed()
}

// finish takes the outcome of work down and sets the next date.
func (m *Manager) finish(h *host, loaded bool, cert kept, err error) {
	if h.ctx.Err() != nil {
		if err == nil {
			m.cache.Remove([]string{cert.Hash()}) // the host left meanwhile
		}
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	h.busy = false
	if h.again {
		h.again, h.due = false, time.Now()
		return
	}
	now := time.Now()
	missing := errors.Is(err, fs.ErrNotExist)
	if !loaded && (err == nil || missing) {
		h.loaded = true
		if missing {
			h.due = now
			return
		}
	}
	if err != nil {
		h.loaded = h.loaded || !loaded // asked, without an answer; obtaining asks again
		m.failed(h, now, err)
		return
	}
	m.took(h, now, cert, loaded)
}

// took puts a certificate in the place of the one before.
func (m *Manager) took(h *host, now time.Time, cert kept, fromCA bool) {
	before := h.cert
	renewed := before.Leaf != nil && before.Hash() != cert.Hash()
	recovered := h.failures > 0
	h.cert, h.failures, h.problem, h.err = cert, 0, "", ""
	var old []string
	for _, c := range m.cache.AllMatchingCertificates(h.name) {
		if c.Hash() != cert.Hash() && len(c.Names) > 0 && c.Names[0] == h.name {
			old = append(old, c.Hash())
		}
	}
	if len(old) > 0 {
		m.cache.Remove(old)
	}
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	h.renewAt = cert.Leaf.NotAfter.Add(-time.Duration(float64(life) * m.o.Timing.RenewRatio))
	if !cert.moment.IsZero() && cert.moment.Before(h.renewAt) {
		h.renewAt = cert.moment
	}
	h.due = now.Add(m.o.Timing.Check)
	if h.renewAt.Before(h.due) {
		h.due = h.renewAt
	}
	if fromCA {
		// Not at once again, however short it lives.
		if soonest := now.Add(m.o.Timing.Check / 100); h.due.Before(soonest) {
			h.due = soonest
		}
	}
	attrs := []any{"host", h.name, "issuer", cert.Leaf.Issuer.String(), "expires", cert.Leaf.NotAfter.UTC().Format(time.RFC3339), "renewal", h.renewAt.UTC().Format(time.RFC3339)}
	switch {
	case renewed:
		m.renewals++
		m.log.Info("autocert: certificate renewed", attrs...)
	case fromCA && before.Leaf == nil:
		m.log.Info("autocert: certificate obtained", attrs...)
	case before.Leaf == nil:
		m.log.Debug("autocert: certificate loaded", attrs...)
	case recovered:
		m.log.Info("autocert: all is well again", attrs...)
	}
}

// failed sets the date of the next attempt: later each time, and never before
// the server wants to hear from us.
func (m *Manager) failed(h *host, now time.Time, err error) {
	var problem acme.Problem
	var limited *laterError
	longest, kind := 10*time.Minute, "unreachable"
	if errors.As(err, &problem) {
		// Servers count failed validations by the hour.
		longest, kind = time.Hour, problem.Type
	}
	var storage *storageError
	if errors.As(err, &storage) {
		kind = "storage"
	}
	wait := m.o.Timing.Retry << min(h.failures, 12)
	wait = min(wait, max(longest, m.o.Timing.Retry))
	wait += time.Duration(rand.Int64N(int64(wait)/10 + 1))
	h.failures++
	h.due = now.Add(wait)
	if errors.As(err, &limited) {
		kind = "limited"
		if limited.until.After(h.due) {
			h.due = limited.until
		}
	}
	h.err = readable(err)
	attrs := []any{"host", h.name, "error", h.err, "next", h.due.UTC().Format(time.RFC3339)}
	what := "autocert: no certificate could be obtained; it is tried again"
	if h.cert.Leaf != nil {
		what = "autocert: the certificate could not be renewed; it goes on serving, and it is tried again"
		attrs = append(attrs, "expires", h.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if kind == h.problem {
		m.log.Debug(what, attrs...)
		return
	}
	h.problem = kind
	m.log.Error(what, attrs...)
}

// readable is an error in words for an operator.
func readable(err error) string {
	var p acme.Problem
	text := err.Error()
	if errors.As(err, &p) {
		text = strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace) + ": " + p.Detail
		for _, s := range p.Subproblems {
			text += "; " + strings.TrimPrefix(s.Type, acme.ProblemTypeNamespace) + ": " + s.Detail
		}
		if p.Status == http.StatusTooManyRequests || p.Type == acme.ProblemTypeRateLimited {
			text = "the ACME server limits how often it is asked: " + text
		} else {
			text = "the ACME server refused: " + text
		}
	}
	if len(text) > 500 {
		text = text[:500] + "..."
	}
	return text
}
