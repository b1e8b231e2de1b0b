package proxy

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/route"
	"postern/internal/session"
)

// bucket is the obvious limiter: tokens that drip in, one bucket per key.
type bucket struct {
	tokens float64
	last   int64
}

func (b *bucket) take(now, interval, depth int64) bool {
	full := float64(depth) / float64(interval)
	b.tokens = min(full, b.tokens+float64(now-b.last)/float64(interval))
	b.last = now
	if b.tokens < 1-1e-9 {
		return false
	}
	b.tokens--
	return true
}

// A table that is not crowded counts each key as a bucket of its own.
func TestLedgerCountsLikeTokenBuckets(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	l := newLedger(1 << 10)
	type limit struct{ interval, depth int64 }
	want := map[uint64]*bucket{}
	of := map[uint64]limit{}
	now := int64(1)
	for range 200000 {
		now += r.Int64N(int64(time.Millisecond))
		key := uint64(r.IntN(60) + 1) // of 60 keys each has a set of its own
		if of[key].interval == 0 {
			interval := int64(1+r.IntN(40)) * int64(time.Millisecond)
			of[key] = limit{interval, interval * int64(1+r.IntN(20))}
			want[key] = &bucket{tokens: float64(of[key].depth / interval), last: now}
		}
		k := of[key]
		full, wait, ok := l.charge(key, now, k.interval, k.depth)
		if expected := want[key].take(now, k.interval, k.depth); ok != expected {
			t.Fatalf("key %d at %d: %v, want %v (%+v)", key, now, ok, expected, *want[key])
		}
		if ok != (wait == 0) || full < now {
			t.Fatalf("ok %v wait %d full %d now %d", ok, wait, full, now)
		}
		if ok && r.IntN(10) == 0 {
			l.refund(key, k.interval)
			want[key].tokens++
		}
	}
	if l.crowded.Load() != 0 {
		t.Error("an uncrowded table pushed somebody out")
	}
}

// However many keys come, a table admits no more than its slots would: a
// crowd neither takes memory nor is rid of the limit, and who is at the limit
// stays there.
func TestCrowdedLedgerGrantsNoFlood(t *testing.T) {
	const sets, interval, burst = 4, int64(time.Second), 5
	l := newLedger(sets)
	now, admitted := int64(1), 0
	for range burst {
		if _, _, ok := l.charge(77, now, interval, burst*interval); !ok {
			t.Fatal("the victim was refused early")
		}
	}
	for i := range 100000 {
		if _, _, ok := l.charge(uint64(1000+i), now, interval, burst*interval); ok {
			admitted++
		}
	}
	if most := sets*setSize*burst - burst; admitted > most {
		t.Errorf("100,000 strangers were admitted %d times at one moment, the table holds %d", admitted, most)
	}
	if _, wait, ok := l.charge(77, now, interval, burst*interval); ok || wait <= 0 {
		t.Error("strangers took away the count of somebody at the limit")
	}
	// And no more than the rate of all slots as time passes.
	for range 20 {
		now += interval
		n := 0
		for i := range 5000 {
			if _, _, ok := l.charge(uint64(200000+i), now, interval, burst*interval); ok {
				n++
			}
		}
		if n > sets*setSize {
			t.Errorf("%d admitted in one interval, the table has %d slots", n, sets*setSize)
		}
	}
	if l.crowded.Load() == 0 {
		t.Error("a crowd is not told")
	}
	// The crowd gone, a newcomer has the whole bucket.
	now += 2 * burst * interval
	for i := range burst {
		if _, _, ok := l.charge(5, now, interval, burst*interval); !ok {
			t.Fatalf("refused at request %d on a quiet table", i)
		}
	}
}

