package upstream

import (
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// outlierDetector ejects hosts of a target whose answers fail
// (configuration.md §3.8). Each try costs a few atomic loads and nothing where
// no host could be ejected anyway: by default that is so below ten hosts.
// A timer runs only while requests come or hosts are ejected.
type outlierDetector struct {
	o       *outlierSettings
	log     *slog.Logger
	changed func()

	on    atomic.Bool // some host could be ejected
	rates atomic.Bool // there are hosts enough for judging by rates
	armed atomic.Bool // the sweep is set

	mu     sync.Mutex
	closed bool
	hosts  []*host
	timer  *time.Timer
}

// outlierState is what the detector knows about a host.
type outlierState struct {
	detector atomic.Pointer[outlierDetector]

	in5xx, inGateway, inLocal atomic.Uint32 // failures in a row
	total, good               atomic.Uint32 // answers since the last sweep
	totalLocal, goodLocal     atomic.Uint32 // attempts to get one, if counted apart

	// Of outlierDetector.mu:
	until  time.Time // end of the ejection
	times  int       // ejections, less the quiet intervals since
	reason string
	since  time.Time
}

// newOutlierDetector makes the outlier detection of a target.
func newOutlierDetector(t *Target, o *Outlier) (monitor, error) {
	settings, problems := compileOutlier(o)
	if len(problems) > 0 {
		return nil, problems[0]
	}
	d := &outlierDetector{o: settings, log: t.log, changed: t.changed}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d, nil
}

// hostsChanged takes over the hosts of now. Ejected ones that stay remain so.
func (d *outlierDetector) hostsChanged(now []*host) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.hosts = append([]*host(nil), now...)
	for _, h := range now {
		h.outlier.detector.Store(d)
	}
	n := len(now)
	d.on.Store(d.room(n, 0))
	d.rates.Store(d.room(n, 0) && n >= min(d.o.successRateMinimumHosts, d.o.failurePercentageMinimumHosts))
}

// room reports whether one more of n hosts may be ejected.
func (d *outlierDetector) room(n, ejected int) bool {
	if n == 0 {
		return false
	}
	return ejected == 0 && d.o.alwaysEjectOneHost || (ejected+1)*100 <= n*int(d.o.maxEjectionPercent)
}

// observe counts how a try ended. What happened before an answer counts as a
// gateway failure, unless such failures are counted apart.
func (d *outlierDetector) observe(h *host, o outcome) {
	if !d.on.Load() {
		return
	}
	s := &h.outlier
	if d.o.splitLocal {
		if count(&s.inLocal, o.local, d.o.consecutiveLocalOriginFailure) {
			d.eject(h, "failures of connecting in a row", d.o.enforcingConsecutiveLocalOriginFailure)
		}
		d.add(&s.totalLocal, &s.goodLocal, !o.local)
		if o.local {
			return
		}
	}
	failed := o.local || o.status >= 500
	if count(&s.in5xx, failed, d.o.consecutive5xx) {
		d.eject(h, "answers 5xx in a row", d.o.enforcingConsecutive5xx)
	}
	if count(&s.inGateway, o.local || o.gateway, d.o.consecutiveGatewayFailure) {
		d.eject(h, "gateway failures in a row", d.o.enforcingConsecutiveGatewayFailure)
	}
	d.add(&s.total, &s.good, !failed)
}

// count counts failures in a row and reports whether they are limit.
func count(n *atomic.Uint32, failed bool, limit uint32) bool {
	if !failed {
		if n.Load() != 0 {
			n.Store(0)
		}
		return false
	}
	if n.Add(1) != limit {
		return false
	}
	n.Store(0)
	return true
}

// add counts for the rates.
func (d *outlierDetector) add(total, good *atomic.Uint32, ok bool) {
	if !d.rates.Load() {
		return
	}
	total.Add(1)
	if ok {
		good.Add(1)
	}
	if !d.armed.Load() && d.armed.CompareAndSwap(false, true) {
		d.mu.Lock()
		d.arm()
		d.mu.Unlock()
	}
}

