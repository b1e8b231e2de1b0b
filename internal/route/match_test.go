package route

import (
	"fmt"
	"testing"

	"postern/internal/exchange"
)

// request is the part of a View that matching looks at.
type request struct {
	exchange.View
	method, protocol, authority, path string
}

func (r *request) Method() string    { return r.method }
func (r *request) Protocol() string  { return r.protocol }
func (r *request) Authority() string { return r.authority }
func (r *request) Path() string      { return r.path }

func TestMatchConnect(t *testing.T) {
	table := mustTable(t, Options{MatchAnyIncomingPort: true},
		Spec{From: "tcp+https://db.test:5432"},
		Spec{From: "udp+https://db.test:5432"},
		Spec{From: "tcp+https://bastion.test/a.internal:22/b.internal:22"},
		Spec{From: "tcp+https://*.wild.test:22"},
		Spec{From: "https://db.test"},
	)
	for _, c := range []struct{ method, protocol, authority, path, want string }{
		{"CONNECT", "", "db.test:5432", "", "0"},
		{"CONNECT", "connect-udp", "db.test:5432", "/x", "1"},
		{"CONNECT", "", "a.internal:22", "", "2"},
		{"CONNECT", "", "b.internal:22", "", "2"},
		{"CONNECT", "", "bastion.test:22", "", "-"},
		{"CONNECT", "", "x.wild.test:22", "", "3"},
		{"CONNECT", "", "x.wild.test:23", "", "-"},
		{"CONNECT", "", "db.test", "", "-"},
		{"CONNECT", "websocket", "db.test", "/ws", "4"},
		{"GET", "", "db.test", "/", "4"},
		{"GET", "", "db.test:5432", "/", "-"},
	} {
		got := table.Match(&request{method: c.method, protocol: c.protocol, authority: c.authority, path: c.path})
		if name(got.Route) != c.want {
			t.Errorf("%+v: route %s", c, name(got.Route))
		}
	}
}

func TestSSHRoutesAreFoundByName(t *testing.T) {
	table := mustTable(t, Options{}, Spec{From: "ssh://Box:22"}, Spec{From: "ssh://other:2222"})
	if name(table.SSH("box")) != "0" || name(table.SSH("other:2222")) != "1" || table.SSH("other") != nil {
		t.Error("wrong SSH routes")
	}
	if table.Find("box", "/").Route != nil {
		t.Error("an SSH route answered HTTP")
	}
}

func TestKnowsHost(t *testing.T) {
	table := mustTable(t, Options{SignInHosts: []SignInHost{{Authority: "auth.test"}}},
		Spec{From: "https://a.test"}, Spec{From: "https://*.w.test"})
	for host, want := range map[string]bool{
		"a.test": true, "a.test:443": true, "a.test:444": false, "x.w.test": true, "auth.test": true, "evil.test": false, "eviltest": false,
	} {
		if table.KnowsHost(host) != want {
			t.Errorf("KnowsHost(%s) = %v", host, !want)
		}
	}
}

func TestHostHasPathRules(t *testing.T) {
	table := mustTable(t, Options{MatchAnyIncomingPort: true},
		Spec{From: "https://plain.test"}, Spec{From: "https://ruled.test", Prefix: "/api"}, Spec{From: "https://*.w.test", Regex: "/x"})
	for host, want := range map[string]bool{"plain.test": false, "ruled.test": true, "ruled.test:8443": true, "a.w.test": true, "none.test": false} {
		if table.HostHasPathRules(host) != want {
			t.Errorf("HostHasPathRules(%s) = %v", host, !want)
		}
	}
}

func TestMatchedPrefix(t *testing.T) {
	for _, c := range []struct {
		spec       Spec
		path, want string
	}{
		{Spec{From: "https://a.test"}, "/x", "/"},
		{Spec{From: "https://a.test", Prefix: "/x"}, "/xyz", "/x"},
		{Spec{From: "https://a.test", Path: "/xyz"}, "/xyz", "/xyz"},
		{Spec{From: "https://a.test", Regex: "/x.*"}, "/xyz", "/xyz"},
	} {
		if got := mustRoute(t, c.spec).MatchedPrefix(c.path); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// tenThousand is a large table in four shapes: hosts of their own, one busy
// host, wildcards with different ends, wildcards with equal ends.
func tenThousand(t testing.TB) (*Table, []*request) {
	var specs []Spec
	for i := range 2500 {
		specs = append(specs,
			Spec{From: fmt.Sprintf("https://app%d.test", i)},
			Spec{From: "https://busy.test", Prefix: fmt.Sprintf("/service/%d/", i)},
			Spec{From: fmt.Sprintf("https://*.team%d.test", i)},
			Spec{From: fmt.Sprintf("https://t%d-*.shared.test", i)},
		)
	}
	table := mustTable(t, Options{MatchAnyIncomingPort: true}, specs...)
	return table, []*request{
		{method: "GET", authority: "app2400.test", path: "/some/page.html"},
		{method: "GET", authority: "app2400.test:8443", path: "/some/page.html"},
		{method: "GET", authority: "busy.test", path: "/service/2400/x"},
		{method: "GET", authority: "a.b.team2400.test", path: "/some/page.html"},
		{method: "GET", authority: "t2400-x.shared.test", path: "/some/page.html"},
		{method: "GET", authority: "unknown.example", path: "/some/page.html"},
		{method: "GET", authority: "app2400.test", path: "/.pomerium/"},
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	table, requests := tenThousand(t)
	for i, r := range requests {
		if found := table.Match(r).Route != nil; found != (i != 5) {
			t.Errorf("%s%s: found %v", r.authority, r.path, found)
		}
		if n := testing.AllocsPerRun(100, func() { table.Match(r) }); n != 0 {
			t.Errorf("Match(%s%s) allocates %v times", r.authority, r.path, n)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	table, requests := tenThousand(b)
	for _, r := range requests {
		b.Run(r.authority+r.path, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				table.Match(r)
			}
		})
	}
}
