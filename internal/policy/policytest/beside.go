package policytest

import (
	"fmt"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// Target is what the cases that stand beside a route are put to: the route's
// effective policies and settings.
type Target struct {
	Attached []policy.Attached // all policies of the route, shortcuts included
	Settings Settings
}

// LoadBeside reads cases that stand beside a policy in a larger document, such
// as a route: a list of cases, or an object as in a test file (§14) without a
// policy. name is what the document is called if it does not say.
func LoadBeside(file, name string, n *yaml.Node, t Target) (*Document, error) {
	tree, problems := policy.Resolve(file, n)
	if len(problems) > 0 {
		return nil, problems
	}
	key := func(s string) *yaml.Node {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Line: tree.Line, Column: tree.Column}
	}
	doc := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: tree.Line, Column: tree.Column}
	named := false
	switch tree.Kind {
	case yaml.SequenceNode:
		doc.Content = append(doc.Content, key("cases"), tree)
	case yaml.MappingNode:
		doc.Content = append(doc.Content, tree.Content...)
		for i := 0; i < len(tree.Content); i += 2 {
			named = named || tree.Content[i].Value == "name"
		}
	default:
		return nil, policy.Problem{File: file, Line: tree.Line, Column: tree.Column,
			Message: "policy tests must be a list of cases, or an object with cases"}
	}
	if !named {
		doc.Content = append(doc.Content, key("name"), key(name))
	}
	d, err := load(file, doc, Options{})
	if err != nil {
		return nil, err
	}
	if !d.NoPolicy || d.Invalid != nil {
		return nil, policy.Problem{File: file, Line: tree.Line, Column: tree.Column,
			Message: fmt.Sprintf("the test %q names a policy of its own; tests beside a route are about its policy, so leave it out", d.Name)}
	}
	for _, c := range d.Cases {
		c.Put(t)
	}
	return d, nil
}

// Put makes the case one of the target: its policies and settings, with what
// the case says of external data.
func (c *Case) Put(t Target) {
	external := c.Settings.ExternalData
	c.Own, c.Attached, c.Settings = nil, t.Attached, t.Settings
	c.Settings.ExternalData = external
}
