package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Bounds of what a text may hold. They are far above any real policy and
// keep nesting and alias bombs from costing more than an error.
const (
	maxText    = 8 << 20 // bytes of a text given to Parse
	maxDepth   = 64      // nested objects and lists
	maxNodes   = 2_000_000
	maxAliased = 200_000 // nodes reached through aliases
	maxErrors  = 200     // problems reported of one text
)

// Resolve gives the tree below n with aliases replaced, merge keys (<<)
// applied and keys checked: a key is a scalar and stands once in its object.
// Positions stay those of the text. Everything wrong is reported; the tree is
// then still returned, with the first of repeated keys, so that a caller can
// go on to find more. It is nil only if a bound is exceeded.
func Resolve(file string, n *yaml.Node) (*yaml.Node, Problems) {
	r := resolver{file: file}
	out := r.resolve(n, 0)
	if r.stop {
		out = nil
	}
	return out, r.problems
}

type resolver struct {
	file     string
	path     []string // rendered only for a problem
	problems Problems
	active   map[*yaml.Node]bool // aliases being expanded
	nodes    int
	aliased  int
	stop     bool
}

func (r *resolver) problem(n *yaml.Node, format string, args ...any) {
	if len(r.problems) < maxErrors {
		r.problems = append(r.problems, Problem{
			File: r.file, Line: n.Line, Column: n.Column,
			Path:    strings.TrimPrefix(strings.Join(r.path, ""), "."),
			Message: fmt.Sprintf(format, args...),
		})
	}
}

func (r *resolver) abort(n *yaml.Node, format string, args ...any) *yaml.Node {
	if !r.stop {
		r.problem(n, format, args...)
	}
	r.stop = true
	return n
}

func (r *resolver) resolve(n *yaml.Node, depth int) *yaml.Node {
	if r.stop {
		return n
	}
	r.nodes++
	if len(r.active) > 0 {
		r.aliased++
	}
	switch {
	case depth > maxDepth:
		return r.abort(n, "nested too deeply: more than %d levels; flatten the lists and objects", maxDepth)
	case r.nodes > maxNodes:
		return r.abort(n, "too large: more than %d values; split the document", maxNodes)
	case r.aliased > maxAliased:
		return r.abort(n, "aliases repeat more than %d values; write the document without so many aliases", maxAliased)
	}
	switch n.Kind {
	case yaml.DocumentNode:
		if len(n.Content) == 0 {
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: n.Line, Column: n.Column}
		}
		return r.resolve(n.Content[0], depth)
	case yaml.AliasNode:
		if n.Alias == nil || r.active[n.Alias] {
			return r.abort(n, "alias %s stands for something that contains it", quote(n.Value))
		}
		if r.active == nil {
			r.active = map[*yaml.Node]bool{}
		}
		r.active[n.Alias] = true
		out := r.resolve(n.Alias, depth+1)
		delete(r.active, n.Alias)
		return out
	case yaml.SequenceNode:
		out := n
		for i, item := range n.Content {
			r.path = append(r.path, "["+strconv.Itoa(i)+"]")
			got := r.resolve(item, depth+1)
			r.path = r.path[:len(r.path)-1]
			if got != item {
				if out == n {
					out = shallow(n)
				}
				out.Content[i] = got
			}
		}
		return out
	case yaml.MappingNode:
		return r.mapping(n, depth)
	}
	return n
}

func shallow(n *yaml.Node) *yaml.Node {
	c := *n
	c.Content = append([]*yaml.Node(nil), n.Content...)
	return &c
}

// mapping checks keys and applies merges: explicit keys win over merged ones,
// earlier objects of a merged list over later ones.
func (r *resolver) mapping(n *yaml.Node, depth int) *yaml.Node {
	out := n
	own := func() {
		if out == n {
			c := *n
			c.Content = make([]*yaml.Node, 0, len(n.Content))
			out = &c
		}
	}
	lines := make(map[string]int, len(n.Content)/2) // key to the line of its first use
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		realKey := key
		if key.Kind == yaml.AliasNode {
			realKey = r.resolve(key, depth+1)
		}
		drop := false
		switch {
		case r.stop:
			return n
		case realKey.Kind != yaml.ScalarNode:
			r.problem(key, "a key must be a word, not a list or an object")
			drop = true
		case isMerge(realKey):
			if first, twice := lines["<<"]; twice {
				r.problem(key, `key "<<" is given twice, first on line %d`, first)
			}
			lines["<<"] = key.Line
			merges = append(merges, value)
			drop = true
		default:
			if first, twice := lines[realKey.Value]; twice {
				r.problem(key, "key %s is given twice, first on line %d; keep one", quote(realKey.Value), first)
				drop = true
			} else {
				lines[realKey.Value] = key.Line
			}
		}
		if drop {
			if out == n {
				own()
				out.Content = append(out.Content, n.Content[:i]...)
			}
			continue
		}
		r.path = append(r.path, "."+realKey.Value)
		got := r.resolve(value, depth+1)
		r.path = r.path[:len(r.path)-1]
		if out == n && (realKey != key || got != value) {
			own()
			out.Content = append(out.Content, n.Content[:i]...)
		}
		if out != n {
			out.Content = append(out.Content, realKey, got)
		}
	}
	for _, m := range merges {
		target := r.resolve(m, depth+1)
		from := []*yaml.Node{target}
		if target.Kind == yaml.SequenceNode {
			from = target.Content
		}
		for _, object := range from {
			if r.stop {
				return n
			}
			if object.Kind != yaml.MappingNode {
				r.problem(m, `"<<" merges an object or a list of objects, nothing else`)
				continue
			}
			for i := 0; i+1 < len(object.Content); i += 2 {
				key := object.Content[i]
				if _, taken := lines[key.Value]; !taken {
					lines[key.Value] = key.Line
					out.Content = append(out.Content, key, object.Content[i+1])
				}
			}
		}
	}
	return out
}

func isMerge(key *yaml.Node) bool {
	return key.Value == "<<" && key.ShortTag() == "!!merge"
}

// Plain gives the value of a resolved tree as policies compare it: nil, bool,
// string, int64, uint64 or float64, []any, map[string]any. An unquoted date
// or timestamp is the string of its RFC 3339 form in UTC (§1).
func Plain(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, item := range n.Content {
			v, err := Plain(item)
			if err != nil {
				return nil, err
			}
			list[i] = v
		}
		return list, nil
	case yaml.MappingNode:
		object := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := Plain(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			object[n.Content[i].Value] = v
		}
		return object, nil
	case yaml.ScalarNode:
		return scalar(n)
	}
	return nil, fmt.Errorf("line %d: not a plain value", n.Line)
}

func scalar(n *yaml.Node) (any, error) {
	if n.Tag == "!!str" {
		return n.Value, nil
	}
	var v any
	if err := n.Decode(&v); err != nil {
		return nil, fmt.Errorf("cannot read %s as %s", quote(n.Value), strings.TrimPrefix(n.ShortTag(), "!!"))
	}
	switch v := v.(type) {
	case nil, bool, string, int64, uint64:
		return v, nil
	case int:
		return int64(v), nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%s is not a number that can be compared", quote(n.Value))
		}
		return v, nil
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano), nil
	}
	return n.Value, nil
}

// describe names a value for a message: `the string "x"`, `a list`, `nothing`.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "an object"
	}
	v, err := scalar(n)
	if err != nil {
		return quote(n.Value)
	}
	switch v := v.(type) {
	case nil:
		return "nothing (null)"
	case bool:
		return "the boolean " + quote(n.Value)
	case string:
		return "the string " + quote(v)
	}
	return "the number " + quote(n.Value)
}
