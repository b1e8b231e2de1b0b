package route

import "strings"

// hostPattern is a host with wildcards: each "*" stands for any run of
// characters, dots included (configuration.md §3.1).
type hostPattern struct {
	prefix, suffix string   // what stands before the first and after the last "*"
	middle         []string // what stands between two of them
}

func newHostPattern(host string) hostPattern {
	parts := strings.Split(host, "*")
	last := len(parts) - 1
	p := hostPattern{prefix: parts[0], suffix: parts[last]}
	for _, m := range parts[1:last] {
		if m != "" {
			p.middle = append(p.middle, m)
		}
	}
	return p
}

func (p *hostPattern) match(host string) bool {
	if len(host) < len(p.prefix)+len(p.suffix) ||
		!strings.HasPrefix(host, p.prefix) || !strings.HasSuffix(host, p.suffix) {
		return false
	}
	rest := host[len(p.prefix) : len(host)-len(p.suffix)]
	for _, m := range p.middle { // the leftmost place is always good enough
		i := strings.Index(rest, m)
		if i < 0 {
			return false
		}
		rest = rest[i+len(m):]
	}
	return true
}

// wildcard is one distinct wildcard host and port with its routes.
type wildcard struct {
	host  hostPattern
	ports portRule
	paths pathTable
	conn  []*Route
	mcp   bool
}

// wildcards finds routes by wildcard host. Patterns are filed under their
// literal ends, so that a request looks only at those that can match.
type wildcards struct {
	shapes []shape
	byEnds map[ends][]*wildcard
	byHost map[string]*wildcard // while building: host and port as written
}

type shape struct{ prefix, suffix int }
type ends struct{ prefix, suffix string }

func (w *wildcards) get(host string, ports portRule) *wildcard {
	key := host + ports.String()
	if c := w.byHost[key]; c != nil {
		return c
	}
	if w.byHost == nil {
		w.byHost, w.byEnds = map[string]*wildcard{}, map[ends][]*wildcard{}
	}
	c := &wildcard{host: newHostPattern(host), ports: ports}
	w.byHost[key] = c
	e := ends{c.host.prefix, c.host.suffix}
	if _, known := w.byEnds[e]; !known {
		s := shape{len(e.prefix), len(e.suffix)}
		seen := false
		for _, o := range w.shapes {
			seen = seen || o == s
		}
		if !seen {
			w.shapes = append(w.shapes, s)
		}
	}
	w.byEnds[e] = append(w.byEnds[e], c)
	return c
}

// each calls yield with every wildcard that covers host and port, in no order.
func (w *wildcards) each(host, port string, yield func(*wildcard)) {
	for _, s := range w.shapes {
		if s.prefix+s.suffix > len(host) {
			continue
		}
		for _, c := range w.byEnds[ends{host[:s.prefix], host[len(host)-s.suffix:]}] {
			if c.ports.covers(port) && c.host.match(host) {
				yield(c)
			}
		}
	}
}
