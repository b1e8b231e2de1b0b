package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestMergeBreakers(t *testing.T) {
	got := MergeBreakers(&Breakers{MaxConnections: ptr(uint32(1)), MaxRetries: ptr(uint32(2))}, &Breakers{MaxConnections: ptr(uint32(3)), MaxRequests: ptr(uint32(0))})
	b := newBreaker(got)
	if b.maxConnections != 3 || b.maxRetries != 2 || b.maxRequests != 0 || b.maxPending != 1024 || b.maxPools != unlimited {
		t.Errorf("%d %d %d %d %d", b.maxConnections, b.maxRetries, b.maxRequests, b.maxPending, b.maxPools)
	}
	b = newBreaker(MergeBreakers(nil, nil))
	if b.maxConnections != 1024 || b.maxRetries != 3 || b.maxRequests != 1024 || b.maxPending != 1024 || b.maxPools != unlimited {
		t.Errorf("defaults %d %d %d %d %d", b.maxConnections, b.maxRetries, b.maxRequests, b.maxPending, b.maxPools)
	}
}

// TestQueue: who waits for a connection is served in order, within number and
// time, and leaves at once when the client does.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(Breakers{MaxConnections: ptr(uint32(1)), MaxPendingRequests: ptr(uint32(3))})
		ctx := context.Background()
		if err := b.slot(ctx); err != nil {
			t.Fatal(err)
		}
		order := make(chan int, 9)
		leaving, leave := context.WithCancelCause(ctx)
		left := errors.New("client left")
		for i := range 3 {
			go func() {
				ctx := ctx
				if i == 1 {
					ctx = leaving
				}
				if err := b.slot(ctx); err != nil {
					if err != left {
						t.Errorf("%d: %v", i, err)
					}
					return
				}
				order <- i
			}()
			synctest.Wait()
		}
		var e *Error
		if err := b.slot(ctx); !errors.As(err, &e) || e.Kind != ErrOverflow || e.Key != "max_pending_requests" {
			t.Errorf("a fourth waits: %v", err)
		}
		leave(left)
		synctest.Wait()
		if n := b.waiters.Load(); n != 2 {
			t.Errorf("%d wait after one left", n)
		}
		b.freeSlot()
		synctest.Wait()
		b.freeSlot()
		synctest.Wait()
		if one, two := <-order, <-order; one != 0 || two != 2 {
			t.Errorf("served %d before %d", one, two)
		}
		began := time.Now()
		if err := b.slot(ctx); !errors.As(err, &e) || e.Key != "max_connections" || time.Since(began) != pendingFor {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		b.freeSlot()
		if b.slots.Load() != 0 || b.waiters.Load() != 0 {
			t.Errorf("%d slots, %d waiters are left", b.slots.Load(), b.waiters.Load())
		}
		if err := b.slot(ctx); err != nil {
			t.Error(err)
		}
	})
}

// TestQueueStorm: nobody is lost and no slot is taken twice, whoever comes
// and goes.
func TestQueueStorm(t *testing.T) {
	b := newBreaker(Breakers{MaxConnections: ptr(uint32(3))})
	var inside, most atomic.Int64
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			for range 50 {
				ctx, cancel := context.WithCancel(context.Background())
				if i%3 == 0 {
					go cancel()
				}
				if b.slot(ctx) == nil {
					if n := inside.Add(1); n > most.Load() {
						most.Store(n)
					}
					inside.Add(-1)
					b.freeSlot()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if most.Load() > 3 || b.slots.Load() != 0 || b.waiters.Load() != 0 || b.queue.Len() != 0 {
		t.Errorf("at most %d inside; %d slots, %d waiters, %d queued are left", most.Load(), b.slots.Load(), b.waiters.Load(), b.queue.Len())
	}
}

// holding is an upstream that answers when told to.
func holding(t *testing.T) (url string, arrived chan string, release chan struct{}) {
	t.Helper()
	arrived, release = make(chan string, 100), make(chan struct{})
	s := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- r.RemoteAddr
		select {
		case <-release:
		case <-r.Context().Done():
		}
		io.WriteString(w, "done")
	}))
	return s.URL, arrived, release
}

func TestBreakers(t *testing.T) {
	one := ptr(uint32(1))
	for _, tc := range []struct {
		key    string
		limits Breakers
		waits  bool // one more waits; else it is refused
	}{
		{"max_requests", Breakers{MaxRequests: one}, false},
		{"max_pending_requests", Breakers{MaxConnections: one, MaxPendingRequests: ptr(uint32(0))}, false},
		{"", Breakers{MaxConnections: one}, true},
	} {
		url, arrived, release := holding(t)
		tg := target(t, Spec{Breakers: tc.limits}, url)
		d := newDoor(t, tg)
		first := make(chan struct{})
		go func() { defer close(first); get(t, d.URL) }()
		connection := <-arrived
		if !tc.waits {
			_, body := get(t, d.URL)
			o := d.outcome(t)
			var e *Error
			if !errors.As(o.err, &e) || e.Kind != ErrOverflow || e.Key != tc.key || o.Details != "upstream_reset_before_response_started{overflow}" {
				t.Errorf("%s: %v %s", tc.key, o.err, o.Details)
			}
			if !strings.Contains(body, "busy") {
				t.Errorf("%s: the visitor is told %q", tc.key, body)
			}
			close(release)
			<-first
			continue
		}
		second := make(chan struct{})
		go func() { defer close(second); get(t, d.URL) }()
		becomes(t, func() bool { return tg.breaker.waiters.Load() == 1 })
		if len(arrived) != 0 {
			t.Error("a second request reached the upstream over a second connection")
		}
		// A client that leaves the queue leaves it at once.
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			req, _ := http.NewRequestWithContext(ctx, "GET", d.URL, nil)
			http.DefaultClient.Do(req)
		}()
		becomes(t, func() bool { return tg.breaker.waiters.Load() == 2 })
		cancel()
		becomes(t, func() bool { return tg.breaker.waiters.Load() == 1 })
		close(release)
		<-first
		<-second
		if again := <-arrived; again != connection {
			t.Errorf("the waiting request came over %s, not over %s", again, connection)
		}
	}
}

