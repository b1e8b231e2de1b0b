package route

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The reference is configuration.md §3.1, §3.3 and §3.4 sentence by sentence,
// for one request, from the words of the routes: nothing of the package is
// used, nothing is computed ahead.
type reference struct {
	specs   []Spec
	anyPort bool
	signIn  []SignInHost
}

// words are the parts of a from.
type words struct {
	protocol, scheme, host, port string
	targets                      []string
}

func read(from string) words {
	if w, ok := known[from]; ok {
		return w
	}
	w := readAnew(from)
	known[from] = w
	return w
}

var known = map[string]words{} // for speed alone

func readAnew(from string) words {
	scheme, rest, _ := strings.Cut(from, "://")
	w := words{protocol: "http", scheme: scheme}
	if p, s, ok := strings.Cut(scheme, "+"); ok {
		w.protocol, w.scheme = p, s
	}
	authority, path, _ := strings.Cut(rest, "/")
	w.host, w.port, _ = strings.Cut(authority, ":")
	if path != "" {
		w.targets = strings.Split(path, "/")
	}
	// "A from without port (or with the default port)"; a CONNECT names its
	// port, even the default one.
	if w.protocol == "http" && w.port == map[string]string{"https": "443", "http": "80"}[w.scheme] {
		w.port = ""
	}
	return w
}

// owns tells how the words of a literal host own an authority: "exact" for
// host:port, "any" for host:*, "" not at all.
func (x *reference) owns(w words, authority string) string {
	host, port, _ := strings.Cut(authority, ":")
	if len(w.targets) > 0 { // the segments, not the host, are the authorities
		if slices.Contains(w.targets, authority) {
			return "exact"
		}
		return ""
	}
	if strings.Contains(w.host, "*") || w.host != host {
		return ""
	}
	switch {
	case w.port != "":
		if w.port == port {
			return "exact"
		}
	case x.anyPort:
		return "any"
	case port == "", w.scheme == "https" && port == "443", w.scheme == "http" && port == "80":
		return "exact"
	}
	return ""
}

// tables are all literal words that make tables: those of routes, of sign-in
// hosts and of tls_downstream_server_name.
func (x *reference) tables() []words {
	var out []words
	for _, s := range x.specs {
		out = append(out, read(s.From))
		if s.DownstreamServerName != "" {
			out = append(out, read("https://"+s.DownstreamServerName))
		}
	}
	for _, h := range x.signIn {
		out = append(out, read("https://"+h.Authority))
	}
	return out
}

// table says how authority has a table: "exact" beats "any"; "" is the
// catch-all.
func (x *reference) table(authority string) string {
	how := ""
	for _, w := range x.tables() {
		if o := x.owns(w, authority); o == "exact" || o != "" && how == "" {
			how = o
		}
	}
	return how
}

func wildly(w words, host string) bool {
	return strings.Contains(w.host, "*") && matches(strings.ReplaceAll(regexp.QuoteMeta(w.host), `\*`, ".*"), host)
}

var expressions = map[string]*regexp.Regexp{}

// matches tells whether an expression matches all of a text.
func matches(expression, text string) bool {
	if expressions[expression] == nil {
		expressions[expression] = regexp.MustCompile("^(" + expression + ")$")
	}
	return expressions[expression].MatchString(text)
}

// covers tells whether a route is tried for an authority at all.
func (x *reference) covers(s Spec, authority, how string) bool {
	w := read(s.From)
	if how != "" {
		return x.owns(w, authority) == how
	}
	host, port, _ := strings.Cut(authority, ":")
	if len(w.targets) > 0 || !wildly(w, host) {
		return false
	}
	if w.port != "" {
		return w.port == port
	}
	return x.anyPort || port == "" || w.scheme == "https" && port == "443" || w.scheme == "http" && port == "80"
}

func matchesPath(s Spec, path string) bool {
	switch {
	case s.Regex != "":
		return matches(s.Regex, path)
	case s.Path != "":
		return path == s.Path
	}
	return strings.HasPrefix(path, s.Prefix)
}

