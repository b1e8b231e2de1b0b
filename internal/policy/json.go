package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// readJSON gives the tree of a JSON text with positions. The YAML parser
// reads most JSON, but not surrogate escapes, and it would accept more.
func readJSON(file string, text []byte) (*yaml.Node, *Problem) {
	j := jsonReader{text: text, dec: json.NewDecoder(bytes.NewReader(text)), line: 1, column: 1}
	j.dec.UseNumber()
	n, err := j.value(0)
	if err == nil {
		if _, end := j.dec.Token(); end != io.EOF {
			err = errors.New("there is more text after the value")
			j.seek(j.at())
		}
	}
	if err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) && n == nil && len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		// A character that cannot begin a token is reported at its own offset,
		// one inside a token at the offset after it.
		if syntax.Offset == j.dec.InputOffset() {
			j.seek(j.at())
		} else {
			j.seek(int(syntax.Offset) - 1)
		}
	} else if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the text ends too early")
		j.seek(len(text))
	}
	return nil, &Problem{File: file, Line: j.line, Column: j.column,
		Message: fmt.Sprintf("not JSON: line %d: %s", j.line, strings.TrimPrefix(err.Error(), "json: "))}
}

type jsonReader struct {
	text         []byte
	dec          *json.Decoder
	offset       int // where line and column are
	line, column int
}

// at is the offset of the next token.
func (j *jsonReader) at() int {
	i := int(j.dec.InputOffset())
	for i < len(j.text) && strings.IndexByte(" \t\r\n,:", j.text[i]) >= 0 {
		i++
	}
	return i
}

// seek moves line and column forward to offset to.
func (j *jsonReader) seek(to int) {
	for j.offset < to && j.offset < len(j.text) {
		r, size := utf8.DecodeRune(j.text[j.offset:])
		j.offset += size
		if r == '\n' {
			j.line, j.column = j.line+1, 1
		} else {
			j.column++
		}
	}
}

func (j *jsonReader) value(depth int) (*yaml.Node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested too deeply: more than %d levels", maxDepth)
	}
	j.seek(j.at())
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: j.line, Column: j.column}
	token, err := j.dec.Token()
	if err != nil {
		return nil, err
	}
	switch v := token.(type) {
	case string:
		n.Tag, n.Value, n.Style = "!!str", v, yaml.DoubleQuotedStyle
	case json.Number:
		n.Tag, n.Value = "!!int", v.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		} else if len(n.Value) > 19 {
			n.Tag = "" // may be beyond 64 bits; then YAML makes it a float
		}
	case bool:
		n.Tag, n.Value = "!!bool", fmt.Sprint(v)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	case json.Delim:
		n.Style = yaml.FlowStyle
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		if v == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
		}
		for j.dec.More() {
			// In an object keys and values alternate, and each is a value.
			item, err := j.value(depth + 1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, item)
		}
		if _, err := j.dec.Token(); err != nil {
			return nil, err
		}
	}
	return n, nil
}
