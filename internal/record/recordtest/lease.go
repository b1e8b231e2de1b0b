package recordtest

import (
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/record"
)

var leaseCases = []testCase{
	{"lease", false, func(s *suite) {
		a, err := s.s.Acquire(s.ctx, "x", time.Hour)
		s.ok(err)
		_, err = s.s.Acquire(s.ctx, "x", time.Hour)
		s.want(record.ErrLeaseHeld, err)
		y, err := s.s.Acquire(s.ctx, "y", time.Hour)
		s.ok(err)
		if a.Name != "x" || a.ID == "" || a.ID == y.ID || y.Fence <= a.Fence {
			s.Fatalf("%+v, %+v", a, y)
		}
		a2, err := s.s.Renew(s.ctx, a, 2*time.Hour)
		s.ok(err)
		if a2.Fence != a.Fence || !a2.Expires.After(a.Expires) {
			s.Fatalf("renewed %+v to %+v", a, a2)
		}
		// Only the holder may renew or release.
		_, err = s.s.Renew(s.ctx, record.Lease{Name: "x", ID: "guess"}, time.Hour)
		s.want(record.ErrLeaseLost, err)
		_, err = s.s.Renew(s.ctx, record.Lease{Name: "x"}, time.Hour)
		s.want(record.ErrLeaseLost, err)
		s.ok(s.s.Release(s.ctx, record.Lease{Name: "x", ID: "guess"}))
		_, err = s.s.Acquire(s.ctx, "x", time.Hour)
		s.want(record.ErrLeaseHeld, err)
		s.ok(s.s.Release(s.ctx, a))
		s.ok(s.s.Release(s.ctx, a))
		_, err = s.s.Renew(s.ctx, a, time.Hour)
		s.want(record.ErrLeaseLost, err)
		b, err := s.s.Acquire(s.ctx, "x", time.Hour)
		s.ok(err)
		if b.Fence <= y.Fence || b.ID == a.ID {
			s.Fatalf("after %+v came %+v", y, b)
		}
		_, err = s.s.Acquire(s.ctx, "", time.Hour)
		s.want(record.ErrInvalid, err)
		_, err = s.s.Acquire(s.ctx, "z", 0)
		s.want(record.ErrInvalid, err)
	}},
	{"leases run out", true, func(s *suite) {
		a, err := s.s.Acquire(s.ctx, "x", 30*time.Second)
		s.ok(err)
		time.Sleep(20 * time.Second)
		a, err = s.s.Renew(s.ctx, a, 30*time.Second)
		s.ok(err)
		time.Sleep(30*time.Second - time.Millisecond)
		_, err = s.s.Acquire(s.ctx, "x", 30*time.Second)
		s.want(record.ErrLeaseHeld, err)
		time.Sleep(time.Millisecond)
		_, err = s.s.Renew(s.ctx, a, time.Hour) // nobody took it, yet it is lost
		s.want(record.ErrLeaseLost, err)
		b, err := s.s.Acquire(s.ctx, "x", 30*time.Second)
		s.ok(err)
		s.ok(s.s.Release(s.ctx, a)) // must not free b's
		_, err = s.s.Acquire(s.ctx, "x", 30*time.Second)
		s.want(record.ErrLeaseHeld, err)
		if b.Fence <= a.Fence {
			s.Fatalf("fence %d after %d", b.Fence, a.Fence)
		}
	}},
	{"a lost lease fences its writes", true, func(s *suite) {
		a, err := s.s.Acquire(s.ctx, "x", 30*time.Second)
		s.ok(err)
		by := record.System("leader")
		by.Lease = &a
		_, err = s.s.Put(s.ctx, by, doc(typ, "a", "held"))
		s.ok(err)
		time.Sleep(time.Minute)
		check := func() {
			_, err := s.s.Put(s.ctx, by, doc(typ, "a", "late"))
			s.want(record.ErrLeaseLost, err)
			_, err = record.Modify(s.ctx, s.s, by, typ, "a", func(*record.Record) error { return nil })
			s.want(record.ErrLeaseLost, err)
			s.want(record.ErrLeaseLost, s.s.Delete(s.ctx, by, typ, "a"))
		}
		check()
		b, err := s.s.Acquire(s.ctx, "x", 30*time.Second)
		s.ok(err)
		check()
		s.ok(same(s.get(typ, "a"), doc(typ, "a", "held")))
		by.Lease = &b
		s.ok(s.s.Delete(s.ctx, by, typ, "a"))
	}},
	{"one of many takes a lease", false, func(s *suite) {
		var wg sync.WaitGroup
		var won atomic.Int64
		for range 16 {
			wg.Go(func() {
				if _, err := s.s.Acquire(s.ctx, "x", time.Hour); err == nil {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			s.Fatalf("%d hold the lease", won.Load())
		}
	}},
}
