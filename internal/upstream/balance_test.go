package upstream

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
)

// shares picks n times and gives each endpoint's part.
func shares(tg *Target, n int, key func(int) uint64) map[string]float64 {
	got := map[string]float64{}
	for i := range n {
		got[strings.TrimPrefix(tg.pick(key(i), nil).endpoint.name, "http://")] += 1 / float64(n)
	}
	return got
}

func keyed(i int) uint64 { return hashKey(fmt.Sprint("caller ", i)) }
func keyless(int) uint64 { return 0 }

func TestWeights(t *testing.T) {
	for _, kind := range []string{"", RoundRobin, LeastRequest, Random, RingHash, Maglev} {
		tg := target(t, Spec{Balancing: kind}, "http://10.0.0.1,5", "http://10.0.0.2,1", "http://10.0.0.3,4")
		got := shares(tg, 40000, keyed)
		for to, want := range map[string]float64{"10.0.0.1": .5, "10.0.0.2": .1, "10.0.0.3": .4} {
			// Points on a ring lie unevenly.
			if math.Abs(got[to]-want) > .05 {
				t.Errorf("%s: %s has %.3f, want %.3f", kind, to, got[to], want)
			}
		}
		tg = target(t, Spec{Balancing: kind}, "http://10.0.0.1", "http://10.0.0.2", "http://10.0.0.3", "http://10.0.0.4")
		for to, part := range shares(tg, 40000, keyed) {
			if math.Abs(part-.25) > .04 {
				t.Errorf("%s, no weights: %s has %.3f", kind, to, part)
			}
		}
		if kind == RingHash || kind == Maglev {
			for to, part := range shares(tg, 4000, keyless) {
				if math.Abs(part-.25) > .05 {
					t.Errorf("%s, no key: %s has %.3f", kind, to, part)
				}
			}
		}
		for range 50 {
			not := tg.pick(keyed(1), nil)
			if tg.pick(keyed(1), not) == not {
				t.Errorf("%s: picked the one to leave out", kind)
			}
		}
	}
	tg := target(t, Spec{}, "http://10.0.0.1,5", "http://10.0.0.2,1", "http://10.0.0.3,4")
	var order strings.Builder
	for range 20 {
		order.WriteByte(tg.pick(0, nil).addr[7])
	}
	s := order.String()
	if strings.Count(s, "1") != 10 || strings.Count(s, "2") != 2 || strings.Count(s, "3") != 8 || strings.Contains(s, "111") || strings.Contains(s, "333") {
		t.Errorf("turns are %s", s)
	}
	// Large weights without a common divisor are rounded, and nobody starves.
	tg = target(t, Spec{}, "http://10.0.0.1,99991", "http://10.0.0.2,1", "http://10.0.0.3,49999")
	if got := shares(tg, 40000, keyless); math.Abs(got["10.0.0.1"]-.6666) > .001 || got["10.0.0.2"] == 0 {
		t.Errorf("large weights: %v", got)
	}
}

func TestLeastRequest(t *testing.T) {
	tg := target(t, Spec{Balancing: LeastRequest}, "http://10.0.0.1", "http://10.0.0.2", "http://10.0.0.3")
	busy := tg.hosts.Load().hosts[1]
	busy.inFlight.Add(100)
	for range 200 {
		if tg.pick(0, nil) == busy {
			t.Fatal("the busy host was picked")
		}
	}
	// Twice the weight may have twice as many under way.
	tg = target(t, Spec{Balancing: LeastRequest}, "http://10.0.0.1,2", "http://10.0.0.2,1")
	for range 3000 {
		tg.pick(0, nil).enter()
	}
	hosts := tg.hosts.Load().hosts
	if one, two := hosts[0].inFlight.Load(), hosts[1].inFlight.Load(); math.Abs(float64(one)/float64(two)-2) > .1 {
		t.Errorf("%d and %d under way", one, two)
	}
}

// TestConsistency: a host that goes takes only its own keys with it, and gets
// the same back; replicas agree.
func TestConsistency(t *testing.T) {
	const keys = 20000
	for _, tc := range []struct {
		kind  string
		moved float64 // of the keys that should stay, at most
	}{{RingHash, 0}, {Maglev, .05}} {
		var to []string
		for i := range 10 {
			to = append(to, fmt.Sprintf("http://10.0.0.%d", i+1))
		}
		tg := target(t, Spec{Balancing: tc.kind}, to...)
		replica := target(t, Spec{Balancing: tc.kind}, to...)
		before := make([]*host, keys)
		for i := range before {
			before[i] = tg.pick(keyed(i), nil)
			if replica.pick(keyed(i), nil).addr != before[i].addr {
				t.Fatalf("%s: replicas disagree", tc.kind)
			}
		}
		gone := tg.hosts.Load().hosts[3]
		gone.unhealthy.Store(true)
		tg.changed()
		moved, took := 0, map[*host]int{}
		for i := range before {
			switch now := tg.pick(keyed(i), nil); {
			case now == gone:
				t.Fatalf("%s: an unhealthy host was picked", tc.kind)
			case before[i] == gone:
				took[now]++
			case now != before[i]:
				moved++
			}
		}
		if float64(moved) > tc.moved*keys {
			t.Errorf("%s: %d keys of other hosts moved", tc.kind, moved)
		}
		if len(took) < 8 {
			t.Errorf("%s: the keys of a lost host went to %d hosts", tc.kind, len(took))
		}
		gone.unhealthy.Store(false)
		tg.changed()
		for i := range before {
			if tg.pick(keyed(i), nil) != before[i] {
				t.Fatalf("%s: a key did not come back", tc.kind)
			}
		}
	}
	// DNS takes a host away: the ring is another one, and moves nothing either.
	tg := target(t, Spec{Balancing: RingHash}, "http://10.0.0.1", "http://10.0.0.2", "http://10.0.0.3", "http://10.0.0.4")
	hosts := tg.hosts.Load().hosts
	before := make([]*host, keys)
	for i := range before {
		before[i] = tg.pick(keyed(i), nil)
	}
	tg.hosts.Store(&hostSet{hosts: hosts[:3]})
	tg.changed()
	for i, h := range before {
		if now := tg.pick(keyed(i), nil); h != hosts[3] && now != h {
			t.Fatal("a key moved between hosts that stayed")
		}
	}
	if points := len(tg.balance.Load().ring.points); points < 1024 {
		t.Errorf("the ring has %d points", points)
	}
}