// find gives the place of the route in the list, -1 for none.
func (x *reference) find(authority, path string) int {
	how := x.table(authority)
	return slices.IndexFunc(x.specs, func(s Spec) bool {
		return read(s.From).protocol == "http" && x.covers(s, authority, how) && matchesPath(s, path)
	})
}

// connect is find for a CONNECT: path matchers are ignored.
func (x *reference) connect(authority, protocol string) int {
	how := x.table(authority)
	return slices.IndexFunc(x.specs, func(s Spec) bool {
		return read(s.From).protocol == protocol && x.covers(s, authority, how)
	})
}

// own is §3.4 rule 2 (a).
func (x *reference) own(authority, path string) Own {
	below := func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
	if path == "/ping" || path == "/healthz" || below("/.pomerium") || below("/.well-known/pomerium") {
		return OwnInternal
	}
	how := x.table(authority)
	signIn, dedicated := false, false
	for _, h := range x.signIn {
		if how != "" && x.owns(read("https://"+h.Authority), authority) == how {
			signIn, dedicated = true, dedicated || !h.Shared
		}
	}
	if signIn && below("/oauth2/callback") || dedicated && (path == "/" || path == "/robots.txt") {
		return OwnSignIn
	}
	mcp := slices.ContainsFunc(x.specs, func(s Spec) bool {
		return (s.MCPServer || s.MCPClient) && read(s.From).protocol == "http" && x.covers(s, authority, how)
	})
	if mcp && (path == "/.well-known/oauth-authorization-server" || strings.HasPrefix(path, "/.well-known/oauth-protected-resource")) {
		return OwnMCP
	}
	return OwnNone
}

// randomTable makes up a configuration in which much overlaps.
func randomTable(r *rand.Rand) *reference {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	x := &reference{anyPort: r.IntN(2) == 0}
	for range 1 + r.IntN(30) {
		s := Spec{Name: strconv.Itoa(len(x.specs)), To: []string{"http://u" + pick("", "1", "2")}}
		host := pick("a.test", "b.test", "a.test", "x.a.test", "auth.test", "*.test", "*.a.test", "a-*.test", "a*b.test", "*b*.test", "*")
		switch r.IntN(9) {
		case 0:
			s.From = pick("tcp", "udp") + "+https://" + host + pick(":22", ":443", ":8443")
		case 1:
			s.From = "tcp+https://" + pick("bastion.test", "a.test") + pick("", ":9") + "/" + pick("a.test:22", "in.test:22", "b.test:443") + pick("", "/c.test:1")
		default:
			s.From = pick("https", "https", "http") + "://" + host + pick("", "", "", ":8443", ":443", ":80")
			s.MCPServer = r.IntN(8) == 0
			s.MCPClient = r.IntN(12) == 0
		}
		if r.IntN(2) == 0 {
			s.Prefix = pick(somePaths...)
		}
		if r.IntN(4) == 0 {
			s.Path = pick(somePaths...)
		}
		if r.IntN(4) == 0 {
			s.Regex = pick("/a.*", "/(a|b)", "/[a-c]+", ".*c", "/a/b|/b", "^/a/?$", "/A")
		}
		if r.IntN(8) == 0 {
			s.DownstreamServerName = pick("sni.test", "c.test", "a.test")
		}
		x.specs = append(x.specs, s)
	}
	for range r.IntN(3) {
		x.signIn = append(x.signIn, SignInHost{Authority: pick("auth.test", "a.test", "auth.test:8443"), Shared: r.IntN(2) == 0})
	}
	return x
}

