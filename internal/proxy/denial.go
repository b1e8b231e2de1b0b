package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"postern/internal/authz"
	"postern/internal/pages"
	"postern/internal/policy"
	"postern/internal/session"
)

// maxConditions bounds the conditions on a refusal page.
const maxConditions = 12

// DenialOf is what a refusal page tells besides to those who may know: on
// routes with show_error_details, and to administrators, who are told
// everything (full): also names and networks that would be let in, and where
// the rule stands.
func DenialOf(d *authz.Decision, full bool) pages.Denial {
	var out pages.Denial
	x := d.Explain(context.Background())
	for i := range x.Trace.Policies {
		p := &x.Trace.Policies[i]
		for j := range p.Rules {
			if r := &p.Rules[j]; r.Decided {
				for k := range r.Criteria {
					out.Conditions = addCondition(out.Conditions, conditionOf(d.Caller, p, &r.Criteria[k], full))
				}
			}
		}
	}
	if len(out.Conditions) == 0 {
		for _, reason := range d.Why.Names() {
			out.Conditions = append(out.Conditions, pages.ConditionFor(reason))
		}
	}
	for _, r := range d.Details {
		out.Policies = append(out.Policies, pages.PolicyWords{
			ID: r.ID, Denied: r.Denied, Allowed: r.Allowed,
			Explanation: r.Explanation, Remediation: r.Remediation,
		})
	}
	if len(x.Trace.Changes) > 0 {
		out.Remedy = remedyOf(x.Trace.Changes[0], full)
	}
	return out
}

// addCondition leaves out what another rule said already.
func addCondition(list []pages.Condition, c pages.Condition) []pages.Condition {
	same := func(o pages.Condition) bool {
		return o.Title == c.Title && o.Outcome == c.Outcome && o.Rule == c.Rule && slices.Equal(o.Needs, c.Needs)
	}
	if len(list) == maxConditions || slices.ContainsFunc(list, same) {
		return list
	}
	return append(list, c)
}

// conditionOf words a criterion of a rule that decided.
func conditionOf(who *session.Caller, p *policy.PolicyTrace, c *policy.CriterionTrace, full bool) pages.Condition {
	reason := ""
	if len(c.Reasons) > 0 {
		reason = c.Reasons[0]
	}
	out := pages.ConditionFor(reason)
	out.Outcome = pages.Met
	if c.Decided {
		out.Outcome = pages.Unmet
		if c.Value {
			// True where it should not be: under deny, or under not.
			out.Title = "A rule refuses this"
			if out.Noun != "" {
				out.Title = "A rule refuses this " + out.Noun
			}
		}
	}
	if !c.Value && (full || tellable(c.Criterion)) {
		out.Needs = c.Needs
	}
	if c.Origin.Kind != policy.FromNowhere && c.Origin.Kind != policy.FromClock {
		out.Saw, out.Source, out.Synced = groupNames(who, c), c.Source, c.ModifiedAt
	}
	if full {
		out.Rule = c.Path
		if p.ID != "" {
			out.Rule = p.ID + ": " + c.Path
		}
		if c.Line > 0 && p.Name != "" {
			out.Rule = fmt.Sprintf("%s (%s:%d)", out.Rule, p.Name[strings.LastIndexByte(p.Name, '/')+1:], c.Line)
		}
	}
	return out
}

// groupNames gives what was seen, groups by the names that people know.
func groupNames(who *session.Caller, c *policy.CriterionTrace) []string {
	if c.Origin.Kind != policy.FromGroups || who == nil {
		return c.Seen
	}
	out := slices.Clone(c.Seen)
	for i, id := range out {
		for _, g := range who.Groups {
			if g != nil && g.ID == id && g.Name != "" {
				out[i] = g.Name
			}
		}
	}
	return out
}

// tellable are the criteria whose wanted values a visitor may be told: not the
// names of other people, nor the networks of the house.
func tellable(criterion string) bool {
	name, _, _ := strings.Cut(criterion, "/")
	switch name {
	case "groups", "domain", "claim", "http_method":
		return true
	}
	return false
}

// remedyOf is one sentence on what would have to change; "" if a visitor may
// not be told a part of it.
func remedyOf(changes []policy.Change, full bool) string {
	var parts []string
	for _, c := range changes {
		if !full && c.Criterion != "" && (!tellable(c.Criterion) || !c.Value) {
			return ""
		}
		parts = append(parts, c.Text)
	}
	return "What would have to change: " + strings.Join(parts, "; ") + "."
}
