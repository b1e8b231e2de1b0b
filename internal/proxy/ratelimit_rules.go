package proxy

import (
	"fmt"
	"hash/fnv"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/pages"
	"postern/internal/route"
	"postern/internal/session"
)

// maxRateLimits bounds the limits of one route.
const maxRateLimits = 4

// maxFill bounds the time in which the bucket of a limit fills, and keeps its
// arithmetic far from the end of 64 bits.
const maxFill = 366 * 24 * time.Hour

// CheckRateLimits tells what is wrong with the limits of one rate_limit key;
// index is the one that is wrong.
func CheckRateLimits(list []RateLimit) (index int, err error) {
	if len(list) > maxRateLimits {
		return maxRateLimits, fmt.Errorf("%d limits are set: set at most %d", len(list), maxRateLimits)
	}
	for i := range list {
		r := &list[i]
		switch {
		case r.Requests == 0:
			return i, fmt.Errorf("requests is missing or 0: write how many requests are allowed per %v, or rate_limit: [] for no limit", r.Per)
		case r.Requests > 1e6 || r.Burst > 1e6:
			return i, fmt.Errorf("requests and burst are at most 1000000: write a smaller number and a shorter per")
		case r.Per < time.Second || r.Per > 31*24*time.Hour || r.Per%time.Second != 0:
			return i, fmt.Errorf("per is %v: write whole seconds, from 1s to 744h", r.Per)
		}
		if fill := float64(r.Per) / float64(r.Requests) * float64(r.Burst); fill > float64(maxFill) {
			return i, fmt.Errorf("a burst of %d at %d per %v takes longer than a year to be allowed again: write a smaller burst", r.Burst, r.Requests, r.Per)
		}
		for j := range r.Name {
			if c := r.Name[j]; c < ' ' || c > '~' || c == '"' || c == '\\' {
				return i, fmt.Errorf("name %q is sent in a header: use letters, digits and -", r.Name)
			}
		}
		for j := range i {
			if list[j].name() == r.name() {
				return i, fmt.Errorf("two limits are called %s: give each a name of its own", r.name())
			}
		}
	}
	return 0, nil
}

func (r *RateLimit) name() string {
	if r.Name != "" {
		return r.Name
	}
	return r.by()
}

func (r *RateLimit) by() string {
	if r.By == "" {
		return "identity"
	}
	return r.By
}

// routeLimit is one limit of a route, compiled.
type routeLimit struct {
	name string // quoted, as the header fields hold it
	by   string
	// id tells limits apart; an unchanged limit of an unchanged route keeps it
	// over changes of the configuration.
	id              uint64
	interval, depth int64 // nanoseconds for one request, and for the whole bucket
}

// rateLimits are the limits of a route and what RateLimit-Policy says of them.
type rateLimits struct {
	list   []routeLimit
	policy string
}

func newRateLimits(rt *route.Route, list []RateLimit) (*rateLimits, error) {
	if len(list) == 0 {
		return nil, nil
	}
	if i, err := CheckRateLimits(list); err != nil {
		return nil, fmt.Errorf("rate_limit[%d]: %w", i, err)
	}
	out := &rateLimits{}
	var policy strings.Builder
	for i := range list {
		r := &list[i]
		burst := r.Burst
		if burst == 0 {
			burst = r.Requests
		}
		h := fnv.New64a()
		fmt.Fprintf(h, "%s\x00%d\x00%d\x00%d\x00%s\x00%s", rt.ID, r.Requests, r.Per, burst, r.by(), r.name())
		l := routeLimit{name: `"` + r.name() + `"`, by: r.by(), id: h.Sum64(), interval: int64(r.Per) / int64(r.Requests)}
		l.depth = l.interval * int64(burst)
		out.list = append(out.list, l)
		if i > 0 {
			policy.WriteString(", ")
		}
		fmt.Fprintf(&policy, "%s;q=%d;w=%d", l.name, r.Requests, int64(r.Per/time.Second))
		if burst != r.Requests {
			fmt.Fprintf(&policy, ";postern-burst=%d", burst)
		}
	}
	out.policy = policy.String()
	return out, nil
}

// stage says when a limit is asked.
type stage uint8

const (
	// beforeDecision: limits by address, so that they also spare the decision.
	beforeDecision stage = iota
	// admitted: limits by identity and by route.
	admitted
	// turnedAway: limits by identity count a refusal for the address that asked;
	// the route's own count is for those who may use it.
	turnedAway
)

// standing is what one limit said of this request.
type standing struct {
	limit   *routeLimit
	table   *ledger
	key     uint64
	full    int64 // when its bucket is full again
	refused bool
}

// standings of a request, in the order of asking.
type standings struct {
	list [maxRateLimits]standing
	n    int
	now  int64
	wait int64 // nanoseconds until a refused request may come again
}

