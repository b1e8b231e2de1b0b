package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// place is where a setting was written. line is 0 in the environment.
type place struct {
	file         string
	line, column int
}

// setKey is a setting that the operator wrote.
type setKey struct {
	path string
	key  *declared
	at   place
	// same says that it was set to what it would be anyway.
	same bool
}

// decoder fills a Config from documents and environment and gathers all
// problems on the way.
type decoder struct {
	cfg      *Config
	file     string // of the document being decoded
	problems []Problem
	places   map[string]place // by path, lower case
	// overruled are the paths that a later source sets.
	overruled map[string]bool
	// budget bounds problems, so that a huge malformed document cannot fill
	// memory with messages.
	budget int
	shared *sharedPolicies
	// items are the routes met, by list; split those of the document being
	// decoded, where it was taken apart.
	items, split []*routeItem
	// around is what stands around a route: where its problems may be that
	// are not in it.
	around *decoder
	abroad bool // a problem was put there
}

const maxProblems = 1000

func newDecoder() *decoder {
	d := &decoder{cfg: &Config{}, places: map[string]place{}, overruled: map[string]bool{}, budget: maxProblems, shared: newSharedPolicies()}
	applyDefaults(reflect.ValueOf(d.cfg).Elem(), globalKeys())
	d.cfg.Features.RuntimeFlags = make(map[string]bool, len(flagDefaults))
	for name, v := range flagDefaults {
		d.cfg.Features.RuntimeFlags[name] = v
	}
	return d
}

func (d *decoder) add(p Problem) {
	if d.budget--; d.budget < 0 {
		return
	}
	if d.budget == 0 {
		p = Problem{File: p.File, Line: p.Line, Column: p.Column, Message: fmt.Sprintf("more than %d problems; the rest is not shown", maxProblems), Hint: "fix the first ones and check again"}
	}
	d.problems = append(d.problems, p)
}

// fail reports a value that cannot be taken.
func (d *decoder) fail(n *yaml.Node, path, message, hint string) {
	d.add(Problem{File: d.file, Line: n.Line, Column: n.Column, Path: path, Message: message, Hint: hint})
}

func (d *decoder) warn(n *yaml.Node, path, message, hint string) {
	d.add(Problem{File: d.file, Line: n.Line, Column: n.Column, Path: path, Message: message, Hint: hint, Level: LevelWarning})
}

// at finds where path, or the nearest block around it, was written.
func (d *decoder) at(path string) place {
	for p := strings.ToLower(path); p != ""; {
		if at, ok := d.places[p]; ok {
			return at
		}
		i := strings.LastIndexAny(p, ".[")
		if i < 0 {
			break
		}
		p = p[:i]
	}
	if d.around != nil {
		d.abroad = true
		return d.around.at(path)
	}
	return place{}
}

// isSet reports whether the operator wrote path.
func (d *decoder) isSet(path string) bool {
	_, ok := d.places[path]
	return ok
}

// problem reports a check that failed on the setting at path.
func (d *decoder) problem(level Level, kind Kind, path, message, hint string) {
	at := d.at(path)
	d.add(Problem{File: at.file, Line: at.line, Column: at.column, Path: path, Message: message, Hint: hint, Level: level, Kind: kind})
}

func (d *decoder) bad(path, message, hint string) {
	d.problem(LevelFatal, KindInvalid, path, message, hint)
}

// failed reports whether path itself is already known to be wrong.
func (d *decoder) failed(path string) bool {
	return slices.ContainsFunc(d.problems, func(p Problem) bool { return p.Path == path && p.Level == LevelFatal })
}

