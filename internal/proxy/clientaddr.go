package proxy

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/google/uuid"

	"postern/internal/exchange"
)

// clientAddress determines Peer.ClientIP (decision 4) and reports whether the
// direct peer is trusted to speak for its client. With trusted hops, X-Forwarded-For
// is walked from right to left, hop by hop: the address of hop n is what hop
// n-1 wrote. A hop that trusted_proxies does not list is the client. Anything
// but an IP address in a place that is relied upon refuses the request.
func (s *Settings) clientAddress(v *request) (trusted bool, bad *badRequest) {
	direct := v.peer.Direct.Addr().Unmap()
	v.peer.ClientIP = direct
	if s.TrustedHops == 0 || !s.trusts(direct) {
		return false, nil
	}
	if info := ConnInfoFrom(v.r.Context()); s.ProxyProtocol && info != nil && info.quic != nil {
		// No PROXY header comes over UDP: the peer may be a balancer that passes
		// on whatever strangers wrote, and says nothing itself.
		return false, nil
	}
	var hops []string
	for _, line := range v.r.Header.Values("X-Forwarded-For") {
		for part := range strings.SplitSeq(line, ",") {
			hops = append(hops, strings.Trim(part, " \t"))
		}
	}
	if len(hops) < s.TrustedHops && len(s.TrustedProxies) == 0 {
		return true, nil // fewer hops than promised: the list proves nothing
	}
	client := direct
	for i := 1; i <= s.TrustedHops && i <= len(hops) && s.trusts(client); i++ {
		addr, ok := parseHop(hops[len(hops)-i])
		if !ok {
			v.peer.ClientIP = netip.Addr{}
			return true, &badRequest{http.StatusBadRequest, "bad_forwarded_for",
				"X-Forwarded-For names something that is not an IP address"}
		}
		client = addr
	}
	v.peer.ClientIP = client
	return true, nil
}

// trusts reports whether addr may speak for others. Without trusted_proxies
// the hop count alone decides.
func (s *Settings) trusts(addr netip.Addr) bool {
	if len(s.TrustedProxies) == 0 {
		return true
	}
	for _, p := range s.TrustedProxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// parseHop reads one element of X-Forwarded-For: an address, with or without
// port. Zones are refused; they mean nothing on another machine.
func parseHop(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		addr = ap.Addr()
	}
	if addr.Zone() != "" {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// internalPeer reports whether a request comes from inside: both the direct
// peer and the client are private or loopback addresses.
func internalPeer(p *exchange.Peer) bool {
	return private(p.Direct.Addr().Unmap()) && private(p.ClientIP)
}

func private(a netip.Addr) bool { return a.IsPrivate() || a.IsLoopback() }

// requestID keeps a well-formed inbound id of an internal peer and makes a new
// one for everybody else (wire-contract.md §4.8), so that nobody outside can
// write into our logs.
func (s *Settings) requestID(v *request) string {
	if internalPeer(&v.peer) {
		if ids := v.r.Header.Values("X-Request-Id"); len(ids) == 1 && validRequestID(ids[0]) {
			return ids[0]
		}
	}
	return uuid.NewString()
}

func validRequestID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for i := 0; i < len(id); i++ {
		c := id[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.:/+=@", c) >= 0) {
			return false
		}
	}
	return true
}

// appendForwarding adds the forwarding fields of wire-contract.md §4.8. What
// the client sent under these names was stripped, but for X-Forwarded-For,
// which is continued.
func (s *Settings) appendForwarding(fields []exchange.Field, v exchange.View) []exchange.Field {
	peer := v.Peer()
	if !s.SkipXFFAppend {
		xff := joined(v, "X-Forwarded-For")
		if direct := peer.Direct.Addr().Unmap(); direct.IsValid() {
			if xff != "" {
				xff += ", "
			}
			xff += direct.String()
		}
		if xff != "" {
			fields = append(fields, exchange.Field{Name: "X-Forwarded-For", Value: xff})
		}
	}
	fields = append(fields,
		exchange.Field{Name: "X-Forwarded-Proto", Value: v.Scheme()},
		exchange.Field{Name: "X-Request-Id", Value: v.RequestID()})
	if internalPeer(peer) {
		return append(fields, exchange.Field{Name: "X-Envoy-Internal", Value: "true"})
	}
	if peer.ClientIP.IsValid() {
		fields = append(fields, exchange.Field{Name: "X-Envoy-External-Address", Value: peer.ClientIP.String()})
	}
	return fields
}
