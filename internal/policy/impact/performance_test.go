package impact

import (
	"fmt"
	"testing"

	"postern/internal/policy"
)

// FuzzAccess asks all questions of whatever parses: nothing may panic or hang,
// and for a signed-in person a certain answer is the evaluator's.
func FuzzAccess(f *testing.F) {
	for _, seed := range []string{
		`{}`, `allow: {and: [{accept: 1}]}`, `allow: {or: [{email: {in: [a@b, 7, null]}}, {domain: {}}]}`,
		`[{allow: {nor: [{source_ip: [10.0.0.0/8, "::ffff:0:0/96", 255.255.255.255]}]}}, {deny: {not: [{date: {after: 2026-01-01}}]}}]`,
		`allow: {and: [{time_of_day: {timezone: Europe/Oslo, after: 3 PM}}, {day_of_week: "fri-mon"}, {device: {type: x}}]}`,
		`deny: {or: [{client_certificate: {san_dns: {is: x}}}, {invalid_client_certificate: 0}, {record: {type: t, exists: false}}]}`,
		`allow: {and: [{claim/x: {is: [1, {a: b}]}}, {groups: {has: g, exclude: h}}, {mcp_tool: {not: x}}, {ssh_username: r}, {cors_preflight: 1}]}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 2000 {
			return
		}
		p, _, err := policy.Parse("p.yaml", []byte(text), policy.Options{})
		if err != nil {
			return
		}
		Check(p)
		r := &Route{Set: policy.NewSet(policy.Pool{Own: p}), MCP: true, ClientCAs: true}
		s := NewSpace()
		for _, k := range []*Known{KnownOf(ada), KnownOf(eve), KnownOf(non), Anybody()} {
			a := s.Access(r, k)
			_ = a.String()
			if k.open {
				continue
			}
			var res policy.Result
			r.Set.Evaluate(k.In, &res)
			allowed := policy.Choose(&res, policy.Client{}).Outcome == policy.Allow
			if a.Holds(k.In) != allowed || a.Always() && !allowed || a.Never() && allowed {
				t.Fatalf("%s, but the evaluator says %v", a, allowed)
			}
		}
	})
}

// BenchmarkWhoCan asks a route about ten thousand people.
func BenchmarkWhoCan(b *testing.B) {
	p, _, err := policy.Parse("p.yaml", []byte(`
- allow: {and: [{domain: example.com}, {source_ip: 10.0.0.0/8}]}
- allow: {or: [{groups: g1}, {groups: g2}, {"claim/team": blue}]}
- deny: {or: [{email: eve@example.com}]}
- deny: {nor: [{device: {approved: true}}]}
`), policy.Options{})
	if err != nil {
		b.Fatal(err)
	}
	r := &Route{Set: policy.NewSet(policy.Pool{Own: p})}
	people := make([]Person, 10_000)
	for i := range people {
		people[i] = Person{ID: fmt.Sprint(i), Email: fmt.Sprintf("u%d@%s", i, []string{"example.com", "else.test"}[i%2]), HasDirectory: true, Groups: []string{fmt.Sprintf("g%d", i%7)}}
	}
	for b.Loop() {
		s := NewSpace()
		for i := range people {
			_ = s.Access(r, KnownOf(&people[i])).String()
		}
	}
}
