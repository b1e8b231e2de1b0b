package server

import (
	"strings"
	"testing"

	"postern/internal/config"
	"postern/internal/policy"
)

func scriptConfig(t *testing.T, scripts ...string) (*compiled, []config.Problem) {
	t.Helper()
	var b strings.Builder
	b.WriteString("routes:\n")
	for _, s := range scripts {
		b.WriteString("  - from: https://a" + strings.Repeat("a", b.Len()%50) + ".example.com\n    to: http://127.0.0.1:1\n    sub_policies:\n      - id: s\n        rego:\n          - |\n            ")
		b.WriteString(strings.ReplaceAll(s, "\n", "\n            ") + "\n")
	}
	cfg, problems := config.Load(t.Context(), config.Text("config.yaml", config.YAML, []byte(b.String())))
	if config.Fatal(problems) {
		t.Fatal(problems)
	}
	if stops := cfg.StartProblems(); config.Fatal(stops) {
		t.Fatal(stops)
	}
	return compile(cfg, nil)
}

func TestScriptsOfRoutesAct(t *testing.T) {
	const text = "allow if input.http.path == \"/open\"\ndeny if input.http.path == \"/shut\""
	c, problems := scriptConfig(t, text, "\n"+text, text)
	if config.Fatal(problems) {
		t.Fatal(problems)
	}
	routes := c.table.Routes()
	for path, want := range map[string]bool{"/open": true, "/shut": false, "/": false} {
		for _, rt := range routes {
			if len(rt.Policies) != 1 || rt.Policies[0].ID != "s" {
				t.Fatalf("%+v", rt.Policies)
			}
			var res policy.Result
			rt.Policies[0].Policy.Evaluate(&policy.Input{Path: path, RawPath: path}, &res)
			if res.Err != nil || res.Allowed() != want {
				t.Errorf("%s: %+v", path, res)
			}
		}
	}
	if routes[0].Policies[0].Policy != routes[2].Policies[0].Policy {
		t.Error("equal scripts are compiled twice")
	}
}

func TestScriptsThatDoNotLoadRefuseTheConfiguration(t *testing.T) {
	for text, want := range map[string]string{
		"allow { true }\ndeny { input.x == }": "line 2, column",
		"allow { http.send({}) }":             "http.send",
		"package other\nallow := true":        "pomerium.policy",
	} {
		_, problems := scriptConfig(t, text)
		found := false
		for _, p := range problems {
			found = found || strings.Contains(p.Error(), want) && p.Line > 0 && strings.Contains(p.Error(), "routes[0].sub_policies[0].rego[0]")
		}
		if !found {
			t.Errorf("%s: %v", text, problems)
		}
	}
}
