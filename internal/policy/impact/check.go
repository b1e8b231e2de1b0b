package impact

import (
	"fmt"
	"slices"

	"postern/internal/policy"
)

// maxChecked bounds the criteria of a policy that Check compares rule by rule.
const maxChecked = 2000

// Check finds rules that do nothing: whose criteria contradict each other,
// whose requests another rule of the same action covers, and allow rules whose
// requests a deny always refuses. They are warnings: such a policy loads.
func Check(p *policy.Policy) []policy.Problem {
	if p == nil || p.Scripted() {
		return nil
	}
	list := p.Rules()
	total := 0
	for i := range list {
		total += len(list[i].Criteria)
	}
	if total > maxChecked || len(list) > 200 {
		return nil
	}
	// Whatever a route may be: nothing is ruled out by its kind.
	r, k := &Route{MCP: true, ClientCAs: true}, &Known{In: &policy.Input{}, open: true, anyRoute: true}
	// Few rules at a time: bounds between all criteria of a large policy would
	// be far larger than those that matter to a pair.
	conditions := func(rules ...*policy.Rule) []Condition {
		s := NewSpace()
		s.signedIn()
		out := make([]Condition, len(rules))
		for i, ru := range rules {
			out[i] = s.condition(func() ref { return s.rule(ru, r, k).ok })
		}
		return out
	}
	rules := make([]rule, len(list))
	dead := make([]bool, len(list))
	for i := range list {
		rules[i] = rule{policy: p, Rule: &list[i]}
		dead[i] = conditions(&list[i])[0].Never()
	}
	// covers[i][j]: whatever rule i is true of, rule j is.
	covers := make([][]bool, len(list))
	for i := range covers {
		covers[i] = make([]bool, len(list))
	}
	for i := range list {
		for j := range i {
			if dead[i] || dead[j] {
				continue
			}
			c := conditions(&list[i], &list[j])
			covers[i][j], covers[j][i] = c[0].But(c[1]).Never(), c[1].But(c[0]).Never()
		}
	}
	var out []policy.Problem
	warn := func(ru *rule, format string, args ...any) {
		at := ru.ref()
		out = append(out, policy.Problem{File: at.File, Line: at.Line, Column: at.Column, Path: at.Path, Message: fmt.Sprintf(format, args...)})
	}
	for i := range rules {
		ru := &rules[i]
		if dead[i] {
			switch {
			case slices.ContainsFunc(ru.Criteria, func(u policy.Use) bool { return u.Criterion.Name == "reject" }):
				// Somebody meant it.
			case len(ru.Criteria) == 1 && (ru.Criteria[0].Criterion.Name == "date" || ru.Criteria[0].Criterion.Name == "time_of_day"):
				// The parser told of the empty interval.
			case len(ru.Criteria) == 1:
				warn(ru, "this %s can never be true: no request is like its criterion; correct or remove it", ru.Operator)
			default:
				warn(ru, "this %s can never be true: its criteria contradict each other; remove it, or correct one of them", ru.Operator)
			}
			continue
		}
		for j := range rules {
			other := &rules[j]
			if !covers[i][j] {
				continue
			}
			at := other.ref()
			switch {
			case ru.Action == other.Action && (i > j || !covers[j][i]):
				verb := "allows"
				if ru.Action == "deny" {
					verb = "denies"
				}
				warn(ru, "this rule is unreachable: the rule at %d:%d (%s) %s whatever it %s; remove one of them", at.Line, at.Column, at.Path, verb, verb)
			case ru.Action == "allow" && other.Action == "deny":
				warn(ru, "this rule never lets anybody in: the rule at %d:%d (%s) denies whatever it allows; remove or narrow one of them", at.Line, at.Column, at.Path)
			default:
				continue
			}
			break
		}
	}
	return out
}
