package route

import (
	"fmt"
	"strconv"
	"strings"

	"postern/internal/exchange"
)

// Options are the table's settings from outside the routes.
type Options struct {
	// MatchAnyIncomingPort lets a from without port own every port of its host
	// (runtime flag match_any_incoming_port).
	MatchAnyIncomingPort bool
	// SignInHosts serve sign-in and get tables of their own.
	SignInHosts []SignInHost
}

// SignInHost is one host at which people sign in.
type SignInHost struct {
	// Authority is host or host:port, the default port left out.
	Authority string
	// Shared says that the host belongs to an application as well, so that "/"
	// and /robots.txt stay the application's (decision 10).
	Shared bool
}

// Table holds all routes of one generation. It is immutable, and Match may be
// called by any number of goroutines.
type Table struct {
	routes  []*Route
	hosts   map[string]*hostTable
	wild    wildcards
	anyPort bool
	ssh     map[string]*Route
}

// hostTable is what one literal authority serves.
type hostTable struct {
	paths     pathTable
	connect   []*Route
	signIn    signInRole
	mcp       bool
	pathRules bool
}

// Match is where a request belongs.
type Match struct {
	// Route is the route for the request, nil if none matches. For an own
	// path it is the route that would otherwise serve the path.
	Route *Route
	// Own is set if the path is one of ours; then Route is never forwarded to.
	Own Own
	// SignIn says that the host serves sign-in.
	SignIn bool
}

// portRule says for which ports of a request a host entry stands.
type portRule struct {
	any  bool
	port string // "" with any false: no port, or the scheme's default
	also string // the default port, accepted besides none
}

func (p portRule) covers(port string) bool {
	return p.any || port == p.port || (p.also != "" && port == p.also)
}

func (p portRule) String() string {
	if p.any {
		return ":*"
	}
	return ":" + p.port + ":" + p.also
}

func (t *Table) portRule(f From) portRule {
	switch {
	case f.Port != 0:
		return portRule{port: strconv.Itoa(int(f.Port))}
	case t.anyPort:
		return portRule{any: true}
	case f.Scheme == "http":
		return portRule{also: "80"}
	}
	return portRule{also: "443"}
}

// NewTable compiles routes, in the order in which they are to be tried, and
// gives each its Slot. A route that has another slot in another table is
// copied; Routes gives those that count. Two routes of one identity are an
// error.
func NewTable(routes []*Route, o Options) (*Table, error) {
	t := &Table{
		routes: make([]*Route, len(routes)), anyPort: o.MatchAnyIncomingPort,
		hosts: make(map[string]*hostTable, len(routes)),
		ssh:   map[string]*Route{},
	}
	seen := make(map[string]*Route, len(routes))
	for i, r := range routes {
		if first, ok := seen[r.identity]; ok {
			return nil, fmt.Errorf("routes %d and %d are equal (from %s): from, prefix, path, regex and action are the same; remove one",
				first.Slot+1, i+1, r.From.Raw)
		}
		r = r.at(i)
		seen[r.identity] = r
		t.routes[i] = r
		t.add(r)
		if r.serverName != "" {
			t.named(r.serverName)
		}
	}
	for _, h := range o.SignInHosts {
		authority, _, err := exchange.CanonicalAuthority(h.Authority)
		if err != nil {
			return nil, fmt.Errorf("sign-in host %q: %w", h.Authority, err)
		}
		role := dedicatedSignIn
		if h.Shared {
			role = sharedSignIn
		}
		for _, ht := range t.named(authority) {
			ht.signIn = max(ht.signIn, role)
		}
	}
	for _, h := range t.hosts {
		h.paths.seal()
	}
	for _, w := range t.wild.byHost {
		w.paths.seal()
	}
	return t, nil
}

func (t *Table) add(r *Route) {
	if r.From.Protocol == SSH {
		t.ssh[r.From.Authority()] = r
		return
	}
	connect := r.From.Protocol != HTTP
	if len(r.From.Targets) > 0 { // bastion form: the segments are the authorities
		for _, target := range r.From.Targets {
			h := t.host(target)
			h.connect = append(h.connect, r)
		}
		return
	}
	rule := t.portRule(r.From)
	if r.From.Wildcard() {
		w := t.wild.get(r.From.Host, rule)
		if connect {
			w.conn = append(w.conn, r)
			return
		}
		w.paths.add(r)
		w.mcp = w.mcp || r.MCPServer || r.MCPClient
		return
	}
	keys := []string{r.From.Authority()}
	if rule.also != "" {
		keys = append(keys, r.From.Host+":"+rule.also)
	}
	for _, key := range keys {
		h := t.host(key)
		if connect {
			h.connect = append(h.connect, r)
			continue
		}
		h.paths.add(r)
		h.mcp = h.mcp || r.MCPServer || r.MCPClient
		h.pathRules = h.pathRules || r.HasPathRules()
	}
}

