package config

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"postern/internal/policy"
)

// fragment is a part of a JSON schema.
type fragment = map[string]any

// Schema is the JSON schema of a configuration document (draft 2020-12), made
// from the declarations that parse it, for editors. It describes the ordinary
// spelling: keys in lower case, blocks as blocks. The program itself takes
// more (keys in any case, blocks as JSON text), and checks more.
func Schema() map[string]any {
	defs := policy.SchemaDefinitions()
	defs["policy"] = policy.SchemaRoot()
	defs["route"] = blockSchema(routeKeys())
	root := blockSchema(globalKeys())
	for _, list := range routeLists {
		about := fragment{"description": list.doc, "type": []any{"array", "null"}, "items": fragment{"$ref": "#/$defs/route"}}
		if list.deprecated != "" {
			about["deprecated"] = true
		}
		root["properties"].(fragment)[list.name] = about
	}
	root["$schema"] = policy.SchemaDialect
	root["title"] = "Postern configuration"
	root["$defs"] = defs
	return root
}

func blockSchema(s *schema) fragment {
	properties := fragment{}
	for _, name := range slices.Sorted(maps.Keys(s.byName)) {
		properties[name] = s.byName[name].schema(name)
	}
	return fragment{"type": []any{"object", "null"}, "properties": properties, "additionalProperties": false}
}

// schema describes the value of a key, under its name or an alias.
func (d *declared) schema(name string) fragment {
	s := d.valueSchema()
	about := d.doc
	if d.status == "accepted" {
		about += " Understood and checked, but without effect yet."
	}
	if d.status == "ignored" {
		about += " Understood, but without effect."
	}
	if d.deprecated != "" {
		about += " Deprecated: use " + d.deprecated + "."
	}
	if d.deprecated != "" || name != d.name {
		s["deprecated"] = true
	}
	if about = strings.TrimSpace(about); about != "" {
		s["description"] = about
	}
	if d.def != "" && !d.secret {
		if d.defValue.IsValid() && (d.defValue.Kind() == reflect.Bool || d.defValue.CanInt() && d.typ != durationType || d.defValue.CanUint()) {
			s["default"] = d.defValue.Interface()
		} else {
			s["default"] = d.def
		}
	}
	return s
}

var (
	textSchema   = []any{"string", "number", "boolean", "null"}
	plainStrings = fragment{"type": []any{"string", "number", "boolean", "null"}}
)

func (d *declared) valueSchema() fragment {
	switch d.form {
	case "node":
		return fragment{"anyOf": []any{fragment{"$ref": "#/$defs/policy"}, fragment{"type": "null"}}}
	case "cases": // a list of cases, or an object as in a test file
		return fragment{"type": []any{"array", "object", "null"}, "items": fragment{"type": "object"}}
	case "color":
		return fragment{"type": []any{"string", "null"}, "pattern": "^(#([0-9a-fA-F]{3}|[0-9a-fA-F]{6}))?$"}
	case "b64", "b64key", "pem", "regex", "file", "exact", "provider":
		if d.typ.Kind() == reflect.Slice && d.form != "b64" && d.form != "b64key" && d.form != "pem" {
			break
		}
		return fragment{"type": []any{"string", "null"}}
	case "pbduration":
		return fragment{"type": []any{"string", "number", "object", "null"}}
	case "flags":
		return fragment{"type": []any{"object", "null"}, "additionalProperties": fragment{"type": []any{"boolean", "string", "number"}}}
	case "claims":
		return fragment{"type": []any{"object", "array", "string", "null"}}
	case "headers":
		return fragment{"type": []any{"object", "string", "null"}, "additionalProperties": plainStrings}
	case "endpoints":
		return fragment{"anyOf": []any{plainStrings, fragment{"type": "array", "items": fragment{"type": []any{"string", "object", "array"}}}}}
	case "sans":
		return fragment{"type": []any{"array", "null"}}
	case "services", "prefixes", "hosts":
		return fragment{"anyOf": []any{plainStrings, fragment{"type": "array", "items": plainStrings}}}
	}
	if len(d.enum) > 0 {
		words := []any{nil}
		var forms []string
		for _, w := range d.enum {
			words = append(words, w)
			forms = append(forms, anyCase(w))
		}
		// Editors offer the words; other cases and the long forms pass, too.
		long := "(" + anyCase(d.prefix) + "|" + anyCase(d.name) + ")_?"
		return fragment{"anyOf": []any{fragment{"enum": words}, fragment{"type": "string", "pattern": "^(" + long + ")?(" + strings.Join(forms, "|") + ")$"}}}
	}
	return typeSchema(d.typ, d.block)
}

// anyCase is a pattern for a word in any case.
func anyCase(word string) string {
	var b strings.Builder
	for _, r := range word {
		lower, upper := strings.ToLower(string(r)), strings.ToUpper(string(r))
		if lower != upper {
			b.WriteString("[" + upper + lower + "]")
		} else {
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	return b.String()
}

// typeSchema describes what the decoder takes for a Go type.
func typeSchema(t reflect.Type, block *schema) fragment {
	switch t {
	case durationType:
		return fragment{"type": []any{"string", "integer", "null"}}
	case urlType:
		return fragment{"type": []any{"string", "null"}}
	case nodeType:
		return fragment{}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeSchema(t.Elem(), block)
	case reflect.Bool:
		return fragment{"anyOf": []any{fragment{"type": []any{"boolean", "null"}}, fragment{"enum": []any{"true", "false", "TRUE", "FALSE", "True", "False", "t", "f", "T", "F", "1", "0", 1, 0}}}}
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64:
		return fragment{"anyOf": []any{fragment{"type": []any{"integer", "null"}}, fragment{"type": "string", "pattern": "^-?[0-9]+$"}}}
	case reflect.Float64:
		return fragment{"type": []any{"number", "string", "null"}}
	case reflect.Interface:
		return fragment{}
	case reflect.Slice:
		item := typeSchema(t.Elem(), block)
		if block != nil {
			return fragment{"anyOf": []any{fragment{"type": []any{"array", "null"}, "items": item}, item}}
		}
		return fragment{"anyOf": []any{fragment{"type": "array", "items": item}, fragment{"type": textSchema}}}
	case reflect.Map:
		return fragment{"type": []any{"object", "null"}, "additionalProperties": typeSchema(t.Elem(), block)}
	case reflect.Struct:
		if block != nil {
			return blockSchema(block)
		}
		return fragment{}
	}
	return fragment{"type": textSchema}
}
