package policytest

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// Mutation breaks policies on purpose: a test that does not notice a dropped
// rule or an `is` turned into `not` would not notice the slip of a hand
// either. Each variant differs from the policy in one place.

// Mutant is one broken variant.
type Mutant struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Test   string `json:"test"`
	Path   string `json:"path"`
	Change string `json:"change"` // "drop the criterion", "and becomes or"
	// Caught: some case fails with it. Equivalent: none does, but it also
	// gave the answers of the original on every input tried, so that probably
	// no case could tell them apart.
	Caught     bool `json:"caught"`
	Equivalent bool `json:"equivalent"`
}

func (m Mutant) String() string {
	return fmt.Sprintf("%s:%d:%d: %s: %s (%s)", m.File, m.Line, m.Column, m.Path, m.Change, m.Test)
}

// Mutation is the result of Mutate.
type Mutation struct {
	Mutants    int      `json:"mutants"`
	Caught     int      `json:"caught"`
	Equivalent []Mutant `json:"equivalent"`
	Survivors  []Mutant `json:"survivors"`
}

// maxMutants bounds the variants of one document; what is left out is not
// counted.
const maxMutants = 2000

// Mutate puts the cases of the documents to broken variants of their
// policies. Documents with a failing case are left out: they catch everything.
func Mutate(docs []*Document, opts Options) Mutation {
	opts.Evaluator = Local{} // hundreds of variants: no need for a store in each
	m := Mutation{Equivalent: []Mutant{}, Survivors: []Mutant{}}
	for _, d := range docs {
		if d.Invalid != nil || d.LoadError != nil || len(d.Cases) == 0 || !passes(d, opts) {
			continue
		}
		left := maxMutants
		for _, t := range d.texts {
			rules := rulesOf(t.node)
			var sweep []*policy.Input
			for _, v := range variants(rules, t.path) {
				if left--; left < 0 {
					break
				}
				p, _, err := policy.ParseNode(t.file, v.tree, policy.Options{Path: t.path})
				if err != nil {
					continue // not a policy, so nobody could have written it by a slip
				}
				one := Mutant{File: t.file, Line: v.at.Line, Column: v.at.Column, Test: d.Name, Path: v.path, Change: v.change}
				changed := d.with(t.attached, p)
				m.Mutants++
				if one.Caught = !passes(changed, opts); one.Caught {
					m.Caught++
					continue
				}
				if sweep == nil {
					sweep = inputsNear(d, rules)
				}
				if one.Equivalent = sameAnswers(d.Cases[0], changed.Cases[0], sweep); one.Equivalent {
					m.Equivalent = append(m.Equivalent, one)
				} else {
					m.Survivors = append(m.Survivors, one)
				}
			}
		}
	}
	return m
}

func passes(d *Document, opts Options) bool {
	for _, o := range d.Run(opts) {
		if !o.Pass {
			return false
		}
	}
	return true
}

// with gives the document with one of its policies replaced.
func (d *Document) with(attached int, p *policy.Policy) *Document {
	out := *d
	out.Cases = make([]*Case, len(d.Cases))
	for i, c := range d.Cases {
		k := *c
		if attached < 0 {
			k.Own = p
		} else {
			k.Attached = append([]policy.Attached{}, c.Attached...)
			k.Attached[attached].Policy = p
		}
		out.Cases[i] = &k
	}
	return &out
}

func (m *Mutation) print(w io.Writer) {
	for _, one := range m.Survivors {
		fmt.Fprintf(w, "survived %s\n", one)
	}
	for _, one := range m.Equivalent {
		fmt.Fprintf(w, "equivalent, it seems %s\n", one)
	}
	fmt.Fprintf(w, "mutation: %d variants, %d caught, %d equivalent, %d survived\n", m.Mutants, m.Caught, len(m.Equivalent), len(m.Survivors))
}

// ruleText is one operator of one action. A policy is the list of its rules:
// how they are spread over items and bodies never matters (§2).
type ruleText struct {
	action, op string
	criteria   *yaml.Node // list
	at         *yaml.Node // the operator's key
	actionAt   *yaml.Node
	path       string
}

func rulesOf(n *yaml.Node) (list []ruleText) {
	add := func(n *yaml.Node, path string) {
		if n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			action, body := n.Content[i], n.Content[i+1]
			if body.Kind != yaml.MappingNode {
				continue
			}
			for j := 0; j+1 < len(body.Content); j += 2 {
				op, criteria := body.Content[j], body.Content[j+1]
				if criteria.Kind == yaml.SequenceNode && len(criteria.Content) > 0 {
					list = append(list, ruleText{action.Value, op.Value, criteria, op, action, join(path, action.Value+"."+op.Value)})
				}
			}
		}
	}
	if n.Kind == yaml.SequenceNode {
		for i, item := range n.Content {
			add(item, "["+strconv.Itoa(i)+"]")
		}
	} else {
		add(n, "")
	}
	return list
}

func join(a, b string) string {
	if a == "" || b == "" || b[0] == '[' {
		return a + b
	}
	return a + "." + b
}

// variant is a changed tree with what was changed.
type variant struct {
	tree         *yaml.Node
	at           *yaml.Node
	path, change string
}

// treeOf writes rules as a policy, with rule i replaced by r (nil: dropped).
func treeOf(rules []ruleText, at int, r *ruleText) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: 1, Column: 1}
	for i := range rules {
		one := &rules[i]
		if i == at {
			if r == nil {
				continue
			}
			one = r
		}
		list.Content = append(list.Content, mapping(one.action, mapping(one.op, one.criteria)))
	}
	return list
}

func scalar(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Line: 1, Column: 1}
}

