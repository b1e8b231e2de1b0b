package config

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := json.Marshal(Schema())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func keepsTo(t *testing.T, s *jsonschema.Schema, text string) error {
	t.Helper()
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil {
		t.Fatal(err)
	}
	tree, problems := policy.Resolve("config.yaml", n.Content[0])
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	v, err := policy.Plain(tree)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(doc)
}

// TestSchemaTakesGoodDocuments: what loads in ordinary spelling keeps to the
// schema. liberal.good.yaml is there to be unusual, old-style.good.yaml for
// keys that no longer exist.
func TestSchemaTakesGoodDocuments(t *testing.T) {
	s := compiledSchema(t)
	files, err := filepath.Glob("testdata/*.good.yaml")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if strings.Contains(file, "liberal") || strings.Contains(file, "old-style") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := keepsTo(t, s, string(text)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestSchemaRefusesMistakes(t *testing.T) {
	s := compiledSchema(t)
	for _, text := range []string{
		"adress: ':443'",
		"insecure_server: maybe",
		"routes: {from: https://a.test}",
		"routes: [{form: https://a.test}]",
		"routes: [{from: https://a.test, to: http://b, policy: [{alow: {}}]}]",
		"routes: [{from: https://a.test, to: http://b, policy: [{allow: {or: [{emial: x}]}}]}]",
		"routes: [{from: https://a.test, to: http://b, sub_policies: [{regos: []}]}]",
		"downstream_mtls: {enforcment: policy}",
		"primary_color: red",
	} {
		if _, problems := loadText(text + "\n"); len(problems) == 0 {
			t.Errorf("%s: nothing is said at load", text)
		}
		if keepsTo(t, s, text) == nil {
			t.Errorf("%s keeps to the schema", text)
		}
	}
}

// TestSchemaNamesEveryKey: no key is forgotten, and each says what it is for.
func TestSchemaNamesEveryKey(t *testing.T) {
	text, err := json.Marshal(Schema())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Keys() {
		name := k.Name[strings.LastIndexAny(k.Name, ".")+1:]
		if !strings.Contains(string(text), `"`+name+`":{`) {
			t.Errorf("%s is not in the schema", k.Name)
		}
	}
}
