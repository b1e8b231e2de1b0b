package policy

// Matcher is a kind of value that criteria take, for the reference page and
// the schema. What compiles it stands in its own file.
type Matcher struct {
	Name string // string matcher
	Doc  string
	// Keys are the operators or keys of its object; empty: it has none.
	Keys []MatcherKey
	// Example is a policy test (policy-language.md §14) without its name;
	// "" if the examples of the criteria are enough.
	Example string

	id     string // among the definitions of the schema
	schema func(m *Matcher) fragment
}

// MatcherKey is an operator or key of a matcher.
type MatcherKey struct {
	Name, Doc string
	schema    fragment
}

// fragment is a part of a schema.
type fragment = map[string]any

var anything = &Matcher{Name: "anything", id: "anything",
	Doc:    "The value is ignored; `true` by custom. Even `false` changes nothing.",
	schema: func(*Matcher) fragment { return fragment{} },
}

var stringKind = &Matcher{Name: "string matcher", id: "string_matcher",
	Doc: "An object of operators, all of which must hold; anything else stands for `is`. Letters are compared as they are: case counts, and there are no wildcards. `{}` holds for every value that exists.",
	Keys: []MatcherKey{
		{"is", "The value equals the operand.", fragment{}},
		{"not", "The value does not equal the operand.", fragment{}},
		{"contains", "The operand is a part of the value.", fragment{"type": "string"}},
		{"starts_with", "The value begins with the operand.", fragment{"type": "string"}},
		{"ends_with", "The value ends with the operand.", fragment{"type": "string"}},
		{"in", "The value equals one of the list.", fragment{"type": "array"}},
		{"not_in", "The value equals none of the list.", fragment{"type": "array"}},
	},
	Example: `
policy:
  - allow:
      and:
        - http_path: {starts_with: /docs/, ends_with: .html, not: /docs/secret.html}
cases:
  - {name: all hold, request: {url: "https://a.test/docs/a.html"}, expect: allow}
  - {name: one does not, request: {url: "https://a.test/docs/secret.html"}, expect: deny}
`,
	schema: func(*Matcher) fragment {
		return fragment{"anyOf": []any{
			fragment{"type": []any{"string", "number", "boolean", "null", "array"}},
			ref("string_operators"),
		}}
	},
}

var listKind = &Matcher{Name: "list matcher", id: "list_matcher",
	Doc: "An object of operators over a list of values; anything else stands for `has`. Types count: `7` is not `\"7\"`.",
	Keys: []MatcherKey{
		{"has", "Some element equals the operand.", fragment{}},
		{"exclude", "No element equals the operand.", fragment{}},
		{"is", "There is exactly one element, and it equals the operand.", fragment{}},
	},
	Example: `
policy:
  - allow:
      and:
        - claim/team: {has: core, exclude: on-leave}
cases:
  - {name: in the team, user: {id: ada, claims: {team: [core, web]}}, expect: allow}
  - {name: on leave, user: {id: bob, claims: {team: [core, on-leave]}}, expect: deny}
`,
	schema: func(m *Matcher) fragment {
		return fragment{"anyOf": []any{
			fragment{"type": []any{"string", "number", "boolean", "null", "array"}},
			keysOf(m.Keys),
		}}
	},
}

var addresses = &Matcher{Name: "addresses", id: "addresses",
	Doc: "An IP address or CIDR range, or a list of them; IPv4 or IPv6. An empty list never matches.",
	schema: func(*Matcher) fragment {
		return fragment{"anyOf": []any{fragment{"type": "string"}, fragment{"type": "array", "items": fragment{"type": "string"}}}}
	},
}

var certificateKind = &Matcher{Name: "certificate matcher", id: "certificate_matcher",
	Doc: "An object; all keys must hold. Trust is not looked at: see `invalid_client_certificate`.",
	Keys: []MatcherKey{
		{"fingerprint", "SHA-256 of the whole certificate, or a list: 64 lower-case hex digits, or 32 upper-case pairs joined by colons.", oneOrMore},
		{"spki_hash", "Base64 of the SHA-256 of the public key info, or a list.", oneOrMore},
		{"san_dns", "String matcher over the DNS names; some name must satisfy each operator.", ref("string_matcher")},
		{"san_email", "The same over the e-mail addresses.", ref("string_matcher")},
		{"san_uri", "The same over the URIs.", ref("string_matcher")},
	},
	schema: func(m *Matcher) fragment { return keysOf(m.Keys) },
}

