package policytest

import (
	"fmt"
	"io"

	"postern/internal/policy"
)

// Coverage counts what the cases reached of the rules of their policies. A
// rule is reached if some case made it true. A criterion is covered if some
// case saw it true and some saw it false; those that never change (accept,
// reject) need only be seen. A case that is answered before any policy
// (internal paths, preflights to MCP servers) reaches nothing.
type Coverage struct {
	Points  int      `json:"points"`  // what there is to reach
	Reached int      `json:"reached"` //
	Percent float64  `json:"percent"` // 100 if there is nothing to reach
	Missed  []Missed `json:"missed"`  // in the order of files and texts
}

// Missed is what no case reached.
type Missed struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Test   string `json:"test"` // name of the document
	Path   string `json:"path"`
	// What: "never true" of a rule; "never true", "never false" or "never
	// seen" of a criterion.
	What string `json:"what"`
}

func (m Missed) String() string {
	return fmt.Sprintf("%s:%d:%d: %s: %s (%s)", m.File, m.Line, m.Column, m.Path, m.What, m.Test)
}

// Cover judges every rule and criterion by every case of the documents.
func Cover(docs []*Document) (c Coverage) {
	c.Missed = []Missed{}
	for _, d := range docs {
		if d.Invalid != nil || d.LoadError != nil || len(d.Cases) == 0 {
			continue
		}
		var inputs []*policy.Input
		for _, k := range d.Cases {
			in, err := Input(k)
			if err != nil || answeredBefore(k, in) {
				continue
			}
			inputs = append(inputs, in)
		}
		policies := []*policy.Policy{d.Cases[0].Own}
		for _, a := range d.Cases[0].Attached {
			policies = append(policies, a.Policy)
		}
		for _, p := range policies {
			if p == nil {
				continue
			}
			list := p.Rules()
			for i := range list {
				c.rule(d, p, &list[i], inputs)
			}
		}
	}
	c.Percent = 100
	if c.Points > 0 {
		c.Percent = 100 * float64(c.Reached) / float64(c.Points)
	}
	return c
}

func answeredBefore(k *Case, in *policy.Input) bool {
	if k.SSH != nil {
		return false
	}
	internal, _ := policy.InternalPath(in.RawPath)
	return internal || k.Settings.Route.MCPServer && in.Method == "OPTIONS"
}

func (c *Coverage) rule(d *Document, p *policy.Policy, r *policy.Rule, inputs []*policy.Input) {
	point := func(reached bool, u *policy.Use, path, what string) {
		c.Points++
		if reached {
			c.Reached++
			return
		}
		c.Missed = append(c.Missed, Missed{p.Name(), u.Line, u.Column, d.Name, path, what})
	}
	ruleTrue := false
	seenTrue, seenFalse := make([]bool, len(r.Criteria)), make([]bool, len(r.Criteria))
	for _, in := range inputs {
		all, some := true, false
		for i := range r.Criteria {
			ok := r.Criteria[i].Holds(in)
			seenTrue[i], seenFalse[i] = seenTrue[i] || ok, seenFalse[i] || !ok
			all, some = all && ok, some || ok
		}
		switch r.Operator {
		case "and":
			ruleTrue = ruleTrue || all
		case "or":
			ruleTrue = ruleTrue || some
		case "not":
			ruleTrue = ruleTrue || !some
		case "nor":
			ruleTrue = ruleTrue || !all
		}
	}
	if len(r.Criteria) == 0 {
		return
	}
	point(ruleTrue, &r.Criteria[0], r.Action+"."+r.Operator, "the rule is never true")
	for i := range r.Criteria {
		u := &r.Criteria[i]
		switch u.Criterion.Name {
		case "accept", "reject", "pomerium_routes":
			point(seenTrue[i] || seenFalse[i], u, u.Path, "never seen")
		default:
			point(seenTrue[i], u, u.Path, "never true")
			point(seenFalse[i], u, u.Path, "never false")
		}
	}
}

func (c *Coverage) print(w io.Writer) {
	for _, m := range c.Missed {
		fmt.Fprintf(w, "not reached %s\n", m)
	}
	fmt.Fprintf(w, "coverage: %.1f%% (%d of %d)\n", c.Percent, c.Reached, c.Points)
}
