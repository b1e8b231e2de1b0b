package proxy

import (
	"sync"
	"sync/atomic"
	"time"
)

// watch is the clock of one forwarded request: a single timer that calls for
// whatever is due next. Times are monotonic.
type watch struct {
	mu     sync.Mutex
	timer  *time.Timer
	next   time.Time
	done   bool
	alarms []alarm

	last atomic.Int64 // when bytes moved, nanoseconds since began
	from time.Time
}

// alarm calls due at a time. An idle alarm is put off as long as bytes move.
type alarm struct {
	at   time.Time // zero: not set
	idle time.Duration
	due  func()
}

func newWatch(now time.Time) *watch { return &watch{from: now} }

// active notes that bytes moved.
func (w *watch) active() { w.last.Store(int64(time.Since(w.from))) }

// after calls due once d has passed; 0 is never.
func (w *watch) after(d time.Duration, due func()) {
	if d > 0 {
		w.add(alarm{at: time.Now().Add(d), due: due})
	}
}

// idle calls due once no bytes have moved for d; 0 is never.
func (w *watch) idle(d time.Duration, due func()) {
	if d > 0 {
		w.active()
		w.add(alarm{at: time.Now().Add(d), idle: d, due: due})
	}
}

func (w *watch) add(a alarm) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return
	}
	w.alarms = append(w.alarms, a)
	w.schedule(a.at)
}

// schedule makes sure that the timer fires at t. w.mu is held.
func (w *watch) schedule(t time.Time) {
	switch {
	case w.timer == nil:
		w.timer = time.AfterFunc(time.Until(t), w.fire)
	case w.next.IsZero() || t.Before(w.next):
		w.timer.Reset(time.Until(t))
	default:
		return
	}
	w.next = t
}

func (w *watch) fire() {
	w.mu.Lock()
	if w.done {
		w.mu.Unlock()
		return
	}
	now := time.Now()
	w.next = time.Time{}
	var due []func()
	for i := range w.alarms {
		a := &w.alarms[i]
		if a.at.IsZero() {
			continue
		}
		if a.idle > 0 {
			a.at = w.from.Add(time.Duration(w.last.Load()) + a.idle)
		}
		if now.Before(a.at) {
			if w.next.IsZero() || a.at.Before(w.next) {
				w.next = a.at
			}
			continue
		}
		a.at = time.Time{}
		due = append(due, a.due)
	}
	if !w.next.IsZero() {
		w.timer.Reset(time.Until(w.next))
	}
	w.mu.Unlock()
	for _, f := range due {
		f()
	}
}

// stop ends the watch; an alarm that is being called may still run.
func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	if w.timer != nil {
		w.timer.Stop()
	}
}
