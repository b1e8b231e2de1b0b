package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
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
}

const maxProblems = 1000

func newDecoder() *decoder {
	d := &decoder{cfg: &Config{}, places: map[string]place{}, overruled: map[string]bool{}, budget: maxProblems}
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
	d := &decoder{places: map[string]place{}, overruled: map[string]bool{}, budget: maxProblems}
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
func (d *decoder) document(file string, root *yaml.Node) {
	d.file = file
	if root == nil {
		return
	}
	if root.Kind != yaml.MappingNode {
		d.fail(root, "", "the document is "+kindName(root)+", not a mapping of settings", "write key: value lines")
		return
	}
	d.block(root, reflect.ValueOf(d.cfg).Elem(), globalKeys(), "")
}

// block decodes a mapping into a struct. Keys match in any case.
func (d *decoder) block(n *yaml.Node, v reflect.Value, s *schema, path string) {
	seen := make(map[string]*yaml.Node, len(n.Content)/2)
	taken := make(map[*declared]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, val := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.fail(k, path, "a key is "+kindName(k)+", not a name", "write key: value")
			continue
		}
		name := strings.ToLower(k.Value)
		if before := seen[name]; before != nil {
			d.fail(k, path+k.Value, fmt.Sprintf("the key %s is already set in line %d", shorten(k.Value), before.Line), "keep one of them")
			continue
		}
		seen[name] = k
		if path == "" && (name == "routes" || name == "policy") {
			d.mark(name, nil, k)
			if !d.overruled[name] {
				d.routes(val, name)
			}
			continue
		}
		key := s.byName[name]
		if key == nil {
			d.unknown(k, val, s, path, name)
			continue
		}
		full := path + key.name
		if before := taken[key]; before != nil {
			d.fail(k, path+name, name+" and "+strings.ToLower(before.Value)+" are the same setting", "keep "+key.name)
			continue
		}
		taken[key] = k
		if d.overruled[full] {
			continue
		}
		if isNull(val) {
			continue // as if it were not there
		}
		d.mark(full, key, k)
		// Problems of a mapping or list point at its parts, those of the
		// value at the value.
		n := len(d.cfg.set) - 1
		field := v.FieldByIndex(key.index)
		d.value(val, field, key, full)
		d.cfg.set[n].same = key.isDefault(field)
	}
}

// isDefault reports whether v is what the key is without being set.
func (k *declared) isDefault(v reflect.Value) bool {
	if k.defValue.IsValid() {
		return reflect.DeepEqual(v.Interface(), k.defValue.Interface())
	}
	if v.Kind() == reflect.Pointer && !v.IsNil() && v.Elem().Kind() == reflect.Bool {
		return !v.Elem().Bool()
	}
	return v.IsZero()
}

// mark notes that path was set.
func (d *decoder) mark(path string, key *declared, n *yaml.Node) {
	at := place{d.file, n.Line, n.Column}
	d.places[strings.ToLower(path)] = at
	if key != nil {
		d.cfg.set = append(d.cfg.set, setKey{path: path, key: key, at: at})
	}
}

// unknown reports a key that nothing declares.
func (d *decoder) unknown(k, val *yaml.Node, s *schema, path, name string) {
	p := Problem{File: d.file, Line: k.Line, Column: k.Column, Path: path + k.Value, Level: LevelLogged, Kind: KindUnknownKey}
	if old, ok := removedFor(path, name); ok {
		p.Message, p.Hint = "the key was removed", old.hint
		p.Kind = KindRemovedKey
		if old.fatal {
			p.Level = LevelFatal
		}
		d.add(p)
		return
	}
	p.Message = "the key is unknown and has no effect"
	known := s.names()
	if path == "" {
		known = append(known, "routes", "policy")
	}
	if near := suggest(name, known); near != "" && near != name {
		p.Hint = "did you mean " + near + "?"
		if key := s.byName[near]; key != nil && key.narrows {
			p.Kind, p.Level = KindMisspelt, LevelWarning
			p.Message = "the key is unknown, so what it should restrict is not restricted"
		}
	} else if path == "" && routeKeys().byName[name] != nil {
		p.Hint = "this is a setting of a route: move it into an item of routes"
	} else if strings.HasPrefix(path, "routes[") && globalKeys().byName[name] != nil {
		p.Hint = "this is a global setting: move it out of routes"
	} else {
		p.Hint = "remove it or correct its name"
	}
	d.add(p)
}

