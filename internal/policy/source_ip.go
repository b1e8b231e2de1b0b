package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/gaissmai/bart"
	"go.yaml.in/yaml/v3"
)

var sourceIP = &Criterion{
	Name:    "source_ip",
	Doc:     "True if the client's address is one of these or in one of these ranges. X-Forwarded-For is never read here.",
	Value:   "an IP address or CIDR range, or a list of them",
	Matcher: addresses,
	Example: `
policy:
  - allow: {and: [source_ip: [192.0.2.0/24, "2001:db8::/32"]]}
cases:
  - {name: within, request: {ip: 192.0.2.200}, expect: allow}
  - {name: within the other, request: {ip: "2001:db8::1"}, expect: allow}
  - {name: outside, request: {ip: 198.51.100.1}, expect: deny}
`,
	Compile: compileSourceIP,
}

func compileSourceIP(s *Scope, n *yaml.Node) test {
	list, nodes, ok := s.texts(n, "", "source_ip")
	table := new(bart.Lite)
	for i, t := range list {
		p, err := parseRange(t)
		if err != nil {
			sub := ""
			if nodes[i] != n {
				sub = fmt.Sprintf("[%d]", indexOf(n, nodes[i]))
			}
			s.Errorf(nodes[i], sub, "%s is not an IP address or CIDR range; write for example 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32", quote(t))
			ok = false
			continue
		}
		table.Insert(p)
	}
	if !ok {
		return nil
	}
	if len(list) == 0 {
		s.Warnf(n, "", "an empty list of addresses never matches")
	}
	good, bad := ReasonSourceIPOK.set(), ReasonSourceIPUnauthorized.set()
	return func(in *Input) verdict {
		return pass(inTable(table, in.ClientIP), good, bad)
	}
}

func indexOf(list, item *yaml.Node) int {
	for i, n := range list.Content {
		if n == item {
			return i
		}
	}
	return 0
}

// inTable tells whether a request's address is in a range. IPv4 in IPv6
// clothing is IPv4; an address with a zone, or none, is nowhere.
func inTable(t *bart.Lite, ip netip.Addr) bool {
	return ip.IsValid() && ip.Zone() == "" && t.Contains(ip.Unmap())
}

// parseRange reads an address or a CIDR range as policies write them. Host
// bits are dropped; a range of IPv4-mapped IPv6 addresses is the IPv4 range.
func parseRange(t string) (netip.Prefix, error) {
	if !strings.Contains(t, "/") {
		ip, err := netip.ParseAddr(t)
		if err != nil {
			return netip.Prefix{}, err
		}
		if ip.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("an address with a zone means nothing to another machine")
		}
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(t)
	if err != nil {
		return netip.Prefix{}, err
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}