// TestConnectionsAreFew: idle connections to one host make room for another's.
func TestConnectionsAreFew(t *testing.T) {
	var open, most atomic.Int64
	count := func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			if n := open.Add(1); n > most.Load() {
				most.Store(n)
			}
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	}
	var to []string
	for range 3 {
		s := httptest.NewUnstartedServer(echo)
		s.Config.ConnState = count
		s.Start()
		t.Cleanup(s.Close)
		to = append(to, s.URL)
	}
	tg := target(t, Spec{Breakers: Breakers{MaxConnections: ptr(uint32(2))}}, to...)
	d := newDoor(t, tg)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				if resp, _ := get(t, d.URL); resp.StatusCode != 200 {
					t.Errorf("%d", resp.StatusCode)
				}
			}
		})
	}
	wg.Wait()
	if n := tg.breaker.open.Load(); n > 2 {
		t.Errorf("%d connections are open", n)
	}
	tg.closeIdle()
	becomes(t, func() bool { return tg.breaker.open.Load() == 0 })
}

// TestMultiplexed: exchanges that share connections do not queue for them.
func TestMultiplexed(t *testing.T) {
	arrived, release := make(chan struct{}, 100), make(chan struct{})
	ca := newAuthority(t)
	pair, _, _ := ca.leaf(t, nil)
	s := tlsUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-release
	}), true, tlsServer(pair))
	tg := target(t, Spec{Breakers: Breakers{MaxConnections: ptr(uint32(1))}, TLS: TLS{CustomCA: ca.PEM}}, s.URL)
	d := newDoor(t, tg)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if resp, _ := get(t, d.URL); resp.StatusCode != 200 {
				t.Errorf("%d %v", resp.StatusCode, d.outcome(t).err)
			}
		})
	}
	for range 5 {
		<-arrived
	}
	close(release)
	wg.Wait()
	if n := tg.breaker.open.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestRetriesAreFew: with no retry allowed, the first failure stands.
func TestRetriesAreFew(t *testing.T) {
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	dead := "http://" + ln.Addr().String()
	ln.Close()
	good := upstreamServer(t, echo).URL
	for retries, failures := range map[uint32]int{0: 2, 1: 0} {
		d := newDoor(t, target(t, Spec{Breakers: Breakers{MaxRetries: ptr(retries)}}, dead, good))
		failed := 0
		for range 4 {
			if resp, _ := get(t, d.URL); resp.StatusCode != 200 {
				failed++
			}
		}
		if failed != failures {
			t.Errorf("max_retries %d: %d of 4 failed", retries, failed)
		}
	}
}

// TestPoolsAreFew: hosts beyond max_connection_pools take the place of idle
// ones, not of busy ones.
func TestPoolsAreFew(t *testing.T) {
	one, arrived, release := holding(t)
	two := upstreamServer(t, echo).URL
	d := newDoor(t, target(t, Spec{Breakers: Breakers{MaxConnectionPools: ptr(uint32(1))}}, one, two))
	done := make(chan struct{})
	busy := false
	for !busy {
		go func() { defer func() { done <- struct{}{} }(); get(t, d.URL) }()
		select {
		case <-arrived:
			busy = true
		case <-done:
			d.outcome(t)
		}
	}
	get(t, d.URL)
	var e *Error
	if o := d.outcome(t); !errors.As(o.err, &e) || e.Key != "max_connection_pools" {
		t.Errorf("%v", o.err)
	}
	close(release)
	<-done
	for range 4 {
		if resp, _ := get(t, d.URL); resp.StatusCode != 200 {
			t.Errorf("%d", resp.StatusCode)
		}
	}
}

// TestReleasedTargetClosesConnections: also those that were in use then.
func TestReleasedTargetClosesConnections(t *testing.T) {
	url, arrived, release := holding(t)
	p, _ := Build([]Spec{{Endpoints: endpoints(t, url)}}, nil, nil)
	tg := p.Target(0)
	d := newDoor(t, tg)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, body := get(t, d.URL); resp.StatusCode != 200 || body != "done" {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}()
	<-arrived
	p.Close()
	if tg.breaker.open.Load() != 1 {
		t.Error("the exchange was disturbed")
	}
	close(release)
	<-done
	becomes(t, func() bool { return tg.breaker.open.Load() == 0 })
}

// becomes polls until what must come true is true.
func becomes(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never happened")
		}
	}
}
