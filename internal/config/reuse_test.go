package config

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// after loads text as a change of what earlier came from.
func after(earlier *Config, format Format, text string) (*Config, []Problem) {
	return judged(loadAll(context.Background(), earlier, diskReader, Text("config.yaml", format, []byte(text)), Environment(nil)))
}

// facts is what a configuration says, without what it keeps for later ones;
// policies are told by their rules and where they stand.
func facts(c *Config) []any {
	if c == nil {
		return nil
	}
	plain := *c
	plain.results, plain.premises, plain.Routes = nil, nil, nil
	plain.AdminPolicy = nil
	type rules struct{ own, shortcuts, shadow any }
	var routes []Route
	var policies []rules
	for _, r := range c.Routes {
		copied := *r
		copied.Compiled, copied.Shortcuts, copied.Shadow = nil, nil, nil
		routes = append(routes, copied)
		policies = append(policies, rules{rulesOf(r.Compiled), rulesOf(r.Shortcuts), rulesOf(r.Shadow)})
	}
	out := []any{plain, rulesOf(c.AdminPolicy)}
	for i := range routes {
		out = append(out, routes[i], policies[i])
	}
	return out
}

func rulesOf(p *policy.Policy) (out []string) {
	if p == nil {
		return nil
	}
	for _, r := range p.Rules() {
		for _, u := range r.Criteria {
			out = append(out, fmt.Sprint(r.Action, r.Operator, u.Criterion.Name, u.SubPath, u.Path, u.Line, u.Column))
		}
	}
	return out
}

// same compares a load that takes over with one that does not.
func same(t testing.TB, earlier *Config, format Format, text string) *Config {
	t.Helper()
	fresh, freshProblems := after(nil, format, text)
	got, problems := after(earlier, format, text)
	if !reflect.DeepEqual(problems, freshProblems) {
		t.Fatalf("problems differ:\n%s\nfresh:\n%s\n%s", show(problems), show(freshProblems), text)
	}
	a, b := facts(got), facts(fresh)
	if len(a) != len(b) {
		t.Fatalf("%d routes, fresh %d\n%s", len(a)/2, len(b)/2, text)
	}
	for i := range a {
		if !reflect.DeepEqual(a[i], b[i]) {
			t.Fatalf("what was taken over differs:\n%+v\nfresh:\n%+v\n%s", a[i], b[i], text)
		}
	}
	return got
}

// An editor makes and changes documents at random, of lines that people
// write, and of some that they should not.
type editor struct {
	rand   *rand.Rand
	global []string
	routes []string
	tail   []string
}

var globalLines = []string{
	"log_level: debug\n", "default_upstream_timeout: 7s\n", "cookie_domain: example.com\n", "# a comment\n\n",
	"set_response_headers: {X-A: b}\n", "address: ':8443'\n", "bearer_token_format: jwt\n", "pass_identity_headers: true\n",
	"policy:\n- {from: https://old.example.com, to: http://h}\n", "x: [unclosed\n", "runtime_flags: {ssh_upstream_tunnel: true}\n",
	"title: \"two\n  lines\"\n", "config_bad_route: isolate\n", "---\n", "admin_policy: {allow: {or: [{email: a@example.com}]}}\n",
}

// routeLines are settings of a route, oddLines such as nobody should write.
var (
	routeLines = []string{
		"prefix: /a", "path: /exact", "regex: '^/[ab]+$'", "timeout: 3s", "allowed_users: [a@example.com]",
		"allowed_idp_claims: {groups: [x]}", "policy:\n  - allow:\n      or:\n        - email: {is: a@example.com}\n        - domain: {is: b.test}",
		"policy:\n  allow: {and: [domain: {is: c.test}]}", "description: |\n  some\n   text\n\n  - not an item", "description: 'quoted\n  over lines'",
		"set_request_headers: {X-A: \"1\", X-B: '# no'}", "# a comment", "name: A & B", "to:\n- http://a\n- http://b",
		"shadow_policy: [{allow: {or: [{domain: s.test}]}}]", "allow_any_authenticated_user: true", "logo_url: https://*.example.com",
	}
	oddLines = []string{
		"timeout: soon", "colour: red", "policy: [{allow: {or: [{claim: x}]}}]", "policy: [{alow: {}}]", "policy_tests:\n  - name: one\n    expect: allow",
		"health_checks: [{timeout: 1s}]", "tls_custom_ca_file: /nonexistent/ca.pem", "depends_on: [a.example.com]", "name: \"open", "name: [open",
		"bearer_token_format: jwt", "- stray", "name: *alias", "name: &anchor x", "name: \ttab", "name: !!str 5",
		"sub_policies: [{source_ppl: 'allow: {or: [accept: 1]}'}]",
	}
)

