package proxy

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatchCallsInOrderAndStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w watch
		var mu sync.Mutex // alarms ring on goroutines of their own
		var got []string
		start := time.Now()
		note := func(name string, at time.Duration) func() {
			return func() {
				if time.Since(start) != at {
					t.Errorf("%s after %v, want %v", name, time.Since(start), at)
				}
				mu.Lock()
				defer mu.Unlock()
				got = append(got, name)
			}
		}
		w.after(3*time.Second, note("three", 3*time.Second))
		w.after(time.Second, note("one", time.Second))
		w.after(2*time.Second, note("two", 2*time.Second))
		w.after(0, func() { t.Error("0 is never") })
		w.after(10*time.Second, func() { t.Error("called after stop") })
		time.Sleep(1500 * time.Millisecond)
		w.after(time.Second, note("later", 2500*time.Millisecond))
		time.Sleep(3 * time.Second)
		w.stop()
		w.after(time.Second, func() { t.Error("set after stop") })
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"one", "two", "later", "three"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestRefusedRequestsAreLogged(t *testing.T) {
	run := testDoor{}.start(t)
	refused := LogRefused(func() *Generation { return run.gen })
	id := refused(&ConnInfo{}, &HeadError{Status: 400, Reason: "bad"})
	if e := run.entry(1); e.RequestID != id || len(id) != 36 || e.ResponseCode != 400 {
		t.Errorf("%q: %+v", id, e)
	}
	if id := LogRefused(func() *Generation { return nil })(nil, &HeadError{Status: 400}); len(id) != 36 {
		t.Errorf("without a generation: %q", id)
	}
}