func TestCountersOfStrangersStandApart(t *testing.T) {
	l := NewLimiter()
	if a, b := l.ledger(ofPeople, 1), l.ledger(ofAddresses, 1); a == b {
		t.Error("people and addresses share a table")
	}
	if a, b := l.ledger(ofPeople, int64(time.Second)), l.ledger(ofPeople, int64(time.Hour)); a == b {
		t.Error("limits of seconds and of hours share a table")
	}
	if l.ledger(ofPeople, 5) != l.ledger(ofPeople, 6) {
		t.Error("a table was made twice")
	}
	seen := map[uint64]string{}
	for _, s := range []subject{
		{kind: ofPeople}, {kind: ofPeople, is: 'p', name: "a"}, {kind: ofPeople, is: 's', name: "a"},
		subjectFor("ip", netip.MustParseAddr("192.0.2.1"), nil), subjectFor("ip", netip.MustParseAddr("2001:db8::1"), nil),
	} {
		for limit := range uint64(2) {
			k := l.key(limit, &s)
			if other, dup := seen[k]; dup {
				t.Errorf("%+v shares a counter with %s", s, other)
			}
			seen[k] = fmt.Sprint(s)
		}
	}
	if subjectFor("ip", netip.MustParseAddr("2001:db8::1"), nil) != subjectFor("ip", netip.MustParseAddr("2001:db8::ffff:2"), nil) {
		t.Error("a /64 has many counters")
	}
	if subjectFor("ip", netip.MustParseAddr("2001:db8::1"), nil) == subjectFor("ip", netip.MustParseAddr("2001:db8:0:1::1"), nil) {
		t.Error("two /64 share a counter")
	}
	if subjectFor("ip", netip.MustParseAddr("192.0.2.1"), nil) == subjectFor("ip", netip.MustParseAddr("192.0.2.2"), nil) {
		t.Error("two addresses of IPv4 share a counter")
	}
	ada := &session.Caller{Session: &session.Session{UserID: "ada"}}
	if s := subjectFor("identity", netip.Addr{}, &session.Caller{Session: &session.Session{UserID: "eve"}, ImpersonatedBy: ada.Session}); s.name != "ada" {
		t.Errorf("an impersonation counts for %q", s.name)
	}
	if subjectFor("identity", netip.Addr{}, &session.Caller{ServiceAccount: &session.ServiceAccount{ID: "ada"}}) == subjectFor("identity", netip.Addr{}, ada) {
		t.Error("a person and a service account share a counter")
	}
}

func limitsOf(t testing.TB, list ...RateLimit) *rateLimits {
	t.Helper()
	rt, err := route.New(route.Spec{From: "https://app.test", To: []string{"http://u"}})
	if err != nil {
		t.Fatal(err)
	}
	limits, err := newRateLimits(rt, list)
	if err != nil {
		t.Fatal(err)
	}
	return limits
}

