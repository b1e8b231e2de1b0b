package policy

import "strings"

// SchemaDialect is the version of JSON Schema that Schema is written in.
const SchemaDialect = "https://json-schema.org/draft/2020-12/schema"

// Schema is the JSON schema of a policy document, made from the declarations
// of criteria and matchers, for editors. It accepts every policy that loads
// in its ordinary spelling; what only a compiler can judge, such as dates,
// keys and zones, it leaves open.
func Schema() map[string]any {
	s := fragment{
		"$schema":     SchemaDialect,
		"title":       "Postern policy",
		"description": "Who may reach a route: allowed if an allow rule is true and no deny rule is.",
		"$defs":       SchemaDefinitions(),
	}
	for k, v := range SchemaRoot() {
		s[k] = v
	}
	return s
}

// SchemaRoot is a policy in terms of SchemaDefinitions.
func SchemaRoot() map[string]any {
	return fragment{"anyOf": []any{ref("rule"), fragment{"type": "array", "items": ref("rule")}}}
}

// SchemaDefinitions are the parts of the schema by name, for documents that
// contain policies; they refer to each other below #/$defs.
func SchemaDefinitions() map[string]any {
	lists := fragment{"action": fragment{"description": "Accepted and ignored."}}
	for i, doc := range []string{"Every criterion is true.", "At least one criterion is true.", "No criterion is true.", "At least one criterion is false."} {
		lists[operatorNames[i]] = fragment{"description": doc, "type": "array", "items": ref("criterion")}
	}
	words := fragment{}
	patterns := fragment{}
	for _, c := range Criteria() {
		value := fragment{"description": c.Doc, "$ref": "#/$defs/" + c.Matcher.id}
		words[c.Name] = value
		patterns["^"+c.Name+"/"] = value
	}
	defs := fragment{
		"rule": fragment{
			"type": "object", "additionalProperties": false,
			"properties": fragment{
				"allow": fragment{"description": "Lets in, unless a deny rule is true.", "$ref": "#/$defs/body"},
				"deny":  fragment{"description": "Refuses, whatever allows.", "$ref": "#/$defs/body"},
			},
		},
		"body": fragment{"type": "object", "additionalProperties": false, "properties": lists},
		"criterion": fragment{
			"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": false,
			"properties": words, "patternProperties": patterns,
		},
		"string_operators": keysOf(stringKind.Keys),
	}
	for _, m := range Matchers() {
		d := m.schema(m)
		if m.Doc != "" {
			with := fragment{"description": strings.ReplaceAll(m.Doc, "`", "")}
			for k, v := range d {
				with[k] = v
			}
			d = with
		}
		defs[m.id] = d
	}
	return defs
}

func ref(name string) fragment { return fragment{"$ref": "#/$defs/" + name} }

// keysOf is an object with these keys and no others.
func keysOf(keys []MatcherKey) fragment {
	properties := fragment{}
	for _, k := range keys {
		p := fragment{"description": strings.ReplaceAll(k.Doc, "`", "")}
		for name, v := range k.schema {
			p[name] = v
		}
		properties[k.Name] = p
	}
	return fragment{"type": "object", "additionalProperties": false, "properties": properties}
}
