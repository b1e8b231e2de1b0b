package config

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// One mistake, told at the same place whatever the format.
func TestPositions(t *testing.T) {
	tests := []struct {
		format       Format
		text         string
		line, column int
		path         string
	}{
		{YAML, "log_level: info\nroutes:\n  - from: https://a\n    to: http://a\n    timeout: x\n", 5, 14, "routes[0].timeout"},
		{YAML, "log_level: info\nroutes: [{from: https://a, to: http://a, timeout: x}]\n", 2, 51, "routes[0].timeout"},
		{YAML, "idp_scopes:\n- a\n- {b: c}\n", 3, 3, "idp_scopes[1]"},
		{YAML, "downstream_mtls:\n  max_verify_depth: x\n", 2, 21, "downstream_mtls.max_verify_depth"},
		{YAML, "# c\n\nadress: x\n", 3, 1, "adress"},
		{YAML, "a: &a {timeout_read: x}\n<<: *a\n", 1, 22, "timeout_read"},
		{JSON, "{\n  \"log_level\": \"info\",\n  \"routes\": [\n    {\"from\": \"https://a\", \"to\": \"http://a\", \"timeout\": \"x\"}\n  ]\n}", 4, 56, "routes[0].timeout"},
		{JSON, "{\"idp_scopes\": [\"a\",\n\t{\"b\": \"c\"}]}", 2, 2, "idp_scopes[1]"},
		{JSON, "{\n\t\"adress\": 1}", 2, 2, "adress"},
		{TOML, "log_level = 'info'\n[[routes]]\nfrom = 'https://a'\nto = 'http://a'\ntimeout = 'x'\n", 5, 11, "routes[0].timeout"},
		{TOML, "routes = [ {from = 'https://a', to = 'http://a', timeout = 'x'} ]\n", 1, 60, "routes[0].timeout"},
		{TOML, "[downstream_mtls]\nmax_verify_depth = 'x'\n", 2, 20, "downstream_mtls.max_verify_depth"},
		{TOML, "downstream_mtls.max_verify_depth = -1\n", 1, 36, "downstream_mtls.max_verify_depth"},
		{TOML, "# c\nadress = 1\n", 2, 1, "adress"},
		{TOML, "timeout_read = true\n", 1, 16, "timeout_read"},
		{TOML, "timeout_read = 1979-05-27T07:32:00Z\n", 1, 16, "timeout_read"},
	}
	for _, test := range tests {
		_, problems := Load(context.Background(), Text("c", test.format, []byte(test.text)))
		found := false
		for _, p := range problems {
			if p.Path == test.path {
				found = true
				if p.Line != test.line || p.Column != test.column {
					t.Errorf("%s\n  %s is at %d:%d, want %d:%d", test.text, p.Path, p.Line, p.Column, test.line, test.column)
				}
				break
			}
		}
		if !found {
			t.Errorf("%s\n  no problem at %s:\n%s", test.text, test.path, show(problems))
		}
	}
}

func TestProblemsComeInOrder(t *testing.T) {
	_, problems := loadText("timeout_read: x\nroutes:\n  - from: nonsense\n    to: nonsense\ntimeout_idle: x\nhealth_check_addr: ''\n", "TIMEOUT_WRITE=x", "POLICY=!")
	last := 0
	for _, p := range problems[:len(problems)-2] {
		if p.File != "config.yaml" || p.Line < last {
			t.Errorf("out of order:\n%s", show(problems))
		}
		last = p.Line
	}
	if len(problems) != 7 || problems[5].File != environment || problems[6].File != environment {
		t.Errorf("%s", show(problems))
	}
}

func TestMalformedDocuments(t *testing.T) {
	tests := []struct {
		format Format
		text   string
		want   string
	}{
		{YAML, "a: 1\na: 2\n", "already set in line 1"},
		{YAML, "routes:\n  - from: https://a\n    to: http://a\n    set_request_headers: {A: 1, A: 2}\n", "already set in line 4"},
		{YAML, "[a]: b\n", "a key is a list"},
		{YAML, "? {a: b}\n: c\n", "a key is a mapping"},
		{YAML, "text", "the document is text"},
		{YAML, "5", "the document is a number"},
		{YAML, "a: *nowhere\n", "unknown anchor"},
		{YAML, "a: &a [*a]\n", "holds itself"},
		{YAML, "a: \"\\xZZ\"\n", "malformed YAML"},
		{YAML, "a: \x00\n", "malformed YAML"},
		{YAML, "a: \xff\n", "malformed YAML"},
		{YAML, "<<: 5\n", "<< needs a mapping"},
		{JSON, `{"a": 1, "a": 2}`, "already set in line 1"},
		{JSON, `{"a": 01}`, "not a number"},
		{JSON, `{"a": 1,}`, "quoted key"},
		{JSON, `{a: 1}`, "quoted key"},
		{JSON, `{"a": tru}`, "no value starts"},
		{JSON, `{"a": "b`, "does not end"},
		{JSON, `{"a": "\q"}`, "malformed"},
		{JSON, `{} {}`, "follows"},
		{JSON, `{"a": 1`, "comma or }"},
		{JSON, `[1, 2`, "comma or ]"},
		{JSON, `[]`, "the document is a list"},
		{JSON, "{\"a\": \"\n\"}", "control character"},
		{JSON, "\xff", "UTF-8"},
		{TOML, "a = 1\na = 2\n", "malformed TOML"},
		{TOML, "[a]\n[a]\n", "malformed TOML"},
		{TOML, "a = ", "malformed TOML"},
		{TOML, "a = '", "malformed TOML"},
		{TOML, "\xff", "malformed TOML"},
	}
	for _, test := range tests {
		cfg, problems := Load(context.Background(), Text("c", test.format, []byte(test.text)))
		if cfg != nil || !strings.Contains(show(problems), test.want) {
			t.Errorf("%q: %s", test.text, show(problems))
		}
	}
}