// TestPanic: with few usable hosts all are used, else the usable ones.
func TestPanic(t *testing.T) {
	percent := func(n int32) *int32 { return &n }
	for _, tc := range []struct {
		threshold *int32
		sick      int // of 4
		used      int
	}{
		{nil, 0, 4}, {nil, 1, 3}, {nil, 2, 2}, {nil, 3, 4}, {nil, 4, 4},
		{percent(0), 3, 1}, {percent(0), 4, 0},
		{percent(25), 3, 1}, {percent(26), 3, 4}, {percent(100), 1, 4},
	} {
		for _, kind := range []string{RoundRobin, LeastRequest, Random, RingHash, Maglev} {
			tg := target(t, Spec{Balancing: kind, PanicThreshold: tc.threshold}, "http://10.0.0.1", "http://10.0.0.2", "http://10.0.0.3", "http://10.0.0.4")
			for i, h := range tg.hosts.Load().hosts[:tc.sick] {
				h.unhealthy.Store(i%2 == 0)
				h.ejected.Store(i%2 == 1)
			}
			tg.changed()
			used := map[*host]bool{}
			for i := range 500 {
				if h := tg.pick(keyed(i), nil); h != nil {
					used[h] = true
				}
			}
			if len(used) != tc.used {
				t.Errorf("%s, threshold %v, %d of 4 sick: %d used, want %d", kind, tc.threshold, tc.sick, len(used), tc.used)
			}
		}
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	for _, kind := range []string{RoundRobin, LeastRequest, Random, RingHash, Maglev} {
		tg := target(t, Spec{Balancing: kind}, "http://10.0.0.1,3", "http://10.0.0.2,2", "http://10.0.0.3,1")
		id := "1f0c3f6e-7a0e-4d1c-9f5b-3b1a2d4c5e6f"
		tg.pick(1, nil)
		if n := testing.AllocsPerRun(1000, func() { tg.pick(hashKey(id), tg.hosts.Load().hosts[0]) }); n != 0 {
			t.Errorf("%s: %v allocations", kind, n)
		}
	}
}

// TestNoHealthyHost: the client is told that nobody is there, and the log that
// nobody is healthy.
func TestNoHealthyHost(t *testing.T) {
	off := int32(0)
	tg := target(t, Spec{PanicThreshold: &off}, "http://10.0.0.1")
	tg.hosts.Load().hosts[0].unhealthy.Store(true)
	tg.changed()
	d := newDoor(t, tg)
	get(t, d.URL)
	if o := d.outcome(t); o.Details != "no_healthy_upstream" || !strings.Contains(o.err.Error(), "healthy") {
		t.Errorf("%v %s", o.err, o.Details)
	}
}

func TestWeightOfAddresses(t *testing.T) {
	tg := target(t, Spec{}, "http://a.test,3", "http://10.0.0.9,1")
	long := &answer{}
	long.addrs = addrs("10.0.0.1", "10.0.0.2", "10.0.0.3")
	set := tg.apply([]*answer{long, nil})
	var sum, ninth uint64
	for _, h := range set.hosts {
		sum += h.weight.Load()
		if h.addr == "10.0.0.9:80" {
			ninth = h.weight.Load()
		}
	}
	if len(set.hosts) != 4 || ninth*4 != sum {
		t.Errorf("an endpoint of weight 1 has %d of %d", ninth, sum)
	}
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func BenchmarkPick(b *testing.B) {
	for _, kind := range []string{RoundRobin, LeastRequest, Random, RingHash, Maglev} {
		b.Run(kind, func(b *testing.B) {
			spec := Spec{Balancing: kind}
			for i := range 10 {
				spec.Endpoints = append(spec.Endpoints, endpoints(b, fmt.Sprintf("http://10.0.0.%d,%d", i+1, i+1))...)
			}
			p, _ := Build([]Spec{spec}, nil, nil)
			defer p.Close()
			tg := p.Target(0)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				key := uint64(1)
				for pb.Next() {
					key = key*0x9E3779B97F4A7C15 + 1
					tg.pick(key, nil)
				}
			})
		})
	}
}
