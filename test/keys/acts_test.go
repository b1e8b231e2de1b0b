package keys

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"postern/internal/config"
)

const root = "../.."

// TestEveryActingKeyIsShown holds acts.yaml against the declarations: each
// acting key has an entry, each entry an acting key, and each place named
// exists and speaks of the key or its field.
func TestEveryActingKeyIsShown(t *testing.T) {
	b, err := os.ReadFile("acts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var table map[string][]string
	if err := yaml.Unmarshal(b, &table); err != nil {
		t.Fatal(err)
	}
	here := map[string]bool{}
	for _, e := range all() {
		for _, key := range strings.Fields(e.keys) {
			here[key] = true
			if !slices.Contains(table[key], "example") {
				t.Errorf("%s has an example here, which acts.yaml does not name", key)
			}
		}
	}
	fields := fieldNames()
	acting := map[string]bool{}
	for _, k := range config.Keys() {
		if k.Status != "acts" {
			continue
		}
		acting[k.Name] = true
		if len(table[k.Name]) == 0 {
			t.Errorf("%s is said to act, and acts.yaml names nothing that shows it: add an example here, or call it accepted", k.Name)
		}
		for _, place := range table[k.Name] {
			if place == "example" {
				if !here[k.Name] {
					t.Errorf("%s: there is no example here", k.Name)
				}
				continue
			}
			text, err := sourceOf(place)
			switch {
			case err != nil:
				t.Errorf("%s: %s: %v", k.Name, place, err)
			case !mentions(text, k.Name, fields[k.Name]):
				t.Errorf("%s: %s never speaks of it, nor of %s", k.Name, place, fields[k.Name])
			}
		}
	}
	for key := range table {
		if !acting[key] {
			t.Errorf("acts.yaml has %s, which is no acting key", key)
		}
	}
	if len(acting) < 150 {
		t.Errorf("only %d keys act: the list is not whole", len(acting))
	}
}

// A place that does not exist, or does not speak of the key, is noticed.
func TestPlacesAreChecked(t *testing.T) {
	for _, place := range []string{"internal/certs TestNothing", "internal/nothing TestX", "test/system/testdata/nothing.txtar", "words"} {
		if _, err := sourceOf(place); err == nil {
			t.Errorf("%s is there", place)
		}
	}
	if mentions("cookie_names := 1", "cookie_name", "CookieName") || !mentions("a cookie_name b", "cookie_name", "") || !mentions("x.CookieName", "cookie_name", "CookieName") {
		t.Error("mentions does not look for whole words")
	}
	if f := fieldNames(); f["timeout_read"] != "TimeoutRead" || f["routes[].sub_policies[].id"] != "ID" || f["downstream_mtls.ca"] != "CA" {
		t.Errorf("%v", f)
	}
}

// mentions tells whether a text speaks of a key by its last name or its field.
func mentions(text, key, field string) bool {
	name := key[strings.LastIndexByte(key, '.')+1:]
	name = strings.TrimSuffix(name, "[]")
	word := regexp.QuoteMeta(name)
	if field != "" {
		word += "|" + regexp.QuoteMeta(field)
	}
	return regexp.MustCompile(`(^|[^A-Za-z0-9_])(` + word + `)([^A-Za-z0-9_]|$)`).MatchString(text)
}

// sourceOf is the text of a place: a script, or "directory TestName".
func sourceOf(place string) (string, error) {
	dir, name, isTest := strings.Cut(place, " ")
	if !isTest {
		b, err := os.ReadFile(filepath.Join(root, dir))
		return string(b), err
	}
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, f, b, 0)
		if err != nil {
			return "", err
		}
		for _, d := range parsed.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == name && fn.Recv == nil {
				return string(b[set.Position(fn.Pos()).Offset:set.Position(fn.End()).Offset]), nil
			}
		}
	}
	return "", os.ErrNotExist
}

// fieldNames are the Go fields of all keys, by key.
func fieldNames() map[string]string {
	out := map[string]string{}
	walk(reflect.TypeFor[config.Config](), "", out)
	walk(reflect.TypeFor[config.Route](), "routes[].", out)
	return out
}

func walk(t reflect.Type, path string, out map[string]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("key")
		if f.Tag.Get("inline") == "true" {
			walk(f.Type, path, out)
		}
		if name == "" || name == "-" {
			continue
		}
		out[path+name] = f.Name
		below, suffix := f.Type, "."
		for below.Kind() == reflect.Pointer || below.Kind() == reflect.Slice || below.Kind() == reflect.Map {
			switch below.Kind() {
			case reflect.Slice:
				suffix = "[]."
			case reflect.Map:
				suffix = ".<name>."
			}
			below = below.Elem()
		}
		if below.Kind() == reflect.Struct && strings.HasPrefix(below.PkgPath(), "postern/") {
			walk(below, path+name+suffix, out)
		}
	}
}