// named gives the tables of an authority that stands for itself, as a from of
// https would have them.
func (t *Table) named(authority string) []*hostTable {
	if t.anyPort || portOf(authority) != "" {
		return []*hostTable{t.host(authority)}
	}
	return []*hostTable{t.host(authority), t.host(authority + ":443")}
}

func (t *Table) host(key string) *hostTable {
	h := t.hosts[key]
	if h == nil {
		h = &hostTable{}
		t.hosts[key] = h
	}
	return h
}

// lookup finds the table of a canonical authority, or nil for the catch-all.
// host is the authority without its port.
func (t *Table) lookup(authority string) (h *hostTable, host, port string) {
	port = portOf(authority)
	host = authority
	if port != "" {
		host = authority[:len(authority)-len(port)-1]
	}
	h = t.hosts[authority]
	if h == nil && port != "" && t.anyPort {
		h = t.hosts[host]
	}
	return h, host, port
}

// Match finds the route and the own path of a request. It allocates nothing.
func (t *Table) Match(v exchange.View) Match {
	if v.Method() == "CONNECT" {
		// A CONNECT of HTTP/1.1 has no path; an extended CONNECT of HTTP/2 has
		// one and is matched like any request, unless it carries UDP.
		switch v.Protocol() {
		case "", "connect-udp":
			return Match{Route: t.findConnect(v.Authority(), v.Protocol() != "")}
		}
	}
	return t.Find(v.Authority(), v.Path())
}

// Find is Match for a canonical authority and path.
func (t *Table) Find(authority, path string) Match {
	h, host, port := t.lookup(authority)
	if h != nil {
		return Match{
			Route:  h.paths.find(path),
			Own:    ownPath(path, h.signIn, h.mcp),
			SignIn: h.signIn != notSignIn,
		}
	}
	var best *Route
	mcp := false
	t.wild.each(host, port, func(w *wildcard) {
		mcp = mcp || w.mcp
		if r := w.paths.find(path); r != nil && (best == nil || r.Slot < best.Slot) {
			best = r
		}
	})
	return Match{Route: best, Own: ownPath(path, notSignIn, mcp)}
}

// findConnect finds the TCP or UDP route of a CONNECT to authority.
func (t *Table) findConnect(authority string, udp bool) *Route {
	want := TCP
	if udp {
		want = UDP
	}
	h, host, port := t.lookup(authority)
	if h != nil {
		for _, r := range h.connect {
			if r.From.Protocol == want {
				return r
			}
		}
		return nil
	}
	var best *Route
	t.wild.each(host, port, func(w *wildcard) {
		for _, r := range w.conn {
			if r.From.Protocol == want && (best == nil || r.Slot < best.Slot) {
				best = r
			}
		}
	})
	return best
}

// SSH finds the SSH route named name (the user logs in as user@name), or nil.
func (t *Table) SSH(name string) *Route { return t.ssh[strings.ToLower(name)] }

// Routes are all routes by slot. Read-only.
func (t *Table) Routes() []*Route { return t.routes }

// KnowsHost reports whether a canonical authority belongs to this proxy: it has
// a table, or a wildcard route covers it. A host that it does not know must
// not be given cookies or redirects.
func (t *Table) KnowsHost(authority string) bool {
	h, host, port := t.lookup(authority)
	if h != nil {
		return true
	}
	known := false
	t.wild.each(host, port, func(*wildcard) { known = true })
	return known
}

// HostHasPathRules reports whether requests to authority are told apart by
// path, by their route or by a policy (decision 3: no "%2F" there).
func (t *Table) HostHasPathRules(authority string) bool {
	h, host, port := t.lookup(authority)
	if h != nil {
		return h.pathRules
	}
	rules := false
	t.wild.each(host, port, func(w *wildcard) {
		for _, r := range w.paths.routes {
			rules = rules || r.HasPathRules()
		}
	})
	return rules
}
