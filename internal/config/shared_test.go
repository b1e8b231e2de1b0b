package config

import "testing"

func TestEqualPoliciesAreShared(t *testing.T) {
	cfg := mustLoad(t, `routes:
  - {from: https://a.example.com, to: http://h, policy: [{allow: {or: [{domain: x.test}]}}]}
  - {from: https://b.example.com, to: http://b, policy: [{allow: {or: [{domain: x.test}]}}]}
  - {from: https://c.example.com, to: http://h, policy: [{allow: {or: [{domain: y.test}]}}]}
  - {from: https://d.example.com, to: http://h, policy: [{allow: {or: [{claim/a: 7}]}}]}
  - {from: https://e.example.com, to: http://h, policy: [{allow: {or: [{claim/a: "7"}]}}]}
  - {from: https://f.example.com, to: http://h, allowed_domains: [x.test]}
  - {from: https://g.example.com, to: http://h, allowed_domains: [x.test]}
  - {from: https://h.example.com, to: http://h, allowed_domains: [y.test]}
`)
	r := cfg.Routes
	if r[0].Compiled == nil || !r[0].Compiled.Shares(r[1].Compiled) {
		t.Error("equal policies are compiled twice")
	}
	if a, b := r[0].Compiled.Rules()[0].Criteria[0], r[1].Compiled.Rules()[0].Criteria[0]; a.Line != 2 || b.Line != 3 || b.Path != "routes[1].policy[0].allow.or[0].domain" {
		t.Errorf("a shared rule stands at line %d and %d, %s", a.Line, b.Line, b.Path)
	}
	for i, a := range r[1:5] {
		for _, b := range r[i+2 : 5] {
			if a.Compiled.Shares(b.Compiled) {
				t.Errorf("%s and %s share a policy", a.Match.From, b.Match.From)
			}
		}
	}
	if r[5].Shortcuts == nil || r[5].Shortcuts != r[6].Shortcuts || r[5].Shortcuts == r[7].Shortcuts {
		t.Error("equal shortcuts are not shared, or others are")
	}
}

// TestRemarksKeepTheirPlace: a policy that warns does so for every route.
func TestRemarksKeepTheirPlace(t *testing.T) {
	_, problems := loadText(`routes:
  - {from: https://a.example.com, to: http://h, policy: [{allow: {or: [{claim: x}]}}]}
  - {from: https://b.example.com, to: http://h, policy: [{allow: {or: [{claim: x}]}}]}
  - {from: https://c.example.com, to: http://h, policy: [{alow: {or: [{claim: x}]}}]}
  - {from: https://d.example.com, to: http://h, policy: [{alow: {or: [{claim: x}]}}]}
`)
	lines := map[int]bool{}
	for _, p := range problems {
		lines[p.Line] = true
	}
	for line := 2; line <= 5; line++ {
		if !lines[line] {
			t.Errorf("nothing is said about line %d: %s", line, show(problems))
		}
	}
}
