package policy

import (
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// stringOperators are the operators of the string matcher (§6).
var stringOperators = []string{"is", "not", "contains", "starts_with", "ends_with", "in", "not_in"}

// stringOperator is one operator with its operand.
type stringOperator struct {
	name  string
	holds func(string) bool
}

// stringMatcher compiles a string matcher: an object of operators that must
// all hold, or anything else as shorthand for `is`. nil: reported.
func (s *Scope) stringMatcher(n *yaml.Node, sub string) func(string) bool {
	ops, ok := s.stringMatcherOperators(n, sub)
	if !ok {
		return nil
	}
	switch len(ops) {
	case 0:
		return func(string) bool { return true }
	case 1:
		return ops[0].holds
	}
	return func(v string) bool {
		for i := range ops {
			if !ops[i].holds(v) {
				return false
			}
		}
		return true
	}
}

func (s *Scope) stringMatcherOperators(n *yaml.Node, sub string) (ops []stringOperator, ok bool) {
	if n.Kind != yaml.MappingNode {
		holds := s.stringOperator("is", n, sub)
		return []stringOperator{{"is", holds}}, holds != nil
	}
	entries, ok := s.object(n, sub, "string operator", stringOperators)
	if len(n.Content) == 0 {
		s.Warnf(n, sub, "an empty matcher holds for every value; say what %s must be", s.name(sub))
	}
	for _, e := range entries {
		holds := s.stringOperator(e.name, e.value, joinPath(sub, e.name))
		if holds == nil {
			ok = false
			continue
		}
		ops = append(ops, stringOperator{e.name, holds})
	}
	return ops, ok && len(ops) == len(n.Content)/2
}

// stringOperator compiles one operator over a string value.
func (s *Scope) stringOperator(name string, n *yaml.Node, sub string) func(string) bool {
	switch name {
	case "is", "not":
		v, ok := s.plain(n, sub)
		if !ok {
			return nil
		}
		if name == "is" && (sub == "" || sub == "is") {
			o := newOperand(v)
			s.is = &o
		}
		want, isText := v.(string)
		if !isText {
			s.Warnf(n, sub, "%s compares a string with %s, which are never equal%s", s.Criterion.Name, describe(n), instead(n))
			never := name == "not"
			return func(string) bool { return never }
		}
		if name == "is" {
			return func(v string) bool { return v == want }
		}
		return func(v string) bool { return v != want }
	case "contains", "starts_with", "ends_with":
		want, ok := s.text(n, sub, name)
		switch {
		case !ok:
			return nil
		case name == "contains":
			return func(v string) bool { return strings.Contains(v, want) }
		case name == "starts_with":
			return func(v string) bool { return strings.HasPrefix(v, want) }
		}
		return func(v string) bool { return strings.HasSuffix(v, want) }
	case "in", "not_in":
		set, ok := s.stringSet(name, n, sub)
		switch {
		case !ok:
			return nil
		case name == "in":
			return func(v string) bool { _, listed := set[v]; return listed }
		}
		return func(v string) bool { _, listed := set[v]; return !listed }
	}
	return nil
}

func instead(n *yaml.Node) string {
	if n.Kind == yaml.SequenceNode {
		return "; use in for a list"
	}
	return "; put it in quotes if the text is meant"
}

// stringSet reads the list of `in` or `not_in`. Elements that are not strings
// never equal one, so they are left out with a warning.
func (s *Scope) stringSet(name string, n *yaml.Node, sub string) (map[string]struct{}, bool) {
	if n.Kind != yaml.SequenceNode {
		s.wrongType(n, sub, name, "list")
		return nil, false
	}
	set := make(map[string]struct{}, len(n.Content))
	for i, item := range n.Content {
		v, ok := s.plain(item, sub+"["+strconv.Itoa(i)+"]")
		if !ok {
			return nil, false
		}
		if t, isText := v.(string); isText {
			set[t] = struct{}{}
		} else {
			s.Warnf(item, sub+"["+strconv.Itoa(i)+"]", "%s compares a string with %s, which are never equal%s",
				s.Criterion.Name, describe(item), instead(item))
		}
	}
	return set, true
}

// stringValues gives the strings a matcher names by is, not, in and not_in,
// with their nodes, for warnings.
func stringValues(n *yaml.Node) (values []*yaml.Node) {
	if n.Kind != yaml.MappingNode {
		return []*yaml.Node{n}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if v := n.Content[i+1]; v.Kind == yaml.SequenceNode {
			values = append(values, v.Content...)
		} else if slices.Contains(stringOperators, n.Content[i].Value) {
			values = append(values, v)
		}
	}
	return values
}

// stringCriterion makes the compile function of a criterion that is a string
// matcher over one value that is always there.
func stringCriterion(value func(in *Input) string, yes, no Reason) func(*Scope, *yaml.Node) test {
	return func(s *Scope, n *yaml.Node) test {
		match := s.stringMatcher(n, "")
		if match == nil {
			return nil
		}
		ok, bad := yes.set(), no.set()
		return func(in *Input) verdict { return pass(match(value(in)), ok, bad) }
	}
}
