package config

import (
	"bytes"
	"slices"

	"go.yaml.in/yaml/v3"
)

// split is a YAML document taken apart at the items of its routes, without
// parsing: of ten thousand routes one changes, and the text of the others
// need not be read again. Only the plain shape that people and generators
// write is taken apart; for all else there is the parser (docs/decisions).
type split struct {
	// rest is the document with blank lines in the place of the items.
	rest []byte
	// key is the line of the key routes.
	key   int
	items []textItem
}

// textItem is the text of one item, with its line end and all that follows
// up to the next one.
type textItem struct {
	text []byte
	line int // of its first byte, from 1
}

// unplain are bytes and sequences that make lines, columns or meaning other
// than what a look at line starts tells: tabs, foreign line ends, NUL.
var unplain = [][]byte{{'\t'}, {'\r'}, {0}, {0xc2, 0x85}, {0xe2, 0x80, 0xa8}, {0xe2, 0x80, 0xa9}}

// splitRoutes takes a document apart. It declines where the items could mean
// something else alone than where they stand, or where it is not sure.
//
// Why an item means the same alone: it starts at the indentation of the list,
// so no plain or block scalar reaches into it from above; and a quoted text
// or a bracket that did would leave the item above malformed by itself, which
// the parser tells. Anchors and aliases, which reach everywhere, decline.
func splitRoutes(text []byte) (s split, ok bool) {
	for _, b := range unplain {
		if bytes.Contains(text, b) {
			return s, false
		}
	}
	if hasReferences(text) {
		return s, false
	}
	const (
		before = iota // the key
		first         // item to come
		within        // the list
		after
	)
	state, indent, from, to := before, 0, 0, len(text)
	line, start := 0, -1
	for at := 0; at < len(text); {
		end := len(text)
		if i := bytes.IndexByte(text[at:], '\n'); i >= 0 {
			end = at + i
		}
		row := text[at:end]
		line++
		blanks := 0
		for blanks < len(row) && row[blanks] == ' ' {
			blanks++
		}
		next := min(end+1, len(text))
		switch {
		case blanks == len(row) || row[blanks] == '#':
			// Nothing starts and nothing ends here.
		case state != before && (bytes.HasPrefix(row, []byte("---")) || bytes.HasPrefix(row, []byte("..."))):
			return s, false
		case (state == before || state == after) && bytes.HasPrefix(row, []byte("routes:")):
			if state == after || !nothing(row[len("routes:"):]) {
				return s, false
			}
			state, s.key, from = first, line, next
		case state == first && isItem(row, blanks):
			state, indent = within, blanks
			from, start = at, at
			s.items = append(s.items, textItem{line: line})
		case state == first:
			return s, false
		case state == within && blanks == indent && isItem(row, blanks):
			s.items[len(s.items)-1].text = text[start:at]
			s.items = append(s.items, textItem{line: line})
			start = at
		case state == within && blanks > indent:
		case state == within && blanks == 0:
			state, to = after, at
		case state == within:
			return s, false
		}
		at = next
	}
	if len(s.items) == 0 {
		return s, false
	}
	s.items[len(s.items)-1].text = text[start:to]
	lines := bytes.Count(text[from:to], []byte("\n"))
	s.rest = make([]byte, 0, from+lines+len(text)-to)
	s.rest = append(s.rest, text[:from]...)
	for range lines {
		s.rest = append(s.rest, '\n')
	}
	s.rest = append(s.rest, text[to:]...)
	return s, true
}

// isItem reports whether a row starts an item of a list at this indentation.
func isItem(row []byte, indent int) bool {
	return row[indent] == '-' && (len(row) == indent+1 || row[indent+1] == ' ')
}

// nothing reports whether what follows a key is blank or a comment.
func nothing(rest []byte) bool {
	trimmed := bytes.TrimLeft(rest, " ")
	return len(trimmed) == 0 || trimmed[0] == '#' && len(trimmed) < len(rest)
}

// hasReferences reports whether there may be an anchor, an alias or a tag.
func hasReferences(text []byte) bool {
	for _, mark := range []byte("&*!") {
		for at := 0; ; {
			i := bytes.IndexByte(text[at:], mark)
			if i < 0 {
				break
			}
			at += i
			opens := at == 0 || bytes.IndexByte([]byte(" \n[{,"), text[at-1]) >= 0
			if opens && at+1 < len(text) && text[at+1] != ' ' && text[at+1] != '\n' {
				return true
			}
			at++
		}
	}
	return false
}

// parseItem reads one item by itself. It is nil where the text is anything
// but one item that is a mapping or a scalar in order.
func parseItem(it textItem) *yaml.Node {
	root, problems := parseWhole("", it.text, 1)
	if len(problems) > 0 || root == nil || root.Kind != yaml.SequenceNode || len(root.Content) != 1 {
		return nil
	}
	return shiftLines(root.Content[0], it.line-1)
}

// shiftLines moves a tree that nobody else holds.
func shiftLines(n *yaml.Node, by int) *yaml.Node {
	n.Line += by
	for _, c := range n.Content {
		shiftLines(c, by)
	}
	return n
}

// movedTree is a tree as it stands some lines further down.
func movedTree(n *yaml.Node, by int) *yaml.Node {
	if n == nil || by == 0 {
		return n
	}
	moved := *n
	moved.Line += by
	moved.Content = slices.Clone(n.Content)
	for i, c := range moved.Content {
		moved.Content[i] = movedTree(c, by)
	}
	return &moved
}

// routesValue finds the value of the key routes in the root of a document.
func routesValue(root *yaml.Node, line int) (at int, found bool) {
	if root == nil || root.Kind != yaml.MappingNode {
		return 0, false
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if k := root.Content[i]; k.Value == "routes" && k.Line == line && k.Column == 1 {
			return i + 1, true
		}
	}
	return 0, false
}

// agrees reports whether the parser found the same items.
func (s *split) agrees(root *yaml.Node) bool {
	at, found := routesValue(root, s.key)
	if !found || root.Content[at].Kind != yaml.SequenceNode || len(root.Content[at].Content) != len(s.items) {
		return false
	}
	for i, n := range root.Content[at].Content {
		if n.Line != s.items[i].line {
			return false
		}
	}
	return true
}