// routes decodes the list of routes under the key list.
func (d *decoder) routes(n *yaml.Node, list string) {
	d.dropRoutes(list)
	if isNull(n) {
		return
	}
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	for i, item := range items {
		path := indexed(list, i)
		d.places[path] = place{d.file, item.Line, item.Column}
		if item.Kind != yaml.MappingNode {
			hint := "write the route as from, to and policy"
			if list == "policy" {
				hint = "at the top, policy is the old name of routes; the policy of one route is written in the route"
			}
			d.fail(item, path, "a route is a mapping, not "+kindName(item), hint)
			continue
		}
		r := &Route{List: list, Index: i, File: d.file, Line: item.Line, Column: item.Column}
		v := reflect.ValueOf(r).Elem()
		applyDefaults(v, routeKeys())
		d.block(item, v, routeKeys(), path+".")
		d.cfg.Routes = append(d.cfg.Routes, r)
	}
}

// dropRoutes forgets the routes of a list that a later source replaces.
func (d *decoder) dropRoutes(list string) {
	kept := d.cfg.Routes[:0]
	for _, r := range d.cfg.Routes {
		if r.List != list {
			kept = append(kept, r)
		}
	}
	d.cfg.Routes = kept
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

// jsonText reads text that holds a JSON object or list as that, as variables
// of the environment write maps.
func (d *decoder) jsonText(n *yaml.Node) *yaml.Node {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return n
	}
	text := strings.TrimSpace(n.Value)
	if !strings.HasPrefix(text, "{") && !strings.HasPrefix(text, "[") {
		return n
	}
	inner, err := parseJSON([]byte(text))
	if err != nil || inner == nil {
		return n
	}
	move(inner, n.Line, n.Column)
	return inner
}

// move gives a tree the position of the text it was read from.
func move(n *yaml.Node, line, column int) {
	n.Line, n.Column = line, column
	for _, c := range n.Content {
		move(c, line, column)
	}
}

// toAny reads a value of any kind: text, bool, int64, float64, lists and maps.
func toAny(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := toAny(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			out[n.Content[i].Value] = v
		}
		return out, nil
	case yaml.SequenceNode:
		out := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			v, err := toAny(c)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	}
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		return toBool(n, false)
	case "!!int":
		if v, err := strconv.ParseInt(n.Value, 0, 64); err == nil {
			return v, nil
		}
	case "!!float":
		if v, err := toFloat(n); err == nil {
			return v, nil
		}
	}
	return n.Value, nil
}

// special decodes the values whose form the Go type does not tell. It reports
// false where the ordinary decoder should go on.
func (d *decoder) special(n *yaml.Node, v reflect.Value, key *declared, path string) bool {
	text := func() (string, bool) {
		s, err := toString(n)
		if err != nil {
			d.fail(n, path, err.Error(), "")
		}
		return s, err == nil
	}
	switch key.form {
	case "node":
		v.Set(reflect.ValueOf(n))
	case "b64", "b64key":
		s, ok := text()
		if !ok || s == "" {
			return true
		}
		b, err := fromBase64(s)
		if err != nil {
			hint := "encode it with base64 -w0"
			if strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") {
				hint = "for the path of a file use " + key.name + "_file"
			} else if strings.Contains(s, "-----BEGIN") {
				hint = "this is PEM as it is: encode it with base64 -w0, or use " + key.name + "_file"
			}
			d.fail(n, path, err.Error(), hint)
			return true
		}
		if key.form == "b64key" && len(b) != 32 {
			d.fail(n, path, fmt.Sprintf("the value holds %d bytes, not 32", len(b)), "make one with: head -c32 /dev/urandom | base64")
			return true
		}
		v.SetBytes(b)
	case "pem":
		if s, ok := text(); ok {
			v.SetBytes([]byte(s)) // checked where the file variant is read
		}
	case "pbduration":
		dur, err := toProtoDuration(n)
		if err != nil {
			d.fail(n, path, err.Error(), "")
			return true
		}
		v.Set(reflect.ValueOf(&dur))
	case "regex":
		s, ok := text()
		if !ok {
			return true
		}
		if _, err := regexp.Compile(s); err != nil {
			d.fail(n, path, "the regular expression is malformed: "+strings.TrimPrefix(err.Error(), "error parsing regexp: "), "use RE2 syntax")
			return true
		}
		v.SetString(s)
	case "color":
		s, ok := text()
		if !ok {
			return true
		}
		if s != "" && !colorForm.MatchString(s) {
			d.fail(n, path, shorten(s)+" is not a colour such as #6F43E7", "quote the value: # starts a comment")
			return true
		}
		v.SetString(s)
	case "services":
		d.services(n, v, key, path)
	case "prefixes":
		var items []string
		d.plain(n, reflect.ValueOf(&items).Elem(), key, path)
		out := make([]netip.Prefix, 0, len(items))
		for i, s := range items {
			p, err := toPrefix(s)
			if err != nil {
				d.bad(indexed(path, i), err.Error(), "write networks in CIDR form")
				continue
			}
			out = append(out, p)
		}
		v.Set(reflect.ValueOf(out))
	case "endpoints":
		d.endpoints(n, v, path)
	case "sans":
		d.sans(n, v, path)
	case "claims":
		return d.claims(n, v, path)
	case "headers":
		return d.headerText(n, v, path)
	case "flags":
		d.flags(n, v, key, path)
	default: // hosts: an ordinary list, checked elsewhere
		return false
	}
	return true
}