func indexed(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

// applyDefaults sets the declared defaults of a block.
func applyDefaults(v reflect.Value, s *schema) {
	for _, k := range s.keys {
		if k.defValue.IsValid() {
			v.FieldByIndex(k.index).Set(k.defValue)
		}
		if k.block != nil && k.typ.Kind() == reflect.Struct {
			applyDefaults(v.FieldByIndex(k.index), k.block)
		}
	}
}

// parseDefault reads the declared default of a key, which must be valid.
func (k *declared) parseDefault() {
	v := reflect.New(k.typ).Elem()
	d := &decoder{places: map[string]place{}, overruled: map[string]bool{}, budget: maxProblems, shared: newSharedPolicies()}
	d.value(textNode(k.def), v, k, k.path)
	if len(d.problems) > 0 {
		panic("config: the default of " + k.path + " is not valid: " + d.problems[0].Message)
	}
	k.defValue = v
}

func textNode(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
}

// document decodes the root of a document over what is there.
func (d *decoder) document(file string, l *docLayer) {
	root := l.root
	d.file, d.split = file, l.items
	defer func() { d.split = nil }()
	if root == nil {
		return
	}
	if root.Kind != yaml.MappingNode {
		d.fail(root, "", "the document is "+kindName(root)+", not a mapping of settings", "write key: value lines")
		return
	}
	d.block(root, reflect.ValueOf(d.cfg).Elem(), globalKeys(), "")
}

// value decodes one value into the field of a key.
func (d *decoder) value(n *yaml.Node, v reflect.Value, key *declared, path string) {
	switch key.form {
	case "":
	case "exact", "provider", "file":
		// Ordinary text, checked elsewhere.
	default:
		if d.special(n, v, key, path) {
			return
		}
	}
	if len(key.enum) > 0 {
		s, err := toString(n)
		if err != nil {
			d.fail(n, path, err.Error(), "use one of "+enumWords(key.enum))
			return
		}
		w, ok := key.toEnum(s)
		if !ok {
			d.fail(n, path, shorten(s)+" is not a value of this key", "use one of "+enumWords(key.enum))
			return
		}
		v.SetString(w)
		return
	}
	d.plain(n, v, key, path)
}

func enumWords(enum []string) string {
	words := make([]string, 0, len(enum))
	for _, w := range enum {
		if w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, ", ")
}

// plain decodes by the Go type alone.
func (d *decoder) plain(n *yaml.Node, v reflect.Value, key *declared, path string) {
	fail := func(err error) {
		hint := ""
		switch typeWord(v.Type()) {
		case "int", "uint", "float":
			hint = "write a number"
		case "bool":
			hint = "write true or false"
		case "duration":
			hint = "write a number with a unit, such as 30s"
		}
		if key.secret {
			err = fmt.Errorf("the value is not of the right kind")
		}
		d.fail(n, path, err.Error(), hint)
	}
	switch v.Type() {
	case durationType:
		dur, bare, err := toDuration(n)
		if err != nil {
			fail(err)
			return
		}
		if bare {
			d.warn(n, path, fmt.Sprintf("the bare number %s is nanoseconds (%v)", n.Value, dur), "write a unit, such as 30s")
		}
		v.SetInt(int64(dur))
		return
	case urlType:
		u, err := toURL(n)
		if err != nil {
			fail(err)
			return
		}
		v.Set(reflect.ValueOf(u))
		return
	case nodeType:
		v.Set(reflect.ValueOf(n))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if key.block != nil {
			if !v.IsNil() { // a later source sets single fields
				p = v
			} else {
				applyDefaults(p.Elem(), key.block)
			}
		}
		before := len(d.problems)
		d.plain(n, p.Elem(), key, path)
		if len(d.problems) == before || key.block != nil {
			v.Set(p)
		}
	case reflect.String:
		s, err := toString(n)
		if err != nil {
			fail(err)
			return
		}
		v.SetString(s)
	case reflect.Bool:
		b, err := toBool(n, key.strict && n.Line > 0)
		if err != nil {
			fail(err)
			return
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int32, reflect.Int64:
		i, _, err := toInt(n, v.Type().Bits(), false, key.strict && n.Line > 0)
		if err != nil {
			fail(err)
			return
		}
		v.SetInt(i)
	case reflect.Uint32, reflect.Uint64:
		_, u, err := toInt(n, v.Type().Bits(), true, key.strict && n.Line > 0)
		if err != nil {
			fail(err)
			return
		}
		v.SetUint(u)
	case reflect.Float64:
		f, err := toFloat(n)
		if err != nil {
			fail(err)
			return
		}
		v.SetFloat(f)
	case reflect.Interface:
		x, err := toAny(n)
		if err != nil {
			fail(err)
			return
		}
		if x != nil {
			v.Set(reflect.ValueOf(x))
		}
	case reflect.Slice:
		d.list(n, v, key, path)
	case reflect.Map:
		d.mapping(n, v, key, path)
	case reflect.Struct:
		d.object(n, v, key, path)
	default:
		panic("config: no decoder for " + v.Type().String())
	}
}

// object decodes a block of keys; text holding a JSON object will do too.
func (d *decoder) object(n *yaml.Node, v reflect.Value, key *declared, path string) {
	n = d.jsonText(n)
	if n.Kind == yaml.SequenceNode && len(n.Content) == 1 && n.Content[0].Kind == yaml.MappingNode {
		n = n.Content[0]
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "a block of keys is wanted, not "+kindName(n), "write its keys indented below it: "+strings.Join(firstOf(key.block.names(), 6), ", "))
		return
	}
	d.block(n, v, key.block, path+".")
}

func firstOf(names []string, n int) []string {
	if len(names) > n {
		return append(names[:n:n], "...")
	}
	return names
}

// list decodes a list. One value stands for a list of one, and text where a
// list of texts is wanted is split at commas, untrimmed.
func (d *decoder) list(n *yaml.Node, v reflect.Value, key *declared, path string) {
	elem := v.Type().Elem()
	n = d.jsonText(n)
	if isNull(n) {
		return
	}
	var items []*yaml.Node
	switch {
	case n.Kind == yaml.SequenceNode:
		items = n.Content
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && elem.Kind() != reflect.Struct && elem.Kind() != reflect.Interface:
		if n.Value != "" {
			for part := range strings.SplitSeq(n.Value, ",") {
				items = append(items, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: part, Line: n.Line, Column: n.Column})
			}
		}
	case n.Kind == yaml.MappingNode && len(n.Content) == 0:
	default:
		items = []*yaml.Node{n}
	}
	out := reflect.MakeSlice(v.Type(), len(items), len(items))
	for i, item := range items {
		at := indexed(path, i)
		d.places[strings.ToLower(at)] = place{d.file, item.Line, item.Column}
		if key.block != nil {
			applyDefaults(out.Index(i), key.block)
		}
		if isNull(item) && elem.Kind() != reflect.Interface && elem.Kind() != reflect.Struct {
			continue
		}
		d.plain(item, out.Index(i), key, at)
	}
	v.Set(out)
}