var oneOrMore = fragment{"anyOf": []any{fragment{"type": "string"}, fragment{"type": "array", "items": fragment{"type": "string"}}}}

var deviceKind = &Matcher{Name: "device matcher", id: "device_matcher",
	Doc: "An object; all keys must hold for the first credential of the type.",
	Keys: []MatcherKey{
		{"is", "Id of the credential.", fragment{"type": "string"}},
		{"type", "Type of device; `any` unless given.", fragment{"type": "string"}},
		{"approved", "Whether an administrator approved it.", fragment{}},
	},
	schema: func(m *Matcher) fragment { return keysOf(m.Keys) },
}

var dateKind = &Matcher{Name: "date matcher", id: "date_matcher",
	Doc: "Either or both, strict. ISO 8601 with or without time and offset; UTC without one.",
	Keys: []MatcherKey{
		{"after", "Now is later.", fragment{"type": "string"}},
		{"before", "Now is earlier.", fragment{"type": "string"}},
	},
	schema: func(m *Matcher) fragment { o := keysOf(m.Keys); o["minProperties"] = 1; return o },
}

var dayKind = &Matcher{Name: "day of week matcher", id: "day_of_week_matcher",
	Doc: "Days and ranges of days, by name or its first three letters, separated by commas: `mon-fri,sun`. `*` is every day. The day is the one in UTC. The object `{is: ...}` says the same.",
	schema: func(*Matcher) fragment {
		return fragment{"anyOf": []any{fragment{"type": "string"},
			fragment{"type": "object", "properties": fragment{"is": fragment{"type": "string"}}, "required": []any{"is"}, "additionalProperties": false}}}
	},
}

var timeKind = &Matcher{Name: "time of day matcher", id: "time_of_day_matcher",
	Doc: "A zone, and after or before or both, strict, on the day of that zone. An interval over midnight is two rules. Quote times: `\"17:00\"`.",
	Keys: []MatcherKey{
		{"timezone", "IANA name, such as Europe/Oslo. Required.", fragment{"type": "string"}},
		{"after", "Such as `9:00`, `9:00 AM` or `09:00:30`.", fragment{"type": "string"}},
		{"before", "The same.", fragment{"type": "string"}},
	},
	schema: func(m *Matcher) fragment {
		o := keysOf(m.Keys)
		o["required"] = []any{"timezone"}
		o["anyOf"] = []any{fragment{"required": []any{"after"}}, fragment{"required": []any{"before"}}}
		return o
	},
}

var recordKind = &Matcher{Name: "record matcher", id: "record_matcher",
	Doc: "A type, a field and operators, all of which must hold: those of string matchers, and the ones below. A number compares with numbers and with texts that are one.",
	Keys: append([]MatcherKey{
		{"type", "Type of the external data. Required.", fragment{"type": "string"}},
		{"field", "Name of the field, or a path to it with `.` or `/`.", fragment{"type": "string"}},
		{"has", "The field is a list and some element equals the operand.", fragment{}},
		{"exclude", "The field is a list and no element equals the operand.", fragment{}},
		{"exists", "Whether record and field exist.", fragment{"type": "boolean"}},
		{"<", "Less than the number.", fragment{"type": "number"}},
		{"<=", "At most the number.", fragment{"type": "number"}},
		{"=", "Equal to the number.", fragment{"type": "number"}},
		{">", "More than the number.", fragment{"type": "number"}},
		{">=", "At least the number.", fragment{"type": "number"}},
	}, stringKind.Keys...),
	schema: func(m *Matcher) fragment {
		o := keysOf(m.Keys)
		o["required"] = []any{"type"}
		o["minProperties"] = 2
		return o
	},
}

var keysKind = &Matcher{Name: "SSH keys", id: "ssh_keys",
	Doc:    "An `authorized_keys` line, or a list of them. Comments are ignored.",
	schema: func(*Matcher) fragment { return oneOrMore },
}

var claimName = &Matcher{Name: "claim name", id: "claim_name",
	Doc:    "The name of a claim, as in `claim/NAME`.",
	schema: func(*Matcher) fragment { return fragment{"type": "string"} },
}

// Matchers lists the kinds of values in the order of the reference page.
func Matchers() []*Matcher {
	return []*Matcher{stringKind, listKind, addresses, certificateKind, deviceKind, dateKind, dayKind, timeKind, recordKind, keysKind, claimName, anything}
}
