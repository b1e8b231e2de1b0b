package impact

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/internal/policy"
)

func set(t *testing.T, texts ...string) *policy.Set {
	t.Helper()
	var pool policy.Pool
	for i, text := range texts {
		p, _, err := policy.Parse(fmt.Sprintf("p%d.yaml", i), []byte(text), policy.Options{})
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if i == 0 {
			pool.Own = p
		} else {
			pool.Attached = append(pool.Attached, policy.Attached{Policy: p})
		}
	}
	return policy.NewSet(pool)
}

var (
	ada = &Person{ID: "u1", Email: "ada@example.com", Groups: []string{"staff"}, HasDirectory: true, Claims: map[string][]any{"team": {"blue"}}}
	eve = &Person{ID: "u2", Email: "eve@else.test"}
	non = &Person{Anonymous: true}
)

func TestAccess(t *testing.T) {
	for _, test := range []struct {
		policy string
		who    *Person
		want   string
	}{
		{`{}`, ada, "never"},
		{`allow: {and: [{domain: example.com}]}`, ada, "always"},
		{`allow: {and: [{domain: example.com}]}`, eve, "never"},
		{`allow: {and: [{domain: example.com}]}`, non, "never"},
		{`allow: {and: [{accept: true}]}`, non, "always"},
		{`[{allow: {and: [{accept: true}]}}, {deny: {or: [{email: eve@else.test}]}}]`, non, "never"}, // a false identity deny asks for sign-in
		{`allow: {and: [{domain: example.com}, {http_method: GET}]}`, ada, "only if http_method: GET"},
		{`allow: {and: [{domain: example.com}, {http_method: GET}]}`, eve, "never"},
		{`[{allow: {or: [{groups: staff}]}}, {deny: {nor: [{source_ip: 10.0.0.0/8}]}}]`, ada, "only if source_ip: 10.0.0.0/8"},
		{`allow: {and: [{http_method: GET}, {http_method: POST}]}`, ada, "never"},
		{`allow: {or: [{http_method: GET}, {http_method: {not: GET}}]}`, ada, "always"},
		{`allow: {and: [{source_ip: 10.0.0.0/8}, {source_ip: 10.1.0.0/16}]}`, ada, "only if source_ip: 10.1.0.0/16"},
		{`allow: {and: [{source_ip: 10.0.0.0/8}, {source_ip: 192.168.0.0/16}]}`, ada, "never"},
		{`allow: {and: [{date: {after: 2026-01-02}}, {date: {before: 2026-01-01}}]}`, ada, "never"},
		{`allow: {and: [{day_of_week: mon}, {day_of_week: "tue-fri"}]}`, ada, "never"},
		{`allow: {or: [{day_of_week: "mon-fri"}, {day_of_week: "sat,sun"}]}`, ada, "always"},
		{`allow: {or: [{time_of_day: {timezone: UTC, after: "08:00"}}, {time_of_day: {timezone: UTC, before: "09:00"}}]}`, ada, "always"},
		{`allow: {and: [{http_path: {starts_with: /a}}, {http_path: {starts_with: /b}}]}`, ada, "never"},
		{`allow: {and: [{cors_preflight: true}, {http_method: GET}]}`, ada, "never"},
		{`allow: {and: [{device: {approved: true}}]}`, ada, `only if device: {"approved":true}`},
		{`allow: {or: [{device: {type: tpm}}, {domain: example.com}]}`, ada, "always"},
		{`allow: {and: [{ssh_username: root}]}`, ada, "never"}, // not an SSH route
		{`allow: {and: [{"claim/team": blue}]}`, ada, "always"},
		{`allow: {not: [{groups: staff}]}`, eve, "always"},
		{`allow: {not: [{groups: staff}]}`, non, "never"},
	} {
		s := NewSpace()
		got := s.Access(&Route{Set: set(t, test.policy)}, KnownOf(test.who))
		if got.String() != test.want {
			t.Errorf("%s for %s: %s, want %s", test.policy, test.who.Email, got, test.want)
		}
	}
}