// count asks the limits of a stage. Of a request that one of them refuses
// nothing stays counted.
func (s *standings) count(l *Limiter, limits *rateLimits, at stage, address netip.Addr, who *session.Caller) bool {
	s.now = l.now()
	for i := range limits.list {
		limit := &limits.list[i]
		var who = who
		switch {
		case (limit.by == "ip") != (at == beforeDecision):
			continue
		case at == turnedAway && limit.by == "route":
			continue
		case at != admitted:
			who = nil
		}
		subject := subjectFor(limit.by, address, who)
		t := l.ledger(subject.kind, limit.depth)
		key := l.key(limit.id, &subject)
		full, wait, ok := t.charge(key, s.now, limit.interval, limit.depth)
		s.list[s.n] = standing{limit, t, key, full, !ok}
		s.n++
		if !ok {
			s.wait = wait
			for j := range s.n - 1 {
				e := &s.list[j]
				e.table.refund(e.key, e.limit.interval)
				e.full -= e.limit.interval
			}
			return false
		}
	}
	return true
}

// subjectFor is who a request counts for: a person by provider and subject (an
// administrator who impersonates somebody for themselves), a service account
// by its id, and everybody else by address, of which IPv6 hands whole /64
// networks to one client.
func subjectFor(by string, address netip.Addr, who *session.Caller) subject {
	switch {
	case by == "route":
		return subject{kind: ofPeople}
	case by == "ip" || who.Anonymous():
	case who.ServiceAccount != nil:
		return subject{kind: ofPeople, is: 's', name: who.ServiceAccount.ID}
	default:
		s := who.Session
		if who.ImpersonatedBy != nil {
			s = who.ImpersonatedBy
		}
		if s.UserID != "" {
			return subject{kind: ofPeople, is: 'p', name: s.UserID} // holds the provider (session.User)
		}
	}
	s := subject{kind: ofAddresses, address: address.As16()}
	if address.Is6() && !address.Is4In6() {
		clear(s.address[8:])
	}
	return s
}

// appendTo appends the fields of draft-ietf-httpapi-ratelimit-headers-10.
func (s *standings) appendTo(fields []exchange.Field, limits *rateLimits) []exchange.Field {
	if limits == nil || s.n == 0 {
		return fields
	}
	var buffer [160]byte
	b := buffer[:0]
	for i := range s.n {
		e := &s.list[i]
		// What is left of the bucket, and when there is more: the next unit if
		// nothing is left, else all of it.
		left := max(0, (s.now+e.limit.depth-e.full)/e.limit.interval)
		wait := e.full - s.now
		if left == 0 || e.refused {
			left, wait = 0, e.full+e.limit.interval-s.now-e.limit.depth
		}
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, e.limit.name...)
		b = append(b, ";r="...)
		b = strconv.AppendInt(b, left, 10)
		b = append(b, ";t="...)
		b = strconv.AppendInt(b, wholeSeconds(wait), 10)
	}
	return append(fields,
		exchange.Field{Name: "RateLimit-Policy", Value: limits.policy},
		exchange.Field{Name: "RateLimit", Value: string(b)})
}

// wholeSeconds rounds up.
func wholeSeconds(nanoseconds int64) int64 {
	return max(0, (nanoseconds+int64(time.Second)-1)/int64(time.Second))
}

// withinLimits counts the request, and answers 429 if it is one too many.
func (c *call) withinLimits(at stage) bool {
	limits := c.target.limits
	if limits == nil || c.gen.Limiter == nil ||
		c.standings.count(c.gen.Limiter, limits, at, c.view.peer.ClientIP, c.decision.Caller) {
		return true
	}
	c.gen.Metrics.ObserveRateLimited(c.match.Route.ID)
	c.fail(pages.ErrorPage{
		Kind: pages.TooMany, Source: pages.FromProxy, GRPCStatus: grpcResourceExhausted,
		RetryAfter: time.Duration(wholeSeconds(c.standings.wait)) * time.Second,
	}, "rate_limited")
	return false
}

// grpcResourceExhausted is what gRPC calls a client over its limit; such
// clients retry UNAVAILABLE at once, which 429 would otherwise become.
const grpcResourceExhausted = 8

// showLimits puts the standing of the request into an answer of ours.
func (c *call) showLimits(h http.Header) {
	if c.target == nil || c.standings.n == 0 {
		return
	}
	var room [2]exchange.Field
	for _, f := range c.standings.appendTo(room[:0], c.target.limits) {
		h.Set(f.Name, f.Value)
	}
}

// stageOf is the stage that follows a decision; counted is false where nobody
// was judged.
func stageOf(o authz.Outcome) (at stage, counted bool) {
	switch o {
	case authz.Allow:
		return admitted, true
	case authz.Error:
		return 0, false // not the client's doing
	}
	return turnedAway, true
}
