package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const typicalPolicy = `
allow:
  and:
    - domain: harbor.test
    - groups: {has: grp-eng}
deny:
  or:
    - email: {in: [mallory@harbor.test, trent@harbor.test]}
`

func typicalInput() *Input {
	return &Input{
		Method: "GET", RawPath: "/reports/today", Path: "/reports/today", ClientIP: netip.MustParseAddr("192.0.2.10"),
		Header:     func(string) string { return "" },
		HasSession: true, UserID: "u1", Email: "peggy@harbor.test", HasDirectory: true, Groups: []string{"grp-ops", "grp-all", "grp-eng"},
		Claims: map[string][]any{"team": {"core", 7.0}},
	}
}

// everything uses every criterion that needs no keys made for the occasion.
const everything = `
- allow: {and: [{domain: {not_in: [x, y]}}, {groups: {has: grp-eng, exclude: x}}, {claim/team: 7}, {user: {starts_with: u, not: x}}]}
- allow: {or: [{cors_preflight: 1}, {authenticated_user: 1}, {http_method: {in: [GET]}}, {http_path: {contains: day}}, {accept: 1}]}
- deny: {nor: [{source_ip: [192.0.2.0/24]}, {device: {approved: false}}, {pomerium_routes: 1}]}
- deny: {not: [{invalid_client_certificate: 1}, {client_certificate: {san_dns: x}}, {mcp_tool: x}, {ssh_username: x}, {reject: 1}]}
- deny: {and: [{date: {after: 2026-01-01}}, {day_of_week: mon-fri}, {time_of_day: {timezone: Europe/Oslo, after: "9:00"}}]}
`

func TestEvaluateDoesNotAllocate(t *testing.T) {
	in := typicalInput()
	for name, text := range map[string]string{"typical": typicalPolicy, "everything": everything} {
		p := mustParse(t, text)
		set := NewSet(Pool{Own: p, Attached: []Attached{{ID: "a", Policy: p}}, CertificateRule: true})
		var res Result
		if n := testing.AllocsPerRun(200, func() { p.Evaluate(in, &res) }); n != 0 {
			t.Errorf("%s: Policy.Evaluate allocates %v times", name, n)
		}
		if n := testing.AllocsPerRun(200, func() {
			set.Evaluate(in, &res)
			Choose(&res, Client{Follows: true})
		}); n != 0 {
			t.Errorf("%s: Set.Evaluate and Choose allocate %v times", name, n)
		}
	}
}

func BenchmarkTypical(b *testing.B) {
	p := mustParse(b, typicalPolicy)
	in := typicalInput()
	var res Result
	p.Evaluate(in, &res)
	if !res.Allowed() {
		b.Fatal("not allowed")
	}
	b.ReportAllocs()
	for b.Loop() {
		p.Evaluate(in, &res)
	}
}

func BenchmarkTypicalPooled(b *testing.B) {
	set := NewSet(Pool{Own: mustParse(b, typicalPolicy), CertificateRule: true})
	in := typicalInput()
	var res Result
	b.ReportAllocs()
	for b.Loop() {
		set.Evaluate(in, &res)
		if Choose(&res, Client{Follows: true}).Outcome != Allow {
			b.Fatal("not allowed")
		}
	}
}

func BenchmarkEmailIn(b *testing.B) {
	for _, size := range []int{1, 10_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var list strings.Builder
			for i := range size {
				fmt.Fprintf(&list, "person%d@harbor.test, ", i)
			}
			p := mustParse(b, "allow: {and: [{email: {in: ["+list.String()+"]}}]}")
			// The addresses asked for are spread over the list, so that a long
			// list pays for its cache misses too.
			in := typicalInput()
			asked := make([]string, min(size, 1024))
			for i := range asked {
				asked[i] = fmt.Sprintf("person%d@harbor.test", i*size/len(asked))
			}
			var res Result
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				in.Email = asked[i%len(asked)]
				i++
				p.Evaluate(in, &res)
			}
			if !res.Allowed() {
				b.Fatal("not allowed")
			}
		})
	}
}

func BenchmarkSourceIP(b *testing.B) {
	for _, size := range []int{1, 10_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var list strings.Builder
			for i := range size {
				fmt.Fprintf(&list, "10.%d.%d.0/24, ", i/256, i%256)
			}
			p := mustParse(b, "allow: {and: [{source_ip: ["+list.String()+"]}]}")
			in := typicalInput()
			asked := make([]netip.Addr, min(size, 1024))
			for i := range asked {
				n := i * size / len(asked)
				asked[i] = netip.AddrFrom4([4]byte{10, byte(n / 256), byte(n), 9})
			}
			var res Result
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				in.ClientIP = asked[i%len(asked)]
				i++
				p.Evaluate(in, &res)
			}
			if !res.Allowed() {
				b.Fatal("not allowed")
			}
		})
	}
}

// BenchmarkParse compiles one small policy of its own; 10,000 routes are
// 10,000 of these.
func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	text := []byte(typicalPolicy)
	for b.Loop() {
		if _, _, err := Parse("policy.yaml", text, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompileRoutes compiles the distinct policies of 10,000 routes, as
// they stand in a document that is already read.
func BenchmarkCompileRoutes(b *testing.B) {
	trees := make([]*yaml.Node, 10_000)
	for i := range trees {
		text := strings.ReplaceAll(typicalPolicy, "grp-eng", fmt.Sprintf("grp-%d", i))
		n := new(yaml.Node)
		if err := yaml.Unmarshal([]byte(text), n); err != nil {
			b.Fatal(err)
		}
		trees[i] = n.Content[0]
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, n := range trees {
			if _, _, err := ParseNode("config.yaml", n, Options{FoldCase: true, Path: "routes[0].policy"}); err != nil {
				b.Fatal(err)
			}
		}
	}
}
