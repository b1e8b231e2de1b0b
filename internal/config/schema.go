package config

import (
	"cmp"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

// declared is one key as its struct field declares it.
type declared struct {
	name       string // in its block, lower case
	path       string // full name, such as routes[].prefix
	env        string // "" for none
	def        string
	hasDefault bool
	doc        string
	status     string
	section    string
	form       string
	prefix     string
	deprecated string
	enum       []string
	narrows    bool
	secret     bool
	strict     bool

	typ      reflect.Type
	defValue reflect.Value // parsed default; invalid without one
	index    []int         // of the field, from the struct of the block
	block    *schema       // keys below, for structs and lists and maps of structs
}

// schema is the keys of one block.
type schema struct {
	typ    reflect.Type
	keys   []*declared          // in the order of declaration
	byName map[string]*declared // aliases included
}

var (
	nodeType     = reflect.TypeFor[*yaml.Node]()
	urlType      = reflect.TypeFor[*url.URL]()
	durationType = reflect.TypeFor[time.Duration]()
)

var (
	schemaOnce   sync.Once
	globalSchema *schema
	routeSchema  *schema
)

// schemas are the keys of a document and those of one route.
func schemas() (global, route *schema) {
	schemaOnce.Do(func() {
		globalSchema = buildSchema(reflect.TypeFor[Config](), "", "", "")
		routeSchema = buildSchema(reflect.TypeFor[Route](), "routes[].", "-", "")
	})
	return globalSchema, routeSchema
}

func globalKeys() *schema { g, _ := schemas(); return g }
func routeKeys() *schema  { _, r := schemas(); return r }

// buildSchema collects the keys that typ declares. path is put before their
// names and env before the names of their variables; env "-" means none.
// section is theirs unless they say another.
func buildSchema(typ reflect.Type, path, env, section string) *schema {
	s := &schema{typ: typ, byName: map[string]*declared{}}
	s.collect(typ, nil, path, env, section)
	return s
}

func (s *schema) collect(typ reflect.Type, index []int, path, env, section string) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		at := append(slices.Clone(index), i)
		if f.Name == "_" {
			section = f.Tag.Get("section")
			continue
		}
		if f.Tag.Get("inline") == "true" {
			s.collect(f.Type, at, path, env, section)
			continue
		}
		name := f.Tag.Get("key")
		if name == "" || name == "-" {
			continue
		}
		d := &declared{
			name: name, path: path + name, doc: f.Tag.Get("doc"), status: f.Tag.Get("status"),
			section: cmp.Or(f.Tag.Get("section"), section), form: f.Tag.Get("form"),
			prefix: f.Tag.Get("prefix"), deprecated: f.Tag.Get("deprecated"),
			narrows: f.Tag.Get("narrows") == "true", secret: f.Tag.Get("secret") == "true",
			strict: f.Tag.Get("strict") == "true", typ: f.Type, index: at,
		}
		d.def, d.hasDefault = f.Tag.Lookup("default")
		if words, ok := f.Tag.Lookup("enum"); ok {
			d.enum = strings.Split(words, "|")
		}
		switch own := f.Tag.Get("env"); {
		case env == "-" || own == "-":
			d.env = ""
		case own != "":
			d.env = own
		default:
			d.env = env + strings.ToUpper(name)
		}
		if block, suffix := blockOf(f.Type); block != nil {
			below := "-" // lists and maps have no variables for their parts
			if suffix == "." && d.env != "" {
				below = d.env + "_"
			}
			d.block = buildSchema(block, d.path+suffix, below, d.section)
		}
		if d.hasDefault {
			d.parseDefault()
		}
		s.keys = append(s.keys, d)
		s.byName[name] = d
		if aliases := f.Tag.Get("aliases"); aliases != "" {
			for alias := range strings.SplitSeq(aliases, ",") {
				s.byName[alias] = d
			}
		}
	}
}