// mapping decodes a map; its keys keep their case. A list of mappings is read
// as one mapping.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, key *declared, path string) {
	n = d.jsonText(n)
	if n.Kind == yaml.SequenceNode {
		one := mapping(n.Line, n.Column)
		for _, item := range n.Content {
			if item.Kind != yaml.MappingNode {
				d.fail(item, path, "a mapping is wanted, not "+kindName(item), "write name: value lines")
				return
			}
			one.Content = append(one.Content, item.Content...)
		}
		n = one
	}
	if n.Kind == yaml.ScalarNode && n.Value == "" {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "a mapping is wanted, not "+kindName(n), "write name: value lines below it")
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	seen := map[string]int{}
	fold := key.form == "headers" || key.form == "claims" || key.block != nil
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, val := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.fail(k, path, "a name is "+kindName(k), "write name: value")
			continue
		}
		name := k.Value
		if key.block != nil {
			name = strings.ToLower(name) // names of identity providers
		}
		same := name
		if fold {
			same = strings.ToLower(name)
		}
		if line, dup := seen[same]; dup {
			d.fail(k, path+"."+name, fmt.Sprintf("%s is already set in line %d", shorten(name), line), "keep one of them")
			continue
		}
		seen[same] = k.Line
		at := path + "." + name
		d.places[strings.ToLower(at)] = place{d.file, k.Line, k.Column}
		elem := reflect.New(v.Type().Elem()).Elem()
		if !isNull(val) {
			d.plain(val, elem, key, at)
		}
		out.SetMapIndex(reflect.ValueOf(name), elem)
	}
	v.Set(out)
}
