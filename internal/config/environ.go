package config

import (
	"encoding/base64"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"reflect"
)

// environment is the name under which variables appear in problems.
const environment = "environment"

// variable is one setting that the environment makes.
type variable struct {
	name  string
	value string
	key   *declared
}

// environ is the part of an environment that makes settings.
type environ struct {
	vars   []variable
	routes map[string]string // policy and routes, in base64
	// removed are removed keys that are still set.
	removed []variable
}

// readEnviron picks the variables that are settings. One that is set but empty
// counts as unset; of one named twice the last counts, as for os.Getenv it
// may not, but as shells behave.
func readEnviron(env []string) environ {
	values := make(map[string]string, len(env))
	for _, kv := range env {
		if name, value, ok := strings.Cut(kv, "="); ok {
			values[name] = value
		}
	}
	out := environ{routes: map[string]string{}}
	walkKeys(globalKeys(), func(k *declared) {
		if v := values[k.env]; k.env != "" && v != "" {
			out.vars = append(out.vars, variable{k.env, v, k})
		}
	})
	for _, list := range routeLists {
		if v := values[list.env]; v != "" {
			out.routes[list.name] = v
		}
	}
	for name, old := range removedGlobal {
		env := strings.ToUpper(name)
		// Other programs own short names such as DEBUG and HEADERS.
		if v := values[env]; v != "" && old.fatal && name != "headers" {
			out.removed = append(out.removed, variable{name: env, value: v, key: &declared{name: name}})
		}
	}
	slices.SortFunc(out.removed, func(a, b variable) int { return strings.Compare(a.name, b.name) })
	return out
}

// paths are the settings this environment makes.
func (e environ) paths() []string {
	var out []string
	for _, v := range e.vars {
		out = append(out, v.key.path)
	}
	for name := range e.routes {
		out = append(out, name)
	}
	return out
}

// decode applies the environment over what is there.
func (e environ) decode(d *decoder) {
	d.file = environment
	for _, old := range e.removed {
		d.add(Problem{File: environment, Path: old.name, Message: "the variable sets a key that was removed", Hint: removedGlobal[old.key.name].hint, Kind: KindRemovedKey})
	}
	root := reflect.ValueOf(d.cfg).Elem()
	for _, v := range e.vars {
		if d.overruled[v.key.path] {
			continue
		}
		n := textNode(v.value)
		n.Style = yaml.SingleQuotedStyle
		d.mark(v.key.path, v.key, n)
		before, at := len(d.problems), len(d.cfg.set)-1
		field := fieldFor(root, v.key.path)
		d.value(n, field, v.key, v.key.path)
		d.cfg.set[at].same = v.key.isDefault(field)
		for i := before; i < len(d.problems); i++ {
			// The operator wrote a variable, not a key.
			d.problems[i].Path = v.name
		}
	}
	for _, list := range routeLists {
		if text, ok := e.routes[list.name]; ok && !d.overruled[list.name] {
			e.decodeRoutes(d, list.name, list.env, text)
		}
	}
}

// decodeRoutes reads POLICY or ROUTES: base64 of a YAML or JSON list.
func (e environ) decodeRoutes(d *decoder, list, env, text string) {
	fail := func(message, hint string) {
		d.add(Problem{File: environment, Path: env, Message: message, Hint: hint})
	}
	if strings.Contains(text, ",") {
		fail("the value holds a comma", "encode the list of routes with base64 -w0")
		return
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		fail("the value is not standard base64 with padding", "encode the list of routes with base64 -w0")
		return
	}
	n, problems := parse(environment+" "+env, YAML, raw)
	if n == nil && len(problems) == 0 {
		return
	}
	if n == nil {
		// JSON that is indented with tabs is not YAML.
		if j, err := parseJSON(raw); err == nil && j != nil {
			n, problems = j, nil
		}
	}
	d.problems = append(d.problems, problems...)
	if n == nil {
		return
	}
	d.file = environment + " " + env
	d.mark(list, nil, n)
	d.routes(n, list)
	d.file = environment
}

// fieldFor finds the field of a global path, making the blocks on the way.
func fieldFor(root reflect.Value, path string) reflect.Value {
	s := globalKeys()
	v := root
	parts := strings.Split(path, ".")
	for i, part := range parts {
		k := s.byName[part]
		v = v.FieldByIndex(k.index)
		if i == len(parts)-1 {
			break
		}
		if v.Kind() == reflect.Pointer {
			if v.IsNil() {
				p := reflect.New(v.Type().Elem())
				applyDefaults(p.Elem(), k.block)
				v.Set(p)
			}
			v = v.Elem()
		}
		s = k.block
	}
	return v
}
