package policy

import (
	"slices"
	"strings"
)

// place is where a policy stands in a larger document: what comes before the
// paths of its rules, and what is added to their lines.
type place struct {
	path  string
	lines int
}

// At is p as it stands at another path and line of a document. What p decides
// is shared, so equal policies are compiled once wherever they stand, and a
// policy that only moved is not compiled again.
func (p *Policy) At(path string, line int) *Policy {
	if p == nil {
		return nil
	}
	moved := *p
	moved.place = place{path, line - 1}
	return &moved
}

// settle makes the rules just compiled relative to the root of their tree.
func (p *Policy) settle(path string, line int) {
	p.place = place{path, line - 1}
	for i := range p.rules {
		for j := range p.rules[i].Criteria {
			u := &p.rules[i].Criteria[j]
			u.Path = below(u.Path, path)
			u.Line -= p.place.lines
		}
	}
	for i := range p.identityDenys {
		w := &p.identityDenys[i]
		w.Path = below(w.Path, path)
		w.Line -= p.place.lines
	}
}

func below(path, root string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, root), ".")
}

// placed gives rules with the places that p has in its document.
func (p *Policy) placed() []Rule {
	if p.place == (place{}) {
		return p.rules
	}
	rules := slices.Clone(p.rules)
	for i := range rules {
		rules[i].Criteria = slices.Clone(rules[i].Criteria)
		for j := range rules[i].Criteria {
			u := &rules[i].Criteria[j]
			u.Path = joinPath(p.place.path, u.Path)
			u.Line += p.place.lines
		}
	}
	return rules
}

// Shares reports whether p and q are one policy at two places.
func (p *Policy) Shares(q *Policy) bool {
	return p != nil && q != nil && len(p.rules) > 0 && len(q.rules) > 0 && &p.rules[0] == &q.rules[0]
}