// blockOf tells the struct whose keys lie below a field of type t, if any,
// and how they are named from there.
func blockOf(t reflect.Type) (block reflect.Type, suffix string) {
	if t == nodeType || t == urlType {
		return nil, ""
	}
	switch t.Kind() {
	case reflect.Struct:
		if t.NumField() == 0 { // such as mcp.client: its presence is all it says
			return t, "."
		}
		for i := range t.NumField() {
			if t.Field(i).Tag.Get("key") != "" {
				return t, "."
			}
		}
	case reflect.Pointer:
		return blockOf(t.Elem())
	case reflect.Slice:
		block, _ = blockOf(t.Elem())
		return block, "[]."
	case reflect.Map:
		block, _ = blockOf(t.Elem())
		return block, ".<name>."
	}
	return nil, ""
}

// names lists the keys of a block.
func (s *schema) names() []string {
	names := make([]string, 0, len(s.keys))
	for _, d := range s.keys {
		names = append(names, d.name)
	}
	return names
}

// Key describes one setting, for people and programs.
type Key struct {
	// Name is the full name, such as timeout_read or routes[].prefix.
	Name string `json:"name"`
	// Type is a word such as string, bool, duration, list or map.
	Type string `json:"type"`
	// Default is the value if unset, as written in an environment variable.
	Default string `json:"default"`
	// Env is the environment variable, or empty.
	Env string `json:"env"`
	Doc string `json:"doc"`
	// Status is acts, accepted: understood but without effect yet, or
	// ignored: nothing here that it could change.
	Status string `json:"status"`
	// Section is the section of the specification, or "ours".
	Section string `json:"section"`
	// Values are the permitted words of an enumeration.
	Values []string `json:"values,omitempty"`
	// Narrows says that the start stops rather than ignore this key.
	Narrows    bool   `json:"narrows,omitempty"`
	Secret     bool   `json:"secret,omitempty"`
	Deprecated string `json:"deprecated,omitempty"`
}

// Keys lists every setting: the global ones, then those of routes, each in
// the order of declaration.
func Keys() []Key {
	var out []Key
	walkKeys(globalKeys(), func(d *declared) { out = append(out, d.public()) })
	for _, list := range routeLists {
		out = append(out, Key{Name: list.name, Type: "list", Env: list.env, Doc: list.doc, Status: "acts", Section: "2.16", Deprecated: list.deprecated})
	}
	walkKeys(routeKeys(), func(d *declared) { out = append(out, d.public()) })
	return out
}

// routeLists are the two keys that hold routes, in the order of trying.
var routeLists = []struct{ name, env, doc, deprecated string }{
	{"policy", "POLICY", "Old name of routes; both may be set, and these come first.", "routes"},
	{"routes", "ROUTES", "The routes, in the order in which they are tried. The variable holds base64 of a YAML or JSON list.", ""},
}

func walkKeys(s *schema, visit func(*declared)) {
	for _, d := range s.keys {
		visit(d)
		if d.block != nil {
			walkKeys(d.block, visit)
		}
	}
}

func (d *declared) public() Key {
	k := Key{
		Name: d.path, Type: d.typeName(), Default: d.def, Env: d.env, Doc: d.doc, Status: d.status,
		Section: d.section, Narrows: d.narrows, Secret: d.secret, Deprecated: d.deprecated,
	}
	for _, w := range d.enum {
		if w != "" {
			k.Values = append(k.Values, w)
		}
	}
	return k
}

// typeName is the word for the type of a key in the reference.
func (d *declared) typeName() string {
	switch d.form {
	case "b64", "b64key":
		return "base64"
	case "pem":
		return "pem"
	case "file":
		return "path"
	case "regex":
		return "regex"
	case "node":
		return "policy"
	case "cases":
		return "policy tests"
	case "headers", "claims", "flags":
		return "map"
	case "color":
		return "color"
	case "services", "hosts", "prefixes", "endpoints", "sans":
		return "list"
	}
	if len(d.enum) > 0 {
		return "enum"
	}
	return typeWord(d.typ)
}

func typeWord(t reflect.Type) string {
	switch t {
	case urlType:
		return "url"
	case durationType:
		return "duration"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeWord(t.Elem())
	case reflect.Bool:
		return "bool"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "int"
	case reflect.Uint32, reflect.Uint64:
		return "uint"
	case reflect.Float64:
		return "float"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "map"
	case reflect.Struct:
		return "object"
	}
	return "string"
}
