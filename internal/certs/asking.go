package certs

import (
	"cmp"
	"crypto/sha256"
	"regexp"
	"slices"
	"strings"

	"postern/internal/route"
)

// asking is what a connection is asked for: a certificate of one of these CAs;
// none at all if the list is empty. Equal lists have equal keys, over all
// generations.
type asking struct {
	list []*authority
	key  [sha256.Size]byte
}

func newAsking(list []*authority) *asking {
	slices.SortFunc(list, func(a, b *authority) int { return slices.Compare(a.sum[:], b.sum[:]) })
	list = slices.CompactFunc(list, func(a, b *authority) bool { return a.sum == b.sum })
	a := &asking{list: list}
	h := sha256.New()
	for _, x := range list {
		h.Write(x.sum[:])
	}
	h.Sum(a.key[:0])
	return a
}

func (a *asking) none() bool { return len(a.list) == 0 }

// covers says whether everything that b is asked for, a is asked for, too.
func (a *asking) covers(b *asking) bool {
	for _, x := range b.list {
		if !slices.ContainsFunc(a.list, func(y *authority) bool { return x.sum == y.sum }) {
			return false
		}
	}
	return true
}

// askings says what is asked for at each server name. As in the route table a
// literal name hides all wildcards, and a "*" of from crosses dots.
type askings struct {
	names    map[string]*asking
	suffixes map[string]*asking // of "*.example.com": "example.com"
	patterns []namePattern
	other    *asking // names of no route: the global CA
	all      *asking // no name: whatever any route asks for
}

type namePattern struct {
	re  *regexp.Regexp
	ask *asking
}

// newAskings reads the routes. unasked are names at which nobody needs a
// certificate although there is a global CA.
func newAskings(c *clients, routes []*route.Route, unasked []string) *askings {
	lists := map[string][]*authority{}
	every := []*authority{}
	if c.global != nil {
		every = append(every, c.global)
	}
	for _, name := range unasked {
		lists[serverName(name)] = nil
	}
	for _, rt := range routes {
		if rt.From.Protocol == route.SSH {
			continue
		}
		names := []string{rt.From.Host, rt.ServerName()}
		names = append(names, rt.From.Targets...)
		own := c.of(rt)
		if own != nil {
			every = append(every, own)
		}
		for _, name := range names {
			if name = serverName(name); name == "" {
				continue
			}
			if own == nil {
				if lists[name] == nil {
					lists[name] = []*authority{}
				}
				continue
			}
			lists[name] = append(lists[name], own)
		}
	}
	a := &askings{names: make(map[string]*asking, len(lists)), suffixes: map[string]*asking{}, all: newAsking(every)}
	var global []*authority
	if c.global != nil {
		global = append(global, c.global)
	}
	a.other = newAsking(global)
	same := map[[sha256.Size]byte]*asking{a.all.key: a.all, a.other.key: a.other}
	for name, list := range lists {
		ask := newAsking(list)
		if have := same[ask.key]; have != nil {
			ask = have
		}
		same[ask.key] = ask
		suffix, leading := strings.CutPrefix(name, "*.")
		switch {
		case leading && !strings.Contains(suffix, "*"):
			a.suffixes[suffix] = ask
		case strings.Contains(name, "*"):
			re := regexp.MustCompile(`\A` + strings.ReplaceAll(regexp.QuoteMeta(name), `\*`, `.*`) + `\z`)
			a.patterns = append(a.patterns, namePattern{re, ask})
		default:
			a.names[name] = ask
		}
	}
	slices.SortFunc(a.patterns, func(x, y namePattern) int { return cmp.Compare(x.re.String(), y.re.String()) })
	return a
}

// at says what is asked for at a name, in whatever spelling. Without a name
// nobody knows which route will be asked for: everything.
func (a *askings) at(name string) *asking {
	name = serverName(name)
	if name == "" {
		return a.all
	}
	if ask := a.names[name]; ask != nil {
		return ask
	}
	var found []*asking
	for rest := name; len(a.suffixes) > 0; {
		_, after, more := strings.Cut(rest, ".")
		if !more {
			break
		}
		if ask := a.suffixes[after]; ask != nil {
			found = append(found, ask)
		}
		rest = after
	}
	for _, p := range a.patterns {
		if p.re.MatchString(name) {
			found = append(found, p.ask)
		}
	}
	switch len(found) {
	case 0:
		return a.other
	case 1:
		return found[0]
	}
	var list []*authority
	for _, f := range found {
		list = append(list, f.list...)
	}
	return newAsking(list)
}

// nobody says that no name is asked for anything.
func (a *askings) nobody() bool { return a.all.none() }

// serverName is a host as a server name is compared: lower case, without port
// and trailing dot.
func serverName(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host, ':') == i {
		host = host[:i] // not an IPv6 address, which is no server name anyway
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// SameClientPolicy says whether a connection that was opened with the server
// name sni was asked for every client certificate that requests to host (with
// or without port) may need. If not, and the one it showed is not valid there,
// the request belongs on a connection of its own: 421 (RFC 9110 §15.5.20).
func (s *Set) SameClientPolicy(sni, host string) bool {
	if s.clients.asks.nobody() {
		return true
	}
	return s.clients.asks.at(sni).covers(s.clients.asks.at(host))
}