func mapping(key string, value *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: 1, Column: 1, Content: []*yaml.Node{scalar(key), value}}
}

var (
	swapped = map[string]string{"and": "or", "or": "and", "not": "nor", "nor": "not"}
	negated = map[string]string{"and": "nor", "nor": "and", "or": "not", "not": "or"}
	flipped = map[string]string{"allow": "deny", "deny": "allow"}
)

// variants are all single changes.
func variants(rules []ruleText, path string) (out []variant) {
	for i := range rules {
		r := rules[i]
		where := join(path, r.path)
		add := func(at *yaml.Node, path, change string, edit func(*ruleText)) {
			changed := r
			edit(&changed)
			out = append(out, variant{treeOf(rules, i, &changed), at, path, change})
		}
		out = append(out, variant{treeOf(rules, i, nil), r.at, where, "drop the rule"})
		add(r.actionAt, where, r.action+" becomes "+flipped[r.action], func(c *ruleText) { c.action = flipped[r.action] })
		add(r.at, where, r.op+" becomes "+negated[r.op], func(c *ruleText) { c.op = negated[r.op] })
		if len(r.criteria.Content) > 1 {
			add(r.at, where, r.op+" becomes "+swapped[r.op], func(c *ruleText) { c.op = swapped[r.op] })
		}
		for j, item := range r.criteria.Content {
			at := where + "[" + strconv.Itoa(j) + "]"
			if len(r.criteria.Content) > 1 {
				add(item, at, "drop the criterion", func(c *ruleText) { c.criteria = without(r.criteria, j) })
			}
			if item.Kind != yaml.MappingNode || len(item.Content) != 2 {
				continue
			}
			name, value := item.Content[0].Value, item.Content[1]
			for _, v := range matcherVariants(name, value) {
				add(v.at, at+"."+name, v.change, func(c *ruleText) {
					c.criteria = with(r.criteria, j, mapping(name, v.tree))
				})
			}
		}
	}
	return out
}

func without(list *yaml.Node, i int) *yaml.Node {
	out := *list
	out.Content = append(append([]*yaml.Node{}, list.Content[:i]...), list.Content[i+1:]...)
	return &out
}

func with(list *yaml.Node, i int, item *yaml.Node) *yaml.Node {
	out := *list
	out.Content = append([]*yaml.Node{}, list.Content...)
	out.Content[i] = item
	return &out
}

// otherOperators are the slips between the operators of matchers.
var otherOperators = map[string][]string{
	"is": {"not"}, "not": {"is"}, "in": {"not_in"}, "not_in": {"in"},
	"contains": {"starts_with"}, "starts_with": {"contains"}, "ends_with": {"contains"},
	"has": {"exclude"}, "exclude": {"has"}, "after": {"before"}, "before": {"after"},
	"<": {"<="}, "<=": {"<"}, ">": {">="}, ">=": {">"}, "=": {"<", ">"},
}

// maxElements is how many elements of a list are dropped one by one.
const maxElements = 20

func matcherVariants(name string, value *yaml.Node) (out []variant) {
	add := func(at, tree *yaml.Node, format string, args ...any) {
		out = append(out, variant{tree: tree, at: at, change: fmt.Sprintf(format, args...)})
	}
	word, _, _ := strings.Cut(name, "/")
	strong := map[string]bool{"user": true, "email": true, "domain": true, "http_method": true, "http_path": true, "mcp_tool": true, "ssh_username": true}[word]
	list := word == "claim" || word == "groups"
	switch {
	case word == "source_ip":
		all := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: []*yaml.Node{scalar("0.0.0.0/0"), scalar("::/0")}}
		add(value, all, "widen to every address")
	case strong && value.Kind != yaml.MappingNode:
		add(value, mapping("not", value), "is becomes not")
		if word != "http_method" {
			add(value, mapping("contains", value), "is becomes contains")
		}
	case strong && value.Kind == yaml.MappingNode:
		add(value, &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}, "widen to every value")
	case list && value.Kind != yaml.MappingNode:
		add(value, mapping("exclude", value), "has becomes exclude")
	}
	if value.Kind == yaml.SequenceNode {
		for i, item := range value.Content {
			if i < maxElements && len(value.Content) > 1 {
				add(item, without(value, i), "drop %s from the list", shown(item))
			}
		}
	}
	if value.Kind != yaml.MappingNode {
		return out
	}
	for i := 0; i+1 < len(value.Content); i += 2 {
		key, operand := value.Content[i], value.Content[i+1]
		for _, other := range otherOperators[key.Value] {
			if child(value, other) != nil {
				continue
			}
			add(key, with(value, i, scalar(other)), "%s becomes %s", key.Value, other)
		}
		if len(value.Content) > 2 && key.Value != "timezone" && key.Value != "type" && key.Value != "field" {
			dropped := *value
			dropped.Content = append(append([]*yaml.Node{}, value.Content[:i]...), value.Content[i+2:]...)
			add(key, &dropped, "drop %s", key.Value)
		}
		if key.Value == "approved" || key.Value == "exists" {
			yes := operand.Value == "true"
			add(operand, with(value, i+1, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(!yes)}), "%s becomes %v", key.Value, !yes)
		}
		if operand.Kind == yaml.SequenceNode {
			for j, item := range operand.Content {
				if j < maxElements {
					add(item, with(value, i+1, without(operand, j)), "drop %s from the list", shown(item))
				}
			}
		}
	}
	return out
}

func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func shown(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		return "an element"
	}
	if len(n.Value) > 40 {
		return strconv.Quote(n.Value[:40] + "...")
	}
	return strconv.Quote(n.Value)
}
