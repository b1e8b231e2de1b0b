package pages

import (
	"strings"
)

// Kind is a representation that a client may ask for with Accept, in the
// order in which ties are settled (wire-contract.md §1.4).
type Kind uint8

// The representations on offer.
const (
	HTML        Kind = iota // text/html
	JSON                    // application/json
	PlainText               // text/plain
	GRPCWebText             // application/grpc-web-text
	GRPCWeb                 // application/grpc-web+proto
	GRPC                    // application/grpc+proto
)

var offers = [...]struct{ typ, sub string }{
	HTML:        {"text", "html"},
	JSON:        {"application", "json"},
	PlainText:   {"text", "plain"},
	GRPCWebText: {"application", "grpc-web-text"},
	GRPCWeb:     {"application", "grpc-web+proto"},
	GRPC:        {"application", "grpc+proto"},
}

// Negotiate picks the representation that an Accept header (RFC 9110 §12.5.1)
// likes best; several header lines are joined with ", " first. Ties go to the
// earlier of the list above. A header that is missing, does not parse, matches
// nothing on offer, or says "*/*" means HTML: a browser, curl or a WebSocket is
// sent to sign in, and only an explicit wish for something else is refused with
// a status.
func Negotiate(accept string) Kind {
	ranges, ok := parseAccept(accept)
	if !ok {
		return HTML
	}
	best, bestQ := HTML, 0
	for k := range offers {
		if q := quality(ranges, Kind(k)); q > bestQ {
			best, bestQ = Kind(k), q
		}
	}
	return best
}

// PrefersJSON says whether an Accept header likes JSON better than HTML.
func PrefersJSON(accept string) bool {
	ranges, ok := parseAccept(accept)
	return ok && quality(ranges, JSON) > quality(ranges, HTML)
}

// Client is the sort of program that asked, as far as a refusal's body depends
// on it.
type Client uint8

// The clients that a refusal knows.
const (
	Browser    Client = iota // branded HTML
	Kubernetes               // kubectl and its kin: a Status object
	Robots                   // a crawler at /robots.txt
	JSONClient               // prefers JSON to HTML
	GRPCClient
	GRPCWebClient
)

// ClientOf tells who asked from path, User-Agent, Content-Type and Accept.
// The first that fits wins, in the order of wire-contract.md §1.4.
func ClientOf(path, userAgent, contentType, accept string) Client {
	if strings.Contains(userAgent, "kubernetes/") {
		return Kubernetes
	}
	if path == "/robots.txt" {
		return Robots
	}
	if PrefersJSON(accept) {
		return JSONClient
	}
	if grpc, web := GRPCContentType(contentType); grpc {
		if web {
			return GRPCWebClient
		}
		return GRPCClient
	}
	switch Negotiate(accept) {
	case GRPC:
		return GRPCClient
	case GRPCWeb, GRPCWebText:
		return GRPCWebClient
	}
	return Browser
}

// GRPCContentType says whether a request's Content-Type is gRPC, and whether
// it is gRPC-web: "application/grpc" or "application/grpc+..",
// "application/grpc-web-text", and "application/grpc-web+..", in any case and
// with any parameters (wire-contract.md §1.4).
func GRPCContentType(contentType string) (grpc, web bool) {
	t, _, _ := strings.Cut(contentType, ";")
	t = strings.ToLower(strings.TrimSpace(t))
	rest, ok := strings.CutPrefix(t, "application/grpc")
	switch {
	case !ok:
		return false, false
	case rest == "", strings.HasPrefix(rest, "+"):
		return true, false
	case rest == "-web-text", strings.HasPrefix(rest, "-web-text+"), strings.HasPrefix(rest, "-web+"):
		return true, true
	}
	return false, false
}

// mediaRange is one element of Accept. Quality is in thousandths.
type mediaRange struct {
	typ, sub string
	q        int
}

// mostRanges bounds the work that a stranger's header can cause. A longer
// header counts as one that does not parse.
const mostRanges = 64

