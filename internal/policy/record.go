package policy

import (
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var record = &Criterion{
	Name:    "record",
	Doc:     "True if a record of external data belongs to this user or request and its field matches. Without a record or field only exists: false is true.",
	Value:   "record matcher: type, field, and operators",
	Matcher: recordKind,
	Example: `
settings: {external_data: {example.com/office: {foreign_key: request.ip}}}
records:
  - {type: example.com/office, id: oslo, data: {$index: {cidr: 192.0.2.0/24}, country: "NO", floor: "3"}}
policy:
  - allow: {and: [record: {type: example.com/office, field: floor, ">=": 2}]}
cases:
  - {name: in the office, request: {ip: 192.0.2.7}, expect: allow}
  - {name: elsewhere, request: {ip: 198.51.100.7}, expect: deny, reasons: [record-unauthorized]}
`,
	Compile: compileRecord,
}

// recordOperators are the operators of the record matcher (§6).
var recordOperators = append(append([]string{}, stringOperators...), "has", "exclude", "exists", "<", "<=", "=", ">", ">=")

// recordOperator judges a field; present is false without record or field.
type recordOperator func(v any, present bool) bool

func compileRecord(s *Scope, n *yaml.Node) test {
	entries, ok := s.object(n, "", "record operator", append([]string{"type", "field"}, recordOperators...))
	if !ok {
		return nil
	}
	ok = len(entries) == len(n.Content)/2
	var typ, field string
	var hasType, hasField, needsField bool
	var ops []recordOperator
	for _, e := range entries {
		switch e.name {
		case "type":
			hasType = true
			typ, ok = s.both(ok, e)
		case "field":
			hasField = true
			field, ok = s.both(ok, e)
		default:
			needsField = needsField || e.name != "exists"
			op := s.recordOperator(e)
			if op == nil {
				ok = false
				continue
			}
			ops = append(ops, op)
		}
	}
	if !hasType {
		s.Errorf(n, "", `record needs a "type", the type of external data to look in`)
		ok = false
	}
	if needsField && !hasField {
		s.Errorf(n, "", `record needs a "field" to compare; only exists does without`)
		ok = false
	}
	if ok && len(ops) == 0 {
		s.Errorf(n, "", "record needs an operator, one of: %s", strings.Join(recordOperators, ", "))
		ok = false
	}
	if !ok {
		return nil
	}
	steps := strings.FieldsFunc(field, func(r rune) bool { return r == '.' || r == '/' })
	return func(in *Input) verdict {
		if !in.HasSession && (in.RecordIdentity == nil || in.RecordIdentity(typ)) {
			return verdict{why: ReasonUserUnauthenticated.set()}
		}
		var v any
		present := false
		if in.Record != nil {
			var data map[string]any
			if data, present = in.Record(typ); present && hasField {
				v, present = findField(data, field, steps)
			}
		}
		for _, op := range ops {
			if !op(v, present) {
				return verdict{why: ReasonRecordUnauthorized.set()}
			}
		}
		return verdict{ok: true, why: ReasonRecordOK.set()}
	}
}

func (s *Scope) both(ok bool, e entry) (string, bool) {
	t, isText := s.text(e.value, e.name, e.name)
	return t, ok && isText
}

// findField looks for a field by its literal name, then step by step.
func findField(data map[string]any, name string, steps []string) (any, bool) {
	if v, ok := data[name]; ok {
		return v, true
	}
	var v any = data
	for _, step := range steps {
		object, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = object[step]; !ok {
			return nil, false
		}
	}
	return v, len(steps) > 0
}

func (s *Scope) recordOperator(e entry) recordOperator {
	switch e.name {
	case "exists":
		want, err := Plain(e.value)
		truth, isBool := want.(bool)
		if err != nil || !isBool {
			s.wrongType(e.value, e.name, e.name, "boolean")
			return nil
		}
		return func(_ any, present bool) bool { return present == truth }
	case "is", "not", "has", "exclude":
		want, ok := s.plain(e.value, e.name)
		if !ok {
			return nil
		}
		o := newOperand(want)
		switch e.name {
		case "is":
			return func(v any, present bool) bool { return present && o.equals(v) }
		case "not":
			return func(v any, present bool) bool { return present && !o.equals(v) }
		}
		has := e.name == "has"
		if has && o.kind == kindList {
			s.Warnf(e.value, e.name, "has compares each element with the whole list, so it finds only a list inside the list")
		}
		return func(v any, present bool) bool {
			list, isList := v.([]any)
			return present && isList && slices.ContainsFunc(list, o.equals) == has
		}
	case "in", "not_in":
		return s.recordIn(e)
	case "contains", "starts_with", "ends_with":
		holds := s.stringOperator(e.name, e.value, e.name)
		if holds == nil {
			return nil
		}
		return func(v any, present bool) bool {
			t, isText := v.(string)
			return present && isText && holds(t)
		}
	}
	want, ok := s.plain(e.value, e.name)
	limit, isNumber := numberOf(want)
	if !ok || !isNumber {
		s.wrongType(e.value, e.name, e.name, "number")
		return nil
	}
	name := e.name
	return func(v any, present bool) bool {
		// Sources in CSV have only strings, so a string that is a number is one.
		n, isNumber := numberOf(v)
		if t, isText := v.(string); isText {
			n, isNumber = parseNumber(t)
		}
		if !present || !isNumber {
			return false
		}
		switch c := n.compare(limit); name {
		case "<":
			return c < 0
		case "<=":
			return c <= 0
		case "=":
			return c == 0
		case ">":
			return c > 0
		}
		return n.compare(limit) >= 0
	}
}

func (s *Scope) recordIn(e entry) recordOperator {
	if e.value.Kind != yaml.SequenceNode {
		s.wrongType(e.value, e.name, e.name, "list")
		return nil
	}
	texts := map[string]struct{}{}
	var others []operand
	for i, item := range e.value.Content {
		v, ok := s.plain(item, e.name+"["+strconv.Itoa(i)+"]")
		if !ok {
			return nil
		}
		if t, isText := v.(string); isText {
			texts[t] = struct{}{}
		} else {
			others = append(others, newOperand(v))
		}
	}
	want := e.name == "in"
	return func(v any, present bool) bool {
		t, isText := v.(string)
		_, listed := texts[t]
		listed = listed && isText
		for i := range others {
			listed = listed || others[i].equals(v)
		}
		return present && listed == want
	}
}