// Asking allocates nothing.
func TestCountingAllocatesNothing(t *testing.T) {
	limits := limitsOf(t, RateLimit{Requests: 1000, Per: time.Second}, RateLimit{Requests: 5, Per: time.Second, By: "ip"}, RateLimit{Requests: 1000, Per: time.Hour, By: "route"})
	l := NewLimiter()
	ada := &session.Caller{Session: &session.Session{UserID: "ada"}}
	address := netip.MustParseAddr("2001:db8::1")
	if n := testing.AllocsPerRun(1000, func() {
		var s standings
		_ = s.count(l, limits, beforeDecision, address, nil) && s.count(l, limits, admitted, address, ada)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRateLimit(b *testing.B) {
	limits := limitsOf(b, RateLimit{Requests: 1e6, Per: time.Second})
	l := NewLimiter()
	address := netip.MustParseAddr("192.0.2.1")
	b.Run("one", func(b *testing.B) {
		ada := &session.Caller{Session: &session.Session{UserID: "local/ada"}}
		for b.Loop() {
			var s standings
			s.count(l, limits, admitted, address, ada)
		}
	})
	b.Run("many", func(b *testing.B) {
		people := make([]*session.Caller, 50000)
		for i := range people {
			people[i] = &session.Caller{Session: &session.Session{UserID: "local/" + strconv.Itoa(i)}}
		}
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.IntN(len(people)); pb.Next(); i++ {
				var s standings
				s.count(l, limits, admitted, address, people[i%len(people)])
			}
		})
	})
}

func TestRateLimitsAreChecked(t *testing.T) {
	good := RateLimit{Requests: 1, Per: time.Minute}
	for _, bad := range [][]RateLimit{
		{{Per: time.Minute}}, {{Requests: 1}}, {{Requests: 1, Per: 1500 * time.Millisecond}}, {{Requests: 1, Per: 1000 * time.Hour}},
		{{Requests: 2e6, Per: time.Minute}}, {{Requests: 1, Per: time.Minute, Burst: 2e6}}, {good, good},
		{{Requests: 1, Per: 744 * time.Hour, Burst: 1e6}},
		{{Requests: 1, Per: time.Minute, Name: "a\"b"}}, {{Requests: 1, Per: time.Minute, Name: "ü"}},
		{good, {Name: "2", Requests: 1, Per: time.Minute}, {Name: "3", Requests: 1, Per: time.Minute}, {Name: "4", Requests: 1, Per: time.Minute}, {Name: "5", Requests: 1, Per: time.Minute}},
	} {
		if _, err := CheckRateLimits(bad); err == nil {
			t.Errorf("%+v accepted", bad)
		}
	}
	if _, err := CheckRateLimits([]RateLimit{good, {Requests: 1, Per: time.Minute, By: "ip"}}); err != nil {
		t.Error(err)
	}
	if limits, err := newRateLimits(nil, nil); limits != nil || err != nil {
		t.Error("no limits are some")
	}
}

// limited is a door with rate limits, at which X-Who says who is asking.
func limited(t *testing.T, limiter *Limiter, list ...RateLimit) *running {
	return testDoor{
		routes: []testRoute{{spec: route.Spec{ID: "app", From: "https://app.test"}, keys: RouteConfig{Resolved: Resolved{RateLimit: list}}}},
		decide: func(r *authz.Request) authz.Decision {
			d := allowAll(r)
			switch who := r.View.Header("X-Who"); who {
			case "":
			case "denied":
				d.Outcome, d.Status = authz.Deny, 403
			case "error":
				d.Outcome, d.Status = authz.Error, 503
			default:
				d.Caller = &session.Caller{Session: &session.Session{UserID: who}}
			}
			return d
		},
		endpoints: NewEndpoints(Endpoint{Path: "/.pomerium/x", Handler: func(w http.ResponseWriter, _ *http.Request, _ *session.Caller) { io.WriteString(w, "own") }}),
		change:    func(g *Generation) { g.Limiter = limiter },
	}.start(t)
}

func (run *running) statuses(n int, headers ...string) string {
	var out []string
	for range n {
		out = append(out, strconv.Itoa(run.get("https://app.test/", headers...).StatusCode))
	}
	return strings.Join(out, " ")
}

func wantStatuses(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func TestLimitByIdentity(t *testing.T) {
	limiter := NewLimiter()
	three := RateLimit{Requests: 3, Per: time.Hour}
	run := limited(t, limiter, three)
	wantStatuses(t, "ada", run.statuses(4, "X-Who", "ada"), "200 200 200 429")
	wantStatuses(t, "eve, of the same address", run.statuses(1, "X-Who", "eve"), "200")
	wantStatuses(t, "refusals count for the address", run.statuses(2, "X-Who", "denied"), "403 403")
	wantStatuses(t, "errors of ours count for nobody", run.statuses(3, "X-Who", "error"), "503 503 503")
	wantStatuses(t, "strangers by address", run.statuses(2), "200 429")
	wantStatuses(t, "and refusals then", run.statuses(1, "X-Who", "denied"), "429")
	wantStatuses(t, "eve is not her address", run.statuses(1, "X-Who", "eve"), "200")
	for _, path := range []string{"/.pomerium/x", "/ping"} {
		if a := run.get("https://app.test"+path, "X-Who", "ada"); a.StatusCode != 200 {
			t.Errorf("own page %s: %d", path, a.StatusCode)
		}
	}
	before := run.echo.count()
	run.get("https://app.test/", "X-Who", "ada")
	if run.echo.count() != before {
		t.Error("a request over the limit reached the application")
	}
	// Another generation with the same limit goes on counting; a changed limit
	// starts anew.
	wantStatuses(t, "after a change elsewhere", limited(t, limiter, three).statuses(1, "X-Who", "ada"), "429")
	wantStatuses(t, "after a change of the limit", limited(t, limiter, RateLimit{Requests: 4, Per: time.Hour}).statuses(5, "X-Who", "ada"), "200 200 200 200 429")
}

func TestLimitByAddressSparesTheDecision(t *testing.T) {
	run := limited(t, NewLimiter(), RateLimit{Requests: 2, Per: time.Hour, By: "ip"})
	wantStatuses(t, "people of one address", run.statuses(1, "X-Who", "ada")+" "+run.statuses(2, "X-Who", "eve"), "200 200 429")
	run.mu.Lock()
	defer run.mu.Unlock()
	if len(run.decisions) != 2 {
		t.Errorf("%d decisions were made", len(run.decisions))
	}
}

// Only those let in use up what a route admits, and a request that one limit
// refuses is not counted by another.
func TestLimitByRoute(t *testing.T) {
	run := limited(t, NewLimiter(),
		RateLimit{Name: "person", Requests: 2, Per: time.Hour},
		RateLimit{Name: "all", Requests: 3, Per: time.Hour, By: "route"})
	wantStatuses(t, "refused", run.statuses(4, "X-Who", "denied"), "403 403 429 429")
	wantStatuses(t, "ada", run.statuses(4, "X-Who", "ada"), "200 200 429 429")
	wantStatuses(t, "eve gets what is left", run.statuses(2, "X-Who", "eve"), "200 429")
	a := run.get("https://app.test/", "X-Who", "bob")
	if got, want := a.Header.Get("RateLimit"), `"person";r=2;t=0, "all";r=0;t=1200`; a.StatusCode != 429 || !sameRateLimit(got, want) {
		t.Errorf("%d %s, want %s", a.StatusCode, got, want)
	}
}

// sameRateLimit allows the clock to have moved by some seconds.
func sameRateLimit(got, want string) bool {
	g, w := strings.FieldsFunc(got, isDelimiter), strings.FieldsFunc(want, isDelimiter)
	if len(g) != len(w) {
		return false
	}
	for i := range g {
		a, errA := strconv.Atoi(strings.TrimPrefix(g[i], "t="))
		b, errB := strconv.Atoi(strings.TrimPrefix(w[i], "t="))
		if g[i] != w[i] && (errA != nil || errB != nil || b-a > 5 || a > b) {
			return false
		}
	}
	return true
}

func isDelimiter(r rune) bool { return r == ';' || r == ',' || r == ' ' }

func TestRateLimitFields(t *testing.T) {
	run := limited(t, NewLimiter(), RateLimit{Requests: 2, Per: time.Minute, Burst: 3}, RateLimit{Requests: 100, Per: time.Hour, By: "route"})
	const policy = `"identity";q=2;w=60;postern-burst=3, "route";q=100;w=3600`
	for _, want := range []string{
		`"identity";r=2;t=30, "route";r=99;t=36`,
		`"identity";r=1;t=60, "route";r=98;t=72`,
		`"identity";r=0;t=30, "route";r=97;t=108`,
		`"identity";r=0;t=30`,
	} {
		a := run.get("https://app.test/")
		if got := a.Header.Get("RateLimit"); !sameRateLimit(got, want) || a.Header.Get("RateLimit-Policy") != policy {
			t.Errorf("%d: %s | %s, want %s | %s", a.StatusCode, got, a.Header.Get("RateLimit-Policy"), want, policy)
		}
		if retry := a.Header.Get("Retry-After"); (a.StatusCode == 429) != (retry != "") {
			t.Errorf("%d with Retry-After %q", a.StatusCode, retry)
		}
	}
	if e := run.entry(4); e.ResponseCode != 429 || e.ResponseCodeDetails != "rate_limited" {
		t.Errorf("logged as %d %s", e.ResponseCode, e.ResponseCodeDetails)
	}
	for _, c := range []struct{ name, value, kind, body string }{
		{"Accept", "text/html", "text/html", "Too many requests"},
		{"Accept", "application/json", "application/json", `"status":429`},
	} {
		a := run.get("https://app.test/", c.name, c.value)
		if a.StatusCode != 429 || !strings.HasPrefix(a.Header.Get("Content-Type"), c.kind) || !strings.Contains(a.body, c.body) {
			t.Errorf("%s: %d %s %.200s", c.value, a.StatusCode, a.Header.Get("Content-Type"), a.body)
		}
	}
	a := run.do(run.client, "POST", "https://app.test/s/M", "", "Content-Type", "application/grpc", "Te", "trailers")
	if a.Header.Get("Grpc-Status") != "8" || a.body != "" || a.Header.Get("Grpc-Message") == "" || a.Header.Get("Retry-After") == "" {
		t.Errorf("gRPC: %v %q", a.Header, a.body)
	}
}

// Many at once are admitted as often as the limit says.
func TestLimitUnderConcurrency(t *testing.T) {
	limits := limitsOf(t, RateLimit{Requests: 1000, Per: time.Hour, Name: "a"}, RateLimit{Requests: 500, Per: time.Hour, By: "route"})
	l := NewLimiter()
	ada := &session.Caller{Session: &session.Session{UserID: "ada"}}
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for range 8 {
		wg.Go(func() {
			n := 0
			for range 500 {
				var s standings
				if s.count(l, limits, admitted, netip.Addr{}, ada) {
					n++
				}
			}
			mu.Lock()
			total += n
			mu.Unlock()
		})
	}
	wg.Wait()
	if total < 500 || total > 510 { // it drips a little
		t.Errorf("%d admitted, want 500", total)
	}
	// What the route refused did not count for Ada: half of hers is left.
	var s standings
	s.count(l, limitsOf(t, RateLimit{Requests: 1000, Per: time.Hour, Name: "a"}), admitted, netip.Addr{}, ada)
	var room [2]exchange.Field
	if f := s.appendTo(room[:0], limits); len(f) != 2 || !strings.HasPrefix(f[1].Value, `"a";r=49`) {
		t.Errorf("%v", f)
	}
}
