package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

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

// routes takes the list of routes under the key list; what they say is
// decoded once everything around them is known.
func (d *decoder) routes(n *yaml.Node, list string) {
	d.items = slices.DeleteFunc(d.items, func(it *routeItem) bool { return it.list == list })
	if list == "routes" && d.split != nil {
		d.items = append(d.items, d.split...)
		return
	}
	if isNull(n) {
		return
	}
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	for i, item := range items {
		it := &routeItem{list: list, index: i, file: d.file, line: item.Line, column: item.Column, node: item}
		it.key = nodeKey(d.file, list, item)
		d.items = append(d.items, it)
	}
}

// route decodes one item.
func (d *decoder) route(item *yaml.Node, r *Route) bool {
	path := r.Path()
	d.places[path] = place{r.File, item.Line, item.Column}
	if item.Kind != yaml.MappingNode {
		hint := "write the route as from, to and policy"
		if r.List == "policy" {
			hint = "at the top, policy is the old name of routes; the policy of one route is written in the route"
		}
		d.fail(item, path, "a route is a mapping, not "+kindName(item), hint)
		return false
	}
	v := reflect.ValueOf(r).Elem()
	applyDefaults(v, routeKeys())
	d.block(item, v, routeKeys(), path+".")
	return true
}
