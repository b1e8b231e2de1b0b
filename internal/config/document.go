package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds on documents. They are far above what people write and far below
// what could hurt.
const (
	maxDocument = 64 << 20 // bytes of one configuration document
	maxFile     = 16 << 20 // bytes of one referenced file
	maxDepth    = 100      // nesting
	maxExpanded = 500_000  // nodes that YAML aliases may stand for
)

// Format is the language of a document.
type Format uint8

// The formats of documents.
const (
	YAML Format = iota
	JSON
	TOML
)

// formatOf tells the format from the file name (configuration.md §1.1).
func formatOf(name string) (Format, error) {
	switch ext := strings.ToLower(filepath.Ext(name)); ext {
	case ".yaml", ".yml":
		return YAML, nil
	case ".json":
		return JSON, nil
	case ".toml":
		return TOML, nil
	default:
		return 0, fmt.Errorf("unknown extension %q: name the file .yaml, .yml, .json or .toml", ext)
	}
}

// parse reads a document into a node tree with positions, whatever its
// format, so that there is one decoder. The tree holds no aliases and no merge
// keys any more. A nil node is an empty document.
func parse(name string, format Format, text []byte) (*yaml.Node, []Problem) {
	if len(text) > maxDocument {
		return nil, []Problem{{File: name, Message: fmt.Sprintf("the document has %d bytes, more than %d", len(text), maxDocument), Hint: "split it or shorten it"}}
	}
	text = []byte(strings.TrimPrefix(string(text), "\ufeff"))
	switch format {
	case JSON:
		n, err := parseJSON(text)
		return n, syntaxProblem(name, "JSON", err)
	case TOML:
		n, err := parseTOML(text)
		return n, syntaxProblem(name, "TOML", err)
	}
	return parseWhole(name, text, 0)
}

// syntaxError is a malformed document, with its place.
type syntaxError struct {
	line, column int
	message      string
}

func (e *syntaxError) Error() string { return e.message }

func syntaxProblem(name, language string, err error) []Problem {
	if err == nil {
		return nil
	}
	p := Problem{File: name, Message: "malformed " + language + ": " + err.Error()}
	var at *syntaxError
	if errors.As(err, &at) {
		p.Line, p.Column = at.line, at.column
	}
	return []Problem{p}
}

var yamlErrorLine = regexp.MustCompile(`line (\d+): `)

// parseWhole reads the first document of a YAML stream, which stands depth
// levels below the root of another.
func parseWhole(name string, text []byte, depth int) (root *yaml.Node, problems []Problem) {
	// The parser is not ours: whatever it does to a strange text, the answer
	// is a problem.
	defer func() {
		if r := recover(); r != nil {
			root, problems = nil, []Problem{{File: name, Message: fmt.Sprintf("malformed YAML: %v", r)}}
		}
	}()
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if err.Error() == "EOF" {
			return nil, nil
		}
		message := strings.TrimPrefix(err.Error(), "yaml: ")
		p := Problem{File: name, Line: 1, Column: 1} // the parser names no line for the first
		if m := yamlErrorLine.FindStringSubmatch(message); m != nil {
			p.Line, _ = strconv.Atoi(m[1])
			message = strings.Replace(message, m[0], "", 1)
		}
		p.Message = "malformed YAML: " + message
		if strings.Contains(message, "character that cannot start any token") {
			p.Hint = "indent with blanks, not tabs, and quote values that start with @, ` or %"
		}
		return nil, []Problem{p}
	}
	var next yaml.Node
	if err := dec.Decode(&next); err == nil && len(next.Content) > 0 && next.Content[0].Tag != "!!null" {
		problems = append(problems, Problem{
			File: name, Line: next.Content[0].Line, Column: next.Content[0].Column, Level: LevelWarning,
			Message: "a second document starts here; only the first one is read",
			Hint:    "remove the --- line to make it one document",
		})
	}
	if len(doc.Content) == 0 {
		return nil, problems
	}
	e := expander{file: name, left: maxExpanded, open: map[*yaml.Node]bool{}}
	root = e.expand(doc.Content[0], depth, false)
	if e.failed != nil {
		return nil, []Problem{*e.failed}
	}
	if root.Tag == "!!null" {
		return nil, problems
	}
	return root, problems
}

// expander replaces aliases by what they stand for and merge keys by what
// they merge, within bounds.
type expander struct {
	file   string
	left   int
	open   map[*yaml.Node]bool
	failed *Problem
}

func (e *expander) fail(n *yaml.Node, message, hint string) *yaml.Node {
	if e.failed == nil {
		e.failed = &Problem{File: e.file, Line: n.Line, Column: n.Column, Message: message, Hint: hint}
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: n.Line, Column: n.Column}
}