func TestSignInAndRules(t *testing.T) {
	s := NewSpace()
	r := &Route{Set: set(t, "allow:\n  or:\n    - domain: example.com\n    - http_method: GET\ndeny:\n  and:\n    - email: ada@example.com\n    - source_ip: 10.0.0.0/8\n")}
	if a := s.Access(r, KnownOf(non)); !a.SignIn || !a.Never() {
		t.Errorf("nobody: %s, sign in %v", a, a.SignIn)
	}
	a := s.Access(r, KnownOf(ada))
	if a.String() != "only if not source_ip: 10.0.0.0/8" || len(a.By) != 1 || len(a.Against) != 1 {
		t.Errorf("ada: %s by %v against %v", a, a.By, a.Against)
	}
	if by := a.By[0]; by.Path != "allow.or" || by.Line != 3 || by.Column != 7 {
		t.Errorf("the rule is at %+v", by)
	}
}

// randomPolicy writes a policy of all criteria that matter here.
func randomPolicy(r *rand.Rand) string {
	criteria := []string{
		`accept: 1`, `reject: 1`, `authenticated_user: 1`, `email: ada@example.com`, `email: {not: ada@example.com}`, `email: {ends_with: .test}`,
		`domain: example.com`, `user: u1`, `groups: staff`, `groups: {exclude: staff}`, `claim/team: blue`, `claim/team: {exclude: blue}`,
		`http_method: GET`, `http_method: {in: [GET, POST]}`, `http_method: {not: POST}`, `http_path: /a`, `http_path: {starts_with: /a}`, `http_path: {ends_with: b}`,
		`source_ip: 10.0.0.0/8`, `source_ip: [10.1.0.0/16, 192.0.2.7]`, `date: {after: 2026-03-01}`, `date: {before: 2026-03-02}`,
		`day_of_week: mon-wed`, `time_of_day: {timezone: Europe/Oslo, after: "08:00", before: "17:00"}`, `time_of_day: {timezone: Europe/Oslo, before: "08:00"}`,
		`device: {approved: true}`, `device: {is: d1}`, `device: {approved: false}`, `cors_preflight: 1`, `invalid_client_certificate: 1`,
		`mcp_tool: query`, `ssh_username: root`, `pomerium_routes: 1`, `record: {type: t, field: x, is: y}`,
	}
	var b strings.Builder
	for range 1 + r.IntN(3) {
		action := []string{"allow", "allow", "deny"}[r.IntN(3)]
		op := []string{"and", "or", "not", "nor"}[r.IntN(4)]
		var list []string
		for range 1 + r.IntN(3) {
			list = append(list, "{"+criteria[r.IntN(len(criteria))]+"}")
		}
		fmt.Fprintf(&b, "- %s: {%s: [%s]}\n", action, op, strings.Join(list, ", "))
	}
	return b.String()
}

func randomRequest(r *rand.Rand, p *Person) *policy.Input {
	in := *KnownOf(p).In
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	in.Method = pick("GET", "POST", "OPTIONS", "PUT")
	in.RawPath = pick("/", "/a", "/a/b", "/b")
	in.Path = in.RawPath
	in.ClientIP, _ = netip.ParseAddr(pick("10.0.0.1", "10.1.2.3", "192.0.2.7", "192.0.2.8", "2001:db8::1", "none"))
	in.Now = time.Date(2026, 2, 27+r.IntN(7), r.IntN(24), r.IntN(60), 0, 0, time.UTC)
	in.CertificateState = policy.CertificateState(r.IntN(3))
	if r.IntN(2) == 0 {
		in.Header = func(string) string { return "x" }
	}
	if r.IntN(2) == 0 {
		in.MCP = &policy.MCPCall{Method: pick("tools/call", "tools/list"), Tool: pick("query", "drop")}
	}
	if in.HasSession && r.IntN(2) == 0 {
		in.Devices = []policy.Device{{ID: pick("d1", "d2"), Type: "any", Approved: r.IntN(2) == 0, Enrolled: r.IntN(3) > 0, Revoked: r.IntN(5) == 0}}
	}
	if r.IntN(2) == 0 {
		fixed := map[string]any{"x": pick("y", "z")}
		in.Record = func(string) (map[string]any, bool) { return fixed, true }
	}
	return &in
}

