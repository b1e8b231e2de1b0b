package proxy

import (
	"slices"
	"sync"
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
}

type alarm struct {
	at  time.Time
	due func()
}

// after calls due once d has passed; 0 is never.
func (w *watch) after(d time.Duration, due func()) {
	if d <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return
	}
	at := time.Now().Add(d)
	w.alarms = append(w.alarms, alarm{at, due})
	switch {
	case w.timer == nil:
		w.timer = time.AfterFunc(d, w.fire)
	case w.next.IsZero() || at.Before(w.next):
		w.timer.Reset(d)
	default:
		return
	}
	w.next = at
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
	w.alarms = slices.DeleteFunc(w.alarms, func(a alarm) bool {
		if !now.Before(a.at) {
			due = append(due, a.due)
			return true
		}
		if w.next.IsZero() || a.at.Before(w.next) {
			w.next = a.at
		}
		return false
	})
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