// arm sets the next sweep. It is called with mu held.
func (d *outlierDetector) arm() {
	if d.closed {
		return
	}
	d.armed.Store(true)
	if d.timer == nil {
		d.timer = time.AfterFunc(d.o.interval, d.sweep)
		return
	}
	d.timer.Reset(d.o.interval)
}

// eject takes a host out for a while, in percent of the cases.
func (d *outlierDetector) eject(h *host, reason string, percent uint32) {
	d.mu.Lock()
	done := d.ejectLocked(h, reason, percent)
	d.mu.Unlock()
	if done {
		d.changed()
	}
}

func (d *outlierDetector) ejectLocked(h *host, reason string, percent uint32) bool {
	if d.closed || h.ejected.Load() || uint32(rand.N(100)) >= percent {
		return false
	}
	ejected, here := 0, false
	for _, other := range d.hosts {
		if here = here || other == h; other.ejected.Load() {
			ejected++
		}
	}
	if !here || !d.room(len(d.hosts), ejected) {
		return false
	}
	s := &h.outlier
	s.times++
	d.reset(s)
	length := min(d.o.baseEjectionTime*time.Duration(min(s.times, 1<<20)), d.o.maxEjectionTime) + randomUpTo(d.o.maxEjectionTimeJitter)
	s.since = time.Now()
	s.until, s.reason = s.since.Add(length), reason
	h.ejected.Store(true)
	if !d.armed.Load() {
		d.arm()
	}
	d.log.Warn("upstream host is ejected", "endpoint", h.endpoint.name, "address", h.addr, "reason", reason, "for", length.Round(time.Millisecond).String())
	return true
}

func (d *outlierDetector) reset(s *outlierState) {
	for _, n := range []*atomic.Uint32{&s.in5xx, &s.inGateway, &s.inLocal, &s.total, &s.good, &s.totalLocal, &s.goodLocal} {
		n.Store(0)
	}
}

// restore takes an ejected host back. It is called with mu held.
func (d *outlierDetector) restore(h *host, why string) {
	d.reset(&h.outlier)
	h.outlier.reason = ""
	h.ejected.Store(false)
	d.log.Info("upstream host is no longer ejected", "endpoint", h.endpoint.name, "address", h.addr, "because", why)
}

// passedHealthCheck ends an ejection, if a good health check is to do that.
func (h *host) passedHealthCheck() {
	if !h.ejected.Load() {
		return
	}
	d := h.outlier.detector.Load()
	if d == nil || !d.o.healthCheckUnejects {
		return
	}
	d.mu.Lock()
	done := !d.closed && h.ejected.Load()
	if done {
		d.restore(h, "it passed a health check")
	}
	d.mu.Unlock()
	if done {
		d.changed()
	}
}

// sweep runs once per interval: it takes back whose time is over, lets others
// forget an ejection, and judges by rates.
func (d *outlierDetector) sweep() {
	d.mu.Lock()
	d.armed.Store(false)
	if d.closed {
		d.mu.Unlock()
		return
	}
	now, again, changed := time.Now(), false, false
	for _, h := range d.hosts {
		s := &h.outlier
		switch {
		case h.ejected.Load() && !now.Before(s.until):
			d.restore(h, "its time is over")
			changed, again = true, true
		case h.ejected.Load():
			again = true
		case s.times > 0:
			s.times--
			again = again || s.times > 0
		}
	}
	if d.rates.Load() {
		for _, out := range d.judge() {
			if d.ejectLocked(out.h, out.reason, out.percent) {
				changed = true
			}
		}
	}
	for _, h := range d.hosts {
		again = again || h.ejected.Load()
	}
	if again {
		d.arm()
	}
	d.mu.Unlock()
	if changed {
		d.changed()
	}
}

func (d *outlierDetector) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.on.Store(false)
	if d.timer != nil {
		d.timer.Stop()
	}
}

// trouble is why a host is ejected and since when; "" if it is not.
func (d *outlierDetector) trouble(h *host) (reason string, since time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !h.ejected.Load() {
		return "", time.Time{}
	}
	return h.outlier.reason, h.outlier.since
}