// The condition found without a request is, for every request, what the
// evaluator and the selection of the outcome give; and what differs between
// two policies is what differs for some request.
func TestAgreesWithBruteForce(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	people := []*Person{ada, eve, non, {ID: "", Email: "ada@example.com"}}
	const policies, requests = 2000, 12
	compared, decided, differing := 0, 0, 0
	for range policies {
		texts := []string{randomPolicy(r), randomPolicy(r)}
		s := NewSpace()
		routes := []*Route{{Set: set(t, texts[0]), MCP: true, ClientCAs: true}, {Set: set(t, texts[1]), MCP: true, ClientCAs: true}}
		open := NewSpace()
		anybody := []Access{open.Access(routes[0], Anybody()), open.Access(routes[1], Anybody())}
		for _, p := range people {
			a := []Access{s.Access(routes[0], KnownOf(p)), s.Access(routes[1], KnownOf(p))}
			gained, lost := a[1].But(a[0].Condition), a[0].But(a[1].Condition)
			for range requests {
				in := randomRequest(r, p)
				var allowed [2]bool
				for i := range routes {
					var res policy.Result
					routes[i].Set.Evaluate(in, &res)
					allowed[i] = policy.Choose(&res, policy.Client{}).Outcome == policy.Allow
					compared++
					if got := a[i].Holds(in); got != allowed[i] {
						t.Fatalf("%s: %s for %q says %v, but the evaluator %v", texts[i], a[i], p.Email, got, allowed[i])
					}
					if any := anybody[i]; any.Holds(in) != allowed[i] || any.Never() && allowed[i] || any.Always() && !allowed[i] {
						t.Fatalf("%s: %s for anybody, but %q gets %v", texts[i], any, p.Email, allowed[i])
					}
					if a[i].Always() && !allowed[i] || a[i].Never() && allowed[i] {
						t.Fatalf("%s: %s for %q, but a request gets %v", texts[i], a[i], p.Email, allowed[i])
					}
					if a[i].Always() || a[i].Never() {
						decided++
					} else if !holdsByTerms(s, a[i].Condition, in, t) == allowed[i] {
						t.Fatalf("%s: the terms %s do not say %v", texts[i], a[i], allowed[i])
					}
					// With the request known, nothing is left open.
					k := &Known{In: in, Method: true, Path: true, IP: true, Now: true, Headers: true, Certificate: true, Devices: true, MCP: true, SSH: true, Records: true}
					if full := s.Access(routes[i], k); full.Always() != allowed[i] || full.Never() == allowed[i] {
						t.Fatalf("%s: with all known %s, want %v", texts[i], full, allowed[i])
					}
				}
				if gained.Holds(in) != (allowed[1] && !allowed[0]) || lost.Holds(in) != (allowed[0] && !allowed[1]) {
					t.Fatalf("%s\n%s: gains and losses are wrong", texts[0], texts[1])
				}
				if allowed[0] != allowed[1] {
					differing++
					if a[0].Same(a[1].Condition) {
						t.Fatalf("%s\n%s: said to be the same", texts[0], texts[1])
					}
				}
			}
		}
	}
	t.Logf("%d answers compared, %d of them always or never, %d differences", compared, decided, differing)
	if compared < 100_000 || decided == compared || differing < 1000 {
		t.Errorf("%d answers, %d decided, %d differing: the test looks at too little", compared, decided, differing)
	}
}

// holdsByTerms judges a condition by the terms that people read.
func holdsByTerms(s *Space, c Condition, in *policy.Input, t *testing.T) bool {
	d, possible := s.d, s.constraint()
	terms, complete := d.terms(d.and(c.f, possible), d.or(c.f, d.not(possible)), maxTerms)
	if !complete {
		return c.Holds(in)
	}
	for _, term := range terms {
		all := true
		for _, l := range term {
			x := Condition{s: s, f: d.atom(l.level)}
			all = all && x.Holds(in) != l.not
		}
		if all {
			return true
		}
	}
	return false
}