// parseAccept reads the grammar of RFC 9110 §12.5.1 strictly. Empty list
// elements are allowed (§5.6.1); a header with none but those is missing.
func parseAccept(s string) ([]mediaRange, bool) {
	var out []mediaRange
	p := parser{s: s}
	for {
		p.space()
		if p.done() {
			return out, len(out) > 0
		}
		if p.eat(',') {
			continue
		}
		r := mediaRange{q: 1000}
		var ok bool
		if r.typ, ok = p.token(); !ok || !p.eat('/') {
			return nil, false
		}
		if r.sub, ok = p.token(); !ok || (r.typ == "*" && r.sub != "*") {
			return nil, false
		}
		for {
			p.space()
			if !p.eat(';') {
				break
			}
			p.space()
			if p.done() || p.s[p.i] == ';' || p.s[p.i] == ',' {
				continue // RFC 9110 §5.6.6 allows an empty parameter
			}
			name, ok := p.token()
			if !ok || !p.eat('=') {
				return nil, false
			}
			value, ok := p.value()
			if !ok {
				return nil, false
			}
			if strings.EqualFold(name, "q") {
				if r.q, ok = parseQuality(value); !ok {
					return nil, false
				}
			}
		}
		if !p.done() && !p.eat(',') {
			return nil, false
		}
		r.typ, r.sub = strings.ToLower(r.typ), strings.ToLower(r.sub)
		if out = append(out, r); len(out) > mostRanges {
			return nil, false
		}
	}
}

// quality is what the header gives to one offer: the most specific range
// decides (RFC 9110 §12.5.1), the highest of several equal ones. Parameters of
// a range other than q are ignored, as "application/json;charset=utf-8" asks
// for JSON.
func quality(ranges []mediaRange, k Kind) int {
	offer := offers[k]
	best, specific := 0, -1
	for _, r := range ranges {
		level := -1
		switch {
		case r.typ == offer.typ && r.sub == offer.sub:
			level = 2
		case r.typ == offer.typ && r.sub == "*":
			level = 1
		case r.typ == "*":
			level = 0
		}
		if level > specific || level == specific && level >= 0 && r.q > best {
			best, specific = r.q, level
		}
	}
	return best
}

// parseQuality reads qvalue: "0", "1", and up to three decimals, at most 1.
func parseQuality(s string) (int, bool) {
	if s == "" || len(s) > 5 || (s[0] != '0' && s[0] != '1') {
		return 0, false
	}
	q := int(s[0]-'0') * 1000
	if len(s) == 1 {
		return q, true
	}
	if s[1] != '.' {
		return 0, false
	}
	for i, unit := 2, 100; i < len(s); i, unit = i+1, unit/10 {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		q += int(s[i]-'0') * unit
	}
	return q, q <= 1000
}

// parser walks a header value.
type parser struct {
	s string
	i int
}

func (p *parser) done() bool { return p.i >= len(p.s) }

func (p *parser) space() {
	for !p.done() && (p.s[p.i] == ' ' || p.s[p.i] == '\t') {
		p.i++
	}
}

func (p *parser) eat(c byte) bool {
	if !p.done() && p.s[p.i] == c {
		p.i++
		return true
	}
	return false
}

func (p *parser) token() (string, bool) {
	from := p.i
	for !p.done() && isToken(p.s[p.i]) {
		p.i++
	}
	return p.s[from:p.i], p.i > from
}

// value reads a token or a quoted string, given without quotes and escapes.
func (p *parser) value() (string, bool) {
	if !p.eat('"') {
		return p.token()
	}
	var b strings.Builder
	for !p.done() {
		c := p.s[p.i]
		p.i++
		switch {
		case c == '"':
			return b.String(), true
		case c == '\\' && !p.done():
			c = p.s[p.i]
			p.i++
			fallthrough
		case c == '\t' || c >= ' ' && c != 0x7f:
			b.WriteByte(c)
		default:
			return "", false
		}
	}
	return "", false
}

// isToken says whether c may stand in a token (RFC 9110 §5.6.2).
func isToken(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
