package proxy

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestClientAddress(t *testing.T) {
	nets := func(s ...string) (p []netip.Prefix) {
		for _, n := range s {
			p = append(p, netip.MustParsePrefix(n))
		}
		return p
	}
	for _, c := range []struct {
		name    string
		direct  string
		hops    int
		proxies []netip.Prefix
		xff     []string
		want    string // "" refused
		trusted bool
	}{
		{"no hops: the header proves nothing", "203.0.113.9", 0, nil, []string{"10.0.0.1"}, "203.0.113.9", false},
		{"no hops: rubbish is not looked at", "203.0.113.9", 0, nil, []string{"rubbish"}, "203.0.113.9", false},
		{"one hop: the rightmost", "10.0.0.1", 1, nil, []string{"6.6.6.6, 203.0.113.9"}, "203.0.113.9", true},
		{"two hops", "10.0.0.1", 2, nil, []string{"6.6.6.6, 203.0.113.9, 10.0.0.2"}, "203.0.113.9", true},
		{"several lines are one list", "10.0.0.1", 2, nil, []string{"6.6.6.6, 203.0.113.9", "10.0.0.2"}, "203.0.113.9", true},
		{"fewer hops than promised", "10.0.0.1", 2, nil, []string{"203.0.113.9"}, "10.0.0.1", true},
		{"no header", "10.0.0.1", 1, nil, nil, "10.0.0.1", true},
		{"with port", "10.0.0.1", 1, nil, []string{"203.0.113.9:4711"}, "203.0.113.9", true},
		{"IPv6", "10.0.0.1", 1, nil, []string{"2001:db8::1"}, "2001:db8::1", true},
		{"IPv6 in brackets with port", "10.0.0.1", 1, nil, []string{"[2001:db8::1]:80"}, "2001:db8::1", true},
		{"mapped IPv4", "10.0.0.1", 1, nil, []string{"::ffff:203.0.113.9"}, "203.0.113.9", true},
		{"unlisted peer", "203.0.113.9", 1, nets("10.0.0.0/8"), []string{"6.6.6.6"}, "203.0.113.9", false},
		{"listed peer", "10.0.0.1", 1, nets("10.0.0.0/8"), []string{"6.6.6.6, 203.0.113.9"}, "203.0.113.9", true},
		{"walk stops at the first unlisted hop", "10.0.0.1", 3, nets("10.0.0.0/8"), []string{"6.6.6.6, 203.0.113.9, 10.0.0.2"}, "203.0.113.9", true},
		{"all hops listed", "10.0.0.1", 2, nets("10.0.0.0/8"), []string{"10.9.9.9, 10.0.0.2"}, "10.9.9.9", true},
		{"no IP where one is relied upon", "10.0.0.1", 1, nil, []string{"unknown"}, "", true},
		{"empty hop", "10.0.0.1", 1, nil, []string{"1.1.1.1,"}, "", true},
		{"zone", "10.0.0.1", 1, nil, []string{"fe80::1%eth0"}, "", true},
		{"injection", "10.0.0.1", 1, nil, []string{"1.1.1.1 or 1=1"}, "", true},
		{"rubbish beyond the trusted hops", "10.0.0.1", 1, nil, []string{"rubbish, 203.0.113.9"}, "203.0.113.9", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &Settings{TrustedHops: c.hops, TrustedProxies: c.proxies}
			v := &request{r: &http.Request{Header: http.Header{"X-Forwarded-For": c.xff}}}
			v.peer.Direct = netip.AddrPortFrom(netip.MustParseAddr(c.direct), 1)
			trusted, bad := s.clientAddress(v)
			if c.want == "" {
				if bad == nil || v.peer.ClientIP.IsValid() {
					t.Fatalf("accepted as %v", v.peer.ClientIP)
				}
				return
			}
			if bad != nil || v.peer.ClientIP.String() != c.want || trusted != c.trusted {
				t.Errorf("got %v, trusted %v, %v", v.peer.ClientIP, trusted, bad)
			}
		})
	}
}

func TestRequestIDs(t *testing.T) {
	id := func(direct, client string, sent ...string) string {
		v := &request{r: &http.Request{Header: http.Header{"X-Request-Id": sent}}}
		v.peer.Direct = netip.AddrPortFrom(netip.MustParseAddr(direct), 1)
		v.peer.ClientIP = netip.MustParseAddr(client)
		return (&Settings{}).requestID(v)
	}
	if got := id("10.0.0.1", "10.0.0.2", "my-id"); got != "my-id" {
		t.Errorf("internal peer: %q", got)
	}
	for _, c := range [][]string{{"203.0.113.9", "203.0.113.9", "my-id"}, {"10.0.0.1", "203.0.113.9", "my-id"}, {"203.0.113.9", "10.0.0.1", "my-id"},
		{"10.0.0.1", "10.0.0.1"}, {"10.0.0.1", "10.0.0.1", "a", "b"}, {"10.0.0.1", "10.0.0.1", "a b"}, {"10.0.0.1", "10.0.0.1", strings.Repeat("a", 129)}} {
		if got := id(c[0], c[1], c[2:]...); len(got) != 36 || strings.Count(got, "-") != 4 {
			t.Errorf("%q: %q is not a new UUID", c, got)
		}
	}
}