func TestCheck(t *testing.T) {
	for _, test := range []struct{ policy, want string }{
		{`allow: {or: [{domain: a.test}]}`, ""},
		{`allow: {and: [{email: a@a.test}, {domain: b.test}]}`, "contradict"},
		{`allow: {and: [{email: a@a.test}, {domain: a.test}]}`, ""},
		{`allow: {and: [{groups: x}, {groups: {exclude: x}}]}`, "contradict"},
		{`allow: {and: [{date: {after: 2026-01-02}}, {date: {before: 2026-01-01}}]}`, "contradict"},
		{`allow: {and: [{source_ip: 10.0.0.0/8}], not: [{source_ip: 10.0.0.0/8}]}`, ""},
		{`[{allow: {or: [{domain: a.test}, {groups: g}]}}, {allow: {and: [{domain: a.test}, {http_method: GET}]}}]`, "unreachable"},
		{`[{allow: {and: [{domain: a.test}]}}, {allow: {and: [{domain: a.test}]}}]`, "unreachable"},
		{`[{allow: {and: [{email: a@a.test}]}}, {allow: {and: [{domain: a.test}]}}]`, "unreachable"},
		{`[{allow: {and: [{groups: a}]}}, {allow: {and: [{groups: b}]}}]`, ""},
		{`[{allow: {and: [{groups: a}]}}, {deny: {or: [{groups: b}, {groups: a}]}}]`, "never lets"},
		{`[{allow: {and: [{groups: a}]}}, {deny: {nor: [{domain: a.test}]}}]`, ""},
		{`allow: {and: [{http_path: /a}, {http_path: {starts_with: /b}}]}`, "contradict"},
		{`allow: {and: [{reject: true}]}`, ""},
	} {
		p, _, err := policy.Parse("p.yaml", []byte(test.policy), policy.Options{})
		if err != nil {
			t.Fatal(err)
		}
		got := Check(p)
		switch {
		case test.want == "" && len(got) > 0:
			t.Errorf("%s: %v", test.policy, got)
		case test.want != "" && (len(got) != 1 || !strings.Contains(got[0].Error(), test.want)):
			t.Errorf("%s: %v, want %s", test.policy, got, test.want)
		}
	}
}

// What Check calls dead is dead for every request.
func TestCheckAgreesWithBruteForce(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	found := 0
	for range 3000 {
		text := randomPolicy(r)
		p, _, err := policy.Parse("p.yaml", []byte(text), policy.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range Check(p) {
			if !strings.Contains(problem.Message, "contradict") {
				continue
			}
			found++
			for i := range p.Rules() {
				ru := rule{policy: p, Rule: &p.Rules()[i]}
				if at := ru.ref(); at.Line != problem.Line || at.Column != problem.Column {
					continue
				}
				only, _, err := policy.Parse("p.yaml", []byte(strings.Split(strings.TrimSpace(text), "\n")[problem.Line-1]), policy.Options{})
				if err != nil {
					t.Fatal(err)
				}
				for range 200 {
					in := randomRequest(r, []*Person{ada, eve, non}[r.IntN(3)])
					var res policy.Result
					only.Evaluate(in, &res)
					if res.Allow.Value || res.Deny.Value {
						t.Fatalf("%s: %v, but it is true", text, problem)
					}
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d contradictions were tried", found)
	}
}

func TestBounded(t *testing.T) {
	// A policy whose diagram is far too large gets neither always nor never.
	var b strings.Builder
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		var list []string
		for range 4 {
			list = append(list, fmt.Sprintf("{device: {is: d%d}}", r.IntN(300)))
		}
		fmt.Fprintf(&b, "- allow: {and: [%s]}\n", strings.Join(list, ", "))
	}
	s := NewSpace()
	a := s.Access(&Route{Set: set(t, b.String())}, KnownOf(ada))
	if a.large && (a.Always() || a.Never()) {
		t.Error("decided although it could not be computed")
	}
	_ = a.String()
}