var (
	somePaths = []string{"/", "/a", "/a/", "/a/b", "/ab", "/abc", "/b", "/b/c", "/c.html", "/A", "/robots.txt", "/oauth2", "/.well-known"}
	askPaths  = append(slices.Clone(somePaths), "/ping", "/pingx", "/healthz", "/.pomerium", "/.pomerium/x", "/.pomeriumx", "/.well-known/pomerium",
		"/.well-known/pomeriumx", "/oauth2/callback", "/oauth2/callback/idp", "/oauth2/callbackx", "/.well-known/oauth-authorization-server",
		"/.well-known/oauth-authorization-serverx", "/.well-known/oauth-protected-resource/a")
	askHosts = []string{"a.test", "b.test", "c.test", "x.a.test", "y.a.test", "a-1.test", "ab.test", "a1b.test", "auth.test", "sni.test", "bastion.test", "in.test", "other", "test"}
	askPorts = []string{"", "", ":443", ":80", ":8443", ":22", ":9", ":1"}
)

// build gives the table of x, without routes equal to earlier ones.
func (x *reference) build(t *testing.T) *Table {
	t.Helper()
	var routes []*Route
	seen := map[string]bool{}
	x.specs = slices.DeleteFunc(x.specs, func(s Spec) bool {
		rt, err := New(s)
		if err != nil {
			t.Fatalf("%+v: %v", s, err)
		}
		if seen[rt.identity] {
			return true
		}
		seen[rt.identity] = true
		routes = append(routes, rt)
		return false
	})
	table, err := NewTable(routes, Options{MatchAnyIncomingPort: x.anyPort, SignInHosts: x.signIn})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// question is one request.
type question struct{ method, authority, path string }

// disagreement compares table and reference on one request; "" is agreement.
func (x *reference) disagreement(table *Table, q question) string {
	slot := func(r *Route) int {
		if r == nil {
			return -1
		}
		return r.Slot
	}
	if q.method != "GET" { // tcp or udp
		r := &request{method: "CONNECT", authority: q.authority}
		if q.method == "udp" {
			r.protocol, r.path = "connect-udp", "/"
		}
		if got, want := slot(table.Match(r).Route), x.connect(q.authority, q.method); got != want {
			return fmt.Sprintf("CONNECT (%s) %s: route %d, want %d", q.method, q.authority, got, want)
		}
		return ""
	}
	m := table.Match(&request{method: "GET", authority: q.authority, path: q.path})
	if got, want := slot(m.Route), x.find(q.authority, q.path); got != want {
		return fmt.Sprintf("%s%s: route %d, want %d", q.authority, q.path, got, want)
	}
	if want := x.own(q.authority, q.path); m.Own != want {
		return fmt.Sprintf("%s%s: own %d, want %d", q.authority, q.path, m.Own, want)
	}
	how := x.table(q.authority)
	if got, want := table.KnowsHost(q.authority), how != "" || slices.ContainsFunc(x.specs, func(s Spec) bool { return x.covers(s, q.authority, how) }); got != want {
		return fmt.Sprintf("%s: known %v, want %v", q.authority, got, want)
	}
	return ""
}

// shrink drops routes and sign-in hosts as long as the disagreement stays.
func (x *reference) shrink(t *testing.T, q question) *reference {
	for i := 0; i < len(x.specs); {
		y := &reference{specs: slices.Delete(slices.Clone(x.specs), i, i+1), anyPort: x.anyPort, signIn: x.signIn}
		if y.disagreement(y.build(t), q) != "" {
			x = y
		} else {
			i++
		}
	}
	for i := 0; i < len(x.signIn); {
		y := &reference{specs: x.specs, anyPort: x.anyPort, signIn: slices.Delete(slices.Clone(x.signIn), i, i+1)}
		if y.disagreement(y.build(t), q) != "" {
			x = y
		} else {
			i++
		}
	}
	return x
}

func (x *reference) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "match_any_incoming_port %v, sign-in %+v\n", x.anyPort, x.signIn)
	for i, s := range x.specs {
		fmt.Fprintf(&b, "%3d %s prefix=%q path=%q regex=%q sni=%q mcp=%v\n", i, s.From, s.Prefix, s.Path, s.Regex, s.DownstreamServerName, s.MCPServer || s.MCPClient)
	}
	return b.String()
}