// pick gives one of the usual, seldom one of the odd.
func (e *editor) pick(usual, odd []string) string {
	if e.rand.IntN(8) == 0 {
		return odd[e.rand.IntN(len(odd))]
	}
	return usual[e.rand.IntN(len(usual))]
}

func (e *editor) route() string {
	i := e.rand.IntN(400)
	lines := []string{fmt.Sprintf("from: https://app-%d.example.com", i), "to: http://10.0.0.1:80"}
	for range e.rand.IntN(4) {
		lines = append(lines, e.pick(routeLines, oddLines))
	}
	e.rand.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	return "  - " + strings.ReplaceAll(strings.Join(lines, "\n"), "\n", "\n    ") + "\n"
}

func (e *editor) edit() {
	pick := func(list []string) int { return e.rand.IntN(len(list)) }
	switch n := e.rand.IntN(20); {
	case n < 5 || len(e.routes) == 0:
		at := e.rand.IntN(len(e.routes) + 1)
		e.routes = append(e.routes[:at:at], append([]string{e.route()}, e.routes[at:]...)...)
	case n < 9:
		e.routes[pick(e.routes)] = e.route()
	case n < 12:
		at := pick(e.routes)
		e.routes = append(e.routes[:at:at], e.routes[at+1:]...)
	case n < 13:
		a, b := pick(e.routes), pick(e.routes)
		e.routes[a], e.routes[b] = e.routes[b], e.routes[a]
	case n < 14:
		e.routes = append(e.routes, e.routes[pick(e.routes)])
	case n < 15:
		e.routes[pick(e.routes)] += []string{"\n", "  # between\n", "# at the side\n", "  odd: 1\n", " odd: 1\n", "...\n"}[e.rand.IntN(6)]
	case n < 17:
		e.global = []string{globalLines[pick(globalLines)]}
	case n < 18:
		e.global = nil
	default:
		e.tail = []string{globalLines[pick(globalLines)]}
		if e.rand.IntN(2) == 0 {
			e.tail = nil
		}
	}
}

func (e *editor) text() string {
	return strings.Join(e.global, "") + "routes:\n" + strings.Join(e.routes, "") + strings.Join(e.tail, "")
}

// TestTakingOverIsLoading: a configuration loaded after another is the one
// that is loaded alone, problems and all, over random sequences of changes.
func TestTakingOverIsLoading(t *testing.T) {
	taken, moved, loads, split := 0, 0, 0, 0
	for seed := range uint64(60) {
		e := &editor{rand: rand.New(rand.NewPCG(seed, 1))}
		var earlier *Config
		for range 25 {
			for range 1 + e.rand.IntN(2) {
				e.edit()
			}
			text := e.text()
			if _, ok := splitRoutes([]byte(text)); ok {
				split++
			}
			loads++
			got := same(t, earlier, YAML, text)
			if got == nil {
				// A malformed item is taken out again, or nothing would load.
				for i := len(e.routes) - 1; i >= 0; i-- {
					if _, problems := after(nil, YAML, "routes:\n"+e.routes[i]); Fatal(problems) {
						e.routes = append(e.routes[:i:i], e.routes[i+1:]...)
					}
				}
				e.global, e.tail = nil, nil
				continue
			}
			if earlier != nil {
				before := map[*Route]bool{}
				for _, r := range earlier.Routes {
					before[r] = true
				}
				keys := routesOf(earlier)
				for i, r := range got.Routes {
					switch {
					case before[r]:
						taken++
					case keys.find(got.results[i].key) != nil:
						moved++
					}
				}
			}
			earlier = got
		}
	}
	if taken < 300 || moved < 300 || split < loads/2 {
		t.Errorf("of %d loads %d were taken apart, %d routes were taken over and %d moved: the test shows little", loads, split, taken, moved)
	}
}

