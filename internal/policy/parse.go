package policy

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Options changes how a policy is read.
type Options struct {
	// FoldCase accepts actions, operators, criteria and matcher keys in any
	// case with a warning each, and lets `claim/Name` find the claim `name`
	// where there is no `Name`, as configuration files always allowed. Policy
	// texts and tests are read exactly.
	FoldCase bool
	// Path stands before every path in problems, for example "routes[3].policy".
	Path string
}

// Parse reads a policy from text: YAML, or JSON if name ends in ".json". Only
// the first document of a YAML stream is read. The error is of type Problems
// and holds everything that is wrong; the warnings are what the author should
// look at although the policy loads.
func Parse(name string, text []byte, opts Options) (*Policy, []Problem, error) {
	n, problem := readText(name, text)
	if problem != nil {
		return nil, nil, Problems{*problem}
	}
	return ParseNode(name, n, opts)
}

const emptyPolicy = "the policy is empty; write an object or a list of objects, {} to allow nobody"

func readText(name string, text []byte) (n *yaml.Node, problem *Problem) {
	fail := func(format string, args ...any) *Problem {
		return &Problem{File: name, Line: 1, Column: 1, Message: fmt.Sprintf(format, args...)}
	}
	if len(text) > maxText {
		return nil, fail("the text is larger than %d MiB; split the policy", maxText>>20)
	}
	if strings.HasSuffix(strings.ToLower(name), ".json") {
		n, problem = readJSON(name, text)
	} else {
		n, problem = readYAML(name, text)
	}
	if problem == nil && (n == nil || n.Kind == 0) {
		return nil, fail(emptyPolicy)
	}
	return n, problem
}

var yamlLine = regexp.MustCompile(`line (\d+): `)

