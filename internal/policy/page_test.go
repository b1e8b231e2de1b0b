package policy_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
	"postern/internal/policy/policytest"
)

var updatePage = flag.Bool("update", false, "write docs/policy.md anew from its mark on")

// docs/policy.md is what Reference makes from its mark on.
func TestReferencePage(t *testing.T) {
	const page = "../../docs/policy.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	hand, generated, found := strings.Cut(string(text), policy.ReferenceMark)
	want := policy.Reference()
	if *updatePage {
		if err := os.WriteFile(page, []byte(strings.TrimRight(hand, "\n")+"\n\n"+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !found || policy.ReferenceMark+generated != want {
		t.Error("the page is not up to date: run go test ./internal/policy -run ReferencePage -args -update")
	}
}

// TestExamples runs the example of every criterion and value, which must show
// both that it lets in and that it does not, where that can be.
func TestExamples(t *testing.T) {
	oneSided := []string{"accept", "reject", "client_certificate", "invalid_client_certificate", "ssh_ca"}
	run := func(name, example string) {
		file := filepath.Join(t.TempDir(), "example.yaml")
		if err := os.WriteFile(file, []byte("name: "+name+"\n"+example), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if code := policytest.Run([]string{file}, policytest.Options{}, &out); code != policytest.ExitPassed {
			t.Errorf("%s: exit code %d\n%s", name, code, out.String())
		}
	}
	for _, c := range policy.Criteria() {
		if c.Example == "" || c.Matcher == nil || c.Doc == "" || c.Value == "" {
			t.Errorf("%s is not documented whole", c.Name)
			continue
		}
		if !strings.Contains(c.Example, c.Name) {
			t.Errorf("the example of %s does not use it", c.Name)
		}
		allows := strings.Contains(c.Example, "expect: allow")
		refuses := strings.Count(c.Example, "expect:") > strings.Count(c.Example, "expect: allow")
		if !(allows && refuses) && !slices.Contains(oneSided, c.Name) {
			t.Errorf("the example of %s shows one side only", c.Name)
		}
		run(c.Name, c.Example)
	}
	for _, m := range policy.Matchers() {
		if m.Example != "" {
			run(m.Name, m.Example)
		}
	}
}

func compileSchema(t *testing.T, doc map[string]any) *jsonschema.Schema {
	t.Helper()
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", plain); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func checkAgainst(t *testing.T, s *jsonschema.Schema, n *yaml.Node) error {
	t.Helper()
	v, err := policy.Plain(n)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(plain)
}

// TestSchema: every policy of the case files and examples keeps to the schema,
// and common mistakes do not.
func TestSchema(t *testing.T) {
	s := compileSchema(t, policy.Schema())
	var texts []string
	for _, c := range policy.Criteria() {
		texts = append(texts, c.Example)
	}
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(text))
	}
	checked := 0
	for _, text := range texts {
		dec := yaml.NewDecoder(strings.NewReader(text))
		for {
			var doc struct {
				Name   string    `yaml:"name"`
				Policy yaml.Node `yaml:"policy"`
			}
			if dec.Decode(&doc) != nil {
				break
			}
			if doc.Policy.Kind == 0 {
				continue
			}
			checked++
			if err := checkAgainst(t, s, &doc.Policy); err != nil {
				t.Errorf("%s: %v", doc.Name, err)
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d policies were checked", checked)
	}
	for _, bad := range []string{
		"x", "[x]", "{alow: {}}", "{allow: []}", "{allow: {an: []}}", "{allow: {and: {domain: x}}}",
		"{allow: {and: [{}]}}", "{allow: {and: [{domain: x, email: y}]}}", "{allow: {and: [{emial: x}]}}",
		"{allow: {and: [{email: {starts_wiht: x}}]}}", "{allow: {and: [{email: {in: x}}]}}",
		"{allow: {and: [{source_ip: 7}]}}", "{allow: {and: [{date: {}}]}}", "{allow: {and: [{time_of_day: {after: x}}]}}",
		"{allow: {and: [{time_of_day: {timezone: x}}]}}", "{allow: {and: [{record: {field: x, is: y}}]}}",
		"{allow: {and: [{device: {kind: x}}]}}", "{allow: {and: [{client_certificate: x}]}}",
	} {
		var n yaml.Node
		if err := yaml.Unmarshal([]byte(bad), &n); err != nil {
			t.Fatal(err)
		}
		if _, _, err := policy.ParseNode("p", n.Content[0], policy.Options{}); err == nil {
			t.Errorf("%s loads", bad)
		}
		if checkAgainst(t, s, n.Content[0]) == nil {
			t.Errorf("%s keeps to the schema", bad)
		}
	}
}
