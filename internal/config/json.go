package config

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// jsonParser reads JSON (RFC 8259) into YAML nodes with positions. The
// decoder of the standard library gives none, and YAML parsers refuse JSON
// that is indented with tabs.
type jsonParser struct {
	text []byte
	at   int
	line int
	bol  int // offset of the first byte of the line
}

// parseJSON reads one JSON document; nil if there is none.
func parseJSON(text []byte) (*yaml.Node, error) {
	if !utf8.Valid(text) {
		return nil, &syntaxError{1, 1, "the text is not UTF-8"}
	}
	p := &jsonParser{text: text, line: 1}
	p.blanks()
	if p.at == len(p.text) {
		return nil, nil
	}
	n, err := p.value(0)
	if err != nil {
		return nil, err
	}
	p.blanks()
	if p.at < len(p.text) {
		return nil, p.errorf("something follows the document")
	}
	if n.Tag == "!!null" {
		return nil, nil
	}
	return n, nil
}

func (p *jsonParser) errorf(format string, args ...any) error {
	return &syntaxError{p.line, p.at - p.bol + 1, fmt.Sprintf(format, args...)}
}

func (p *jsonParser) node(kind yaml.Kind, tag string) *yaml.Node {
	return &yaml.Node{Kind: kind, Tag: tag, Line: p.line, Column: p.at - p.bol + 1}
}

func (p *jsonParser) blanks() {
	for ; p.at < len(p.text); p.at++ {
		switch p.text[p.at] {
		case ' ', '\t', '\r':
		case '\n':
			p.line++
			p.bol = p.at + 1
		default:
			return
		}
	}
}

func (p *jsonParser) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *jsonParser) value(depth int) (*yaml.Node, error) {
	if depth > maxDepth {
		return nil, p.errorf("nested deeper than %d levels", maxDepth)
	}
	switch c := p.peek(); {
	case c == '{':
		return p.object(depth)
	case c == '[':
		return p.array(depth)
	case c == '"':
		return p.string()
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	default:
		for word, tag := range map[string]string{"true": "!!bool", "false": "!!bool", "null": "!!null"} {
			if rest := p.text[p.at:]; len(rest) >= len(word) && string(rest[:len(word)]) == word {
				n := p.node(yaml.ScalarNode, tag)
				n.Value = word
				p.at += len(word)
				return n, nil
			}
		}
	}
	if p.at == len(p.text) {
		return nil, p.errorf("the text ends where a value is wanted")
	}
	return nil, p.errorf("no value starts with %q", rune(p.peek()))
}

func (p *jsonParser) object(depth int) (*yaml.Node, error) {
	n := p.node(yaml.MappingNode, "!!map")
	p.at++
	p.blanks()
	for first := true; p.peek() != '}'; first = false {
		if !first {
			if p.peek() != ',' {
				return nil, p.errorf("a comma or } is missing here")
			}
			p.at++
			p.blanks()
		}
		if p.peek() != '"' {
			return nil, p.errorf("a quoted key is wanted here")
		}
		k, err := p.string()
		if err != nil {
			return nil, err
		}
		p.blanks()
		if p.peek() != ':' {
			return nil, p.errorf("a colon is missing here")
		}
		p.at++
		p.blanks()
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, k, v)
		p.blanks()
	}
	p.at++
	return n, nil
}

func (p *jsonParser) array(depth int) (*yaml.Node, error) {
	n := p.node(yaml.SequenceNode, "!!seq")
	p.at++
	p.blanks()
	for first := true; p.peek() != ']'; first = false {
		if !first {
			if p.peek() != ',' {
				return nil, p.errorf("a comma or ] is missing here")
			}
			p.at++
			p.blanks()
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, v)
		p.blanks()
	}
	p.at++
	return n, nil
}

func (p *jsonParser) string() (*yaml.Node, error) {
	n := p.node(yaml.ScalarNode, "!!str")
	n.Style = yaml.DoubleQuotedStyle
	end := p.at + 1
	for ; end < len(p.text) && p.text[end] != '"'; end++ {
		if p.text[end] == '\\' {
			end++
		} else if p.text[end] < ' ' {
			p.at = end
			return nil, p.errorf("a string may not hold a control character or line end")
		}
	}
	if end >= len(p.text) {
		return nil, p.errorf("the string that starts here does not end")
	}
	if err := json.Unmarshal(p.text[p.at:end+1], &n.Value); err != nil {
		return nil, p.errorf("the string is malformed: %v", err)
	}
	p.at = end + 1
	return n, nil
}

func (p *jsonParser) number() (*yaml.Node, error) {
	n := p.node(yaml.ScalarNode, "!!int")
	end := p.at
	for ; end < len(p.text); end++ {
		switch c := p.text[end]; {
		case c >= '0' && c <= '9' || c == '-' || c == '+':
			continue
		case c == '.' || c == 'e' || c == 'E':
			n.Tag = "!!float"
			continue
		}
		break
	}
	n.Value = string(p.text[p.at:end])
	if !json.Valid([]byte(n.Value)) {
		return nil, p.errorf("%s is not a number", shorten(n.Value))
	}
	p.at = end
	return n, nil
}
