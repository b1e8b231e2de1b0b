package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"go.yaml.in/yaml/v3"
)

// parseTOML reads TOML 1.0 into YAML nodes with positions. The document is
// first judged whole by the ordinary decoder (duplicate keys, redefined
// tables); what passes is then walked again for the positions.
func parseTOML(text []byte) (root *yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			root, err = nil, fmt.Errorf("%v", r)
		}
	}()
	if err := tomlDepth(text); err != nil {
		return nil, err
	}
	var whole map[string]any
	if err := toml.Unmarshal(text, &whole); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) {
			row, column := de.Position()
			return nil, &syntaxError{row, column, strings.TrimPrefix(de.Error(), "toml: ")}
		}
		return nil, err
	}
	if len(whole) == 0 {
		return nil, nil
	}
	b := &tomlBuilder{root: &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: 1, Column: 1}}
	b.parser.Reset(text)
	table := b.root
	for b.parser.NextExpression() {
		e := b.parser.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			var keys []*yaml.Node
			for it := e.Key(); it.Next(); {
				keys = append(keys, b.key(it.Node()))
			}
			table = b.open(keys, e.Kind == unstable.ArrayTable)
		case unstable.KeyValue:
			b.assign(table, e)
		}
	}
	if err := b.parser.Error(); err != nil {
		return nil, err
	}
	return b.root, nil
}

// tomlDepth refuses nesting that the recursive parser should not be given.
func tomlDepth(text []byte) error {
	depth, line, bol := 0, 1, 0
	for i, c := range text {
		switch c {
		case '[', '{':
			if depth++; depth > maxDepth {
				return &syntaxError{line, i - bol + 1, fmt.Sprintf("nested deeper than %d levels", maxDepth)}
			}
		case ']', '}':
			depth = max(0, depth-1)
		case '\n':
			line++
			bol = i + 1
		}
	}
	return nil
}

type tomlBuilder struct {
	parser unstable.Parser
	root   *yaml.Node
	line   int
	column int
}

// place gives a node the position of n, or of what came before it where the
// parser knows none.
func (b *tomlBuilder) place(n *unstable.Node, out *yaml.Node) *yaml.Node {
	if n.Raw.Length > 0 {
		s := b.parser.Shape(n.Raw)
		b.line, b.column = s.Start.Line, s.Start.Column
	}
	out.Line, out.Column = b.line, b.column
	return out
}

func (b *tomlBuilder) key(n *unstable.Node) *yaml.Node {
	return b.place(n, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: string(n.Data)})
}

func mapping(line, column int) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: line, Column: column}
}

// find gives the value of a key in a mapping, or nil.
func find(m *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	return nil
}

// descend gives the mapping below key, made where there is none; of an array
// of tables, the last one.
func descend(m, key *yaml.Node) *yaml.Node {
	next := find(m, key.Value)
	if next == nil {
		next = mapping(key.Line, key.Column)
		m.Content = append(m.Content, key, next)
	}
	if next.Kind == yaml.SequenceNode && len(next.Content) > 0 {
		next = next.Content[len(next.Content)-1]
	}
	return next
}

func (b *tomlBuilder) open(keys []*yaml.Node, array bool) *yaml.Node {
	m := b.root
	for _, k := range keys[:len(keys)-1] {
		m = descend(m, k)
	}
	last := keys[len(keys)-1]
	if !array {
		return descend(m, last)
	}
	list := find(m, last.Value)
	if list == nil {
		list = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: last.Line, Column: last.Column}
		m.Content = append(m.Content, last, list)
	}
	item := mapping(last.Line, last.Column)
	list.Content = append(list.Content, item)
	return item
}

func (b *tomlBuilder) assign(m *yaml.Node, e *unstable.Node) {
	var keys []*yaml.Node
	for it := e.Key(); it.Next(); {
		keys = append(keys, b.key(it.Node()))
	}
	for _, k := range keys[:len(keys)-1] {
		m = descend(m, k)
	}
	m.Content = append(m.Content, keys[len(keys)-1], b.value(e.Value()))
}

func (b *tomlBuilder) value(n *unstable.Node) *yaml.Node {
	scalar := func(tag string, style yaml.Style) *yaml.Node {
		return b.place(n, &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: string(n.Data), Style: style})
	}
	switch n.Kind {
	case unstable.String:
		return scalar("!!str", yaml.DoubleQuotedStyle)
	case unstable.Bool:
		return scalar("!!bool", 0)
	case unstable.Integer:
		return scalar("!!int", 0)
	case unstable.Float:
		return scalar("!!float", 0)
	case unstable.Array:
		out := b.place(n, &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"})
		for it := n.Children(); it.Next(); {
			if it.Node().Kind != unstable.Comment {
				out.Content = append(out.Content, b.value(it.Node()))
			}
		}
		return out
	case unstable.InlineTable:
		out := b.place(n, &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"})
		for it := n.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				b.assign(out, it.Node())
			}
		}
		return out
	default: // dates and times are text to us
		return scalar("!!timestamp", 0)
	}
}
