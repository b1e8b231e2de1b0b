package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// DNS is how the names of upstreams are resolved (configuration.md §2.15). The
// zero value asks the system's resolver for V4_PREFERRED.
type DNS struct {
	// Family is AUTO, V4_ONLY, V6_ONLY, V4_PREFERRED or ALL.
	Family string
	// Refresh and FailureRefresh are how long an answer and a failure are
	// used; 0 is the record's TTL (10 s where the system does not tell it) and
	// 1 s.
	Refresh, FailureRefresh time.Duration
	// QueryTimeout, in whole seconds, and Tries are of one query; 0 is 5 s and 4.
	QueryTimeout time.Duration
	Tries        uint32
	// UDPMaxQueries is how many queries leave from one UDP port; 0 any number.
	UDPMaxQueries uint32
	// TCP asks over TCP only.
	TCP bool
	// Resolvers are udp://IP:port or tcp://IP:port; none: the system's.
	Resolvers []string
}

const (
	systemRefresh        = 10 * time.Second // the system's resolver tells no TTL
	failureRefresh       = time.Second
	defaultUDPMaxQueries = 100
	minTTL, maxTTL       = time.Second, time.Hour
	// forgetAfter is how long an answer stays that nobody asks for.
	forgetAfter = 10 * time.Minute
)

// errNoHosts: an endpoint has no address.
var errNoHosts = errors.New("no address")

// errNoName: DNS says that there is no such name, or no address of the family.
var errNoName = errors.New("no such name")

// resolver answers for all targets that resolve in the same way. Lookups run
// only when somebody asks, one at a time for each name.
type resolver struct {
	key    string
	dns    DNS
	client *dnsClient // nil: the system's

	mu    sync.Mutex
	names map[string]*lookup
	swept time.Time
}

// lookup is one question under way, or answered once done is closed.
type lookup struct {
	done   chan struct{}
	answer *answer
	none   int // answers in a row that said that there is no such name
}

// answer is what a name resolves to.
type answer struct {
	addrs []netip.Addr
	// due is when to ask again, late is until when it may be used meanwhile.
	made, due, late time.Time
	// err is why there is no answer; addrs are the last good ones then.
	err error
	// gone: the name does not exist any more, which was asked twice.
	gone bool
}

func (d DNS) key() string { return fmt.Sprintf("%+v", d) }

func newResolver(d DNS) (*resolver, error) {
	r := &resolver{key: d.key(), dns: d, names: map[string]*lookup{}}
	otherPorts := d.UDPMaxQueries != 0 && d.UDPMaxQueries != defaultUDPMaxQueries
	if len(d.Resolvers) > 0 || d.TCP || d.Tries > 0 || d.QueryTimeout > 0 || otherPorts {
		var err error
		if r.client, err = newDNSClient(d); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// start gives the answer for a name, or the question under way if none is
// fresh and made after notBefore. It does not wait.
func (r *resolver) start(name string, notBefore time.Time) *lookup {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	last := r.names[name]
	if last != nil {
		select {
		case <-last.done:
			if now.Before(last.answer.due) && !last.answer.made.Before(notBefore) {
				return last
			}
		default:
			return last
		}
	}
	if now.After(r.swept.Add(forgetAfter)) {
		r.sweep(now)
	}
	l := &lookup{done: make(chan struct{})}
	r.names[name] = l
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 4*connectTimeout)
		defer cancel()
		addrs, ttl, err := r.addresses(ctx, name)
		l.finish(r, last, addrs, ttl, err)
		close(l.done)
	}()
	return l
}

// sweep forgets names that nobody asked for of late.
func (r *resolver) sweep(now time.Time) {
	r.swept = now
	for name, l := range r.names {
		select {
		case <-l.done:
			if now.After(l.answer.due.Add(forgetAfter)) {
				delete(r.names, name)
			}
		default:
		}
	}
}

// finish makes the answer out of what came and what was before.
func (l *lookup) finish(r *resolver, last *lookup, addrs []netip.Addr, ttl time.Duration, err error) {
	now := time.Now()
	a := &answer{addrs: sortAddrs(addrs), made: now, err: err}
	l.answer = a
	life := ttl
	if r.dns.Refresh > 0 {
		life = r.dns.Refresh
	}
	if err != nil {
		life = failureRefresh
		if r.dns.FailureRefresh > 0 {
			life = r.dns.FailureRefresh
		}
		var before *answer
		if last != nil {
			before = last.answer
		}
		if errors.Is(err, errNoName) {
			// Believed when said twice: resolvers that start say so too.
			if l.none = 1; last != nil {
				l.none += last.none
			}
			a.gone = l.none > 1
		}
		if before != nil && !a.gone {
			a.addrs = before.addrs
		}
	}
	a.due = now.Add(life)
	a.late = a.due.Add(staleFor)
}

// addresses asks for the families that are wanted.
func (r *resolver) addresses(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	switch r.dns.Family {
	case "V4_ONLY":
		return r.ask(ctx, name, false)
	case "V6_ONLY":
		return r.ask(ctx, name, true)
	case "ALL":
		type reply struct {
			addrs []netip.Addr
			ttl   time.Duration
			err   error
		}
		other := make(chan reply, 1)
		go func() {
			addrs, ttl, err := r.ask(ctx, name, true)
			other <- reply{addrs, ttl, err}
		}()
		v4, ttl, err := r.ask(ctx, name, false)
		v6 := <-other
		switch {
		case err != nil && v6.err != nil:
			if errors.Is(err, errNoName) {
				err = v6.err
			}
			return nil, 0, err
		case err != nil:
			return v6.addrs, v6.ttl, nil
		case v6.err != nil:
			return v4, ttl, nil
		}
		return append(v4, v6.addrs...), min(ttl, v6.ttl), nil
	}
	first := r.dns.Family == "AUTO" // else V4_PREFERRED
	addrs, ttl, err := r.ask(ctx, name, first)
	if err == nil {
		return addrs, ttl, nil
	}
	addrs, ttl, otherErr := r.ask(ctx, name, !first)
	if otherErr == nil {
		return addrs, ttl, nil
	}
	if errors.Is(err, errNoName) {
		err = otherErr
	}
	return nil, 0, err
}

// ask gives the addresses of one family and how long they are good.
func (r *resolver) ask(ctx context.Context, name string, v6 bool) ([]netip.Addr, time.Duration, error) {
	if r.client != nil {
		addrs, ttl, err := r.client.lookup(ctx, name, v6)
		return addrs, min(max(ttl, minTTL), maxTTL), err
	}
	network := "ip4"
	if v6 {
		network = "ip6"
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, name)
	var dns *net.DNSError
	var addr *net.AddrError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound, errors.As(err, &addr):
		err = fmt.Errorf("%w: %w", errNoName, err)
	case err == nil && len(addrs) == 0:
		err = errNoName
	}
	return addrs, systemRefresh, err
}

// ParseResolver reads udp://IP:port or tcp://IP:port.
func ParseResolver(s string) (network string, addr netip.AddrPort, err error) {
	network, rest, _ := strings.Cut(s, "://")
	if addr, err = netip.ParseAddrPort(rest); err != nil || network != "udp" && network != "tcp" || addr.Port() == 0 {
		return "", netip.AddrPort{}, fmt.Errorf("dns_resolvers: %s is not a resolver; write udp://IP:port or tcp://IP:port", s)
	}
	return network, addr, nil
}