func (e *expander) expand(n *yaml.Node, depth int, aliased bool) *yaml.Node {
	if e.failed != nil {
		return n
	}
	if depth > maxDepth {
		return e.fail(n, fmt.Sprintf("nested deeper than %d levels", maxDepth), "flatten the document")
	}
	if aliased {
		if e.left--; e.left < 0 {
			return e.fail(n, fmt.Sprintf("aliases stand for more than %d values", maxExpanded), "use fewer aliases")
		}
	}
	switch n.Kind {
	case yaml.AliasNode:
		if n.Alias == nil || e.open[n.Alias] {
			return e.fail(n, "the alias "+shorten(n.Value)+" holds itself", "remove the alias")
		}
		e.open[n.Alias] = true
		out := e.expand(n.Alias, depth, true)
		delete(e.open, n.Alias)
		return out
	case yaml.ScalarNode:
		n.HeadComment, n.LineComment, n.FootComment = "", "", ""
		return n
	}
	if n.Anchor != "" {
		// An anchor may not be used inside itself.
		e.open[n] = true
		defer delete(e.open, n)
	}
	out := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Style: n.Style, Line: n.Line, Column: n.Column}
	if n.Kind != yaml.MappingNode {
		out.Content = make([]*yaml.Node, 0, len(n.Content))
		for _, c := range n.Content {
			out.Content = append(out.Content, e.expand(c, depth+1, aliased))
		}
		return out
	}
	out.Content = make([]*yaml.Node, 0, len(n.Content))
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind == yaml.ScalarNode && k.ShortTag() == "!!merge" {
			merged = append(merged, e.expand(v, depth+1, aliased))
			continue
		}
		out.Content = append(out.Content, e.expand(k, depth+1, aliased), e.expand(v, depth+1, aliased))
	}
	for _, m := range merged {
		e.merge(out, m)
	}
	return out
}

// merge adds the pairs of m that out does not have (YAML merge key).
func (e *expander) merge(out, m *yaml.Node) {
	switch m.Kind {
	case yaml.SequenceNode:
		for _, c := range m.Content {
			e.merge(out, c)
		}
	case yaml.MappingNode:
		have := make(map[string]bool, len(out.Content)/2)
		for i := 0; i+1 < len(out.Content); i += 2 {
			have[out.Content[i].Value] = true
		}
		for i := 0; i+1 < len(m.Content); i += 2 {
			if !have[m.Content[i].Value] {
				out.Content = append(out.Content, m.Content[i], m.Content[i+1])
			}
		}
	default:
		e.fail(m, "<< needs a mapping or a list of mappings", "merge an alias of a mapping")
	}
}

// docLayer is a parsed document.
type docLayer struct {
	root *yaml.Node // nil: empty
	// items are those of routes where the text was taken apart; the root
	// then has an empty list in their place.
	items []*routeItem
}

// parseDocument reads a document. Items of its routes that are known already
// are not parsed again, where their texts can be told apart.
func parseDocument(name string, format Format, text []byte, before *routesBefore) (*docLayer, []Problem) {
	if format != YAML || len(text) > maxDocument {
		root, problems := parse(name, format, text)
		return &docLayer{root: root}, problems
	}
	s, ok := splitRoutes(text)
	if !ok {
		root, problems := parse(name, format, text)
		return &docLayer{root: root}, problems
	}
	items := s.routeItems(name)
	if l := s.parseChanged(name, items, before); l != nil {
		return l, nil
	}
	root, problems := parse(name, format, text)
	if Fatal(problems) || !s.agrees(root) {
		return &docLayer{root: root}, problems
	}
	at, _ := routesValue(root, s.key)
	for i, n := range root.Content[at].Content {
		items[i].node, items[i].column = n, n.Column
	}
	return &docLayer{root: root, items: items}, problems
}

// routeItems are the items, known by their texts.
func (s *split) routeItems(file string) []*routeItem {
	out := make([]*routeItem, len(s.items))
	list := make([]routeItem, len(s.items))
	for i, it := range s.items {
		list[i] = routeItem{list: "routes", index: i, file: file, line: it.line, text: it.text}
		list[i].key = textKey(file, it.text)
		out[i] = &list[i]
	}
	return out
}

// parseChanged parses what is around the items, and those items that are not
// known. It gives nil where parsing the whole is cheaper, or where the parts
// are not in order: what is wrong is told of the whole.
func (s *split) parseChanged(name string, items []*routeItem, before *routesBefore) *docLayer {
	var changed []int
	for i, it := range items {
		if known := before.find(it.key); known != nil {
			it.column = known.route.Column
		} else {
			changed = append(changed, i)
		}
	}
	if len(changed) > len(items)/4 {
		return nil
	}
	root, problems := parseWhole(name, s.rest, 0)
	at, found := routesValue(root, s.key)
	if len(problems) > 0 || !found || !isNull(root.Content[at]) {
		return nil
	}
	root.Content[at] = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: s.items[0].line}
	for _, i := range changed {
		if !items[i].parse() {
			return nil
		}
	}
	return &docLayer{root: root, items: items}
}

// keys are the top-level keys that the document sets.
func (l *docLayer) keys() []string {
	if l.root == nil || l.root.Kind != yaml.MappingNode {
		return nil
	}
	var out []string
	for i := 0; i+1 < len(l.root.Content); i += 2 {
		name := strings.ToLower(l.root.Content[i].Value)
		if k := globalKeys().byName[name]; k != nil {
			name = k.name
		}
		out = append(out, name)
	}
	return out
}