func TestEmptyDocumentsLoad(t *testing.T) {
	for _, format := range []Format{YAML, JSON, TOML} {
		for _, text := range []string{"", "\n", "\ufeff"} {
			if cfg, problems := Load(context.Background(), Text("c", format, []byte(text))); cfg == nil || len(problems) > 0 {
				t.Errorf("%d %q: %s", format, text, show(problems))
			}
		}
	}
	for _, text := range []string{"---\n", "# comment\n", "null\n", "--- \n...\n"} {
		if cfg, problems := loadText(text); cfg == nil || len(problems) > 0 {
			t.Errorf("%q: %s", text, show(problems))
		}
	}
}

func TestASecondDocumentIsToldOf(t *testing.T) {
	cfg, problems := loadText("log_level: debug\n---\nlog_level: warn\n")
	if cfg == nil || cfg.Telemetry.LogLevel != "debug" || len(problems) != 1 || problems[0].Line != 3 {
		t.Errorf("%s", show(problems))
	}
}

// Documents made to exhaust memory or stack are refused quickly.
func TestBombs(t *testing.T) {
	var laughs strings.Builder
	laughs.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 20; i++ {
		fmt.Fprintf(&laughs, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), i-1)
	}
	bombs := []struct {
		name   string
		format Format
		text   string
	}{
		{"aliases", YAML, laughs.String()},
		{"flow depth", YAML, "a: " + strings.Repeat("[", 5000)},
		{"closed flow depth", YAML, "a: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000)},
		{"block depth", YAML, "a:\n" + strings.Repeat("- ", 3000) + "x"},
		{"depth", JSON, strings.Repeat(`{"a":`, 100000) + "1" + strings.Repeat("}", 100000)},
		{"list depth", JSON, strings.Repeat("[", 1000000)},
		{"depth", TOML, "a = " + strings.Repeat("[", 100000)},
		{"table depth", TOML, "a = " + strings.Repeat("{a=", 100000)},
	}
	for _, b := range bombs {
		if cfg, problems := Load(context.Background(), Text("c", b.format, []byte(b.text))); cfg != nil || len(problems) == 0 || len(problems[0].Message) > 300 {
			t.Errorf("%s: %d problems", b.name, len(problems))
		}
	}
	deep := strings.Repeat("a.", 5000) + "a = 1\n"
	_, _ = Load(context.Background(), Text("c", TOML, []byte(deep))) // need not fail, only end
	if cfg, problems := Load(context.Background(), Text("c", YAML, make([]byte, maxDocument+1))); cfg != nil || len(problems) != 1 {
		t.Errorf("a huge document: %s", show(problems))
	}
}

func TestOrdinaryAliasesAreManyEnough(t *testing.T) {
	var b strings.Builder
	b.WriteString("policy_template: &p {allow: {or: [{domain: {is: example.com}}]}}\nroutes:\n")
	for i := range 5000 {
		fmt.Fprintf(&b, "  - {from: 'https://r%d.example.com', to: 'http://x', policy: *p}\n", i)
	}
	if cfg := mustLoad(t, b.String()); len(cfg.Routes) != 5000 || cfg.Routes[4999].Compiled == nil {
		t.Error("routes are missing")
	}
}

// FuzzLoad loads anything in any format. Files are not read: a document must
// not be able to make the test read what the machine holds.
func FuzzLoad(f *testing.F) {
	for _, name := range []string{"every.good.yaml", "anchors.good.yaml", "liberal.good.yaml", "many.bad.yaml"} {
		f.Add(uint8(YAML), []byte(readFile(f, "testdata/"+name)), "ROUTES=")
	}
	f.Add(uint8(JSON), []byte(readFile(f, "testdata/many.bad.json")), "HEADERS={}")
	f.Add(uint8(TOML), []byte(readFile(f, "testdata/many.bad.toml")), "TIMEOUT_READ=5")
	f.Add(uint8(YAML), []byte("timeout_read: 2001-01-01\nroutes: [{from: 2001-01-01, to: [2001-01-01], policy: 2001-01-01}]"), "POLICY=LSBhOiBi")
	noFiles := func(string) ([]byte, error) { return []byte("file"), nil }
	f.Fuzz(func(t *testing.T, format uint8, text []byte, env string) {
		if len(text) > 1<<16 {
			return
		}
		cfg, problems := load(context.Background(), noFiles, Text("c", Format(format%3), text), Environment([]string{env}))
		if (cfg == nil) != Fatal(problems) {
			t.Fatalf("Config %v with problems:\n%s", cfg, show(problems))
		}
		if cfg == nil {
			return
		}
		for _, r := range cfg.Routes {
			if len(r.Upstream.To) == 0 && r.Proxy.Redirect == nil && r.Proxy.Response == nil {
				t.Fatalf("%s has no destination", r.Path())
			}
			for _, e := range r.Upstream.To {
				if e.URL == nil || e.URL.Scheme == "" {
					t.Fatalf("%s has an empty destination", r.Path())
				}
			}
			if r.Policy != nil && r.Compiled == nil {
				t.Fatalf("%s has a policy that is not compiled", r.Path())
			}
		}
		cfg.StartProblems()
	})
}