// 100,000 random requests to random tables are matched as the text says.
func TestTableMatchesAsTheTextSays(t *testing.T) {
	const tables, each = 2000, 50
	for seed := range uint64(tables) {
		r := rand.New(rand.NewPCG(seed, 34))
		x := randomTable(r)
		table := x.build(t)
		for range each {
			q := question{"GET", askHosts[r.IntN(len(askHosts))] + askPorts[r.IntN(len(askPorts))], askPaths[r.IntN(len(askPaths))]}
			switch r.IntN(10) {
			case 0:
				q.method = "tcp"
			case 1:
				q.method = "udp"
			}
			if x.disagreement(table, q) != "" {
				least := x.shrink(t, q)
				t.Fatalf("seed %d: %s\n%s", seed, least.disagreement(least.build(t), q), least)
			}
		}
	}
}

// The order of API routes, each key of §3.4.3 by itself: sorting by the least
// of them first and stably by each greater one after it.
func TestOrderOfAPIRoutesIsTheTexts(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	for range 500 {
		var routes []*Route
		for i := range 25 {
			s := Spec{ID: strconv.Itoa(r.IntN(5)) + "-" + strconv.Itoa(i), From: "https://" + pick("a", "b") + ".test", To: []string{"http://u"},
				Path: pick("", "/p", "/q"), Regex: pick("", "/r", "/s"), Prefix: pick("", "/t", "/u")}
			if r.IntN(2) == 0 {
				n := r.Int64N(4) - 1
				s.RegexPriorityOrder = &n
			}
			routes = append(routes, mustRoute(t, s))
		}
		want := slices.Clone(routes)
		by := func(less func(a, b *Route) int) { slices.SortStableFunc(want, less) }
		by(func(a, b *Route) int { return strings.Compare(a.ID, b.ID) })
		by(func(a, b *Route) int { return -strings.Compare(a.Prefix, b.Prefix) })
		by(func(a, b *Route) int { return -strings.Compare(a.Regex, b.Regex) })
		by(func(a, b *Route) int {
			weight := func(r *Route) int64 {
				if r.priority == nil {
					return -1 << 62 // unset last
				}
				return *r.priority
			}
			switch x, y := weight(a), weight(b); {
			case x > y:
				return -1
			case x < y:
				return 1
			}
			return 0
		})
		by(func(a, b *Route) int { return -strings.Compare(a.Path, b.Path) })
		by(func(a, b *Route) int { return strings.Compare(a.From.Raw, b.From.Raw) })
		SortAPI(routes)
		if !slices.Equal(routes, want) {
			t.Fatal("SortAPI and the text disagree")
		}
	}
}

// regex_priority_order orders routes of the API among themselves, behind those
// of the file, which keep their order whatever theirs says.
func TestRegexPriorityOrder(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	low := mustRoute(t, Spec{Name: "file low", From: "https://a.test", Regex: "/f.*", RegexPriorityOrder: n(1)})
	high := mustRoute(t, Spec{Name: "file high", From: "https://a.test", Regex: "/fa.*", RegexPriorityOrder: n(9)})
	same := mustRoute(t, Spec{Name: "same as the file's", From: "https://a.test", Regex: "/fa.*", ID: "other", RegexPriorityOrder: n(99)})
	first := mustRoute(t, Spec{Name: "api 5", From: "https://a.test", Regex: "/.*a", RegexPriorityOrder: n(5)})
	second := mustRoute(t, Spec{Name: "api 2", From: "https://a.test", Regex: "/z.*", RegexPriorityOrder: n(2)})
	last := mustRoute(t, Spec{Name: "api unset", From: "https://a.test", Regex: "/zz.*"})
	table, err := NewTable(Merge([]*Route{low, high}, []*Route{last, second, same, first}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/fa": "file low", "/za": "api 5", "/zz": "api 2", "/a": "api 5"} {
		if got := name(table.Find("a.test", path).Route); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	var order []string
	for _, r := range table.Routes() {
		order = append(order, r.Name)
	}
	if got, want := strings.Join(order, ", "), "file low, file high, api 5, api 2, api unset"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}