var colorForm = regexp.MustCompile(`^#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$`)

// allServices are the roles of a process.
var allServices = []string{"authenticate", "authorize", "proxy", "databroker"}

func (d *decoder) services(n *yaml.Node, v reflect.Value, key *declared, path string) {
	var items []string
	d.plain(n, reflect.ValueOf(&items).Elem(), key, path)
	have := map[string]bool{}
	for _, item := range items {
		name := strings.ToLower(strings.TrimSpace(item))
		switch name {
		case "all":
			for _, s := range allServices {
				have[s] = true
			}
		case "cache":
			have["databroker"] = true
		case "authenticate", "authorize", "proxy", "databroker":
			have[name] = true
		default:
			d.fail(n, path, shorten(item)+" is not a service", "use all, or any of authenticate, authorize, proxy, databroker")
			return
		}
	}
	if len(have) == 0 {
		d.fail(n, path, "the list of services is empty", "use all, or any of authenticate, authorize, proxy, databroker")
		return
	}
	var out []string
	for _, s := range allServices {
		if have[s] {
			out = append(out, s)
		}
	}
	v.Set(reflect.ValueOf(out))
}

// claims decodes jwt_claims_headers: a mapping of header to claim, or a list
// of claims for which x-pomerium-claim-<claim> is the header.
func (d *decoder) claims(n *yaml.Node, v reflect.Value, path string) bool {
	n = d.jsonText(n)
	var names []string
	switch {
	case n.Kind == yaml.MappingNode:
		return false
	case n.Kind == yaml.ScalarNode:
		names = strings.FieldsFunc(n.Value, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
	default:
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				if item.Kind == yaml.MappingNode {
					return false // a list of mappings
				}
				d.fail(item, path, "the name of a claim is wanted, not "+kindName(item), "")
				return true
			}
			names = append(names, item.Value)
		}
	}
	out := make(map[string]string, len(names))
	for _, name := range names {
		if name != "" {
			out["x-pomerium-claim-"+name] = name
		}
	}
	v.Set(reflect.ValueOf(out))
	return true
}

// headerText decodes headers written as Name:value,Name2:value2, as the
// variable HEADERS permits; everything else is an ordinary mapping.
func (d *decoder) headerText(n *yaml.Node, v reflect.Value, path string) bool {
	n = d.jsonText(n)
	if n.Kind != yaml.ScalarNode || n.Value == "" || isNull(n) {
		return false
	}
	out := map[string]string{}
	for part := range strings.SplitSeq(n.Value, ",") {
		name, value, ok := strings.Cut(part, ":")
		if !ok {
			d.fail(n, path, shorten(part)+" is not of the form Name:value", "write a JSON object or Name:value,Name2:value2")
			return true
		}
		out[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	v.Set(reflect.ValueOf(out))
	return true
}

// flags merges runtime flags over what is there.
func (d *decoder) flags(n *yaml.Node, v reflect.Value, key *declared, path string) {
	set := map[string]bool{}
	d.mapping(n, reflect.ValueOf(&set).Elem(), key, path)
	merged := map[string]bool{}
	for name, on := range v.Interface().(map[string]bool) {
		merged[name] = on
	}
	for name, on := range set {
		folded := strings.ToLower(name)
		if _, known := flagDefaults[folded]; !known {
			hint := "remove it"
			names := make([]string, 0, len(flagDefaults))
			for f := range flagDefaults {
				names = append(names, f)
			}
			if near := suggest(folded, sorted(names)); near != "" {
				hint = "did you mean " + near + "?"
			}
			d.problem(LevelLogged, KindUnknownKey, path+"."+name, "the runtime flag is unknown and has no effect", hint)
			continue
		}
		merged[folded] = on
	}
	v.Set(reflect.ValueOf(merged))
}
