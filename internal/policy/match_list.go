package policy

import "go.yaml.in/yaml/v3"

// listOperators are the operators of the list matcher (§6).
var listOperators = []string{"has", "exclude", "is"}

// listMatcher is a compiled list matcher; all its operators must hold.
type listMatcher struct {
	ops []listOperator
}

type listOperator struct {
	name string
	operand
}

// listMatcher compiles a list matcher: an object of operators, or anything
// else as shorthand for `has`. nil: reported.
func (s *Scope) listMatcher(n *yaml.Node) *listMatcher {
	m := &listMatcher{}
	add := func(name string, n *yaml.Node, sub string) bool {
		v, ok := s.plain(n, sub)
		if !ok {
			return false
		}
		if name == "has" && n.Kind == yaml.SequenceNode {
			s.Warnf(n, sub, "has compares each element with the whole list, so it finds only a list inside the list; use or with one %s per value", s.Criterion.Name)
		}
		o := newOperand(v)
		if name == "is" {
			s.is = &o
		}
		m.ops = append(m.ops, listOperator{name, o})
		return true
	}
	if n.Kind != yaml.MappingNode {
		if !add("has", n, "") {
			return nil
		}
		return m
	}
	entries, _ := s.object(n, "", "list operator", listOperators)
	if len(n.Content) == 0 {
		s.Warnf(n, "", "an empty matcher holds for every list; say what %s must hold", s.Criterion.Name)
	}
	for _, e := range entries {
		add(e.name, e.value, e.name)
	}
	if len(m.ops) < len(n.Content)/2 {
		return nil
	}
	return m
}

// matches judges a list of values as JSON decodes them; nil is the empty list.
func (m *listMatcher) matches(list []any) bool {
	for i := range m.ops {
		op := &m.ops[i]
		found := false
		for _, v := range list {
			if op.equals(v) {
				found = true
				break
			}
		}
		if !op.holds(found, len(list)) {
			return false
		}
	}
	return true
}

// matchesText judges a list of strings.
func (m *listMatcher) matchesText(list []string) bool {
	for i := range m.ops {
		op := &m.ops[i]
		found := false
		if op.kind == kindString {
			for _, v := range list {
				if op.operand.text == v {
					found = true
					break
				}
			}
		}
		if !op.holds(found, len(list)) {
			return false
		}
	}
	return true
}

func (op *listOperator) holds(found bool, length int) bool {
	switch op.name {
	case "has":
		return found
	case "exclude":
		return !found
	}
	return found && length == 1
}
