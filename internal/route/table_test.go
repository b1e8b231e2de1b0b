package route

import (
	"fmt"
	"math/rand"
	"regexp"
	"strings"
	"testing"
)

func mustRoute(t testing.TB, s Spec) *Route {
	t.Helper()
	if len(s.To) == 0 && s.Redirect == "" && s.Response == "" {
		s.To = []string{"http://upstream"}
	}
	r, err := New(s)
	if err != nil {
		t.Fatalf("New(%+v): %v", s, err)
	}
	return r
}

func mustTable(t testing.TB, o Options, specs ...Spec) *Table {
	t.Helper()
	routes := make([]*Route, len(specs))
	for i, s := range specs {
		if s.Name == "" {
			s.Name = fmt.Sprint(i)
		}
		routes[i] = mustRoute(t, s)
	}
	table, err := NewTable(routes, o)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func name(r *Route) string {
	if r == nil {
		return "-"
	}
	return r.Name
}

func TestFind(t *testing.T) {
	any, exact := Options{MatchAnyIncomingPort: true}, Options{}
	for _, c := range []struct {
		name  string
		o     Options
		specs []Spec
		want  map[string]string // authority+path -> route name, "-" none
	}{
		{"no port owns every port", any, []Spec{{From: "https://a.test"}}, map[string]string{
			"a.test/": "0", "a.test:443/": "0", "a.test:8443/x": "0", "b.test/": "-", "x.a.test/": "-",
		}},
		{"flag off: host and default port only", exact, []Spec{{From: "https://a.test"}, {From: "http://b.test"}}, map[string]string{
			"a.test/": "0", "a.test:443/": "0", "a.test:80/": "-", "a.test:8443/": "-",
			"b.test/": "1", "b.test:80/": "1", "b.test:443/": "-",
		}},
		{"explicit port owns only itself and shadows", any, []Spec{
			{From: "https://a.test"}, {From: "https://a.test:8443", Prefix: "/api"},
		}, map[string]string{
			"a.test:8443/api": "1", "a.test:8443/x": "-", "a.test:9/x": "0", "a.test/api": "0",
		}},
		{"explicit port alone does not own the bare host", any, []Spec{{From: "https://a.test:8443"}}, map[string]string{
			"a.test:8443/": "0", "a.test/": "-", "a.test:443/": "-",
		}},
		{"default port written out is no port", any, []Spec{{From: "https://a.test:443"}, {From: "http://b.test:80"}}, map[string]string{
			"a.test/": "0", "a.test:8443/": "0", "b.test/": "1",
		}},
		{"literal host shadows wildcard, no fall-through", any, []Spec{
			{From: "https://*.test"}, {From: "https://a.test", Prefix: "/api"},
		}, map[string]string{
			"a.test/x": "-", "a.test/api/1": "1", "b.test/x": "0", "deep.er.test/x": "0", "test/x": "-",
		}},
		{"wildcards in file order", any, []Spec{
			{From: "https://a-*.x.test"}, {From: "https://*.x.test", Prefix: "/only"}, {From: "https://*"},
		}, map[string]string{
			"a-1.x.test/": "0", "a-1.2.x.test/only": "0", "b.x.test/only": "1", "b.x.test/": "2", "q/": "2",
		}},
		{"wildcard between literals", any, []Spec{{From: "https://a*b*c.test"}}, map[string]string{
			"abc.test/": "0", "a1b2c.test/": "0", "acb.test/": "-", "ac.test/": "-", "ab.c.test/": "0",
		}},
		{"wildcard ports", exact, []Spec{{From: "https://*.test"}, {From: "https://*.test:8443"}}, map[string]string{
			"a.test/": "0", "a.test:443/": "0", "a.test:8443/": "1", "a.test:81/": "-",
		}},
		{"prefix is a plain string prefix", any, []Spec{{From: "https://a.test", Prefix: "/admin"}}, map[string]string{
			"a.test/admin": "0", "a.test/administrator": "0", "a.test/Admin": "-", "a.test/adm": "-",
		}},
		{"path is exact", any, []Spec{{From: "https://a.test", Path: "/x"}}, map[string]string{
			"a.test/x": "0", "a.test/x/": "-", "a.test/X": "-",
		}},
		{"regex matches the whole path", any, []Spec{{From: "https://a.test", Regex: "/a|/b"}, {From: "https://a.test", Regex: "^/c.*$"}}, map[string]string{
			"a.test/a": "0", "a.test/b": "0", "a.test/ab": "-", "a.test/b/": "-", "a.test/cd": "1", "a.test/x/c": "-",
		}},
		{"regex beats path beats prefix", any, []Spec{
			{From: "https://a.test", Regex: "/r", Path: "/p", Prefix: "/f"}, {From: "https://a.test", Path: "/p", Prefix: "/f"},
		}, map[string]string{"a.test/r": "0", "a.test/p": "1", "a.test/f": "-"}},
		{"first in order wins", any, []Spec{
			{From: "https://a.test", Prefix: "/a"}, {From: "https://a.test", Path: "/a/b"},
		}, map[string]string{"a.test/a/b": "0"}},
		{"matchers are read as canonical paths", any, []Spec{
			{From: "https://a.test", Prefix: "/caf%c3%a9"}, {From: "https://a.test", Path: "/%61dmin"}, {From: "https://a.test", Path: "/tür"},
		}, map[string]string{"a.test/caf%C3%A9": "0", "a.test/admin": "1", "a.test/t%C3%BCr": "2"}},
		{"downstream server name makes a table", any, []Spec{
			{From: "https://*.test"}, {From: "https://a.test", DownstreamServerName: "sni.test"},
		}, map[string]string{"sni.test/": "-", "o.test/": "0"}},
		{"IDN and case", any, []Spec{{From: "https://BÜCHER.test"}}, map[string]string{"xn--bcher-kva.test/": "0"}},
		{"IPv6", any, []Spec{{From: "https://[::1]"}}, map[string]string{"[::1]/": "0", "[::1]:8443/": "0", "[::2]/": "-"}},
		{"tcp routes match no request", any, []Spec{{From: "tcp+https://a.test:22"}}, map[string]string{"a.test:22/": "-"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := mustTable(t, c.o, c.specs...)
			for url, want := range c.want {
				i := strings.IndexByte(url, '/')
				if got := name(table.Find(url[:i], url[i:]).Route); got != want {
					t.Errorf("%s: route %s, want %s", url, got, want)
				}
			}
		})
	}
}

func TestOwnPaths(t *testing.T) {
	table := mustTable(t, Options{MatchAnyIncomingPort: true, SignInHosts: []SignInHost{
		{Authority: "auth.test"}, {Authority: "app.test", Shared: true},
	}}, Spec{From: "https://app.test"}, Spec{From: "https://mcp.test", Access: Access{MCPServer: true}},
		Spec{From: "https://*.wild.test"}, Spec{From: "https://auth.test"})
	for url, want := range map[string]Own{
		"app.test/ping": OwnInternal, "app.test/healthz": OwnInternal, "app.test/pingx": OwnNone,
		"app.test/.pomerium": OwnInternal, "app.test/.pomerium/": OwnInternal, "app.test/.pomeriumx": OwnNone,
		"app.test/.pomerium/any/thing": OwnInternal, "app.test/.well-known/pomerium": OwnInternal,
		"app.test/.well-known/pomerium/jwks.json": OwnInternal, "app.test/.well-known/pomeriumx": OwnNone,
		"app.test/.well-known/openid-configuration": OwnNone, "unknown.test/ping": OwnInternal,
		"x.wild.test/.pomerium/": OwnInternal, "auth.test/oauth2/callback": OwnSignIn,
		"auth.test/oauth2/callback/okta": OwnSignIn, "auth.test/oauth2/callbackx": OwnNone,
		"auth.test/": OwnSignIn, "auth.test/robots.txt": OwnSignIn, "auth.test/x": OwnNone,
		"auth.test:8443/":                                         OwnSignIn,
		"app.test/oauth2/callback":                                OwnSignIn, // shared sign-in host
		"app.test/":                                               OwnNone,
		"app.test/robots.txt":                                     OwnNone,
		"mcp.test/oauth2/callback":                                OwnNone,
		"x.wild.test/oauth2/callback":                             OwnNone,
		"mcp.test/.well-known/oauth-authorization-server":         OwnMCP,
		"mcp.test/.well-known/oauth-protected-resource/some/path": OwnMCP,
		"app.test/.well-known/oauth-authorization-server":         OwnNone,
	} {
		i := strings.IndexByte(url, '/')
		if got := table.Find(url[:i], url[i:]).Own; got != want {
			t.Errorf("%s: own %d, want %d", url, got, want)
		}
	}
}

func TestEqualRoutesAreRefused(t *testing.T) {
	a := Spec{From: "https://a.test", Prefix: "/x", To: []string{"http://u"}}
	same := []Spec{
		a,
		{From: "https://a.test:443", Prefix: "/x", To: []string{"http://u"}, Name: "other name"},
		{From: "https://a.test", Prefix: "/x", To: []string{"http://u"}, Policies: []Attached{{ID: "other policy"}}},
	}
	for i, s := range same {
		if _, err := NewTable([]*Route{mustRoute(t, a), mustRoute(t, s)}, Options{}); err == nil {
			t.Errorf("%d: equal routes accepted", i)
		}
	}
	different := []Spec{
		{From: "https://a.test", Prefix: "/y", To: []string{"http://u"}},
		{From: "https://a.test", Path: "/x", To: []string{"http://u"}},
		{From: "https://a.test", Prefix: "/x", To: []string{"http://v"}},
		{From: "https://a.test:8443", Prefix: "/x", To: []string{"http://u"}},
		{From: "https://a.test", Prefix: "/x", Redirect: "host=u"},
	}
	for i, s := range different {
		if _, err := NewTable([]*Route{mustRoute(t, a), mustRoute(t, s)}, Options{}); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestBadRoutesAreRefused(t *testing.T) {
	to := []string{"http://u"}
	for _, s := range []Spec{
		{From: "", To: to}, {From: "a.test", To: to}, {From: "ftp://a.test", To: to},
		{From: "https://", To: to}, {From: "https:///x", To: to}, {From: "https://a.test/x", To: to},
		{From: "https://user@a.test", To: to}, {From: "https://a.test:0", To: to}, {From: "https://a.test:70000", To: to},
		{From: "https://a b.test", To: to}, {From: "https://a..test", To: to},
		{From: "tcp+https://a.test", To: to}, {From: "tcp+https://a.test/noport", To: to},
		{From: "https://a.test"}, {From: "https://a.test", To: to, Regex: "("}, {From: "https://a.test", To: to, Regex: "a)|(b"},
		{From: "https://a.test", To: to, Prefix: "/%zz"},
	} {
		if r, err := New(s); err == nil {
			t.Errorf("New(%+v) = %+v", s, r)
		}
	}
}

func TestIdentityIsStable(t *testing.T) {
	// These names appear in clusters, metrics and dashboards; a change of the
	// derivation renames them for everybody.
	r := mustRoute(t, Spec{From: "https://a.test", Prefix: "/x", To: []string{"http://u"}})
	if want := "4f3c1e83d53d48cd"; r.ID != want || r.ClusterName != "route-"+want {
		t.Errorf("id %s, cluster %s", r.ID, r.ClusterName)
	}
	r = mustRoute(t, Spec{ID: "given", From: "https://a.test", Name: "n", StatName: "s"})
	if r.ID != "given" || r.ClusterName != "s-given" {
		t.Errorf("id %s, cluster %s", r.ID, r.ClusterName)
	}
}

func TestSortAPI(t *testing.T) {
	p := func(n int64) *int64 { return &n }
	want := []Spec{
		{ID: "0", From: "https://a.test", Path: "/z"},
		{ID: "1", From: "https://a.test", Path: "/a"},
		{ID: "2", From: "https://a.test", Regex: "/a", RegexPriorityOrder: p(9)},
		{ID: "3", From: "https://a.test", Regex: "/z", RegexPriorityOrder: p(1)},
		{ID: "4", From: "https://a.test", Regex: "/z"},
		{ID: "5", From: "https://a.test", Regex: "/a"},
		{ID: "6", From: "https://a.test", Prefix: "/z"},
		{ID: "7", From: "https://a.test", Prefix: "/z"},
		{ID: "8", From: "https://a.test"},
		{ID: "9", From: "https://b.test", Path: "/z"},
	}
	routes := make([]*Route, len(want))
	for i, j := range rand.New(rand.NewSource(1)).Perm(len(want)) {
		routes[i] = mustRoute(t, want[j])
	}
	SortAPI(routes)
	for i, r := range routes {
		if r.ID != fmt.Sprint(i) {
			t.Errorf("place %d has route %s", i, r.ID)
		}
	}
}

// obvious is the slow matcher that the table is held against: every rule of
// configuration.md §3.4 written out for one request, nothing precomputed.
func obvious(routes []*Route, anyPort bool, authority, path string) *Route {
	host, port, _ := strings.Cut(authority, ":")
	owns := func(r *Route) bool { // does r's literal host make a table for authority?
		if r.From.Wildcard() || r.From.Host != host {
			return false
		}
		def := map[string]string{"https": "443", "http": "80"}[r.From.Scheme]
		if r.From.Port != 0 {
			return port == fmt.Sprint(r.From.Port)
		}
		return anyPort || port == "" || port == def
	}
	matchesPath := func(r *Route) bool {
		switch {
		case r.Regex != "":
			loc := regexp.MustCompile("^(" + r.Regex + ")$").FindStringIndex(path)
			return loc != nil
		case r.Path != "":
			return r.Path == path
		case r.Prefix != "":
			return strings.HasPrefix(path, r.Prefix)
		}
		return true
	}
	hasTable, exactPort := false, false
	for _, r := range routes {
		if owns(r) {
			hasTable = true
			// An exact host:port entry: a named port, or with the flag off the
			// default port.
			if r.From.Port != 0 {
				exactPort = true
			}
		}
	}
	if hasTable {
		for _, r := range routes {
			if owns(r) && matchesPath(r) && (!exactPort || r.From.Port != 0 || !anyPort) {
				return r
			}
		}
		return nil
	}
	for _, r := range routes {
		if !r.From.Wildcard() {
			continue
		}
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(r.From.Host), `\*`, ".*") + "$"
		def := map[string]string{"https": "443", "http": "80"}[r.From.Scheme]
		portOK := anyPort || port == "" || port == def
		if r.From.Port != 0 {
			portOK = port == fmt.Sprint(r.From.Port)
		}
		if portOK && regexp.MustCompile(pattern).MatchString(host) && matchesPath(r) {
			return r
		}
	}
	return nil
}

// TestCVE_2026_48794: an access rule matched differently at an edge. Random
// tables are compared with the obvious matcher.
func TestCVE_2026_48794(t *testing.T) {
	rnd := rand.New(rand.NewSource(48794))
	pick := func(s ...string) string { return s[rnd.Intn(len(s))] }
	paths := []string{"/", "/a", "/a/", "/a/b", "/ab", "/abc", "/b", "/b/c", "/c.html"}
	for round := range 400 {
		anyPort := rnd.Intn(2) == 0
		var routes []*Route
		seen := map[string]bool{}
		for range 1 + rnd.Intn(40) {
			s := Spec{To: []string{"http://u"}}
			host := pick("a.test", "b.test", "*.test", "a-*.test", "*", "*.a.test", "a*b.test", "x.a.test", "*b*.test")
			s.From = pick("https://", "https://", "http://") + host + pick("", "", "", ":8443", ":443", ":80")
			switch rnd.Intn(4) {
			case 0:
				s.Prefix = pick(paths...)
			case 1:
				s.Path = pick(paths...)
			case 2:
				s.Regex = pick("/a.*", "/(a|b)", "/[a-c]+", ".*c", "/a/b|/b")
			}
			r := mustRoute(t, s)
			if !seen[r.identity] {
				seen[r.identity] = true
				routes = append(routes, r)
			}
		}
		table, err := NewTable(routes, Options{MatchAnyIncomingPort: anyPort})
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			authority := pick("a.test", "b.test", "c.test", "x.a.test", "y.a.test", "a-1.test", "ab.test", "a1b.test", "other", "test") +
				pick("", "", ":443", ":80", ":8443", ":9")
			path := pick(paths...)
			got, want := table.Find(authority, path).Route, obvious(routes, anyPort, authority, path)
			if got != want {
				t.Fatalf("round %d, anyPort %v, %s%s: got %v, want %v", round, anyPort, authority, path, describe(got), describe(want))
			}
		}
	}
}

func describe(r *Route) string {
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("#%d %s prefix=%q path=%q regex=%q", r.Slot, r.From, r.Prefix, r.Path, r.Regex)
}