// readYAML gives the first document of a stream; nil without one.
func readYAML(name string, text []byte) (n *yaml.Node, problem *Problem) {
	fail := func(cause string) *Problem {
		line := 1
		cause = strings.TrimPrefix(cause, "yaml: ")
		if m := yamlLine.FindStringSubmatch(cause); m != nil {
			line, _ = strconv.Atoi(m[1])
			cause = strings.Replace(cause, m[0], "", 1)
			if strings.HasPrefix(cause, "did not find expected") {
				line++ // the library counts these from 0
			}
		}
		return &Problem{File: name, Line: line, Column: 1,
			Message: fmt.Sprintf("not YAML: line %d: %s", line, cause)}
	}
	// The parser reports by panic inside; should one ever escape it, the text
	// is refused like any other that cannot be read.
	defer func() {
		if p := recover(); p != nil {
			n, problem = nil, fail(fmt.Sprint(p))
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, rest yaml.Node
	if err := dec.Decode(&doc); err != nil && err != io.EOF {
		return nil, fail(err.Error())
	}
	// Further documents are nobody's business, but text that belongs to none
	// may be a rule that a stray bracket cut off.
	if err := dec.Decode(&rest); err != nil && strings.Contains(err.Error(), "expected <document start>") {
		return nil, fail(err.Error())
	}
	return &doc, nil
}

// ParseNode reads a policy that is part of a larger document, such as a route.
func ParseNode(name string, n *yaml.Node, opts Options) (*Policy, []Problem, error) {
	if n == nil || n.Kind == 0 {
		return nil, nil, Problems{{File: name, Line: 1, Column: 1, Path: opts.Path, Message: emptyPolicy}}
	}
	tree, problems := Resolve(name, n)
	if opts.Path != "" {
		for i := range problems {
			problems[i].Path = joinPath(opts.Path, problems[i].Path)
		}
	}
	c := &compiler{file: name, fold: opts.FoldCase, errors: problems, policy: &Policy{name: name}}
	if tree != nil {
		c.compile(tree, opts.Path)
	}
	if len(c.errors) > 0 {
		slices.SortStableFunc(c.errors, func(a, b Problem) int {
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return a.Column - b.Column
		})
		return nil, c.warnings, c.errors
	}
	if c.policy.public {
		c.warnings = append(c.warnings, c.policy.identityDenys...)
	}
	c.policy.settle(opts.Path, n.Line)
	return c.policy, c.warnings, nil
}

func joinPath(a, b string) string {
	if a == "" || b == "" || b[0] == '[' {
		return a + b
	}
	return a + "." + b
}

// compiler turns a resolved tree into a Policy and collects what is wrong.
type compiler struct {
	file     string
	fold     bool
	errors   Problems
	warnings []Problem
	policy   *Policy
}

func (c *compiler) at(n *yaml.Node, path, format string, args []any) Problem {
	return Problem{File: c.file, Line: n.Line, Column: n.Column, Path: path, Message: fmt.Sprintf(format, args...)}
}

func (c *compiler) errorf(n *yaml.Node, path, format string, args ...any) {
	if len(c.errors) < maxErrors {
		c.errors = append(c.errors, c.at(n, path, format, args))
	}
}

func (c *compiler) warnf(n *yaml.Node, path, format string, args ...any) {
	if len(c.warnings) < maxErrors {
		c.warnings = append(c.warnings, c.at(n, path, format, args))
	}
}

// entry is one key of an object, with the name it is taken for.
type entry struct {
	name  string
	key   *yaml.Node
	value *yaml.Node
}

// entries lists an object's keys. With case folding a name that only differs
// in case from one of known becomes it, with a warning; then two keys may turn
// out to be one.
func (c *compiler) entries(n *yaml.Node, path string, known []string) []entry {
	list := make([]entry, 0, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		e := entry{name: n.Content[i].Value, key: n.Content[i], value: n.Content[i+1]}
		if c.fold && !slices.Contains(known, e.name) {
			word, rest, slash := strings.Cut(e.name, "/")
			if lower := strings.ToLower(word); lower != word && slices.Contains(known, lower) {
				c.warnf(e.key, path, "%s is read as %s; write it in lower case", quote(word), quote(lower))
				e.name = lower
				if slash {
					e.name += "/" + rest
				}
				if at := slices.IndexFunc(list, func(o entry) bool { return o.name == e.name }); at >= 0 {
					c.errorf(e.key, path, "key %s is given twice, first on line %d; keep one", quote(e.name), list[at].key.Line)
					continue
				}
			}
		}
		list = append(list, e)
	}
	return list
}

var actionNames = []string{"allow", "deny"}

func (c *compiler) compile(n *yaml.Node, path string) {
	switch n.Kind {
	case yaml.MappingNode:
		c.rule(n, path)
	case yaml.SequenceNode:
		for i, item := range n.Content {
			where := joinPath(path, "["+strconv.Itoa(i)+"]")
			if item.Kind != yaml.MappingNode {
				c.errorf(item, where, "a rule must be an object with allow or deny, got %s", describe(item))
				continue
			}
			c.rule(item, where)
		}
	default:
		c.errorf(n, path, "a policy must be an object or a list of objects with allow or deny, got %s", describe(n))
	}
}

func (c *compiler) rule(n *yaml.Node, path string) {
	for _, e := range c.entries(n, path, actionNames) {
		if e.name != "allow" && e.name != "deny" {
			c.errorf(e.key, path, "unknown action %s%s Actions: allow, deny",
				quote(e.name), orStop(didYouMean(e.name, actionNames)))
			continue
		}
		where := joinPath(path, e.name)
		if e.value.Kind != yaml.MappingNode {
			c.errorf(e.value, where, "%s must be an object with and, or, not or nor, got %s", quote(e.name), describe(e.value))
			continue
		}
		c.body(e.name, e.value, where)
	}
}

// orStop ends a phrase that may already end in a question mark.
func orStop(question string) string {
	if question == "" {
		return "."
	}
	return question
}

func (c *compiler) body(action string, n *yaml.Node, path string) {
	known := append([]string{"action"}, operatorNames...)
	for _, e := range c.entries(n, path, known) {
		if e.name == "action" {
			continue // accepted and ignored, as old policies carry it
		}
		op := operator(max(0, slices.Index(operatorNames, e.name)))
		switch {
		case op.String() != e.name:
			c.errorf(e.key, path, "unknown operator %s%s Operators: and, or, not, nor",
				quote(e.name), orStop(didYouMean(e.name, operatorNames)))
		case e.value.Kind != yaml.SequenceNode:
			c.errorf(e.value, joinPath(path, e.name), "%s wants a list of criteria, got %s", quote(e.name), describe(e.value))
		case len(e.value.Content) == 0:
			c.warnf(e.value, joinPath(path, e.name), "%s has an empty list, which says nothing; remove it or add criteria", quote(e.name))
		default:
			c.operator(action, op, e.value, joinPath(path, e.name))
		}
	}
}

func (c *compiler) operator(action string, op operator, list *yaml.Node, path string) {
	g := group{op: op, tests: make([]test, 0, len(list.Content))}
	uses := make([]Use, 0, len(list.Content))
	seenIs := map[string]operand{}
	for i, item := range list.Content {
		u, is := c.criterion(action, op, item, path+"["+strconv.Itoa(i)+"]")
		if u == nil {
			continue
		}
		if is != nil && op == opAnd {
			name := u.Criterion.Name
			if u.Criterion.SubPath {
				name += "/" + u.SubPath
			}
			if before, ok := seenIs[name]; ok && !before.same(is) {
				c.warnf(item, u.Path, "this and can never be true: %s cannot be two different values at once; use or, or in", name)
			} else {
				seenIs[name] = *is
			}
		}
		g.tests = append(g.tests, u.test)
		uses = append(uses, *u)
	}
	if len(uses) < len(list.Content) {
		return // in error, nothing is compiled
	}
	p := c.policy
	if action == "allow" {
		p.allow = append(p.allow, g)
		p.public = p.public || lowersAllBars(op, uses)
	} else {
		p.deny = append(p.deny, g)
		for _, u := range uses {
			if u.Criterion.Identity {
				p.identityDenys = append(p.identityDenys, Problem{File: c.file, Line: u.Line, Column: u.Column, Path: u.Path,
					Message: fmt.Sprintf("%s under deny makes every visitor of this public route sign in, since a deny that is false also tells why", u.Criterion.Name)})
			}
		}
	}
	p.rules = append(p.rules, Rule{Action: action, Operator: op.String(), Criteria: uses})
}

// lowersAllBars tells whether an allow lets in everybody by accept or reject alone.
func lowersAllBars(op operator, uses []Use) bool {
	is := func(name string) func(Use) bool {
		return func(u Use) bool { return u.Criterion.Name == name }
	}
	isNot := func(name string) func(Use) bool {
		return func(u Use) bool { return u.Criterion.Name != name }
	}
	switch op {
	case opAnd:
		return !slices.ContainsFunc(uses, isNot("accept"))
	case opOr:
		return slices.ContainsFunc(uses, is("accept"))
	case opNot:
		return !slices.ContainsFunc(uses, isNot("reject"))
	}
	return slices.ContainsFunc(uses, is("reject"))
}

// criterion compiles one list item; nil if it is wrong. is is the operand of
// its `is`, if it has one.
func (c *compiler) criterion(action string, op operator, item *yaml.Node, path string) (*Use, *operand) {
	if item.Kind != yaml.MappingNode {
		c.errorf(item, path, "a criterion must be an object with one key, such as {accept: true}, got %s", describe(item))
		return nil, nil
	}
	list := c.entries(item, path, criterionNames)
	switch {
	case len(item.Content) == 0:
		c.errorf(item, path, "a criterion must have exactly one key, this one has none")
		return nil, nil
	case len(item.Content) > 2:
		var keys []string
		for i := 0; i < len(item.Content); i += 2 {
			keys = append(keys, item.Content[i].Value)
		}
		c.errorf(item, path, "a criterion must have exactly one key, this one has %d: %s; give each its own list item",
			len(keys), quoteAll(keys))
		return nil, nil
	}
	e := list[0]
	name, sub, hasSub := strings.Cut(e.name, "/")
	crit := criterionByName[name]
	if crit == nil {
		in := ""
		if hasSub {
			in = " (in " + quote(e.name) + ")"
		}
		if hint := didYouMean(name, criterionNames); hint != "" {
			c.errorf(e.key, path, "unknown criterion %s%s%s", quote(name), in, hint)
		} else {
			c.errorf(e.key, path, "unknown criterion %s%s; criteria are: %s", quote(name), in, strings.Join(criterionNames, ", "))
		}
		return nil, nil
	}
	where := joinPath(path, e.name)
	if hasSub && !crit.SubPath {
		c.warnf(e.key, where, "%s has no use for the sub-path %s; it is ignored", name, quote("/"+sub))
	}
	s := &Scope{compiler: c, Criterion: crit, SubPath: sub, Path: where, Action: action, Operator: op.String(), Key: e.key}
	before := len(c.errors)
	t := crit.Compile(s, e.value)
	if t == nil || len(c.errors) > before {
		return nil, nil
	}
	if crit.Identity {
		t = needsSession(t)
	}
	return &Use{Criterion: crit, SubPath: sub, Path: where, Line: e.key.Line, Column: e.key.Column, test: t, value: e.value}, s.is
}

// needsSession makes an identity criterion false without a session, whatever
// its matcher says: what somebody is not can only be said of somebody (D1).
func needsSession(t test) test {
	return func(in *Input) verdict {
		if !in.HasSession {
			return verdict{why: ReasonUserUnauthenticated.set()}
		}
		return t(in)
	}
}