// TestTakingOverFromOtherFormats: where texts are not taken apart, trees are
// compared.
func TestTakingOverFromOtherFormats(t *testing.T) {
	first := `{"routes": [{"from": "https://a.example.com", "to": "http://a"},
 {"from": "https://b.example.com", "to": "http://b", "policy": [{"allow": {"or": [{"domain": {"is": "x.test"}}]}}]}]}`
	before, problems := after(nil, JSON, first)
	if before == nil {
		t.Fatal(show(problems))
	}
	got := same(t, before, JSON, strings.Replace(first, "http://a\"", "http://c\"", 1))
	if got.Routes[1] != before.Routes[1] || got.Routes[0] == before.Routes[0] {
		t.Error("the route that did not change was not taken over, or the other was")
	}
	moved := same(t, before, JSON, "\n\n"+first)
	if moved.Routes[1].Line != 4 || !moved.Routes[1].Compiled.Shares(before.Routes[1].Compiled) {
		t.Error("a route that moved was compiled again")
	}
}

// TestFilesOfRoutesAreCompared: a route is not taken over when a file that it
// names says something else.
func TestFilesOfRoutesAreCompared(t *testing.T) {
	dir := t.TempDir()
	token := write(t, dir, "token", "one")
	text := "routes:\n  - {from: https://a.example.com, to: http://a, kubernetes_service_account_token_file: " + token + "}\n"
	before, problems := after(nil, YAML, text)
	if before == nil {
		t.Fatal(show(problems))
	}
	if again, _ := after(before, YAML, text); again.Routes[0] != before.Routes[0] {
		t.Error("the route was not taken over")
	}
	write(t, dir, "token", "two")
	if again, _ := after(before, YAML, text); again.Routes[0].Extra.KubernetesToken != "two" {
		t.Error("the route keeps a token that its file no longer holds")
	}
}

// FuzzSplit: where a document is taken apart, its parts are what the parser
// finds in the whole.
func FuzzSplit(f *testing.F) {
	for seed := range uint64(20) {
		e := &editor{rand: rand.New(rand.NewPCG(seed, 2))}
		for range 6 {
			e.edit()
		}
		f.Add(e.text())
	}
	f.Add("routes:\n- a: 1\n  b: |+\n    x\n\n- 'two\n   lines'\n# end\nlog_level: info\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, ok := splitRoutes([]byte(text))
		if !ok {
			return
		}
		rest, problems := parseWhole("", s.rest, 0)
		at, found := routesValue(rest, s.key)
		if len(problems) > 0 || !found || !isNull(rest.Content[at]) {
			return // told of the whole
		}
		var items []*yaml.Node
		for _, it := range s.items {
			n := parseItem(it)
			if n == nil || n.Line != it.line {
				return
			}
			items = append(items, n)
		}
		whole, problems := parseWhole("", []byte(text), 0)
		if len(problems) > 0 {
			t.Fatalf("the parts are in order, the whole is not: %s", show(problems))
		}
		if !s.agrees(whole) {
			t.Fatalf("the parts are not the items")
		}
		place, _ := routesValue(whole, s.key)
		for _, n := range append(items, whole, rest) {
			placeless(n)
		}
		if !reflect.DeepEqual(whole.Content[place].Content, items) {
			t.Fatalf("an item means something else by itself")
		}
		whole.Content[place] = rest.Content[at]
		if !reflect.DeepEqual(whole, rest) {
			t.Fatalf("what is around the items differs")
		}
	})
}

// placeless forgets where nothing is: to a null without a character the parser
// gives the place of whatever it read next ("[a: ]").
func placeless(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" && n.Value == "" {
		n.Line, n.Column = 0, 0
	}
	for _, c := range n.Content {
		placeless(c)
	}
}
